"""Which back end holds an attempt: the first whose proved guarantees cover what the attempt requires.

Knows the back ends by name and imports one only when something asks for its level. Never takes a
weaker one: what no back end proves is missing, unless the *user* accepted just that. Written ceilings
(memory, pids …) are held by the back end itself in a container, else by control groups and rlimits.
Knows no workflow: a need has the name of a node only to say whose it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from dagrun.core.permissions import Isolation
from dagrun.sandbox.base import Child, Exit
from dagrun.sandbox.leftovers import ENGINES, PLANTS
from dagrun.sandbox.leftovers import LIMITS as LIMITS_LEFT
from dagrun.sandbox.needs import LIMIT_NAMES, LIMITS, Missing, Need, need_of, pull_hint, reasons, remedy, told
from dagrun.sandbox.wall import (
    GUARANTEES,
    NO_BOUNDS,
    NOTHING_MORE,
    Aftermath,
    Bounds,
    Guarantee,
    Launch,
    Refused,
    Spec,
    Wall,
)

if TYPE_CHECKING:
    from dagrun.sandbox.netproxy import NetProxy

BackEnd: TypeAlias = Literal["bubblewrap", "landlock", "docker", "podman"]
Exempt: TypeAlias = Callable[[int], None]

TABLE: Mapping[Isolation, tuple[BackEnd, ...]] = {
    "process": ("bubblewrap", "landlock"),
    "container": ("docker", "podman"),
}


class Limiter(Protocol):
    """What holds written ceilings around any launch (ceilings.Ceilings)."""

    def proved(self) -> Mapping[Guarantee, str]:
        """mem, pids, cpu, fsize → "" or why not."""
        ...

    def apply(self, bounds: Bounds, launch: Launch, attempt_id: str) -> Launch:
        """The same launch with its ceilings."""
        ...

    def passed(self, launch: Launch, *, failed: bool) -> Aftermath:
        """Which of them something of a living attempt ran into."""
        ...

    def ended(self, launch: Launch, exit_: Exit) -> Aftermath:
        """Which of them was hit; the groups are gone afterwards."""
        ...

    def close(self) -> None:
        """Remove what is left."""
        ...


@dataclass(slots=True)
class Held:
    """An attempt on its way: `launch` is what is spawned, `inner` what the back end itself made."""

    launch: Launch
    inner: Launch
    wall: Wall | None
    limited: bool


def _ignored(_kind: str) -> None:
    """Nobody cleans up."""


class Walls:
    """The back ends of one engine process. All calls come from its main thread.

    `accepted` is what the user does without. `make` and `limiter` are for tests. Nothing is imported,
    probed or started before the first need.
    """

    def __init__(
        self,
        accepted: frozenset[Guarantee] = frozenset(),
        make: Callable[[BackEnd], Wall] | None = None,
        limiter: Limiter | None = None,
    ) -> None:
        self.run_id = ""
        self.accepted = accepted
        self._exempt: Exempt | None = None
        self._helpers: list[int] = []
        self.used: Callable[[str], None] = _ignored  # what outlives a killed engine is about to be made
        self._make = make or self._real
        self._walls: dict[BackEnd, Wall] = {}
        self._limiter = limiter
        self._proxy: NetProxy | None = None
        self._told: set[str] = set()
        self._chosen: dict[tuple[Isolation, frozenset[Guarantee], str, str], Wall | Missing | None] = {}

    # ------------------------------------------------------------ before anything starts

    def check(self, needs: Sequence[Need]) -> list[Missing]:
        """What these nodes require and nothing here proves; nodes with the same lack share one entry."""
        lacks: dict[tuple[object, ...], Missing] = {}
        for need in needs:
            found = self._choose(need)
            if isinstance(found, Missing):
                key = (found.level, found.lacks, found.why)
                before = lacks[key].nodes if key in lacks else ()
                lacks[key] = replace(found, nodes=(*before, need.node))
        return list(lacks.values())

    def waived(self, needs: Sequence[Need]) -> dict[Guarantee, str]:
        """What is required, was accepted as missing, and really is: guarantee → why it is not held."""
        found: dict[Guarantee, str] = {}
        for need in needs:
            wall = self._choose(need)
            if not isinstance(wall, Missing):
                found |= {g: why for g in need.required if (why := self._why_not(wall, need.level, g))}
        return found

    def name(self, need: Need) -> str:
        """The back end that would hold this: bubblewrap …, "" for a plain command with ceilings.

        Raises Refused when there is none.
        """
        wall = self._choose(need)
        if isinstance(wall, Missing):
            raise Refused(told(replace(wall, nodes=(need.node,))), wall.hint)
        return "" if wall is None else wall.name

    def _choose(self, need: Need) -> Wall | Missing | None:
        key = (need.level, need.required, need.image, need.pull)
        if key not in self._chosen:
            self._chosen[key] = self._choose_anew(need)
        return self._chosen[key]

    def _choose_anew(self, need: Need) -> Wall | Missing | None:
        if need.required <= LIMITS:  # a plain command with ceilings
            lacks = self._lacks(None, need)
            return self._missing(need, [(None, lacks)]) if lacks else None
        tried: list[tuple[Wall | None, dict[Guarantee, str]]] = []
        absent: list[tuple[Wall, str]] = []  # they hold everything, and lack the image
        for name in TABLE.get(need.level, ()):
            wall = self._wall(name)
            if need.image:
                _prefer(wall, need.image)
            lacks = self._lacks(wall, need)
            if not lacks:
                why = _image_fault(wall, need)
                if not why:
                    return wall
                absent.append((wall, why))
            else:
                tried.append((wall, lacks))
        if not absent:
            return self._missing(need, tried)
        said = [*[(wall.name, why) for wall, why in absent], *[(w.name, reasons(lacks)) for w, lacks in tried if w]]
        told_why = tuple([f"{name}: {why}" for name, why in said])
        hint = pull_hint(need, absent[0][0].name)
        return Missing(nodes=(), level=need.level, lacks=(), why=told_why, hint=hint)

    def _lacks(self, wall: Wall | None, need: Need) -> dict[Guarantee, str]:
        """What a back end does not prove of a need, and was not accepted. One that proves nothing holds nothing."""
        lacks = {g: why for g in GUARANTEES if g in need.required and (why := self._why_not(wall, need.level, g))}
        rest = {g: why for g, why in lacks.items() if g not in self.accepted}
        holds_nothing = wall is not None and len(lacks.keys() - LIMITS) == len(need.required - LIMITS)
        return lacks if holds_nothing else rest

    def _why_not(self, wall: Wall | None, level: Isolation, name: Guarantee) -> str:
        """Why a back end does not hold a guarantee, "" if it does; asked one by one, as some are costly to try.

        Outside of containers control groups and rlimits hold ceilings around any launch.
        """
        if name in LIMITS and level != "container":
            why = self._limits().proved().get(name, "not held")
            return why if wall is None or not why else wall.proved().get(name, why)
        return wall.proved().get(name, "not held") if wall is not None else "not held"

    def _missing(self, need: Need, tried: Sequence[tuple[Wall | None, dict[Guarantee, str]]]) -> Missing:
        best = min((lacks for _, lacks in tried), key=len, default=dict.fromkeys(need.required, ""))
        why = tuple([f"{wall.name + ': ' if wall else ''}{reasons(lacks)}" for wall, lacks in tried])
        hint = remedy(need, [(wall.name if wall else "", lacks) for wall, lacks in tried], best, self.accepted)
        return Missing(nodes=(), level=need.level, lacks=tuple(best), why=why, hint=hint)

    # ------------------------------------------------------------ an attempt

    def launch(self, spec: Spec) -> Held:
        """How an attempt is started. Raises Refused, SpawnBusy and EnvironmentFault as Wall.launch does."""
        need = need_of(spec)
        wall = self._choose(need)
        if isinstance(wall, Missing):
            raise Refused("; ".join(told(replace(wall, nodes=(spec.node,))).split("\n    ")), wall.hint)
        around = self._around(wall, spec.bounds)
        if wall is None:
            inner = Launch(argv=spec.argv, env=spec.env, cwd=spec.cwd, script=spec.script)
        else:
            self._tell(wall.name if wall.name in ENGINES else "")
            self._tell(PLANTS)
            inner = wall.launch(replace(spec, bounds=_less(spec.bounds, around)))
        _mark(inner, spec)
        if not around:
            return Held(inner, inner, wall, limited=False)
        self._tell(LIMITS_LEFT)
        try:
            launch = self._limits().apply(around, inner, spec.ceilings_of or spec.attempt_id)
        except BaseException:
            if wall is not None:
                wall.discard(inner)
            raise
        return Held(launch, inner, wall, limited=True)

    def _tell(self, kind: str) -> None:
        if kind and kind not in self._told:
            self._told.add(kind)
            self.used(kind)

    def _around(self, wall: Wall | None, bounds: Bounds) -> Bounds:
        """The ceilings that are held around a launch; the others are the back end's, or were accepted as missing."""
        if not bounds or (wall is not None and wall.name in ENGINES):
            return NO_BOUNDS
        proved = self._limits().proved()
        kept = {name: getattr(bounds, name) for name, g in LIMIT_NAMES.items() if not proved.get(g, "not held")}
        return Bounds(**kept)

    def started(self, held: Held, child: Child) -> None:
        """It was spawned."""
        if held.wall is not None:
            held.wall.started(held.inner, child)

    def discard(self, held: Held) -> None:
        """It was not spawned: everything is given back."""
        if held.limited:
            self._limits().ended(held.launch, Exit(None, 9, None, 0))
        if held.wall is not None:
            held.wall.discard(held.inner)

    def terminate(self, held: Held, child: Child) -> int:
        """SIGTERM to the command and its tree; -1: do it as for a plain command."""
        return held.wall.terminate(held.inner, child) if held.wall is not None else -1

    def kill(self, held: Held, child: Child) -> int:
        """SIGKILL to all of it; -1: do it as for a plain command."""
        return held.wall.kill(held.inner, child) if held.wall is not None else -1

    def passed(self, held: Held, *, failed: bool) -> Aftermath:
        """Which ceiling something of a living attempt ran into; `failed`: what it did last failed.

        A back end that has ceilings of its own tells it at the end only.
        """
        return self._limits().passed(held.launch, failed=failed) if held.limited else NOTHING_MORE

    def ended(self, held: Held, exit_: Exit) -> Aftermath:
        """What is known of an attempt beyond its exit, once all of it is dead."""
        after = held.wall.ended(held.inner, exit_) if held.wall is not None else NOTHING_MORE
        if not held.limited:
            return after
        return _joined(after, self._limits().ended(held.launch, after.exit or exit_))

    def sweep_dead(self, is_dead: Callable[[str, str], bool]) -> list[str]:
        """Remove containers that outlived their run, where a back end of containers is in use; their names.

        `is_dead` gets the id of a run and the label of its folder (container_line.folder_label).
        """
        names: list[str] = []
        for name, wall in self._walls.items():
            sweep = getattr(wall, "sweep", None)
            if sweep is not None and name in ENGINES and not wall.proved()["kill.tree"]:
                names += sweep(None, is_dead)
        return names

    def close(self) -> None:
        """Nothing is running: remove what is left, end the helpers."""
        for wall in self._walls.values():
            wall.close()
        if self._limiter is not None:
            self._limiter.close()
        if self._proxy is not None:
            self._proxy.close()

    # ------------------------------------------------------------ the back ends

    def back_end(self, name: BackEnd) -> Wall:
        """A back end by its name, whatever it proves: for those who want to see just that."""
        return self._wall(name)

    def _wall(self, name: BackEnd) -> Wall:
        found = self._walls.get(name)
        if found is None:
            found = self._walls[name] = self._make(name)
        return found

    def exempt_by(self, exempt: Exempt) -> None:
        """From now on there is something that sweeps: these helpers, and those to come, are not for it."""
        if self._exempt is None:
            self._exempt = exempt
            for pid in self._helpers:
                exempt(pid)

    def _spare(self, pid: int) -> None:
        if self._exempt is None:
            self._helpers.append(pid)
        else:
            self._exempt(pid)

    def _real(self, name: BackEnd) -> Wall:
        if name == "bubblewrap":
            from dagrun.sandbox.bubblewrap import Bubblewrap

            return Bubblewrap(self._spare, self._net_proxy())
        if name == "landlock":
            from dagrun.sandbox.landlock import Landlock

            return Landlock(self._spare)
        from dagrun.sandbox.container import Container

        return Container(name, self._spare, self._net_proxy())

    def _net_proxy(self) -> NetProxy:
        """What holds lists of hosts for every back end; it starts nothing before the first list."""
        if self._proxy is None:
            from dagrun.sandbox.netproxy import NetProxy

            self._proxy = NetProxy(self._spare)
        return self._proxy

    def _limits(self) -> Limiter:
        """Control groups and rlimits."""
        if self._limiter is None:
            from dagrun.sandbox.ceilings import Ceilings

            self._limiter = Ceilings(self.run_id or "new")
        return self._limiter


def _less(bounds: Bounds, taken: Bounds) -> Bounds:
    """The ceilings that `taken` does not have."""
    return Bounds(**{name: getattr(bounds, name) for name in LIMIT_NAMES if getattr(taken, name) is None})


def _mark(launch: Launch, spec: Spec) -> None:
    """Give what is spawned the cookies by which it is found after a crash."""
    cookies = {"DAGRUN_RUN_ID": spec.run_id, "DAGRUN_RUN_DIR": spec.run_dir, "DAGRUN_ATTEMPT_ID": spec.attempt_id}
    launch.env = {**launch.env, **cookies}


def _joined(first: Aftermath, second: Aftermath) -> Aftermath:
    """What two tell of one end: the first that has a limit, an error or an outcome says it."""
    said = first if first.limit or first.error or first.outcome else second
    peaks = [p for p in (first.peak_memory_bytes, second.peak_memory_bytes) if p is not None]
    return replace(
        said,
        exit=second.exit or first.exit,
        peak_memory_bytes=max(peaks) if peaks else None,
        notes=(*first.notes, *second.notes),
    )


def _prefer(wall: Wall, image: str) -> None:
    """Let a back end of containers try its guarantees in the image that will be used."""
    prefer = getattr(wall, "prefer", None)
    if prefer is not None:
        prefer(image)


def _image_fault(wall: Wall, need: Need) -> str:
    """Why the image of a container can't be used; "" when it is there, or may be pulled."""
    check = getattr(wall, "check_image", None)
    return str(check(need.image, need.pull) or "") if check is not None and need.level == "container" else ""
