"""Keys of providers: a tool that looks everywhere it can reach finds none, and nothing that dagrun stores holds one."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.agent.openai_server import Behaviour, Server
from tests.agent.talking import need_litellm
from tests.escapes.image import image as python_image

from .asking import agents, reserved, uses, why
from .space import Done, Space

CANARY = "sk-canary-9d8f7e6a5b4c3d2e"
NAMES = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "DAGRUN_API_KEY", "GROQ_API_KEY", "MY_OWN_TOKEN")
KEYS = {name: f"{CANARY}-{name.lower()}" for name in NAMES}
# root may read every process: without these capabilities it is as any user is to its own processes
_LESS = "-sys_ptrace,-perfmon,-sys_admin"
ORDINARY = ("setpriv", f"--bounding-set={_LESS}", f"--inh-caps={_LESS}") if os.geteuid() == 0 else ()
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into a process that hides its memory")

# Looks through processes (of this run where it sees others), and files; says what it could look at.
HUNT = r"""
import json, os, sys
NEEDLE = b"-".join([b"sk", b"canary", b"9d8f7e6a5b4c3d2e"])
found, seen = [], {"environ": 0, "cmdline": 0, "mem": 0, "files": 0}

def read(path, most=1 << 24):
    with open(path, "rb", buffering=0) as file:
        return file.read(most)

def look(kind, name, data):
    seen[kind] += 1
    if NEEDLE in data:
        found.append(kind + " " + name)

def parent(pid):
    return int(read("/proc/%d/stat" % pid).rpartition(b")")[2].split()[1])

def line(pid):
    chain = []
    while pid > 0 and pid not in chain:
        chain.append(pid)
        try:
            pid = parent(pid)
        except OSError:
            break
    return chain

def memory(pid):
    with open("/proc/%d/maps" % pid) as maps, open("/proc/%d/mem" % pid, "rb", buffering=0) as mem:
        for entry in maps:
            words = entry.split()
            start, end = (int(x, 16) for x in words[0].split("-"))
            if words[1].startswith("rw") and end - start < 1 << 28:
                try:
                    mem.seek(start)
                    data = mem.read(end - start)
                except (OSError, ValueError):
                    continue
                yield data

mine = line(os.getpid())
top = [p for p in mine if b"dagrun" in read("/proc/%d/cmdline" % p)]
look("environ", "own", "\n".join(k + "=" + v for k, v in os.environ.items()).encode())
for pid in sorted(int(n) for n in os.listdir("/proc") if n.isdecimal()):
    if pid == os.getpid() or (top and top[-1] not in line(pid)):
        continue
    for kind in ("environ", "cmdline"):
        try:
            look(kind, str(pid), read("/proc/%d/%s" % (pid, kind)))
        except OSError:
            pass
    try:
        for data in memory(pid):
            look("mem", str(pid), data)
    except OSError:
        pass
for folder in {os.getcwd(), os.environ.get("HOME", "."), os.environ.get("TMPDIR", "."), *sys.argv[1:]}:
    for where, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(where, name)
            try:
                if os.path.isfile(path):
                    look("files", path, path.encode("utf-8", "surrogateescape") + read(path))
            except OSError:
                pass
with open("out/found", "a") as file:
    file.write("".join(x + "\n" for x in found))
with open("out/seen", "w") as file:
    file.write(json.dumps(seen))
print("looked")
"""
LOOK = {"command": "/usr/bin/python3 hunt.py"}


@pytest.fixture
def den(space: Space) -> Space:
    """A project with a hunter in it, a home of its own, and keys in the environment of who starts dagrun."""
    (space.path / "out").mkdir()
    (space.path.parent / "home").mkdir()
    space.write("hunt.py", HUNT)
    return space


def environ(den: Space) -> dict[str, str]:
    return {**KEYS, "HOME": str(den.path.parent / "home")}


def hunting(den: Space, level: str) -> None:
    paths = "permissions: {paths: {read: [.], write: [out]}}" if level == "process" else "timeout: 60s"
    agents(
        den,
        f"nodes: {{a: {{agent: {{prompt: Look, tools: [Bash]}}, isolation: {level}, {paths}}}}}",
        f"- {{turn: 1, tools: [{{Bash: {json.dumps(LOOK)}}}]}}\n- {{last: looked, text: done}}",
    )


def caught(den: Space) -> list[str]:
    assert den.read("out/seen"), "nobody looked"
    return den.lines("out/found")


def clean(done: Done) -> Done:
    for text in (done.out, done.err):
        assert CANARY not in text, text
    return done


def stored(den: Space) -> list[str]:
    """Every file of the project, of dagrun and of the home in which a key is found."""
    cache = Path(den.environ({})["XDG_CACHE_HOME"])
    found = []
    for folder in (den.path, cache, den.path.parent / "home"):
        found += [str(p) for p in folder.rglob("*") if p.is_file() and CANARY.encode() in p.read_bytes()]
    return found


def tell(den: Space) -> None:
    """Commands that show the run, asked by somebody who has the keys too."""
    lines = "status,trace show,trace show --json,outputs --json,logs a,logs a --json,plan last,export last".split(",")
    for line in lines:
        assert clean(den.run(*line.split(), env=environ(den))).code == 0, line


# ---------------------------------------------------------------- control


def hunt(den: Space, keys: dict[str, str]) -> None:
    """Hunt in a home of its own, below a shell that is named as a run is: else it would search the whole machine."""
    command = ["sh", "-c", "/usr/bin/python3 hunt.py; exit $?", "dagrun"]
    home = {"HOME": str(den.path.parent / "home")}
    subprocess.run(command, cwd=den.path, env=den.environ({**keys, **home}), check=True)


def test_the_hunter_finds_what_is_there(den: Space) -> None:
    hunt(den, KEYS)
    kinds = {line.split()[0] for line in caught(den)}
    assert "environ own" in den.lines("out/found")
    assert {"environ", "mem"} <= kinds
    den.write("plant.txt", CANARY)
    hunt(den, {})
    assert any(line.endswith("plant.txt") for line in caught(den))


@root_only
def test_it_looks_into_the_engine_where_it_may(den: Space) -> None:
    """As root nothing hides the engine from a tool at `none`: the hunter is able to find what others can't."""
    hunting(den, "none")
    assert den.execute(env=environ(den)).code == 0, why(den)
    assert {line.split()[0] for line in caught(den)} & {"environ", "mem"}


# ---------------------------------------------------------------- a tool looks everywhere


@pytest.mark.parametrize("level", ["none", "context", "process"])
def test_a_tool_finds_no_key_anywhere(den: Space, level: str) -> None:
    hunting(den, level)
    before = () if level == "process" else ORDINARY  # there the wall does it, also against root
    done = clean(den.run("execute", "flow.yaml", env=environ(den), before=before))
    assert done.code == 0, (done, uses(den))
    assert caught(den) == []
    seen = json.loads(den.read("out/seen"))
    assert seen["cmdline"] > 1  # it saw other processes, and might not look into them
    assert seen["files"] > 3
    assert stored(den) == []
    tell(den)


@pytest.mark.docker
@pytest.mark.usefixtures("docker")
def test_a_tool_in_a_container_finds_no_key_anywhere(den: Space) -> None:
    (den.path / "out").chmod(0o777)
    agents(
        den,
        f"""
        docker: {{image: '{python_image()}'}}
        nodes:
          a:
            agent: {{prompt: Look, tools: [Bash]}}
            isolation: container
            permissions: {{paths: {{read: [.], write: [out]}}}}
        """,
        "- {turn: 1, tools: [{Bash: {command: python3 hunt.py}}]}\n- {last: looked, text: done}",
    )
    done = clean(den.execute(env=environ(den)))
    assert done.code == 0, (done, uses(den))
    assert caught(den) == []
    assert stored(den) == []


@pytest.mark.parametrize("level", ["none", "context", "process"])
def test_the_environment_of_a_tool_has_no_key_by_any_name(den: Space, level: str) -> None:
    agents(
        den,
        f"nodes: {{a: {{agent: {{prompt: x, tools: [Bash]}}, isolation: {level}}}}}",
        "- {turn: 1, tools: [{Bash: {command: env}}]}\n- {text: ok}",
    )
    assert den.execute(env=environ(den)).code == 0
    (use,) = uses(den)
    assert "PATH=" in use.text
    assert not re.search("|".join(NAMES), use.text)
    assert "canary" not in use.text
    assert "***" not in use.text  # nothing had to be masked


def test_a_prompt_can_not_read_a_key(den: Space) -> None:
    agents(
        den,
        'nodes: {a: {agent: {prompt: "Use ${{ env.OPENAI_API_KEY }}", tools: []}}}',
        "- {text: never}",
    )
    done = clean(den.execute(env=environ(den)))
    assert done.code != 0
    assert not den.runs() or reserved(den) == []
    assert stored(den) == []


def test_a_model_that_says_a_key_is_masked(den: Space) -> None:
    """Somebody put a key into a file: it is masked wherever a tool, a model or an error says it."""
    den.write("leak.txt", KEYS["OPENAI_API_KEY"])
    agents(
        den,
        """
        nodes:
          a: {agent: {prompt: x, tools: [Read, Write]}, permissions: {paths: {read: [.], write: [out]}}}
          b: {inputs: {t: nodes.a.text}, run: 'printf %s "$INPUT_T" > out/got'}
        """,
        f"""
        - {{node: a, turn: 1, tools: [{{Read: {{file_path: leak.txt}}}}]}}
        - {{node: a, text: "it is {KEYS["ANTHROPIC_API_KEY"]}"}}
        """,
    )
    done = clean(den.execute(env=environ(den)))
    assert done.code == 0, done
    assert "***" in uses(den)[0].text
    assert "***" in den.read("out/got")
    # the author's own files; a checked workflow with its rules is in the cache and in the plan
    assert not [f for f in stored(den) if Path(f).suffix in (".jsonl", ".out", ".err") or "values" in f]
    tell(den)


# ---------------------------------------------------------------- a real broker


def test_neither_a_tool_nor_an_error_shows_the_key_that_a_broker_uses(den: Space) -> None:
    need_litellm()
    look = (("call_1", "Bash", json.dumps(LOOK)),)
    key = KEYS["DAGRUN_API_KEY"]
    said = {"message": f"Incorrect API key provided: {key}", "type": "invalid_request_error"}
    with Server(
        hunter=Behaviour(text="", tool_calls=look, finish="tool_calls"),
        broken=Behaviour(mode="error", status=401, error=said, headers={"x-key": key}),
        parrot=Behaviour(text=f"Your key is {key}, is it not?"),
    ) as server:
        den.flow(f"""
            provider: {{base_url: "{server.url}", prices: {{
              my/hunter: {{free: true}}, my/broken: {{free: true}}, my/parrot: {{free: true}}}}}}
            nodes:
              a: {{agent: {{prompt: x, model: my/hunter, tools: [Bash], max_turns: 2}}, isolation: none}}
              b: {{agent: {{prompt: x, model: my/broken, tools: []}}}}
              c: {{agent: {{prompt: x, model: my/parrot, tools: []}}}}
        """)
        done = clean(den.run("execute", "flow.yaml", env=environ(den), before=ORDINARY))
        sent = [one.headers.get("authorization", "") for one in server.requests]
    assert done.code == 1, done
    assert any(key in header for header in sent), "the broker did use the key"
    assert not any(KEYS["OPENAI_API_KEY"] in header for header in sent)
    assert den.finish("a").limit == "turns"
    assert den.statuses()["b"] == "failed"
    assert "***" in den.finish("b").error
    assert caught(den) == []
    assert stored(den) == []
    tell(den)


def test_the_start_of_a_run_that_lacks_a_key_names_only_the_variable(space: Space) -> None:
    need_litellm()
    space.flow("models: {first: [openai/gpt-4o-mini]}\nnodes: {a: {agent: {prompt: x, tools: []}}}")
    done = space.execute(env={"ANTHROPIC_API_KEY": CANARY, "OPENAI_API_KEY": ""})
    assert done.code == 8, done
    assert "OPENAI_API_KEY" in clean(done).err
    assert space.runs() == []
