"""Random workflows that are right: every key, nasty texts, and a fixed pool of ids so that two overlap."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from dagrun.core.names import Json, Outcome, Schedule
from dagrun.core.workflow import (
    Input,
    Limits,
    Node,
    OnFailure,
    Output,
    Param,
    Retry,
    Review,
    Secret,
    Workflow,
)

NASTY = (
    "a: b: c",
    "x #y",
    "#",
    "- a",
    "-",
    "? k",
    "true",
    "no",
    "null",
    "~",
    "012",
    "3.10",
    "1e3",
    "0x1f",
    "1_000",
    "=",
    "<<",
    "2024-01-01",
    "12:30:45",
    "*.pem",
    "&a",
    "!cancelled()",
    "%x",
    "@x",
    "`x`",
    "'",
    '"',
    "it's",
    'say "hi"',
    "\\n",
    "{a}",
    "[a]",
    "a, b",
    "a]",
    "| x",
    "> x",
    " lead",
    "trail ",
    "tab\there",
    "two\nlines",
    "two\nlines\n",
    "a\n\n",
    "\nlead",
    "  in\nout",
    "a\n  b\nc\n",
    "a\n \nb",
    "cr\r\nlf",
    "é",
    "\u2028",
    "\u00a0",
    "\ufeff",
    "😀",
    "\x1b[31m",
    "key:",
    ":x",
    "a:",
    "...",
    "---",
    "${HOME}",
    "x" * 200,
    "echo a && b | c > d 2>&1",
    "a # b\nc",
    ".5",
    "+1",
    "1.",
)
_CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
texts = st.one_of(st.sampled_from(NASTY), st.text(_CHARACTERS, max_size=12)).filter(lambda t: "${{" not in t)
filled = texts.filter(lambda t: t.strip() != "")
lines = filled.filter(lambda t: t.isprintable() and len(t) <= 200)
numbers = st.one_of(st.integers(-(2**40), 2**40), st.floats(-1e6, 1e6).map(lambda f: round(f, 3) + 0.0))
json_values: st.SearchStrategy[Json] = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            texts.filter(lambda t: t not in ("", "from", "value", "optional", "default")), inner, max_size=3
        ),
    ),
    max_leaves=6,
)
durations = st.one_of(
    st.sampled_from([0.001, 0.25, 0.5, 1.0, 1.5, 59.0, 60.0, 61.5, 90.0, 600.0, 3600.0, 5400.0, 86400.0, 3600.25]),
    st.integers(1, 10**6).map(float),
    st.integers(1, 10**6).map(lambda n: n / 1000),
)
NAMES = ("a", "b-1", "c_x", "Dd", "e", "f9", "null", "g")
OUT = ("o", "res-ult", "x1")
schemas: st.SearchStrategy[Json] = st.sampled_from(
    [{"type": "object"}, {"type": "array", "items": {"type": "string"}}, {"enum": ["no", 1.5, None, True]}, True, {}]
)
outputs = st.builds(
    Output,
    source=st.sampled_from(["output", "json"]),
    path=st.sampled_from(["", ".a[0].b-c"]),
    schema=st.one_of(st.none(), schemas),
)
retries = st.builds(
    Retry,
    max_attempts=st.integers(1, 9),
    delay_s=durations,
    backoff=st.sampled_from([1.0, 1.5, 2.0]),
    max_delay_s=durations,
    jitter=st.sampled_from([0.0, 0.1, 0.25]),
    outcomes=st.sampled_from(
        [Retry().outcomes, frozenset({Outcome.FAILED}), frozenset({Outcome.OVER_LIMIT, Outcome.FAILED})]
    ),
)
reviews = st.builds(
    Review, message=filled, timeout_s=st.one_of(st.none(), durations), on_timeout=st.sampled_from(["reject", "approve"])
)


def _inputs(read: list[str]) -> st.SearchStrategy[Input]:
    default: st.SearchStrategy[dict[str, Any]] = st.one_of(
        st.just({}), json_values.map(lambda v: {"has_default": True, "default": v})
    )
    literal = json_values.filter(lambda v: not (isinstance(v, str) and v.startswith(("nodes.", "params."))))
    kinds: list[st.SearchStrategy[dict[str, Any]]] = [literal.map(lambda v: {"value": v})]
    if read:
        kinds.append(st.sampled_from(read).map(lambda e: {"expression": e}))
    return st.builds(lambda a, b, o: Input(**a, **b, optional=o), st.one_of(kinds), default, st.booleans())


def _subsets(values: list[str]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(values), unique=True, max_size=3).map(tuple) if values else st.just(())


@st.composite
def nodes(draw: st.DrawFn, name: str, earlier: list[Node], depth: int = 1) -> Node:
    """A node that may wait for those before it; half of them are nearly plain."""
    needs = draw(_subsets([n.id for n in earlier]))
    read = [f"nodes.{n.id}.{o}" for n in earlier for o in n.outputs] + [f"nodes.{n.id}.status" for n in earlier]
    inputs = draw(st.dictionaries(st.sampled_from(["i", "in-2", "null"]), _inputs(read), max_size=2))
    common: dict[str, Any] = {"id": name, "needs": needs, "inputs": inputs}
    if draw(st.integers(0, 4)) == 0:
        return Node(**common, review=draw(reviews), title=draw(st.one_of(st.just(""), lines)))
    common["run"] = draw(st.one_of(filled, st.lists(texts, max_size=2).map(lambda w: ("tool", *w))))
    declared = draw(st.dictionaries(st.sampled_from(OUT), outputs, max_size=2))
    if draw(st.booleans()):
        return Node(**common, outputs=declared)
    schema: Any = draw(st.sampled_from([None, None, {"type": "object", "properties": {"o": {"type": "string"}}}]))
    if schema is not None:
        declared.setdefault("o", Output())
    return Node(
        **common,
        outputs=declared,
        output_schema=schema,
        title=draw(st.one_of(st.just(""), lines)),
        shell=draw(st.sampled_from(["sh", "bash"])),
        cwd=draw(st.one_of(st.just(""), filled)),
        env=draw(st.dictionaries(st.sampled_from(["A", "B_2", "null"]), texts, max_size=3)),
        pass_env=draw(_subsets(["CI", "GITHUB_*"])),
        secrets=draw(_subsets(["TOKEN"])),
        condition=draw(st.sampled_from(["", "always()", "!cancelled()", "params.p == 'a: b'"])),
        artifacts=draw(_subsets(["out/*.json", "x y"])),
        retry=draw(st.one_of(st.just(Node(id="x").retry), retries)),
        timeout_s=draw(durations),
        grace_s=draw(st.one_of(st.just(0.0), durations)),
        idempotent=draw(st.booleans()),
        continue_on_error=draw(st.booleans()),
        isolation=draw(st.sampled_from(["process", "none"])),
        resources=draw(st.sampled_from([{}, {"cpu": 0.5}, {"cpu": 2, "memory": 3 << 20}, {"memory": 1000, "gpu": 1}])),
        output_bytes=draw(st.sampled_from([256 << 20, 1 << 20, 1000])),
        estimate_s=draw(st.one_of(st.just(0.0), durations)),
        on_failure=draw(st.one_of(st.none(), _on_failure(name, earlier, depth))),
    )


@st.composite
def _on_failure(draw: st.DrawFn, name: str, earlier: list[Node], depth: int) -> OnFailure:
    plain = st.one_of(st.just(Review()), reviews)
    if depth and draw(st.booleans()):
        inner = draw(nodes(f"{name}-fallback", earlier, depth - 1))
        if not inner.outputs:  # else it would have to give what the node gives
            return OnFailure(fallback_node=inner, review=draw(st.one_of(st.none(), plain)))
    return OnFailure(review=draw(plain))


@st.composite
def workflows(draw: st.DrawFn, names: tuple[str, ...] = NAMES) -> Workflow:
    """A workflow that `check` finds nothing wrong with."""
    made: list[Node] = []
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=5, unique=True)):
        made.append(draw(nodes(name, made)))
    spare = [
        draw(nodes(name, made)) for name in draw(st.lists(st.sampled_from(["t1", "t-2"]), max_size=2, unique=True))
    ]
    limits = st.builds(
        Limits,
        parallel=st.one_of(st.none(), st.integers(1, 9)),
        timeout_s=st.one_of(st.none(), durations),
        resources=st.just({"cpu": 4, "memory": 8 << 30, "gpu": 1.5}),
        revisions=st.sampled_from([3, 0]),
        fallback_chain=st.sampled_from([2, 5]),
        growth=st.sampled_from([150, 300]),
        growth_nodes=st.sampled_from([10, 0]),
    )
    reads = [f"nodes.{n.id}.{o}" for n in made for o in n.outputs] or ["fixed"]
    return Workflow(
        name=draw(lines),
        description=draw(st.one_of(st.just(""), texts)),
        nodes={n.id: n for n in made},
        templates={n.id: n for n in spare},
        params={"p": draw(st.sampled_from([Param(), Param(has_default=True, default="3.10"), Param(description="no")]))}
        | draw(st.sampled_from([{}, {"q": Param(type="integer", has_default=True, default=3, enum=(1, 3))}])),
        limits=draw(limits),
        schedule=draw(st.sampled_from(list(Schedule))),
        durability=draw(st.sampled_from(["default", "strict"])),
        fail_fast=draw(st.booleans()),
        secrets={
            "TOKEN": draw(st.sampled_from([Secret(env="T"), Secret(file="a: b"), Secret(command=("pass", "x y"))]))
        },
        outputs=draw(st.dictionaries(st.sampled_from(["r", "s"]), st.sampled_from(reads), max_size=2)),
    )
