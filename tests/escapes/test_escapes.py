"""Every way out that we know is tried: it must get through without walls, and not through them.

Each attempt is a program that is the command of a node (programs.py), played through the real
command line in a world made for it (stage.py). What doctor ticks in a lane must hold there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias, cast

import pytest

from dagrun.sandbox.wall import GUARANTEES

from .conftest import absent
from .lanes import GAPS, Lane
from .programs import ATTEMPTS, Attempt

ALL = sorted(ATTEMPTS.values(), key=lambda a: (GUARANTEES.index(a.guarantee), a.name))
Ticks: TypeAlias = dict[tuple[str, str], dict[str, str]]
LIMITS = ("mem", "pids", "cpu", "fsize")


ALONE = ("cpu", "mem")  # what they measure is the machine


def _id(found: Attempt) -> str:
    return f"{found.guarantee}-{found.name}"


def each(level: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("found", [a for a in ALL if level in a.levels], ids=_id)


def _held(answer: dict[str, Any], found: Attempt, *, container: bool = False) -> None:
    """The attempt was made, and failed; or it is a known gap, and still there."""
    if found.gap and answer["verdict"] == "escaped":
        pytest.xfail(found.gap)
    assert not found.gap or container, "this is no gap any more: say so in programs.py and docs/isolation.md"
    allowed = ("held", "refused") if found.denied else ("held",)
    assert answer["verdict"] in allowed, answer


def _ticked(lane: Lane, level: str, ticks: Ticks) -> set[str]:
    if (lane.name, level) not in ticks:
        ticks[lane.name, level] = lane.proved(level)
    return {name for name, why in ticks[lane.name, level].items() if not why}


def test_every_guarantee_is_attacked() -> None:
    assert {a.guarantee for a in ALL} == set(GUARANTEES)


@pytest.fixture(scope="module")
def playing(request: pytest.FixtureRequest) -> Iterator[Playing]:
    """Plays ahead: most of an attempt is waiting, so the attempts of a lane are made side by side."""
    made = Playing(request.session.items)
    yield made
    made.close()


@pytest.fixture
def no_thread_left() -> None:
    """The threads that play ahead go on beside the next tests; `playing` ends them with the last."""


class Playing:
    """The attempts that this session is to make; those of one test are started when its first one asks."""

    def __init__(self, items: list[pytest.Item]) -> None:
        self._items = items
        self._pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1)
        self._futures: dict[tuple[str, str], Future[dict[str, Any]]] = {}

    def answer(self, request: pytest.FixtureRequest, lane: Lane, level: str, image: str = "") -> dict[str, Any]:
        """What came of the attempt of this test; skips where the machine has nothing to try it with."""
        test = request.function.__name__
        found: Attempt = request.node.callspec.params["found"]
        if found.guarantee in ALONE:
            return _there(lane.play(found.name, found.control or "none" if level == "control" else level, image))
        if (test, found.name) not in self._futures:
            for item in self._items:
                if isinstance(item, pytest.Function) and item.function.__name__ == test:
                    other = cast(Attempt, item.callspec.params["found"])
                    if other.guarantee not in ALONE:
                        at = other.control or "none" if level == "control" else level
                        self._futures[test, other.name] = self._pool.submit(lane.play, other.name, at, image)
        return _there(self._futures[test, found.name].result())

    def close(self) -> None:
        """Drop what was not asked for."""
        self._pool.shutdown(cancel_futures=True)


def _there(answer: dict[str, Any]) -> dict[str, Any]:
    if answer["verdict"] == "absent":
        pytest.skip(answer["log"])
    return answer


@pytest.mark.parametrize("found", ALL, ids=_id)
def test_without_walls_it_gets_through(
    own: Lane, found: Attempt, playing: Playing, request: pytest.FixtureRequest
) -> None:
    """The control: an attempt that fails here too would prove nothing."""
    if found.root and os.geteuid() != 0:
        pytest.skip("only root could")
    answer = playing.answer(request, own, "control")
    if found.maybe and answer["verdict"] == "held":
        pytest.skip(f"this machine stops it for everybody: {answer['log'].strip()}")
    assert answer["verdict"] == ("escaped" if found.control else "held"), answer


@each("process")
def test_process_holds_it(own: Lane, found: Attempt, playing: Playing, request: pytest.FixtureRequest) -> None:
    if shutil.which("bwrap") is None:
        absent("bubblewrap")
    _held(playing.answer(request, own, "process"), found)


@each("process")
def test_process_holds_it_for_an_ordinary_user(
    user: Lane, found: Attempt, playing: Playing, request: pytest.FixtureRequest
) -> None:
    if shutil.which("bwrap") is None:
        absent("bubblewrap")
    if found.root:
        pytest.skip("only root could")
    _held(playing.answer(request, user, "process"), found)


@pytest.mark.docker
@each("container")
def test_container_holds_it(
    own: Lane, image: str, found: Attempt, playing: Playing, request: pytest.FixtureRequest
) -> None:
    if found.guarantee == "net.allowlist" and os.getuid():
        pytest.skip("the network of Docker's containers belongs to root")
    _held(playing.answer(request, own, "container", image), found, container=True)


@pytest.mark.docker
@each("process")
def test_what_landlock_ticks_it_holds(
    landlock: Lane, found: Attempt, ticks: Ticks, playing: Playing, request: pytest.FixtureRequest
) -> None:
    if found.guarantee not in _ticked(landlock, "process", ticks):
        pytest.skip(f"not ticked: {ticks[landlock.name, 'process'][found.guarantee]}")
    _held(playing.answer(request, landlock, "process"), found)


@pytest.mark.docker
def test_landlock_ticks_no_less_than_it_can(landlock: Lane, ticks: Ticks) -> None:
    assert _ticked(landlock, "process", ticks) >= set(GUARANTEES) - {*GAPS, *LIMITS}


@pytest.mark.docker
def test_landlock_alone_is_not_enough_unless_the_user_says_so(landlock: Lane) -> None:
    weak = Lane(landlock.name, landlock.temp, python=landlock.python, container=landlock.container)
    answer = weak.play("reads_a_file_outside", "process")
    assert (answer["verdict"], answer["code"]) == ("refused", 8), answer
    for missing in ("fs.meta", "proc.hide"):
        assert missing in answer["said"]


@pytest.mark.parametrize("lane", ["own", "user"])
def test_bubblewrap_ticks_all_of_it(
    lane: str, request: pytest.FixtureRequest, ticks: Ticks
) -> None:
    if shutil.which("bwrap") is None:
        absent("bubblewrap")
    assert _ticked(request.getfixturevalue(lane), "process", ticks) >= set(GUARANTEES) - set(LIMITS)
