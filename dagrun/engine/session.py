"""One engine session: make a run or take one up, work on it, let go.

Knows what has to be there before the loop can turn and what has to go after it; nothing of its turns.
Invariants: whatever can be refused is refused before a run exists; the lock of a run is held from
before its first record until nothing that was started is alive; a run that never began leaves nothing.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic, time
from typing import TYPE_CHECKING

from dagrun import __version__
from dagrun.core.agents import has_agents
from dagrun.core.decide import Room
from dagrun.core.event import FORMAT, EngineAttached, Event, NodeAdopted, NodeSkipped, RunCreated, Warned, encode
from dagrun.core.evolve import evolve
from dagrun.core.names import Json, NodeId, RunStatus, Status
from dagrun.core.plan import Plan, compile_plan, input_sources, near
from dagrun.core.selection import select
from dagrun.core.state import RunState, new_state
from dagrun.core.workflow import Node, Workflow, workflow_to_json
from dagrun.engine.bench import Workbench
from dagrun.engine.exchange import exchange_path, make_exchange, remove_exchange
from dagrun.engine.holding import Holding, hold, sweep_dead_runs, sweep_plants
from dagrun.engine.observer import Observer
from dagrun.engine.recovery import catch_up, mark_lost, name_logs, reap
from dagrun.engine.runner import Runner
from dagrun.engine.secrets import in_the_clear, masker, resolve, warnings
from dagrun.errors import ConflictError, DagrunError, EnvironmentFault, InputError, Problem
from dagrun.sandbox.procs import boot_id, hide_memory
from dagrun.sandbox.watchdog import EngineSide
from dagrun.store.context import ContextStore
from dagrun.store.disk import write_atomic
from dagrun.store.history import History, exists, load_state
from dagrun.store.journal import Journal
from dagrun.store.rundir import RunDir, find_run, new_run, remove

if TYPE_CHECKING:
    from dagrun.engine.providers import Kit
    from dagrun.engine.recording import Record

OWN_DESCRIPTORS = 32  # what the engine itself has open at most, with some to spare for a look at /proc


@dataclass(slots=True, kw_only=True)
class Options:
    """What the command line says about a session. `fail` maps a node to [outcome, attempt or 0].

    `accept_missing` names, comma-separated, the guarantees that its user does without. `provider` is
    who answers model calls instead of whom the workflow names. `replay` is the record that is played again;
    commands and tools then only run with `run_tools`.
    """

    project: str
    params: Mapping[str, Json] = field(default_factory=dict)
    parallel: int | None = None
    only: Sequence[NodeId] = ()
    from_: Sequence[NodeId] = ()
    until: Sequence[NodeId] = ()
    outputs_of: str | None = None
    fail: Mapping[NodeId, list[Json]] = field(default_factory=dict)
    accept_missing: str = ""
    provider: str = ""
    replay: Record | None = None
    run_tools: bool = False


@dataclass(slots=True, frozen=True)
class Ended:
    """How a session ended."""

    run: RunDir
    state: RunState
    status: RunStatus
    exit_code: int

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return self.run.id


# ---------------------------------------------------------------- before anything is made


def check_options(workflow: Workflow, options: Options) -> None:
    """Everything that can be refused before a run exists. Raises InputError with all problems,
    NotFoundError for a run that `outputs_of` can't find, EnvironmentFault for what this machine lacks."""
    problems: list[Problem] = []
    flags = (("--only", options.only), ("--from", options.from_), ("--until", options.until), ("--fail", options.fail))
    for flag, names in flags:
        for name in names:
            if name not in workflow.nodes:
                text = f"{flag}: there is no node `{name}` in {workflow.name}"
                problems.append(Problem(code="unknown-node", message=text, hint=near(name, workflow.nodes)))
    if problems:
        raise InputError(tuple(problems))
    _check_room(workflow, make_room(workflow, options))
    if not (options.only or options.from_ or options.until):
        return
    plan = compile_plan(workflow)
    chosen = select(plan, options.only, options.from_, options.until)
    given = _adoptable(options, plan, chosen)
    problems = [p for i in sorted(chosen) for p in _missing_inputs(plan, i, chosen, given)]
    if problems:
        raise InputError(tuple(problems))


def _adoptable(options: Options, plan: Plan, chosen: set[int]) -> dict[int, RunState]:
    """The nodes outside the choice that another run has completed, with the state of that run."""
    if options.outputs_of is None:
        return {}
    other = load_state(find_run(options.project, options.outputs_of))
    return {
        i: other
        for i, name in enumerate(plan.ids)
        if i not in chosen
        and name in other.plan.index
        and other.node_status[other.plan.index[name]] is Status.COMPLETED
    }


def _missing_inputs(plan: Plan, i: int, chosen: set[int], given: Mapping[int, RunState]) -> list[Problem]:
    node = plan.nodes[i]
    there = {*chosen, *given}
    absent = [s for s in dict.fromkeys(input_sources(node)) if plan.index[s] not in there]
    return [
        Problem(
            code="not-selected",
            message=f"node `{node.id}` reads input `{name}` from `{source}`, which is not selected",
            hint=f"take its outputs from an earlier run: --outputs-of RUN, or select it too: --only {source}",
        )
        for source in absent
        for name, item in node.inputs.items()
        if item.expression.startswith(f"nodes.{source}.") and not item.optional and not item.has_default
    ]


def make_room(workflow: Workflow, options: Options) -> Room:
    """What this machine and the workflow let run at a time: default the processors, at least 5."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    parallel = min(options.parallel or workflow.limits.parallel or max(5, cpus), most_at_once())
    return Room(parallel, {"cpu": float(cpus), "memory": float(memory), **workflow.limits.resources})


def most_at_once() -> int:
    """How many commands can run at a time with the descriptors that there are (ulimit -n).

    Each holds three: its pidfd and two logs. Raises EnvironmentFault where there are too few for one.
    """
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return 1 << 30
    if limit < OWN_DESCRIPTORS:
        raise EnvironmentFault(
            f"only {limit} files may be open at a time; dagrun needs at least {OWN_DESCRIPTORS}",
            hint="raise the limit first: ulimit -n 1024",
        )
    return max(1, (limit - OWN_DESCRIPTORS) // 3)


def _check_room(workflow: Workflow, room: Room) -> None:
    for node in workflow.nodes.values():
        for name, amount in node.resources.items():
            if amount > room.resources.get(name, amount):
                raise EnvironmentFault(
                    f"node `{node.id}` reserves {amount:g} of `{name}`, this machine has {room.resources[name]:g}",
                    hint=f"reserve less, or say that there is more: limits: {{resources: {{{name}: {amount:g}}}}}",
                )


def _could_run(workflow: Workflow, options: Options) -> list[Node]:
    """The nodes of a new run that are chosen."""
    if not (options.only or options.from_ or options.until):
        return list(workflow.nodes.values())
    plan = compile_plan(workflow)
    chosen = select(plan, options.only, options.from_, options.until)
    return [plan.nodes[i] for i in sorted(chosen)]


def check_machine(workflow: Workflow, options: Options) -> tuple[str, ...]:
    """Refuse a new run that this machine can't hold; what its user goes without, in words.

    Raises EnvironmentFault and UsageError.
    """
    held = hold(workflow, _could_run(workflow, options), options.accept_missing)
    if held.walls is not None:
        held.walls.close()
    return held.notes


# ---------------------------------------------------------------- a new run


def execute(workflow: Workflow, options: Options, observer: Observer, side: EngineSide) -> Ended:
    """Make a run of a checked workflow and work on it until it ends.

    Raises InputError, EnvironmentFault and the like before anything is made, or when the machine
    gives out; whatever happens, nothing that was started is alive afterwards.
    """
    check_options(workflow, options)
    workflow = _with_provider(workflow, options)
    idle = options.replay is not None and not options.run_tools  # nothing is started that had to be held
    held = Holding() if idle else hold(workflow, _could_run(workflow, options), options.accept_missing)
    notes = [*held.notes, *sweep_dead_runs(held, options.project)]
    secrets = dict.fromkeys(workflow.secrets, "") if idle else resolve(workflow, options.project, os.environ)
    plan = compile_plan(workflow)
    if options.outputs_of is not None:  # `last` must not come to mean the run that is made here
        options = replace(options, outputs_of=find_run(options.project, options.outputs_of).id)
    run = new_run(options.project)
    lock = run.lock({"watchdog": os.getppid()})
    try:
        created = RunCreated(
            format=FORMAT,
            run_id=run.id,
            workflow=workflow.name,
            file=workflow.file,
            project=os.path.abspath(options.project),
            plan_digest=_write_plan(run, workflow),
            workflow_digest=workflow.digest,
            params=_all_params(workflow, options.params),
            replay_of=options.replay.created.run_id if options.replay is not None else "",
            version=__version__,
            schedule=str(workflow.schedule),
            fail=options.fail,
            outputs_of=options.outputs_of or "",
        )
        room = make_room(workflow, options)
        state = new_state(plan, created, time())
        journal = Journal.create(run.journal)
        events: list[Event] = [_attach(room), *_selection(run, options, plan)]
        for event in events:
            evolve(state, event, time(), monotonic())
        journal.append([encode(created), *map(encode, events)], epoch=1)
        journal.sync()
        side.tell_run(run.id)
        return _work(run, state, journal, secrets, room, observer, side, held, notes, options)
    finally:
        lock.release()
        if not exists(run):
            with suppress(DagrunError):
                remove(run)  # nothing began, so nothing stays behind


def _with_provider(workflow: Workflow, options: Options) -> Workflow:
    """The workflow as its models are asked. Raises UsageError and EnvironmentFault where they can't be."""
    if options.replay is not None:
        return replace(workflow, provider=replace(workflow.provider, kind=options.replay.workflow.provider.kind))
    if not options.provider and not has_agents(workflow):
        return workflow
    from dagrun.engine.kit import as_provided, check_agents

    workflow = as_provided(workflow, options.provider)
    check_agents(workflow, _could_run(workflow, options), os.environ)
    return workflow


def _all_params(workflow: Workflow, given: Mapping[str, Json]) -> dict[str, Json]:
    defaults = {name: p.default for name, p in workflow.params.items() if p.has_default}
    return {**defaults, **given}


def _write_plan(run: RunDir, workflow: Workflow) -> str:
    """Write plan.json durably before the journal mentions it; its sha256."""
    from hashlib import sha256
    from json import dumps

    data = dumps({"format": FORMAT, "workflow": workflow_to_json(workflow)}, separators=(",", ":")).encode()
    write_atomic(run.plan, data, durable=True)
    return sha256(data).hexdigest()


def _attach(room: Room, *, revive: bool = False) -> EngineAttached:
    host = os.uname().nodename
    return EngineAttached(pid=os.getpid(), boot_id=boot_id(), host=host, parallel=room.parallel, revive=revive)


def _selection(run: RunDir, options: Options, plan: Plan) -> list[Event]:
    """What settles the nodes that were not chosen: outputs of another run, or a skip."""
    chosen = select(plan, options.only, options.from_, options.until)
    if len(chosen) == len(plan.ids):
        if options.replay is None:
            return []
        from dagrun.engine.retold import selection

        return selection(options.replay, plan, ContextStore(run))
    given = _adoptable(options, plan, chosen)
    events: list[Event] = []
    mine = ContextStore(run)
    for i, name in enumerate(plan.ids):
        if i in chosen:
            continue
        other = given.get(i)
        if other is None:
            events.append(NodeSkipped(node=name, reason="selection", text="not selected"))
            continue
        theirs = ContextStore(find_run(options.project, other.created.run_id))
        refs = other.outputs.get(other.plan.index[name], {})
        outputs: dict[str, Json] = {
            key: dict(mine.put(theirs.get(ref))) for key, ref in refs.items() if isinstance(ref, dict)
        }
        events.append(NodeAdopted(node=name, run_id=other.created.run_id, outputs=outputs))
    return events


# ---------------------------------------------------------------- an old run


def resume(run: RunDir, options: Options, observer: Observer, side: EngineSide) -> Ended:
    """Take up a run that has not completed: reap what is left of it, mark its open attempts lost, go on.

    A run that ended as failed or cancelled gets its failed, cancelled and thereby skipped nodes
    another chance. A completed run is returned as it is. Raises RunLockedError while another engine
    is at work, JournalError when the journal can't be used.
    """
    lock = run.lock({"watchdog": os.getppid()})
    try:
        side.tell_run(run.id)
        history = History(run, write=True)
        state, journal = history.state, history.journal
        if state.status is RunStatus.COMPLETED:
            remove_exchange(exchange_path(run))  # a kill after the last record leaves it
            return Ended(run, state, state.status, 0)
        if state.created.replay_of:
            raise ConflictError(
                f"run {run.id} plays run {state.created.replay_of} again: it can't go on with anything else",
                hint="play it again from the beginning: dagrun execute FILE --replay RUN",
            )
        killed = reap(run, state)
        workflow = state.plan.workflow
        held = hold(workflow, _still_to_run(state), options.accept_missing)
        project = state.created.project if os.path.isdir(state.created.project) else options.project
        if has_agents(workflow):
            from dagrun.engine.kit import check_agents

            check_agents(workflow, _still_to_run(state), os.environ)
        secrets = resolve(workflow, project, os.environ)
        room = make_room(workflow, options)
        _check_room(workflow, room)
        name_logs(run, state, masker(secrets))
        catch_up(journal, state)
        try:
            revive = state.status in (RunStatus.FAILED, RunStatus.OVER_BUDGET, RunStatus.CANCELLED)
            events: list[Event] = [_attach(room, revive=revive), *mark_lost(state)]
            journal.write([encode(e) for e in events], epoch=journal.epoch + 1)
        finally:
            journal.end()
        notes = [*held.notes, *sweep_plants(project)]
        if killed:
            notes.append(f"killed what the dead run had left: {', '.join(killed[:5])}")
        if journal.torn_bytes:
            notes.append(f"cut {journal.torn_bytes} bytes of an unfinished record off the journal")
        for event in events:
            evolve(state, event, time(), monotonic())
        journal.sync()
        return _work(run, state, journal, secrets, room, observer, side, held, notes, options)
    finally:
        lock.release()


def _still_to_run(state: RunState) -> list[Node]:
    """The nodes of a run that may start again."""
    over = (Status.COMPLETED, Status.SUPERSEDED)
    statuses = enumerate(state.node_status)
    return [state.plan.nodes[i] for i, status in statuses if status not in over and i not in state.removed]


# ---------------------------------------------------------------- both


def _make_kit(bench: Workbench, state: RunState, run: RunDir) -> Kit:
    from dagrun.engine.kit import make_kit

    hide_memory()
    return make_kit(state, run, bench.project, bench.environ, exempt=bench.exempt, replay=bench.replay)


def _work(
    run: RunDir,
    state: RunState,
    journal: Journal,
    secrets: Mapping[str, str],
    room: Room,
    observer: Observer,
    side: EngineSide,
    held: Holding,
    notes: Sequence[str],
    options: Options,
) -> Ended:
    workflow, created = state.plan.workflow, state.created
    project = created.project if os.path.isdir(created.project) else os.getcwd()
    exchange = make_exchange(run)
    bench = Workbench(
        run_id=run.id,
        run_path=os.path.abspath(run.path),
        key=f"{run.id}-{int(state.created_at * 1e6):x}",
        project=project,
        params=created.params,
        workflow=workflow.name,
        secrets=secrets,
        secret_env={name: s.env for name, s in workflow.secrets.items() if s.env},
        context=ContextStore(run),
        exchange=exchange,
        environ=os.environ,
        ceiling=workflow.permissions,
        accepted=held.accepted,
        walls=held.walls,
        used=side.tell_sweep,
    )
    if options.replay is not None:
        from dagrun.engine.replaying import Replayer

        bench.replay = Replayer(options.replay, run_tools=options.run_tools, clean=bench.mask.text)
    bench.make_kit = partial(_make_kit, bench, state, run)
    if secrets or held.walls is not None:
        hide_memory()
    # the plan lives as long as the run: no collection need ever look at it again
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
    gc.enable()
    os.chdir(project)
    runner = Runner(state=state, journal=journal, run=run, bench=bench, room=room, observer=observer, side=side)
    if room.parallel == most_at_once():
        notes = [*notes, f"few files may be open at a time (ulimit -n), so only {room.parallel} nodes run at a time"]
    for note in [*notes, *warnings(secrets), *in_the_clear(secrets, bench.params)]:
        runner.scribe.record(Warned(text=note))
    try:
        ended = runner.run()
    finally:
        journal.close()
        remove_exchange(exchange)
    return Ended(run, state, ended.status, ended.exit_code)
