"""The fault points themselves."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

import dagrun
from dagrun.errors import BugError, UsageError
from dagrun.store import fault as module


@pytest.mark.parametrize(
    "text", ["", "x", "journal.before_write", "journal.before_write:0:kill", "nope:1:kill", "*:1:x"]
)
def test_a_bad_spec_says_what_is_accepted(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        module.parse(text)
    assert "journal.before_write" in caught.value.hint


def test_the_nth_pass_strikes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_spec", ("*", 3, "eio"))
    monkeypatch.setattr(module, "_passed", 0)
    module.fault("journal.before_lock")
    module.fault("journal.before_write")
    with pytest.raises(OSError, match="before_sync") as caught:
        module.fault("journal.before_sync")
    assert caught.value.errno == errno.EIO
    module.fault("journal.before_sync")


def test_an_unknown_point_is_a_bug() -> None:
    with pytest.raises(BugError):
        module.fault("journal.befor_write")


def test_the_listed_points_are_those_in_the_code() -> None:
    root = Path(dagrun.__file__).parent
    found = {
        name for file in root.rglob("*.py") for name in re.findall(r'^ +fault\("([a-z_.]+)"\)', file.read_text(), re.M)
    }
    assert found == set(module.POINTS)
