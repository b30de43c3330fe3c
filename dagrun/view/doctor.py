"""What doctor found, as text: the findings, and what each level of isolation holds, side by side.

Pure: reports in, lines out. Knows nothing of how anything was tried.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dagrun.view.text import Look, clean, pad

SAID: Mapping[str, str] = {
    "fs.read": "read outside the granted paths",
    "fs.write": "write outside them",
    "fs.deny": "read what `deny` names",
    "fs.meta": "see or change names and modes",
    "fs.protected": "touch .dagrun, git hooks, the flow",
    "net.none": "reach any address",
    "net.allowlist": "reach a host not in the list",
    "unix": "reach a Unix socket",
    "ipc": "share memory, queues, keys",
    "proc.hide": "see other processes",
    "proc.signal": "signal or trace them",
    "env": "see the caller's environment",
    "fds": "use descriptors of dagrun",
    "tty": "use the terminal",
    "caps": "gain rights, call the kernel",
    "kill.tree": "outlive the node",
    "mem": "pass resources.memory",
    "pids": "pass resources.pids",
    "cpu": "pass resources.cpu",
    "fsize": "pass resources.file_size",
}


class Finding(NamedTuple):
    """One thing that was tried: `level` is ok, warning or error; `hint` what to do about it."""

    name: str
    level: str
    text: str
    hint: str = ""


@dataclass(slots=True, kw_only=True)
class Level:
    """What was found of one level: the back end that would be taken, and what it holds.

    `guarantees` maps those that the level promises to "" or why it is not held; `tried` the ones that
    were attacked just now, through a real launch. `enough` says whether a node can run at it.
    `launch_ms` is an empty launch (median), None if there was none. `others` has a line for each
    back end that was not taken.
    """

    level: str
    backend: str = ""
    version: str = ""
    enough: bool = True
    guarantees: dict[str, str] = field(default_factory=dict)
    tried: tuple[str, ...] = ()
    launch_ms: float | None = None
    hint: str = ""
    others: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """This level as `doctor --json` prints it."""
        held = {
            name: {"held": not why, "why": why, "tried": name in self.tried} for name, why in self.guarantees.items()
        }
        return {
            "level": self.level,
            "backend": self.backend,
            "version": self.version,
            "enough": self.enough,
            "guarantees": held,
            "launch_ms": self.launch_ms,
            "hint": self.hint,
            "others": list(self.others),
        }


def finding_lines(look: Look, found: Sequence[Finding], *, quiet: bool = False) -> Iterator[str]:
    """A line for each finding, and one for what to do; only what is not ok when `quiet`."""
    signs = {"ok": look.glyphs.ok, "warning": "!", "error": look.glyphs.failed}
    styles = {"ok": "green", "warning": "yellow", "error": "red"}
    width = max([len(f.name) for f in found], default=0)
    for f in found:
        if quiet and f.level == "ok":
            continue
        yield f"{look.paint(signs[f.level], styles[f.level])} {f.name:<{width}}  {clean(f.text)}"
        if f.hint:
            yield f"  {'':<{width}}  help: {clean(f.hint)}"


def level_lines(look: Look, levels: Sequence[Level]) -> Iterator[str]:
    """The table of levels and guarantees, then what is missing, why, and how to get it."""
    names = [name for name in SAID if any(name in level.guarantees for level in levels)]
    room = max([len(name) for name in names], default=0)
    widths = [max(len(level.level), len(level.backend), len(_time(level))) + 2 for level in levels]
    yield " " * room + "  " + "".join([f"{level.level:<{w}}" for level, w in zip(levels, widths)]) + "a command can't"
    yield (" " * room + "  " + "".join([f"{level.backend or '-':<{w}}" for level, w in zip(levels, widths)])).rstrip()
    for name in names:
        cells = "".join([_cell(look, level, name, w) for level, w in zip(levels, widths)])
        yield f"{name:<{room}}  {cells}{SAID[name]}"
    times = "".join([pad(_time(level), w) for level, w in zip(levels, widths)])
    yield f"{'launch':<{room}}  {times}".rstrip()
    for level in levels:
        yield from _words(look, level)


def _cell(look: Look, level: Level, name: str, width: int) -> str:
    if name not in level.guarantees:
        return pad(look.glyphs.skipped, width)
    held = not level.guarantees[name]
    sign = look.glyphs.ok if held else look.glyphs.failed
    return look.paint(sign, "green" if held else "red") + " " * (width - 1)


def _time(level: Level) -> str:
    if level.launch_ms is None:
        return "-"
    return f"{level.launch_ms:,.0f} ms" if level.launch_ms >= 100 else f"{level.launch_ms:.3g} ms"


def _words(look: Look, level: Level) -> Iterator[str]:
    """What there is to say of a level: its version, each reason once, and how to get what is missing."""
    lacks = {name: why for name, why in level.guarantees.items() if why}
    if level.enough and not lacks and not level.version:
        return
    sign = look.paint(look.glyphs.ok, "green") if level.enough else look.paint(look.glyphs.failed, "red")
    verdict = clean(level.version or level.backend) if level.enough else "can't be held here"
    yield f"{sign} {level.level}: {verdict}"
    reasons: dict[str, list[str]] = {}
    for name, why in lacks.items():
        reasons.setdefault(why, []).append(name)
    lines = [f"{', '.join(names)}: {why}" for why, names in reasons.items()]
    lines += [*level.others, *([f"help: {level.hint}"] if level.hint else [])]
    for line in lines:
        yield from textwrap.wrap(
            clean(line), max(40, look.width or 100), initial_indent="    ", subsequent_indent="      ",
            break_on_hyphens=False, break_long_words=False,
        )  # fmt: skip
