"""Which observer shows a run."""

from __future__ import annotations

import io
import os

import pytest

from dagrun.view.choose import choose_ui, look_for, observer_for
from dagrun.view.github import GithubLog
from dagrun.view.live import Live
from dagrun.view.log import JsonLines, LineLog
from dagrun.view.text import ASCII, UTF8

from .terminal import Terminal

XTERM = {"TERM": "xterm"}


@pytest.mark.parametrize(
    ("ui", "tty", "env", "chosen"),
    [
        ("auto", True, XTERM, "live"),
        ("auto", False, XTERM, "log"),
        ("auto", True, {"TERM": "dumb"}, "log"),
        ("auto", True, {}, "log"),
        ("auto", True, {**XTERM, "CI": "true"}, "log"),
        ("auto", True, {**XTERM, "CI": "false"}, "live"),
        ("auto", True, {**XTERM, "NO_COLOR": "1"}, "live"),
        ("live", True, {**XTERM, "CI": "true"}, "live"),
        ("live", False, XTERM, "log"),
        ("live", True, {"TERM": "dumb"}, "log"),
        ("log", True, XTERM, "log"),
        ("json", True, XTERM, "json"),
        ("quiet", True, XTERM, "quiet"),
    ],
)
def test_choice(ui: str, tty: bool, env: dict[str, str], chosen: str) -> None:
    assert choose_ui(ui, isatty=tty, env=env) == chosen  # type: ignore[arg-type]


def test_observers() -> None:
    out, err = io.StringIO(), io.StringIO()

    def made(ui: str, env: dict[str, str]) -> object:
        return type(observer_for(ui, stderr=err, stdout=out, env=env))  # type: ignore[arg-type]

    assert made("auto", XTERM) is LineLog
    assert made("auto", {"GITHUB_ACTIONS": "true"}) is GithubLog
    assert made("json", XTERM) is JsonLines
    assert made("quiet", XTERM) is type(None)


def test_a_terminal() -> None:
    terminal = Terminal(97, 24, encoding="ascii")
    look = look_for(terminal.slave, XTERM)
    assert (look.glyphs, look.width, look.paint.on) == (ASCII, 97, True)
    assert isinstance(observer_for("auto", stderr=terminal.slave, stdout=terminal.slave, env=XTERM), Live)
    os.close(terminal.master)
    terminal.slave.close()


def test_a_closed_stream_is_no_terminal() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    look = look_for(stream, {}, "always")
    assert (look.glyphs, look.width, look.paint.on) == (UTF8, None, True)
    stream.close()
    assert look_for(stream, {}).width is None
