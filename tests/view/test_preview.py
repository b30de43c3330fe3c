"""The preview of a change, the history as a table and as a document."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dagrun.core.event import PatchAdmitted, PatchProposed, PatchRefused, ProposalDecided
from dagrun.core.names import Json, Outcome
from dagrun.core.patch import Fallback, Insert, Modify, Operation, Patch, Remove, Rerun, Retry, SetLimits
from dagrun.core.permissions import Paths, Permissions
from dagrun.core.replan import Verdict, admit
from dagrun.core.workflow import Agent, Docker, Input, Node, Output, Review
from dagrun.view.draw import draw
from dagrun.view.frame import take
from dagrun.view.preview import (
    Change,
    Cost,
    change_lines,
    change_of,
    file_diff,
    node_changes,
    preview_json,
    preview_text,
)
from dagrun.view.revisions import Entry, action_document, history_document, history_table
from dagrun.view.text import ASCII, Look, Paint

from .story import BEGIN, Story, node, release_notes

HEAD = "run r7k2 (running, pid 4121)"


def changed(story: Story, *operations: Operation) -> Change:
    """What the preview is made of; the patch must be admissible."""
    verdict: Verdict = admit(story.state, Patch(operations=operations), by="ada")
    assert verdict.event is not None, verdict.faults
    return change_of(story.state, verdict)


def text(story: Story, *operations: Operation) -> list[str]:
    return preview_text(changed(story, *operations), HEAD).splitlines()


# ---------------------------------------------------------------- the mock


def test_rights_are_shown_key_by_key_and_unsaid_is_not_none() -> None:
    old = Node(id="a", run="x", permissions=Permissions(network="none", paths=Paths(read=("src",))))
    new = Node(
        id="a",
        run="x",
        isolation="container",
        permissions=Permissions(paths=Paths(read=("src", "doc"), write=()), cost_budget=300_000_000),
        docker=Docker(image="alpine"),
        secrets=("A",),
        secret_files=("B",),
        pids=9,
    )
    assert sorted(node_changes(old, new)) == [
        "docker.image none -> alpine",
        "isolation process -> container",
        "permissions.cost_budget unsaid -> 0.3",
        "permissions.network none -> unsaid",
        "permissions.paths.read src -> src, doc",
        "permissions.paths.write unsaid -> nothing",
        "resources.pids none -> 9",
        "secrets as files none -> B",
        "secrets none -> A",
    ]
    story = Story([node("a")])
    come = text(story, Insert(id="new", node=replace(new, id="new", secrets=(), secret_files=()), after=("a",)))
    assert any("isolation container   with permissions of its own" in line for line in come)
    bare = Node(id="a", run="x", permissions=Permissions(network="any"))
    assert list(node_changes(Node(id="a", run="x"), bare)) == ["permissions.network unsaid -> any"]


def test_an_agent_is_shown_by_its_keys_and_what_it_can_cost() -> None:
    story = Story([Node(id="a", agent=Agent(prompt="Look", tools=("Read",)))], models={"main": ("vendor/model",)})
    old = story.plan.nodes[0]
    assert old.agent is not None
    new = replace(old, agent=replace(old.agent, model="main", max_turns=3))
    assert sorted(node_changes(old, new)) == ["agent.max_turns 10 -> 3", "agent.model none -> main"]
    come = Node(id="b", agent=Agent(prompt="Say more"), isolation="context")
    change = changed(story, Insert(id="b", node=come, after=("a",)))
    for cost, said in (
        (Cost(0), "costs $0.00 now"),
        (Cost(450_000_000, 1_000_000_000), "can cost $0.45 at most"),
        (Cost(450_000_000, 90_000_000), "can cost $0.09 at most, all that is left"),
        (Cost(None, 90_000_000), "can cost $0.09 at most, all that is left"),
        (Cost(None), "what it can cost is unknown: a model has no price"),
    ):
        shown = preview_text(replace(change, cost=cost), HEAD).splitlines()
        assert shown[1] == "+ b  agent: Say more   wave 2   after a"
        assert shown[2].endswith(f"   {said}")
    assert preview_json(replace(change, cost=Cost(450_000_000, 90_000_000)))["cost_usd"] == 0.09
    assert preview_json(replace(change, cost=Cost(None)))["cost_usd"] is None


def test_the_preview_of_the_mock() -> None:
    story = release_notes()
    scan = story.state.plan.workflow.nodes["announce"]
    found = text(
        story,
        Remove(id="lint-docs", strategy="bridge"),
        Modify(id="announce", node=replace(scan, timeout_s=600.0)),
        Insert(id="sign", node=node("sign"), after=("assemble",), before=("publish",)),
    )
    assert found == [
        f"{HEAD}   revision 1 -> 2   10 nodes, 5 -> 6 waves",
        "- lint-docs  failed; what needed it now needs collect-prs",
        "~ assemble   needs lint-docs, draft-notes -> collect-prs, draft-notes",
        "~ announce   timeout 5m -> 10m",
        "~ publish    needs assemble -> sign",
        "+ sign       run true   wave 4   after assemble   before publish",
        "  untouched: 2 done, 2 running, 2 to come   costs $0.00 now",
    ]


def test_a_node_between_attempts_changes_from_its_next_try() -> None:
    story = release_notes()
    old = story.state.plan.workflow.nodes["summarise-prs"]
    (line,) = [x for x in text(story, Modify(id="summarise-prs", node=replace(old, timeout_s=60.0))) if x[0] == "~"]
    assert line == "~ summarise-prs  timeout 5m -> 1m   from its next try"


def test_a_fallback_takes_the_place_and_the_skipped_come_back() -> None:
    story = Story([node("a"), node("b", "a"), node("c", "b")])
    story.start("a").end("a", Outcome.FAILED, exit_code=1).settle().settle().finish()
    found = text(story, Fallback(id="a", node=node("spare")))
    assert "- a           failed; a-fallback takes its place" in found
    assert "+ a-fallback  run true   wave 1   before b" in found
    assert "~ b           needs a -> a-fallback" in found
    assert "+ c           skipped: comes back" in found


def test_what_runs_and_what_is_done_again() -> None:
    story = Story([node("a"), node("b", "a")]).finish()
    found = text(story, Rerun(id="a"))
    assert found[1:3] == ["~ a  completed, now stale: runs again", "~ b  completed, now stale: runs again"]
    assert preview_json(changed(story, Rerun(id="a")))["stale"] == ["a", "b"]

    story = Story([node("a"), node("b", "a")])
    story.start("a")
    old = story.state.plan.workflow.nodes["a"]
    change = changed(story, Modify(id="a", node=replace(old, env={"X": "1"}), cancel_running=True))
    assert "- a  running: it is ended, and runs again" in change_lines(change)
    assert "  warning: ends what runs: a" in preview_text(change, HEAD).splitlines()


def test_removed_with_what_needs_it_and_skipped() -> None:
    story = Story([node("a"), node("b", "a"), node("c", "b"), node("d")])
    found = text(story, Remove(id="b", strategy="cascade"))
    assert [x for x in found if x[0] == "-"] == ["- b", "- c  nothing needed it"]
    found = text(story, Remove(id="b", strategy="skip"))
    assert "- b  skipped: removed by a patch" in found


def test_limits() -> None:
    story = Story([node("a")])
    found = text(story, SetLimits(parallel=2, resources={"gpu": 1.0}))
    assert found[1:3] == ["~ limits  parallel none -> 2", '~ limits  resources none -> {"gpu": 1.0}']


# ---------------------------------------------------------------- fields, untrusted text


def test_each_field_in_the_words_of_a_file() -> None:
    old = node("a", "b", env={"A": "1", "B": "2"}, inputs={"x": Input(expression="nodes.b.v")}, condition="always()")
    new = replace(
        old,
        needs=(),
        env={"A": "1", "C": "3"},
        inputs={"x": Input(expression="nodes.c.v", has_default=True, default="none yet")},
        condition="",
        outputs={"o": Output(source="stdout")},
        grace_s=10.0,
        artifacts=("a", "b"),
    )
    assert sorted(node_changes(old, new)) == [
        "artifacts none -> a, b",
        "env.B 2 -> none",
        "env.C none -> 3",
        "grace 5s -> 10s",
        'if "always()" -> none',
        "inputs.x nodes.b.v -> nodes.c.v, default none yet",
        "needs b -> nothing",
        'outputs.o none -> {"source": "stdout"}',
    ]


def test_text_of_files_moves_no_cursor() -> None:
    story = Story([node("a")])
    evil = node("x", "a", title="t")
    evil = replace(evil, run="echo \x1b[2J\x1b]0;pwned\x07 [bold]red[/bold]\nsecond line")
    shown = preview_text(changed(story, Insert(id="x", node=evil)), HEAD)
    assert "\x1b" not in shown
    assert "[bold]red[/bold]" in shown
    gate = replace(node("g", "a"), run=(), review=Review(message="Publish\x1b[31m?"))
    assert "review: Publish?" in preview_text(changed(story, Insert(id="g", node=gate)), HEAD)


@pytest.mark.parametrize("width", [40, 80])
def test_lines_fit_the_screen(width: int) -> None:
    story = release_notes()
    change = changed(story, Remove(id="lint-docs", strategy="bridge"))
    assert all(len(line) <= width for line in change_lines(change, Look(width=width)))
    coloured = change_lines(change, Look(paint=Paint(True)))
    assert coloured[0].startswith("\x1b[31m- lint-docs")
    assert "..." in "".join(change_lines(change, Look(glyphs=ASCII, width=20)))


def test_a_file_as_a_diff() -> None:
    assert file_diff("a\nb\n", "a\nb\n", "f.yaml") == ""
    assert file_diff("a\nb\n", "a\nc\n", "f.yaml").splitlines() == [
        "--- f.yaml",
        "+++ f.yaml (new)",
        "@@ -1,2 +1,2 @@",
        " a",
        "-b",
        "+c",
    ]
    assert "\x1b[32m+c\x1b[0m" in file_diff("a\n", "c\n", "f", Look(paint=Paint(True)))


# ---------------------------------------------------------------- history

OPERATIONS: tuple[Json, ...] = (
    {"insert": {"id": "scan", "node": {"run": "./scan.sh"}, "after": ["test"], "before": ["deploy"]}},
    {"retry": {"id": "train", "set": {"timeout": "1h"}}},
)


def entries() -> list[Entry]:
    trigger: dict[str, Json] = {"type": "failure", "node": "train", "reason": "Timeout exceeded"}
    admitted = PatchAdmitted(revision=2, base=1, by="ada", trigger=trigger, operations=OPERATIONS)
    refused = PatchRefused(base=1, head=2, by="bob", operations=OPERATIONS[:1], reasons=("there is a node `scan`",))
    proposed = PatchProposed(number=1, base=2, by="node:look", operations=OPERATIONS[1:], why="new commands")
    return [
        Entry(at=BEGIN + 60, event=admitted, adopted_ms=31.4, base_digest="ab"),
        Entry(at=BEGIN + 90, event=refused, base_digest="cd"),
        Entry(at=BEGIN + 120, event=proposed),
        Entry(at=BEGIN + 150, event=ProposalDecided(number=1, decision="reject", by="ada")),
    ]


def test_the_table() -> None:
    created = release_notes().state.created
    rows = history_table(created, BEGIN, entries(), BEGIN + 180, Look(width=200)).splitlines()
    assert [" ".join(row.split()) for row in rows] == [
        "REVISION WHEN BY OUTCOME TRIGGER WHAT",
        "1 3m ago started release-notes from flow.yaml",
        "2 2m ago ada adopted in 31 ms failure train: Timeout exceeded insert scan, retry train",
        "1m ago bob refused on 2 insert scan: there is a node `scan`",
        "1m ago node:look proposal 1 retry train (new commands)",
        "30s ago ada rejected proposal 1",
    ]


def test_the_document() -> None:
    created = release_notes().state.created
    history = history_document(created, BEGIN, entries())["modificationHistory"]
    assert isinstance(history, dict)
    assert (history["dagId"], history["originalVersion"], history["currentVersion"]) == ("release-notes", 1, 2)
    modifications = history["modifications"]
    assert isinstance(modifications, list)
    assert modifications[1] == {
        "version": 2,
        "timestamp": "2023-11-14T22:14:20.000Z",
        "trigger": {"type": "failure", "nodeId": "train", "reason": "Timeout exceeded"},
        "action": {"type": "retry", "nodeId": "train", "modifications": {"timeout": "1h"}},
        "base": 1,
        "baseDigest": "ab",
        "actor": "ada",
        "outcome": "adopted",
        "adoptedMs": 31.4,
    }
    refused, proposals = history["refused"], history["proposals"]
    assert isinstance(refused, list)
    assert isinstance(proposals, list)
    assert (len(refused), len(proposals)) == (1, 2)


@pytest.mark.parametrize(
    ("kind", "body", "action"),
    [
        (
            "insert",
            {"id": "s", "node": {"run": "x"}, "after": ["a"], "before": ["b"]},
            {
                "type": "insert",
                "node": {"id": "s", "run": "x"},
                "position": {"insertAfter": ["a"], "insertBefore": ["b"]},
            },
        ),
        ("remove", {"id": "a", "strategy": "skip"}, {"type": "remove", "nodeId": "a", "strategy": "skip"}),
        ("fallback", {"id": "a", "with": "t"}, {"type": "fallback", "failedNodeId": "a", "fallback": "t"}),
        (
            "rewire",
            {"id": "a", "old": ["b"], "new": ["c"]},
            {"type": "rewire", "rewire": {"nodeId": "a", "oldDependencies": ["b"], "newDependencies": ["c"]}},
        ),
        ("retry", {"id": "a"}, {"type": "retry", "nodeId": "a", "modifications": {}}),
        ("set_limits", {"parallel": 2}, {"type": "set_limits", "parallel": 2}),
    ],
)
def test_actions_of_the_seed(kind: str, body: dict[str, Json], action: dict[str, Json]) -> None:
    assert action_document(kind, body) == action


def test_a_retry_is_shown() -> None:
    story = release_notes()
    assert "~ lint-docs  failed: runs again" in text(story, Retry(id="lint-docs"))


# ---------------------------------------------------------------- the live table


def test_the_live_table_marks_what_a_revision_changed() -> None:
    story = release_notes()
    before = take(story.state, 110.0, 10.0, 20, {}, lambda i: b"")
    assert (before.revision, before.changed) == (1, False)
    verdict = admit(story.state, Patch(operations=(Retry(id="lint-docs"),)), by="ada")
    assert verdict.event is not None
    story.tell(verdict.event).start("lint-docs")
    after = take(story.state, 110.0, 10.0, 20, {}, lambda i: b"")
    assert [r.node for r in after.rows if r.node.endswith("*")] == ["lint-docs*"]
    shown = draw(after, Look(), 100, 24)
    assert any(line.startswith("● lint-docs*") for line in shown)
    assert shown[-1].endswith("revision 2, * changed")
