"""One server of tools spoken to in MCP: messages out, messages in, no process and no socket.

The client of one session: the handshake, the list of tools (all pages of it), calls and their results.
What the server asks of us is refused, but for a ping; what it tells beside that is ignored. A server
is as little trusted as a model: what it lists and answers is capped, and what is no MCP ends it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import isfinite
from typing import Literal, TypeAlias, cast

from dagrun import __version__
from dagrun.core.names import Json

# the newest that begins with a handshake first; a server answers with the one that it speaks
PROTOCOLS = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
MAX_LINE_BYTES = 16 << 20
MAX_PAGES = 100
MAX_TOOLS = 500
MAX_DEFINITIONS_BYTES = 1 << 20
MAX_DESCRIPTION_CHARS = 16_384
MAX_DEPTH = 100
MAX_WORDS = 300  # characters of a server's own words in an error
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)  # what models take as the name of a tool
_NO_METHOD = -32601

Message: TypeAlias = dict[str, Json]
State: TypeAlias = Literal["new", "opening", "listing", "ready"]


class McpLost(Exception):
    """The server said what is no MCP, or refused to begin: it can't be talked with."""


@dataclass(frozen=True, slots=True)
class McpResult:
    """What a call gave: `text` for the model, or what went wrong."""

    id: int
    ok: bool
    text: str


class Session:
    """One session with the server `server` (its name in the workflow).

    `begin` first; then hand what comes to `receive` (or, as bytes in lines, to `feed`) and send on what
    `outgoing` gives. `tools` are the definitions once the server has listed them, `notes` what was odd.
    """

    def __init__(self, server: str) -> None:
        self.server = server
        self.state: State = "new"
        self.protocol = ""
        self.tools: tuple[Json, ...] | None = None
        self.notes: list[str] = []
        self._names: dict[str, str] = {}  # ours → the server's
        self._found: list[Mapping[str, Json]] = []
        self._pages = 0
        self._last_id = 0
        self._handshake = 0  # the id of the request that the handshake or the listing waits for
        self._open: dict[int, int] = {}  # calls: id → room
        self._given_up: set[int] = set()
        self._out: list[Message] = []
        self._buffer = bytearray()

    # ------------------------------------------------------------ out

    def begin(self) -> None:
        """Ask for a session."""
        self.state = "opening"
        about: Json = {"name": "dagrun", "version": __version__}
        self._handshake = self._ask(
            "initialize", {"protocolVersion": PROTOCOLS[0], "capabilities": {}, "clientInfo": about}
        )

    def call(self, name: str, arguments: Mapping[str, Json], *, room: int) -> int:
        """The id of a call of the tool `mcp__server__name`. Raises KeyError for one that is not listed."""
        number = self._ask("tools/call", {"name": self._names[name], "arguments": dict(arguments)})
        self._open[number] = room
        return number

    def give_up(self, number: int, why: str) -> None:
        """Nobody waits for this call any more: the server is told, and its answer ignored."""
        if self._open.pop(number, None) is not None:
            self._given_up.add(number)
            self._tell("notifications/cancelled", {"requestId": number, "reason": why})

    @property
    def known(self) -> frozenset[str]:
        """Our names of the tools that are listed."""
        return frozenset(self._names)

    def outgoing(self) -> list[Message]:
        """The messages that are to be sent since the last time."""
        found, self._out = self._out, []
        return found

    def answers(self) -> list[Message]:
        """Of what is to be sent, what answers the server: that must not wait for an answer of its own."""
        found = [message for message in self._out if "method" not in message]
        self._out = [message for message in self._out if "method" in message]
        return found

    def lines(self) -> bytes:
        """The same as bytes, a line each."""
        return b"".join(encoded(message) + b"\n" for message in self.outgoing())

    def _ask(self, method: str, params: Message) -> int:
        self._last_id += 1
        self._out.append({"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params})
        return self._last_id

    def _tell(self, method: str, params: Message | None = None) -> None:
        self._out.append({"jsonrpc": "2.0", "method": method, **({"params": params} if params else {})})

    # ------------------------------------------------------------ in

    def feed(self, data: bytes) -> list[McpResult]:
        """The results that are complete with this piece of what the server wrote. Raises McpLost."""
        self._buffer += data
        found: list[McpResult] = []
        while (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[:end]).strip()
            del self._buffer[: end + 1]
            if line:
                found += self.receive(decoded(line))
        if len(self._buffer) > MAX_LINE_BYTES:
            raise McpLost("it does not end its line")
        return found

    def receive(self, message: Json) -> list[McpResult]:
        """The results in one message, or in a batch of them. Raises McpLost."""
        found: list[McpResult] = []
        for one in message if isinstance(message, list) else [message]:
            if not isinstance(one, dict) or one.get("jsonrpc") != "2.0":
                raise McpLost("it said something that is no JSON-RPC")
            result = self._one(one)
            if result is not None:
                found.append(result)
        return found

    def _one(self, message: Message) -> McpResult | None:
        number = message.get("id")
        if "method" in message:
            if number is not None:
                self._asked(message)
            return None
        if number is None and isinstance(message.get("error"), dict):
            raise McpLost(f"it could not read what we said: {_words(message)}")
        if type(number) is not int or ("result" in message) == ("error" in message):
            raise McpLost("it said something that is no answer")
        if number in self._given_up:
            self._given_up.discard(number)
            return None
        if number in self._open:
            return _result(number, message, self._open.pop(number))
        if number != self._handshake:
            raise McpLost("it answered what was not asked")
        self._handshake = 0
        self._step(message)
        return None

    def _asked(self, message: Message) -> None:
        """The server asks: a ping is answered, all else refused."""
        number = message["id"]
        if type(number) is not int and not (isinstance(number, str) and len(number) <= MAX_WORDS):
            raise McpLost("it asked something with no id that could be answered")
        answer: Message = {"jsonrpc": "2.0", "id": number}
        if message["method"] == "ping":
            answer["result"] = {}
        else:
            answer["error"] = {"code": _NO_METHOD, "message": "not offered by this client"}
        self._out.append(answer)

    # ------------------------------------------------------------ handshake and listing

    def _step(self, message: Message) -> None:
        if "error" in message:
            what = "to begin" if self.state == "opening" else "to list its tools"
            raise McpLost(f"it refused {what}: {_words(message)}")
        result = message["result"]
        if not isinstance(result, dict):
            raise McpLost("it said something that is no answer")
        if self.state == "opening":
            self._opened(result)
        else:
            self._listed(result)

    def _opened(self, result: Message) -> None:
        protocol = result.get("protocolVersion")
        if not isinstance(protocol, str) or protocol not in PROTOCOLS:
            raise McpLost(f"it speaks protocol {_short(protocol)}, and dagrun {', '.join(PROTOCOLS)}")
        self.protocol = protocol
        self.state = "listing"
        self._tell("notifications/initialized")
        offers = result.get("capabilities")
        if isinstance(offers, dict) and isinstance(offers.get("tools"), dict):
            self._handshake = self._ask("tools/list", {})
        else:
            self._done()

    def _listed(self, result: Message) -> None:
        tools = result.get("tools")
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise McpLost("it listed something that is no tools")
        self._found += cast("list[Mapping[str, Json]]", tools)
        self._pages += 1
        if len(self._found) > MAX_TOOLS or self._pages > MAX_PAGES:
            raise McpLost(f"it lists more than {MAX_TOOLS} tools, or on more than {MAX_PAGES} pages")
        cursor = result.get("nextCursor")
        if cursor is None:
            self._done()
        elif isinstance(cursor, str):
            self._handshake = self._ask("tools/list", {"cursor": cursor})
        else:
            raise McpLost("it listed something that is no tools")

    def _done(self) -> None:
        self.tools, self._names, notes = definitions(self.server, self._found)
        self.notes += notes
        self._found = []
        self.state = "ready"


# ---------------------------------------------------------------- definitions


def definitions(
    server: str, tools: Iterable[Mapping[str, Json]]
) -> tuple[tuple[Json, ...], dict[str, str], list[str]]:
    """(definitions as models take them, in order of name; our names → the server's; what was left out).

    Only what a model is shown is kept: name, description, schema. Raises McpLost for what is no tool.
    """
    made: dict[str, Json] = {}
    names: dict[str, str] = {}
    notes: list[str] = []
    for tool in tools:
        name, words = tool.get("name"), tool.get("description") or ""
        schema = tool.get("inputSchema", {"type": "object"})
        if not isinstance(name, str) or not isinstance(words, str) or not isinstance(schema, dict):
            raise McpLost("it listed something that is no tool")
        if schema.get("type", "object") != "object" or len(words) > MAX_DESCRIPTION_CHARS:
            raise McpLost(f"its tool {_short(name)} takes no object, or is described at more than any length")
        ours = f"mcp__{server}__{name}"
        if _NAME.fullmatch(ours) is None or ours in made:
            why = "it is listed twice" if ours in made else f"models take no tool of the name {_short(ours)}"
            notes.append(f"mcp server `{server}`: a tool is left out: {why}")
            continue
        names[ours] = name
        parameters: Json = {"type": "object", **schema}
        made[ours] = {"type": "function", "function": {"name": ours, "description": words, "parameters": parameters}}
    found = tuple(made[name] for name in sorted(made))
    if is_deep(list(found)):
        raise McpLost(f"its tools are described more than {MAX_DEPTH} deep")
    if len(_canonical(found)) > MAX_DEFINITIONS_BYTES:
        raise McpLost(f"its tools are described in more than {MAX_DEFINITIONS_BYTES:,} bytes")
    return found, names, notes


def digest(tools: Iterable[Json]) -> str:
    """The sha256 of definitions, in hex: what a workflow pins."""
    return sha256(_canonical(tuple(tools))).hexdigest()


def _canonical(tools: tuple[Json, ...]) -> bytes:
    text = json.dumps(list(tools), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


# ---------------------------------------------------------------- results


def _result(number: int, message: Message, room: int) -> McpResult:
    if "error" in message:
        return McpResult(number, False, capped(f"the server refused the call: {_words(message)}", room))
    result = message["result"]
    content = result.get("content", []) if isinstance(result, dict) else None
    if not isinstance(result, dict) or not isinstance(content, list):
        raise McpLost("it said something that is no result")
    text = "\n".join(_part(part) for part in content)
    if not content and result.get("structuredContent") is not None:
        if is_deep(result["structuredContent"]):
            raise McpLost(f"it gave a value that is nested more than {MAX_DEPTH} deep")
        text = json.dumps(result["structuredContent"], sort_keys=True, ensure_ascii=False)
    return McpResult(number, result.get("isError") is not True, capped(text or "(no output)", room))


def _part(part: Json) -> str:
    """One part of a result as text; what is no text is named."""
    if not isinstance(part, dict):
        raise McpLost("it said something that is no result")
    kind, text = part.get("type"), part.get("text")
    if kind == "text" and isinstance(text, str):
        return text
    if kind == "resource" and isinstance(part.get("resource"), dict):
        inner = cast(Message, part["resource"])
        return inner_text if isinstance(inner_text := inner.get("text"), str) else "[resource omitted]"
    if kind == "resource_link":
        return f"[link: {_short(part.get('uri'))}]"
    return f"[{kind if kind in ('image', 'audio') else 'content'} omitted]"


def capped(text: str, room: int) -> str:
    """A text of at most `room` characters or a little more: both ends, and how much lies between."""
    if len(text) <= room:
        return text
    half = max(room // 2, 1)
    return f"{text[:half]}\n… {len(text) - 2 * half:,} characters left out …\n{text[-half:]}"


def _words(message: Message) -> str:
    """What a server says of an error, in short."""
    error = message.get("error")
    if not isinstance(error, dict):
        return "it does not say why"
    return f"{_short(error.get('message'))} ({_short(error.get('code'))})"


def _short(value: Json) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MAX_WORDS else text[:MAX_WORDS] + "…"


def encoded(message: Message) -> bytes:
    """One message as bytes, without a line end in it."""
    return json.dumps(message).encode()


def decoded(data: bytes) -> Json:
    """One message from bytes, its numbers finite. Raises McpLost."""
    try:
        return cast(Json, json.loads(data, parse_constant=_finite, parse_float=_finite))
    except (ValueError, RecursionError):
        raise McpLost("it said something that is no JSON") from None


def _finite(text: str) -> float:
    made = float(text)
    if not isfinite(made):
        raise ValueError(f"{text} is no number")
    return made


def is_deep(value: Json) -> bool:
    """Whether a value is nested deeper than whoever goes through it later could follow."""
    level: list[Json] = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for one in level for inner in _inside(one)]
        if not level:
            return False
    return True


def _inside(value: Json) -> Iterable[Json]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
