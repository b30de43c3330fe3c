"""Whether the program of an attempt can be found from inside its sandbox, and words for when it can't.

Looks from outside at what will be seen inside. Only for good messages: what is wrong here fails
inside, later and with fewer words, and never starts anything else.
"""

from __future__ import annotations

import os

from dagrun.sandbox.bwrap_line import cwd_of, system_roots
from dagrun.sandbox.grants import Grants
from dagrun.sandbox.grants_open import below, real
from dagrun.sandbox.wall import Refused, Spec

_TOP = ("/bin", "/sbin")


def missing_program(spec: Spec, grants: Grants) -> str:
    """Why there is nothing to run, "" if there is: words for exit code 127, as a shell has them.

    Raises Refused for a program (or the interpreter of a script) that is there and not granted.
    """
    name = spec.argv[0] if spec.argv else ""
    if not name or "\0" in name:
        return "the command is empty"
    cwd = cwd_of(spec)
    path = spec.env.get("PATH", os.defpath)
    places = [name] if "/" in name else [f"{folder or '.'}/{name}" for folder in path.split(":")]
    shut = ""
    for place in places:
        file = os.path.normpath(os.path.join(cwd, place))
        if not os.access(file, os.X_OK) or os.path.isdir(file):
            continue
        if _seen(file, grants):
            _check_interpreter(file, grants)
            return ""
        shut = shut or file
    if shut:
        _refuse(name, shut, grants)
    if "/" in name:
        file = os.path.join(cwd, name)
        why = "is a directory" if os.path.isdir(file) else "not executable (chmod +x it?)"
        return f"{name}: {why if os.path.exists(file) else 'no such file'}"
    return f"{name}: command not found in PATH={path}"


def _seen(file: str, grants: Grants) -> bool:
    """Whether a file is there inside: its folder under this name, and what it leads to."""
    folder, target = os.path.dirname(file), real(file)
    return all(_visible(path, grants) for path in (folder, target))


def _visible(path: str, grants: Grants) -> bool:
    if grants.covered(path):
        return False
    system = any(below(path, root) for root in (*system_roots(), *_TOP, "/etc/alternatives"))
    return system or grants.holds(path)


def _check_interpreter(file: str, grants: Grants) -> None:
    try:
        with open(file, "rb") as script:
            line = script.readline(256)
    except OSError:
        return
    words = line[2:].split()
    if not line.startswith(b"#!") or not words:
        return
    interpreter = os.fsdecode(words[0])
    if os.access(interpreter, os.X_OK) and not _seen(interpreter, grants):
        _refuse(f"{os.path.basename(file)}: its interpreter {interpreter}", interpreter, grants)


def _refuse(name: str, file: str, grants: Grants) -> None:
    target = real(file)
    if grants.covered(target):
        raise Refused(f"{name}: it is at {target}, which is hidden", "take it out of permissions.paths.deny")
    folder = os.path.dirname(target)
    if os.path.basename(folder) in ("bin", "sbin"):
        folder = os.path.dirname(folder)
    raise Refused(f"{name}: it is at {target}, which is not granted", f"add {folder or '/'} to permissions.paths.read")
