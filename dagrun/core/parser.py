"""Text → tree: the grammar of GitHub Actions, read by hand.

From loosest to tightest: `||`, `&&`, `== !=`, `< <= > >=`, `!`, then `.name` and `[…]`. Knows no
values. Invariant: no text makes the parser recurse more than MAX_DEPTH times or work more than
linearly; whatever it refuses it refuses with a place and, mostly, with what to write instead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal as OneOf
from typing import NoReturn, cast

from dagrun.core.functions import MAX_SOURCE, SIGNATURES, ExpressionError
from dagrun.core.tree import (
    CONTEXTS,
    Access,
    Call,
    Compare,
    Expression,
    Literal,
    Logical,
    Name,
    Not,
    Template,
    children,
)

MAX_DEPTH = 50


_SPACE = " \t\r\n"
_TOKEN = re.compile(
    r"""[ \t\r\n]*+(?:
      (?P<number>[-+]?(?:0x[0-9A-Fa-f]++|0o[0-7]++|(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][-+]?[0-9]++)?+)
        (?![A-Za-z0-9_.]))
    | (?P<name>[A-Za-z_][A-Za-z0-9_-]*+)
    | (?P<string>'(?:[^']++|'')*+')
    | (?P<op>==|!=|<=|>=|&&|\|\||[<>!()\[\].,])
    | (?P<end>\Z))""",
    re.VERBOSE,
)
_LEVELS = {"||": 1, "&&": 2, "==": 3, "!=": 3, "<": 4, "<=": 4, ">": 4, ">=": 4}
_KEYWORDS: Mapping[str, bool | None] = {"null": None, "true": True, "false": False}
_FUNCTION_NAMES = {name.lower(): name for name in SIGNATURES}
_NO_FILTER = "the object filter `*` of GitHub Actions does not exist here"
_HABITS = {
    "and": "write && for and",
    "or": "write || for or",
    "not": "write ! for not",
    "github": "the run's own facts are in `run`, the caller's in `env` and `params`",
    "needs": "outputs of other nodes are nodes.<id>.<output>",
    "steps": "outputs of other nodes are nodes.<id>.<output>",
    "vars": "values for a whole workflow are declared under `params:`",
    "secrets": "name the secret under `secrets:` of the node; it arrives in its environment",
    "None": "write null",
    "True": "write true",
    "False": "write false",
    "NaN": "there are only finite numbers",
    "Infinity": "there are only finite numbers",
}
_STRANGE = {
    '"': ("text is quoted with single quotes in expressions", "write 'text', and '' for a quote inside"),
    "'": ("the quoted text is not closed", "close it with ', and write '' for a quote inside"),
    "=": ("`=` is not an operator", "write == to compare"),
    "&": ("`&` is not an operator", "write && for and"),
    "|": ("`|` is not an operator", "write || for or"),
    "?": ("`?` is not an operator", "write condition && 'this' || 'that'"),
    "$": ("`$` can't stand inside an expression", "write the name alone: params.x, without ${{ }} or $"),
    "*": (_NO_FILTER, "name the element, a.b or a[0]; there is no arithmetic either"),
    "{": ("`{` can't stand inside an expression", "for an object write fromJSON('{…}')"),
    "}": ("`}` can't stand inside an expression", "for an object write fromJSON('{…}')"),
}
_ARITHMETIC = "there is no arithmetic in expressions: compute it in a node"


class _Parser:
    """One expression in text[start:end]; recursion only through `expression`, at most MAX_DEPTH times."""

    __slots__ = ("at", "depth", "end", "kind", "last", "next", "start", "text", "token")

    def __init__(self, text: str, start: int, end: int) -> None:
        self.text, self.start, self.end = text, start, end
        self.next = self.last = self.at = start
        self.depth = 0
        self.kind = self.token = ""

    def parse(self) -> Expression:
        if self.end - self.start > MAX_SOURCE:
            message = f"the expression has {self.end - self.start} characters, more than {MAX_SOURCE}"
            raise ExpressionError(message, self.start, self.end - self.start, "compute it in a node")
        self.advance()
        if self.kind == "end":
            raise ExpressionError("the expression is empty", self.start, max(1, self.end - self.start), "write a value")
        tree = self.expression()
        if self.kind != "end":
            self.unexpected("an operator or the end")
        _check_height(tree)
        return tree

    def advance(self) -> None:
        """Read the next token into kind, token, at; `last` is where the one before ended."""
        self.last = self.next
        match = _TOKEN.match(self.text, self.next, self.end)
        if match is None or match.lastgroup is None:
            self.strange()
        self.kind, self.token = match.lastgroup, match[match.lastgroup]
        self.at, self.next = match.start(match.lastgroup), match.end()

    def strange(self) -> NoReturn:
        at = self.next
        while self.text[at] in _SPACE:
            at += 1
        char = self.text[at]
        if char in "0123456789.":
            stop = at + 1
            while stop < self.end and (self.text[stop].isalnum() or self.text[stop] in "_.-+"):
                stop += 1
            hint = "numbers are 1, -2.5, 1e3, 0xff; text is 'quoted'"
            raise ExpressionError(f"`{_short(self.text[at:stop])}` is not a number", at, stop - at, hint)
        message, hint = _STRANGE.get(char, (f"unexpected character {char!r}", ""))
        if char in "+-/%^":
            hint = _ARITHMETIC
        length = self.end - at if char == "'" else 1
        raise ExpressionError(message, at, length, hint)

    def unexpected(self, wanted: str) -> NoReturn:
        if self.kind == "end":
            at = max(self.start, min(self.last, self.end - 1))
            raise ExpressionError(f"the expression ends where {wanted} is expected", at, 1)
        hint = ""
        if self.kind == "number":
            after_dot = self.token.startswith(".") and self.at == self.last
            hint = "an element of an array is a[0]" if after_dot else _ARITHMETIC if self.token[0] in "-+" else ""
        elif self.kind == "name":
            hint = _HABITS.get(self.token.lower(), "")
        raise ExpressionError(f"`{_short(self.token)}` where {wanted} is expected", self.at, len(self.token), hint)

    def expect(self, op: str) -> None:
        if self.kind != "op" or self.token != op:
            self.unexpected(f"`{op}`")
        self.advance()

    def expression(self, floor: int = 1) -> Expression:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ExpressionError(f"the expression is nested more than {MAX_DEPTH} deep", self.at, len(self.token) or 1)
        left = self.unary()
        while self.kind == "op" and (level := _LEVELS.get(self.token, 0)) >= floor:
            op = self.token
            self.advance()
            right = self.expression(level + 1)
            length = right.offset + right.length - left.offset
            if op == "&&" or op == "||":
                before = left.operands if isinstance(left, Logical) and left.op == op else (left,)
                left = Logical(cast("OneOf['&&']", op), (*before, right), left.offset, length)
            else:
                left = Compare(cast("OneOf['==']", op), left, right, left.offset, length)
        self.depth -= 1
        return left

    def unary(self) -> Expression:
        nots: list[int] = []
        while self.kind == "op" and self.token == "!":
            nots.append(self.at)
            self.advance()
        tree = self.postfix()
        for at in reversed(nots):
            tree = Not(tree, at, tree.offset + tree.length - at)
        return tree

    def postfix(self) -> Expression:
        offset = self.at
        target = self.primary()
        steps: list[str | int | Expression] = []
        while self.kind == "op" and self.token in (".", "["):
            if self.token == ".":
                self.advance()
                if self.kind != "name":
                    self.unexpected("a name")
                steps.append(self.token)
                self.advance()
                continue
            self.advance()
            step = self.expression()
            self.expect("]")
            steps.append(_static(step))
        return Access(target, tuple(steps), offset, self.last - offset) if steps else target

    def primary(self) -> Expression:
        kind, token, at = self.kind, self.token, self.at
        if kind == "op" and token == "(":
            self.advance()
            inner = self.expression()
            self.expect(")")
            return inner
        if kind not in ("name", "number", "string"):
            self.unexpected("a value")
        self.advance()
        if kind == "number":
            return Literal(_number(token, at), at, len(token))
        if kind == "string":
            return Literal(token[1:-1].replace("''", "'"), at, len(token))
        if self.kind == "op" and self.token == "(":
            return self.call(token, at)
        if token in _KEYWORDS:
            return Literal(_KEYWORDS[token], at, len(token))
        if token in CONTEXTS:
            return Name(token, at, len(token))
        raise _unknown_name(token, at)

    def call(self, token: str, at: int) -> Expression:
        name = _FUNCTION_NAMES.get(token.lower())
        if name is None:
            hint = _nearest(token, SIGNATURES) or f"there are {', '.join(sorted(SIGNATURES))}"
            raise ExpressionError(f"there is no function `{_short(token)}`", at, len(token), hint)
        self.advance()
        args: list[Expression] = []
        while not (self.kind == "op" and self.token == ")"):
            if args:
                self.expect(",")
            args.append(self.expression())
        self.advance()
        low, high = SIGNATURES[name]
        if not low <= len(args) <= high:
            wanted = str(low) if low == high else f"{low} or {high}" if high == low + 1 else f"at least {low}"
            what = (
                f"{wanted} argument{'' if wanted.endswith('1') else 's'}, not {len(args)}" if high else "no arguments"
            )
            raise ExpressionError(f"{name}() takes {what}", at, self.last - at)
        return Call(name, tuple(args), at, self.last - at)


def _static(step: Expression) -> str | int | Expression:
    """An index that is written as text or a whole number as just that."""
    if isinstance(step, Literal) and isinstance(step.value, str | int) and not isinstance(step.value, bool):
        return step.value
    return step


def _number(token: str, at: int) -> int | float:
    body = token.lstrip("+-")
    base = 16 if body.startswith("0x") else 8 if body.startswith("0o") else 10
    if base == 10 and not body.isdigit():
        value: int | float = float(body)
    else:
        # 310 digits are more than any finite double has; int() itself refuses very long text
        value = int(body, base) if len(body) <= 310 else math.inf
    if value > 1.7e308:  # also infinity; beyond it a double has nothing
        raise ExpressionError("the number is too large", at, len(token))
    return -value if token[0] == "-" else value


def _unknown_name(token: str, at: int) -> ExpressionError:
    if token == "item":
        return ExpressionError("`item` belongs to `foreach`, which dagrun does not have yet", at, 4)
    name = _FUNCTION_NAMES.get(token.lower())
    if name is not None:
        call = f"{name}({'…' if SIGNATURES[name][0] else ''})"
        return ExpressionError(f"`{name}` is a function", at, len(token), f"write {call}")
    hint = _HABITS.get(token) or _nearest(token, CONTEXTS)
    hint = hint or f"names start with {', '.join(CONTEXTS[:-1])} or {CONTEXTS[-1]}; text is quoted: '{_short(token)}'"
    return ExpressionError(f"there is no `{_short(token)}`", at, len(token), hint)


def _short(text: str) -> str:
    """At most 40 characters of something strange, for a message."""
    return text if len(text) <= 40 else text[:39] + "…"


def _nearest(word: str, words: Mapping[str, object] | tuple[str, ...]) -> str:
    from difflib import get_close_matches  # only when something is wrong

    near = get_close_matches(word[:40], list(words), 1)
    return f"did you mean `{near[0]}`?" if near else ""


def _check_height(tree: Expression) -> None:
    """Chains such as `a == b == c …` and `!!!…` grow without nesting: hold the evaluator's depth as well."""
    todo = [(tree, 1)]
    while todo:
        node, depth = todo.pop()
        if depth > MAX_DEPTH:
            raise ExpressionError(f"the expression is nested more than {MAX_DEPTH} deep", node.offset, node.length)
        todo.extend((child, depth + 1) for child in children(node))


_QUOTED_OR_CLOSE = re.compile(r"'[^']*+'|\}\}|'")


def _close(text: str, start: int) -> int:
    """Where the `}}` is that closes the `${{` at `start`: the first one outside quotes."""
    at = start + 3
    while match := _QUOTED_OR_CLOSE.search(text, at):
        if match[0] == "}}":
            return match.start()
        if match[0] == "'":
            # The quote is never closed. The parser says so, or finds what is wrong before it.
            stop = text.find("}}", match.end())
            _Parser(text, start + 3, min(len(text) if stop < 0 else stop, start + 3 + MAX_SOURCE)).parse()
            break
        at = match.end()
    raise ExpressionError("`${{` is not closed", start, 3, "close it with }}; for the text itself write ${{ '${{' }}")


@lru_cache(maxsize=8192)
def parse(text: str) -> Expression:
    """The tree of a bare expression; one `${{ }}` around the whole of it is accepted.

    Raises ExpressionError, with offsets into `text` as it was given.
    """
    end = len(text.rstrip(_SPACE))
    start = min(end, len(text) - len(text.lstrip(_SPACE)))
    if not text.startswith("${{", start):
        return _Parser(text, start, end).parse()
    close = _close(text, start)
    if close + 2 != end:
        hint = "put the whole expression inside one ${{ }}, or leave ${{ }} out"
        raise ExpressionError("only a part of the expression is inside ${{ }}", close + 2, end - close - 2, hint)
    return _Parser(text, start + 3, close).parse()


def has_expression(text: str) -> bool:
    """Whether `text` holds a `${{`; everything else is literal."""
    return "${{" in text


def parse_template(text: str) -> Template:
    """Text with any number of `${{ … }}`; raises ExpressionError, with offsets into `text`."""
    return _parse_template(text) if "${{" in text else Template((text,))


@lru_cache(maxsize=8192)
def _parse_template(text: str) -> Template:
    parts: list[str | Expression] = []
    at = 0
    while (start := text.find("${{", at)) >= 0:
        if start > at:
            parts.append(text[at:start])
        close = _close(text, start)
        parts.append(_Parser(text, start + 3, close).parse())
        at = close + 2
    if at < len(text):
        parts.append(text[at:])
    return Template(tuple(parts))
