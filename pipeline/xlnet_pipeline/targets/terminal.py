"""Prints lines and a progress bar on one terminal, so that neither overwrites the other."""

import shutil
from typing import TextIO

_CLEAR = "\r\x1b[K"


class Terminal:
    """Its methods are ``echo`` and ``live`` for ``LocalTarget.submit`` if the output is a terminal."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self._bar = False  # whether the cursor's line is a bar

    def line(self, text: str) -> None:
        """Print a line, and remove the progress bar before that."""
        self.out.write((_CLEAR if self._bar else "") + text + "\n")
        self.out.flush()
        self._bar = False

    def live(self, text: str) -> None:
        """Draw the progress bar again, cut to the terminal's width."""
        self.out.write(_CLEAR + text[: shutil.get_terminal_size().columns - 1])
        self.out.flush()
        self._bar = True
