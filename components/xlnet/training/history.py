"""Reports a training run: progress on the screen, ``history.jsonl``, TensorBoard events."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from xlnet.provenance import LOGS

BAR_WIDTH = 24
SECONDS_BETWEEN_LINES = 10.0  # if the output is not a terminal


class History:
    """Writes ``history.jsonl``, and the speed and TensorBoard events below ``logs/``, as the training goes.

    ``history.jsonl`` holds no times, so equal trainings write equal bytes.
    """

    def __init__(self, directory: Path, earlier: Sequence[str] = ()) -> None:
        """Start a history; ``earlier`` holds the lines that an interrupted training has written."""
        logs = directory / LOGS
        logs.mkdir()
        self.lines = list(earlier)
        self._file = (directory / "history.jsonl").open("w", encoding="utf-8")
        self._file.writelines(f"{line}\n" for line in self.lines)
        self._speed = (logs / "speed.jsonl").open("w", encoding="utf-8")
        self._events = _tensorboard(logs)

    def __enter__(self) -> "History":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._speed.close()
        if self._events is not None:
            self._events.close()

    def write(self, step: int, values: dict[str, Any], speed: dict[str, float] | None = None) -> None:
        """Record values at a step; ``speed`` holds the values that depend on machine and time."""
        self.lines.append(json.dumps({"step": step, **values}))
        self._file.write(f"{self.lines[-1]}\n")
        self._file.flush()  # a page shows the curves while the training runs
        if speed:
            self._speed.write(json.dumps({"step": step, **speed}) + "\n")
            self._speed.flush()
        if self._events is not None:
            for name, value in {**values, **(speed or {})}.items():
                self._events.add_scalar(name, value, step)


def _tensorboard(logs: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("no TensorBoard events: pip install 'xlnet-pipeline[tensorboard]'", file=sys.stderr)
        return None
    return SummaryWriter(str(logs))


class Progress:
    """Shows loss, tokens/s and time left: as a bar on a terminal, elsewhere as a line from time to time."""

    def __init__(self, silent: bool) -> None:
        self.out = sys.stderr
        self.silent = silent  # True on every rank but one
        self.terminal = self.out.isatty()
        self.tokens = 0
        self.last: float | None = None  # mean loss in the last line of history
        self.start(1)

    def start(self, steps: int, first: int = 0) -> None:
        """Start the clock at step ``first`` of ``steps``."""
        self.steps, self.first = steps, first
        self.started = self.printed = time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self.started

    def tokens_per_second(self) -> float:
        """Return the mean number of tokens per second since the start, without padding."""
        return self.tokens / max(1e-9, self.seconds())

    def due(self) -> bool:
        """Whether it is time to print. Only then are losses read from a device, because reading makes it wait."""
        return time.perf_counter() - self.printed >= (0.2 if self.terminal else SECONDS_BETWEEN_LINES)

    def update(self, step: int, losses: Sequence[float]) -> None:
        """Show progress after ``step`` steps, if it is time; ``losses`` are those since the last line of history."""
        if self.silent or not (self.due() or step == self.steps):
            return
        self.printed = time.perf_counter()
        loss = sum(losses) / len(losses) if losses else self.last
        left = (self.printed - self.started) / max(1, step - self.first) * (self.steps - step)
        shown = "" if loss is None else f"  loss {loss:.4f}"  # the first loss may still be on the device
        text = f"step {step}/{self.steps}{shown}  {self.tokens_per_second():,.0f} tokens/s  {clock(left)} left"
        if self.terminal:
            filled = BAR_WIDTH * step // max(1, self.steps)
            self.out.write(f"\r\033[K[{'█' * filled}{'·' * (BAR_WIDTH - filled)}] {text}")
        else:
            self.out.write(text + "\n")
        self.out.flush()

    def say(self, text: str) -> None:
        """Print a line that the progress bar does not overwrite."""
        if self.silent:
            return
        self.out.write(("\r\033[K" if self.terminal else "") + text + "\n")
        self.out.flush()


def clock(seconds: float) -> str:
    """Format a duration as ``"1:02:03"`` or ``"2:03"``."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
