"""Models that want out, by the tools that they have: what they must not read, write or do; each with its control."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dagrun.core.event import ToolEnded

from .asking import uses
from .space import Done, Space

Call = tuple[str, dict[str, Any]]
bwrap = pytest.mark.skipif(shutil.which("bwrap") is None and not os.environ.get("CI"), reason="needs bubblewrap")
LEVELS = ["context", "none", pytest.param("process", marks=bwrap)]


class Den(NamedTuple):
    """A project full of traps. `token` is what no tool may show: it lies in each place that is out of bounds."""

    space: Space
    token: str

    @property
    def project(self) -> Path:
        return self.space.path

    @property
    def outside(self) -> Path:
        return self.space.path.parent / "outside"

    def play(self, *calls: Call, level: str = "process", pids: int = 0, **paths: list[str]) -> Done:
        """One agent that makes these calls in one reply, may read the project, and then is done."""
        tools = sorted({name for name, _ in calls})
        node: dict[str, Any] = {"agent": {"prompt": "go", "tools": tools}, "isolation": level, "timeout": "60s"}
        if pids:
            node["resources"] = {"pids": pids}
        if level == "process":  # the others hold no paths, so that none can be declared
            node["permissions"] = {"paths": {"read": ["."], "write": [], "deny": ["data/private"], **paths}}
        self.space.flow(f"provider: {{kind: fake, rules: rules.yaml}}\nnodes: {{a: {json.dumps(node)}}}\n")
        asked = [{name: given} for name, given in calls]
        rules = [{"node": "a", "turn": 1, "tools": asked}, {"node": "a", "text": "done"}]
        self.space.write("rules.yaml", json.dumps({"rules": rules}))
        return self.space.execute()

    def results(self, *calls: Call, **how: Any) -> list[str]:
        """The results of the calls, those that were refused among them, as the model is shown them."""
        done = self.play(*calls, **how)
        assert done.code == 0, done
        found = uses(self.space, "a")
        assert len(found) == len(calls), [(use.name, use.text) for use in found]
        return [use.text for use in found]


@pytest.fixture
def den(space: Space) -> Den:
    made = Den(space, f"tok-{secrets.token_hex(12)}")
    made.outside.mkdir()
    (made.outside / "secret.txt").write_text(made.token)
    for name in (".env", "sub/.env.local", "id_ed25519", "sub/deep/server.pem", "data/private/x", "data/private/in/y"):
        space.write(name, made.token)
    for name in (".git/hooks/post-checkout", ".git/config", "skills/kind/SKILL.md", ".envrc", "open.txt", "data/b"):
        space.write(name, "as it was\n")
    for name, target in {
        "link": f"{made.outside}/secret.txt",
        "folder": str(made.outside),
        "up": "../outside",
        "root": "/",
        "proc": "/proc/self",
        "alias": "data",
        "sub/twice": "../alias/private",
        "env-link": ".env",
        "loop": "loop",
    }.items():
        (made.project / name).symlink_to(target)
    os.mkfifo(made.project / "pipe")
    return made


def places(den: Den, level: str) -> list[str]:
    """Paths that must lead nowhere."""
    outside = str(den.outside)
    real = [f"{outside}/secret.txt", "../outside/secret.txt", f"sub/../../{den.outside.name}/secret.txt"]
    links = ["link", "folder/secret.txt", "up/secret.txt", f"root{outside}/secret.txt"]
    links += [f"proc/root{outside}/secret.txt", f"/proc/self/root{outside}/secret.txt", "/proc/self/cwd/link"]
    kernel = ["/proc/self/environ", "/proc/1/environ", "/proc/self/fd/0", "/dev/fd/2"]
    keys = [".env", "./.env", "sub/.env.local", "env-link", "id_ed25519", "sub/deep/server.pem", "sub/../.env"]
    denied = ["data/private/x", "alias/private/x", "sub/twice/x", "alias/private/in/y", "data/./private/../private/x"]
    own = [".dagrun", ".dagrun/runs", "sub/../.dagrun"]
    return [*real, *links, *kernel, *keys, *own, *(denied if level == "process" else ())]


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("level", LEVELS)
def test_no_path_leads_out_of_what_may_be_read(den: Den, level: str) -> None:
    wanted = places(den, level)
    for tool in ("Read", "Grep", "Glob"):
        calls: list[Call] = []
        for place in wanted:
            given = {"Read": {"file_path": place}, "Grep": {"pattern": ".", "path": place, "output_mode": "content"}}
            calls.append((tool, given.get(tool, {"pattern": "**", "path": place})))
        calls.append(("Read", {"file_path": "open.txt"}))
        texts = den.results(*calls, level=level)
        assert "as it was" in texts[-1]
        for place, text in zip(wanted, texts, strict=False):
            assert den.token not in text, f"{tool} {place}: {text}"
            assert tool != "Read" or "1\t" not in text, f"{place}: {text}"
            assert "DAGRUN" not in text, f"{tool} {place}: {text}"


@pytest.mark.parametrize("level", LEVELS)
def test_a_search_of_everything_finds_nothing_that_is_denied(den: Den, level: str) -> None:
    if level != "process":
        shutil.rmtree(den.project / "data/private")
    found: list[Call] = [
        ("Grep", {"pattern": "tok-", "path": where, "output_mode": mode})
        for where in (".", "alias", "data", "sub", "/", "..", str(den.project), "alias/..")
        for mode in ("content", "files_with_matches", "count")
    ]
    patterns = ("**", "**/.*", "../**", "/**", "alias/**", "{.env,x}", f"{den.outside}/*")
    listed: list[Call] = [("Glob", {"pattern": pattern}) for pattern in patterns]
    texts = den.results(*found, *listed, level=level)
    for call, text in zip([*found, *listed], texts, strict=True):
        assert den.token not in text, (call, text)
        for name in ("private", "secret.txt", ".env\n", "server.pem", "id_ed25519", "journal"):
            assert name not in text.replace("rules.yaml", "") + "\n", (call, text)


@bwrap
def test_granted_it_can_be_read(den: Den) -> None:
    """The control: the same tools, the same places."""
    outside = str(den.outside)
    wanted = [".env", "sub/.env.local", "data/private/x", f"{outside}/secret.txt"]
    calls = [("Read", {"file_path": place}) for place in wanted]
    read = [".", ".env", "sub/.env.local", outside]
    texts = den.results(*calls, read=read, deny=[])
    assert [den.token in text for text in texts] == [True] * 4


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_no_file_is_never_waited_for(den: Den, level: str) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        if level != "process":  # a grant that holds a socket is refused there
            os.symlink("/dev/zero", den.project / "zero")
            here = os.getcwd()
            os.chdir(den.project)
            try:
                server.bind("sock")
            finally:
                os.chdir(here)
        names = ["pipe", "loop", "/dev/zero", "/dev/tty", "/dev/stdin", "/proc/kmsg"]
        names += ["sock", "zero"] if level != "process" else []
        calls: list[Call] = [("Read", {"file_path": name}) for name in names]
        calls += [("Grep", {"pattern": "x", "path": name}) for name in names]
        for text in den.results(*calls, ("Grep", {"pattern": "as it", "path": "."}), level=level)[:-1]:
            assert len(text) < 300
    assert max(e.duration_ms for e in den.space.events() if isinstance(e, ToolEnded)) < 5000


@pytest.mark.parametrize("level", LEVELS)
def test_odd_paths_and_patterns_are_errors_in_words(den: Den, level: str) -> None:
    (den.project / "sub" / "new\nline\x1b[31m").write_text("odd")
    (den.project / "sub").joinpath(os.fsdecode(b"bytes-\xff")).write_text("odd")
    (den.project / "huge").write_bytes(b"")
    os.truncate(den.project / "huge", 1 << 40)
    odd = ["x" * 5000, "a/" * 3000, "~/.ssh", "~root/x", "", "\u202e", "//etc//passwd", "huge"]
    calls: list[Call] = [("Read", {"file_path": name}) for name in odd]
    calls += [("Glob", {"pattern": "**", "path": name}) for name in odd if name != "huge"]
    calls += [("Glob", {"pattern": "sub/*"}), ("Grep", {"pattern": "odd", "path": "sub"})]
    calls += [("Grep", {"pattern": "(a+)+$" * 50}), ("Grep", {"pattern": "("}), ("Glob", {"pattern": "{" * 900})]
    den.results(*calls, level=level)
    assert not any("tool worker ended" in use.text for use in uses(den.space, "a"))


# ---------------------------------------------------------------- writing

NEVER = (
    "flow.yaml rules.yaml skills/kind/SKILL.md skills/new/SKILL.md .agents/skills/x/SKILL.md .claude/skills/x/SKILL.md "
    ".git/hooks/post-checkout .git/hooks/pre-commit .git/config .envrc .env sub/.env.local id_ed25519 .dagrun/x "
    ".dagrun/runs/x .vscode/tasks.json sub/.git/hooks/pre-commit .bashrc data/private/x data/private/new link "
    "folder/planted up/planted ../outside/planted ../outside/secret.txt pipe env-link alias/private/x "
    "sub/../.git/hooks/pre-push"
).split()


def tree(*folders: Path) -> dict[str, bytes]:
    """All files that a tool must leave as they are."""
    skipped = (".dagrun/", "fine.txt", "flow.yaml", "rules.yaml")
    files = [p for folder in folders for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    return {str(p): p.read_bytes() for p in files if not any(s in str(p) for s in skipped)}


@bwrap
def test_nothing_that_others_run_or_trust_is_written(den: Den) -> None:
    before = tree(den.project, den.outside)
    names = [*NEVER, f"{den.outside}/planted"]
    calls: list[Call] = [("Write", {"file_path": name, "content": "EVIL"}) for name in names]
    calls += [("Edit", {"file_path": n, "old_string": "as it", "new_string": "EVIL"}) for n in NEVER[:3]]
    calls += [("Write", {"file_path": "fine.txt", "content": "fine"})]
    den.results(*calls, write=["."])
    wrong = [use.arguments for use in uses(den.space, "a")[:-1] if use.ok]
    assert wrong == []
    assert tree(den.project, den.outside) == before
    assert "EVIL" not in den.space.read("flow.yaml").replace('"EVIL"', "")
    assert "nodes" in den.space.read("flow.yaml")
    assert den.space.read("fine.txt") == "fine"
    assert not (den.project / ".dagrun/x").exists()


@pytest.mark.parametrize("level", ["context", "none"])
def test_without_walls_a_tool_writes_nothing_at_all(den: Den, level: str) -> None:
    """Levels that hold no paths grant none to write; Bash there is as free as its user (below)."""
    before = tree(den.project, den.outside)
    den.results(*[("Write", {"file_path": name, "content": "EVIL"}) for name in [*NEVER, "fine.txt"]], level=level)
    assert not any(use.ok for use in uses(den.space, "a"))
    assert tree(den.project, den.outside) == before


@bwrap
def test_bash_writes_none_of_it_either(den: Den) -> None:
    before = tree(den.project, den.outside)
    # what docs/isolation.md leaves to a command: keys further down, and a repository of its own making
    left = ("pipe", "sub/.env.local", "sub/.git/hooks/pre-commit")
    targets = [f"'{name}'" for name in [*NEVER, f"{den.outside}/planted"] if name not in left]
    script = f"for f in {' '.join(targets)}; do mkdir -p \"$(dirname $f)\"; echo EVIL > $f; ln -sf /etc $f.l; done; "
    script += "mv skills skills2; mv .git git2; mkdir -p skills/evil; echo fine > fine.txt; rm -f flow.yaml; true"
    done = den.play(("Bash", {"command": script}), write=["."])
    assert den.space.read("fine.txt") == "fine\n", done
    after = tree(den.project, den.outside)
    assert [name for name, data in after.items() if data == b"EVIL\n" and ".quarantine-" not in name] == []
    assert {name: after.get(name) for name in before} == before
    assert "nodes" in den.space.read("flow.yaml")
    assert "rules" in den.space.read("rules.yaml")


def test_without_walls_bash_writes_them(den: Den) -> None:
    """The control: a level without walls does not hold Bash, and says so."""
    script = "echo EVIL > .git/hooks/pre-commit; echo EVIL > ../outside/planted; cat ../outside/secret.txt"
    (text,) = den.results(("Bash", {"command": script}), level="context")
    assert den.token in text
    assert den.space.read(".git/hooks/pre-commit") == "EVIL\n"
    assert (den.outside / "planted").exists()


# ---------------------------------------------------------------- commands

PROBES = {
    "reads outside": "cat {outside}/secret.txt",
    "reads the worker's memory": "python3 -c 'open(\"/proc/'$PPID'/mem\").read(1)' && echo OUT",
    "reads the worker's environment": "tr '\\0' '\\n' < /proc/$PPID/environ | grep . && echo OUT",
    "opens the worker's pipes": "for n in 0 1 2 3 4 5 6 7; do : < /proc/$PPID/fd/$n && echo OUT; done",
    "sees the engine": "grep -al 'execute.fl[o]w' /proc/[0-9]*/cmdline 2>/dev/null | grep . && echo OUT",
    "reads the journal": "find .dagrun /tmp -name '*journal*' 2>/dev/null | grep . && echo OUT",
    "has a key": "env | grep -i canary && echo OUT",
    "connects": "python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", {port}), 3); print(\"OUT\")'",
    "has a terminal": ": < /dev/tty && echo OUT",
}
CONTROL = {"reads outside", "sees the engine", "reads the journal", "connects"}


def probe(den: Den, level: str) -> set[str]:
    """What of PROBES gets through."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = str(server.getsockname()[1])
        commands = [p.replace("{outside}", str(den.outside)).replace("{port}", port) for p in PROBES.values()]
        texts = den.results(*[("Bash", {"command": f"({c}) 2>/dev/null; true"}) for c in commands], level=level)
    return {name for name, text in zip(PROBES, texts, strict=True) if "OUT" in text.split() or den.token in text}


@bwrap
def test_commands_reach_nothing(den: Den, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "canary-key")
    assert probe(den, "process") == set()


def test_without_walls_they_reach_much(den: Den) -> None:
    """The control. The worker keeps its memory and its pipes to itself from whoever is not root."""
    found = probe(den, "none")
    assert found >= CONTROL
    assert "has a key" not in found


@bwrap
def test_a_command_that_ends_its_worker_ends_only_that(den: Den) -> None:
    texts = den.results(
        ("Bash", {"command": "kill -9 $PPID; sleep 60"}),
        ("Bash", {"command": "echo still there"}),
        ("Bash", {"command": "kill -9 -1; echo all"}),
        ("Bash", {"command": "kill -9 1; echo first"}),
        ("Bash", {"command": "setsid sleep 1000 & disown; echo left"}),
        ("Read", {"file_path": "open.txt"}),
    )
    assert "ended" in texts[0]
    assert texts[1] == "still there"
    assert "as it was" in texts[-1]


@bwrap
@pytest.mark.parametrize("pids", [40, 0])
def test_a_command_has_no_more_processes_than_its_node(den: Den, pids: int) -> None:
    """With no limit written (the control) it gets all that it asks for."""
    many = "for n in $(seq 120); do sleep 60 & done; set -- /proc/[0-9]*; echo $#"
    done = den.play(("Bash", {"command": f"({many}) 2>/dev/null; true"}), pids=pids)
    if done.code == 8 and not os.environ.get("CI"):
        pytest.skip("no control groups here")
    said = [use.text for use in uses(den.space, "a")]
    counted = [int(word) for text in said if (word := text.split()[0]).isdigit()]  # a shell that can't fork gives up
    if pids:
        assert all(count <= pids for count in counted)
    else:
        assert counted[0] >= 120
    den.space.check()
