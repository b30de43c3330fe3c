"""What a confined node leaves for later: for its next try, for the next node, for dagrun itself, for git."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dagrun.core.names import Outcome
from tests.sandbox.bubblewrap_cell import until

from .space import ROOT, Space

ALL = "permissions: {paths: {read: [.], write: [.]}}\n"


@pytest.fixture(autouse=True)
def _bwrap() -> None:
    if shutil.which("bwrap") is None:
        if os.environ.get("CI"):
            pytest.fail("CI must have bubblewrap: apt install bubblewrap")
        pytest.skip("bubblewrap is not installed")


def confined(space: Space, text: str, top: str = ALL) -> None:
    space.flow(top + textwrap.dedent(text))


# ---------------------------------------------------------------- for its next try, for the next node


def test_what_is_denied_does_not_lie_open_for_the_next_try(space: Space) -> None:
    (space.path / "sub/inner").mkdir(parents=True)
    space.write("sub/inner/key", "canary")
    confined(
        space,
        """
        nodes:
          a:
            retry: {max_attempts: 2, delay: 1ms}
            run: 'cat sub/inner/key sub/other/key || true; mv sub/inner sub/other; exit 3'
        """,
        "permissions: {paths: {read: [.], write: [sub], deny: [sub/inner/key]}}\n",
    )
    assert space.execute().code == 1
    assert space.outcomes("a") == ["failed", "failed"]
    assert [space.log("a", attempt) for attempt in (1, 2)] == [b"", b""]
    assert (space.path / "sub/inner/key").exists()


def test_a_link_to_bwrap_that_a_node_replaces_is_not_followed_again(space: Space) -> None:
    real, mine = shutil.which("bwrap"), space.path / "bin"
    assert real
    mine.mkdir()
    (mine / "bwrap").symlink_to(real)
    (space.path.parent / "outside").write_text("canary")
    false = 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"'
    space.write("false", f"#!/bin/sh\n{false}\n", mode=0o755)
    confined(
        space,
        f"""
        nodes:
          plants: {{run: 'rm bin/bwrap && cp -p false bin/bwrap'}}
          uses: {{needs: plants, run: 'cat {space.path.parent}/outside'}}
        """,
    )
    assert space.execute(env={"PATH": f"{mine}:{os.environ['PATH']}"}).code == 1
    assert space.outcomes("plants") == ["completed"]
    assert not (mine / "bwrap").is_symlink()
    assert (space.outcomes("uses"), space.log("uses")) == (["failed"], b"")


# ---------------------------------------------------------------- for git, and for the next run


def test_hooks_that_gits_configuration_keeps_elsewhere_are_not_written(space: Space) -> None:
    (space.path / ".git").mkdir()
    (space.path / ".husky").mkdir()
    space.write(".git/config", "[core]\n\thooksPath = .husky # ours\n[include]\n\tpath = ../team.gitconfig\n")
    space.write("team.gitconfig", "as it was")
    space.write("path", "free")
    confined(
        space,
        """
        nodes:
          hook: {run: 'echo evil > .husky/pre-commit'}
          away: {run: 'mv .husky .was && mkdir .husky && echo evil > .husky/pre-commit'}
          config: {run: 'echo evil > team.gitconfig'}
          other: {run: 'echo fine > path'}
        """,
    )
    assert space.execute().code == 1
    assert list((space.path / ".husky").iterdir()) == []
    assert space.read("team.gitconfig") == "as it was"
    assert space.read("path") == "fine\n"


def test_a_worktree_keeps_the_repository_that_it_belongs_to(space: Space) -> None:
    main = space.path / "main"
    (main / ".git/worktrees/w").mkdir(parents=True)
    space.write("main/.git/worktrees/w/commondir", "../..\n")
    space.write(".git", "gitdir: main/.git/worktrees/w\n")
    confined(
        space,
        """
        nodes:
          lead: {run: 'echo gitdir: evil > .git'}
          common: {run: 'echo evil > main/.git/worktrees/w/commondir'}
          hooks: {run: 'mkdir main/.git/hooks && echo evil > main/.git/hooks/pre-commit'}
        """,
    )
    assert space.execute().code == 1
    assert space.read(".git") == "gitdir: main/.git/worktrees/w\n"
    assert space.read("main/.git/worktrees/w/commondir") == "../..\n"
    assert space.outcomes("hooks") == ["denied"]
    assert not (main / ".git/hooks").exists()


def test_the_files_that_a_workflow_names_are_not_written(space: Space) -> None:
    (space.path / "schemas").mkdir()
    space.write("schemas/s.json", '{"type": "object"}')
    confined(space, "nodes: {a: {run: 'echo {} > schemas/s.json', output_schema: schemas/s.json}}")
    for _ in range(2):  # from its text, then from the cache
        assert space.execute().code == 1
        assert space.read("schemas/s.json") == '{"type": "object"}'


def test_a_link_on_the_way_to_the_workflow_is_not_replaced(space: Space) -> None:
    (space.path / "real").mkdir()
    (space.path / "flows").symlink_to("real")
    evil = "rm flows; mkdir flows; echo evil > flows/f.yaml"
    space.write("real/f.yaml", f"version: 1\nname: f\n{ALL}nodes: {{a: {{run: '{evil}'}}}}\n")
    assert space.run("execute", "flows/f.yaml").code == 1
    assert space.outcomes("a") == ["denied"]
    assert not (space.path / "flows/f.yaml").exists()


def test_the_runs_of_another_project_are_not_there(space: Space) -> None:
    other = space.path.parent / "other"
    (other / ".dagrun/runs").mkdir(parents=True)
    (other / ".dagrun/runs/journal").write_text("canary")
    (other / "data").write_text("given")
    confined(
        space,
        "nodes: {a: {run: 'cat ../other/data; ls -A ../other/.dagrun; cat ../other/.dagrun/runs/journal'}}",
        "permissions: {paths: {read: [., ../other]}}\n",
    )
    assert space.execute().code == 1
    assert space.log("a") == b"given"


# ---------------------------------------------------------------- for dagrun itself


def test_modules_in_the_project_are_not_dagruns(space: Space) -> None:
    names = ["json", "fcntl", "hashlib", "unicodedata", "yaml", "rich", "select", "ctypes", "shutil"]
    for name in names:
        space.write(f"{name}.py", f"import os; os.write(2, b'LOADED {name}\\n'); raise ImportError('{name}')")
    space.flow("nodes: {a: {run: 'echo fine', outputs: {x: {from: stdout}}}}")
    words = [sys.executable, "-m", "dagrun", "execute", "flow.yaml"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(space.path.parent), "XDG_CACHE_HOME": "/nonexistent"}
    done = subprocess.run(words, cwd=space.path, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "LOADED" in done.stderr) == (0, False), done.stderr


SECRET = "secrets: {S: {env: S}}\n"


def test_a_log_with_a_hole_of_terabytes_is_more_than_its_limit(space: Space) -> None:
    space.write("x.py", "import os; os.write(1, b'x'); os.ftruncate(1, 1 << 42)")
    confined(space, f"nodes: {{a: {{run: [{sys.executable}, x.py], isolation: none}}}}", SECRET)
    done = space.start("execute", "flow.yaml", env={"S": "a-long-secret"}).done(30)
    assert done.code == 1
    finish = space.finish("a")
    assert (finish.outcome, finish.limit) == (Outcome.OVER_LIMIT, "output")
    assert "4398046511104 bytes" in finish.error


def test_a_log_that_its_command_closed_is_masked_and_can_be_read(space: Space) -> None:
    space.write("x.py", "import os; os.fchmod(1, 0); print(os.environ['S'], flush=True)")
    confined(space, f"nodes: {{a: {{run: [{sys.executable}, x.py], isolation: none, secrets: [S]}}}}", SECRET)
    assert space.execute(env={"S": "a-long-secret"}).code == 0
    assert space.log("a").strip() == b"*" * len("a-long-secret")
    assert os.stat(next(Path(space.last().nodes).glob("a.1.out"))).st_mode & 0o777 == 0o600
    assert space.run("logs", "a").code == 0


def test_an_artifact_that_is_a_hole_does_not_fill_the_disk(space: Space) -> None:
    space.write("x.py", "open('big', 'w').truncate(1 << 40)")
    confined(space, f"nodes: {{a: {{run: [{sys.executable}, x.py], isolation: none, artifacts: [big]}}}}", "")
    done = space.start("execute", "flow.yaml").done(30)
    assert done.code == 1
    assert space.outcomes("a") == ["invalid_output"]
    assert "almost all of it is a hole" in space.finish("a").error


def test_a_relative_tmpdir_is_the_callers(space: Space) -> None:
    (space.path / "tmp").mkdir()
    confined(space, "nodes: {a: {run: 'echo x=1 > \"$DAGRUN_OUTPUT\"', outputs: {x: {}}}}")
    done = space.run("execute", "flow.yaml", "--json", env={"TMPDIR": "tmp"})
    assert (done.code, json.loads(done.out)["status"]) == (0, "completed"), done


# ---------------------------------------------------------------- when dagrun is killed in the middle

PLANTS = "mkdir -p out/.git/hooks; echo evil >out/.git/hooks/pre-commit; echo x >out/.envrc"


def killed(space: Space, *, watchdog: bool) -> None:
    """A node plants what it must not, dagrun is killed before the node ends: with its watchdog, or without."""
    confined(
        space,
        f"""
        nodes:
          a: {{run: '[ ! -e out/again ] || exit 0; touch out/again; {PLANTS}; touch out/ready; exec sleep 1000'}}
        """,
        "permissions: {paths: {read: [.], write: [out]}}\n",
    )
    process = space.start("execute", "flow.yaml")
    engine = process.engine()
    process.until((space.path / "out/ready").exists, "the plants are there")
    if watchdog:  # first, and while it can't act, so that nobody is left who could
        os.kill(engine, signal.SIGSTOP)
        process.signal(signal.SIGKILL)
    os.kill(engine, signal.SIGKILL)
    process.done()
    until(lambda: not space.alive(), "all of it is dead")
    assert (space.path / "out/.git").exists() == watchdog


def planted(space: Space) -> list[str]:
    return sorted(name for name in os.listdir(space.path / "out") if name.startswith("."))


ASIDE = [".envrc.quarantine-a", ".git.quarantine-a"]


def test_the_watchdog_moves_aside_what_a_killed_engine_can_not(space: Space) -> None:
    killed(space, watchdog=False)
    assert planted(space) == ASIDE
    assert os.listdir(space.path / ".dagrun/watched") == []


@pytest.mark.parametrize("words", [("resume",), ("execute", "other.yaml"), ("runs", "gc", "--keep", "9")], ids="-".join)
def test_without_a_watchdog_the_next_start_does(words: tuple[str, ...], space: Space) -> None:
    killed(space, watchdog=True)
    assert planted(space) == [".envrc", ".git"]
    space.write("other.yaml", "version: 1\nname: other\nnodes: {b: {run: 'true'}}\n")
    done = space.run(*words)
    assert done.code == 0, done
    assert planted(space) == ASIDE
    assert "out/.git (now .git.quarantine-a)" in done.err
    assert os.listdir(space.path / ".dagrun/watched") == []


def test_what_an_ended_attempt_was_watched_for_is_forgotten(space: Space) -> None:
    confined(space, "nodes: {a: {run: 'true'}, b: {run: 'exit 3'}}\n", "permissions: {paths: {write: [out]}}\n")
    assert space.execute().code == 1
    assert os.listdir(space.path / ".dagrun/watched") == []
    space.write("out/.envrc", "mine")
    assert space.run("runs", "gc", "--keep", "9").code == 0
    assert space.read("out/.envrc") == "mine"
