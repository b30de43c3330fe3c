"""Runs that ask real models over HTTP, of a server on this machine: how often it is asked, and what people are told."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from site import getsitepackages

import pytest

from dagrun.core.event import AttemptFinished, StopRequested
from dagrun.core.names import Outcome
from dagrun.core.spending import RUN, books
from dagrun.sandbox import procs
from tests.agent.openai_server import Behaviour, Server
from tests.agent.talking import need_litellm

from .asking import closed, reserved, why
from .space import DEADLINE_S, ROOT, Done, Process, Space

TOO_LONG = {"message": "This model's maximum context length is 8192 tokens", "code": "context_length_exceeded"}
KEYS = {"OPENAI_API_KEY": "", "ANTHROPIC_API_KEY": "", "GEMINI_API_KEY": "", "DAGRUN_API_KEY": ""}
BUSY = {"Retry-After": "4000"}
NUMBERS = count()

# name → (what the server does, the requests that it gets, the outcome, what is said of it)
DEAR: dict[str, tuple[Behaviour, int, Outcome, str]] = {
    "good": (Behaviour(), 1, Outcome.COMPLETED, ""),
    "busy": (Behaviour(mode="error", status=503), 3, Outcome.FAILED, "status 503: it went wrong (after 3 tries: "),
    "never": (
        Behaviour(mode="error", status=429, headers=BUSY),
        1,
        Outcome.FAILED,
        "status 429: it went wrong (wants 4000 s, ",
    ),
    "page": (Behaviour(mode="html"), 1, Outcome.FAILED, "the endpoint answered with a web page: is its address right"),
    "long": (
        Behaviour(mode="error", status=400, error=TOO_LONG),
        1,
        Outcome.FAILED,
        "status 400: This model's maximum context length is 8192 tokens",
    ),
    "denied": (Behaviour(mode="error", status=401), 1, Outcome.FAILED, ": status 401: it went wrong"),
    "broke": (Behaviour(mode="error", status=402), 1, Outcome.FAILED, ": status 402: it went wrong"),
    "absent": (Behaviour(mode="error", status=404), 1, Outcome.FAILED, ": status 404: it went wrong"),
    "torn": (Behaviour(mode="cut_after_text"), 3, Outcome.FAILED, ": the answer broke off (after 3 tries: "),
    "mute": (Behaviour(mode="cut"), 3, Outcome.FAILED, "the connection ended without an answer (after 3 tries: "),
    "moved": (Behaviour(mode="redirect"), 1, Outcome.FAILED, "give its final address: http://127.0.0.1:"),
    "silent": (Behaviour(usage=None), 1, Outcome.COMPLETED, ""),
    "whole": (Behaviour(mode="whole"), 1, Outcome.COMPLETED, ""),  # no stream, though one was asked for
}
BILLED = {"torn", "mute", "silent"}  # nobody knows what they cost


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    more = {"cheap": DEAR["busy"][0], "middle": DEAR["busy"][0], "hang": Behaviour(mode="hang")}
    with Server(**{name: row[0] for name, row in DEAR.items()}, **more) as running:
        yield running


def ended(space: Space) -> dict[str, AttemptFinished]:
    return {e.node: e for e in space.events() if isinstance(e, AttemptFinished)}


def said(done: Done) -> str:
    return done.out + done.err


# ---------------------------------------------------------------- what is told before anything starts


KEYLESS = """
    models: {a: [anthropic/claude-sonnet-4-5, openai/gpt-5], b: [gemini/gemini-2.5-pro]}
    nodes:
      w: {run: touch started}
      x: {agent: {prompt: hi, model: a}}
      y: {run: "false", on_failure: {replanner: {model: b}}}
    """


def test_all_keys_that_are_missing_are_named_at_once(space: Space) -> None:
    need_litellm()
    space.flow(KEYLESS)
    done = space.execute(env=KEYS)
    assert done.code == 8, done
    for name in ("ANTHROPIC_API_KEY is not set, for x", "OPENAI_API_KEY is not set, for x", "GEMINI_API_KEY is not"):
        assert name in done.err
    assert "--provider fake" not in done.err  # it has no rules
    assert (space.read("started"), space.runs()) == ("", [])


def test_a_vendor_that_nobody_can_call_is_told_before_anything_starts(space: Space) -> None:
    need_litellm()
    space.flow("""
        provider: {prices: {fake/m: free}}
        nodes:
          w: {run: touch started}
          x: {agent: {prompt: hi, model: fake/m}}
        """)
    done = space.execute(env=KEYS)
    assert (done.code, space.runs()) == (3, [])
    assert "error[unknown-vendor]: `fake/m`: there is no vendor `fake`" in done.err


def test_without_litellm_nothing_starts(space: Space, tmp_path: Path) -> None:
    python = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for folder in getsitepackages():  # all that is installed but litellm
        for entry in Path(folder).iterdir():
            if not entry.name.startswith("litellm"):
                (tmp_path / "lib").mkdir(exist_ok=True)
                (tmp_path / "lib" / entry.name).symlink_to(entry)
    space.flow("""
        provider: {base_url: "http://127.0.0.1:1/v1", prices: {x/one: free}}
        nodes:
          w: {run: touch started}
          x: {agent: {prompt: hi, model: x/one}}
        """)
    path = {"PYTHONPATH": f"{ROOT}:{tmp_path / 'lib'}"}
    done = space.start("execute", "flow.yaml", env=path, program=(str(python), "-S", "-m", "dagrun")).done()
    assert (done.code, space.runs()) == (8, [])
    assert done.err == (
        "error[environment]: this workflow asks models, and litellm is not installed, so nothing was started\n"
        "  help: pip install 'dagrun[llm]'\n"
    )


# ---------------------------------------------------------------- every way to fail


def test_each_failure_is_asked_as_often_as_it_helps_and_told_in_a_line(space: Space, server: Server) -> None:
    need_litellm()
    prices = ", ".join(f'x/{name}: {{input: "1", output: "20"}}' for name in DEAR)
    nodes = [f"  {name}: {{agent: {{prompt: Hi., model: x/{name}, tools: []}}, timeout: 90s}}\n" for name in DEAR]
    space.flow(f"provider: {{base_url: '{server.url}', prices: {{{prices}}}}}\nnodes:\n{''.join(nodes)}")
    done = space.start("execute", "flow.yaml", "-j", "20", "--ui", "log").done(120)
    found = ended(space)
    for name, (_, asked, outcome, error) in DEAR.items():
        assert len(server.seen(name)) == len(reserved(space, name)) == asked, name
        assert found[name].outcome is outcome, found[name]
        assert error in found[name].error
        billed = [e.books == "keep" for e in closed(space, name)]
        assert billed == [name in BILLED] * asked, name
    ledger = books(space.state())
    amounts = {name: [e.amount for e in reserved(space, name)] for name in BILLED}
    paid = [closed(space, name)[0].spent for name in ("good", "whole")]
    assert paid[0] == paid[1] > 0
    assert ledger.spent(RUN) == sum(sum(kept) for kept in amounts.values()) + sum(paid)
    assert ledger.held(RUN) == 0
    for noise in ("litellm", "Connection error", "TransferEncoding", "docs."):
        assert noise not in said(done)


def test_who_fails_makes_room_for_the_next_and_tries_go_by_the_price(space: Space, server: Server) -> None:
    need_litellm()
    space.flow(f"""
        provider:
          base_url: {server.url}
          prices:
            x/cheap: {{input: "1", output: "2"}}
            x/middle: {{input: "1", output: "10"}}
            x/never: {{input: "1", output: "2"}}
            x/long: {{input: "1", output: "2"}}
            x/hang: {{input: "1", output: "2"}}
            x/one: {{input: "1", output: "2"}}
        models:
          limited: [x/never, x/one]
          small: [x/long, x/one]
          worse: [x/cheap, x/one]
          slow: [x/hang, x/one]
          middle: [x/middle]
        nodes:
          a: {{agent: {{prompt: Hi., model: limited, tools: []}}}}
          b: {{agent: {{prompt: Hi., model: small, tools: []}}}}
          c: {{agent: {{prompt: Hi., model: worse, tools: []}}}}
          d: {{agent: {{prompt: Hi., model: slow, tools: []}}, timeout: 8s, needs: a}}
          e: {{agent: {{prompt: Hi., model: middle, tools: []}}}}
        """)
    done = space.start("execute", "flow.yaml", "--ui", "log").done(90)
    assert [ended(space)[node].outcome for node in "abcd"] == [Outcome.COMPLETED] * 4, (done, why(space))
    for node, model in (("a", "x/never"), ("b", "x/long"), ("c", "x/cheap"), ("d", "x/hang")):
        assert [e.model for e in reserved(space, node)] == [model, "x/one"]
    assert [e.model for e in reserved(space, "e")] == ["x/middle"] * 5
    assert [len(server.seen(name)) for name in ("cheap", "hang", "middle")] == [1, 1, 5]


# ---------------------------------------------------------------- ends


def asked(space: Space, server: Server) -> tuple[Process, str]:
    """A run whose one call is on its way to a server that says nothing, and the model that it asked."""
    model = f"late{next(NUMBERS)}"
    server.behaviours[model] = Behaviour(mode="hang")
    space.flow(f"""
        provider: {{base_url: "{server.url}", prices: {{x/{model}: {{input: "1", output: "10"}}}}}}
        nodes:
          a: {{agent: {{prompt: Say it., model: x/{model}, tools: []}}}}
        """)
    process = space.start("execute", "flow.yaml", "--ui", "log")
    process.until(lambda: len(server.seen(model)), "a call is on its way")
    return process, model


def broker(process: Process) -> int:
    """The broker of a run."""
    called = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in procs.children(process.engine())}
    (found,) = [pid for pid, line in called.items() if b"dagrun.agent.broker" in line]
    return found


def gone(pid: int) -> None:
    end = time.monotonic() + DEADLINE_S
    while os.path.exists(f"/proc/{pid}") and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < end, f"the broker {pid} lives on"


def test_a_killed_engine_leaves_no_broker_and_its_call_counts_as_spent(space: Space, server: Server) -> None:
    need_litellm()
    process, model = asked(space, server)
    mind = broker(process)
    os.kill(process.engine(), signal.SIGKILL)
    process.done()
    gone(mind)
    server.behaviours[model] = Behaviour()
    done = space.run("resume", "last", "--ui", "log")
    assert done.code == 0, done
    first, second = reserved(space)
    assert (len(server.seen(model)), first.amount, closed(space)[-1].call) == (2, second.amount, 1)
    ledger = books(space.state())
    assert (ledger.held(RUN), ledger.spent(RUN)) == (0, first.amount + closed(space)[-1].spent)


def test_a_killed_broker_is_replaced_and_its_calls_count_as_spent(space: Space, server: Server) -> None:
    need_litellm()
    process, model = asked(space, server)
    server.behaviours[model] = Behaviour()
    os.kill(broker(process), signal.SIGKILL)
    done = process.done(60)
    assert done.code == 0, done
    assert [(e.books, e.error) for e in closed(space)] == [("keep", "cut"), ("settle", "")]
    assert len(server.seen(model)) == 2


@pytest.mark.parametrize("how", ["cancel", "sigint"])
def test_a_call_that_is_ended_counts_as_spent(space: Space, server: Server, how: str) -> None:
    need_litellm()
    process, _ = asked(space, server)
    mind = broker(process)
    if how == "cancel":
        assert space.run("cancel", "last").code == 0
    else:
        process.signal(signal.SIGINT)
        process.until(lambda: any(isinstance(e, StopRequested) for e in space.events()), "it waits for the call")
        process.signal(signal.SIGINT)
    done = process.done(60)
    assert done.code == (143 if how == "cancel" else 130), done
    gone(mind)
    (call,) = closed(space)
    assert (call.books, call.error, ended(space)["a"].outcome) == ("keep", "cut", Outcome.CANCELLED)
    assert books(space.state()).held(RUN) == 0


def test_a_run_is_not_taken_up_while_its_key_is_missing(space: Space, server: Server) -> None:
    need_litellm()
    space.flow("""
        nodes:
          w: {run: test -e go}
          x: {agent: {prompt: hi, model: openai/gpt-4o-mini, tools: []}, needs: w}
        """)
    keys = {**KEYS, "OPENAI_API_KEY": "sk-canary-0123456789", "OPENAI_BASE_URL": server.url}
    assert space.execute(env=keys).code == 1
    before = len(space.events())
    space.write("go", "")
    done = space.run("resume", "last", env={**keys, "OPENAI_API_KEY": ""})
    assert (done.code, len(space.events())) == (8, before)
    assert "OPENAI_API_KEY is not set, for x (openai/gpt-4o-mini)" in done.err
    done = space.run("resume", "last", env=keys)
    assert done.code == 0, done
    assert server.requests[-1].headers["authorization"] == "Bearer sk-canary-0123456789"
