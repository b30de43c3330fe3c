"""The fake provider: answers from a rules file, for tests, examples and runs without a key.

    rules:
      - {node: review, turn: 1, try: 1, error: {kind: rate_limit, retry_after: 2s}}
      - node: review                        # an id, a pattern (rev*) or a list of them
        last: "Timeout exceeded"            # a regular expression in the last message; `prompt`: in any
        tools: [{Read: {file_path: a.txt}}]
      - {node: review, json: {verdict: fine}, latency: 20ms, usage: {input: 900, output: 12}}

The first rule that fits answers, and only it; what no rule fits is an error that says which came
close. The same question always gets the same answer: nothing here counts, waits or remembers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, cast, get_args

from dagrun.agent.messages import Answer, CallFailed, ErrorKind, FinishReason, Reply, Request, ToolCall, Usage
from dagrun.core.names import Json
from dagrun.core.workflow import Fault
from dagrun.errors import InputError, Problem
from dagrun.flowfile import fields
from dagrun.flowfile.source import Tree, Value, parse

KINDS = get_args(ErrorKind)
FINISHES = ("stop", "length", "refused")
MAX_RULES = 10_000
_STATUS: dict[ErrorKind, int | None] = {"rate_limit": 429, "overloaded": 503, "bad_request": 400, "auth": 401}
_KIND_OF: dict[int, ErrorKind] = {
    400: "bad_request",
    401: "auth",
    402: "bad_request",
    403: "auth",
    404: "bad_request",
    408: "timeout",
    429: "rate_limit",
    500: "overloaded",
    502: "overloaded",
    503: "overloaded",
    504: "overloaded",
}
_BYTES_PER_TOKEN = 4


class Asked(NamedTuple):
    """What a rule is held against."""

    node: str
    turn: int
    tries: int
    attempt: int
    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule: what it fits (None: anything) and what it answers. `line` is its place in the file."""

    line: int
    node: tuple[str, ...] | None = None
    model: tuple[str, ...] | None = None
    turn: tuple[int, ...] | None = None
    tries: tuple[int, ...] | None = None
    attempt: tuple[int, ...] | None = None
    last: re.Pattern[str] | None = None
    prompt: re.Pattern[str] | None = None
    text: str = ""
    tools: tuple[tuple[str, Json], ...] = ()
    finish: FinishReason = "stop"
    error: CallFailed | None = None
    latency_ms: int = 0
    usage: Usage | Literal["none", "counted"] = "counted"

    def misfits(self, asked: Asked) -> Iterator[str]:
        """What of a question this rule does not fit, in words."""
        if self.node is not None and not any(fnmatchcase(asked.node, pattern) for pattern in self.node):
            yield f"node: {', '.join(self.node)}"
        if self.model is not None and not any(fnmatchcase(asked.request.model, pattern) for pattern in self.model):
            yield f"model: {', '.join(self.model)}"
        for name, wanted, got in (
            ("turn", self.turn, asked.turn),
            ("try", self.tries, asked.tries),
            ("attempt", self.attempt, asked.attempt),
        ):
            if wanted is not None and got not in wanted:
                yield f"{name}: {', '.join(map(str, wanted))}"
        if self.last is not None and not self.last.search(last_message(asked.request)):
            yield f"last: {self.last.pattern}"
        if self.prompt is not None and not any(self.prompt.search(m.content) for m in asked.request.messages):
            yield f"prompt: {self.prompt.pattern}"


class FakeProvider:
    """Rules that answer. `load` makes one from a file."""

    def __init__(self, rules: tuple[Rule, ...], file: str) -> None:
        self.rules = rules
        self.file = file

    def answer(self, node: str, turn: int, request: Request, *, tries: int = 1, attempt: int = 1) -> tuple[Answer, int]:
        """(answer, milliseconds that the caller has to let pass first). Raises InputError when no rule fits.

        `turn` is the reply that is asked for, from 1; `tries` how often it has been asked for, this time
        included; `attempt` the attempt of the node.
        """
        asked = Asked(node, turn, tries, attempt, request)
        for rule in self.rules:
            if next(rule.misfits(asked), None) is None:
                return _answer(rule, asked), rule.latency_ms
        raise InputError((self._no_rule(asked),))

    def _no_rule(self, asked: Asked) -> Problem:
        """What was asked, and which rules came close."""
        said = " ".join(last_message(asked.request).split())
        message = (
            f"no rule answers node `{asked.node}`, turn {asked.turn}, try {asked.tries}, attempt {asked.attempt}, "
            f"model `{asked.request.model}`, whose last message is: {_both_ends(said)}"
        )
        near = sorted(((list(rule.misfits(asked)), rule.line) for rule in self.rules), key=lambda pair: len(pair[0]))
        close = [f"the rule at line {line} wants {' and '.join(why)}" for why, line in near[:3]]
        hint = "; ".join(close) or "the file has no rules"
        line = near[0][1] if near else 0
        return Problem(code="no-rule", message=message, file=self.file, line=line, column=1 if line else 0, hint=hint)


def _both_ends(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:100]} … {text[-100:]}"


def last_message(request: Request) -> str:
    """The content of the last message of a request."""
    return request.messages[-1].content if request.messages else ""


def _answer(rule: Rule, asked: Asked) -> Answer:
    if rule.error is not None:
        return rule.error
    calls = tuple(
        ToolCall(
            id=f"call_{asked.turn}_{k}",
            name=name,
            arguments=given if isinstance(given, dict) else None,
            text=given if isinstance(given, str) else "",
        )
        for k, (name, given) in enumerate(rule.tools, 1)
    )
    return Reply(
        text=rule.text,
        tool_calls=calls,
        finish="tool_calls" if calls and rule.finish == "stop" else rule.finish,
        usage=_usage(rule, asked.request),
        model=asked.request.model,
        first_token_ms=rule.latency_ms,
        duration_ms=rule.latency_ms,
    )


def _usage(rule: Rule, request: Request) -> Usage | None:
    """What the rule says, else a count: four bytes are a token, and an answer has no more than it may."""
    if isinstance(rule.usage, Usage):
        return rule.usage
    if rule.usage == "none":
        return None
    given = len(request.canonical().encode("utf-8", "surrogatepass"))
    made = len(rule.text.encode()) + sum(len(json.dumps([name, value])) for name, value in rule.tools)
    output = request.max_tokens if rule.finish == "length" else min(-(-made // _BYTES_PER_TOKEN), request.max_tokens)
    return Usage(input=-(-given // _BYTES_PER_TOKEN), output=output)


# ---------------------------------------------------------------- the file


def load(data: bytes, file: str) -> FakeProvider:
    """The provider of a rules file. Raises InputError with everything that is wrong with it."""
    tree = parse(data, file)
    reader = _Reader(tree)
    rules = reader.document(tree.value)
    problems = [*tree.problems, *(tree.problem(fault) for fault in reader.faults)]
    if problems:
        raise InputError(tuple(sorted(problems, key=lambda p: (p.line, p.column))))
    return FakeProvider(rules, file)


Path = tuple[str | int, ...]
Key = tuple[str, Callable[[Value], Any]]  # the field of Rule, and what reads its value


class _Reader:
    """Reads a tree, and notes all that is wrong."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.faults: list[Fault] = []

    def document(self, value: Value) -> tuple[Rule, ...]:
        """The rules of a whole file."""
        if not isinstance(value, dict):
            self._fault((), "a rules file is a mapping with the key `rules`", "write `rules:`, then a list")
            return ()
        self._unknown(value, ("rules",), ())
        rules = value.get("rules")
        if not isinstance(rules, list):
            what = "`rules` is missing" if rules is None else f"`rules` is a list, not {fields.describe(rules)}"
            self._fault(() if rules is None else ("rules",), what, "write `rules:`, then `- {node: …, text: …}`")
            return ()
        if len(rules) > MAX_RULES:
            self._fault(("rules",), f"there may be {MAX_RULES:,} rules, not {len(rules):,}")
            return ()
        return tuple(self._rule(rule, ("rules", i)) for i, rule in enumerate(rules))

    def _rule(self, value: Value, path: Path) -> Rule:
        made = Rule(line=self._tree.problem(Fault(path, "rule", "")).line)
        if not isinstance(value, dict):
            self._fault(path, f"a rule is a mapping, not {fields.describe(value)}", "write {node: …, text: …}")
            return made
        before = len(self.faults)
        self._unknown(value, _KEYS, path)
        got: dict[str, Any] = {"line": made.line}
        for name, (field, read) in _KEYS.items():
            if name in value:
                try:
                    got[field] = read(value[name])
                except fields.Wrong as error:
                    self._defects(error, (*path, name))
        said = [name for name in ("text", "json") if name in value]
        if len(said) == 2:
            self._fault((*path, "json"), "a rule has `text` or `json`, not both", on_key=True)
        if "error" in value:
            for name in ("text", "json", "tools", "finish", "usage"):
                if name in value:
                    self._fault((*path, name), f"a rule with `error` has no `{name}`", on_key=True)
        elif not said and "tools" not in value and "finish" not in value:
            hint = "write `text`, `json`, `tools`, `finish` or `error`"
            self._fault(path, "this rule answers nothing", hint)
        return Rule(**got) if len(self.faults) == before else made

    def _unknown(self, value: dict[str, Value], known: Any, path: Path) -> None:
        for name in value:
            if name not in known:
                from dagrun.flowfile.words import meant

                hint = meant(name, known) or f"there are {', '.join(f'`{key}`' for key in known)}"
                self._fault((*path, name), f"`{name}` is no key here", hint, code="unknown-key", on_key=True)

    def _defects(self, error: fields.Wrong, path: Path) -> None:
        for d in error.defects:
            self.faults.append(Fault((*path, *d.at), d.code, d.message, d.hint, d.on_key))

    def _fault(
        self, path: Path, message: str, hint: str = "", *, code: str = "bad-value", on_key: bool = False
    ) -> None:
        self.faults.append(Fault(path, code, message, hint, on_key))


# ---------------------------------------------------------------- values


def _names(value: Value) -> tuple[str, ...]:
    """An id or pattern, or a list of them."""
    return tuple(fields.each(value, fields.line)) if isinstance(value, list) else (fields.line(value),)


def _counts(value: Value) -> tuple[int, ...]:
    """A number from 1, or a list of them."""
    if not isinstance(value, list):
        return (fields.integer(value, least=1),)
    return tuple(int(n) for n in fields.each(value, lambda v: str(fields.integer(v, least=1)), "a list of numbers"))


def _pattern(value: Value) -> re.Pattern[str]:
    text = fields.filled(value)
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise fields.wrong(
            f"this is no regular expression: {error}", "put a \\ before what is meant as it is"
        ) from None


def _json_text(value: Value) -> str:
    return json.dumps(fields.json(value), ensure_ascii=False)


def _tools(value: Value) -> tuple[tuple[str, Json], ...]:
    """Calls in their order: `{Read: {file_path: a}}`; arguments that are text are sent as a broken model would."""
    hint = "write [{Read: {file_path: a.txt}}]"
    if not isinstance(value, list) or not value:
        raise fields.wrong(f"a list of calls is wanted here, not {fields.describe(value)}", hint)
    made: list[tuple[str, Json]] = []
    defects: list[fields.Defect] = []
    for i, item in enumerate(value):
        if not isinstance(item, dict) or len(item) != 1:
            defects.append(fields.Defect("a call is one name with its arguments", hint, (i,)))
            continue
        [(name, given)] = item.items()
        arguments = fields.json(given)
        if not isinstance(arguments, dict | str):
            message = f"arguments are a mapping, not {fields.describe(given)}"
            defects.append(fields.Defect(message, f"write {{{name}: {{}}}}", (i, name)))
        made.append((name, arguments))
    if defects:
        raise fields.Wrong(*defects)
    return tuple(made)


def _error(value: Value) -> CallFailed:
    """A kind of error or an HTTP status, alone or in a mapping with more about it."""
    if not isinstance(value, dict):
        return _failed(*_kind(value))
    readers: dict[str, Callable[[Value], Any]] = {
        "kind": _kind,
        "message": fields.filled,
        "status": lambda v: fields.integer(v, least=100, most=599),
        "retry_after": fields.duration,
        "partial": fields.text,
    }
    got = _mapping(value, readers)
    if "kind" not in got and "status" not in got:
        raise fields.wrong("an error has a `kind` or a `status`", f"kinds are {', '.join(KINDS)}")
    kind, status = got["kind"] if "kind" in got else _kind_of_status(got["status"])
    return _failed(kind, got.get("status", status), got.get("message"), got.get("retry_after"), got.get("partial", ""))


def _failed(
    kind: ErrorKind, status: int | None, message: str | None = None, after: float | None = None, partial: str = ""
) -> CallFailed:
    text = message or f"the fake provider's {kind.replace('_', ' ')}"
    return CallFailed(kind=kind, message=text, status=status, retry_after_s=after, partial=partial)


def _kind(value: Value) -> tuple[ErrorKind, int | None]:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return _kind_of_status(fields.integer(value))
    kind = cast(ErrorKind, fields.choice(*KINDS)(value))
    return kind, _STATUS.get(kind)


def _kind_of_status(status: int) -> tuple[ErrorKind, int | None]:
    if status not in _KIND_OF:
        known = ", ".join(str(code) for code in sorted(_KIND_OF))
        raise fields.wrong(f"{status} is no status that stands for an error here", f"there are {known}")
    return _KIND_OF[status], status


def _usage_of(value: Value) -> Usage | Literal["none"]:
    """`none`, or tokens by name."""
    names = ("input", "output", "cached", "cache_written", "reasoning")
    if value == "none":
        return "none"
    if not isinstance(value, dict):
        hint = "write {input: 900, output: 12}, or none"
        raise fields.wrong(f"tokens by name are wanted here, not {fields.describe(value)}", hint)
    got = _mapping(value, dict.fromkeys(names, lambda v: fields.integer(v, least=0)))
    if got.get("cached", 0) + got.get("cache_written", 0) > got.get("input", 0):
        raise fields.wrong("`cached` and `cache_written` are parts of `input`, and more than it")
    if got.get("reasoning", 0) > got.get("output", 0):
        raise fields.wrong("`reasoning` is a part of `output`, and more than it")
    return Usage(**got)


def _mapping(value: Value, readers: dict[str, Callable[[Value], Any]]) -> dict[str, Any]:
    """A mapping with some of the keys that `readers` has."""
    if not isinstance(value, dict):
        raise fields.wrong(f"a mapping is wanted here, not {fields.describe(value)}")
    got: dict[str, Any] = {}
    defects: list[fields.Defect] = []
    for name, item in value.items():
        if name not in readers:
            hint = f"there are {', '.join(readers)}"
            defects.append(fields.Defect(f"`{name}` is no key here", hint, (name,), "unknown-key", on_key=True))
            continue
        try:
            got[name] = readers[name](item)
        except fields.Wrong as error:
            defects += [d._replace(at=(name, *d.at)) for d in error.defects]
    if defects:
        raise fields.Wrong(*defects)
    return got


_KEYS: dict[str, Key] = {
    "node": ("node", _names),
    "model": ("model", _names),
    "turn": ("turn", _counts),
    "try": ("tries", _counts),
    "attempt": ("attempt", _counts),
    "last": ("last", _pattern),
    "prompt": ("prompt", _pattern),
    "text": ("text", fields.text),
    "json": ("text", _json_text),
    "tools": ("tools", _tools),
    "finish": ("finish", fields.choice(*FINISHES)),
    "error": ("error", _error),
    "latency": ("latency_ms", lambda v: round(fields.duration(v, most=3600.0) * 1000)),
    "usage": ("usage", _usage_of),
}
