"""A project folder in which the real program is typed at: files and words in, stdout, stderr and exit code out.

Whatever a command tells a person to type is given to the real parser, in every test.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import IO, Any, NamedTuple

import typer

from dagrun.cli.app import COMMANDS, program
from dagrun.cli.console import Settings
from dagrun.cli.groups import LazyGroup

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0
_NOISE = ("DAGRUN_", "GITHUB_", "CI", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "COLUMNS", "_DAGRUN", "PYTHON")


class Done(NamedTuple):
    """How a command line ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout as the one JSON document that it must be."""
        return json.loads(self.out)

    def tidy(self) -> Done:
        """The same without what differs from run to run: ids of runs, times, clocks."""
        return Done(self.code, _tidy(self.out), _tidy(self.err))


_IDS: set[str] = set()  # of every run that a space has had
_COMMAND = re.compile(r"(?<!`)\bdagrun (?:-C (?:'[^']*'|\S+) )?(?=[a-z])[^`,;()\n]*")


def _tidy(text: str) -> str:
    text = re.sub(r"\d\d:\d\d:\d\d", "HH:MM:SS", text)
    text = re.sub(r"\b\d+\.\d+s\b", "0.0s", text)
    return re.sub(rf"\b(?:{'|'.join(_IDS) or '-'})\b", "ID", text)


def commands_in(text: str) -> list[str]:
    """The command lines that a message tells a person to type."""
    found = []
    for line in text.splitlines():
        if line.startswith(("help: ", "  help: ", "  ", "note: ", "dagrun ")) and not line.startswith("    |"):
            for match in _COMMAND.finditer(line.replace("see them all: ", "")):
                words = re.split(r"  | (?:or|and|writes|see) ", match[0])[0].strip()
                if words.split(" ")[1] in ("-C", *COMMANDS):
                    found.append(words)
    return found


def accepts(line: str, folder: Path) -> None:
    """Parse a command line as far as it goes, in a folder, without carrying it out. Raises what the parser raises."""
    here = Path.cwd()
    words = shlex.split(line, comments=True)
    assert words.pop(0) == "dagrun"
    os.chdir(folder)
    try:
        command: Any = program()
        context: Any = command.make_context("dagrun", words, obj=Settings())
        while isinstance(command, LazyGroup) and context._protected_args:
            words = [*context._protected_args, *context.args]
            name, command, rest = command.resolve_command(context, words)
            context = command.make_context(name, rest, parent=context)
    except typer.Exit:  # --help
        pass
    finally:
        os.chdir(here)


class Space:
    """A folder with files; `run` types a command line there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "project"
        self.folder.mkdir()
        self.home = folder / "home"
        self.home.mkdir()
        self.started: list[subprocess.Popen[str]] = []

    def file(self, name: str, text: str = "") -> Path:
        """Write a file, dedented."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"))
        return path

    def env(self, **more: str) -> dict[str, str]:
        """What the program sees: nothing of who runs the tests."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(_NOISE)}
        fixed = {"HOME": str(self.home), "XDG_CACHE_HOME": str(self.home / "cache"), "LC_ALL": "C.UTF-8", "USER": "ada"}
        return {**kept, **fixed, "TMPDIR": str(self.home), "PYTHONPATH": str(ROOT), "TERM": "xterm", **more}

    def run(self, *words: str, stdin: str = "", **env: str) -> Done:
        """Type `dagrun words` and wait for its end."""
        done = subprocess.run(
            [sys.executable, "-m", "dagrun", *words],
            cwd=self.folder,
            env=self.env(**env),
            input=stdin.encode(),
            capture_output=True,
            timeout=DEADLINE_S,
            check=False,
        )
        return self._done(done)

    def _done(self, done: subprocess.CompletedProcess[bytes]) -> Done:
        runs = self.folder / ".dagrun" / "runs"
        _IDS.update(os.listdir(runs) if runs.is_dir() else ())
        said = Done(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
        for line in commands_in(said.err):
            accepts(line, self.folder)
        return said

    def shell(self, line: str, **env: str) -> Done:
        """Type a line to sh, in which `dagrun` is the program."""
        program = f"{shlex.quote(sys.executable)} -m dagrun"
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; dagrun() {{ {program} \"$@\"; }}; {line}"],
            cwd=self.folder,
            env=self.env(**env),
            capture_output=True,
            timeout=DEADLINE_S,
            check=False,
        )
        return self._done(done)

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
        """Type `dagrun words` and go on."""
        process = subprocess.Popen(
            [sys.executable, "-m", "dagrun", *words],
            cwd=self.folder,
            env=self.env(**env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def gate(self, name: str) -> Path:
        """A pipe that a node can wait at: it opens when the test writes to it."""
        path = self.folder / name
        os.mkfifo(path)
        return path

    def close(self) -> None:
        """End what a failed test has left."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait(DEADLINE_S)
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


def wait_for(stream: IO[str] | None, text: str) -> str:
    """The first line that holds `text`. Fails when the stream ends before."""
    assert stream is not None
    for line in stream:
        if text in line:
            return line
    raise AssertionError(f"the stream ended without {text!r}")
