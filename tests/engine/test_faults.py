"""The machine lets down: torn and lost journals, full disks, missing rights, descriptors and processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest

from dagrun.core.event import Warned
from dagrun.core.names import Outcome

from .space import PROGRAM, Space

HANG = "echo $$ >> pids; exec sleep 1000"
CHAIN = """\
nodes:
  a: {run: 'echo a >> ran; echo 1', outputs: {x: {from: stdout}}}
  b: {run: 'echo b >> ran; test -e fixed', inputs: {x: nodes.a.x}}
  c: {run: echo c >> ran, needs: b}
"""
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def failed_chain(space: Space) -> Path:
    """A run that failed at `b`, and its journal; from now on `b` would succeed."""
    space.flow(CHAIN)
    assert space.execute().code == 1
    space.write("fixed", "")
    return Path(space.last().journal)


# ---------------------------------------------------------------- the journal


def test_a_torn_last_record_is_cut_with_a_word(space: Space) -> None:
    journal = failed_chain(space)
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'deadbeef {"seq":99,"t":')
    done = space.run("resume")
    assert done.code == 0
    assert space.lines("ran") == ["a", "b", "b", "c"]
    assert any("unfinished record" in e.text for e in space.events() if isinstance(e, Warned))
    assert journal.read_bytes().startswith(whole)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 0.99])
def test_a_journal_cut_at_any_byte_is_taken_up_from_its_last_good_record(space: Space, part: float) -> None:
    journal = failed_chain(space)
    whole = journal.read_bytes()
    first = whole.index(b"\n") + 1
    journal.write_bytes(whole[: max(first, int(len(whole) * part))])
    code = space.run("resume").code
    if code == 1:  # only the end of the run was cut off: it has failed, as before
        code = space.run("resume").code
    assert code == 0
    assert set(space.statuses().values()) == {"completed"}


def test_a_bad_record_in_the_middle_is_refused_and_nothing_is_changed(space: Space) -> None:
    journal = failed_chain(space)
    lines = journal.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b'"', b"'", 1)
    journal.write_bytes(b"\n".join(lines))
    before = journal.read_bytes()
    done = space.run("resume")
    assert done.code == 8
    assert f"corrupt at byte {len(lines[0]) + 1}, record 2" in done.err
    assert journal.read_bytes() == before
    assert space.lines("ran") == ["a", "b"]


def rewritten(journal: Path, change: dict[int, dict[str, object]]) -> None:
    """Write the records again with these keys changed (by number from 1) and right checksums."""
    out, crc = b"", 0
    for number, line in enumerate(journal.read_bytes().splitlines(), start=1):
        record = {**json.loads(line[9:]), **change.get(number, {})}
        body = json.dumps(record, separators=(",", ":")).encode()
        crc = crc32(body, crc)
        out += b"%08x %b\n" % (crc, body)
    journal.write_bytes(out)


def test_a_clock_that_goes_backwards(space: Space) -> None:
    journal = failed_chain(space)
    count = len(journal.read_bytes().splitlines())
    rewritten(journal, {n: {"t": 2e9 - n * 86400, "m": 1e6 - n} for n in range(1, count + 1)})
    for command in (("trace", "show"), ("status",), ("runs",)):
        assert space.run(*command).code in (0, 1), command
    assert space.run("resume").code == 0
    assert space.lines("ran") == ["a", "b", "b", "c"]


def test_a_journal_from_a_newer_dagrun_is_refused(space: Space) -> None:
    journal = failed_chain(space)
    first = json.loads(journal.read_bytes().splitlines()[0][9:])
    first["e"][0]["format"] = 999
    rewritten(journal, {1: first})
    before = journal.read_bytes()
    done = space.run("resume")
    assert done.code == 8
    assert "999" in done.err
    assert "pip install --upgrade dagrun" in done.err
    assert journal.read_bytes() == before


def test_a_plan_that_was_changed_is_refused(space: Space) -> None:
    failed_chain(space)
    plan = Path(space.last().plan)
    plan.write_bytes(plan.read_bytes().replace(b"echo c", b"echo d"))
    done = space.run("resume")
    assert done.code == 8
    assert "plan.json" in done.err


def test_a_changed_flow_file_does_not_change_the_run(space: Space) -> None:
    failed_chain(space)
    space.flow("nodes: {other: {run: touch other}}")
    assert space.run("resume").code == 0
    assert space.lines("ran") == ["a", "b", "b", "c"]


@pytest.mark.parametrize("rm", ["rm -rf .dagrun", "rm .dagrun/runs/*/journal.jsonl", "rm -rf .dagrun/runs/*/nodes"])
def test_a_node_that_removes_the_journal_ends_the_run_and_nothing_else(space: Space, rm: str) -> None:
    space.flow(f"""
        nodes:
          hang: {{run: '{HANG}'}}
          bad: {{run: 'until test -s pids; do sleep 0.01; done; {rm}; echo said'}}
          later: {{run: 'true', needs: bad}}
    """)
    done = space.execute("-j", "3")
    assert done.code == 8, done
    assert "bug" not in done.err
    assert "Traceback" not in done.err


def test_a_node_that_replaces_the_journal(space: Space) -> None:
    space.flow(f"""
        nodes:
          hang: {{run: '{HANG}'}}
          bad:
            run: |
              until test -s pids; do sleep 0.01; done
              cd .dagrun/runs/*/; cp journal.jsonl copy; mv copy journal.jsonl
          later: {{run: sleep 0.2, needs: bad}}
    """)
    done = space.execute()
    assert done.code == 8, done
    assert "deleted or replaced" in done.err


def test_a_node_that_removes_the_exchange_folder_hurts_only_the_run(space: Space) -> None:
    space.flow("""
        nodes:
          bad: {run: 'rm -rf "$(dirname "$DAGRUN_OUTPUT")"; echo 1', outputs: {x: {from: stdout}}}
          next: {run: 'echo x=1 >> "$DAGRUN_OUTPUT"', inputs: {x: nodes.bad.x}, outputs: {x: {}}}
    """)
    done = space.execute()
    assert done.code in (1, 8), done
    assert "bug" not in done.err


def test_the_exchange_folder_is_gone_after_the_run_and_private_during_it(space: Space) -> None:
    space.flow("nodes: {a: {run: 'd=$(dirname \"$DAGRUN_OUTPUT\"); stat -c %a \"$d\" > mode; echo \"$d\" > where'}}")
    assert space.execute().code == 0
    assert space.read("mode") == "700\n"
    where = Path(space.read("where").strip())
    assert not where.exists()
    assert str(space.path) not in str(where)


def test_strict_durability_syncs_before_a_dependent_starts(space: Space) -> None:
    """Every record is synced at once: there is a sync after each, and dependents start after it."""
    space.flow("durability: strict\nnodes: {a: {run: 'true'}, b: {run: touch b, needs: a}}")
    done = space.run("execute", "flow.yaml", env={"DAGRUN_FAULT": "journal.before_sync:3:kill"})
    assert done.code == 137
    assert not (space.path / "b").exists(), "the end of `a` was not synced and `b` has run"
    assert space.run("resume").code == 0


# ---------------------------------------------------------------- the disk


@pytest.fixture
def small(space: Space) -> Iterator[Space]:
    """The project on a disk of 1 MB."""
    folder = space.path / "small"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip(f"no tmpfs here: {made.stderr.decode().strip()}")
    inner = Space(folder)
    try:
        yield inner
        inner.check()
    finally:
        inner.close()
        subprocess.run(["umount", "-l", str(folder)], check=True)


@root_only
def test_a_full_disk_stops_the_run_with_a_clear_word_and_it_goes_on_with_space(small: Space) -> None:
    # what comes after needs more room than the last block of the journal has
    after = "".join(f"  n{i}: {{run: 'true', needs: fill, if: always()}}\n" for i in range(100))
    small.flow(
        "schedule: ready\nnodes:\n"
        f"  hang: {{run: 'test -e fixed || {{ {HANG}; }}'}}\n"
        "  fill: {run: 'until test -s pids || test -e fixed; do sleep 0.01; done;"
        " test -e fixed || cat /dev/zero > big'}\n"
        + after
    )
    done = small.execute("-j", "2")
    assert done.code == 8, done
    assert "full" in done.err or "No space" in done.err
    assert f"dagrun resume {small.last().id}" in done.err
    (small.path / "big").unlink()
    small.write("fixed", "")
    assert small.run("resume").code in (0, 1)  # the node that filled the disk had failed itself
    assert small.statuses()["hang"] == "completed"
    assert {small.statuses()[f"n{i}"] for i in range(100)} == {"completed"}


@root_only
def test_no_room_for_a_run_at_all(small: Space) -> None:
    small.flow("nodes: {a: {run: 'true'}}")
    with (small.path / "big").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    done = small.execute()
    assert done.code == 8, done
    assert "bug" not in done.err


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("action", ["enospc", "eio"])
@pytest.mark.parametrize("point", ["journal.before_write", "journal.mid_write", "journal.before_sync"])
def test_a_disk_that_fails_once_is_a_clear_end_and_resume_works(space: Space, point: str, action: str, n: int) -> None:
    space.flow(CHAIN)
    space.write("fixed", "")
    done = space.run("execute", "flow.yaml", env={"DAGRUN_FAULT": f"{point}:{n}:{action}"})
    if done.code == 0:
        assert n > 1, "the fault never struck"
        return
    assert done.code == 8, done
    assert "bug" not in done.err
    space.check()
    if not space.records():
        return
    assert space.run("resume").code == 0
    assert set(space.statuses().values()) == {"completed"}


@pytest.mark.parametrize("point", ["values.before_rename", "artifacts.before_rename"])
def test_a_disk_that_is_full_for_an_output(space: Space, point: str) -> None:
    space.flow("""
        nodes:
          a: {run: "echo x >> ran; printf '%9000d' 1; echo 1 > f", outputs: {x: {from: stdout}}, artifacts: [f]}
    """)
    done = space.run("execute", "flow.yaml", env={"DAGRUN_FAULT": f"{point}:1:enospc"})
    assert done.code == 8, done
    assert "bug" not in done.err
    assert space.run("resume").code == 0
    assert space.lines("ran") == ["x", "x"]


def test_a_limit_on_the_size_of_files(space: Space) -> None:
    """RLIMIT_FSIZE is the full disk of who is not root: a node's file, not the journal."""
    space.flow("nodes: {a: {run: 'head -c 100M /dev/zero > big'}, b: {run: 'true'}}")
    done = space.run("execute", "flow.yaml", before=("sh", "-c", 'ulimit -f 20000; exec "$@"', "sh"))
    assert done.code == 1
    assert space.outcomes("a") == ["failed"]
    assert space.statuses()["b"] == "completed"


def test_a_journal_that_may_not_grow(space: Space) -> None:
    """The journal itself meets the limit: nothing torn, nothing alive, and it goes on with more room."""
    nodes = "".join(f"  n{i}: {{run: 'echo {i} >> ran'}}\n" for i in range(400))
    space.flow(f"schedule: ready\nnodes:\n{nodes}")
    limit = ("sh", "-c", 'ulimit -f $0; exec "$@"')
    done = space.run("execute", "flow.yaml", before=(*limit, "70"))
    assert done.code == 8, done
    assert "ulimit -f" in done.err
    assert "bug" not in done.err
    space.check()
    assert space.run("resume").code == 0
    assert set(space.statuses().values()) == {"completed"}


NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def for_nobody(space: Space) -> None:
    """Let the user `nobody` work in a reachable project; skips where he can't import what the tests import."""
    space.path.chmod(0o777)
    words = [*NOBODY, sys.executable, "-c", "import dagrun.cli.app"]
    probe = subprocess.run(words, env=space.environ({}), cwd=space.path, check=False)
    if probe.returncode:
        pytest.skip("another user can't run this Python")


@root_only
def test_a_folder_that_can_not_be_written(reachable: Space) -> None:
    reachable.flow("nodes: {a: {run: 'true'}}")
    for_nobody(reachable)
    reachable.path.chmod(0o755)
    done = reachable.run("execute", "flow.yaml", before=NOBODY, env={"HOME": "/nonexistent", "XDG_CACHE_HOME": ""})
    assert done.code == 8, done
    assert "can't" in done.err
    assert ".dagrun" in done.err
    assert "bug" not in done.err


@root_only
def test_a_read_only_run_can_be_looked_at_but_not_resumed(reachable: Space) -> None:
    reachable.flow("nodes: {a: {run: exit 1}}")
    assert reachable.execute().code == 1
    for_nobody(reachable)
    for folder, _, files in os.walk(reachable.path):
        os.chmod(folder, 0o555)
        for name in files:
            os.chmod(os.path.join(folder, name), 0o444)
    nobody = {"HOME": "/nonexistent", "XDG_CACHE_HOME": ""}
    assert reachable.run("trace", "show", before=NOBODY, env=nobody).code == 0
    done = reachable.run("resume", before=NOBODY, env=nobody)
    assert done.code == 8, done
    assert "bug" not in done.err


# ---------------------------------------------------------------- descriptors and processes


def test_few_descriptors_mean_fewer_at_a_time_and_no_failure(space: Space) -> None:
    nodes = "".join(f"  n{i}: {{run: 'sleep 0.3; echo {i}'}}\n" for i in range(60))
    space.flow(f"limits: {{parallel: 60}}\nnodes:\n{nodes}")
    done = space.run("execute", "flow.yaml", before=("sh", "-c", 'ulimit -n 64; exec "$@"', "sh"))
    assert done.code == 0, done
    assert set(space.statuses().values()) == {"completed"}
    assert any("at a time" in e.text for e in space.events() if isinstance(e, Warned))
    assert all(space.log(f"n{i}") == f"{i}\n".encode() for i in range(60))


@pytest.mark.parametrize("limit", [8, 12, 16, 20, 24, 31, 32, 36])
def test_far_too_few_descriptors_are_a_clear_word(space: Space, limit: int) -> None:
    space.flow("nodes: {a: {run: 'echo 1', outputs: {x: {from: json}}}, b: {run: 'true', inputs: {x: nodes.a.x}}}")
    done = space.run("execute", "flow.yaml", before=("sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh"))
    assert done.code == (0 if limit >= 32 else 8), done
    assert "Traceback" not in done.err
    assert "bug" not in done.err
    assert limit >= 32 or "open" in done.err


@root_only
def test_few_processes_mean_fewer_at_a_time_and_no_failure(reachable: Space) -> None:
    nodes = "".join(f"  n{i}: {{run: [sleep, '0.2']}}\n" for i in range(30))
    reachable.flow(f"limits: {{parallel: 30}}\nnodes:\n{nodes}")
    for_nobody(reachable)
    # a user of his own, so that nobody's other processes don't count
    alone = ("prlimit", "--nproc=12", "setpriv", "--reuid=64123", "--regid=64123", "--clear-groups")
    done = reachable.run("execute", "flow.yaml", before=alone, env={"HOME": "/nonexistent", "XDG_CACHE_HOME": ""})
    assert done.code == 0, done
    assert set(reachable.statuses().values()) == {"completed"}
    assert any("at a time" in e.text for e in reachable.events() if isinstance(e, Warned))


@root_only
def test_no_processes_at_all_can_be_interrupted(reachable: Space) -> None:
    reachable.flow("nodes: {a: {run: [sleep, '0.2']}}")
    for_nobody(reachable)
    # the watchdog and the engine, and no third
    alone = ("prlimit", "--nproc=2", "setpriv", "--reuid=64124", "--regid=64124", "--clear-groups")
    process = reachable.start("execute", "flow.yaml", before=alone, env={"HOME": "/nonexistent", "XDG_CACHE_HOME": ""})
    process.until(lambda: reachable.started("a"), "the start is journaled")
    process.signal(signal.SIGTERM)
    assert process.done().code == 143
    assert reachable.outcomes("a") == [str(Outcome.CANCELLED)]


# ---------------------------------------------------------------- the terminal


def shell(space: Space, text: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    """A line of shell in which `dagrun` is the program."""
    words = " ".join(PROGRAM)
    return subprocess.run(
        ["bash", "-c", f'dagrun() {{ {words} "$@"; }}; {text}'],
        cwd=space.path,
        env=space.environ(env),
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


@pytest.mark.parametrize(
    "line",
    [
        "dagrun execute flow.yaml 2>&1 | head -n 1",
        "dagrun execute flow.yaml --ui json | head -n 1",
        "dagrun execute flow.yaml 2>/dev/full",
        "dagrun execute flow.yaml >&- 2>&-",
        "dagrun execute flow.yaml <&-",
        "dagrun execute flow.yaml 2>&1 >/dev/null | true",
    ],
)
def test_a_reader_that_goes_away_does_not_end_the_run(space: Space, line: str) -> None:
    nodes = "".join(f"  n{i}: {{run: 'echo {i}', needs: [n{i - 1}]}}\n" for i in range(1, 40))
    space.flow(f"nodes:\n  n0: {{run: 'true'}}\n{nodes}")
    done = shell(space, f"{line}; echo ${{PIPESTATUS[0]}} > code")
    assert space.read("code") == "0\n", done
    assert set(space.statuses().values()) == {"completed"}
    assert b"Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    "env",
    [
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "POSIX", "PYTHONIOENCODING": "latin-1"},
    ],
)
def test_a_terminal_without_unicode(space: Space, env: dict[str, str]) -> None:
    space.flow("""
        params: {who: {default: "\\u00dcbergr\\u00f6\\u00dfe \\u2192"}}
        nodes:
          a: {run: 'echo "$W"; exit 1', env: {W: '${{ params.who }}'}}
          b: {run: 'echo "$W" > b', env: {W: '${{ params.who }}'}}
    """)
    done = space.execute(env=env)
    assert done.code == 1, done
    assert "Traceback" not in done.err
    assert "bug" not in done.err
    assert space.read("b") == "\u00dcbergr\u00f6\u00dfe \u2192\n"
