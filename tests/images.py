"""Images for the tests, made of what is on this machine: `docker import` of a busybox, nothing downloaded."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from functools import cache

import pytest

SHELL = "dagrun-test-busybox:1"  # sh, stat and all else of busybox; no Python
BARE = "dagrun-test-bare:1"  # one program, `/bin/cat`: no shell
ABSENT = "dagrun-test-absent:1"


def busybox() -> str:
    """The static busybox of this machine, "" without one."""
    found = shutil.which("busybox", path=f"{os.environ.get('PATH', os.defpath)}:/bin:/usr/bin")
    return found or ""


def need_image(engine: str, image: str) -> str:
    """An image, made at the first call; skips the test (never in CI) where it can't be made."""
    why = _make(engine, image)
    if why:
        if os.environ.get("CI"):
            pytest.fail(f"{image} can't be made: {why}")
        pytest.skip(why)
    return image


@cache
def _make(engine: str, image: str) -> str:
    """Why the image can't be made, "" when it is there."""
    if shutil.which(engine) is None:
        return f"{engine} is not installed"
    there = subprocess.run([engine, "image", "inspect", image], capture_output=True, timeout=30, check=False)
    if there.returncode == 0:
        return ""
    if not busybox():
        return "busybox is not installed (apt install busybox-static)"
    data = root_of(bare=image == BARE).read()
    made = subprocess.run([engine, "import", "-", image], input=data, capture_output=True, timeout=60, check=False)
    return "" if made.returncode == 0 else made.stderr.decode("utf-8", "replace").strip()


def root_of(*, bare: bool) -> io.BytesIO:
    """A root file system as a tar: busybox under all its names, or under that of `cat` alone."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for folder in ("bin", "etc", "tmp", "proc", "sys", "dev", "run"):
            entry = tarfile.TarInfo(folder)
            entry.type = tarfile.DIRTYPE
            entry.mode = 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        names = ["cat"] if bare else applets()
        first = tarfile.TarInfo(f"bin/{names[0]}")
        with open(busybox(), "rb") as file:
            program = file.read()
        first.size, first.mode = len(program), 0o755
        tar.addfile(first, io.BytesIO(program))
        for name in names[1:]:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname, link.mode = tarfile.LNKTYPE, f"bin/{names[0]}", 0o755
            tar.addfile(link)
        users = b"root:x:0:0::/:/bin/sh\n"
        passwd = tarfile.TarInfo("etc/passwd")
        passwd.size, passwd.mode = len(users), 0o644
        tar.addfile(passwd, io.BytesIO(users))
    data.seek(0)
    return data


def applets() -> list[str]:
    """The names under which busybox is a program; `sh` first."""
    listed = subprocess.run([busybox(), "--list"], capture_output=True, text=True, timeout=10, check=True)
    return ["sh", *[name for name in listed.stdout.split() if name not in ("sh", "busybox")]]
