"""SIGKILL at every named point and after every kind of event, then resume: as if it had not happened.

What must hold: what was journaled as completed does not run again; all else runs; nothing is alive
between the two; the run ends as it does without the kill. A new fault point or event type without
a kill here fails the last two tests.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from dagrun.core.event import (
    EVENT_TYPES,
    AttemptFinished,
    CallEnded,
    CallReserved,
    EscalationFailed,
    Event,
    PatchAdmitted,
    PatchProposed,
    PatchRefused,
    ProposalDecided,
    ReviewDecided,
    ReviewRequested,
    ToolEnded,
    event_type,
)
from dagrun.core.names import Outcome
from dagrun.store.fault import POINTS

from .kills import WALKED, next_event, passes
from .space import Space

KILLED = 128 + signal.SIGKILL

# Six nodes: a value of more than 4 KiB, a retry, artifacts, a timeout, a skip, and inputs of all.
SIX = """\
nodes:
  big:
    run: echo big >> ran; printf '%5000d' 7
    outputs: {text: {from: stdout}}
  flaky:
    run: echo flaky >> ran; test "$DAGRUN_ATTEMPT" -ge 2 && echo "n=3" >> "$DAGRUN_OUTPUT"
    retry: {max_attempts: 4, delay: 10ms, jitter: 0}
    outputs: {n: {}}
  art:
    inputs: {text: nodes.big.text}
    run: echo art >> ran; printf %s "$INPUT_TEXT" | tail -c 3 > art.txt
    artifacts: [art.txt]
  slow:
    run: echo slow >> ran; sleep 100
    timeout: 60ms
    continue_on_error: true
  never:
    needs: [big]
    if: "'a' == 'b'"
    run: echo never >> ran
  last:
    needs: [art, slow]
    inputs: {n: nodes.flaky.n}
    run: echo last >> ran; (setsid sleep 100 &); echo "got $INPUT_N"
    outputs: {all: {from: stdout}}
outputs: {all: nodes.last.all}
"""
FAST = """\
fail_fast: true
nodes:
  bad: {run: 'false'}
  later: {run: 'true', needs: [other]}
  other: {run: sleep 100}
"""
STOPPED = """\
limits: {timeout: 100ms}
nodes:
  long: {run: 'test -e go || sleep 100'}
"""
NOTHING = """\
nodes:
  a: {run: touch ran, if: "'a' == 'b'"}
"""
# All that changes a graph from inside: a fallback, a patch that does not help, one that waits for a human,
# one that is admitted, one that is refused; and a question that nobody answers while another node runs.
CHANGING = """\
limits: {parallel: 1}
templates:
  spare:
    run: echo "$DAGRUN_NODE" >> ran; echo n=5 >> "$DAGRUN_OUTPUT"
    outputs: {n: {}}
  more: {run: echo "$DAGRUN_NODE" >> ran}
nodes:
  broken:
    run: exit 3
    outputs: {n: {}}
    on_failure: {fallback: spare}
  user:
    inputs: {n: nodes.broken.n}
    run: echo user >> ran; echo "got $INPUT_N"
    outputs: {all: {from: stdout}}
  hopeless:
    run: exit 4
    continue_on_error: true
    on_failure: {replan: useless.yaml}
  stranger: {run: echo stranger >> ran; cp stranger.yaml "$DAGRUN_PATCH"}
  known: {run: echo known >> ran; cp known.yaml "$DAGRUN_PATCH"}
  liar: {run: echo liar >> ran; cp liar.yaml "$DAGRUN_PATCH"}
  gate:
    needs: [user, known]
    review: {message: go on?, timeout: 50ms, on_timeout: approve}
  linger: {needs: [user, known], run: echo linger >> ran; sleep 0.3}
  last: {needs: [gate, linger], run: echo last >> ran}
outputs: {all: nodes.user.all}
"""
PATCHES = {
    "useless.yaml": "operations: [{modify: {id: last, set: {timeout: 10s}}}]",
    "stranger.yaml": "operations: [{insert: {id: new, node: {run: echo new >> ran}, after: [stranger]}}]",
    "known.yaml": """\
operations:
  - insert: {id: known-more, node: {run: echo "$DAGRUN_NODE" >> ran}, after: [known]}
""",
    "liar.yaml": "operations: [{remove: {id: nobody, strategy: skip}}]",
}
ADOPTING = """\
nodes:
  a: {run: echo a >> ran; echo 5, outputs: {n: {from: stdout}}}
  b: {run: 'echo "b $INPUT_N" >> ran', inputs: {n: nodes.a.n}}
"""
# An agent that lists the tools of a server, calls one, runs a command, and says what came of it.
ASKING = """\
provider: {kind: fake, rules: rules.yaml, prices: {fake/one: {input: "1", output: "10"}}}
models: {first: [fake/one]}
permissions: {cost_budget: 1}
mcp_servers: {sums: {command: [/usr/bin/python3, server.py]}}
nodes:
  ask:
    agent: {prompt: Work, tools: [Bash, mcp__sums__add], mcp: [sums]}
    permissions: {paths: {read: [.], write: [out]}}
  last: {inputs: {text: nodes.ask.text}, run: 'echo "$INPUT_TEXT" >> ran'}
outputs: {all: nodes.ask.text}
"""
RULES = """\
rules:
  - {turn: 1, tools: [{mcp__sums__add: {a: 2, b: 3}}]}
  - {turn: 2, last: "5", tools: [{Bash: {command: "echo tool >> out/ran; echo six"}}]}
  - {turn: 3, last: six, text: five and six}
"""
SERVER = """\
import json, sys
TOOL = {"name": "add", "inputSchema": {"type": "object", "properties": {"a": {}, "b": {}}}}
for line in sys.stdin:
    said = json.loads(line)
    if "id" in said:
        given = said.get("params", {})
        answers = {
            "initialize": {
                "protocolVersion": given.get("protocolVersion"),
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "sums", "version": "1"},
            },
            "tools/list": {"tools": [TOOL]},
            "tools/call": {"content": [{"type": "text", "text": str(sum(given.get("arguments", {}).values()))}]},
        }
        print(json.dumps({"jsonrpc": "2.0", "id": said["id"], "result": answers[said["method"]]}), flush=True)
"""


class End(NamedTuple):
    """What a run comes to, however often it was killed on the way."""

    code: int
    status: str
    nodes: dict[str, str]
    outputs: object
    values: dict[str, object]
    artifacts: object


def end_of(space: Space, code: int) -> End:
    state = space.state()
    return End(
        code,
        str(state.status),
        space.statuses(),
        state.ended.outputs if state.ended else None,
        {state.plan.ids[i]: refs for i, refs in state.outputs.items()},
        [e.artifacts for e in space.events() if isinstance(e, AttemptFinished) and e.artifacts],
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> End:
    """How the six nodes end without a kill."""
    space = Space(tmp_path_factory.mktemp("undisturbed"))
    space.flow(SIX)
    done = space.execute()
    assert done.code == 0, done
    found = end_of(space, done.code)
    assert space.outcomes("flaky") == ["failed", "completed"]
    assert space.outcomes("slow") == ["timed_out"]
    space.close()
    return found


def completed(events: list[Event]) -> list[str]:
    return [e.node for e in events if isinstance(e, AttemptFinished) and e.outcome is Outcome.COMPLETED]


def kill(space: Space, fault: str, *args: str) -> list[Event] | None:
    """Execute with a fault; the journal at the moment of the kill, or None if it never struck."""
    done = space.run(*(args or ("execute", "flow.yaml")), env={"DAGRUN_FAULT": fault})
    space.check()
    if done.code != KILLED:
        return None
    assert "dagrun was killed (signal 9); nothing it started is alive" in done.err
    return space.events()


def go_on(space: Space) -> int:
    """Resume what was killed; a run that had not begun to exist is simply executed again."""
    began = bool(space.records())
    done = space.run("resume", space.last().id) if began else space.execute()
    space.check()
    return done.code


def converges(space: Space, undisturbed: End, before: list[Event]) -> None:
    """After a kill with this journal, the rest runs, what was completed does not, and all ends well."""
    ran = Counter(space.lines("ran"))
    code = go_on(space)
    assert end_of(space, code) == undisturbed
    nothing_twice(space, before, ran)
    assert Path(space.path / "art.txt").read_text() == "  7"
    assert "never" not in space.lines("ran")
    # a kill after the very last event leaves open slots, but nothing in them
    assert not [p.name for p in Path(space.last().nodes).iterdir() if p.name.startswith(".slot") and p.stat().st_size]


def nothing_twice(space: Space, before: list[Event], ran: Counter[str]) -> None:
    """No node completed twice, and none of `before`'s completed ones ran after `ran` was counted."""
    after = Counter(space.lines("ran"))
    for node in completed(before):
        assert after[node] == ran[node], f"{node} was completed and ran again"
    assert Counter(completed(space.events())).most_common(1)[0][1] == 1, "a node completed twice"


struck_points: set[str] = set()
struck_events: set[str] = set()


def fresh(tmp_path: Path, flow: str) -> Iterator[Space]:
    """A new project a time, each checked and closed."""
    number = 0
    while True:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        space = Space(folder)
        space.flow(flow)
        try:
            yield space
            space.check()
        finally:  # also of the last one, after which nobody asks for more
            space.close()


def every(tmp_path: Path, undisturbed: End, point: str, which: Iterable[int]) -> int:
    """Kill at these passes of a point; how often it struck."""
    struck = 0
    for n, space in zip(which, fresh(tmp_path, SIX)):
        before = kill(space, f"{point}:{n}:kill")
        if before is None:
            assert end_of(space, 0) == undisturbed
            break
        struck += 1
        struck_points.add(point)
        converges(space, undisturbed, before)
    return struck


FEW = (1, 2, 5)


@pytest.mark.parametrize("point", WALKED)
def test_a_kill_at_a_point(tmp_path: Path, undisturbed: End, point: str) -> None:
    assert every(tmp_path, undisturbed, point, FEW), f"{point} was never passed"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("point", WALKED)
def test_every_kill_at_a_point(tmp_path: Path, undisturbed: End, point: str) -> None:
    struck = every(tmp_path, undisturbed, point, passes(point, FEW))
    assert struck > 5 or point not in ("journal.before_write", "journal.mid_write")


def test_a_kill_after_every_event(tmp_path: Path, undisturbed: End) -> None:
    n = 1
    for space in fresh(tmp_path, SIX):
        before = kill(space, f"engine.after_event:{n}:kill")
        if before is None:
            break
        n = next_event(n, space.records())
        struck_points.add("engine.after_event")
        struck_events.update(last_types(space))
        converges(space, undisturbed, before)
    assert n > 15


def last_types(space: Space) -> set[str]:
    """The types in the last record. After which of its events the kill came leaves no trace, and which
    event is the n-th depends on how many commands lived long enough for a node.spawned."""
    return {event_type(e) for e in space.records()[-1]}


@pytest.mark.parametrize(
    ("flow", "wanted"), [(FAST, "node.cancelled"), (STOPPED, "stop.requested"), (NOTHING, "run.ended")]
)
def test_a_kill_after_an_event_that_comes_late_or_only_elsewhere(tmp_path: Path, flow: str, wanted: str) -> None:
    n = 1
    for space in fresh(tmp_path, flow):
        before = kill(space, f"engine.after_event:{n}:kill")
        assert before is not None, f"{wanted} was never struck"
        n = next_event(n, space.records())
        found = last_types(space)
        struck_events.update(found)
        if wanted not in found:
            continue
        space.write("go", "")
        done = space.run("resume", space.last().id)
        if wanted == "run.ended":
            assert (done.code, space.statuses()) == (0, {"a": "skipped"})
        elif wanted == "stop.requested":  # a new engine has the whole time again
            assert (done.code, space.statuses()) == (0, {"long": "completed"})
        else:
            assert (done.code, space.statuses()) == (1, {"bad": "failed", "later": "cancelled", "other": "cancelled"})
        space.check()
        break


def test_a_kill_after_the_first_record_with_adopted_outputs(space: Space) -> None:
    space.flow(ADOPTING)
    assert space.execute().code == 0
    first = space.last().id
    before = kill(space, "journal.after_write:1:kill", "execute", "flow.yaml", "--only", "b", "--outputs-of", first)
    assert before is not None
    assert [event_type(e) for e in before] == ["run.created", "engine.attached", "node.adopted"]
    struck_events.update(map(event_type, before))
    assert space.last().id != first
    assert go_on(space) == 0
    assert space.lines("ran") == ["a", "b 5", "b 5"]
    assert space.statuses() == {"a": "completed", "b": "completed"}


@pytest.mark.parametrize("n", [1, 2, 4])
def test_kills_of_the_resume_too(tmp_path: Path, undisturbed: End, n: int) -> None:
    for space in fresh(tmp_path, SIX):
        assert kill(space, "engine.after_event:4:kill") is not None
        run = space.last().id
        for point in ("journal.before_write", "journal.mid_write", "engine.before_commit"):
            kill(space, f"{point}:{n}:kill", "resume", run)
        converges(space, undisturbed, space.events())
        break


# ---------------------------------------------------------------- an agent at work


def asking(tmp_path: Path) -> Iterator[Space]:
    for space in fresh(tmp_path, ASKING):
        space.write("rules.yaml", RULES)
        space.write("server.py", SERVER)
        (space.path / "out").mkdir()
        yield space


def test_a_kill_after_every_event_of_an_agent(tmp_path: Path) -> None:
    spaces = asking(tmp_path)
    space = next(spaces)
    assert space.execute().code == 0, space.finish("ask")
    calm = end_of(space, 0)
    struck: set[str] = set()
    n = 1
    for space in spaces:
        before = kill(space, f"engine.after_event:{n}:kill")
        if before is None:
            break
        n = next_event(n, space.records())
        struck.update(last_types(space))
        used = {e.number for e in before if isinstance(e, ToolEnded)}
        ran = space.lines("out/ran")
        assert end_of(space, go_on(space)) == calm
        assert space.lines("ran") in (["five and six"], ["five and six"] * 2)
        assert space.lines("out/ran") == (ran if 2 in used else [*ran, "tool"])
        kept = sum(isinstance(e, CallEnded) for e in before)
        cut = sum(isinstance(e, CallReserved) for e in before) - kept
        assert sum(isinstance(e, CallReserved) and bool(e.scopes) for e in space.events()) == 3 + cut
    assert struck >= {"tools.listed", "call.reserved", "call.ended", "tool.ended"}
    struck_events.update(struck)


# ---------------------------------------------------------------- a graph that changes while it runs


class Changed(NamedTuple):
    """What a run with changes comes to: its end, its head, and each verdict and answer on the way."""

    end: End
    head: tuple[int, int]
    story: list[str]


def changed(space: Space, code: int) -> Changed:
    state = space.state()
    return Changed(end_of(space, code), (state.plan.revision, state.adopted_revision), sorted(story(space.events())))


def story(events: list[Event]) -> list[str]:
    """Every change and question in words: without times, and without what depends on the order."""
    found = []
    for event in events:
        match event:
            case PatchAdmitted(by=by, operations=operations):
                found.append(f"{by} changed {operations}")
            case PatchRefused(by=by, reasons=reasons):
                found.append(f"{by} was refused: {reasons}")
            case PatchProposed(by=by, number=number):
                found.append(f"{by} proposed {number}")
            case ProposalDecided(number=number, decision=decision):
                found.append(f"{decision} proposal {number}")
            case EscalationFailed(node=node, step=step, text=text):
                found.append(f"{step} of {node}: {text}")
            case ReviewRequested(node=node, message=message):
                found.append(f"{node} asks {message}")
            case ReviewDecided(node=node, decision=decision):
                found.append(f"{node}: {decision}")
            case _:
                pass
    return found


def changing(tmp_path: Path) -> Iterator[Space]:
    for space in fresh(tmp_path, CHANGING):
        for name, text in PATCHES.items():
            space.write(name, text)
        yield space


def approve(space: Space, *args: str, env: dict[str, str] | None = None) -> int:
    """Approve the one proposal that is left, and go on."""
    return space.run("review", "1", "--approve", *args, env=env).code


class Calm(NamedTuple):
    """A run that nobody killed: what it came to, and for each line of its story which event that was."""

    end: Changed
    places: dict[str, int]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Calm:
    """How the changing graph ends without a kill."""
    space = next(changing(tmp_path_factory.mktemp("calm")))
    assert space.execute().code == 4
    waiting = space.state()
    assert (list(waiting.proposals), waiting.reviews) == ([1], {})
    mine = [event for record in space.records()[1:] for event in record]
    places = {line: n for n, event in enumerate(mine, start=1) for line in story([event])}
    found = changed(space, approve(space))
    assert found.end.code == 0
    assert {n for n, s in found.end.nodes.items() if s != "completed"} == {"broken", "hopeless"}
    assert sorted(space.lines("ran")) == sorted(found.end.nodes.keys() - {"broken", "hopeless", "gate"})
    assert (len(found.story), len(places)) == (10, 8)  # the approval is two more
    assert "gate: timed_out" in places
    space.close()
    return Calm(found, places)


def aim(spaces: Iterator[Space], line: str, n: int) -> tuple[Space, list[Event]]:
    """Kill right after the record with this line of the story, which is about the n-th event."""
    for _ in range(20):
        space = next(spaces)
        before = kill(space, f"engine.after_event:{n}:kill")
        if before is not None and line in story(space.records()[-1]):
            return space, before
        n += -1 if before is None or line in story(before) else 1
    raise AssertionError(f"never struck: {line}")


def goes_on_as(space: Space, calm: Calm, before: list[Event]) -> None:
    """After a kill with this journal: resumed, it waits for a human, and approved it ends as ever."""
    ran = Counter(space.lines("ran"))
    assert go_on(space) == 4
    assert changed(space, approve(space)) == calm.end
    nothing_twice(space, before, ran)


def test_a_kill_after_every_change_of_a_graph(tmp_path: Path, calm: Calm) -> None:
    spaces = changing(tmp_path)
    struck: set[str] = set()
    for line, n in calm.places.items():
        if line not in struck:
            space, before = aim(spaces, line, n)
            struck.update(story(space.records()[-1]))
            struck_events.update(last_types(space))
            goes_on_as(space, calm, before)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("point", ["engine.before_commit", "journal.mid_write"])
def test_every_kill_of_a_changing_graph(tmp_path: Path, calm: Calm, point: str) -> None:
    for n, space in zip(passes(point), changing(tmp_path)):
        before = kill(space, f"{point}:{n}:kill")
        if before is None:
            break
        goes_on_as(space, calm, before)
    assert n > 10


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_kill_after_every_event_of_a_changing_graph(tmp_path: Path, calm: Calm) -> None:
    n = 1
    for space in changing(tmp_path):
        before = kill(space, f"engine.after_event:{n}:kill")
        if before is None:
            break
        n = next_event(n, space.records())
        goes_on_as(space, calm, before)
    assert n > 10


@pytest.mark.parametrize("point", ["journal.before_write", "journal.mid_write", "journal.after_write"])
def test_a_kill_of_who_approves_a_proposal(tmp_path: Path, calm: Calm, point: str) -> None:
    space = next(changing(tmp_path))
    assert space.execute().code == 4
    before, ran = space.events(), Counter(space.lines("ran"))
    assert approve(space, "--no-resume", env={"DAGRUN_FAULT": f"{point}:1:kill"}) == -signal.SIGKILL
    new = [event_type(e) for e in space.events()[len(before) :]]
    struck_events.update(new)
    if point == "journal.after_write":
        assert sorted(new) == ["patch.admitted", "proposal.decided"]
        assert changed(space, go_on(space)) == calm.end
    else:
        assert new == []
        assert changed(space, approve(space)) == calm.end
    nothing_twice(space, before, ran)
    space.close()


# ---------------------------------------------------------------- nothing was left out


def test_every_fault_point_was_struck() -> None:
    assert struck_points == set(POINTS)


def test_every_event_type_was_followed_by_a_kill() -> None:
    assert struck_events == set(EVENT_TYPES)
