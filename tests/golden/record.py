"""Write the golden journals of the present format: real runs of the real engine, made neutral.

    python tests/golden/record.py [NAME …]

Paths, host, boot and process ids are replaced and the CRC chain is computed anew; times stay as
they were. Journals of a format that was released are never written again: a new format gets new
files beside the old ones.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

sys.path.insert(0, str(Path(__file__).parents[2]))

from dagrun.core.event import FORMAT
from dagrun.core.names import Json, Outcome, Schedule
from dagrun.core.permissions import Permissions
from dagrun.core.trace import trace_to_json
from dagrun.core.workflow import Agent, Input, Limits, Node, Output, Provider, Retry, Workflow
from dagrun.engine.observer import Silent
from dagrun.engine.recovery import request_cancel
from dagrun.engine.session import Options, execute, resume
from dagrun.sandbox.watchdog import EngineSide, run_under_watchdog
from dagrun.store.history import load_state
from dagrun.store.rundir import RunDir, find_run

HERE = Path(__file__).parent
PROJECT = "/home/ada/project"
NEUTRAL = {"project": PROJECT, "host": "build", "boot_id": "00000000-0000-4000-8000-000000000001", "version": "0.1.0"}


def workflow(name: str, *nodes: Node, **fields: object) -> Workflow:
    made = {n.id: n for n in nodes}
    return Workflow(name=name, nodes=made, file=f"{name}.yaml", **fields)  # type: ignore[arg-type]


MIXED = workflow(
    "mixed",
    Node(id="fetch", run='echo fetched; echo "items=3" >> "$DAGRUN_OUTPUT"', outputs={"items": Output()}),
    Node(
        id="count",
        run="echo got $INPUT_N",
        inputs={"n": Input(expression="nodes.fetch.items")},
        outputs={"text": Output(source="stdout")},
    ),
    Node(id="flaky", run="exit 3", retry=Retry(max_attempts=3, delay_s=0.05, backoff=1.0)),
    Node(id="below", run="true", needs=("flaky",)),
    Node(id="slow", run="sleep 60", timeout_s=0.2, grace_s=0.2, continue_on_error=True),
    Node(id="cleanup", run="true", needs=("below",), condition="failure()"),
    Node(id="never", run="true", needs=("fetch",), condition="false"),
    Node(id="missing", run=("no-such-program-here",)),
    Node(id="killed", run="kill -9 $$"),
    Node(id="stray", run="(setsid sleep 60 &) ; sleep 0.05"),
)
READY = workflow(
    "ready",
    *[Node(id=f"n{i}", run="true", needs=(f"n{i - 1}",) if i else ()) for i in range(4)],
    schedule=Schedule.READY,
    outputs={"last": "nodes.n3.status"},
)
FAST = workflow(
    "fast",
    Node(id="bad", run="sleep 0.2; exit 1"),
    Node(id="runs", run="sleep 60"),
    Node(id="late", run="true", needs=("runs",)),
    fail_fast=True,
)
GPU = workflow(
    "gpu",
    *[Node(id=f"g{i}", run="sleep 0.05", resources={"gpu": 1}) for i in range(4)],
    Node(id="report", run="true", needs=("g0", "g1"), retry=Retry(outcomes=frozenset({Outcome.TIMED_OUT}))),
    limits=Limits(parallel=3, resources={"gpu": 2}),
)
CRASH = workflow(
    "crash",
    Node(id="first", run="true"),
    Node(id="second", run="test -e go || sleep 60", needs=("first",)),
    Node(id="once", run="test -e go || sleep 60", needs=("first",), idempotent=False),
    Node(id="third", run="true", needs=("second",)),
)
STOP = workflow(
    "stop",
    Node(id="first", run="true"),
    Node(id="second", run="test -e go || sleep 60", needs=("first",)),
    Node(id="third", run="true", needs=("second",)),
)
RULES = """\
rules:
- {node: research, turn: 1, model: fake/small, error: {kind: rate_limit, retry_after: 50ms, message: slow down}}
- {node: research, turn: 1, text: Let me look, tools: [{Read: {file_path: notes.md}}],
   usage: {input: 900, output: 12, cached: 300}, latency: 20ms}
- {node: research, turn: 2, text: "{}", usage: {input: 1000, output: 40}}
- {node: research, turn: 3, json: {summary: three notes}, usage: {input: 1200, output: 60, reasoning: 20}}
- {node: write, error: {kind: timeout, message: no answer}, try: 1}
- {node: write, text: About three notes, usage: {input: 100, output: 50}}
- {node: refuse, text: I will not, finish: refused, usage: {input: 100, output: 5}}
"""
PRICES = {"fake/small": {"input": "1", "output": "5"}, "fake/big": {"input": "3", "output": "15"}}
SUMMARY: Json = {"type": "object", "required": ["summary"], "properties": {"summary": {"type": "string"}}}
AGENTS = workflow(
    "agents",
    Node(id="research", agent=Agent(prompt="Read the notes", tools=("Read",), max_tokens=512), output_schema=SUMMARY),
    Node(
        id="write",
        inputs={"summary": Input(expression="nodes.research.summary")},
        agent=Agent(prompt="Write about ${{ inputs.summary }}", max_tokens=512),
    ),
    Node(id="refuse", agent=Agent(prompt="Do what may not be done", max_tokens=512), continue_on_error=True),
    Node(
        id="broke",
        needs=("research",),
        agent=Agent(prompt="Go on", max_tokens=512),
        permissions=Permissions(cost_budget=100_000),
    ),
    Node(id="check", needs=("write",), run="echo ok"),
    models={"cheap": ("fake/small", "fake/big")},
    provider=Provider(kind="fake", rules="rules.yaml", rules_text=RULES, prices=PRICES),
    permissions=Permissions(cost_budget=200_000_000),
)


def options(project: str, **fields: object) -> Options:
    return Options(project=project, parallel=3, **fields)  # type: ignore[arg-type]


def session(work: Callable[[EngineSide], int]) -> int:
    """Run `work` under a watchdog in a child of its own; its pid."""
    pid = os.fork()
    if pid == 0:
        os._exit(run_under_watchdog(work))
    return pid


def run(project: str, flow: Workflow, **fields: object) -> None:
    os.waitpid(session(lambda side: execute(flow, options(project, **fields), Silent(), side).exit_code), 0)


def go_on(project: str) -> None:
    Path(project, "go").touch()
    os.waitpid(session(lambda side: resume(find_run(project, "last"), options(project), Silent(), side).exit_code), 0)


def until(project: str, text: str) -> str:
    """Wait until the journal of the newest run holds `text`; the journal's path."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = sorted(Path(project).glob(".dagrun/runs/*/journal.jsonl"))
        if found and text in found[-1].read_text():
            return str(found[-1])
        time.sleep(0.01)
    raise TimeoutError(text)


def mixed(project: str) -> None:
    run(project, MIXED)


def ready(project: str) -> None:
    run(project, READY, params={"topic": "graphs"})


def fast(project: str) -> None:
    run(project, FAST)


def gpu(project: str) -> None:
    run(project, GPU, fail={"report": ["failed", 1]})


def selection(project: str) -> None:
    run(project, READY, only=["n1", "n2"])


def adopted(project: str) -> None:
    run(project, MIXED)
    run(project, MIXED, only=["count"], outputs_of=find_run(project, "last").id)


def crashed(project: str) -> None:
    """Killed while two nodes run; then resumed: one goes on, the other must not."""
    pid = session(lambda side: execute(CRASH, options(project), Silent(), side).exit_code)
    journal = until(project, '"node.spawned","node":"once"')
    until(project, '"node.spawned","node":"second"')
    engine = json.loads(Path(journal).read_text().splitlines()[0][9:])["e"][1]["pid"]
    os.kill(engine, signal.SIGKILL)
    os.waitpid(pid, 0)
    go_on(project)


def interrupted(project: str) -> None:
    pid = session(lambda side: execute(STOP, options(project), Silent(), side).exit_code)
    until(project, '"node.spawned","node":"second"')
    os.kill(pid, signal.SIGTERM)
    os.waitpid(pid, 0)
    go_on(project)


def cancelled(project: str) -> None:
    pid = session(lambda side: execute(STOP, options(project), Silent(), side).exit_code)
    until(project, '"node.spawned","node":"second"')
    request_cancel(find_run(project, "last"), "ada")
    os.waitpid(pid, 0)


def agents(project: str) -> None:
    """Calls that fail, a model that is left, a tool, an answer that does not fit, no money, a refusal."""
    Path(project, "notes.md").write_text("the notes\n")
    run(project, AGENTS)


ALL: tuple[Callable[[str], None], ...] = (
    *(mixed, ready, fast, gpu, selection, adopted),
    *(crashed, interrupted, cancelled, agents),
)


# ---------------------------------------------------------------- neutral and with a valid chain


def neutral(value: object, real: str) -> object:
    """A JSON value without anything that tells of this machine."""
    if isinstance(value, dict):
        out = {k: NEUTRAL.get(k) or neutral(v, real) for k, v in value.items()}
        for name, number in (("pid", 4242), ("ticks", 1000)):
            if name in out:
                out[name] = number
        return out
    if isinstance(value, list):
        return [neutral(v, real) for v in value]
    return value.replace(real, PROJECT) if isinstance(value, str) else value


def rewrite(journal: Path, real: str) -> bytes:
    lines, crc = [], 0
    for line in journal.read_bytes().splitlines():
        body = json.dumps(neutral(json.loads(line[9:]), real), separators=(",", ":")).encode()
        crc = crc32(body, crc)
        lines.append(b"%08x %b\n" % (crc, body))
    return b"".join(lines)


def record(make: Callable[[str], None]) -> None:
    name = f"format{FORMAT}-{make.__name__}"
    os.environ["PATH"] = "/usr/bin:/bin"
    project = os.path.realpath(tempfile.mkdtemp())
    try:
        make(project)
        source = find_run(project, "last")
        folder = Path(tempfile.mkdtemp())
        (folder / "journal.jsonl").write_bytes(rewrite(Path(source.journal), project))
        shutil.copyfile(source.plan, folder / "plan.json")
        expected = trace_to_json(load_state(RunDir(str(folder), source.id)))
        shutil.copyfile(folder / "journal.jsonl", HERE / f"{name}.jsonl")
        shutil.copyfile(folder / "plan.json", HERE / f"{name}.plan.json")
        (HERE / f"{name}.trace.json").write_text(json.dumps(expected, indent=1) + "\n")
        shutil.rmtree(folder)
        print(name, expected["run"]["status"])  # type: ignore[index, call-overload]
    finally:
        shutil.rmtree(project)


if __name__ == "__main__":
    for make in ALL:
        if not sys.argv[1:] or make.__name__ in sys.argv[1:]:
            record(make)
