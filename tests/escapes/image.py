"""An image made of this machine: the Python of the tests, its libraries and a shell; no registry.

The interpreter keeps its path, so a command line means the same inside and outside.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from .programs import payload_python

LEFT_OUT = frozenset("test tests site-packages dist-packages idlelib ensurepip lib2to3 turtledemo".split())
TOOLS = "sh env cat chmod cp head id ls mkdir mv ps rm sleep stat timeout touch tr wc grep setsid bash".split()
_WHERE = "import sysconfig, sys; print(sysconfig.get_path('stdlib')); print(sys.base_prefix)"


def image() -> str:
    """The name of the image, built unless it is there. Raises CalledProcessError where Docker does not answer."""
    pythons = sorted({payload_python(), os.path.realpath(sys.executable)})
    content = " ".join([*pythons, "python3", *TOOLS, sys.version])
    name = f"dagrun-test-escapes:{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    if subprocess.run(["docker", "image", "inspect", name], capture_output=True, timeout=60).returncode == 0:
        return name
    subprocess.run(["docker", "import", "-", name], input=_root(pythons), check=True, capture_output=True, timeout=120)
    return name


def _root(pythons: list[str]) -> bytes:
    """A root file system as a tar archive."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for folder in ("tmp", "proc", "sys", "dev", "etc", "run", "var/tmp", "root", "home"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder.endswith("tmp") else 0o755
            tar.addfile(entry)
        passwd = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/tmp:/bin/sh\n"
        entry = tarfile.TarInfo("etc/passwd")
        entry.size, entry.mode = len(passwd), 0o644
        tar.addfile(entry, io.BytesIO(passwd))
        link = tarfile.TarInfo("usr/bin/python3")  # what an image for agents has to have
        link.type, link.linkname = tarfile.SYMTYPE, os.path.realpath(sys.executable)
        tar.addfile(link)
        seen: set[str] = {"/usr/bin/python3"}
        for path in _files(pythons):
            if path not in seen:
                seen.add(path)
                tar.add(os.path.realpath(path), path.lstrip("/"), recursive=False, filter=_plain)
    return made.getvalue()


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.mode |= 0o444 | (0o111 if entry.mode & 0o100 else 0)
    return entry


def _files(pythons: list[str]) -> Iterator[str]:
    """The interpreters, the standard library and every shared object that they load."""
    objects = [path for name in TOOLS if (path := shutil.which(name, path="/bin:/usr/bin"))]
    for python in pythons:
        objects.append(python)
        done = subprocess.run([python, "-I", "-c", _WHERE], capture_output=True, text=True, check=True)
        library, _ = done.stdout.split()
        for found, folders, files in os.walk(library):
            folders[:] = [f for f in folders if f not in LEFT_OUT and f != "__pycache__"]
            for name in files:
                path = os.path.join(found, name)
                yield path
                if ".so" in name:
                    objects.append(path)
    packages = Path(sysconfig.get_path("purelib"))
    objects += [str(p) for p in packages.glob("**/*.so") if "mypy" not in p.parts[-2]]
    yield from (o for o in objects if not o.startswith(str(packages)))
    yield from _libraries(objects)


def _libraries(objects: Iterable[str]) -> set[str]:
    """What the loader loads for these, by the names that it looks for."""
    done = subprocess.run(["ldd", *objects], capture_output=True, text=True, check=False)
    found: set[str] = set()
    for line in done.stdout.splitlines():
        for word in line.split():
            if word.startswith("/") and not word.endswith(":") and os.path.isfile(word):
                found.add(word)
    return found
