"""The logs of attempts with secrets: masked while they run, and never shown before that."""

from __future__ import annotations

import os
import random
from base64 import b64encode, encodebytes
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagrun.core.mask import Masker
from dagrun.core.workflow import Node, Output
from dagrun.engine.masking import PIECE, LiveMask, mask_file
from dagrun.sandbox.logpool import LogPool, Slot
from dagrun.store.shown import shown_bytes

SECRET = "live-C4nary/7f3a9c+zz"


class Log:
    """One attempt's stdout, written as a command does, masked as the engine does, read as a reader does."""

    def __init__(self, folder: Path, mask: Masker, node: Node) -> None:
        self.folder = str(folder)
        self.pool = LogPool(self.folder)
        self.slot: Slot = self.pool.acquire()
        self.live = LiveMask(mask, self.folder, node, 1, self.slot)

    def write(self, data: bytes) -> None:
        os.write(self.slot.out_fd, data)

    def shown(self) -> bytes:
        fd = self.slot.out_fd
        data = os.pread(fd, 1 << 24, 0)
        most = shown_bytes(self.folder, self.slot.index, "a.1", "out", fd)
        assert most is not None
        return data[:most]

    def step(self) -> bytes:
        """Mask to the end; what is shown then."""
        while self.live.step():
            pass
        return self.shown()

    def all(self) -> bytes:
        return os.pread(self.slot.out_fd, 1 << 24, 0)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path, Masker((SECRET,)), Node(id="a", run="x"))
    yield made
    made.pool.close()


def test_what_is_masked_is_shown_and_no_more(log: Log) -> None:
    log.write(b"up\n")
    assert log.shown() == b""
    assert log.step() == b"up\n"
    log.write(f"it is {SECRET}\n".encode())
    assert log.shown() == b"up\n"
    assert log.step() == b"up\nit is " + b"*" * len(SECRET) + b"\n"
    log.write(b"more\n")
    assert log.step().endswith(b"\nmore\n")
    assert log.step() == log.all()


@pytest.mark.parametrize("cut", range(1, len(SECRET)))
def test_a_secret_cut_at_the_edge_is_held_back_and_caught(log: Log, cut: int) -> None:
    log.write(b"x " + SECRET[:cut].encode())
    assert log.step() == b"x "
    log.write(SECRET[cut:].encode() + b" y\n")
    assert log.step() == b"x " + b"*" * len(SECRET) + b" y\n"


def test_what_only_looked_like_a_secret_is_shown(log: Log) -> None:
    log.write(b"x " + SECRET[:-1].encode())
    assert log.step() == b"x "
    log.write(b"-no\n")
    assert log.step() == b"x " + SECRET[:-1].encode() + b"-no\n"


def test_a_broken_code_is_held_back_over_its_line_ends(log: Log) -> None:
    lines = encodebytes(b"0123456789" * 5 + SECRET.encode() + b"zz" * 30).splitlines(keepends=True)
    code = b64encode(SECRET.encode())
    for line in lines:
        log.write(line)
        log.step()
    seen = log.step().replace(b"\n", b"")
    assert b"*" in seen
    for k in range(len(code) - 8):
        assert code[k : k + 8] not in seen


def test_a_secret_in_another_one_does_not_spoil_it(tmp_path: Path) -> None:
    """Masking `foobar` at once would leave the rest of `foobar-baz` for ever."""
    log = Log(tmp_path, Masker(("foobar", "foobar-bazbaz")), Node(id="a", run="x"))
    log.write(b"1 foobar")
    assert log.step() == b"1 "
    log.write(b"-bazbaz 2\n")
    assert log.step() == b"1 " + b"*" * 13 + b" 2\n"
    log.write(b"foobar")
    log.step()
    log.write(b"\n")
    assert log.step().endswith(b"2\n******\n")
    log.pool.close()


def test_more_than_a_piece(log: Log) -> None:
    line = f"a line with {SECRET} in it\n".encode()
    log.write(line * (3 * PIECE // len(line)))
    assert log.live.step()
    assert 0 < len(log.shown()) < len(log.all())
    assert log.step() == log.all()
    assert SECRET.encode() not in log.all()
    assert log.all() == (b"a line with " + b"*" * len(SECRET) + b" in it\n") * (3 * PIECE // len(line))


def test_a_file_of_nothing_but_secrets(log: Log) -> None:
    log.write(SECRET.encode() * (2 * PIECE // len(SECRET)) + SECRET[:5].encode())
    seen = log.step()
    assert set(seen) == {ord("*")}
    assert len(log.all()) - len(seen) < 10 * len(SECRET)


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_whole_log_is_masked_as_if_it_were_read_at_once(tmp_path: Path, cut: int) -> None:
    """A secret that begins like another one, wherever a piece of the file ends."""
    mask, rest = Masker(("tokens-x", "tokens-x-and-more")), b"-and-more"
    log = Log(tmp_path, mask, Node(id="a", run="x"))
    step = 1 << 20
    for at in (step, step + mask.longest - 1):
        log.write(b"." * (at - cut - len(log.all())) + b"tokens-x" + rest + b"\n")
    log.write(b"." * step + b"tokens-x\n")
    data = log.all()
    mask_file(mask, log.slot.out_fd)
    assert rest not in log.all()
    assert log.all() == mask.same_length(data)
    log.pool.close()


def test_a_log_that_its_command_cuts_is_masked_again(log: Log) -> None:
    log.write(b"some words that are long enough to be written over\n")
    assert log.step() == log.all()
    os.ftruncate(log.slot.out_fd, 0)
    log.write(f"{SECRET} and {SECRET} and what follows it, longer than before\n".encode())
    assert log.shown() == b""
    assert SECRET.encode() not in log.step()
    assert log.step() == log.all()
    os.ftruncate(log.slot.out_fd, 3)
    assert log.shown() == b""
    assert log.step() == b"***"


def test_stdout_that_is_an_output_stays_as_it_is(tmp_path: Path) -> None:
    node = Node(id="a", run="x", outputs={"o": Output(source="json")})
    log = Log(tmp_path, Masker((SECRET,)), node)
    log.write(SECRET.encode())
    os.write(log.slot.err_fd, SECRET.encode() + b"\n")
    assert log.step() == b""
    assert log.all() == SECRET.encode()
    assert os.pread(log.slot.err_fd, 100, 0) == b"*" * len(SECRET) + b"\n"
    log.pool.close()


def test_secrets_that_are_too_short_hide_nothing(tmp_path: Path) -> None:
    log = Log(tmp_path, Masker(("abc",)), Node(id="a", run="x"))
    log.write(b"abc\n")
    assert log.step() == b"abc\n"
    log.live.end()
    assert [name for name in os.listdir(tmp_path) if "shown" in name] == []
    log.pool.close()


_FORMS = sorted(Masker(('ab\nab-"ab', "ab-abab"))._forms)


@given(
    text=st.lists(st.sampled_from([*_FORMS, "ab", "\n", "x", *"ab-%\\"]), max_size=30).map("".join),
    seed=st.integers(0, 1 << 30),
)
@settings(max_examples=300, deadline=None)
def test_in_any_pieces_it_comes_out_as_in_one(tmp_path_factory: pytest.TempPathFactory, text: str, seed: int) -> None:
    """And nothing that is shown before ever changes: else it was shown too soon."""
    data, cuts, mask = text.encode(), random.Random(seed), Masker(('ab\nab-"ab', "ab-abab"))
    folder = tmp_path_factory.mktemp("pieces")
    log = Log(folder, mask, Node(id="a", run="x"))
    seen = at = 0
    early = b""
    while at < len(data):
        size = cuts.randint(1, 12)
        log.write(data[at : at + size])
        at += size
        now = log.step()
        assert now[: len(early)] == early
        early, seen = now, len(now)
    mask_file(mask, log.slot.out_fd)
    assert log.all()[:seen] == early
    assert log.all() == mask.same_length(data)
    log.pool.close()
