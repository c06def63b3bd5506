"""Chooses among several implementations of one formula."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType

from xlnet.errors import UserError, warn

Situation = tuple[str, str, int]  # device, data type, head width


@dataclass(frozen=True)
class Choice:
    """The implementations of a formula, each a module.

    A function ``obstacle(device, dtype, head_width)`` of the module says why it cannot run; without it, it always can.

    Attributes:
        formula: what they compute, for messages.
        names: the implementations' names.
        load: returns the module of an implementation.
        fast: the fast implementations for each kind of device, best first.
        anywhere: the implementation for other devices.
        known: what ``auto`` has chosen so far.
    """

    formula: str
    names: tuple[str, ...]
    load: Callable[[str], ModuleType]
    fast: Mapping[str, tuple[str, ...]]
    anywhere: str
    known: dict[Situation, str] = field(default_factory=dict)

    def name(self, impl: str, device: str, dtype: str, head_width: int) -> str:
        """Return the implementation to use: ``impl``, or for ``auto`` the fastest that runs here.

        Raises:
            UserError: the name is unknown, or the implementation cannot run here; the message gives the reason.
        """
        if impl not in ("auto", *self.names):
            raise UserError(f"{self.formula} implementation is {impl!r}; allowed: auto, {', '.join(self.names)}")
        situation = device, dtype, head_width
        if impl == "auto":
            if situation not in self.known:
                self.known[situation] = self._best(situation)
            return self.known[situation]
        if reason := self._obstacle(impl, situation):
            raise UserError(f"{self.formula} implementation {impl!r} cannot run here: {reason}; take 'auto'")
        return impl

    def _obstacle(self, impl: str, situation: Situation) -> str:
        obstacle: Callable[[str, str, int], str] | None = getattr(self.load(impl), "obstacle", None)
        return obstacle(*situation) if obstacle else ""

    def _best(self, situation: Situation) -> str:
        """Return the first fast implementation that can run; warn if only a slower one can."""
        obstacles, impl = [], self.anywhere
        for impl in self.fast.get(situation[0], (self.anywhere,)):
            if not (reason := self._obstacle(impl, situation)):
                break
            obstacles.append(f"{impl}: {reason}")
        if obstacles:
            warn(f"{self.formula} on {situation[0]} is the slower '{impl}'; {'; '.join(obstacles)}")
        return impl
