"""Filters a step's output for people, and finds its error message."""

import re
from collections.abc import Callable, Iterable, Iterator

from xlnet.errors import Preempted
from xlnet_pipeline.targets.record import RunFailure

LAST_LINES = 20
GO_ON = "run the same command to go on"

_EXECUTOR = re.compile(r"\[KFP Executor ")
# Lines that Kubeflow Pipelines' launcher and Argo add around a program's output.
_LAUNCHER = re.compile(r"[IWEF]\d{4} [\d:.]+ +\d+ \w+\.go:\d+\] |time=\S+ level=\w+ .*argo=true")
_TRACEBACK = "Traceback (most recent call last):"
_CHAINED = ("During handling of the above", "The above exception was")
_ERROR = re.compile(r"([A-Za-z_][\w.]*)(?:: (.*))?")
_OURS = {"xlnet.errors.UserError": "user", "xlnet.errors.RunError": "run", "xlnet.errors.CorruptArtifact": "run"}
_DISK_FULL = re.compile(r"no space left on device|disk (is|or \w+ is) full|disk quota exceeded", re.IGNORECASE)


def shown(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a step's log that the step itself wrote."""
    found: list[str] = []
    output = Output(found.append)
    for line in lines:
        output.line(line)
        yield from found
        found.clear()
    output.close()
    yield from found


class Output:
    """Passes a step's lines on at once, without the executor's lines. Holds a traceback back until the end."""

    def __init__(self, echo: Callable[[str], None]) -> None:
        self.echo = echo
        self.last: list[str] = []
        self._block = False  # inside JSON that the executor or the launcher prints
        self._held: list[str] = []  # a traceback; the last one is the step's end

    def line(self, text: str) -> None:
        """Take one line of the step's output."""
        if self._noise(text):
            return
        self.last = [*self.last[1 - LAST_LINES :], text]
        if text.startswith(_TRACEBACK) or (self._held and self._continues(text)):
            self._held.append(text)
        else:
            self._release()
            self.echo(text)

    def close(self) -> None:
        """Pass on the held lines, because the output has ended."""
        self._release()

    def failure(self, step: str, status: int, home: str) -> RunFailure:
        """Return why the step failed. A traceback is shown only for a bug."""
        kind, message = self._explain(step, status, home)
        if kind == "bug":
            self._release()
        if kind == "user":
            return RunFailure(step, message, "user", self.last[: -len(self._held)])
        return RunFailure(step, message, "run", self.last)

    def _explain(self, step: str, status: int, home: str) -> tuple[str, str]:
        error = next((line for line in reversed(self._held) if line and not line[0].isspace()), "")
        match = _ERROR.fullmatch(error)
        name, message = (match.group(1), match.group(2) or "") if match else ("", "")
        if name in _OURS:
            return _OURS[name], message
        if any(_DISK_FULL.search(line) for line in self.last[-3:]):
            where = f"no space left on device while step '{step}' wrote below '{home}'"
            return "run", f"{where}; free some and run again: finished steps are kept"
        if name == "MemoryError" or status in (-9, 137):
            killed = "" if name else ": it was killed (SIGKILL), as the system does when memory runs out"
            return "run", f"step '{step}' ran out of memory or was ended from outside{killed}"
        if status == Preempted.exit_status:
            return "run", f"step '{step}' was asked to stop from outside, and saved its work; {GO_ON}"
        if status < 0 or status > 128:
            return "run", f"step '{step}' was ended by signal {-status if status < 0 else status - 128}"
        return "bug", error or f"step '{step}' ended with exit status {status}"

    def _noise(self, text: str) -> bool:
        if self._block:
            self._block = text != "}"
            return True
        noise = bool(_EXECUTOR.match(text) or _LAUNCHER.match(text))
        self._block = noise and text.endswith(("Got executor_input:", "{"))
        return noise

    def _continues(self, text: str) -> bool:
        ended = not self._held[-1].startswith((" ", _TRACEBACK, *_CHAINED)) and self._held[-1] != ""
        return text == "" or text.startswith((" ", *_CHAINED)) or not ended

    def _release(self) -> None:
        for text in self._held:
            self.echo(text)
        self._held = []
