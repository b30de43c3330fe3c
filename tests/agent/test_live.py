"""The engine's side of the broker: nothing blocks, each ask is answered once, whatever becomes of the process."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from dagrun.agent import live as module
from dagrun.agent.live import MAX_STARTS, AnsweredCall, BrokerLost, Heard, Live, Ordered, Said, _without_keys
from dagrun.agent.messages import CallFailed, Reply
from dagrun.core.names import Json
from dagrun.sandbox import procs
from tests.agent.mcp_http import Server as McpServer
from tests.agent.mcp_http import serving
from tests.agent.openai_server import Behaviour, Server
from tests.agent.talking import PATIENCE_S, Talk, need_litellm, request

# A broker without litellm, as far as Live can tell: reads lines, and does what `model` says.
PLAY = """
import json, os, socket, sys, time
sock = socket.socket(fileno=3)
file = sock.makefile("r")
def say(**message):
    sock.sendall(json.dumps(message).encode() + b"\\n")
first = json.loads(file.readline())
assert list(first) == ["environ", "base_url", "models"], first
if first["environ"].get("X_API_KEY") == "slow-to-be-ready":
    time.sleep(1000)
if first["environ"].get("X_API_KEY") == "dies-at-once":
    os._exit(3)
say(ready=1, litellm="0.play")
for line in file:
    order = json.loads(line)
    if "mcp" in order:
        if "die" in order["do"]:
            os._exit(1)
        continue
    if "drop" in order:
        say(id=order["drop"], mcp={"lost": "it was ended"})
        continue
    if "cancel" in order:
        say(id=order["cancel"], answer={"error": "cut", "message": "cancelled"})
        continue
    number, model = order["ask"], order["request"]["model"]
    if model == "x/die":
        os._exit(1)
    elif model == "x/nonsense":
        sock.sendall(b"hello\\n")
    elif model == "x/other":
        say(id=4711, answer={"text": "of nobody", "finish": "stop"})
    elif model == "x/stop":
        os.kill(os.getpid(), 19)
    elif model == "x/say":
        say(id=number, said="so far")
        say(id=number, answer={"text": "done", "finish": "stop"})
    elif model == "x/length":
        say(id=number, answer={"text": str(len(order["request"]["messages"][0]["content"])), "finish": "stop"})
    elif model == "x/environ":
        say(id=number, answer={"text": json.dumps(dict(os.environ)), "finish": "stop"})
    elif model == "x/big":
        say(id=number, answer={"text": "b" * 8_000_000, "finish": "stop"})
"""


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Talk]]:
    """Makes a Talk with the played broker."""
    monkeypatch.setattr(module, "_BOOT", PLAY)
    made: list[Live] = []

    def make(exempt: Callable[[int], None] | None = None, **environ: str) -> Talk:
        made.append(Live(environ=environ, exempt=exempt))
        return Talk(made[-1])

    yield make
    for live in made:
        live.close()


def test_what_is_said_and_what_is_answered(played: Callable[..., Talk]) -> None:
    talk = played()
    assert (talk.live.fileno(), talk.live.pid, talk.live.feed()) == (-1, 0, [])
    reply = talk.reply(request("x/say"))
    assert reply == Reply(text="done")
    assert talk.heard == [Said(1, "so far"), AnsweredCall(1, reply)]
    assert talk.live.litellm == "0.play"
    assert procs.stat(talk.live.pid) is not None


def test_an_ask_never_blocks_however_long_it_is(played: Callable[..., Talk]) -> None:
    talk = played(X_API_KEY="slow-to-be-ready")
    began = time.monotonic()
    for _ in range(20):
        talk.ask(request("x/length", "z" * 1_000_000))
    assert time.monotonic() - began < 10  # it would be for ever
    assert talk.live.wants_write
    assert talk.live.feed() == []


def test_what_did_not_fit_is_sent_as_there_is_room(played: Callable[..., Talk]) -> None:
    talk = played()
    numbers = [talk.ask(request("x/length", "z" * size)) for size in (3_000_000, 5, 1_000_000)]
    assert talk.live.wants_write
    assert [talk.wait(number) for number in numbers] == [Reply(text=text) for text in ("3000000", "5", "1000000")]
    assert not talk.live.wants_write


def test_a_long_answer_comes_in_pieces(played: Callable[..., Talk]) -> None:
    assert len(played().reply(request("x/big")).text) == 8_000_000


def test_a_number_that_is_open_is_not_taken_twice(played: Callable[..., Talk]) -> None:
    talk = played()
    talk.live.ask(7, request("x/hang"), 5.0)
    with pytest.raises(ValueError, match="call 7 is open"):
        talk.live.ask(7, request("x/hang"), 5.0)


def test_a_cancelled_call_is_answered_and_an_unknown_one_is_not_asked_for(played: Callable[..., Talk]) -> None:
    talk = played()
    number = talk.ask(request("x/hang"))
    talk.live.cancel(4711)
    talk.live.cancel(number)
    assert talk.wait(number) == CallFailed(kind="cut", message="cancelled")


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("x/die", "the broker ended"),
        ("x/nonsense", "the broker said something that is no answer"),
        ("x/other", "the broker said something that is no answer"),
    ],
)
def test_calls_of_a_broker_that_is_lost_are_presumed_billed(
    played: Callable[..., Talk], model: str, why: str
) -> None:
    talk = played()
    open_call = talk.ask(request("x/hang"))
    failed = talk.wait(talk.ask(request(model)))
    assert failed == CallFailed(kind="cut", message=f"{why} in the middle of the call")
    assert talk.answer(open_call) == failed
    assert talk.heard[-1] == BrokerLost(why)
    assert (talk.live.fileno(), talk.live.pid, talk.live.wants_write) == (-1, 0, False)


def test_the_next_ask_starts_another_broker_but_not_for_ever(played: Callable[..., Talk]) -> None:
    told: list[int] = []
    talk = played(exempt=told.append)
    for _ in range(MAX_STARTS - 1):
        assert talk.failure(request("x/die")).kind == "cut"
    assert talk.reply(request("x/say")).text == "done"
    assert talk.failure(request("x/die")).kind == "cut"
    assert len(set(told)) == MAX_STARTS == len(talk.lost())
    failed = talk.failure(request("x/say"))
    assert (failed.kind, talk.live.pid) == ("bad_request", 0)
    assert "3 times" in failed.message
    assert len(told) == MAX_STARTS


def test_a_broker_that_never_gets_ready_cost_nothing(played: Callable[..., Talk]) -> None:
    talk = played(X_API_KEY="dies-at-once")
    kinds = [talk.failure(request("x/say")).kind for _ in range(MAX_STARTS + 1)]
    assert kinds == ["overloaded", "overloaded", "bad_request", "bad_request"]


def test_close_ends_a_broker_that_does_not_move(played: Callable[..., Talk]) -> None:
    talk = played()
    assert talk.reply(request("x/say")).text == "done"
    talk.ask(request("x/stop"))
    pid = talk.live.pid
    _until(lambda: (who := procs.stat(pid)) is not None and who.state == "T")
    talk.live.close()
    assert procs.stat(pid) is None
    talk.live.close()


def test_somebody_else_may_have_reaped_it(played: Callable[..., Talk]) -> None:
    talk = played()
    assert talk.reply(request("x/say")).text == "done"
    os.kill(talk.live.pid, signal.SIGKILL)
    os.waitpid(talk.live.pid, 0)
    assert talk.failure(request("x/say")).kind == "cut"


def test_a_broker_starts_with_an_empty_environment(
    played: Callable[..., Talk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
    assert sorted(eval(played().reply(request("x/environ")).text)) == ["LC_ALL", "PATH"]


def test_what_can_not_be_started_is_told_as_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    talk = Talk(Live(environ={}))
    for _ in range(2):
        failed = talk.failure(request("x/say"))
        assert failed.kind == "bad_request"
        assert failed.message == "the broker can't be started: No such file or directory"


def test_without_litellm_the_answer_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BOOT", "import sys; sys.modules['litellm'] = None\n" + module._BOOT)
    live = Live(environ={})
    talk = Talk(live)
    try:
        number = talk.ask(request("openai/gpt-4o"))
        failed = talk.failure(request("openai/gpt-4o"))
        assert talk.answer(number) == failed
        assert failed.kind == "bad_request"
        assert "pip install 'dagrun[llm]'" in failed.message
        assert talk.lost() == [failed.message]
        assert "pip install" in talk.failure(request("openai/gpt-4o")).message
        assert live.pid == 0
    finally:
        live.close()


def test_the_real_broker_killed_in_the_middle_of_a_call_is_followed_by_another() -> None:
    need_litellm()
    with Server(hang=Behaviour(mode="hang")) as server:
        live = Live(environ={}, base_url=server.url)
        talk = Talk(live)
        try:
            number = talk.ask(request("x/hang"))
            while not server.seen("hang"):
                select.select([live.fileno()], [], [], 0.01)
                talk.heard += live.feed()
            os.kill(live.pid, signal.SIGKILL)
            failed = talk.wait(number)
            assert isinstance(failed, CallFailed)
            assert failed.kind == "cut"
            assert talk.reply(request("x/again")).text == "Hello from the server."
        finally:
            live.close()


def test_the_log_holds_what_is_printed(played: Callable[..., Talk], tmp_path: Path) -> None:
    log = tmp_path / "broker.log"
    live = Live(environ={"X_API_KEY": "dies-at-once"}, log_path=str(log))
    talk = Talk(live)
    assert talk.failure(request("x/say")).kind == "overloaded"
    live.close()
    assert log.stat().st_mode & 0o777 == 0o600


# ---------------------------------------------------------------- orders for MCP servers

# Importing litellm never ends here, or ends the broker.
NO_IMPORT = """
import importlib.machinery, os, sys, time
class Finder:
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == "litellm" else None
    def create_module(self, spec):
        return None
    def exec_module(self, made):
        {what}
sys.meta_path.insert(0, Finder())
"""


def ordered(live: Live, number: int) -> Mapping[str, Json]:
    """What comes of an order."""
    end = time.monotonic() + PATIENCE_S
    while True:
        for news in live.feed():
            if isinstance(news, Ordered):
                assert news.id == number
                return news.answer
        assert time.monotonic() < end
        assert live.fileno() >= 0, "the broker is gone"
        select.select([live.fileno()], [], [], 0.05)


def opening(server: McpServer, **headers: str) -> dict[str, Json]:
    return {"open": "k", "server": "hand", "url": server.url, "headers": dict(headers), "timeout_s": 20.0}


@pytest.fixture
def hand() -> Iterator[McpServer]:
    with serving() as made:
        yield made


def test_orders_wait_for_no_import(hand: McpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    need_litellm()  # else it says at once that there is none
    monkeypatch.setattr(module, "_BOOT", NO_IMPORT.format(what="time.sleep(1000)") + module._BOOT)
    live = Live(environ={})
    try:
        live.ask(1, request("x/y"), 30.0)
        live.order(1, opening(hand))
        assert ordered(live, 1)["tools"]
        live.order(1, {"call": "k", "tool": "mcp__hand__echo", "arguments": {"text": "hi"}, "room": 9})
        assert ordered(live, 1) == {"ok": True, "text": "hi"}
        assert live.litellm == ""
    finally:
        live.close()


def test_a_broker_without_models_imports_no_litellm_and_gets_no_key(
    hand: McpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"OPENAI_API_KEY": "sk-canary", "DAGRUN_API_KEY": "sk-canary", "SSL_CERT_DIR": "/certs", "HOME": "/h"}
    assert _without_keys(keys) == {"SSL_CERT_DIR": "/certs", "HOME": "/h"}
    monkeypatch.setattr(module, "_BOOT", NO_IMPORT.format(what="os._exit(9)") + module._BOOT)
    live = Live(environ=keys, models=False)
    talk = Talk(live)
    try:
        live.order(7, opening(hand))
        assert ordered(live, 7)["tools"]
        pid = live.pid
        failed = talk.failure(request("openai/gpt-4o"))
        assert (failed.kind, failed.message) == ("bad_request", "this broker asks no models")
        assert (live.pid, talk.lost()) == (pid, [])
    finally:
        live.close()


def test_a_dropped_order_is_answered_and_its_connection_ended(hand: McpServer) -> None:
    hand.modes = ["sse", "drip"]
    live = Live(environ={}, models=False)
    try:
        live.order(1, opening(hand))
        assert ordered(live, 1)["tools"]
        live.order(2, {"call": "k", "tool": "mcp__hand__echo", "arguments": {"text": ""}, "room": 9})
        while "tools/call" not in hand.methods():
            select.select([live.fileno()], [], [], 0.01)
            assert live.feed() == []
        live.drop(2)
        live.drop(4711)
        assert ordered(live, 2) == {"lost": "it was ended"}
        assert hand.hung_up.wait(PATIENCE_S)
        live.order(3, {"close": "k"})
        assert ordered(live, 3) == {}
        assert hand.methods()[-1] == "DELETE"
    finally:
        live.close()


def test_an_order_that_is_dropped_before_it_began(hand: McpServer) -> None:
    live = Live(environ={}, models=False)
    try:
        live.order(1, opening(hand))
        live.drop(1)
        assert ordered(live, 1) == {"lost": "it was ended"}
        with pytest.raises(ValueError, match="order 2 is open"):
            for _ in range(2):
                live.order(2, {"close": "k"})
    finally:
        live.close()


def test_orders_of_a_broker_that_is_lost_are_answered(played: Callable[..., Talk]) -> None:
    live = played().live
    live.order(1, {"close": "k"})
    live.ask(1, request("x/hang"), 30.0)  # numbers of calls are others
    live.order(2, {"die": "now"})
    heard: list[Heard] = []
    while not any(isinstance(one, BrokerLost) for one in heard):
        select.select([live.fileno()], [], [], 0.05)
        heard += live.feed()
    lost = {"lost": "the broker ended"}
    assert [one for one in heard if isinstance(one, Ordered)] == [Ordered(1, lost), Ordered(2, lost)]
    assert [one.id for one in heard if isinstance(one, AnsweredCall)] == [1]
    assert isinstance(heard[-1], BrokerLost)


def test_servers_are_called_beside_one_another(hand: McpServer) -> None:
    live = Live(environ={}, models=False)
    try:
        live.order(1, opening(hand))
        assert ordered(live, 1)["tools"]
        begun = time.monotonic()
        for k in range(10):
            given: Json = {"seconds": 0.5}
            live.order(k, {"call": "k", "tool": "mcp__hand__sleep", "arguments": given, "room": 9})
        answers: list[Ordered] = []
        while len(answers) < 10:
            select.select([live.fileno()], [], [], 0.05)
            answers += [one for one in live.feed() if isinstance(one, Ordered)]
        assert {str(one.answer) for one in answers} == {"{'ok': True, 'text': 'awake'}"}
        assert time.monotonic() - begun < 4.0  # one after another it would be 5 s
    finally:
        live.close()


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end
        select.select([], [], [], 0.005)
