"""MCP servers over HTTP, end to end: a real engine, its broker, and a real server on loopback; models by rules."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from dagrun.agent.live import Live
from dagrun.agent.mcp import definitions, digest
from dagrun.core.event import CallReserved, ToolsListed
from dagrun.core.names import Outcome
from dagrun.core.workflow import McpServer
from dagrun.engine import mcpremote
from dagrun.engine.mcpremote import Desk, Remote, refusal
from dagrun.engine.toolends import Broken, Returned
from dagrun.sandbox import procs
from dagrun.store.context import ContextStore
from tests.agent.mcp_http import Server, serving
from tests.agent.mcp_server import TOOLS
from tests.agent.openai_server import Behaviour
from tests.agent.openai_server import Server as Vendor
from tests.agent.talking import need_litellm

from .asking import agents, bought, output, requests, uses
from .seats import WAIT_S, Rig
from .space import Process, Space

TOKEN = "tok-canary-5e6f7a8b9c"
SECRET = f"Bearer {TOKEN}"
ENV = {"WEB_TOKEN": SECRET}
TWO = "- {turn: 1, tools: [{mcp__web__echo: {text: hello}}]}\n- {turn: 2, text: done}"


@pytest.fixture
def web() -> Iterator[Server]:
    with serving() as made:
        yield made


def host(server: Server) -> str:
    return f"127.0.0.1:{server.server_address[1]}"


def flow(server: Server, *, more: str = "", pin: str = "", tools: str = "mcp__web__*", **node: str) -> str:
    """A workflow whose node `a` may use the server `web`; `node` are further keys of it."""
    keys = "".join(f", {key}: {value}" for key, value in node.items())
    network = "" if "permissions" in node else f", permissions: {{network: ['{host(server)}']}}"
    return (
        "secrets: {TOKEN: {env: WEB_TOKEN}}\n"
        f"mcp_servers: {{web: {{url: '{server.url}', headers: {{Authorization: TOKEN}}{pin}}}}}\n"
        "nodes:\n"
        f"  a: {{agent: {{prompt: Work, mcp: [web], tools: [{tools}]}}{network}{keys}}}\n" + more
    )


def listings(space: Space) -> list[ToolsListed]:
    return [e for e in space.events() if isinstance(e, ToolsListed)]


def brokers(process: Process) -> list[int]:
    """The brokers of a run at work."""
    found = []
    for pid in procs.children(process.engine()):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"dagrun.agent.broker" in line:
            found.append(pid)
    return found


def ended(pid: int) -> bool:
    """Wait for the end of a process that is none of ours."""
    end = time.monotonic() + WAIT_S
    while (who := procs.stat(pid)) is not None and not procs.is_dead(who):
        if time.monotonic() > end:
            return False
        select.select([], [], [], 0.005)
    return True


def calling(space: Space, server: Server) -> Process:
    """A run that waits for the result of a tool."""
    process = space.start("execute", "flow.yaml", env=ENV)
    process.until(lambda: "tools/call" in server.methods(), "the tool is called")
    return process


# ---------------------------------------------------------------- what it gives


@pytest.mark.parametrize("modes", [[], ["sse"], ["pages"], ["sse", "open"]], ids=str)
def test_tools_are_listed_and_called(space: Space, web: Server, modes: list[str]) -> None:
    web.modes = modes
    agents(space, flow(web, tools="mcp__web__echo, mcp__web__fail"), TWO)
    done = space.execute(env=ENV)
    assert done.code == 0, done
    assert output(space, "a") == "done"
    (use,) = uses(space)
    assert (use.name, use.ok, use.arguments, use.text) == ("mcp__web__echo", True, {"text": "hello"}, "hello")
    (listing,) = listings(space)
    known = list(definitions("web", TOOLS)[0])
    assert (listing.server, listing.digest) == ("web", digest(known))
    assert ContextStore(space.last()).get(listing.tools) == known
    offered = [tool["function"]["name"] for tool in cast(Any, requests(space, "a")[0].tools)]
    assert offered == ["mcp__web__echo", "mcp__web__fail"]  # of ten
    assert {headers["authorization"] for _, headers, _ in web.seen} == {SECRET}
    assert web.methods()[-1] == "DELETE"
    assert web.methods().count("initialize") == 1


def test_a_tool_that_is_not_permitted_is_not_called(space: Space, web: Server) -> None:
    agents(
        space,
        "permissions: {tools: [mcp__web__echo]}\n" + flow(web, tools="mcp__web__echo"),
        "- {turn: 1, tools: [{mcp__web__fail: {}}]}\n- {turn: 2, last: there is no tool .mcp__web__fail, text: done}",
    )
    assert space.execute(env=ENV).code == 0, space.finish("a")
    assert "tools/call" not in web.methods()


def test_many_agents_share_one_broker(space: Space, web: Server) -> None:
    web.modes = ["sse"]
    more = "".join(
        f"  b{k}: {{agent: {{prompt: 'N{k}', mcp: [web], tools: [mcp__web__sleep]}}, isolation: none}}\n"
        for k in range(10)
    )
    agents(space, flow(web, more=more), "- {turn: 1, tools: [{mcp__web__sleep: {seconds: 0.5}}]}\n- {text: done}")
    process = space.start("execute", "flow.yaml", "-j", "20", env=ENV)
    process.until(lambda: web.methods().count("tools/call") >= 2, "some tools are called")
    assert len(brokers(process)) == 1
    assert process.done().code == 0
    assert [use.text for use in uses(space)] == ["awake"] * 11
    assert web.methods().count("initialize") == 11
    assert web.methods().count("DELETE") == 11


def test_the_broker_of_the_models_calls_it_too(space: Space, web: Server) -> None:
    need_litellm()
    asked = (("c1", "mcp__web__sleep", '{"seconds": 0.3}'),)
    with Vendor(one=Behaviour(tool_calls=asked)) as vendor:
        space.flow(
            f"provider: {{base_url: '{vendor.url}', prices: {{x/one: {{free: true}}}}}}\n"
            + flow(web).replace("prompt: Work", "prompt: Work, model: x/one, max_turns: 2")
        )
        process = space.start("execute", "flow.yaml", env={**ENV, "DAGRUN_API_KEY": "sk-canary-1"})
        process.until(lambda: "tools/call" in web.methods(), "the tool is called")
        assert len(brokers(process)) == 1
        assert process.done().code == 1
        assert (str(space.finish("a").outcome), space.finish("a").limit) == ("over_limit", "turns")
        assert [use.text for use in uses(space)] == ["awake"]
        assert len(vendor.seen("one")) == 2
        assert "sk-canary" not in str([headers for _, headers, _ in web.seen])


# ---------------------------------------------------------------- who may


@pytest.mark.parametrize(
    ("url", "network", "why"),
    [
        ("https://mcp.example.com/x", ("mcp.example.com",), ""),
        ("https://mcp.example.com/x", ("mcp.example.com:443",), ""),
        ("https://mcp.example.com:8443/x", ("mcp.example.com:443",), "mcp.example.com:8443 is not in"),
        ("https://MCP.example.com/x", ("*.example.com",), ""),
        ("http://example.com/x", ("*.example.com",), "example.com:80 is not in"),
        ("https://good.com@evil.com/", ("good.com",), "evil.com:443 is not in"),
        ("https://mcp.example.com/x", "none", "not in"),
        ("https://mcp.example.com/x", (), "not in"),
        ("https://mcp.example.com/x", "any", ""),
        ("https://mcp.example.com/x", None, ""),
        ("ftp://mcp.example.com/x", "any", "no http or https address"),
        ("https:///x", "any", "no"),
        ("https://exa mple.com/", "any", "no address"),
    ],
)
def test_the_host_has_to_be_in_the_network(url: str, network: Any, why: str) -> None:
    found = refusal(url, network)
    assert (why in found) if why else (found == "")


@pytest.mark.parametrize("network", ["none", "['other.example.com', 'localhost:1']"])
def test_a_host_that_is_not_in_the_network_is_an_error_before_anything_starts(
    space: Space, web: Server, network: str
) -> None:
    agents(space, flow(web, permissions=f"{{network: {network}}}"), TWO)
    for words in (("validate", "flow.yaml"), ("execute", "flow.yaml")):
        done = space.run(*words, env=ENV)
        assert done.code == 3, done
        assert f"calls the server `web` at {host(web)}" in (done.out + done.err).replace("\n", " ")
    assert space.runs() == []
    assert web.seen == []


def test_a_node_that_a_patch_brings_is_held_to_its_network_too(space: Space, web: Server) -> None:
    made = "{agent: {prompt: Work, mcp: [web], tools: [mcp__web__echo]}}"
    patch = f"operations: [{{insert: {{id: late, node: {made}, after: [a]}}}}]"
    agents(space, flow(web, more="  later: {needs: a, run: exit 1}\n"), "- {text: done}")
    assert space.execute(env=ENV).code == 1
    space.write("patch.yaml", patch)
    refused = space.run("replan", "last", "--patch", "patch.yaml", "--yes", env=ENV)
    assert refused.code == 3, refused
    assert f"`late` calls the server `web` at {host(web)}" in refused.err.replace("\n", " ")
    space.write("patch.yaml", patch.replace("]}}, after", f"]}}, permissions: {{network: ['{host(web)}']}}}}, after"))
    done = space.run("replan", "last", "--patch", "patch.yaml", "--yes", env=ENV)
    assert done.code == 0, done
    assert web.methods().count("initialize") == 1
    space.run("resume", env=ENV)
    assert space.statuses()["late"] == "completed"
    assert web.methods().count("initialize") == 2


def test_a_missing_secret_stops_it_before_anything_starts(space: Space, web: Server) -> None:
    agents(space, flow(web), TWO)
    done = space.execute()
    assert done.code == 3, done
    assert "WEB_TOKEN" in done.err
    assert space.runs() == []
    assert web.seen == []


# ---------------------------------------------------------------- the secret


def test_a_secret_in_a_header_is_nowhere_but_at_the_server(space: Space, web: Server) -> None:
    web.modes = ["tell"]  # it says the header in a description, a result and an error
    hunt = "env; cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\\\0' '\\\\n'; grep -r canary . ; true"
    agents(
        space,
        flow(web, tools="Bash, mcp__web__*"),
        f"""
        - turn: 1
          tools:
            - {{Bash: {{command: "{hunt}"}}}}
            - {{mcp__web__echo: {{text: "I am TOLD here and PART there"}}}}
        - {{turn: 2, last: "I am", text: done}}
        """,
    )
    done = space.execute(env=ENV)
    assert done.code == 0, done
    assert {headers["authorization"] for _, headers, _ in web.seen} == {SECRET}
    found = {use.name: use for use in uses(space)}
    assert "DAGRUN_NODE" in found["Bash"].text
    assert "***" not in found["Bash"].text  # it was not there to be masked
    assert found["mcp__web__echo"].text == "I am *** here and *** there"
    first = requests(space, "a")[0]
    assert "*** again." in str(first.tools)
    assert TOKEN not in str(requests(space, "a"))
    for file in space.below():
        assert TOKEN.encode() not in file.read_bytes(), file
    assert TOKEN not in done.out + done.err


@pytest.mark.parametrize(
    ("modes", "why"), [(["refuse"], "it refused to begin"), (["401"], "401"), (["elsewhere"], "redirects")]
)
def test_one_that_can_not_be_opened_fails_its_node(space: Space, web: Server, modes: list[str], why: str) -> None:
    web.modes = modes
    agents(space, flow(web, retry="{max_attempts: 2, delay: 1ms}"), TWO)
    assert space.execute(env=ENV).code == 1
    assert space.outcomes("a") == ["failed", "failed"]
    assert why in space.finish("a").error
    assert space.finish("a").error.startswith("mcp server `web`: it can't be opened: ")
    assert not [e for e in space.events() if isinstance(e, CallReserved)]


def test_its_words_for_a_refusal_are_masked_in_the_log(space: Space, web: Server) -> None:
    web.modes = ["refuse", "tell"]
    agents(space, flow(web), TWO)
    space.write("flow.yaml", space.read("flow.yaml"))
    told = {**ENV, "WEB_TOKEN": "not today"}  # what it says when it refuses
    assert space.execute(env=told).code == 1
    assert "it refused to begin: *** (" in space.finish("a").error
    for file in space.below():
        assert b"not today" not in file.read_bytes(), file


# ---------------------------------------------------------------- pinned


def test_other_tools_than_those_that_are_pinned_are_denied(space: Space, web: Server) -> None:
    right = digest(definitions("web", TOOLS)[0])
    agents(space, flow(web, pin=f", digest: 'sha256:{right}'"), TWO)
    assert space.execute(env=ENV).code == 0, space.finish("a")
    web.modes = ["other"]
    web.seen.clear()
    assert space.execute(env=ENV).code == 1
    finish = space.finish("a")
    assert finish.outcome is Outcome.DENIED
    other = digest(definitions("web", [{**tool, "description": "Other words."} for tool in TOOLS])[0])
    assert finish.error == f"mcp server `web`: it lists tools with digest {other}, and the workflow pins {right}"
    assert "tools/call" not in web.methods()
    assert not [e for e in space.events() if isinstance(e, CallReserved | ToolsListed)]


# ---------------------------------------------------------------- lost


def test_a_call_that_is_lost_is_told_and_another_session_begun(space: Space, web: Server) -> None:
    web.drops = 2
    agents(
        space,
        flow(web),
        """
        - {turn: 1, tools: [{mcp__web__echo: {text: one}}]}
        - {turn: 2, last: "failed: no answer", tools: [{mcp__web__echo: {text: two}}]}
        - {turn: 3, last: "failed: no answer", tools: [{mcp__web__echo: {text: three}}]}
        - {turn: 4, last: three, text: done}
        """,
    )
    assert space.execute(env=ENV).code == 0, space.finish("a")
    assert [use.ok for use in uses(space)] == [False, False, True]
    assert web.methods().count("initialize") == 3


def test_one_that_fails_again_and_again_ends_the_attempt(space: Space, web: Server) -> None:
    web.drops = 100
    agents(space, flow(web), "- {tools: [{mcp__web__echo: {text: one}}]}")
    assert space.execute(env=ENV).code == 1
    assert space.outcomes("a") == ["failed"]
    assert "mcp server `web`: it failed 3 times in a row, at last: no answer" in space.finish("a").error
    assert len([e for e in space.events() if isinstance(e, CallReserved)]) == 3


def test_a_stream_that_breaks_off(space: Space, web: Server) -> None:
    web.modes = ["sse", "cut"]
    rules = "- {turn: 1, tools: [{mcp__web__echo: {text: x}}]}\n- {last: 'ended its answer before the end', text: done}"
    agents(space, flow(web), rules)
    assert space.execute(env=ENV).code == 0, space.finish("a")


def test_a_broker_that_is_killed_is_followed_by_another(space: Space, web: Server) -> None:
    web.modes = ["sse", "drip"]
    rules = TWO.replace("{turn: 2,", "{turn: 2, tools: [{mcp__web__fail: {}}]}\n- {last: did not work,")
    agents(space, flow(web), rules)
    process = calling(space, web)
    (pid,) = brokers(process)
    web.modes = ["sse"]
    subprocess.run(["kill", "-KILL", str(pid)], check=True)
    assert process.done().code == 0, space.finish("a")
    assert [use.ok for use in uses(space)] == [False, False]
    assert "the broker ended" in uses(space)[0].text
    assert web.methods().count("initialize") == 2


# ---------------------------------------------------------------- ended


def test_a_server_that_never_lists_its_tools(space: Space, web: Server) -> None:
    web.modes = ["sse", "mute"]
    agents(space, flow(web, timeout="1500ms"), TWO)
    assert space.execute(env=ENV).code == 1
    assert space.outcomes("a") == ["timed_out"]
    assert "tools/list" not in web.methods()
    assert web.hung_up.wait(WAIT_S)


def test_a_cancel_ends_the_call_at_the_server(space: Space, web: Server) -> None:
    web.modes = ["sse", "drip"]
    agents(space, flow(web), TWO)
    process = calling(space, web)
    (pid,) = brokers(process)
    assert space.run("cancel", "last").code == 0
    assert process.done().code != 0
    assert space.outcomes("a") == ["cancelled"]
    assert web.hung_up.wait(WAIT_S)
    assert ended(pid)


@pytest.mark.parametrize("which", ["engine", "whole"])
def test_sigkill_leaves_no_broker_and_a_resume_calls_again(space: Space, web: Server, which: str) -> None:
    web.modes = ["sse", "drip"]
    agents(space, flow(web), TWO)
    process = calling(space, web)
    (pid,) = brokers(process)
    engine = process.engine()
    subprocess.run(["kill", "-KILL", str(engine if which == "engine" else process.pid)], check=True)
    process.done()
    assert ended(pid)
    assert ended(engine)
    assert web.hung_up.wait(WAIT_S)
    web.modes = ["sse"]
    done = space.run("resume", env=ENV)
    assert done.code == 0, done
    assert [use.text for use in uses(space)] == ["hello"]
    assert output(space, "a") == "done"


# ---------------------------------------------------------------- again, from the record


def play(space: Space) -> str:
    """Play the newest run without its secret; how it ended."""
    run = space.last().id
    done = space.run("execute", "flow.yaml", "--replay", run)
    assert "differ" not in done.err, done
    return str(space.ended().status)


def test_a_run_is_played_without_the_server(space: Space, web: Server) -> None:
    agents(space, flow(web), TWO)
    assert space.execute(env=ENV).code == 0
    web.seen.clear()
    assert play(space) == "completed"
    assert web.seen == []
    assert [use.text for use in uses(space)] == ["hello"]
    assert len(listings(space)) == 1


def test_a_run_that_was_denied_is_played_without_the_server(space: Space, web: Server) -> None:
    agents(space, flow(web, pin=f", digest: '{'0' * 64}'"), TWO)
    assert space.execute(env=ENV).code == 1
    before = space.finish("a")
    web.seen.clear()
    assert play(space) == "failed"
    assert web.seen == []
    after = space.finish("a")
    assert (after.outcome, after.error) == (before.outcome, before.error)
    assert after.outcome is Outcome.DENIED


def test_tools_that_are_run_again_are_called_at_the_server(space: Space, web: Server) -> None:
    agents(space, flow(web), TWO)
    assert space.execute(env=ENV).code == 0
    web.seen.clear()
    run = space.last().id
    done = space.run("execute", "flow.yaml", "--replay", run, "--run-tools", env=ENV)
    assert done.code == 0, done
    assert "tools/call" in web.methods()


SERVER = Path(__file__).parents[1] / "agent/mcp_server.py"


def test_a_stdio_server_in_a_run_and_its_play_without_it(space: Space) -> None:
    space.write("server.py", SERVER.read_text())
    agents(
        space,
        """
        secrets: {TOKEN: {env: WEB_TOKEN}}
        mcp_servers: {hand: {command: [/usr/bin/python3, server.py], secrets: [TOKEN]}}
        nodes:
          a:
            agent: {prompt: Work, mcp: [hand], tools: [Bash, mcp__hand__env, mcp__hand__echo]}
          b: {inputs: {text: nodes.a.text}, run: 'echo "$INPUT_TEXT" > got'}
        """,
        """
        - {turn: 1, tools: [{mcp__hand__env: {}}, {Bash: {command: env}}, {mcp__hand__echo: {text: hello}}]}
        - {turn: 2, last: hello, text: done}
        """,
    )
    done = space.execute(env=ENV)
    assert done.code == 0, done
    environment, shell, echo = uses(space)
    assert "TOKEN=***" in environment.text
    assert "TOKEN" not in shell.text
    assert echo.text == "hello"
    assert space.read("got") == "done\n"
    assert [e.server for e in listings(space)] == ["hand"]
    for file in space.below():
        assert TOKEN.encode() not in file.read_bytes(), file
    Path(space.path, "server.py").unlink()
    assert play(space) == "completed"
    assert [use.text for use in uses(space)] == [environment.text, shell.text, "hello"]


def test_a_stdio_server_that_can_not_be_started_is_played_as_that(space: Space) -> None:
    space.write("server.py", SERVER.read_text())
    agents(
        space,
        """
        mcp_servers: {hand: {command: [/usr/bin/python3, server.py, die]}}
        nodes: {a: {agent: {prompt: Work, mcp: [hand]}}}
        """,
        "- {text: done}",
    )
    assert space.execute().code == 1
    before = space.finish("a")
    assert "I can't begin" in before.error
    space.write("server.py", "import pathlib\npathlib.Path('started').touch()\n")
    assert play(space) == "failed"
    assert space.finish("a").error == before.error
    assert not Path(space.path, "started").exists()


def test_a_tool_that_no_server_lists_is_said_before_anything_is_asked(space: Space) -> None:
    space.write("server.py", SERVER.read_text())
    agents(
        space,
        """
        mcp_servers: {hand: {command: [/usr/bin/python3, server.py]}}
        nodes: {a: {agent: {prompt: Work, mcp: [hand], tools: [mcp__hand__kelvin, mcp__hand__echo]}}}
        """,
        "- {text: done}",
    )
    assert space.execute().code == 1
    assert "no MCP server lists `mcp__hand__kelvin`: there are mcp__hand__" in space.finish("a").error
    assert "mcp__hand__echo" in space.finish("a").error
    assert bought(space) == []


# ---------------------------------------------------------------- the seat alone


class Seats:
    """Remotes of a rig, driven as the engine drives them."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.live = Live(environ={}, models=False)
        self.desk = Desk(self.live, rig.poll)

    def made(self, server: McpServer, network: Any = "any") -> Remote:
        rig = self.rig
        return Remote(
            desk=self.desk, bench=rig.bench, node=rig.node, number=1, name="web", server=server, network=network
        )

    def turn(self, seat: Remote) -> None:
        at = seat.next_due()
        wait = 0.5 if at is None else min(0.5, max(0.0, at - time.monotonic()))
        self.rig.poll.poll(wait)
        self.desk.collect()
        seat.due(time.monotonic())

    def results(self, seat: Remote, count: int = 1) -> list[Returned | Broken]:
        found: list[Returned | Broken] = []
        end = time.monotonic() + WAIT_S
        while len(found) < count:
            assert time.monotonic() < end
            self.turn(seat)
            found += seat.drain()
        return found

    def opened(self, seat: Remote) -> Remote:
        seat.open()
        end = time.monotonic() + WAIT_S
        while seat.listed is None:
            assert time.monotonic() < end
            self.turn(seat)
            assert not (found := seat.drain()), found
        return seat

    def until_dead(self, seat: Remote) -> None:
        end = time.monotonic() + WAIT_S
        while seat.alive:
            assert time.monotonic() < end
            self.turn(seat)


@pytest.fixture
def seats(tmp_path: Path) -> Iterator[Seats]:
    rig = Rig(tmp_path / "project", "none")
    made = Seats(rig)
    yield made
    made.desk.close()
    rig.end()


def test_a_host_that_is_not_in_the_network_starts_no_broker(seats: Seats, web: Server) -> None:
    seat = seats.made(McpServer(url=web.url), network=("example.com",))
    seat.open()
    (broken,) = seat.drain()
    assert isinstance(broken, Broken)
    assert broken.outcome is Outcome.DENIED
    assert broken.error == f"mcp server `web`: {host(web)} is not in the node's permissions.network"
    assert (seats.live.pid, seat.alive) == (0, False)
    seat.call(1, "mcp__web__echo", {"text": "x"}, room=9, timeout_s=9.0)
    assert seat.drain() == [broken]
    assert web.seen == []


def test_calls_have_their_time_and_the_next_one_goes_on(seats: Seats, web: Server) -> None:
    seat = seats.opened(seats.made(McpServer(url=web.url)))
    web.modes = ["sse", "drip"]
    begun = time.monotonic()
    seat.call(1, "mcp__web__echo", {"text": "x"}, room=9, timeout_s=0.3)
    (late,) = seats.results(seat)
    assert isinstance(late, Returned)
    assert (late.number, late.ok, late.text) == (1, False, "timed out after 0.3s")
    assert time.monotonic() - begun < 10.0
    web.modes = ["sse"]
    seat.call(2, "mcp__web__echo", {"text": "x"}, room=9, timeout_s=9.0)
    (after,) = seats.results(seat)
    assert isinstance(after, Returned)
    assert (after.number, after.ok, after.text) == (2, True, "x")
    assert web.hung_up.wait(WAIT_S)
    assert web.methods().count("initialize") == 1


def test_its_list_has_its_time(seats: Seats, web: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcpremote, "START_S", 0.3)
    web.modes = ["sse", "mute"]
    seat = seats.made(McpServer(url=web.url))
    seat.open()
    (broken,) = seats.results(seat)
    assert isinstance(broken, Broken)
    assert broken.error == "mcp server `web`: it can't be opened: it did not list its tools within 0.3s"
    assert not seat.alive


def test_stopping_tells_calls_off_and_the_server(seats: Seats, web: Server) -> None:
    seat = seats.opened(seats.made(McpServer(url=web.url)))
    seat.call(1, "mcp__web__sleep", {"seconds": 60}, room=9, timeout_s=99.0)
    seat.stop()
    assert seat.alive
    (told,) = seats.results(seat)
    assert isinstance(told, Returned)
    assert told.text == "it was ended: the attempt ends"
    seats.until_dead(seat)
    assert web.methods()[-1] == "DELETE"
    seat.call(2, "mcp__web__echo", {"text": "x"}, room=9, timeout_s=9.0)
    assert cast(Returned, seat.drain()[0]).text == "it was not called: the attempt ends"


def test_killing_waits_for_nobody_and_is_looked_at_at_once(seats: Seats, web: Server) -> None:
    seat = seats.opened(seats.made(McpServer(url=web.url)))
    seat.call(1, "mcp__web__sleep", {"seconds": 60}, room=9, timeout_s=99.0)
    seat.drain()
    seat.kill()
    assert not seat.alive
    assert len(seat.drain()) == 1
    assert seat.next_due() == 0.0
    seat.due(time.monotonic())
    assert seat.next_due() is None


def test_a_broker_that_died_meanwhile_costs_no_call(seats: Seats, web: Server) -> None:
    seat = seats.opened(seats.made(McpServer(url=web.url)))
    first = seats.live.pid
    os.kill(first, signal.SIGKILL)
    while seats.live.fileno() >= 0:
        seats.turn(seat)
    seat.call(1, "mcp__web__echo", {"text": "on"}, room=9, timeout_s=9.0)
    (found,) = seats.results(seat)
    assert isinstance(found, Returned)
    assert (found.ok, found.text) == (True, "on")
    second = seats.live.pid
    assert second not in (0, first)
    seats.desk.close()
    assert procs.stat(second) is None


def test_other_tools_than_at_first_are_denied(seats: Seats, web: Server) -> None:
    for forgets in (True, False):  # the server forgets the session; it drops the call
        web.modes = []
        seat = seats.opened(seats.made(McpServer(url=web.url)))
        web.modes = ["other"]
        web.drops = 0 if forgets else 1
        if forgets:
            web.sessions.clear()
        seat.call(1, "mcp__web__echo", {"text": "x"}, room=9, timeout_s=9.0)
        (found,) = seats.results(seat)
        if not forgets:
            assert isinstance(found, Returned)
            seat.call(2, "mcp__web__echo", {"text": "x"}, room=9, timeout_s=9.0)
            (found,) = seats.results(seat)
        assert isinstance(found, Broken)
        assert found.outcome is Outcome.DENIED
        assert "it listed at first" in found.error
        assert not seat.alive


def test_the_engine_imports_no_http_and_no_loop_for_it() -> None:
    script = "import sys, dagrun.engine.mcpremote; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"asyncio", "ssl", "http.client", "litellm", "threading"} & set(done.stdout.split())
