"""Random workflows that are right: every key, nasty texts, and a fixed pool of ids so that two overlap."""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import strategies as st

from dagrun.core.agents import TEXT_OUTPUT, default_level
from dagrun.core.lattice import as_scope, effective
from dagrun.core.names import Json, NodeId, Outcome, Schedule
from dagrun.core.permissions import Isolation, Network, Paths, Permissions
from dagrun.core.workflow import (
    Agent,
    Docker,
    Input,
    Limits,
    McpServer,
    Node,
    OnFailure,
    Output,
    Param,
    Provider,
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


# Hypothesis looks a new strategy through before it draws from it, which takes longer than the drawing:
# what is drawn from again and again is made once.
_DEFAULTS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}), json_values.map(lambda v: {"has_default": True, "default": v})
)
_LITERALS = json_values.filter(lambda v: not (isinstance(v, str) and v.startswith(("nodes.", "params.")))).map(
    lambda v: {"value": v}
)


@cache
def _inputs(read: tuple[str, ...]) -> st.SearchStrategy[dict[str, Input]]:
    kinds: list[st.SearchStrategy[dict[str, Any]]] = [_LITERALS]
    if read:
        kinds.append(st.sampled_from(read).map(lambda e: {"expression": e}))
    one = st.builds(lambda a, b, o: Input(**a, **b, optional=o), st.one_of(kinds), _DEFAULTS, st.booleans())
    return st.dictionaries(st.sampled_from(["i", "in-2", "null"]), one, max_size=2)


@cache
def _subsets(*values: str) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(values), unique=True, max_size=3).map(tuple) if values else st.just(())


TOOLS = ("Read", "Grep", "Bash(git:*)", "mcp__files__list")
ROOTS = (".", "src", "out/a b", "data/*.json", "~/data", "é")
MODELS = ("cheap", "strong", "anthropic/*")
DENIED = (".env*", "src/keys", "*.pem")
HOSTS = ("example.com", "example.com:443", "a.b-c.org")


@cache
def _some(values: tuple[str, ...], least: int = 0) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(values), unique=True, min_size=least, max_size=min(3, len(values))).map(tuple)


@cache
def _none_or_some(values: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...] | None]:
    """Nothing said, or some of `values`, which are those of the scope above."""
    return st.one_of(st.none(), _some(values) if values else st.just(()))


MONEY = st.one_of(
    st.integers(0, 2**62), st.sampled_from([0, 1, 10**9, 300_000_000, 123_456_789_123_456_789, 5 * 10**6])
)
run_permissions = st.builds(
    Permissions,
    tools=st.one_of(st.none(), _some(TOOLS)),
    paths=st.one_of(
        st.none(),
        st.builds(
            Paths, read=st.one_of(st.none(), _some(ROOTS)), write=st.one_of(st.none(), _some(ROOTS)), deny=_some(DENIED)
        ),
    ),
    models=st.one_of(st.none(), _some(MODELS)),
    network=st.one_of(st.none(), st.sampled_from(["none", "any"]), _some(HOSTS, 1)),
    cost_budget=st.one_of(st.none(), MONEY),
    isolation=st.sampled_from([None, "none", "context", "process", "container"]),
).map(lambda p: p if p != Permissions() else None)
dockers = st.builds(
    Docker,
    image=st.sampled_from(["alpine", "python:3.12-slim", "ghcr.io/a/b@sha256:" + "0a" * 32]),
    pull=st.sampled_from(["never", "missing"]),
    user=st.sampled_from(["", "1000", "1000:100"]),
)


LEVELS: tuple[Isolation, ...] = ("none", "context", "process", "container")


@cache
def _paths(run: Paths | None) -> st.SearchStrategy[Paths | None]:
    """Roots that are among those of the run, where it has any; or nothing said."""
    read, write = (ROOTS, ROOTS) if run is None else (run.read or (), run.write or ())
    return st.one_of(
        st.none(), st.builds(Paths, read=_none_or_some(read), write=_none_or_some(write), deny=_some(DENIED))
    )


@cache
def _networks(run: Network | None) -> st.SearchStrategy[Network | None]:
    hosts = run if isinstance(run, tuple) else HOSTS
    narrower: list[st.SearchStrategy[Network]] = [st.just("none")]
    narrower += [_some(hosts, 1)] if run != "none" else []
    narrower += [st.just("any")] if run in (None, "any") else []
    return st.one_of(st.none(), st.one_of(narrower))


@cache
def _budgets(run: int | None) -> st.SearchStrategy[int | None]:
    return st.one_of(st.none(), MONEY if run is None else st.integers(0, run))


@st.composite
def _rights(draw: st.DrawFn, run: Permissions | None) -> dict[str, Any]:
    """Isolation, permissions and docker of a node: what the run's permissions leave, at a level that can hold it."""
    run = run or Permissions()
    least = LEVELS.index(run.isolation or "none")
    if run.paths is not None or run.network is not None:
        least = max(least, LEVELS.index("process"))
    isolation = draw(st.sampled_from(LEVELS[min(least, LEVELS.index("process")) :]))
    if least == LEVELS.index("container"):  # `process` is what stands there when nothing is written
        isolation = draw(st.sampled_from(LEVELS[2:]))
    at = LEVELS.index(isolation)
    holds = at >= LEVELS.index("process")
    made = Permissions(
        tools=draw(_none_or_some(TOOLS if run.tools is None else run.tools)),
        paths=draw(_paths(run.paths)) if holds else None,
        models=draw(_none_or_some(MODELS if run.models is None else run.models)),
        network=draw(_networks(run.network)) if holds else None,
        cost_budget=draw(_budgets(run.cost_budget)),
        isolation=draw(st.sampled_from([None, *LEVELS[LEVELS.index(run.isolation or "none") : at + 1]])),
    )
    return {
        "isolation": isolation,
        "permissions": made if made != Permissions() else None,
        "docker": draw(dockers) if isolation == "container" else None,
    }


TIERS = {"cheap": ("anthropic/claude-haiku-4-5", "x/y:1"), "strong": ("openai/gpt-5",)}
SERVERS = {
    "files": McpServer(command=("files", "a: b"), env={"A": "3.10"}, secrets=("TOKEN",), digest="0a" * 32),
    "web": McpServer(url="https://mcp.example.com/x?y=1", headers={"Authorization": "TOKEN"}),
}
_RATE = st.sampled_from(["3", "0.25", "15.00", "0.000001", "1000000"])
providers = st.one_of(
    st.just(Provider()),
    st.builds(
        Provider,
        base_url=st.sampled_from(["", "http://127.0.0.1:8080/v1", "https://models.example.com"]),
        prices=st.dictionaries(
            st.sampled_from(["x/y:1", "openai/gpt-5"]),
            st.one_of(
                st.just({"free": True}),
                st.fixed_dictionaries({"input": _RATE, "output": _RATE}, optional={"cached": _RATE}),
            ),
            max_size=2,
        ),
        budget=st.sampled_from(["strict", "estimate"]),
    ),
)


def _wishes(allowed: tuple[str, ...] | None) -> list[str]:
    """The models that an agent may ask for; none where none is permitted."""
    if allowed is None:
        return ["", "cheap", "strong", "openai/gpt-5"]
    return [
        wish
        for wish, patterns in (
            ("", {"cheap", "anthropic/*"}),
            ("cheap", {"cheap", "anthropic/*"}),
            ("strong", {"strong"}),
            ("anthropic/claude-x", {"anthropic/*"}),
        )
        if patterns & set(allowed)
    ]


_OR_FILLED = st.one_of(st.just(""), filled)
_OR_LINES = st.one_of(st.just(""), lines)
_OR_TEXTS = st.one_of(st.just(""), texts)
_OR_DURATIONS = st.one_of(st.just(0.0), durations)
_OR_RETRIES = st.one_of(st.just(Node(id=NodeId("x")).retry), retries)
_OR_REVIEWS = st.one_of(st.just(Review()), reviews)
_NO_OR_REVIEWS = st.one_of(st.none(), _OR_REVIEWS)
_RUNS = st.one_of(filled, st.lists(texts, max_size=2).map(lambda w: ("tool", *w)))
_OUTPUTS = st.dictionaries(st.sampled_from(OUT), outputs, max_size=2)
_AGENT_OUTPUTS = st.dictionaries(st.sampled_from(OUT), st.builds(Output, schema=schemas), max_size=2)
_AGENT_ENV = st.dictionaries(st.sampled_from(["A", "null"]), texts, max_size=2)
_ENV = st.dictionaries(st.sampled_from(["A", "B_2", "null"]), texts, max_size=3)
_OBJECT: Any = {"type": "object", "properties": {"o": {"type": "string"}}}


@st.composite
def agents(draw: st.DrawFn, tools: tuple[str, ...] | None, wishes: list[str], *, repairs: bool = False) -> Agent:
    """An agent that asks for no more than it may."""
    offer = draw(_none_or_some(TOOLS if tools is None else tools)) if tools != () else ()
    servers = draw(st.sampled_from([(), ("files",)]))
    if offer is not None and "mcp__files__list" in offer:
        servers = ("files",)
    return Agent(
        prompt=draw(_OR_FILLED if repairs else filled),
        system=draw(_OR_FILLED),
        skills=draw(_some(("code-review", "x.1"))),
        model=draw(st.sampled_from(wishes)),
        tools=offer,
        max_turns=draw(st.sampled_from([10, 1, 99])),
        max_tokens=draw(st.sampled_from([4096, 1])),
        temperature=draw(st.sampled_from([None, 0.0, 0.5, 2.0])),
        mcp=servers,
    )


@st.composite
def _agent_node(draw: st.DrawFn, common: dict[str, Any], run: Permissions | None) -> Node | None:
    """An agent, None where the run permits no model."""
    rights = draw(_rights(run))
    own = rights["permissions"]
    held = effective(run, own, rights["isolation"])
    wishes = _wishes(held.models)
    if not wishes:
        return None
    agent = draw(agents(held.tools, wishes))
    if draw(st.booleans()):
        level = default_level(agent)
        boxed = effective(run, own, level).isolation == "container"
        rights = {**rights, "isolation": level, "docker": rights["docker"] if boxed else None}
    elif rights["isolation"] == "process" and held.isolation == "container":  # less than the floor, where it is written
        rights = {**rights, "isolation": "container", "docker": draw(dockers)}
    schema = draw(st.sampled_from([None, _OBJECT]))
    declared = draw(_AGENT_OUTPUTS)
    if schema is not None:
        declared = {**declared, "o": Output()}
    return Node(
        **common,
        **rights,
        agent=agent,
        group=draw(st.sampled_from(["", "talk"])) if rights["isolation"] == "none" else "",
        outputs=declared or dict(TEXT_OUTPUT),
        output_schema=schema,
        env=draw(_AGENT_ENV),
        secrets=draw(_subsets("TOKEN")),
        retry=draw(_OR_RETRIES),
        timeout_s=draw(durations),
        artifacts=draw(_subsets("out/*.json", "x y")),
        on_failure=draw(st.sampled_from([None, OnFailure(review=Review())])),
    )


@st.composite
def nodes(draw: st.DrawFn, name: str, earlier: list[Node], depth: int = 1, run: Permissions | None = None) -> Node:
    """A node that may wait for those before it, with permissions within the run's; half of them are nearly plain."""
    needs = draw(_subsets(*(n.id for n in earlier)))
    read = [f"nodes.{n.id}.{o}" for n in earlier for o in n.outputs] + [f"nodes.{n.id}.status" for n in earlier]
    inputs = draw(_inputs(tuple(read)))
    common: dict[str, Any] = {"id": name, "needs": needs, "inputs": inputs}
    if draw(st.integers(0, 4)) == 0:
        return Node(**common, review=draw(reviews), title=draw(_OR_LINES))
    if depth and draw(st.integers(0, 2)) == 0 and (asks := draw(_agent_node(common, run))) is not None:
        return asks
    common["run"] = draw(_RUNS)
    declared = draw(_OUTPUTS)
    if draw(st.booleans()):
        return Node(**common, outputs=declared)
    rights = draw(_rights(run))
    held = effective(run, rights["permissions"], rights["isolation"])
    schema = draw(st.sampled_from([None, None, _OBJECT]))
    if schema is not None:
        declared.setdefault("o", Output())
    return Node(
        **common,
        outputs=declared,
        output_schema=schema,
        title=draw(_OR_LINES),
        shell=draw(st.sampled_from(["sh", "bash"])),
        cwd=draw(_OR_FILLED),
        env=draw(_ENV),
        pass_env=draw(_subsets("CI", "GITHUB_*")),
        secrets=draw(_subsets("TOKEN")),
        secret_files=draw(_subsets("KEY", "no")),
        condition=draw(st.sampled_from(["", "always()", "!cancelled()", "params.p == 'a: b'"])),
        artifacts=draw(_subsets("out/*.json", "x y")),
        retry=draw(_OR_RETRIES),
        timeout_s=draw(durations),
        grace_s=draw(_OR_DURATIONS),
        idempotent=draw(st.booleans()),
        continue_on_error=draw(st.booleans()),
        **rights,
        pids=draw(st.sampled_from([0, 0, 64])),
        file_size=draw(st.sampled_from([0, 0, 1 << 30, 1001])),
        resources=draw(
            st.sampled_from([{}, {"cpu": 0.5}, {"cpu": 2, "memory": 3 << 20}, {"memory": 1 << 20, "gpu": 1}])
        ),
        output_bytes=draw(st.sampled_from([256 << 20, 1 << 20, 1000])),
        estimate_s=draw(_OR_DURATIONS),
        on_failure=draw(_on_failure(name, earlier, depth, as_scope(held))) if draw(st.booleans()) else None,
    )


@st.composite
def _on_failure(draw: st.DrawFn, name: str, earlier: list[Node], depth: int, run: Permissions | None) -> OnFailure:
    if depth and draw(st.booleans()):
        inner = draw(nodes(f"{name}-fallback", earlier, depth - 1, run))
        if not inner.outputs:  # else it would have to give what the node gives
            return OnFailure(fallback_node=inner, review=draw(_NO_OR_REVIEWS))
    wishes = _wishes(run.models if run is not None else None)
    asks = draw(st.booleans())
    if asks and wishes:
        repair = draw(agents(run.tools if run is not None else None, wishes, repairs=True))
        return OnFailure(replanner=repair)
    return OnFailure(review=draw(_OR_REVIEWS))


_LIMITS = st.builds(
    Limits,
    parallel=st.one_of(st.none(), st.integers(1, 9)),
    timeout_s=st.one_of(st.none(), durations),
    resources=st.just({"cpu": 4, "memory": 8 << 30, "gpu": 1.5}),
    revisions=st.sampled_from([3, 0]),
    fallback_chain=st.sampled_from([2, 5]),
    growth=st.sampled_from([150, 300]),
    growth_nodes=st.sampled_from([10, 0]),
)
_NO_OR_PERMISSIONS = st.one_of(st.none(), run_permissions)
_NO_OR_DOCKERS = st.one_of(st.none(), dockers)


@st.composite
def workflows(draw: st.DrawFn, names: tuple[str, ...] = NAMES) -> Workflow:
    """A workflow that `check` finds nothing wrong with."""
    made: list[Node] = []
    run = draw(_NO_OR_PERMISSIONS)
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=5, unique=True)):
        made.append(draw(nodes(name, made, run=run)))
    spare = [
        draw(nodes(name, made, run=run))
        for name in draw(st.lists(st.sampled_from(["t1", "t-2"]), max_size=2, unique=True))
    ]
    reads = [f"nodes.{n.id}.{o}" for n in made for o in n.outputs] or ["fixed"]
    return Workflow(
        name=draw(lines),
        description=draw(_OR_TEXTS),
        nodes={n.id: n for n in made},
        templates={n.id: n for n in spare},
        params={"p": draw(st.sampled_from([Param(), Param(has_default=True, default="3.10"), Param(description="no")]))}
        | draw(st.sampled_from([{}, {"q": Param(type="integer", has_default=True, default=3, enum=(1, 3))}])),
        limits=draw(_LIMITS),
        schedule=draw(st.sampled_from(list(Schedule))),
        durability=draw(st.sampled_from(["default", "strict"])),
        fail_fast=draw(st.booleans()),
        secrets={
            "TOKEN": draw(st.sampled_from([Secret(env="T"), Secret(file="a: b"), Secret(command=("pass", "x y"))])),
            "KEY": Secret(file="key"),
            "no": Secret(env="NO"),
        },
        models=TIERS,
        provider=draw(providers),
        mcp_servers=draw(st.sampled_from([SERVERS, {"files": SERVERS["files"]}])),
        permissions=run,
        docker=draw(dockers if run is not None and run.isolation == "container" else _NO_OR_DOCKERS),
        outputs=draw(st.dictionaries(st.sampled_from(["r", "s"]), st.sampled_from(reads), max_size=2)),
    )
