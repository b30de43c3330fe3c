"""trace export and --otlp: spans in a file, on stdout, at a real collector; and when there is none."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from .space import Space

RULES = """
    rules:
    - {node: read, turn: 1, text: Let me look, tools: [{Read: {file_path: notes.md}}], usage: {input: 900, output: 12}}
    - {node: read, text: The canary sings, usage: {input: 1000, output: 40, cached: 300, reasoning: 10}}
    """
FLOW = """
    version: 1
    name: talk
    provider: {kind: fake, rules: rules.yaml, prices: {fake/small: {input: 1, output: 5}}}
    models: {cheap: [fake/small]}
    permissions: {cost_budget: 0.10}
    nodes:
      read: {agent: {prompt: Read the notes, tools: [Read], max_tokens: 512}}
      check: {needs: read, run: echo fine}
    """


class Collector(HTTPServer):
    """Takes spans on 127.0.0.1; `answer` is what it says to the next."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[tuple[str, dict[str, str], Any]] = []
        self.answer: tuple[int, bytes, dict[str, str]] = (200, b"{}", {})
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def close(self) -> None:
        if self.thread.is_alive():
            self.shutdown()
            self.thread.join()
            self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.got.append((self.path, headers, json.loads(body)))
        code, said, more = self.server.answer
        self.send_response(code)
        for name, value in more.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(BrokenPipeError):
            self.wfile.write(said)

    def do_GET(self) -> None:
        self.server.got.append((self.path, {}, None))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture
def talk(space: Space) -> Space:
    space.file("talk.yaml", FLOW)
    space.file("rules.yaml", RULES)
    space.file("notes.md", "the notes")
    return space


def names(document: Any) -> list[str]:
    return [span["name"] for span in document["resourceSpans"][0]["scopeSpans"][0]["spans"]]


DROPPED = b'{"partialSuccess": {"rejectedSpans": "2", "errorMessage": "too old"}}'
WANTED = [
    "invoke_workflow talk",
    "invoke_agent read",
    "chat small",
    "execute_tool Read",
    "chat small",
    "run check",
]


def test_a_run_in_a_file_and_on_stdout(talk: Space) -> None:
    assert talk.run("execute", "talk.yaml", "-q").code == 0
    done = talk.run("trace", "export", "--otlp", "spans.json")
    assert (done.code, done.out) == (0, "")
    text = (talk.folder / "spans.json").read_text()
    assert names(json.loads(text)) == WANTED
    assert "canary" not in text
    assert "the notes" not in text
    out = talk.run("trace", "export", "last", "--otlp", "-")
    assert out.out == text
    assert out.err == ""
    whole = talk.run("trace", "export", "--otlp", "-", "--content").out
    assert "The canary sings" in whole
    assert "the notes" in whole


def test_a_run_at_a_collector(talk: Space, collector: Collector) -> None:
    talk.run("execute", "talk.yaml", "-q")
    done = talk.run(
        "trace", "export", "--otlp", collector.url, "--json", OTEL_EXPORTER_OTLP_HEADERS="x-team=a%20b,bad, k = v"
    )
    assert done.json["to"] == collector.url
    ((path, headers, body),) = collector.got
    assert path == "/v1/traces"
    assert headers["content-type"] == "application/json"
    assert (headers["x-team"], headers["k"]) == ("a b", "v")
    assert names(body) == WANTED
    talk.run("trace", "export", "--otlp", f"{collector.url}/other/place?x=1", "-q")
    assert collector.got[1][0] == "/other/place?x=1"


def test_execute_and_resume_send_at_the_end(talk: Space, collector: Collector) -> None:
    done = talk.run("execute", "talk.yaml", "--otlp", collector.url)
    assert done.code == 0
    assert "warning" not in done.err
    assert talk.run("execute", "fails.yaml", "--otlp", "failed.json").code == 1
    assert talk.run("resume", "--otlp", collector.url).code == 1
    (first, second) = collector.got
    assert names(first[2]) == WANTED
    assert names(second[2]).count("run bad") == 2
    assert names(json.loads((talk.folder / "failed.json").read_text())).count("run bad") == 1


def test_a_collector_that_is_away_spoils_no_run(space: Space, collector: Collector) -> None:
    collector.close()
    done = space.run("execute", "hello.yaml", "--otlp", collector.url)
    assert (done.code, done.out) == (0, "user = Ada\n")
    assert "warning: can't send to" in done.err
    assert f"dagrun trace export {space.run('runs', '--json').json['runs'][0]['run_id']} --otlp" in done.err
    done = space.run("trace", "export", "--otlp", collector.url)
    assert done.code == 8
    assert "Connection refused" in done.err


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((503, b"later\x1b[2J", {}), "answered 503: later"),
        ((200, DROPPED, {}), "dropped 2 spans: too old"),
        ((302, b"", {"Location": "/elsewhere"}), "answered 302"),
    ],
)
def test_what_a_collector_does_not_take_is_said(
    space: Space, collector: Collector, answer: tuple[int, bytes, dict[str, str]], said: str
) -> None:
    space.run("execute", "hello.yaml", "-q")
    collector.answer = answer
    done = space.run("trace", "export", "--otlp", collector.url)
    assert done.code == 8
    assert said in done.err
    assert "\x1b" not in done.err
    assert len(collector.got) == 1, "it goes nowhere else"


def test_a_plain_200_is_good_enough(space: Space, collector: Collector) -> None:
    space.run("execute", "hello.yaml", "-q")
    collector.answer = (200, b"<html>thanks</html>", {})
    assert space.run("trace", "export", "--otlp", collector.url).code == 0


@pytest.mark.parametrize(
    "words",
    [
        ["trace", "export"],
        ["trace", "export", "--otlp", "no/where.json"],
        ["trace", "export", "--otlp", "http://"],
        ["trace", "export", "--otlp", "http://h:99999999"],
        ["execute", "hello.yaml", "--otlp", "-"],
        ["execute", "hello.yaml", "--otlp", "no/where.json"],
        ["resume", "--otlp", "no/where.json"],
    ],
    ids=" ".join,
)
def test_usage(space: Space, words: list[str]) -> None:
    if words[0] != "execute":
        space.run("execute", "hello.yaml", "-q")
    done = space.run(*words)
    assert (done.code, done.out) == (2, "")
    assert "help: " in done.err.splitlines()[-1]
    if words[0] == "execute":
        assert not (space.folder / ".dagrun").exists()


# ---------------------------------------------------------------- what else readers see of agents


def test_a_node_for_programs_and_for_people(talk: Space) -> None:
    talk.run("execute", "talk.yaml", "-q")
    document = talk.run("trace", "show", "--node", "read", "--json").json
    (entry,) = document["entries"]
    assert (entry["model"], entry["input_tokens"], entry["output_tokens"]) == ("fake/small", 1900, 52)
    assert entry["agent"]["tools"] == {"Read": 1}
    steps = entry["attempts"][0]["conversation"]
    assert [step.get("tool", step.get("model")) for step in steps] == ["fake/small", "Read", "fake/small"]
    assert "canary" not in json.dumps(steps)
    assert entry["cost_usd"] == document["run"]["totals"]["cost_usd"] == sum(s.get("cost_usd", 0) for s in steps)
    whole = talk.run("trace", "show", "--node", "read", "--json", "--full").json["entries"][0]
    assert "The canary sings" in json.dumps(whole["attempts"][0]["conversation"])
    text = talk.run("trace", "show", "--node", "read").out
    assert "  tools      Read" in text
    assert "    asks for Read" in text
    assert "    | The canary sings" in talk.run("trace", "show", "--node", "read", "--full").out
    assert talk.run("trace", "show", "--full").code == 2


def test_what_a_run_cost_is_in_its_tables(talk: Space) -> None:
    done = talk.run("execute", "talk.yaml")
    assert "2 model calls · 1,900 tokens in · 52 out · spent $0.002" in done.err
    assert "of $0.10" in done.err
    assert "  1,952 tokens  $0.002" in done.err
    assert "COST" in talk.run("runs").out
    assert "TOKENS" in talk.run("trace", "show").out
    assert "spent $0.002" in talk.run("status").out
    talk.run("execute", "hello.yaml", "-q")
    assert "spent" not in talk.run("status").out


def test_out_of_money_is_its_own_end(talk: Space) -> None:
    talk.file("talk.yaml", FLOW.replace("cost_budget: 0.10", "cost_budget: 0.000001"))
    done = talk.run("execute", "talk.yaml")
    assert done.code == 5
    assert "OVER BUDGET" in done.err
    assert "dagrun execute talk.yaml --from read --outputs-of" in done.err
    assert talk.run("runs", "--json").json["runs"][0]["status"] == "over_budget"
    assert talk.run("status", "--exit-code").code == 5
    failures = talk.run("trace", "show", "--failures").out
    assert "read: over budget: " in failures
    again = talk.run("resume")
    assert again.code == 5, "what failed is tried again, and there is no more money"
    assert len(talk.run("trace", "show", "--node", "read", "--json").json["entries"][0]["attempts"]) == 2
