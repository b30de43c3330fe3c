"""Named points at which a test can kill, stop or starve dagrun.

A point is a no-op unless the environment variable DAGRUN_FAULT is set when dagrun starts:
`name:n:action` strikes the n-th time (from 1) that `name` is passed; the name `*` counts all
points together, so a test can walk through every n. Actions: `kill` (SIGKILL to itself), `stop`
(SIGSTOP to itself), `enospc` and `eio` (raise that OSError, as the system call at this place would;
nothing at points named `after`, where none is left to fail).

Call it as `if ARMED: fault("journal.before_write")`, so that a point costs nothing when off.
"""

from __future__ import annotations

import os

from dagrun.errors import BugError, UsageError

POINTS: tuple[str, ...] = (
    "journal.before_lock",
    "journal.before_write",
    "journal.mid_write",  # half of the line is in the file
    "journal.after_write",
    "journal.before_sync",
    "journal.after_sync",
    "values.before_rename",
    "values.after_rename",
    "artifacts.before_rename",
    "run.after_mkdir",
    "engine.before_commit",
    "engine.after_event",
)
ACTIONS = ("kill", "stop", "enospc", "eio")

ARMED = bool(os.environ.get("DAGRUN_FAULT"))

_spec: tuple[str, int, str] | None = None
_passed = 0


def parse(text: str) -> tuple[str, int, str]:
    """The (point, n, action) of a DAGRUN_FAULT text. Raises UsageError that says what is accepted."""
    name, _, rest = text.partition(":")
    count, _, action = rest.partition(":")
    if (name != "*" and name not in POINTS) or not count.isdecimal() or int(count) < 1 or action not in ACTIONS:
        raise UsageError(
            f"DAGRUN_FAULT={text!r} is not name:n:action",
            hint=f"the name is * or one of {', '.join(POINTS)}; the action one of {', '.join(ACTIONS)}",
        )
    return name, int(count), action


def fault(name: str) -> None:
    """Pass the point `name`: strikes here if DAGRUN_FAULT says so. Raises OSError for enospc and eio."""
    global _spec, _passed
    if name not in POINTS:
        raise BugError(f"fault point {name!r} is not in POINTS")
    if _spec is None:
        text = os.environ.get("DAGRUN_FAULT", "")
        if not text:
            return
        _spec = parse(text)
    point, count, action = _spec
    if point not in ("*", name):
        return
    _passed += 1
    if _passed == count:
        _strike(action, name)


def _strike(action: str, name: str) -> None:
    import errno
    import signal

    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif ".after_" not in name:
        number = errno.ENOSPC if action == "enospc" else errno.EIO
        raise OSError(number, os.strerror(number), f"fault point {name}")
