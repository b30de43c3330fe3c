"""A small engine for the tests of the watchdog: `engine_script.py FOLDER MODE [COMMAND…]`.

Starts each COMMAND by sh, writes its pid into FOLDER/engine, then follows MODE. Every signal it is
told of is a line on stdout.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import sys
from contextlib import suppress
from pathlib import Path

from dagrun.sandbox.base import Child
from dagrun.sandbox.plain import Plain
from dagrun.sandbox.watchdog import EngineSide, kill_everything, run_under_watchdog


def main(side: EngineSide) -> int:
    folder, mode, commands = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    if mode.startswith("exit="):
        print("once")
        return int(mode[5:])
    if mode == "sys.exit":
        sys.exit(6)
    if mode == "raise":
        raise RuntimeError("slipped")
    if mode == "preparing":
        say("preparing")
        signal.sigwait({signal.SIGUSR1})  # as one that reads a workflow from a pipe: nobody reads the signals
    side.tell_run("r7k2")
    box = Plain()
    for number, text in enumerate(commands):
        env = {**os.environ, "DAGRUN_ATTEMPT_ID": f"r7k2/n{number}/1"}
        child = box.spawn(("sh", "-c", text), env, out_fd=2, err_fd=2, attempt_id=f"r7k2/n{number}/1", cwd=str(folder))
        assert isinstance(child, Child)
    (folder / "engine.part").write_text(f"{os.getpid()} {os.getppid()}\n")
    (folder / "engine.part").rename(folder / "engine")
    say("up")
    return follow(side, folder, mode)


def follow(side: EngineSide, folder: Path, mode: str) -> int:
    while True:
        poll = select.poll()
        poll.register(side, select.POLLIN)
        poll.poll()
        for number in side.read():
            say(signal.Signals(number).name)
            if number == signal.SIGQUIT:
                return 33
        if not side.watchdog_alive:
            survivors = kill_everything()
            (folder / "ended").write_text(repr(survivors))
            return 9


def say(text: str) -> None:
    """On stdout, as long as there is one, and in FOLDER/said."""
    with open(f"{sys.argv[1]}/said", "a") as file:
        file.write(f"{text}\n")
    with suppress(OSError):
        os.write(1, f"{text}\n".encode())


if __name__ == "__main__":
    atexit.register(lambda: os.write(2, b"atexit\n") if "once" in sys.argv else None)
    sys.exit(run_under_watchdog(main))
