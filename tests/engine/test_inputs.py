"""What hashFiles reads, and what it leaves alone."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dagrun.core.expression import EvaluationError
from dagrun.engine.inputs import hasher


@pytest.mark.parametrize(
    "make",
    [lambda p: p.mkdir(), os.mkfifo, lambda p: p.symlink_to("nowhere"), lambda p: p.symlink_to("/dev/null")],
    ids=["folder", "pipe", "broken link", "device"],
)
def test_what_is_no_file_is_named_and_keeps_no_descriptor(tmp_path: Path, make: Callable[[Path], object]) -> None:
    (tmp_path / "a").write_text("a")
    make(tmp_path / "thing")
    gc.collect()  # what other tests left open would be closed in between
    before = os.listdir("/proc/self/fd")
    with pytest.raises(EvaluationError, match=r"hashFiles: .*thing"):
        hasher(str(tmp_path))(("a", "thing"))
    assert set(os.listdir("/proc/self/fd")) <= set(before)
    assert len(hasher(str(tmp_path))(("a",))) == 64
