"""The door: no traceback reaches anybody, whatever happens."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dagrun.cli.app import door
from dagrun.cli.console import Settings
from dagrun.errors import BugError, InputError, JournalError, NotFoundError, Problem

from .space import Space


def failing(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("DAGRUN_DEBUG", raising=False)


def test_a_refusal_goes_to_stderr_with_its_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert door(Settings(), failing(NotFoundError("there is no run x", hint="dagrun runs"))) == 9
    assert capsys.readouterr() == ("", "error[not-found]: there is no run x\n  help: dagrun runs\n")


@pytest.mark.parametrize(("settings", "words"), [(Settings(json=True), []), (Settings(), ["--json"])])
def test_with_json_it_is_one_document_on_stdout(
    capsys: pytest.CaptureFixture[str], settings: Settings, words: list[str]
) -> None:
    problem = Problem(code="unknown-key", message="no key `x`", file="f.yaml", line=2, column=3, hint="y")
    assert door(settings, failing(InputError((problem,))), words) == 3
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert (error["code"], error["exit_code"], err) == ("invalid", 3, "")
    assert error["problems"][0]["line"] == 2


def test_an_unexpected_exception_becomes_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert door(Settings(), failing(ZeroDivisionError("by zero")), ["execute", "x.yaml"]) == 70
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first == "error[bug]: ZeroDivisionError: by zero"
    path = Path(second.rpartition("with ")[2])
    text = path.read_text()
    assert "Traceback" in text
    assert "['execute', 'x.yaml']" in text
    assert "Python 3." in text
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_report_goes_to_the_project_where_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    os.mkdir(".dagrun")
    assert door(Settings(), failing(BugError("nothing can move"))) == 70
    assert f"with {os.getcwd()}/.dagrun/bug-" in capsys.readouterr().err
    assert len(os.listdir(".dagrun")) == 1


def test_a_report_that_can_not_be_written_is_no_second_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere/at/all")
    assert door(Settings(), failing(ValueError("x"))) == 70
    assert "DAGRUN_DEBUG=1" in capsys.readouterr().err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGRUN_DEBUG", "1")
    door(Settings(), failing(ValueError("evil \x1b[31m text")))
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "\x1b" not in err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EMFILE, errno.EROFS])
def test_what_the_machine_lacks_is_no_bug(capsys: pytest.CaptureFixture[str], number: int) -> None:
    assert door(Settings(), failing(OSError(number, os.strerror(number), "/some/file"))) == 8
    wanted = f"error[environment]: the system refuses /some/file: {os.strerror(number)}\n"
    assert capsys.readouterr().err.startswith(wanted)


def test_an_interrupt_is_130_and_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    assert door(Settings(), failing(KeyboardInterrupt())) == 130
    assert capsys.readouterr() == ("", "\n")


def test_a_hint_has_the_folder_that_was_named(capsys: pytest.CaptureFixture[str]) -> None:
    error = JournalError("bad", hint="go on with dagrun resume r7k2, or see dagrun runs")
    assert door(Settings(folder="a b"), failing(error)) == 8
    assert "dagrun -C 'a b' resume r7k2, or see dagrun -C 'a b' runs" in capsys.readouterr().err


def test_a_full_stdout_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)

        def work() -> int:
            from dagrun.cli.console import emit

            emit("something")
            return 0

        assert door(Settings(), work) == 8
        monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert "can't write to stdout: No space left on device" in capsys.readouterr().err


# ---------------------------------------------------------------- the real program


def test_a_reader_that_goes_away_is_no_error(space: Space) -> None:
    space.run("execute", "hello.yaml", "-q")
    done = space.shell("dagrun trace show --json | head -1")
    assert done == (0, "{\n", "")


def test_a_run_goes_on_when_nobody_reads(space: Space) -> None:
    done = space.shell("dagrun execute fails.yaml 2>&1 >/dev/null | head -1 >/dev/null; echo ${PIPESTATUS[0]}")
    assert done.out == "1\n"
    assert space.run("status", "--json").json["status"] == "failed"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_closed_streams_do_not_matter(space: Space, closed: str) -> None:
    assert space.shell(f"dagrun execute fails.yaml {closed}").code == 1
    assert space.shell(f"dagrun trace show {closed}").code == 0
    assert space.shell(f"dagrun nonsense {closed}").code == 2


def test_a_full_disk_behind_stdout(space: Space) -> None:
    done = space.shell("dagrun plan hello.yaml > /dev/full")
    assert done == (8, "", "error[environment]: can't write to stdout: No space left on device\n")


@pytest.mark.parametrize("env", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}])
def test_any_text_in_any_encoding(space: Space, env: dict[str, str]) -> None:
    space.file("ü.yaml", "version: 1\nname: n\nnodes: {a: {title: größe ✓, run: 'printf \"größe ✓\"; exit 1'}}\n")
    assert space.run("execute", "ü.yaml", **env).code == 1
    assert space.run("trace", "show", **env).code == 0
    assert space.run("validate", "ü.yaml", **env).code == 0
    assert space.run("trace", "show", "--json", **env).json["entries"][0]["title"] == "größe ✓"
    assert space.run("logs", "a", "--json", **env).json["stdout"] == "größe ✓"


def test_a_bad_option_with_json_is_json(space: Space) -> None:
    done = space.run("execute", "--bogus", "hello.yaml", "--json")
    assert done.code == 2
    assert done.json["error"]["code"] == "usage"
    assert "--bogus" in done.json["error"]["message"]


def test_control_characters_of_a_command_line_stay_out_of_the_terminal(space: Space) -> None:
    done = space.run("trace", "show", "\x1b[31mred")
    assert done.code == 9
    assert "\x1b" not in done.err
