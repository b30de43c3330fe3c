"""The operations of one `dagrun replan` command, piece by piece: each flag becomes a written operation.

They go through the same door as a patch file, all together. Places are the flags themselves; what
is wrong in a file that a flag names has its line and column there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from dagrun.core.operation import Patch, Trigger
from dagrun.core.workflow import Fault, Workflow
from dagrun.errors import InputError, Problem, UsageError
from dagrun.flowfile.convert import Defaults
from dagrun.flowfile.documents import Documents, NoDocuments
from dagrun.flowfile.operations import Builder
from dagrun.flowfile.patchfile import FilePatch, Locate, Written, build, unplaced
from dagrun.flowfile.source import Plain, Tree, Value, parse

Reader = Callable[[str], bytes]
_STRATEGIES = (
    "--remove {name}:skip    it settles without output: what needs that output can't run",
    "--remove {name}:bridge  what waited for it waits for what it waited for",
    "--remove {name}:cascade what can't live without it goes too",
)


def patch_from_pieces(
    pieces: Iterable[Written],
    workflow: Workflow,
    *,
    base: int = 0,
    trigger: Trigger | None = None,
    base_dir: str | None = None,
    defaults: Defaults | None = None,
) -> FilePatch:
    """All pieces as one patch. Raises InputError with all that is wrong with them."""
    documents = Documents("", base_dir) if base_dir is not None else NoDocuments()
    start = Patch(operations=(), base=base, trigger=trigger or Trigger())
    return build(Builder(workflow, documents, defaults), pieces, start, [], unplaced("the command line"))


def insert(
    data: bytes,
    file: str,
    *,
    name: str = "",
    after: Iterable[str] = (),
    before: Iterable[str] = (),
) -> Written:
    """`--insert F.yaml`: a node's keys with `id`, `after`, `before` among them, or {id, node, after, before}.

    What is given beside the file is added to what the file says. Raises InputError for a text that
    can't be read.
    """
    tree = parse(data, file)
    if tree.problems:
        raise InputError(tuple(tree.problems))
    value = tree.value
    if not isinstance(value, dict):
        hint = "it holds the keys of a node with its place: {id: scan, run: ./scan.sh, after: [test]}"
        raise InputError((tree.problem(Fault((), "bad-shape", "a node is a mapping of keys to values", hint)),))
    if value.keys() <= {"insert"} and isinstance(value.get("insert"), dict):
        return Written(_placed(value["insert"], name, after, before), (), tree.problem)
    if "node" in value:
        return Written(_placed(value, name, after, before), (), _inside(tree, 1))
    node = {k: v for k, v in value.items() if k not in ("id", "after", "before", "running")}
    body: dict[str, Value] = {k: v for k, v in value.items() if k in ("id", "after", "before", "running")}
    body["node"] = node
    return Written(_placed(body, name, after, before), (), _inside(tree, 2))


def _placed(body: Value, name: str, after: Iterable[str], before: Iterable[str]) -> Value:
    made = dict(body) if isinstance(body, dict) else {}
    if name:
        made["id"] = name
    for key, more in (("after", list(after)), ("before", list(before))):
        own = made.get(key)
        if more:
            made[key] = [*(own if isinstance(own, list) else [] if own is None else [own]), *more]
    return {"insert": made}


def _inside(tree: Tree, depth: int) -> Locate:
    """Places in a file that holds the body of an insert (1), or the keys of its node among them (2)."""

    def problem(fault: Fault) -> Problem:
        path = fault.path[1:]
        if depth == 2 and path[:1] == ("node",):
            path = path[1:]
        return tree.problem(fault._replace(path=path))

    return problem


def remove(text: str) -> Written:
    """`--remove N:bridge`. Raises UsageError, which explains the strategies, without one."""
    name, _, strategy = text.partition(":")
    if not strategy:
        hint = "say what becomes of what waits for it:\n  " + "\n  ".join(s.format(name=name) for s in _STRATEGIES)
        raise UsageError(f"--remove {text} does not say how", hint=hint)
    strategy, _, dependents = strategy.partition(":")
    body: dict[str, Value] = {"id": name, "strategy": strategy}
    if dependents:
        if dependents != "skip":
            raise UsageError(f"--remove {text}: what waits for it can only be skipped", hint=f"{name}:skip:skip")
        body["dependents"] = "skip"
    return Written({"remove": body}, (), unplaced(f"--remove {text}"))


def rewire(text: str, workflow: Workflow) -> Written:
    """`--rewire N=A,B`: from now on N waits for exactly these, and for what its inputs read."""
    name, found, names = text.partition("=")
    if not found:
        raise UsageError(f"--rewire {text} does not say what it waits for", hint=f"write --rewire {name}=A,B")
    new: list[Value] = [n.strip() for n in names.split(",") if n.strip()]
    node = workflow.nodes.get(name)
    old: list[Value] = [n for n in (node.needs if node else ()) if n not in new]
    body: dict[str, Value] = {"id": name, "old": old, "new": new}
    if not new:
        body["root"] = Plain("true")
    return Written({"rewire": body}, (), unplaced(f"--rewire {text}"))


def change(text: str) -> Written:
    """`--set N.key=V`, deeper with more dots; `N.key=` is empty text; `[…]` and `{…}` are read as YAML."""
    target, found, value = text.partition("=")
    steps = target.split(".")
    if not found or len(steps) < 2 or not all(steps):
        raise UsageError(f"--set {text} is not NODE.KEY=VALUE", hint="write --set publish.timeout=10m")
    where = f"--set {target}"
    return Written({"modify": {"id": steps[0], "set": _nested(steps[1:], _value(value, where))}}, (), unplaced(where))


def drop(text: str) -> Written:
    """`--unset N.key`."""
    name, found, dotted = text.partition(".")
    if not found or not dotted:
        raise UsageError(f"--unset {text} is not NODE.KEY", hint="write --unset publish.env")
    return Written({"modify": {"id": name, "unset": [dotted]}}, (), unplaced(f"--unset {text}"))


def retry(text: str) -> Written:
    """`--retry N` or `--retry N:timeout=600,retry.max_attempts=5`."""
    name, found, rest = text.partition(":")
    body: dict[str, Value] = {"id": name}
    where = f"--retry {text}"
    changes: dict[str, Value] = {}
    for part in re.split(r",(?=[A-Za-z_][\w.-]*=)", rest) if found else ():
        dotted, given, value = part.partition("=")
        if not given or not all(dotted.split(".")):
            raise UsageError(f"{where}: {part!r} is not KEY=VALUE", hint=f"write --retry {name}:timeout=10m")
        _put(changes, dotted.split("."), _value(value, where))
    if changes:
        body["set"] = changes
    return Written({"retry": body}, (), unplaced(where))


def fallback(text: str, workflow: Workflow, read: Reader) -> Written:
    """`--fallback N=F.yaml` (a file with a node) or `--fallback N=TEMPLATE`. `read` gives a file's bytes."""
    name, found, wanted = text.partition("=")
    if not found or not wanted:
        raise UsageError(f"--fallback {text} does not say by what", hint=f"write {name}=TEMPLATE or FILE.yaml")
    if wanted in workflow.templates or not _is_file(wanted):
        return Written({"fallback": {"id": name, "with": wanted}}, (), unplaced(f"--fallback {text}"))
    tree = parse(read(wanted), wanted)
    if tree.problems:
        raise InputError(tuple(tree.problems))
    flag = unplaced(f"--fallback {text}")

    def problem(fault: Fault) -> Problem:
        if fault.path[:2] == ("fallback", "with"):
            return tree.problem(fault._replace(path=fault.path[2:]))
        return flag(fault)

    return Written({"fallback": {"id": name, "with": tree.value}}, (), problem)


def rerun(name: str) -> Written:
    """`--rerun N`."""
    return Written({"rerun": {"id": name}}, (), unplaced(f"--rerun {name}"))


def limits(text: str) -> Written:
    """`--limit parallel=2`, `--limit resources.gpu=1`."""
    dotted, found, value = text.partition("=")
    if not found or not all(dotted.split(".")):
        raise UsageError(f"--limit {text} is not KEY=VALUE", hint="write --limit parallel=2")
    where = f"--limit {text}"
    return Written({"set_limits": _nested(dotted.split("."), _value(value, where))}, (), unplaced(where))


def cancelling(piece: Written) -> Written:
    """The same piece with `running: cancel`."""
    if not isinstance(piece.value, dict):
        return piece
    made: dict[str, Value] = {
        kind: {**body, "running": "cancel"} if isinstance(body, dict) else body for kind, body in piece.value.items()
    }
    return piece._replace(value=made)


def _is_file(text: str) -> bool:
    return text == "-" or "/" in text or text.endswith((".yaml", ".yml", ".json"))


def _value(text: str, where: str) -> Value:
    """A value of the command line as source text; quotes and brackets as in a file."""
    if text == "":
        return ""
    if text[0] in "[{\"'":
        return parse(text.encode("utf-8", "surrogateescape"), where).value
    return Plain(text)


def _nested(steps: list[str], value: Value) -> dict[str, Value]:
    made: dict[str, Value] = {}
    _put(made, steps, value)
    return made


def _put(made: dict[str, Value], steps: list[str], value: Value) -> None:
    for step in steps[:-1]:
        inner = made.get(step)
        if not isinstance(inner, dict):
            inner = made[step] = {}
        made = inner
    made[steps[-1]] = value
