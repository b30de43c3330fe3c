"""Secrets of a run: values by name, given only to nodes that name them, masked everywhere else.

A value comes from the caller's environment, a file or a command. What a node of the plan names must
be there before anything starts; what is declared and not named stops nothing, and no command is run
for it; a node that a patch brings later asks for its own. No value ever stands in an argument, a
message, a journal or a key of a cache: what is shown went through the masker, which knows every value.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping

from dagrun.core.mask import MIN_LENGTH, Masker, maskable
from dagrun.core.names import Json
from dagrun.core.workflow import Node, Secret, Workflow
from dagrun.errors import InputError, Problem
from dagrun.store.disk import at_once

MAX_BYTES = 64 * 1024
COMMAND_TIMEOUT_S = 30.0
_OWN = "DAGRUN_"  # of a dagrun in which this one runs


class NoSecret(LookupError):
    """A declared secret can't be had: why, and what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Vault(Mapping[str, str]):
    """The values of a run's secrets; as a mapping, those that were fetched. `mask` hides all of them.

    Asking for one that is declared and was not fetched fetches it, which may run its command.
    `warnings` says what is wrong with the ones that could be had.
    """

    __slots__ = ("_declared", "_environ", "_project", "_values", "_where", "mask", "warnings")

    def __init__(self, workflow: Workflow, project: str, environ: Mapping[str, str]) -> None:
        self._declared = workflow.secrets
        self._where = workflow.file or workflow.name
        self._project = project
        self._environ = environ
        self._values: dict[str, str] = {}
        self.mask = Masker(())
        self.warnings: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __getitem__(self, name: str) -> str:
        """The value as a variable holds it: without the newline at its end. Raises NoSecret."""
        return _without_newline(self.exact(name))

    def exact(self, name: str) -> str:
        """The value as its source has it, for a file: some programs want the newline. Raises NoSecret."""
        if name not in self._values:
            secret = self._declared.get(name)
            if secret is None:
                raise NoSecret(f"there is no secret `{name}`")
            self._keep(name, self._fetch(name, secret))
        return self._values[name]

    def _fetch(self, name: str, secret: Secret) -> str:
        try:
            if secret.env:
                return _from_environment(secret.env, self._environ)
            if secret.file:
                return self._from_file(name, secret.file)
            from dagrun.engine.secretcommand import output_of

            env = {k: v for k, v in self._environ.items() if not k.startswith(_OWN)}
            data = output_of(secret.command, self._project, env, self.mask, COMMAND_TIMEOUT_S, MAX_BYTES)
            return _text(data, f"the output of `{secret.command[0]}`")
        except (LookupError, OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error.args[0])
            raise NoSecret(f"secret `{name}` of {self._where} can't be had: {why}", _hint(secret)) from None

    def _from_file(self, name: str, file: str) -> str:
        path = os.path.join(self._project, os.path.expanduser(file))
        with open(path, "rb", opener=at_once) as opened:
            mode = os.fstat(opened.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ValueError(f"{file} is not a regular file")
            value = _text(opened.read(MAX_BYTES + 1), file)
        if mode & 0o077:
            self.warnings.append(
                f"secret `{name}`: others on this machine may read {file} (mode {stat.S_IMODE(mode):04o}): chmod 600 it"
            )
        return value

    def _keep(self, name: str, value: str) -> None:
        self._values[name] = value
        if maskable(value):
            self.mask.add([_without_newline(value)])
        else:
            short = f"secret `{name}` has fewer than {MIN_LENGTH} characters"
            self.warnings.append(f"{short}: it can't be masked where it is shown or stored")


def resolve(workflow: Workflow, project: str, environ: Mapping[str, str]) -> Vault:
    """The secrets of a run, fetched as far as its nodes name them. Raises InputError with all that can't be had."""
    vault, problems = _fetched(workflow, project, environ)
    if problems:
        raise InputError(
            tuple([Problem(code="no-secret", message=error.message, hint=error.hint) for error in problems])
        )
    return vault


def at_hand(workflow: Workflow, project: str, environ: Mapping[str, str]) -> Vault:
    """The secrets of a run as far as they can be had now: for masking what a dead run has left."""
    return _fetched(workflow, project, environ)[0]


def _fetched(workflow: Workflow, project: str, environ: Mapping[str, str]) -> tuple[Vault, list[NoSecret]]:
    vault = Vault(workflow, project, environ)
    problems: list[NoSecret] = []
    if not workflow.secrets:
        return vault, problems
    needed = named(workflow)
    for name, secret in workflow.secrets.items():
        if name not in needed and secret.command:
            continue
        try:
            vault.exact(name)
        except NoSecret as error:
            if name in needed:
                problems.append(error)
    return vault, problems


def named(workflow: Workflow) -> frozenset[str]:
    """The secrets that nodes, templates and inline fallbacks name, and the MCP servers that their agents do."""
    nodes = [*workflow.nodes.values(), *workflow.templates.values()]
    return frozenset([*_named(nodes), *(_of_servers(workflow, nodes) if workflow.mcp_servers else ())])


def _named(nodes: Iterable[Node]) -> Iterator[str]:
    for node in nodes:
        yield from node.secrets
        yield from node.secret_files
        if node.on_failure is not None and node.on_failure.fallback_node is not None:
            yield from _named([node.on_failure.fallback_node])


def _of_servers(workflow: Workflow, nodes: Iterable[Node]) -> Iterator[str]:
    from dagrun.core.agents import agents_of

    for name in {name for node in nodes for _, agent, _ in agents_of(node) for name in agent.mcp}:
        server = workflow.mcp_servers.get(name)
        if server is not None:
            yield from server.secrets
            yield from server.headers.values()


def masker(values: Mapping[str, str]) -> Masker:
    """What hides these values in everything that is shown or stored; a vault's knows later ones too."""
    return values.mask if isinstance(values, Vault) else Masker(tuple(values.values()))


def warnings(values: Mapping[str, str]) -> list[str]:
    """What is wrong with secrets that could be had."""
    return values.warnings if isinstance(values, Vault) else []


def in_the_clear(values: Mapping[str, str], params: Mapping[str, Json]) -> list[str]:
    """What is wrong with parameters that hold secrets: they are stored and shown as they are."""
    mask = masker(values)
    return [
        f"parameter `{name}` holds a secret, and parameters are stored and shown as they are: "
        "name the secret in the nodes that need it"
        for name, value in params.items()
        if mask.value(value) != value
    ]


def as_file(values: Mapping[str, str], name: str) -> bytes:
    """What a file with this secret holds. Raises NoSecret."""
    text = values.exact(name) if isinstance(values, Vault) else values[name]
    return text.encode("utf-8", "surrogateescape")


def _hint(secret: Secret) -> str:
    if secret.env:
        return f"set it in the environment of dagrun: export {secret.env}=…"
    if secret.file:
        return f"put it into {secret.file}"
    return "run the command by hand to see what is wrong"


def _from_environment(name: str, environ: Mapping[str, str]) -> str:
    if not environ.get(name, "").strip():
        raise LookupError(f"the environment has no {name}")
    return environ[name]


def _text(data: bytes, what: str) -> str:
    """What can be a variable: some bytes, no NUL. Bytes that are no UTF-8 come out as they went in."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"{what} is larger than {MAX_BYTES // 1024} KiB")
    text = data.decode("utf-8", "surrogateescape")
    if not text.strip():
        raise ValueError(f"{what} is empty")
    if "\0" in text:
        raise ValueError(f"{what} holds a NUL byte")
    return text


def _without_newline(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")
