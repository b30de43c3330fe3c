"""Where secrets come from, what is refused before anything starts, and what is only warned of."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from dagrun.core.workflow import Node, OnFailure, Secret, Workflow
from dagrun.engine import secrets
from dagrun.engine.secrets import NoSecret, Vault, as_file, at_hand, masker, named, resolve, warnings
from dagrun.errors import InputError
from dagrun.sandbox import procs

from .space import Space


def flow(*names: str, files: tuple[str, ...] = (), **declared: Secret) -> Workflow:
    """A workflow whose one node names these secrets."""
    node = Node(id="a", run="true", secrets=names, secret_files=files)
    return Workflow(name="w", nodes={"a": node}, secrets=declared)


def command(text: str) -> Secret:
    return Secret(command=(sys.executable, "-I", "-S", "-c", text))


def why(workflow: Workflow, project: Path, environ: Mapping[str, str] | None = None) -> str:
    """The one problem that keeps these secrets from being had."""
    with pytest.raises(InputError) as caught:
        resolve(workflow, str(project), environ or {})
    (problem,) = caught.value.problems
    assert problem.hint
    return problem.message


# ---------------------------------------------------------------- where they come from


def test_a_value_comes_from_the_environment_a_file_or_a_command(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("from the file\r\n")
    made = resolve(
        flow("E", "F", "C", E=Secret(env="VAR"), F=Secret(file="f"), C=command("print('from the command')")),
        str(tmp_path),
        {"VAR": "from the environment\n"},
    )
    assert dict(made) == {"E": "from the environment", "F": "from the file", "C": "from the command"}
    assert as_file(made, "F") == b"from the file\r\n"
    assert as_file(made, "C") == b"from the command\n"
    assert masker(made) is made.mask
    assert made.mask.text("from the file, from the command") == "***, ***"


def test_only_the_last_newline_is_no_part_of_a_value(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(" -----BEGIN\nline-two\n\n")
    assert resolve(flow("K", K=Secret(file="key")), str(tmp_path), {})["K"] == " -----BEGIN\nline-two\n"


def test_bytes_that_are_no_text_come_out_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"\xff\xfe12345")
    made = resolve(flow(files=("F",), F=Secret(file="f")), str(tmp_path), {})
    assert as_file(made, "F") == b"\xff\xfe12345"
    assert os.fsencode(made["F"]) == b"\xff\xfe12345"
    assert made.mask.same_length(b"<\xff\xfe12345>") == b"<*******>"


def test_all_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    workflow = flow("A", "B", "C", A=Secret(env="GONE"), B=Secret(file="gone"), C=Secret(command=("./gone",)))
    with pytest.raises(InputError) as caught:
        resolve(workflow, str(tmp_path), {})
    texts = [p.message for p in caught.value.problems]
    assert texts[0] == "secret `A` of w can't be had: the environment has no GONE"
    assert texts[1] == "secret `B` of w can't be had: No such file or directory"
    assert texts[2].startswith("secret `C` of w can't be had: ")
    assert at_hand(workflow, str(tmp_path), {}).mask.text("x") == "x"


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"", "is empty"), (b"\n", "is empty"), (b"a\0b", "NUL"), (b"x" * 65537, "larger than 64 KiB")],
)
def test_what_can_be_no_value_is_refused(tmp_path: Path, content: bytes, text: str) -> None:
    (tmp_path / "f").write_bytes(content)
    assert text in why(flow("F", F=Secret(file="f")), tmp_path)
    written = command(f"import sys; sys.stdout.buffer.write({content!r})")
    assert text in why(flow("C", C=written), tmp_path)


def test_an_empty_variable_is_none(tmp_path: Path) -> None:
    for value in ("", " ", "\n\n"):
        assert "has no VAR" in why(flow("E", E=Secret(env="VAR")), tmp_path, {"VAR": value})


@pytest.mark.parametrize("blank", ["", "\n", "\n\n", " \t\r\n"])
def test_what_is_blank_is_no_secret(tmp_path: Path, blank: str) -> None:
    """Masking it would blot out every indentation, and a node would log in with nothing."""
    (tmp_path / "f").write_text(blank)
    assert "f is empty" in why(flow("F", F=Secret(file="f")), tmp_path)
    assert "is empty" in why(flow("C", C=command(f"print({blank!r}, end='')")), tmp_path)


def test_a_file_that_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dir").mkdir()
    assert "not a regular file" in why(flow("F", F=Secret(file="pipe")), tmp_path)
    gc.collect()  # what other tests left open would be closed in between
    before = os.listdir("/proc/self/fd")
    assert "can't be had" in why(flow("F", F=Secret(file="dir")), tmp_path)
    assert set(os.listdir("/proc/self/fd")) <= set(before)


# ---------------------------------------------------------------- who needs them


def test_what_no_node_names_stops_nothing_and_runs_nothing(tmp_path: Path) -> None:
    workflow = flow(
        E=Secret(env="GONE"), F=Secret(file="gone"), C=Secret(command=("touch", "ran")), P=Secret(env="PRESENT")
    )
    made = resolve(workflow, str(tmp_path), {"PRESENT": "seen-anyway"})
    assert dict(made) == {"P": "seen-anyway"}
    assert made.mask.text("seen-anyway") == "***"
    assert not (tmp_path / "ran").exists()


def test_templates_and_fallbacks_name_secrets_too() -> None:
    inner = Node(id="", run="true", secrets=("C",))
    nodes = {
        "a": Node(id="a", run="true", secret_files=("A",)),
        "b": Node(id="b", run="true", on_failure=OnFailure(fallback_node=inner)),
    }
    workflow = Workflow(name="w", nodes=nodes, templates={"t": Node(id="t", run="true", secrets=("B",))})
    assert named(workflow) == {"A", "B", "C"}


def test_a_late_comer_is_fetched_when_it_is_asked_for_and_masked_from_then_on(tmp_path: Path) -> None:
    workflow = flow(C=command("print('late-comer')"), GONE=Secret(env="GONE"))
    made = resolve(workflow, str(tmp_path), {})
    mask = masker(made)
    assert (len(made), "C" in made, bool(mask)) == (0, False, False)
    assert made["C"] == "late-comer"
    assert mask.text("a late-comer") == "a ***"
    with pytest.raises(NoSecret, match="the environment has no GONE") as caught:
        made["GONE"]
    assert "export GONE" in caught.value.hint
    with pytest.raises(NoSecret, match="there is no secret `X`"):
        made["X"]


# ---------------------------------------------------------------- commands


def test_a_command_sees_the_callers_environment_but_no_outer_dagrun(tmp_path: Path) -> None:
    text = "import os; print(sorted(k for k in os.environ if k != 'LC_CTYPE'), os.getcwd())"
    environ = {"VAULT_TOKEN": "x", "DAGRUN_RUN_ID": "outer"}
    assert resolve(flow("C", C=command(text)), str(tmp_path), environ)["C"] == f"['VAULT_TOKEN'] {tmp_path}"


def test_a_command_has_no_terminal_an_empty_stdin_and_a_session_of_its_own(tmp_path: Path) -> None:
    text = "import os, sys; print(repr(sys.stdin.read()), os.getsid(0) == os.getpid(), sys.stdout.isatty(), 'done')"
    assert resolve(flow("C", C=command(text)), str(tmp_path), {})["C"] == "'' True False done"


def test_a_command_that_fails_says_its_last_words_and_no_secret(tmp_path: Path) -> None:
    text = (
        "import sys; print('half-a-secret'); "
        "print('first\\nno half-a-secret, no from-the-env\\x1b[31m' + 'x' * 500, file=sys.stderr); sys.exit(9)"
    )
    workflow = flow("E", "C", E=Secret(env="E"), C=command(text))
    message = why(workflow, tmp_path, {"E": "from-the-env"})
    assert f"`{sys.executable}` ended with code 9: no ***, no *** [31mxxx" in message
    assert "\x1b" not in message
    assert len(message) < 400


@pytest.mark.parametrize("leave", ["", "subprocess.Popen(['sleep', '60'])"])
def test_a_command_that_takes_too_long_is_killed_with_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leave: str
) -> None:
    monkeypatch.setattr(secrets, "COMMAND_TIMEOUT_S", 0.5)
    text = f"import os, subprocess, time; open('pid', 'w').write(str(os.getpid())); {leave or 'pass'}; time.sleep(60)"
    assert "took more than 0.5 s" in why(flow("C", C=command(text)), tmp_path)
    group = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 10
    while any(who and who.pgrp == group and not procs.is_dead(who) for who in map(procs.stat, procs.all_pids())):
        assert time.monotonic() < end, "somebody of its group is alive"
        os.sched_yield()


def test_a_child_that_holds_the_pipe_is_not_waited_for(tmp_path: Path) -> None:
    began = time.monotonic()
    made = resolve(flow("C", C=Secret(command=("sh", "-c", "sleep 60 & echo the-value"))), str(tmp_path), {})
    assert made["C"] == "the-value"
    assert time.monotonic() - began < 20


def test_a_command_without_end_is_cut_off(tmp_path: Path) -> None:
    assert "is larger than 64 KiB" in why(flow("C", C=Secret(command=("yes",))), tmp_path)
    noisy = command("import sys; sys.stderr.write('x' * (8 << 20)); print('the-value')")
    assert resolve(flow("C", C=noisy), str(tmp_path), {})["C"] == "the-value"


def test_a_command_that_a_signal_ends_says_so(tmp_path: Path) -> None:
    assert "was killed by signal 15" in why(flow("C", C=Secret(command=("sh", "-c", "kill $$"))), tmp_path)


# ---------------------------------------------------------------- warnings


@pytest.mark.parametrize(("mode", "text"), [(0o644, "mode 0644"), (0o640, "mode 0640"), (0o600, ""), (0o400, "")])
def test_a_file_that_others_may_read_is_warned_of(tmp_path: Path, mode: int, text: str) -> None:
    (tmp_path / "f").write_text("the-value")
    (tmp_path / "f").chmod(mode)
    told = warnings(resolve(flow("F", F=Secret(file="f")), str(tmp_path), {}))
    assert len(told) == bool(text)
    assert text in "".join(told)


def test_a_value_too_short_to_hide_is_warned_of(tmp_path: Path) -> None:
    made = resolve(flow("A", "B", A=Secret(env="A"), B=Secret(env="B")), str(tmp_path), {"A": "12345", "B": "123456"})
    assert warnings(made) == ["secret `A` has fewer than 6 characters: it can't be masked where it is shown or stored"]
    assert made.mask.text("12345 123456") == "12345 ***"
    assert warnings({"A": "1"}) == []
    assert as_file({"A": "1"}, "A") == b"1"


def test_without_secrets_there_is_nothing(tmp_path: Path) -> None:
    made = resolve(flow(), str(tmp_path), {})
    assert isinstance(made, Vault)
    assert not made
    assert not made.mask
    assert list(made) == []


def test_warnings_reach_the_trace(space: Space) -> None:
    space.write("open.txt", "123\n", mode=0o644)
    space.flow("""
    secrets: {S: {file: open.txt}}
    nodes: {a: {run: "true", secrets: [S]}}
    """)
    done = space.execute()
    assert done.code == 0
    assert "others on this machine may read open.txt (mode 0644): chmod 600 it" in done.err
    assert "secret `S` has fewer than 6 characters" in done.err
