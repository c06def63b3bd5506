"""What a training run says while it runs and leaves behind: progress, ``history.jsonl``, TensorBoard events."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from xlnet.provenance import LOGS

BAR_WIDTH = 24
SECONDS_BETWEEN_LINES = 10.0  # where the output is not a terminal


class History:
    """Writes ``history.jsonl``, and below ``logs/`` the speed and TensorBoard events.

    ``history.jsonl`` holds no times: equal work writes equal bytes.
    """

    def __init__(self, directory: Path, earlier: Sequence[str] = ()) -> None:
        """Start a history, or continue one whose lines an interrupted training had written."""
        logs = directory / LOGS
        logs.mkdir()
        self.lines = list(earlier)
        self._path = directory / "history.jsonl"
        self._speed = (logs / "speed.jsonl").open("w", encoding="utf-8")
        self._events = _tensorboard(logs)

    def __enter__(self) -> "History":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._path.write_text("".join(line + "\n" for line in self.lines), encoding="utf-8")
        self._speed.close()
        if self._events is not None:
            self._events.close()

    def write(self, step: int, values: dict[str, Any], speed: dict[str, float] | None = None) -> None:
        """Record values at a step; ``speed`` holds what depends on the machine and the moment."""
        self.lines.append(json.dumps({"step": step, **values}))
        if speed:
            self._speed.write(json.dumps({"step": step, **speed}) + "\n")
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
    """A bar on a terminal, a line now and then elsewhere: loss, tokens/s, time left."""

    def __init__(self, out: TextIO | None = None, silent: bool = False) -> None:
        self.out = out or sys.stderr
        self.silent = silent  # on every rank but one
        self.terminal = self.out.isatty()
        self.tokens = 0
        self.last = 0.0  # mean loss of the last line of history
        self.start(1)

    def start(self, steps: int, first: int = 0) -> None:
        """Training begins now, at step ``first`` of ``steps``."""
        self.steps, self.first = steps, first
        self.started = self.printed = time.perf_counter()

    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.started

    def tokens_per_second(self) -> float:
        """Real tokens, padding not counted, since the start."""
        return self.tokens / max(1e-9, self.seconds())

    def due(self) -> bool:
        """Whether the next update would be printed; reading a loss from a GPU only then keeps the GPU busy."""
        return time.perf_counter() - self.printed >= (0.2 if self.terminal else SECONDS_BETWEEN_LINES)

    def update(self, step: int, losses: Sequence[float]) -> None:
        """Show the state after ``step`` steps, if it is time; ``losses`` are those since the last line of history."""
        if self.silent or not (self.due() or step == self.steps):
            return
        self.printed = time.perf_counter()
        loss = sum(losses) / len(losses) if losses else self.last
        left = (self.printed - self.started) / max(1, step - self.first) * (self.steps - step)
        text = (
            f"step {step}/{self.steps}  loss {loss:.4f}  {self.tokens_per_second():,.0f} tokens/s  {clock(left)} left"
        )
        if self.terminal:
            filled = BAR_WIDTH * step // max(1, self.steps)
            self.out.write(f"\r\033[K[{'█' * filled}{'·' * (BAR_WIDTH - filled)}] {text}")
        else:
            self.out.write(text + "\n")
        self.out.flush()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self.silent:
            return
        self.out.write(("\r\033[K" if self.terminal else "") + text + "\n")
        self.out.flush()


def clock(seconds: float) -> str:
    """``"1:02:03"`` or ``"2:03"``."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
