"""Which observer shows a run: decided once, from the flags, the streams and the environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, TextIO, TypeAlias

from dagrun.view.text import ColorChoice, Look, Paint, glyphs_for, use_color

if TYPE_CHECKING:
    from dagrun.view.live import Live
    from dagrun.view.log import JsonLines, LineLog

Ui: TypeAlias = Literal["auto", "live", "log", "json", "quiet"]


def choose_ui(ui: Ui, *, isatty: bool, env: Mapping[str, str]) -> Literal["live", "log", "json", "quiet"]:
    """`auto` is live in a terminal and log elsewhere, under CI and where TERM is dumb.

    `live` too is log where there is no terminal that could move a cursor.
    """
    if ui in ("json", "quiet", "log"):
        return ui
    if not isatty or env.get("TERM") in ("dumb", None, ""):
        return "log"
    return "live" if ui == "live" or env.get("CI", "").lower() in ("", "0", "false") else "log"


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal; a closed one isn't."""
    try:
        return stream.isatty()
    except ValueError:
        return False


def look_for(stream: TextIO, env: Mapping[str, str], color: ColorChoice = "auto", *, width: bool = True) -> Look:
    """How to write to a stream: signs by its encoding, colours, and its width if it is a terminal."""
    tty = is_terminal(stream)
    columns: int | None = None
    if tty and width:
        from dagrun.view.live import terminal_size

        columns = terminal_size(stream)[0]
    glyphs = glyphs_for(getattr(stream, "encoding", None))
    return Look(glyphs, Paint(use_color(color, env, tty)), columns)


def observer_for(
    ui: Ui,
    *,
    stderr: TextIO,
    stdout: TextIO,
    env: Mapping[str, str],
    color: ColorChoice = "auto",
    read: Callable[[int], bytes] | None = None,
    line_of: Callable[[int], int] | None = None,
) -> Live | LineLog | JsonLines | None:
    """The observer for a run, or None for `quiet`.

    `json` goes to `stdout`, all else to `stderr`. `read` and `line_of` are for annotations.
    """
    chosen = choose_ui(ui, isatty=is_terminal(stderr), env=env)
    if chosen == "quiet":
        return None
    if chosen == "json":
        from dagrun.view.log import JsonLines

        return JsonLines(stdout)
    look = look_for(stderr, env, color)
    if chosen == "live":
        from dagrun.view.live import Live

        return Live(stderr, look)
    if env.get("GITHUB_ACTIONS") == "true":
        from dagrun.view.github import GithubLog

        return GithubLog(stderr, look, env=env, read=read, line_of=line_of)
    from dagrun.view.log import LineLog

    return LineLog(stderr, look)


__all__ = ["Ui", "choose_ui", "is_terminal", "look_for", "observer_for"]
