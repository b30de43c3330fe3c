"""Which back end is taken: by what it proved and never by its name, and never a weaker one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagrun.sandbox.base import Child, Exit
from dagrun.sandbox.needs import LIMITS, Missing, Need, hint_of, need_of, reasons, remedy, requirements, told
from dagrun.sandbox.wall import GUARANTEES, Aftermath, Bounds, Guarantee, Launch, Refused, Spec, Wall
from dagrun.sandbox.walls import BackEnd, Walls

ALL: dict[Guarantee, str] = dict.fromkeys(GUARANTEES, "")
DONE = Exit(0, None, None, 0)
CHILD = Child(1, -1, "r/a/1", 0, 0.0)


@dataclass
class Fake:
    """A back end that says what it is told to say, and keeps what was asked of it."""

    name: str
    held: dict[Guarantee, str] = field(default_factory=lambda: dict(ALL))
    after: Aftermath = field(default_factory=Aftermath)
    images: tuple[str, ...] = ("busybox",)
    calls: list[str] = field(default_factory=list)
    specs: list[Spec] = field(default_factory=list)
    answer: int = 7

    def proved(self) -> Mapping[Guarantee, str]:
        return self.held

    def check_image(self, image: str, pull: str) -> str:
        return "" if image in self.images or pull == "missing" else f"there is no image {image!r}"

    def launch(self, spec: Spec) -> Launch:
        self.specs.append(spec)
        return Launch(argv=(self.name, *spec.argv), env=dict(spec.env), backend=self.name)

    def started(self, launch: Launch, child: Child) -> None:
        self.calls.append("started")

    def discard(self, launch: Launch) -> None:
        self.calls.append("discard")

    def terminate(self, launch: Launch, child: Child) -> int:
        return self.answer

    def kill(self, launch: Launch, child: Child) -> int:
        return self.answer

    def ended(self, launch: Launch, exit_: Exit) -> Aftermath:
        self.calls.append("ended")
        return self.after

    def close(self) -> None:
        self.calls.append("close")


@dataclass
class FakeLimiter:
    """Ceilings that hold what they are told to hold."""

    held: dict[Guarantee, str] = field(default_factory=lambda: dict.fromkeys(("mem", "pids", "cpu", "fsize"), ""))
    after: Aftermath = field(default_factory=Aftermath)
    applied: list[Bounds] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    def proved(self) -> Mapping[Guarantee, str]:
        return self.held

    def apply(self, bounds: Bounds, launch: Launch, attempt_id: str) -> Launch:
        self.applied.append(bounds)
        self.keys.append(attempt_id)
        launch.argv = ("limited", *launch.argv)
        return launch

    def passed(self, launch: Launch, *, failed: bool) -> Aftermath:
        self.calls.append("failed" if failed else "passed")
        return self.after

    def ended(self, launch: Launch, exit_: Exit) -> Aftermath:
        self.calls.append("ended")
        return self.after

    def close(self) -> None:
        self.calls.append("close")


def walls(*fakes: Fake, accepted: tuple[Guarantee, ...] = (), limiter: FakeLimiter | None = None) -> Walls:
    by_name = {fake.name: fake for fake in fakes}

    def make(name: BackEnd) -> Wall:
        found: Wall = by_name.get(name) or Fake(name, dict.fromkeys(GUARANTEES, "it is not installed"))
        return found

    return Walls(frozenset(accepted), make, limiter or FakeLimiter())


def spec(**more: object) -> Spec:
    made = Spec(attempt_id="r/a/1", run_id="r", run_dir="/r", node="a", argv=("true",), env={}, cwd="/", project="/")
    return replace(made, **{"read": (".",), **more})  # type: ignore[arg-type]


def test_the_first_that_proves_all_is_taken() -> None:
    found = walls(Fake("bubblewrap"), Fake("landlock"))
    assert found.name(need_of(spec())) == "bubblewrap"
    assert found.check([need_of(spec())]) == []


def test_one_guarantee_less_is_enough_to_be_passed_over() -> None:
    found = walls(Fake("bubblewrap", {**ALL, "proc.hide": "it did not hide"}), Fake("landlock"))
    assert found.name(need_of(spec())) == "landlock"


@pytest.mark.parametrize("lacking", sorted(need_of(spec(network="none")).required))
def test_nothing_is_taken_that_lacks_a_required_guarantee(lacking: Guarantee) -> None:
    found = walls(Fake("bubblewrap", {**ALL, lacking: "canary got out"}))
    [missing] = found.check([need_of(spec(network="none"))])
    assert lacking in missing.lacks
    assert "canary got out" in told(missing)
    with pytest.raises(Refused):
        found.launch(spec(network="none"))


def test_what_is_not_asked_for_need_not_be_held() -> None:
    found = walls(Fake("bubblewrap", {**ALL, "fs.read": "no", "fs.meta": "no", "net.none": "no", "mem": "no"}))
    assert found.name(need_of(spec(read=None, network="any"))) == "bubblewrap"
    assert found.check([need_of(spec(network="any"))])


def test_an_accepted_lack_is_gone_without_and_told() -> None:
    lacking: dict[Guarantee, str] = {**ALL, "fs.meta": "names can be seen", "proc.hide": "no namespace"}
    found = walls(Fake("landlock", lacking), accepted=("fs.meta", "proc.hide", "unix"))
    needs = [need_of(spec())]
    assert found.check(needs) == []
    assert found.waived(needs) == {"fs.meta": "names can be seen", "proc.hide": "no namespace"}
    assert found.name(needs[0]) == "landlock"


def test_accepting_everything_does_not_make_a_back_end_of_nothing() -> None:
    assert walls(accepted=GUARANTEES).check([need_of(spec())])


@pytest.mark.parametrize("network", ["none", "any", ("a.example",), ()])
def test_a_container_holds_files_and_network_whatever_was_declared(network: object) -> None:
    need = need_of(spec(level="container", network=network, image="busybox"))
    assert {"fs.read", "fs.write", "caps"} <= need.required
    asked = {"none": "net.none", "any": "", ("a.example",): "net.allowlist", (): "net.none"}[network]  # type: ignore[index]
    assert need.required & {"net.none", "net.allowlist"} == ({asked} if asked else set())


def test_an_image_that_is_not_here_is_missing_and_one_that_may_be_pulled_is_not() -> None:
    found = walls(Fake("docker"))
    need = need_of(spec(level="container", image="absent"))
    [missing] = found.check([need])
    assert not missing.lacks
    assert "absent" in told(missing)
    assert found.check([replace(need, pull="missing")]) == []
    assert found.name(replace(need, image="busybox")) == "docker"


def test_nodes_with_the_same_lack_are_told_together_and_others_apart() -> None:
    found = walls()
    needs = [replace(need_of(spec()), node=f"n{i}") for i in range(7)]
    needs.append(replace(need_of(spec(level="container", image="busybox")), node="boxed"))
    both = found.check(needs)
    assert [m.nodes for m in both] == [tuple(f"n{i}" for i in range(7)), ("boxed",)]
    assert "and 2 more" in told(both[0])


def test_nothing_is_probed_for_what_holds_nothing() -> None:
    def make(name: BackEnd) -> Wall:
        raise AssertionError(name)

    found = Walls(make=make, limiter=FakeLimiter())
    assert found.check([need_of(spec(read=None)), need_of(spec(read=None, bounds=Bounds(pids=3)))]) == []


# ---------------------------------------------------------------- ceilings


def test_ceilings_of_a_plain_command_go_around_it() -> None:
    limiter = FakeLimiter()
    found = walls(limiter=limiter)
    held = found.launch(spec(read=None, bounds=Bounds(pids=3), script="true"))
    assert held.launch.argv == ("limited", "true")
    assert (held.wall, held.launch.script) == (None, "true")
    assert found.terminate(held, CHILD) == found.kill(held, CHILD) == -1
    found.ended(held, DONE)
    assert limiter.calls == ["ended"]


def test_a_part_of_an_attempt_is_under_the_ceilings_of_that_one() -> None:
    limiter = FakeLimiter(after=Aftermath(limit="memory"))
    found = walls(limiter=limiter)
    bounded = spec(read=None, bounds=Bounds(pids=3))
    held = found.launch(bounded)
    found.launch(replace(bounded, attempt_id=f"{bounded.attempt_id}-server", ceilings_of=bounded.attempt_id))
    assert limiter.keys == [bounded.attempt_id] * 2
    assert found.passed(held, failed=True).limit == "memory"
    assert limiter.calls == ["failed"]
    assert found.passed(found.launch(spec(read=None)), failed=True) == Aftermath()  # nothing was written


def test_an_unheld_ceiling_is_missing() -> None:
    limiter = FakeLimiter({"mem": "no control groups", "pids": "", "cpu": "", "fsize": ""})
    need = need_of(spec(read=None, bounds=Bounds(memory_bytes=1, pids=2)))
    [missing] = walls(limiter=limiter).check([need])
    assert missing.lacks == ("mem",)
    assert walls(limiter=limiter, accepted=("mem",)).check([need]) == []


def test_a_back_end_may_hold_a_ceiling_that_control_groups_can_not() -> None:
    limiter = FakeLimiter({"mem": "", "pids": "no control groups", "cpu": "", "fsize": ""})
    bwrap = Fake("bubblewrap")
    found = walls(bwrap, limiter=limiter)
    held = found.launch(spec(bounds=Bounds(memory_bytes=5, pids=6)))
    assert held.launch.argv == ("limited", "bubblewrap", "true")
    assert limiter.applied == [Bounds(memory_bytes=5)]
    assert bwrap.specs[0].bounds == Bounds(pids=6)


def test_all_ceilings_of_a_container_are_its_own() -> None:
    limiter = FakeLimiter()
    docker = Fake("docker")
    bounds = Bounds(memory_bytes=5, pids=6, cpu=1.0, file_size_bytes=8)
    held = walls(docker, limiter=limiter).launch(spec(level="container", image="busybox", bounds=bounds))
    assert held.launch.argv == ("docker", "true")
    assert docker.specs[0].bounds == bounds
    assert not limiter.applied


# ---------------------------------------------------------------- an attempt


def test_what_is_spawned_carries_the_cookies_of_its_attempt() -> None:
    held = walls(Fake("docker")).launch(spec(level="container", image="busybox"))
    names = ("DAGRUN_RUN_ID", "DAGRUN_RUN_DIR", "DAGRUN_ATTEMPT_ID")
    assert [held.launch.env[name] for name in names] == ["r", "/r", "r/a/1"]


def test_what_was_not_spawned_is_given_back_by_both() -> None:
    limiter, bwrap = FakeLimiter(), Fake("bubblewrap")
    found = walls(bwrap, limiter=limiter)
    found.discard(found.launch(spec(bounds=Bounds(pids=3))))
    assert bwrap.calls == ["discard"]
    assert limiter.calls == ["ended"]


def test_the_end_is_told_by_who_knows_more() -> None:
    limiter = FakeLimiter(after=Aftermath(limit="memory", error="too much", peak_memory_bytes=9, notes=("b",)))
    bwrap = Fake("bubblewrap", after=Aftermath(peak_memory_bytes=5, notes=("a",)))
    found = walls(bwrap, limiter=limiter)
    after = found.ended(found.launch(spec(bounds=Bounds(memory_bytes=3))), DONE)
    assert (after.limit, after.error, after.peak_memory_bytes, after.notes) == ("memory", "too much", 9, ("a", "b"))
    bwrap.after = Aftermath(outcome="denied", error="planted")
    after = found.ended(found.launch(spec(bounds=Bounds(memory_bytes=3))), DONE)
    assert (after.outcome, after.limit, after.error) == ("denied", "", "planted")


def test_closing_closes_all_that_was_made() -> None:
    limiter, bwrap = FakeLimiter(), Fake("bubblewrap")
    found = walls(bwrap, limiter=limiter)
    found.name(need_of(spec()))
    found.close()
    assert bwrap.calls == limiter.calls == ["close"]


def test_helpers_from_before_there_was_a_sweep_are_exempt_too() -> None:
    seen: list[int] = []
    found = Walls()
    found._spare(11)
    found.exempt_by(seen.append)
    found._spare(12)
    found.exempt_by(seen.append)
    assert seen == [11, 12]


def test_what_outlives_a_killed_engine_is_told_before_it_is_made() -> None:
    seen: list[str] = []
    found = walls(Fake("docker"), Fake("bubblewrap"))
    found.used = seen.append
    found.launch(spec())
    assert seen == ["plants"]
    for _ in range(2):
        found.launch(spec(level="container", image="busybox"))
        found.launch(spec(bounds=Bounds(pids=1)))
    assert seen == ["plants", "docker", "limits"]


# ---------------------------------------------------------------- laws

_BOUNDS = st.builds(
    Bounds,
    memory_bytes=st.none() | st.just(1),
    pids=st.none() | st.just(1),
    cpu=st.none() | st.just(1.0),
    file_size_bytes=st.none() | st.just(1),
)
_SUBSETS = st.sets(st.sampled_from(GUARANTEES))


@given(_SUBSETS, _SUBSETS, _BOUNDS, st.sampled_from(["none", "any", ("h",)]), st.booleans())
def test_taken_means_required_is_proved_or_accepted(
    proved: set[Guarantee], accepted: set[Guarantee], bounds: Bounds, network: object, files: bool
) -> None:
    held: dict[Guarantee, str] = {g: "" if g in proved else "no" for g in GUARANTEES}
    limiter = FakeLimiter(dict.fromkeys(("mem", "pids", "cpu", "fsize"), "no"))
    found = walls(Fake("landlock", held), accepted=tuple(accepted), limiter=limiter)
    need = need_of(spec(read=(".",) if files else None, network=network, bounds=bounds))
    lacks = need.required - proved - accepted
    taken = not found.check([need])
    assert not (taken and lacks)
    if not lacks and need.required & proved - LIMITS:
        assert taken
    if taken:
        assert found.waived([need]).keys() == need.required - proved


@given(_BOUNDS)
def test_a_plain_command_requires_its_ceilings_alone(bounds: Bounds) -> None:
    required = requirements("process", confined=False, files=False, network=None, bounds=bounds)
    assert required <= LIMITS
    assert bool(required) is bool(bounds)


def test_a_need_is_told_without_a_back_end() -> None:
    missing = Missing(nodes=("a",), level="process", lacks=("caps",), why=(), hint="")
    assert told(missing) == "node `a` can't be held at level process: nothing here proves caps"
    assert Need(node="a").required == frozenset()


def test_what_to_accept_is_the_whole_list_that_has_to_be_typed() -> None:
    need = Need(node="a", required=frozenset({"fs.meta", "proc.hide", "caps"}))
    lacks: dict[Guarantee, str] = {"proc.hide": "no PID namespace"}
    hint = remedy(need, [("landlock", lacks)], lacks, {"fs.meta"})
    assert "--accept-missing fs.meta,proc.hide;" in hint

    def lack(hint: str) -> Missing:
        return Missing(nodes=("a",), level="process", lacks=(), why=(), hint=hint)

    other = remedy(need, [("landlock", lacks)], {"caps": "x"})
    assert hint_of([lack(hint), lack(hint)]) == hint
    both = hint_of([lack(f"install it; {hint}"), lack(other)])
    assert both.startswith("install it; to go without")
    assert both.endswith("--accept-missing fs.meta,proc.hide,caps; what holds here: dagrun doctor")
    assert hint_of([lack("get the image")]) == "get the image"


@pytest.mark.parametrize(
    ("first", "why", "way"),
    [
        ("", "it can do it", "install bubblewrap: apt install"),
        ("/usr/bin", "/usr/bin/bwrap is too old: it has no --bind-fd", "install bubblewrap: apt install"),
        ("/usr/bin", "no user namespace can be made", "let this user make namespaces"),
        ("mine", "got out", "first on the PATH: /usr/bin/bwrap"),
    ],
)
def test_what_to_do_about_bubblewrap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, why: str, way: str
) -> None:
    if first and not os.access("/usr/bin/bwrap", os.X_OK):
        pytest.skip("the system has no bwrap")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "bwrap").write_text("#!/bin/sh\n")
    (tmp_path / "mine" / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / first}:/usr/bin" if first else str(tmp_path))
    lacks: dict[Guarantee, str] = {"fs.meta": why}
    hint = remedy(Need(node="a", required=frozenset({"fs.meta", "caps"})), [("bubblewrap", lacks)], lacks)
    assert way in hint
    assert hint.index(way) < hint.index("--accept-missing")


def test_an_image_that_one_engine_lacks_is_taken_from_the_other() -> None:
    docker, podman = Fake("docker", ALL), Fake("podman", ALL, images=("mine",))
    need = Need(node="a", level="container", required=frozenset({"caps"}), image="mine")
    assert walls(docker, podman).name(need) == "podman"


def test_where_no_engine_has_the_image_all_of_them_are_told() -> None:
    """Where Docker's daemon does not run, that Podman lacks the image is not the whole truth."""
    down = Fake("docker", dict.fromkeys(GUARANTEES, "the Docker daemon does not run"))
    need = Need(node="a", level="container", required=frozenset({"caps"}), image="mine")
    (lack,) = walls(down, Fake("podman", ALL)).check([need])
    assert lack.why == ("podman: there is no image 'mine'", "docker: the Docker daemon does not run (caps)")
    assert lack.hint.startswith("get the image first: podman pull mine;")
    (lack,) = walls(Fake("docker", ALL), Fake("podman", ALL)).check([need])
    assert lack.why == ("docker: there is no image 'mine'", "podman: there is no image 'mine'")
    assert "docker pull mine" in lack.hint


def test_a_container_that_lacks_only_the_list_of_hosts_needs_no_installation() -> None:
    lacks: dict[Guarantee, str] = {"net.allowlist": "not yet"}
    need = Need(node="a", level="container", required=frozenset({"net.allowlist", "caps"}))
    hint = remedy(need, [("docker", lacks), ("podman", lacks)], lacks)
    assert "none or any" in hint
    assert "install" not in hint
    assert "accept" not in hint


def test_one_reason_for_everything_has_no_list() -> None:
    assert reasons(dict.fromkeys(GUARANTEES, "bwrap is not installed")) == "bwrap is not installed"
    assert reasons({"caps": "a", "ipc": "b"}) == "a (caps); b (ipc)"
    assert reasons({"caps": "a"}) == "a (caps)"
