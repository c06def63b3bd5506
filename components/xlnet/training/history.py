"""What a training run says while it runs and leaves behind: progress, ``history.jsonl``, TensorBoard events."""

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from xlnet.provenance import LOGS

BAR_WIDTH = 24
SECONDS_BETWEEN_LINES = 10.0  # where the output is not a terminal


class History:
    """Writes ``history.jsonl`` (a pure function of the work: no times) and, below ``logs/``, speed and TensorBoard events."""

    def __init__(self, directory: Path) -> None:
        logs = directory / LOGS
        logs.mkdir()
        self._history = (directory / "history.jsonl").open("w", encoding="utf-8")
        self._speed = (logs / "speed.jsonl").open("w", encoding="utf-8")
        self._events = _tensorboard(logs)

    def __enter__(self) -> "History":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._history.close()
        self._speed.close()
        if self._events is not None:
            self._events.close()

    def write(self, step: int, values: dict[str, Any], speed: dict[str, float] | None = None) -> None:
        """Record values at a step; ``speed`` holds what depends on the machine and the moment."""
        self._history.write(json.dumps({"step": step, **values}) + "\n")
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

    def __init__(self, steps: int, out: TextIO | None = None) -> None:
        self.steps = steps
        self.out = out or sys.stderr
        self.terminal = self.out.isatty()
        self.started = self.printed = time.perf_counter()
        self.tokens = 0

    def tokens_per_second(self) -> float:
        """Real tokens, padding not counted, since the start."""
        return self.tokens / max(1e-9, time.perf_counter() - self.started)

    def due(self) -> bool:
        """Whether the next update would be printed; reading a loss from a GPU only then keeps the GPU busy."""
        return time.perf_counter() - self.printed >= (0.2 if self.terminal else SECONDS_BETWEEN_LINES)

    def update(self, step: int, loss: float) -> None:
        """Show the state after ``step`` steps."""
        self.printed = time.perf_counter()
        left = (self.printed - self.started) / max(1, step) * (self.steps - step)
        text = (
            f"step {step}/{self.steps}  loss {loss:.4f}  {self.tokens_per_second():,.0f} tokens/s  "
            f"{clock(left)} left"
        )
        if self.terminal:
            filled = BAR_WIDTH * step // max(1, self.steps)
            self.out.write(f"\r\033[K[{'█' * filled}{'·' * (BAR_WIDTH - filled)}] {text}")
        else:
            self.out.write(text + "\n")
        self.out.flush()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.out.write(("\r\033[K" if self.terminal else "") + text + "\n")
        self.out.flush()


def clock(seconds: float) -> str:
    """``"1:02:03"`` or ``"2:03"``."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
