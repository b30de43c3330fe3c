"""What a failed node is told that it may do, and what to type to give it more."""

from __future__ import annotations

import pytest

from dagrun.core.event import AttemptFinished, NodeStarted, Warned
from dagrun.core.names import Outcome
from dagrun.core.permissions import Paths, Permissions
from dagrun.core.workflow import Agent, Docker, Node
from dagrun.view.confined import held_to, notes, ways_on
from dagrun.view.detail import node_detail
from dagrun.view.summary import end_summary
from dagrun.view.tables import trace_table
from dagrun.view.text import Look

from .story import Story, node

SRC = Permissions(paths=Paths(read=("src",), write=("out",)), network="none")
HOSTS = Permissions(network=("a.com", "b.com:443"))


def failed(
    made: Node, *, outcome: Outcome = Outcome.FAILED, sandbox: str = "bubblewrap", run: Permissions | None = None,
    **kw: object,
) -> Story:  # fmt: skip
    story = Story([made], permissions=run)
    story.tell(NodeStarted(node=made.id, attempt=1, sandbox=sandbox))
    event = AttemptFinished(node=made.id, attempt=1, outcome=outcome, duration_ms=5, **{"exit_code": 1, **kw})  # type: ignore[arg-type]
    return story.tell(event).finish()


def said(made: Node, output: bytes, **kw: object) -> str:
    held = held_to(failed(made, **kw).state, 0, output)  # type: ignore[arg-type]
    return held.text if held else ""


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (b"cat: data/a: No such file or directory", "of your files it sees src and out (permissions.paths.read)"),
        (b"fatal: not a git repository (or any parent)", "of your files it sees src and out (permissions.paths.read)"),
        (b"sh: 1: cannot create src/b: Read-only file system", "it may write out (permissions.paths.write)"),
        (b"sh: 1: cannot create data/b: Directory nonexistent", "it may write out (permissions.paths.write)"),
        (b"wget: Temporary failure in name resolution", "it has no network (permissions.network)"),
        (b"connect: Network is unreachable", "it has no network (permissions.network)"),
        (b"unshare: Operation not permitted", "closed at isolation process: network sockets, namespaces"),
        (b"Error: EACCES", "of your files it sees src and out (permissions.paths.read); it may write out"),
        (b"1 test failed", ""),
        (b"Read-only file system\n" + b"and then\n" * 9, ""),
        (b"", ""),
    ],
)
def test_what_the_last_lines_speak_for(output: bytes, told: str) -> None:
    got = said(node("a", permissions=SRC), output)
    assert got.startswith(told)
    assert bool(got) == bool(told)


@pytest.mark.parametrize("output", [b"No such file or directory", b"Network is unreachable", b"Permission denied"])
def test_a_plain_node_is_told_nothing(output: bytes) -> None:
    assert said(node("a"), output, sandbox="") == ""


def test_a_node_that_may_use_any_network_is_not_told_of_it() -> None:
    assert said(node("a", permissions=Permissions(network="any")), b"Network is unreachable") == ""


def test_files_that_are_not_held_are_not_told_of() -> None:
    assert said(node("a", permissions=Permissions(network="none")), b"No such file or directory") == ""
    assert "git hooks" in said(node("a", permissions=Permissions(network="none")), b"Read-only file system")


def test_the_scope_above_counts() -> None:
    assert said(node("a"), b"No such file", run=SRC).startswith("of your files it sees src and out")
    many = Permissions(paths=Paths(read=tuple("abcdef"), deny=(".env",)))
    told = said(node("a"), b"No such file", run=many)
    assert told.startswith("of your files it sees a, b, c and 3 more, without .env")
    whole = Permissions(paths=Paths())
    assert said(node("a"), b"No such file", run=whole).startswith("of your files it sees the project (")


def test_a_list_of_hosts() -> None:
    told = said(node("a", permissions=HOSTS), b"Network is unreachable")
    assert told == "it reaches only a.com and b.com:443, and only by the proxy of $HTTPS_PROXY (permissions.network)"


def test_programs_of_an_image() -> None:
    made = node("a", isolation="container", docker=Docker(image="alpine"), permissions=SRC)
    told = said(made, b"nosuch: not found", sandbox="docker", exit_code=127)
    assert told == "its programs are those of the image alpine and of src and out"


@pytest.mark.parametrize(
    ("own", "output", "told"),
    [
        ({"file_size": 1 << 20}, b"OSError: [Errno 27] File too large", "may have 1Mi (resources.file_size)"),
        ({"resources": {"memory": 64 << 20}}, b"MemoryError", "64Mi of memory (resources.memory)"),
        ({"pids": 8}, b"RuntimeError: can't start new thread", "8 processes and threads (resources.pids)"),
    ],
)
def test_programs_that_take_a_ceiling_for_their_own_error(own: dict[str, object], output: bytes, told: str) -> None:
    held = held_to(failed(node("a", **own), sandbox="").state, 0, output)
    assert held is not None
    assert (held.by, held.text.endswith(told)) == ("limited", True)
    assert said(node("a"), output, sandbox="") == ""


def test_only_a_command_that_failed_by_itself() -> None:
    made = node("a", permissions=SRC)
    for outcome in (Outcome.DENIED, Outcome.TIMED_OUT, Outcome.OVER_LIMIT):
        assert said(made, b"No such file", outcome=outcome) == ""
    assert held_to(Story([made]).state, 0, b"No such file") is None


def test_what_to_type_where_a_limit_was_reached() -> None:
    made = node("a", file_size=1 << 20, pids=3, resources={"memory": 64 << 20, "cpu": 1})
    for limit, more in (("file_size", "2Mi"), ("pids", "6"), ("memory", "128Mi"), ("output", "512Mi")):
        story = failed(made, outcome=Outcome.OVER_LIMIT, limit=limit)
        assert f"dagrun replan r7k2 --retry 'a:resources.{limit}={more}' --resume" in end_summary(story.state)
    assert ways_on(failed(made, outcome=Outcome.OVER_LIMIT, limit="other").state, 0) == []


def test_what_to_type_where_an_agent_met_its_own_limit() -> None:
    made = Node(id="a", agent=Agent(prompt="x", max_turns=3), isolation="context")
    for outcome, limit, more in (
        (Outcome.OVER_LIMIT, "turns", "max_turns=6"),
        (Outcome.TRUNCATED, "", "max_tokens=8192"),
    ):
        ways = ways_on(failed(made, sandbox="", outcome=outcome, limit=limit).state, 0)
        assert ways == [("more of it? try again", f"dagrun replan r7k2 --retry a:{more} --resume")]
    assert ways_on(failed(made, sandbox="", outcome=Outcome.REFUSED).state, 0) == []


def test_what_to_type_where_more_has_to_be_granted() -> None:
    made = node("a", permissions=SRC)
    for outcome in (Outcome.FAILED, Outcome.DENIED):
        commands = [command for _, command in ways_on(failed(made, outcome=outcome).state, 0)]
        assert commands == ["dagrun plan r7k2 --permissions", "dagrun execute flow.yaml --from a --outputs-of r7k2"]
    assert ways_on(failed(node("a"), sandbox="").state, 0) == []


def test_warnings_of_a_node_are_shown_with_it() -> None:
    story = failed(node("a", permissions=HOSTS))
    story.tell(Warned(text="refused: c.com:80 \x1b[31m", node="a"), Warned(text="of the run"))
    story.tell(Warned(text="x", node="b"))
    assert notes(story.state, 0, b"") == ["  warning: refused: c.com:80 "]
    assert "  warning    refused: c.com:80" in node_detail(story.state, 0)
    table = trace_table(story.state).splitlines()
    assert "warning: a: refused: c.com:80 " in table
    assert "warning: of the run" in table


def test_nothing_is_cut_in_a_narrow_terminal() -> None:
    story = failed(node("a", permissions=SRC), error="denied: " + "long " * 40 + "end")
    look = Look(width=40)
    for text in (
        end_summary(story.state, read=lambda i: b"No such file or directory", look=look),
        node_detail(story.state, 0, look, read=lambda i: b"No such file or directory"),
    ):
        words = " ".join(text.split())
        assert "of your files it sees src and out (permissions.paths.read)" in words
        assert "long end" in words
