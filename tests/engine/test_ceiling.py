"""The ceiling against a server that keeps its own books: what it billed is never more than the journal says or a cap.

The server answers late and badly, in an order that a seed decides; dagrun and its broker are killed meanwhile and
the run is taken up again. It bills each answer that it begins, said or not, as a vendor would.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dagrun.core.spending import RUN, books
from dagrun.sandbox import procs
from tests.agent.openai_server import Behaviour, Seen, Server
from tests.agent.talking import need_litellm

from .asking import reserved, why
from .space import Process, Space

USD = 10**9
PRICES = {"cheap": (1, 4), "dear": (3, 20)}  # USD for a million tokens: so many nano-dollars × 1,000 for one
CAP_USD = "0.15"
FLOW = """
    provider:
      base_url: {url}
      prices:
        x/cheap: {{input: "1", output: "4"}}
        x/dear: {{input: "3", output: "20"}}
    permissions: {{cost_budget: {cap}}}
    models: {{main: [x/dear, x/cheap], low: [x/cheap, x/dear]}}
    limits: {{parallel: 8}}
    schedule: ready
    defaults: {{retry: {{max_attempts: 2, delay: 10ms, outcomes: [failed, timed_out]}}}}
    nodes:
      {nodes}
    """
FREE = {"error", "limited", "error_event"}  # refused before anything of an answer came


class Biller(Server):
    """A server that bills what it answers, in nano-dollars."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._dice = random.Random(seed)
        self._lock = threading.Lock()
        self.billed = 0
        self.kinds: dict[str, int] = {}

    def behaviour(self, seen: Seen) -> Behaviour:
        with self._lock:
            chosen = self._choose(seen)
            self.kinds[chosen.mode] = self.kinds.get(chosen.mode, 0) + 1
            if chosen.mode not in FREE:
                self.billed += self._price(seen)
            return chosen

    def _choose(self, seen: Seen) -> Behaviour:
        given, most = self._tokens(seen)
        real = {"prompt_tokens": given, "completion_tokens": most, "total_tokens": given + most}
        late = replace(Behaviour(usage=real), latency_s=self._dice.choice([0.0, 0.05, 0.3]))
        told = [
            late,
            replace(late, mode="whole"),
            replace(late, tool_calls=(("c", "Glob", '{"pattern": "*"}'),)),
            replace(late, usage=None),
            replace(late, usage={**real, "completion_tokens": -most}),
            replace(late, usage={**real, "completion_tokens": "many"}),
            replace(late, usage={**real, "completion_tokens": float("nan")}),
            replace(late, usage={**real, "prompt_tokens_details": {"cached_tokens": given // 2}}),
            replace(late, mode="cut"),
            replace(late, mode="cut_after_head"),
            replace(late, mode="cut_after_text"),
            replace(late, mode="ends_early"),
            replace(late, mode="error_after_text"),
            replace(late, mode="error_event"),
            replace(late, mode="raw", body=b'{"choices"', missing=20),
            replace(late, mode="error", status=503),
            replace(late, mode="error", status=429, headers={"Retry-After": "0.2"}),
            replace(late, mode="error", status=504),
        ]
        return self._dice.choice(told)

    def _tokens(self, seen: Seen) -> tuple[int, int]:
        """What a vendor may count: no token is shorter than a byte, and the answer is as long as it may be."""
        words = sum(len(str(message.get("content") or "").encode()) for message in seen.body["messages"])
        return words, int(seen.body["max_tokens"])

    def _price(self, seen: Seen) -> int:
        given, most = self._tokens(seen)
        input_usd, output_usd = PRICES[seen.model]
        return (given * input_usd + most * output_usd) * 1000


def nodes() -> str:
    """A tree of agents: three at once, two below each, one at the end; some with a cap of their own."""
    agent = "agent: {{prompt: 'Say {0}.', model: {1}, tools: [Glob], max_tokens: 500, max_turns: 3}}"
    lines = []
    for a in range(3):
        own = agent.format(f"a{a}", "main" if a else "low")
        lines.append(f"a{a}: {{{own}, continue_on_error: true, timeout: 20s}}")
        for b in range(3):
            own = agent.format(f"b{a}{b}", "low" if b else "main")
            cap = "permissions: {cost_budget: 0.03}, " if b == 1 else ""
            lines.append(f"b{a}{b}: {{needs: a{a}, {cap}{own}, continue_on_error: true, timeout: 20s}}")
    for k in range(2):
        own = agent.format(f"g{k}", "low")
        lines.append(f"g{k}: {{group: talk, isolation: none, {own}, continue_on_error: true, timeout: 20s}}")
    return "\n      ".join(lines)


def broker(process: Process) -> int:
    """The broker of a run; 0 where there is none (yet)."""
    for pid in procs.children(process.engine()):
        try:
            if b"dagrun.agent.broker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        except OSError:
            continue
    return 0


def calls_seen(server: Server, process: Process, count: int) -> None:
    """Wait for some more calls, or the end of the program."""
    try:
        process.until(lambda: len(server.requests) >= count, "enough calls")
    except AssertionError:
        assert not process.alive()


def whole_of(space: Space, server: Biller, cap: int) -> None:
    ledger = books(space.state())
    assert server.billed > cap // 5, "it was tried at all"
    assert server.billed <= ledger.spent(RUN) + ledger.held(RUN), "nothing that was billed is lost"
    assert ledger.spent(RUN) + ledger.held(RUN) <= cap, "and the cap holds"
    assert not ledger.bound_violated
    for name in (f"b{a}1" for a in range(3)):
        assert ledger.spent(f"node:{name}") <= 3 * USD // 100
    amounts = [(e.node, e.attempt, e.call) for e in reserved(space)]
    assert len(set(amounts)) == len(amounts)


@pytest.fixture(params=[1])  # the seed of what the server says: more of them found nothing more
def server(request: pytest.FixtureRequest) -> Iterator[Biller]:
    with Biller(request.param) as running:
        yield running


def test_without_a_kill(space: Space, server: Biller) -> None:
    need_litellm()
    space.flow(FLOW.format(url=server.url, cap=CAP_USD, nodes=nodes()))
    done = space.start("execute", "flow.yaml", "--ui", "quiet").done(150)
    assert done.code in (0, 1, 5), (done, why(space))
    whole_of(space, server, int(float(CAP_USD) * USD))
    assert books(space.state()).held(RUN) == 0
    assert len(server.requests) <= len(reserved(space)), "one request for a reservation"
    assert len(server.requests) > 12


def test_killed_and_taken_up_again(space: Space, server: Biller) -> None:
    need_litellm()
    cap = int(float(CAP_USD) * USD)
    space.flow(FLOW.format(url=server.url, cap=CAP_USD, nodes=nodes()))
    process = space.start("execute", "flow.yaml", "--ui", "quiet")
    for k, victim in enumerate(("broker", "engine", "engine", "broker", "engine")):
        calls_seen(server, process, 3 + 5 * k)
        if not process.alive():
            break
        pid = broker(process) if victim == "broker" else process.engine()
        if pid:
            os.kill(pid, signal.SIGKILL)
        if victim == "engine":
            process.done(60)
            whole_of(space, server, cap)
            process = space.start("resume", "last", "--ui", "quiet")
    process.done(150)
    whole_of(space, server, cap)
    assert books(space.state()).held(RUN) == 0


# ---------------------------------------------------------------- counts that no call can have


@pytest.mark.parametrize("tokens", [10**9, 2**63, 10**30, 10**300])
def test_more_than_was_set_aside_ends_all_spending_and_stands_in_the_journal(space: Space, tokens: int) -> None:
    need_litellm()
    usage = {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": tokens + 10}
    with Server(cheap=Behaviour(usage=usage)) as server:
        nodes = "a: {agent: {prompt: x, model: x/cheap, tools: []}, continue_on_error: true}\n"
        nodes += "      b: {needs: a, agent: {prompt: y, model: x/cheap, tools: []}}"
        space.flow(FLOW.format(url=server.url, cap=CAP_USD, nodes=nodes))
        done = space.execute("--ui", "log")
    assert done.code == 5, (done, why(space))
    assert len(server.requests) == 1
    ledger = books(space.state())
    assert ledger.bound_violated
    assert ledger.spent(RUN) >= tokens * 4000
    assert space.run("trace", "show").code == 0
    assert space.run("trace", "show", "--json").code == 0
    assert space.run("status").code in (0, 5)
    resumed = space.run("resume", "last", "--ui", "log")
    assert (resumed.code, len(server.requests)) == (5, 1), resumed
