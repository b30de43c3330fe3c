"""logs: what a node wrote, also while it writes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from dagrun.cli.console import Settings, emit, emit_bytes, emit_json, is_terminal, say
from dagrun.cli.groups import command, node_number, run_and_node
from dagrun.cli.show import log_path, shown_size
from dagrun.core.names import SETTLED, RunStatus, Status
from dagrun.errors import NotFoundError

if TYPE_CHECKING:
    from dagrun.core.state import Attempt, RunState
    from dagrun.store.history import Follower
    from dagrun.store.rundir import RunDir
    from dagrun.store.sync import Notice

CHUNK = 1 << 16
_WORDS = typer.Argument(..., metavar="[RUN] NODE", help="One word is a node of the last run.")
_TAIL = typer.Option(None, "--tail", metavar="N", min=0, show_default=False, help="Only the last N lines of each.")
LOOK_S = 2.0  # how often a follower asks whether the engine is still alive
POLL_S = 0.25  # where the kernel gives no notice of a file that grows


@command(
    "logs",
    "dagrun logs build\ndagrun logs r7k2 build --err --tail 20\ndagrun logs build -f      # until it ends",
)
def logs(
    ctx: typer.Context,
    words: list[str] = _WORDS,
    follow: bool = typer.Option(False, "-f", "--follow", help="Go on until the node has ended."),
    attempt: int = typer.Option(0, "--attempt", metavar="N", show_default=False, help="That attempt (the last)."),
    out: bool = typer.Option(False, "--out", help="Only stdout."),
    err: bool = typer.Option(False, "--err", help="Only stderr."),
    tail: int | None = _TAIL,
    raw: bool = typer.Option(False, "--raw", help="Bytes as they are, also to a terminal."),
) -> None:
    """What a node wrote: its stdout, then its stderr.

    A terminal gets it without control characters; a pipe gets the bytes.
    """
    from dagrun.store.history import Follower
    from dagrun.store.rundir import find_run

    settings: Settings = ctx.obj
    run_text, node = run_and_node(words, node_needed=True)
    run = find_run(".", run_text)
    streams = ("out", "err") if out == err else ("out",) if out else ("err",)
    follower = Follower(run)
    try:
        i = node_number(follower.state.plan.index, node or "", run.id)
        reader = _Reader(run, follower, i, _Sink(raw or not is_terminal(sys.stdout)), -1 if tail is None else tail)
        if settings.json:
            _as_json(reader, attempt)
        elif follow:
            reader.follow(attempt, streams)
        else:
            reader.show(attempt, streams)
    finally:
        follower.close()


class _Sink:
    """Where bytes of nodes go: as they are, or cleaned line by line."""

    def __init__(self, exact: bool) -> None:
        self.exact = exact
        self.open = True
        self.rest: dict[str, bytes] = {}

    def put(self, stream: str, data: bytes) -> bool:
        """Print bytes of a stream; False once nobody reads them."""
        if self.exact:
            self.open = self.open and emit_bytes(data)
            return self.open
        *lines, rest = (self.rest.pop(stream, b"") + data).split(b"\n")
        if len(rest) >= CHUNK:  # a line without end must not be kept without end
            lines, rest = [*lines, rest], b""
        self.rest[stream] = rest
        return self._print(lines)

    def end(self) -> None:
        """Print what came without a newline at its end."""
        for rest in self.rest.values():
            if rest:
                self._print([rest])
        self.rest.clear()

    def _print(self, lines: list[bytes]) -> bool:
        from dagrun.view.text import clean_block

        if lines and self.open:
            text = clean_block(b"\n".join(lines).decode("utf-8", "replace"))
            self.open = emit(text, flush=True)
        return self.open


class _Reader:
    """The logs of one node of a run."""

    def __init__(self, run: RunDir, follower: Follower, i: int, sink: _Sink, tail: int) -> None:
        self.run = run
        self.follower = follower
        self.i = i
        self.sink = sink
        self.tail = tail

    @property
    def state(self) -> RunState:
        """The state as far as it has been read."""
        return self.follower.state

    @property
    def node(self) -> str:
        """The id of the node."""
        return self.state.plan.ids[self.i]

    def attempt(self, number: int) -> Attempt | None:
        """The attempt of that number, or the last; None if the node never started. Raises NotFoundError."""
        tried = self.state.attempts[self.i]
        if number <= 0:
            return tried[-1] if tried else None
        if number > len(tried):
            from dagrun.view.text import plural

            raise NotFoundError(
                f"{self.node} has {plural(len(tried), 'attempt')}, none is number {number}",
                hint=f"see them: dagrun trace show {self.run.id} --node {self.node}",
            )
        return tried[number - 1]

    def path(self, attempt: Attempt, stream: str) -> str:
        """Where a stream of an attempt is now."""
        return log_path(self.run, self.node, attempt, stream)

    def read(self, attempt: Attempt, stream: str, start: int) -> bytes:
        """The next bytes of a stream that may be shown, from `start`; empty where there are none yet."""
        data, ended = b"", False
        while not ended:
            ended = attempt.outcome is not None
            try:
                fd = os.open(self.path(attempt, stream), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                data = b""
            else:
                try:
                    data = os.pread(fd, CHUNK, start)
                    data = data[: max(0, self.size(attempt, stream, fd) - start)]
                finally:
                    os.close(fd)
            if not ended:
                # the files of a silent attempt go to another one: what was read before it ended is its own
                self.follower.poll()
                if attempt.outcome is None:
                    break
        return data

    def size(self, attempt: Attempt, stream: str, fd: int) -> int:
        """How many bytes of an open stream may be shown."""
        return shown_size(self.run, self.state.plan.nodes[self.i], attempt, stream, fd)

    def show(self, number: int, streams: tuple[str, ...]) -> None:
        """Print what there is now."""
        attempt = self.attempt(number)
        if attempt is None:
            say(f"{self.node} has not run: {self.why_not()}")
            return
        wrote = False
        for stream in streams:
            start = self.tail_start(attempt, stream)
            while data := self.read(attempt, stream, start):
                wrote = True
                start += len(data)
                if not self.sink.put(stream, data):
                    return
            self.sink.end()
        held_back = sum(self.held_back(attempt, stream) for stream in streams)
        if held_back:
            say(f"{self.node}: {held_back:,} bytes more are shown once the secrets in them are masked")
        elif not wrote and self.tail != 0:
            say(f"{self.node} wrote nothing" + ("" if len(streams) == 2 else f" to std{streams[0]}"))

    def why_not(self) -> str:
        """Why a node has no attempt."""
        from dagrun.core.trace import node_reason

        status, reason = self.state.node_status[self.i], node_reason(self.state, self.i)
        return f"{status} ({reason})" if reason else str(status)

    def held_back(self, attempt: Attempt, stream: str) -> int:
        """How many bytes of a stream can't be shown yet."""
        try:
            fd = os.open(self.path(attempt, stream), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0
        try:
            return os.fstat(fd).st_size - self.size(attempt, stream, fd)
        finally:
            os.close(fd)

    def tail_start(self, attempt: Attempt, stream: str) -> int:
        """The offset of the last `tail` lines of a stream as it is now."""
        if self.tail < 0:
            return 0
        try:
            fd = os.open(self.path(attempt, stream), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0
        try:
            return _tail_start(fd, self.tail, self.size(attempt, stream, fd))
        finally:
            os.close(fd)

    # ------------------------------------------------------------ following

    def follow(self, number: int, streams: tuple[str, ...]) -> None:
        """Print what there is and what comes, until the attempt (or, without a number, the node) has ended."""
        done = number if number > 0 else 0
        shown = number - 1 if number > 0 else max(0, len(self.state.attempts[self.i]) - 1)
        while self.sink.open:
            tried = self.state.attempts[self.i]
            if shown < len(tried) and (not done or shown + 1 == done):
                if shown and not done:
                    say(f"{self.node}: attempt {shown + 1}")
                self.follow_attempt(tried[shown], streams)
                shown += 1
            elif self.over() or (done and shown >= done):
                return
            else:
                self.wait([])

    def over(self) -> bool:
        """Whether the node will not write any more, as far as anybody works on the run."""
        state = self.state
        return state.node_status[self.i] in SETTLED or state.status is not RunStatus.RUNNING or self.abandoned()

    def abandoned(self) -> bool:
        """Whether the run has no engine any more."""
        if self.run.lock_holder() is not None:
            return False
        self.follower.poll()
        return True

    def follow_attempt(self, attempt: Attempt, streams: tuple[str, ...]) -> None:
        """Print an attempt until it has ended."""
        at = {stream: self.tail_start(attempt, stream) for stream in streams}
        notices = list(self.notices(attempt, streams))
        lost = False
        try:
            while self.sink.open:
                ended = lost or attempt.outcome is not None or self.state.status is not RunStatus.RUNNING
                grew = False
                for stream in streams:
                    data = self.read(attempt, stream, at[stream])
                    if not ended and attempt.outcome is not None:
                        grew = True
                        break
                    if data:
                        grew = True
                        at[stream] += len(data)
                        self.sink.put(stream, data)
                if grew:
                    continue
                if ended:
                    return
                lost = self.abandoned()
                if not lost:
                    self.wait(notices)
        finally:
            self.sink.end()
            for notice in notices:
                notice.close()

    def notices(self, attempt: Attempt, streams: tuple[str, ...]) -> Iterator[Notice]:
        """The kernel's word when a stream of a running attempt grows."""
        from dagrun.store.sync import Notice

        node = self.state.plan.nodes[self.i]
        if attempt.outcome is not None or node.secrets or node.secret_files:
            return  # what is masked is shown, and that comes later than the bytes
        for stream in streams:
            notice = Notice.watch(self.path(attempt, stream))
            if notice is not None:
                yield notice

    def wait(self, notices: list[Notice]) -> None:
        """Until something grew, or it is time to see who is alive."""
        from select import select

        journal = self.follower.fileno()
        fds = [n.fileno() for n in notices] + ([journal] if journal is not None else [])
        blind = journal is None or (notices == [] and self.state.node_status[self.i] is Status.RUNNING)
        select(fds, [], [], POLL_S if blind else LOOK_S)
        for notice in notices:
            notice.drain()
        self.follower.poll()


def _tail_start(fd: int, lines: int, end: int) -> int:
    """The offset of the last `lines` lines of a file up to `end`."""
    if lines == 0:
        return end
    # a newline at the very end ends the last line and begins none
    left, at = lines, end
    first = True
    while at > 0:
        start = max(0, at - CHUNK)
        data = os.pread(fd, at - start, start)
        stop = len(data) - 1 if first and data.endswith(b"\n") else len(data)
        first = False
        while (found := data.rfind(b"\n", 0, stop)) >= 0:
            left -= 1
            if left == 0:
                return start + found + 1
            stop = found
        at = start
    return 0


def _as_json(reader: _Reader, number: int) -> None:
    attempt = reader.attempt(number)
    document: dict[str, object] = {
        "run_id": reader.run.id,
        "node_id": reader.node,
        "status": reader.state.node_status[reader.i],
        "attempt": attempt.number if attempt else None,
        "stdout": "",
        "stderr": "",
    }
    for stream in ("out", "err"):
        chunks = []
        start = reader.tail_start(attempt, stream) if attempt else 0
        while attempt and (data := reader.read(attempt, stream, start)):
            chunks.append(data)
            start += len(data)
        document[f"std{stream}"] = b"".join(chunks).decode("utf-8", "replace")
    emit_json(document)


