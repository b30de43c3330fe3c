"""Nodes that a sandbox holds, through the real program: what they get, how they end, what they can't leave behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from dagrun.core.event import NodeStarted, StopRequested, Warned
from dagrun.sandbox import procs

from .space import ROOT, Done, Space, dead

CONFINED = "permissions: {paths: {read: [.], write: [out]}}\n"


@pytest.fixture(autouse=True)
def _bwrap() -> None:
    if shutil.which("bwrap") is None:
        if os.environ.get("CI"):
            pytest.fail("CI must have bubblewrap: apt install bubblewrap")
        pytest.skip("bubblewrap is not installed")


def confined(space: Space, text: str) -> None:
    """Write flow.yaml with CONFINED at its top."""
    space.flow(CONFINED + textwrap.dedent(text))


def warnings(space: Space) -> list[str]:
    return [e.text for e in space.events() if isinstance(e, Warned)]


def backends(space: Space) -> list[str]:
    """What held each attempt, in the order of their starts."""
    return [e.sandbox for e in space.events() if isinstance(e, NodeStarted)]


def programs(folder: Path, *names: str) -> str:
    """A PATH with only these programs of the machine."""
    folder.mkdir(exist_ok=True)
    for name in names:
        found = shutil.which(name)
        assert found, name
        (folder / name).symlink_to(os.path.realpath(found))
    return str(folder)


# ---------------------------------------------------------------- what a node gets


def test_a_node_with_paths_can_not_read_or_write_elsewhere_and_a_plain_one_can(space: Space) -> None:
    outside = space.path.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_text("canary")
    text = f"cat {outside}/secret > out/stolen || true; echo mark > {outside}/NODE || true; echo done > out/end"
    space.flow(f"""
        nodes:
          free: {{run: 'mkdir -p out; {text.replace("NODE", "free").replace("stolen", "free")}'}}
          held:
            run: '{text.replace("NODE", "held")}'
            needs: free
            permissions: {{paths: {{read: [.], write: [out]}}}}
    """)
    done = space.execute()
    assert done.code == 0, done
    assert space.read("out/free") == "canary"
    assert space.read("out/stolen") == ""
    assert space.read("out/end") == "done\n"
    assert sorted(os.listdir(outside)) == ["free", "secret"]
    assert backends(space) == ["", "bubblewrap"]


def test_the_trace_tells_the_level_and_what_held_it(space: Space) -> None:
    space.flow(CONFINED + "nodes: {a: {run: 'true'}}")
    assert space.execute().code == 0
    entry = json.loads(space.run("trace", "show", "--json").out)["entries"][0]
    assert (entry["isolation"], entry["sandbox"]) == ("process", "bubblewrap")
    assert "process, held by bubblewrap" in space.run("trace", "show", "--node", "a").out


def test_a_floor_of_the_workflow_is_the_level_of_its_nodes(space: Space) -> None:
    space.flow("permissions: {isolation: context}\nnodes: {a: {run: 'env > seen'}}")
    assert space.execute(env={"MINE": "1"}).code == 0
    entry = json.loads(space.run("trace", "show", "--json").out)["entries"][0]
    assert entry["isolation"] == "process"


def test_dagruns_own_folders_and_other_attempts_are_not_there(space: Space) -> None:
    space.flow("""
        permissions: {paths: {read: [.], write: [.]}}
        schedule: ready
        nodes:
          other: {run: 'echo hidden > "$DAGRUN_OUTPUT"; touch go; while ! test -e seen; do sleep 0.02; done'}
          held:
            run: |
              while ! test -e go; do sleep 0.02; done
              ls -a . > seen.tmp; ls "$(dirname "$(dirname "$DAGRUN_OUTPUT")")" >> seen.tmp
              cat "$DAGRUN_RUN_DIR/journal.jsonl" >> seen.tmp || true
              mv seen.tmp seen
    """)
    assert space.execute().code == 0, space.log("held", stream="err")
    seen = space.read("seen").split()
    assert "flow.yaml" in seen
    assert "held.1.d" in seen
    assert "other.1.d" not in seen
    assert not [line for line in seen if "run.created" in line]


def test_an_environment_by_allow_list_at_context_and_process(space: Space) -> None:
    show = "env | sort > out/$DAGRUN_NODE; test -w $HOME; test -w $TMPDIR"
    space.flow(f"""
        nodes:
          plain: {{run: 'mkdir -p out; {show}'}}
          context: {{run: '{show}', isolation: context, needs: plain}}
          process: {{run: '{show}', needs: plain, permissions: {{paths: {{write: [out]}}}}, pass_env: [GIVEN, "LD_*"]}}
    """)
    env = {"MINE": "1", "GIVEN": "2", "LC_TIME": "C", "LD_DEBUG_OUTPUT": "/tmp/x", "HOME": str(space.path.parent)}
    assert space.execute(env=env).code == 0, space.log("context", stream="err")
    plain, context, process = (
        dict(line.split("=", 1) for line in space.lines(f"out/{name}") if "=" in line)
        for name in ("plain", "context", "process")
    )
    assert plain["MINE"] == "1"
    assert plain["HOME"] == str(space.path.parent)
    assert "LD_DEBUG_OUTPUT" in plain
    for found in (context, process):
        assert "MINE" not in found
        assert "LD_DEBUG_OUTPUT" not in found
        assert found["LC_TIME"] == "C"
        assert found["HOME"] != "/nowhere"
        assert found["PATH"] == plain["PATH"]
    assert "GIVEN" not in context
    assert process["GIVEN"] == "2"
    assert not os.path.exists(context["HOME"])


def test_a_loader_variable_is_refused_in_a_sandbox(space: Space) -> None:
    space.flow(CONFINED + "nodes: {a: {run: 'true', env: {LD_PRELOAD: out/evil.so}, retry: {max_attempts: 3}}}")
    assert space.execute().code == 1
    assert space.outcomes("a") == ["denied"]
    assert "LD_PRELOAD" in space.finish("a").error
    assert backends(space) == []


def test_inputs_outputs_and_the_exit_code_go_through(space: Space) -> None:
    confined(
        space,
        """
        nodes:
          a:
            run: 'echo n=5 > "$DAGRUN_OUTPUT"; echo text > out/file'
            outputs: {n: {}, f: {from: file, file: out/file}}
            artifacts: [out/*]
          b:
            inputs: {n: nodes.a.n, f: nodes.a.f}
            run: 'test "$INPUT_N" = 5; grep -q text "$DAGRUN_INPUTS"; exit 7'
        """,
    )
    assert space.execute().code == 1
    assert space.finish("b").exit_code == 7
    assert [a["path"] for a in space.finish("a").artifacts if isinstance(a, dict)] == ["out/file"]


def test_what_is_confined_leaves_no_folder_behind(space: Space, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    confined(
        space,
        """
        nodes:
          a:
            run: |
              cd "$(dirname "$DAGRUN_OUTPUT")"
              i=0; while [ $i -lt 1200 ]; do mkdir d; cd d; i=$((i+1)); done
              touch f; chmod 0 .
          b: {needs: a, run: 'true'}
        """,
    )
    assert space.execute(env={"TMPDIR": str(temporary)}).code == 0
    assert [p for p in temporary.rglob("*") if p.name != f"dagrun-{os.getuid()}"] == []


# ---------------------------------------------------------------- what can't be held


def test_without_bwrap_nothing_starts(space: Space, tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", "sh", "touch")
    space.flow("""
        nodes:
          first: {run: 'touch started'}
          held: {needs: first, run: 'true', permissions: {paths: {read: [.]}}}
    """)
    done = space.execute(env={"PATH": path})
    assert done.code == 8
    assert "`held`" in done.err
    assert "bwrap is not installed" in done.err
    assert "apt install bubblewrap" in done.err
    assert not space.read("started")
    assert not space.runs()


@pytest.mark.parametrize("where", ["templates: {t: {run: 'true', NEEDS}}", "on_failure"])
def test_templates_and_fallbacks_are_held_or_nothing_starts(space: Space, tmp_path: Path, where: str) -> None:
    path = programs(tmp_path / "bin", "sh", "touch")
    needs = "permissions: {network: none}"
    if where == "on_failure":
        space.flow(f"nodes: {{a: {{run: touch started, on_failure: {{fallback: {{run: 'true', {needs}}}}}}}}}")
    else:
        template = where.replace("NEEDS", needs)
        space.flow(f"nodes: {{a: {{run: touch started, on_failure: {{fallback: t}}}}}}\n{template}")
    done = space.execute(env={"PATH": path})
    assert done.code == 8, done
    assert not space.read("started")


def fake_bwrap(folder: Path) -> str:
    """A `bwrap` that does nothing but start its command."""
    folder.mkdir(exist_ok=True)
    (folder / "bwrap").write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --help ]; then exec /usr/bin/bwrap --help; fi\n'
        'while [ $# -gt 0 ] && [ "$1" != -- ]; do shift; done; shift; exec "$@"\n'
    )
    (folder / "bwrap").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_a_bwrap_that_only_starts_its_command_is_found_out(space: Space, tmp_path: Path) -> None:
    space.flow(CONFINED + "nodes: {a: {run: 'touch out/started'}}")
    done = space.execute(env={"PATH": fake_bwrap(tmp_path / "fake")})
    assert done.code == 8, done
    assert not space.read("out/started")
    assert not space.runs()


def test_what_the_user_accepts_as_missing_is_gone_without_and_written_down(space: Space, tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", "sh", "cat", "touch")
    space.flow("nodes: {a: {run: 'cat /etc/shadow || touch out/held', permissions: {paths: {write: [out]}}}}")
    (space.path / "out").mkdir()
    refused = space.execute(env={"PATH": path})
    assert refused.code == 8
    lacks = refused.err.split("--accept-missing ")[1].split(";")[0].strip()
    done = space.execute("--accept-missing", lacks, env={"PATH": path})
    assert done.code == 0, (done, space.log("a", stream="err"))
    assert backends(space) == ["landlock"]
    assert (space.path / "out/held").exists()
    assert all(any(name in text for text in warnings(space)) for name in lacks.split(","))
    again = space.execute(env={"PATH": path, "DAGRUN_ACCEPT_MISSING": lacks})
    assert again.code == 0, again


def test_an_unknown_guarantee_is_a_usage_error(space: Space) -> None:
    space.flow("nodes: {a: {run: 'true'}}")
    done = space.execute("--accept-missing", "fs.meta,fs.everything")
    assert done.code == 2
    assert "fs.everything" in done.err
    assert space.execute(env={"DAGRUN_ACCEPT_MISSING": "nothing"}).code == 2


def test_the_workflow_can_not_accept_for_its_user(space: Space) -> None:
    space.flow("accept_missing: [fs.meta]\nnodes: {a: {run: 'true'}}")
    assert space.execute().code == 3


def test_a_dry_run_tells_what_can_not_be_held(space: Space, tmp_path: Path) -> None:
    space.flow(CONFINED + "nodes: {a: {run: 'true'}}")
    assert space.execute("--dry-run").code == 0
    assert space.execute("--dry-run", env={"PATH": programs(tmp_path / "bin", "sh")}).code == 8


def test_a_resume_is_checked_too(space: Space, tmp_path: Path) -> None:
    space.flow(CONFINED + "nodes: {a: {run: 'test -e go; touch out/end'}}")
    assert space.execute().code == 1
    space.write("go", "")
    done = space.run("resume", env={"PATH": programs(tmp_path / "bin", "sh", "touch")})
    assert done.code == 8, done
    assert not (space.path / "out/end").exists()
    assert space.run("resume").code == 0
    assert (space.path / "out/end").exists()


# ---------------------------------------------------------------- ends


def test_a_grant_that_is_a_symbolic_link_is_denied_and_not_tried_again(space: Space) -> None:
    space.flow("""
        nodes:
          a: {run: 'true', retry: {max_attempts: 3, delay: 0s}, permissions: {paths: {read: [link]}}}
    """)
    (space.path / "link").symlink_to("/etc")
    assert space.execute().code == 1
    assert space.outcomes("a") == ["denied"]
    assert "symbolic link" in space.finish("a").error


def test_a_planted_git_hook_is_denied_and_taken_away(space: Space) -> None:
    space.flow("""
        nodes:
          a:
            run: 'mkdir -p .git/hooks; echo evil > .git/hooks/pre-commit; echo x=1 > "$DAGRUN_OUTPUT"'
            outputs: {x: {}}
            permissions: {paths: {write: [.]}}
    """)
    assert space.execute().code == 1
    assert space.outcomes("a") == ["denied"]
    assert ".git" in space.finish("a").error
    assert not space.finish("a").outputs
    assert not (space.path / ".git/hooks/pre-commit").exists()


def test_the_workflow_file_and_its_patches_can_not_be_written(space: Space) -> None:
    space.write("flows/patch.yaml", "operations: [{rerun: {id: a}}]\n")
    space.write(
        "flows/flow.yaml",
        """
        version: 1
        name: flow
        nodes:
          a:
            run: |
              echo evil >> flows/flow.yaml && exit 9
              echo evil >> flows/patch.yaml && exit 9
              mv flows moved && exit 9
              rm -f flows/flow.yaml && exit 9
              touch flows/other
            permissions: {paths: {write: [.]}}
            on_failure: {replan: patch.yaml}
        """,
    )
    before = [space.read(f"flows/{name}.yaml") for name in ("flow", "patch")]
    done = space.run("execute", "flows/flow.yaml")
    assert done.code == 0, done
    assert before == [space.read(f"flows/{name}.yaml") for name in ("flow", "patch")]
    assert (space.path / "flows/other").exists()


def test_the_schemas_and_patches_that_a_workflow_names_can_not_be_written(space: Space) -> None:
    named = {
        "one.json": '{"type": "string"}',
        "parts/two.json": '{"type": "object"}',
        "parts/more.yaml": "operations: [{insert: {id: b, after: [a], node: {run: 'true', output_schema: in.json}}}]\n",
        "parts/in.json": '{"type": "object"}',
    }
    for name, text in named.items():
        space.write(f"flows/{name}", text)
    space.write(
        "flows/flow.yaml",
        """
        version: 1
        name: flow
        nodes:
          a:
            run: |
              for name in one.json parts/two.json parts/more.yaml parts/in.json; do
                echo evil >> flows/$name && exit 9
                rm -f flows/$name && exit 9
              done
              touch flows/parts/other
            permissions: {paths: {write: [.]}}
            outputs: {o: {from: stdout, schema: one.json}}
            on_failure: {replan: parts/more.yaml}
          c: {needs: a, run: "true", output_schema: parts/two.json, if: "params.never", continue_on_error: true}
        params: {never: {type: boolean, default: false}}
        """,
    )
    for _ in range(2):  # read from the file, then from the cache
        done = space.run("execute", "flows/flow.yaml")
        assert done.code == 0, (done, space.log("a", stream="err"))
        assert {name: space.read(f"flows/{name}") for name in named} == named
    assert (space.path / "flows/parts/other").exists()


def test_a_fallback_is_held_as_the_node_whose_place_it_takes(space: Space, tmp_path: Path) -> None:
    """The template alone asks for nothing that had to be held."""
    space.flow("""
        templates: {spare: {run: touch started}}
        nodes:
          a:
            run: "exit 1"
            permissions: {network: none}
            on_failure: {fallback: spare}
    """)
    only = programs(tmp_path / "bin", "sh", "touch")
    done = space.execute(env={"PATH": only})
    assert done.code == 8
    assert "a-fallback" in done.err
    assert space.runs() == []


@pytest.mark.parametrize("confined", [False, True])
def test_memory_beyond_its_limit(space: Space, confined: bool) -> None:
    text = f"{sys.executable} -c 'bytearray(300 << 20)'"
    read = f"permissions: {{paths: {{read: [., {sys.prefix}, {sys.base_prefix}]}}}}, " if confined else ""
    space.flow(f"""nodes: {{a: {{{read}run: "{text}", resources: {{memory: 64MiB}}}}}}""")
    done = space.execute()
    if done.code == 8 and os.getuid():
        pytest.skip("no control groups for this user")
    assert done.code == 1, done
    assert space.outcomes("a") == ["over_limit"]
    finish = space.finish("a")
    assert finish.limit == "memory"
    assert "64 MiB" in finish.error
    assert (finish.max_rss_bytes or 0) >= 60 << 20


@pytest.mark.parametrize("confined", [False, True])
def test_processes_and_file_sizes_beyond_their_limits(space: Space, confined: bool) -> None:
    held = "permissions: {paths: {write: [out]}}, " if confined else ""
    forks = "n=0; while [ $n -lt 40 ]; do sleep 5 & n=$((n+1)); done; wait"
    space.flow(f"""
        nodes:
          forks: {{{held}run: '{forks}', resources: {{pids: 10}}, continue_on_error: true}}
          file: {{{held}run: 'head -c 2000000 /dev/zero > out/big', resources: {{file_size: 1MiB}}}}
    """)
    (space.path / "out").mkdir()
    done = space.execute()
    if done.code == 8 and os.getuid():
        pytest.skip("no control groups for this user")
    assert done.code == 1, done
    assert space.outcomes("forks") == ["over_limit"], space.finish("forks")
    assert space.finish("forks").limit == "pids"
    assert space.outcomes("file") == ["over_limit"], space.finish("file")
    assert space.finish("file").limit == "file_size"
    assert 0 < (space.path / "out/big").stat().st_size <= 1 << 20


@pytest.fixture
def open_space() -> Iterator[Space]:
    """A project that an ordinary user can work in: folders of pytest are closed to others."""
    if os.getuid():
        pytest.skip("needs root, to become somebody else")
    folder = Path(tempfile.mkdtemp(prefix="dagrun-test-"))
    project = folder / "project"
    project.mkdir()
    for path in (folder, project):
        os.chown(path, 65534, 65534)
        path.chmod(0o755)
    made = Space(project)
    yield made
    made.check()
    made.close()
    shutil.rmtree(folder)


# `env`: setpriv itself still finds its program with the rights of root
ORDINARY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env")
def run_ordinary(space: Space, **more: str) -> Done:
    """`dagrun execute flow.yaml` by somebody without any right."""
    home = str(space.path.parent)
    packages = sysconfig.get_path("purelib")
    env = {"HOME": home, "TMPDIR": home, "PYTHONPATH": f"{ROOT}{os.pathsep}{packages}", **more}
    for python in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        test = [*ORDINARY, python, "-c", f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"]
        if subprocess.run(test, capture_output=True, check=False).returncode == 0:
            program = (python, "-m", "dagrun")
            return space.start("execute", "flow.yaml", before=ORDINARY, env=env, program=program).done()
    if os.environ.get("CI"):
        pytest.fail("no Python that an ordinary user can run")
    pytest.skip("no Python that an ordinary user can run")


def test_an_unheld_limit_is_refused_by_name(open_space: Space) -> None:
    """A user without control groups: nothing starts."""
    space = open_space
    space.flow("nodes: {a: {run: touch started, resources: {memory: 64MiB}}}")
    done = run_ordinary(space)
    assert done.code == 8, done
    assert "mem" in done.err
    assert not space.read("started")


STAYING = """
    trap "" TERM
    echo $$ >> out/pids
    setsid sh -c 'trap "" TERM; echo up >> out/up; sleep 1000' &
    (setsid sh -c 'trap "" TERM; echo up >> out/up; sleep 1000' &) &
    echo up >> out/up
    sleep 1000
"""


def stay(space: Space, more: str = "") -> None:
    body = "".join(f"      {line.strip()}\n" for line in STAYING.strip().splitlines())
    space.write("flow.yaml", f"version: 1\nname: flow\n{CONFINED}nodes:\n  a:\n    {more}\n    run: |\n{body}")


def sleepers(space: Space) -> list[tuple[int, int]]:
    """What sleeps for this project, wherever it is."""
    found = []
    mark = os.fsencode(f"DAGRUN_RUN_DIR={space.path}/")
    for pid in procs.all_pids():
        who = procs.stat(pid)
        env = procs.environ(pid)
        if who is not None and who.name == "sleep" and mark.split(b"=")[1] in env.get(b"DAGRUN_RUN_DIR", b"") + b"/":
            found.append((pid, who.start_ticks))
    return found


def test_a_timeout_ends_all_that_is_in_the_sandbox(space: Space) -> None:
    stay(space, "timeout: 1s\n    grace: 200ms")
    assert space.execute().code == 1
    assert len(space.lines("out/up")) == 3
    assert space.outcomes("a") == ["timed_out"]
    assert sleepers(space) == []
    assert space.finish("a").duration_ms < 10_000


@pytest.mark.parametrize("both", [False, True])
def test_a_killed_engine_leaves_nothing_and_a_resume_goes_on(space: Space, both: bool) -> None:
    stay(space)
    process = space.start("execute", "flow.yaml")
    process.until(lambda: len(sleepers(space)) == 3, "all of it is up")
    pids = sleepers(space)
    engine = process.engine()
    if both:
        os.kill(process.pid, signal.SIGSTOP)
        os.kill(engine, signal.SIGKILL)
        os.kill(process.pid, signal.SIGKILL)
        process.popen.wait()
        space.write("flow.yaml", "")
    else:
        os.kill(engine, signal.SIGKILL)
        assert process.done().code == 137
        assert dead(pids)
    resumed = space.start("resume")
    resumed.until(lambda: space.has_lines("out/up", 6), "it runs again")
    assert dead(pids)
    resumed.signal(signal.SIGTERM)
    assert resumed.done().code == 143
    assert sleepers(space) == []
    assert space.outcomes("a")[0] == "lost"


def test_a_program_that_ignores_the_signal_of_a_file_limit_is_over_it(space: Space) -> None:
    space.flow("""
        nodes:
          a: {run: [/usr/bin/python3, -c, "open('big', 'wb').write(bytes(3 << 20))"], resources: {file_size: 1Mi}}
          b: {run: "echo File too large >&2; exit 1"}
    """)
    assert space.execute().code == 1
    assert space.outcomes("a") == ["over_limit"]
    assert space.finish("a").limit == "file_size"
    assert space.outcomes("b") == ["failed"]


@pytest.mark.parametrize("level", ["process", "none"])
def test_a_killed_engine_leaves_no_secret_file(space: Space, level: str) -> None:
    held = CONFINED if level == "process" else ""
    run = "echo $TOKEN_FILE > out/up; sleep 1000"
    space.write(
        "flow.yaml",
        f"version: 1\nname: flow\n{held}secrets: {{TOKEN: {{env: MY_TOKEN}}}}\n"
        f"nodes: {{a: {{isolation: {level}, secrets: [{{TOKEN: file}}], run: '{run}'}}}}\n",
    )
    (space.path / "out").mkdir(exist_ok=True)
    process = space.start("execute", "flow.yaml", env={"MY_TOKEN": "canary-in-a-file"})
    process.until(lambda: space.has_lines("out/up"), "the command is up")
    file = space.lines("out/up")[0]
    assert Path(file).read_text() == "canary-in-a-file"
    os.kill(process.engine(), signal.SIGKILL)
    assert process.done().code == 137
    assert not os.path.exists(file)


def test_two_interrupts_end_a_sandbox_at_once(space: Space) -> None:
    stay(space, "grace: 30s")
    process = space.start("execute", "flow.yaml")
    process.until(lambda: len(sleepers(space)) == 3, "all of it is up")
    for count in (1, 2):
        process.signal(signal.SIGINT)
        process.until(partial(has_stops, space, count), f"interrupt {count} was heard")
    process.signal(signal.SIGINT)
    assert process.done(4).code == 130  # sooner than any grace is over
    assert sleepers(space) == []


def has_stops(space: Space, count: int) -> bool:
    return len([e for e in space.events() if isinstance(e, StopRequested)]) >= count


def test_a_killed_engine_leaves_no_control_group(space: Space) -> None:
    space.flow("nodes: {a: {run: 'echo up > up; sleep 1000', resources: {memory: 64MiB, pids: 20}}}")
    process = space.start("execute", "flow.yaml")
    if os.getuid():
        pytest.skip("no control groups for this user")
    process.until(lambda: space.has_lines("up"), "it is up")
    mark = f".{process.engine()}."
    assert groups(mark)
    os.kill(process.engine(), signal.SIGKILL)
    assert process.done().code == 137
    assert groups(mark) == []


def groups(mark: str) -> list[str]:
    """The control groups that a process made, by the mark in their names."""
    found = []
    for folder, names, _ in os.walk("/sys/fs/cgroup"):
        found += [f"{folder}/{name}" for name in names if name.startswith("dagrun-") and mark in name]
    return found


# ---------------------------------------------------------------- what a node gives


PLANTED = {
    "a link": ("ln -s /etc/hostname out/x", "symbolic link"),
    "a link on the way": ("ln -s /etc out/d", "symbolic link"),
    "a pipe": ("mkfifo out/x", "named pipe"),
}


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("how", ["artifacts: [NAME]", "outputs: {x: {from: file, file: NAME}}"])
def test_what_a_node_plants_is_not_followed(space: Space, kind: str, how: str) -> None:
    command, why = PLANTED[kind]
    name = "out/d/hostname" if "way" in kind else "out/x"
    space.flow(CONFINED + f"nodes: {{a: {{run: '{command}', {how.replace('NAME', name)}}}}}")
    done = space.execute()
    assert done.code == 1, done
    assert space.outcomes("a") == ["invalid_output"]
    error = space.finish("a").error
    assert why in error or "missing" in error or "no file" in error, error
    assert not space.finish("a").artifacts
    assert not space.finish("a").outputs


@pytest.mark.parametrize("how", ["artifacts: [NAME]", "outputs: {x: {from: file, file: NAME}}"])
@pytest.mark.parametrize("name", [".env.local", "private/key", "other/file", ".dagrun/runs/x", "flow.key"])
def test_what_a_node_may_not_read_is_not_read_for_it(space: Space, how: str, name: str) -> None:
    for file in (".env.local", "private/key", "other/file", "flow.key"):
        space.write(file, "canary")
    permissions = "{paths: {read: [., private], write: [out], deny: [private/*]}}"
    if name == "other/file":
        permissions = "{paths: {read: [out], write: [out]}}"
    space.flow(f"nodes: {{a: {{run: 'true', permissions: {permissions}, {how.replace('NAME', name)}}}}}")
    done = space.execute()
    assert done.code == 1, done
    assert space.outcomes("a") == ["invalid_output"], space.finish("a")
    assert not space.finish("a").artifacts
    assert "canary" not in str(space.finish("a").outputs)


def test_what_a_node_made_itself_may_be_named_like_a_key(space: Space) -> None:
    space.flow(CONFINED + "nodes: {a: {run: 'echo mine > out/server.key', artifacts: [out/server.key]}}")
    assert space.execute().code == 0, space.finish("a")
    assert len(space.finish("a").artifacts) == 1


def test_wildcards_enter_no_linked_folder(space: Space) -> None:
    space.flow(
        CONFINED
        + "nodes: {a: {run: 'ln -s /etc out/d; mkdir out/e; echo 1 > out/e/hostname', artifacts: [out/*/hostname]}}"
    )
    assert space.execute().code == 0
    assert [a["path"] for a in space.finish("a").artifacts if isinstance(a, dict)] == ["out/e/hostname"]


# ---------------------------------------------------------------- secrets


@pytest.mark.parametrize("held", ["", "isolation: context, ", "permissions: {paths: {write: [.]}}, "])
def test_a_secret_as_a_file(space: Space, held: str) -> None:
    space.flow(f"""
        secrets: {{TOKEN: {{env: MY_TOKEN}}, OTHER: {{env: MY_OTHER}}}}
        nodes:
          a:
            {held.rstrip(", ")}
            secrets: [{{TOKEN: file}}]
            run: |
              test -z "$TOKEN"
              test -z "$MY_TOKEN$MY_OTHER$OTHER$OTHER_FILE"
              test "$(cat "$TOKEN_FILE")" = canary-value
              stat -c %a "$TOKEN_FILE" > mode
              echo "$TOKEN_FILE" > where
              cat "$TOKEN_FILE"
          b: {{run: 'test -z "$TOKEN_FILE$TOKEN"; ! cat "$(cat where)"', needs: a}}
    """)
    done = space.execute(env={"MY_TOKEN": "canary-value", "MY_OTHER": "other-canary"})
    assert done.code == 0, (done, space.log("a", stream="err"))
    assert space.read("mode").strip() == "400"
    assert not os.path.exists(space.read("where").strip())
    assert not [p for p in space.below() if b"canary-value" in p.read_bytes() and p.name != "plan.json"]


# ---------------------------------------------------------------- an ordinary user


SPY = """
import glob, os
found = []
for name in glob.glob("/proc/[0-9]*/environ"):
    try:
        data = open(name, "rb").read()
    except OSError:
        continue
    if b"canary-of-the-caller" in data:
        found.append(open(os.path.dirname(name) + "/cmdline").read().replace(chr(0), " "))
print(len(found), found)
"""


def test_no_process_of_ours_shows_its_environment_to_others_of_the_user(open_space: Space) -> None:
    """Watchdog, engine, sandbox and proxy, while a node that names no secret looks at all of them."""
    space = open_space
    space.write("spy.py", SPY)
    (space.path / "out").mkdir()
    os.mkfifo(space.path / "out/gate")
    for name in ("out", "out/gate"):
        os.chown(space.path / name, 65534, 65534)
    space.flow("""
        secrets: {KEY: {env: THE_KEY}}
        nodes:
          held: {run: read x < out/gate, permissions: {paths: {write: [out]}, network: [example.com]}}
          spy: {run: 'exec 3> out/gate; /usr/bin/python3 spy.py; echo go >&3'}
          last: {run: 'test -n "$KEY"', secrets: [KEY], needs: spy}
    """)
    done = run_ordinary(space, THE_KEY="canary-of-the-caller")
    assert done.code == 0, (done, [p.read_text() for p in space.below() if p.suffix == ".err"])
    assert space.log("spy") == b"0 []\n"
    control = [*ORDINARY, "THE_KEY=canary-of-the-caller", "/usr/bin/python3", "-c", SPY]
    assert subprocess.run(control, capture_output=True, check=True).stdout.startswith(b"1 ")


def test_an_ordinary_user_is_confined_in_the_same_way(open_space: Space) -> None:
    space = open_space
    outside = space.path.parent / "outside"
    outside.mkdir()
    (outside / "file").write_text("canary")
    space.flow(f"""
        secrets: {{KEY: {{env: THE_KEY}}}}
        nodes:
          free: {{run: 'cat {outside}/file > free'}}
          held:
            run: 'cat {outside}/file > out/stolen || echo "$KEY" > out/held'
            secrets: [KEY]
            needs: free
            permissions: {{paths: {{write: [out]}}}}
          shown: {{run: 'echo "$KEY"', secrets: [KEY], needs: held}}
    """)
    done = run_ordinary(space, THE_KEY="canary-key")
    assert done.code == 0, (done, [p.read_text() for p in space.below() if p.suffix == ".err"])
    assert space.read("free") == "canary"
    assert space.read("out/stolen") == ""
    assert space.read("out/held") == "canary-key\n"
    assert backends(space) == ["", "bubblewrap", ""]
    assert not [p for p in space.below() if b"canary-key" in p.read_bytes()]
