"""How what an agent's tools run in comes back: a result, the end of one process, the end of the attempt."""

from __future__ import annotations

from dataclasses import dataclass
from signal import SIGKILL

from dagrun.core.names import Outcome
from dagrun.sandbox.base import Exit
from dagrun.sandbox.wall import Aftermath


@dataclass(frozen=True, slots=True)
class Returned:
    """The result of call `number`; `text` is for the model, not masked yet."""

    number: int
    ok: bool
    text: str
    duration_ms: int


@dataclass(frozen=True, slots=True)
class Broken:
    """The attempt can't go on: its outcome, the words for it (not masked yet), and the limit that was hit."""

    outcome: Outcome
    error: str
    limit: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """How one process ended: by itself or (`ours`) since it was told to; `why` in words."""

    exit: Exit
    after: Aftermath
    ours: bool
    why: str

    @property
    def by_limit(self) -> bool:
        """Whether a ceiling ended it. Memory may have ended only a command of it, long before: that was a SIGKILL."""
        killed = self.exit.signal == SIGKILL or self.exit.code == 128 + SIGKILL
        return bool(self.after.limit) and not self.ours and (killed or self.after.limit != "memory")
