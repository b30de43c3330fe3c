"""Secrets of a run: resolved once by name, given only to nodes that name them, masked everywhere else."""

from __future__ import annotations

import os
from collections.abc import Mapping

from dagrun.core.mask import Masker
from dagrun.core.workflow import Secret, Workflow
from dagrun.errors import InputError, Problem

MAX_BYTES = 64 * 1024
COMMAND_TIMEOUT_S = 30.0


def resolve(workflow: Workflow, project: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Name → value of every declared secret. Raises InputError with all that can't be had."""
    values: dict[str, str] = {}
    problems: list[Problem] = []
    for name, secret in workflow.secrets.items():
        try:
            values[name] = _value(secret, project, environ)
        except (LookupError, OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error.args[0])
            problems.append(
                Problem(
                    code="no-secret",
                    message=f"secret `{name}` of {workflow.file or workflow.name} can't be had: {why}",
                    hint=_hint(secret),
                )
            )
    if problems:
        raise InputError(tuple(problems))
    return values


def masker(values: Mapping[str, str]) -> Masker:
    """What hides these values in everything that is shown or stored."""
    return Masker(tuple(values.values()))


def _hint(secret: Secret) -> str:
    if secret.env:
        return f"set it in the environment of dagrun: export {secret.env}=…"
    if secret.file:
        return f"put it into {secret.file}"
    return "run the command by hand to see what is wrong"


def _value(secret: Secret, project: str, environ: Mapping[str, str]) -> str:
    if secret.env:
        if not environ.get(secret.env):
            raise LookupError(f"the environment has no {secret.env}")
        return environ[secret.env]
    if secret.file:
        path = os.path.join(project, os.path.expanduser(secret.file))
        with open(path, "rb") as file:
            return _text(file.read(MAX_BYTES + 1), secret.file)
    return _from_command(secret.command, project)


def _from_command(argv: tuple[str, ...], project: str) -> str:
    import subprocess

    try:
        done = subprocess.run(
            argv, cwd=project, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"`{argv[0]}` took more than {COMMAND_TIMEOUT_S:g} s") from None
    if done.returncode:
        raise ValueError(f"`{argv[0]}` ended with code {done.returncode}")
    return _text(done.stdout, f"the output of `{argv[0]}`")


def _text(data: bytes, what: str) -> str:
    if len(data) > MAX_BYTES:
        raise ValueError(f"{what} is larger than {MAX_BYTES // 1024} KiB")
    text = data.decode("utf-8", "strict").removesuffix("\n").removesuffix("\r")
    if not text:
        raise ValueError(f"{what} is empty")
    if "\0" in text:
        raise ValueError(f"{what} holds a NUL byte")
    return text
