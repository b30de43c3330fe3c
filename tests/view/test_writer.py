"""Writing to streams that are slow, full or gone."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from threading import Event

import pytest

from dagrun.view.writer import Writer


def test_lines_keep_their_order_and_none_is_lost() -> None:
    stream = io.StringIO()
    writer = Writer(stream)
    for k in range(500):
        writer.put(f"{k}\n")
    writer.close()
    assert stream.getvalue() == "".join(f"{k}\n" for k in range(500))


def test_of_frames_only_the_newest_waits() -> None:
    stream = io.StringIO()
    writer = Writer(stream)
    begun, go_on = Event(), Event()

    def first() -> str:
        begun.set()
        go_on.wait(10)
        return "first "

    writer.show(first)
    assert begun.wait(10)
    for k in range(100):
        writer.show(lambda k=k: f"frame {k} ")  # type: ignore[misc]
    go_on.set()
    writer.close()
    assert stream.getvalue() == "first frame 99 "


def test_a_reader_that_does_not_read_does_not_block() -> None:
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w")
    writer = Writer(stream)
    line = "x" * 99 + "\n"
    for _ in range(20_000):  # 2 MB, a pipe holds 64 KB
        writer.put(line)
    assert not writer.flush(0.01)
    seen = 0
    while seen < 2_000_000:
        seen += len(os.read(reading, 1 << 20))
    assert writer.flush(10)
    writer.close()
    os.close(reading)
    stream.close()


@pytest.mark.parametrize("kind", ["closed pipe", "full disk", "closed stream"])
def test_a_broken_stream_makes_it_quiet(kind: str) -> None:
    if kind == "full disk":
        stream = open("/dev/full", "w")  # noqa: SIM115
    else:
        reading, writing = os.pipe()
        os.close(reading)
        stream = os.fdopen(writing, "w")
    if kind == "closed stream":
        stream.close()
    writer = Writer(stream)
    writer.put("hello\n")
    assert writer.flush(10)
    assert writer.dead
    writer.put("again\n")
    writer.show(lambda: "frame")
    writer.close()
    stream.close()


def test_what_the_encoding_lacks_is_replaced() -> None:
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w")
    writer = Writer(stream, "ascii")
    writer.put("caf\xe9 \u2713\n")
    writer.close()
    stream.close()
    assert os.read(reading, 100) == b"caf? ?\n"
    os.close(reading)


BROKEN = """
import os, sys
from dagrun.view.log import LineLog
log = LineLog(sys.stderr)
for k in range(100):
    log._emit([f"line {k}"])
log._writer.flush(10)
print("the run went on")
"""


UNCLOSED = """
import sys
from dagrun.view.log import LineLog
log = LineLog(sys.stderr)
for k in range(5000):
    log._emit([f"line {k}"])
raise SystemExit(3)
"""


def test_a_program_whose_stderr_is_gone_ends_well() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", BROKEN], stdout=subprocess.PIPE, stderr=writing, check=False)
    os.close(writing)
    assert (done.returncode, done.stdout) == (0, b"the run went on\n")


def test_a_program_that_never_closed_its_log_still_writes_it_all() -> None:
    done = subprocess.run([sys.executable, "-c", UNCLOSED], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == "line 4999"
