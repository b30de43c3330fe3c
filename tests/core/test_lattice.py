"""The lattice of permissions: its laws, against what each declaration means place by place and call by call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagrun.core.excess import excess, leq, widened
from dagrun.core.grants import host_of
from dagrun.core.lattice import as_scope, effective, explain, inherit, meet, rooted
from dagrun.core.permissions import LEVELS, NO_PERMISSIONS, Effective, Isolation, Network, Paths, Permissions
from dagrun.core.roots import Root, denied_of, matches, root_of
from dagrun.core.toolcall import allows

# ---------------------------------------------------------------- what paths mean, place by place

NAMES = ("a", "b", "f")  # no pattern names `f`: what is true of it is true of every other name
BASE = ("up2", "up1")  # the project directory, from two steps above it


def places() -> Iterator[Root]:
    below = [parts for depth in range(5) for parts in product(NAMES, repeat=depth)]
    yield from (Root("", 0, parts) for parts in below)
    yield from (Root("", up, parts) for up in (1, 2) for parts in below[:13])
    yield from (Root("/", 0, ("o", *parts)) for parts in below[:4])


PLACES = list(places())


def absolute(root: Root) -> tuple[str, ...]:
    return (root.anchor, *root.parts) if root.anchor else ("", *BASE[: 2 - root.up], *root.parts)


def is_in(place: Root, text: str) -> bool:
    top = absolute(root_of(text))
    return absolute(place)[: len(top)] == top


def is_denied(place: Root, text: str) -> bool:
    return is_in(place, text) if "/" in text or text == "." else text in place.parts


def level(paths: Paths, place: Root, is_in: Callable[[Root, str], bool] = is_in) -> int:
    """0: not at all, 1: may be read, 2: may be written too."""
    if any(is_denied(place, text) for text in paths.deny):
        return 0
    reads = paths.read is None or any(is_in(place, text) for text in paths.read)
    if paths.write is None:  # who says only what may be read lets nothing else be written
        return 2 if reads else 0
    return 2 if any(is_in(place, text) for text in paths.write) else int(reads)


ROOTS = (".", "a", "a/b", "b", "b/a", "..", "../a", "../..", "/o", "/o/a")
DENIED = ("a", "b", "./a", "a/b", "b/a", "../a", "/o/a", ".")


def subsets(texts: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(texts), max_size=3, unique=True).map(tuple)


def paths_of(roots: tuple[str, ...], denied: tuple[str, ...] = DENIED) -> st.SearchStrategy[Paths]:
    some = st.none() | subsets(roots)
    deny = st.just(()) | subsets(denied)
    return st.builds(lambda r, w, d: Paths(read=r, write=w, deny=d), some, some, deny)


def only(paths: Paths) -> Permissions:
    return Permissions(paths=paths)


def met(a: Paths, b: Paths) -> Paths:
    got = meet(only(a), only(b)).paths
    assert got is not None
    return got


@given(paths_of(ROOTS), paths_of(ROOTS))
def test_a_meet_of_paths_means_exactly_what_both_mean(a: Paths, b: Paths) -> None:
    both = met(a, b)
    for place in PLACES:
        assert level(both, place) == min(level(a, place), level(b, place)), place


HERE, DENIED_HERE = ROOTS[:-2], tuple(text for text in DENIED if not text.startswith("/"))
COMPARED = paths_of(HERE, DENIED_HERE)


@given(COMPARED, COMPARED)
def test_less_or_equal_agrees_with_every_place(a: Paths, b: Paths) -> None:
    assert leq(only(a), only(b)) == all(level(a, place) <= level(b, place) for place in PLACES)


@given(paths_of(ROOTS), paths_of(ROOTS))
def test_less_or_equal_never_holds_wrongly_where_places_can_not_be_compared(a: Paths, b: Paths) -> None:
    if leq(only(a), only(b)):
        assert all(level(a, place) <= level(b, place) for place in PLACES)


GLOBBED = ("a/*", "a/*/b", "a/**/b", "*", "**/b", "a/f*", "b", "a", "a/b")


@given(paths_of(GLOBBED), paths_of(GLOBBED))
def test_with_globs_nothing_gets_wider_than_either(a: Paths, b: Paths) -> None:
    def means(place: Root, text: str) -> bool:
        return matches(place, root_of(text))

    both = met(a, b)
    below = leq(only(a), only(b))
    for place in PLACES:
        low, high = level(a, place, means), level(b, place, means)
        assert level(both, place, means) <= min(low, high), place
        assert not below or low <= high, place


# ---------------------------------------------------------------- what tools, models and hosts mean

WORDS = ("git", "log", "f")
COMMANDS = [" ".join(words) for depth in (1, 2, 3) for words in product(WORDS, repeat=depth)]
CALLS = [
    *(("Bash", {"command": command}) for command in [*COMMANDS, "git; log", "git $(log)"]),
    *((tool, {"file_path": path}) for tool in ("Read", "Write") for path in ("a", "a/b", "a/f", "b", "f", "/o/a")),
    *((f"mcp__{server}__{tool}", {}) for server in "st" for tool in ("x", "y")),
    ("Glob", {"pattern": "*"}),
    ("Glob", {"pattern": "*", "path": "a/b"}),
]
TOOL_PATTERNS = (
    *"Bash Bash(git:*) Bash(git) Bash(log:*) Read Read(a) Read(a/b) Read(/o) Write Write(b)".split(),
    *"mcp__s__* mcp__s__x mcp__t__y Glob Glob(a)".split(),
    "Bash(git log:*)",
    "Bash(git log)",
)


def called(patterns: tuple[str, ...]) -> list[bool]:
    return [allows(patterns, tool, dict(arguments)) for tool, arguments in CALLS]


@given(subsets(TOOL_PATTERNS), subsets(TOOL_PATTERNS))
def test_tools_agree_with_every_call(a: tuple[str, ...], b: tuple[str, ...]) -> None:
    both = meet(Permissions(tools=a), Permissions(tools=b)).tools
    assert both is not None
    one, other = called(a), called(b)
    assert called(both) == [x and y for x, y in zip(one, other)]
    assert leq(Permissions(tools=a), Permissions(tools=b)) == all(y for x, y in zip(one, other) if x)


MODELS = ("cheap", "v/*", "v/a*", "v/a", "v/ab", "w/a", "*")
MODEL_NAMES = ("cheap", "strong", "v/a", "v/ab", "v/ac", "v/f", "w/a", "w/f", "f/f", "v/abc", "v/aa")


def is_model(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


@given(subsets(MODELS), subsets(MODELS))
def test_models_agree_with_every_name(a: tuple[str, ...], b: tuple[str, ...]) -> None:
    def means(patterns: tuple[str, ...] | None) -> set[str]:
        return {name for name in MODEL_NAMES if any(is_model(name, p) for p in patterns or ())}

    assert means(meet(Permissions(models=a), Permissions(models=b)).models) == means(a) & means(b)
    assert leq(Permissions(models=a), Permissions(models=b)) == (means(a) <= means(b))


HOSTS = ("x.io", "x.io:1", "a.x.io", "*.x.io", "*.x.io:1", "*.a.x.io", "a.x.io:2", "[::1]:1", "[::1]")
NETWORK = st.sampled_from(("none", "any")) | subsets(HOSTS)


def reached(network: Network | None) -> set[tuple[str, int]]:
    ends = product(("x.io", "a.x.io", "f.x.io", "f.a.x.io", "a.a.x.io", "f.io", "[::1]"), (1, 2, 3))
    if isinstance(network, str) or network is None:
        return set() if network == "none" else set(ends)
    return {(name, port) for name, port in ends if any(serves(entry, name, port) for entry in network)}


def serves(entry: str, name: str, port: int) -> bool:
    host = host_of(entry)
    return host.port in (0, port) and (name.endswith(f".{host.name}") if host.wild else name == host.name)


@given(NETWORK, NETWORK)
def test_networks_agree_with_every_end(a: Network, b: Network) -> None:
    assert reached(meet(Permissions(network=a), Permissions(network=b)).network) == reached(a) & reached(b)
    assert leq(Permissions(network=a), Permissions(network=b)) == (reached(a) <= reached(b))


# ---------------------------------------------------------------- the laws, on all of it


def permissions(roots: tuple[str, ...] = (*ROOTS, *GLOBBED)) -> st.SearchStrategy[Permissions]:
    return st.builds(
        lambda *parts: Permissions(
            **dict(zip(("tools", "paths", "models", "network", "cost_budget", "isolation"), parts))
        ),
        st.none() | subsets(TOOL_PATTERNS),
        st.none() | paths_of(roots),
        st.none() | subsets(MODELS),
        st.none() | NETWORK,
        st.none() | st.integers(0, 5),
        st.none() | st.sampled_from(LEVELS),
    )


ANY = permissions()


@given(ANY, ANY)
def test_a_meet_is_the_same_both_ways_and_no_wider_than_either(a: Permissions, b: Permissions) -> None:
    both = meet(a, b)
    assert both == meet(b, a)
    assert leq(both, a)
    assert leq(both, b)
    assert meet(both, both) == both
    assert meet(both, a) == both


@given(ANY, ANY, ANY)
def test_a_meet_does_not_care_for_brackets(a: Permissions, b: Permissions, c: Permissions) -> None:
    assert meet(meet(a, b), c) == meet(a, meet(b, c))


@given(ANY, ANY)
def test_what_is_below_is_what_a_meet_leaves_as_it_is(a: Permissions, b: Permissions) -> None:
    assert leq(a, a)
    if leq(a, b):
        both = meet(a, b)
        assert leq(a, both)
        assert leq(both, a)


@given(ANY, ANY, ANY)
def test_less_or_equal_goes_on(a: Permissions, b: Permissions, c: Permissions) -> None:
    below = meet(a, b)
    lower = meet(below, c)
    assert leq(lower, a)
    if leq(a, b) and leq(b, c):
        assert leq(a, c)


SMALL = paths_of(("a", "a/*", "a/*/b", "a/f"), ("b", "./b", "a/b"))


@given(SMALL, SMALL, SMALL)
def test_less_or_equal_goes_on_for_paths(a: Paths, b: Paths, c: Paths) -> None:
    if leq(only(a), only(b)) and leq(only(b), only(c)):
        assert leq(only(a), only(c))


@given(paths_of(ROOTS), paths_of(ROOTS))
def test_below_each_other_is_the_same(a: Paths, b: Paths) -> None:
    if leq(only(a), only(b)) and leq(only(b), only(a)):
        assert [level(a, place) for place in PLACES] == [level(b, place) for place in PLACES]


# ---------------------------------------------------------------- what a scope asks for


@given(ANY, ANY)
def test_what_asks_for_no_more_is_never_cut(run: Permissions, own: Permissions) -> None:
    asked = inherit(run, own)
    got = meet(run, asked)
    if excess(own, run):
        return
    assert leq(replace_paths(own, asked), replace_paths(own, got))


def replace_paths(own: Permissions, of: Permissions) -> Permissions:
    """What `own` says, with the value that `of` has for it."""
    said = {key: getattr(of, key) for key in Permissions.__slots__ if getattr(own, key) is not None}
    return Permissions(**said)


@given(ANY, ANY)
def test_what_would_be_cut_is_an_excess(run: Permissions, own: Permissions) -> None:
    got = meet(run, inherit(run, own))
    for key in ("tools", "models", "network", "cost_budget", "isolation"):
        mine = getattr(own, key)
        if mine is not None and not leq(Permissions(**{key: mine}), Permissions(**{key: getattr(got, key)})):
            assert any(part.path[0] == key for part in excess(own, run)), key


@given(ANY | st.none(), ANY | st.none(), st.sampled_from(LEVELS))
def test_a_node_never_gets_more_than_its_run(
    run: Permissions | None, own: Permissions | None, isolation: Isolation
) -> None:
    got = as_scope(effective(run, own, isolation))
    assert leq(got, run or NO_PERMISSIONS)
    assert LEVELS.index(effective(run, own, isolation).isolation) >= LEVELS.index(isolation)


@given(ANY, ANY, ANY, st.sampled_from(LEVELS))
def test_what_a_node_inserts_never_gets_more_than_the_node(
    run: Permissions, own: Permissions, new: Permissions, isolation: Isolation
) -> None:
    scope = as_scope(effective(run, own, isolation))
    inserted = meet(scope, inherit(scope, new))
    assert leq(as_scope(effective(run, inserted, "process")), scope)


@given(ANY, ANY, ANY, st.sampled_from(LEVELS))
def test_a_narrower_run_never_widens_a_node(a: Permissions, b: Permissions, own: Permissions, at: Isolation) -> None:
    whole = Permissions(
        tools=("Bash", "Read"), paths=Paths(read=(".",), write=("a",)), models=("*",), network="any", cost_budget=5
    )
    wide, said = inherit(whole, a), inherit(whole, own)
    narrow = meet(wide, inherit(whole, b))
    assert leq(as_scope(effective(narrow, said, at)), as_scope(effective(wide, said, at)))


@given(ANY | st.none(), ANY | st.none(), st.sampled_from(LEVELS))
def test_an_explanation_names_all_that_is_held(run: Permissions | None, own: Permissions | None, at: Isolation) -> None:
    got = effective(run, own, at)
    told = {held.key: held for held in explain(run, own, at)}
    assert told["isolation"].text == got.isolation
    assert ("paths.read" in told) == (got.paths is not None)
    assert ("network" in told) == (got.network is not None)
    assert all(held.why for held in told.values())


# ---------------------------------------------------------------- examples


def test_a_silent_scope_has_the_parents_value() -> None:
    run = Permissions(paths=Paths(read=(".",), write=("out",), deny=(".env*",)), network=("example.com",))
    got = effective(run, Permissions(paths=Paths(read=("src",))), "process")
    assert got.paths == Paths(read=("src",), write=("out",), deny=(".env*",))
    assert got.network == ("example.com",)


@pytest.mark.parametrize(
    ("own", "isolation", "expected"),
    [
        (None, "process", Effective()),
        (Permissions(network="none"), "process", Effective(network="none")),
        (Permissions(paths=Paths()), "process", Effective(paths=Paths(read=(".",), write=()), network="none")),
        (
            Permissions(paths=Paths(write=("out",))),
            "process",
            Effective(paths=Paths(read=(".",), write=("out",)), network="none"),
        ),
        (
            None,
            "container",
            Effective(isolation="container", paths=Paths(read=(".",), write=()), network="none"),
        ),
        (
            Permissions(isolation="container", network="any"),
            "process",
            Effective(isolation="container", paths=Paths(read=(".",), write=()), network="any"),
        ),
        (None, "context", Effective(isolation="context")),
    ],
)
def test_defaults_hold_only_where_something_is_declared(
    own: Permissions | None, isolation: Isolation, expected: Effective
) -> None:
    assert effective(None, own, isolation) == expected


def test_paths_lift_a_level_that_could_not_hold_them() -> None:
    assert effective(Permissions(paths=Paths()), None, "none").confined


def test_a_default_is_no_ceiling_but_a_declared_list_is() -> None:
    own = Permissions(paths=Paths(write=("src/out",)), network="any")
    assert excess(own, Permissions(paths=Paths(read=("src",)))) == ()
    found = excess(own, Permissions(paths=Paths(read=("lib",)), network="none"))
    assert [(part.path, part.asked, part.allowed) for part in found] == [
        (("paths", "write", 0), "to write `src/out`", "only `lib`"),
        (("network",), "for network `any`", "no network"),
    ]


def test_what_is_denied_above_can_not_be_asked_for() -> None:
    run = Permissions(paths=Paths(read=(".",), deny=("secrets", ".env*", "src/private")))
    asked = ("secrets/a", "deep/secrets", ".env.prod", "src/private/x", "src")
    found = excess(Permissions(paths=Paths(read=asked)), run)
    assert [part.path[2] for part in found] == [0, 1, 2, 3]
    assert found[2].allowed == "nothing that `.env*` denies"


def test_absolute_and_relative_roots_are_not_compared_and_that_is_said() -> None:
    (found,) = excess(Permissions(paths=Paths(read=("/srv/data",))), Permissions(paths=Paths(read=(".",))))
    assert "write both the same way" in found.hint


def test_what_is_denied_elsewhere_may_be_the_same_place() -> None:
    run = Permissions(paths=Paths(deny=("~/keys",)))
    assert not leq(Permissions(paths=Paths(read=("/home/me",), write=())), run)
    assert leq(Permissions(paths=Paths(read=("~/data",), write=())), run)


def test_a_glob_holds_only_itself_and_that_is_said() -> None:
    run = Permissions(paths=Paths(read=("src/*.py",)))
    assert excess(Permissions(paths=Paths(read=("src/*.py", "src/*.py/x"))), run) == ()
    (found,) = excess(Permissions(paths=Paths(read=("src/main.py",))), run)
    assert "only the same glob" in found.hint


def test_all_that_is_too_much_is_said_at_once() -> None:
    run = Permissions(tools=("Read", "Bash(git:*)"), models=("cheap",), cost_budget=10**9, isolation="process")
    own = Permissions(
        tools=("Read", "Write", "Bash(git log:*)", "Bash"), models=("x/y",), cost_budget=2 * 10**9, isolation="none"
    )
    assert [(part.path, part.asked, part.allowed) for part in excess(own, run)] == [
        (("tools", 1), "for tool `Write`", "only `Read`, `Bash(git:*)`"),
        (("tools", 3), "for tool `Bash`", "only `Read`, `Bash(git:*)`"),
        (("models", 0), "for model `x/y`", "only `cheap`"),
        (("cost_budget",), "for a cost budget of $2.00", "$1.00"),
        (("isolation",), "for isolation `none`", "`process` or more"),
    ]


def test_what_is_unsaid_widens_a_changed_scope() -> None:
    before = Permissions(paths=Paths(read=("src",), write=(), deny=("x",)), network="none")
    after = Permissions(network="none")
    assert [part.path for part in widened(after, before)] == [("paths", "read"), ("paths", "write"), ("paths", "deny")]


def test_a_deny_pattern_is_read_back_as_the_same() -> None:
    for text in (".env*", "./.env", "secrets/", "a/b", "**/x", "/srv/x", "~/x", "a/**"):
        got = meet(Permissions(paths=Paths(deny=(text,))), NO_PERMISSIONS).paths
        assert got is not None
        assert [denied_of(t) for t in got.deny] == [denied_of(text)]


def test_a_file_with_keys_that_is_named_stays_named() -> None:
    run = Permissions(paths=Paths(read=(".", ".env", "src"), write=()))
    held = effective(run, None, "process").paths
    assert held is not None
    assert held.read == (".", ".env")


def test_what_the_paths_of_a_run_leave_out_is_nothing() -> None:
    run = Permissions(paths=Paths(read=("src",)))
    assert effective(run, Permissions(paths=Paths(write=("src/out",))), "process").paths == Paths(
        read=("src",), write=()
    )
    wanted = Permissions(paths=Paths(write=("src/out",)))
    assert [e.path for e in excess(wanted, rooted(run))] == [("paths", "write", 0)]
    assert [e.path for e in excess(Permissions(paths=Paths(read=("..",))), rooted(Permissions(paths=Paths())))] == [
        ("paths", "read", 0)
    ]
    assert rooted(None) == NO_PERMISSIONS


def test_explains_who_said_what() -> None:
    run = Permissions(paths=Paths(write=("out", "build"), deny=(".env*",)), cost_budget=1_500_000_001)
    own = Permissions(paths=Paths(write=("out",), deny=("keys",)), isolation="container")
    assert [tuple(held) for held in explain(run, own, "process")] == [
        ("isolation", "container", "floor of the node"),
        ("paths.read", ".", "default where paths is declared"),
        ("paths.write", "out", "node"),
        ("paths.deny", ".env*, keys", "workflow and node"),
        ("network", "none", "default where paths is declared"),
        ("cost_budget", "$1.500000001", "workflow"),
    ]
