"""Docker for the tests: the daemon of this machine, or one started for the session.

Only in CI and as root is one started: nobody wants a test run to start services on a desk. It must not
be a child of the tests (they end their children, and count them), so it is orphaned at once, before
any test makes this process the parent of orphans.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

_START_S = 60.0
# A container has no firewall to set up, and often no overlay file system below it.
_WAYS = (
    (),
    ("--iptables=false", "--ip6tables=false", "--bridge=none"),
    ("--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=vfs"),
)


def answers() -> bool:
    """Whether a daemon answers this user."""
    if shutil.which("docker") is None:
        return False
    try:
        return subprocess.run(["docker", "version"], capture_output=True, timeout=30, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def start_if_missing() -> int:
    """Start a daemon where CI has none; its pid, 0 if there is one or none can be had."""
    if not os.environ.get("CI") or os.geteuid() != 0 or shutil.which("dockerd") is None or answers():
        return 0
    folder = Path(tempfile.mkdtemp(prefix="dagrun-dockerd-"))
    for number, options in enumerate(_WAYS):
        pid = _start(folder / f"log{number}", options)
        end = time.monotonic() + _START_S
        while time.monotonic() < end and _alive(pid):
            if answers():
                return pid
            time.sleep(0.1)
        stop(pid)
    return 0


def stop(pid: int) -> None:
    """End a daemon that was started here, and wait until it is gone."""
    for number, patience_s in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0)):
        if not pid or not _alive(pid):
            return
        os.kill(pid, number)
        end = time.monotonic() + patience_s
        while _alive(pid) and time.monotonic() < end:
            time.sleep(0.05)


def _start(log: Path, options: tuple[str, ...]) -> int:
    text = 'setsid dockerd "$@" </dev/null >"$0" 2>&1 & echo $!'
    done = subprocess.run(["sh", "-c", text, str(log), *options], capture_output=True, text=True, check=True)
    return int(done.stdout)


def _alive(pid: int) -> bool:
    try:
        return b"dockerd" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
