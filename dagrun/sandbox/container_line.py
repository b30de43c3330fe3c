"""A Spec as the arguments of `docker run`: every limit, no capability, exactly the mounts.

Pure but for the files it says it needs (Files): nothing is asked of the engine here. Two promises
about values: no variable of a workflow is in the environment of the engine's command (LD_PRELOAD
would act outside), and no secret is in an argument, a label or what `docker inspect` shows: secrets
come in a file of their own that the image's sh reads.
"""

from __future__ import annotations

import os
import re
import resource
import secrets
from dataclasses import dataclass, field
from hashlib import sha256

from dagrun.sandbox.container_cli import Dialect
from dagrun.sandbox.container_mounts import Mount, Prepared
from dagrun.sandbox.container_script import INSIDE, SECRET_FILE, exports, gate
from dagrun.sandbox.wall import Refused, Spec

DEFAULT_PIDS = 512
TMP = "/tmp"
MIN_MEMORY_BYTES = 6 * 1024 * 1024
_TMP_BYTES = 512 * 1024 * 1024
_SHM_BYTES = 64 * 1024 * 1024
_OPEN_FILES = 65536
_PROCESSES = 16384
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# tini then signals the whole group of the command, as a TERM of a plain command does.
_GROUP = "TINI_KILL_PROCESS_GROUP"


@dataclass(frozen=True, slots=True)
class Image:
    """What is known of an image: its id, and whether it has sh and stat (None: nobody looked)."""

    name: str
    id: str = ""
    shell: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The arguments of `run`, and the files that they speak of: name in the folder → bytes."""

    arguments: tuple[str, ...]
    files: dict[str, bytes] = field(default_factory=dict)


def container_name(spec: Spec) -> str:
    """A name that is new at every call: dagrun-RUN-NODE-N-RANDOM."""
    number = spec.attempt_id.rpartition("/")[2]
    parts = [re.sub(r"[^A-Za-z0-9_.-]", "-", part)[:40] for part in (spec.run_id, spec.node, number)]
    return "-".join(["dagrun", *parts, secrets.token_hex(4)])


def folder_label(run_dir: str) -> str:
    """The label by which containers of one run folder are found, without telling where it is."""
    return sha256(os.fsencode(os.path.realpath(run_dir))).hexdigest()[:24]


def line_of(dialect: Dialect, spec: Spec, image: Image, prepared: Prepared, *, name: str, folder: str) -> Line:
    """The arguments of `run` for this attempt. Raises Refused for what can't be held."""
    plain, odd = _variables(dialect, spec, image)
    counted = spec.bounds.pids is not None and image.shell is not False
    waits = bool(hosts_of(spec))
    if waits and image.shell is False:
        raise Refused(
            f"the image {image.name} has no sh, which waits there until its list of hosts is held",
            "take an image with a shell, or write network: none or any",
        )
    inside = gate_text(prepared.mounts, image, secrets=bool(odd), counted=counted, waits=waits)
    mounts = list(prepared.mounts)
    if waits:
        mounts += [Mount(path, os.path.join(folder, name), False, None) for name, path in INSIDE.items()]
    if odd:
        mounts.append(Mount(SECRET_FILE, os.path.join(folder, "secret"), False, None))
    words = [
        f"--name={name}",
        f"--cidfile={folder}/made",
        *_labels(spec),
        *_walls(dialect, spec, prepared, folder),
        *_limits(dialect, spec, own=2 if counted else 1),
        *[_mount(mount) for mount in mounts],
        f"--env-file={folder}/env",
        f"--workdir={os.path.realpath(spec.cwd)}",
        *(["--interactive"] if spec.stdin >= 0 else []),
        "--pull=never",
        *_command(spec, image.id or _image(spec.image), inside),
    ]
    files = {"env": "".join(f"{k}={v}\n" for k, v in plain).encode()}
    if odd:
        files["secret"] = exports(odd).encode("utf-8", "surrogateescape")
    return Line(arguments=tuple(words), files=files)


def gate_text(
    mounts: tuple[Mount, ...], image: Image, *, secrets: bool, counted: bool = False, waits: bool = False
) -> str:
    """The text that sh runs before the command; "" when nothing needs it, or the image is known to have no sh."""
    known = [(m.path, m.identity) for m in mounts if m.identity is not None] if image.shell is not False else []
    if not (known or secrets or counted or waits):
        return ""
    return gate(known, secrets=secrets, counted=counted, waits=waits, hush=(_GROUP,))


def _labels(spec: Spec) -> list[str]:
    pairs = {
        "dagrun.run": spec.run_id,
        "dagrun.node": spec.node,
        "dagrun.attempt": spec.attempt_id,
        "dagrun.dir": folder_label(spec.run_dir),
    }
    return [f"--label={key}={value}" for key, value in pairs.items()]


def _walls(dialect: Dialect, spec: Spec, prepared: Prepared, folder: str) -> list[str]:
    uid, gid = prepared.user
    size = min(_TMP_BYTES, spec.bounds.memory_bytes or _TMP_BYTES)
    return [
        *_init(dialect),
        f"--network={_network(spec)}",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        f"--security-opt=seccomp={os.path.dirname(folder)}/seccomp.json",
        "--read-only",
        f"--tmpfs={TMP}:{dialect.tmp.format(uid=uid, gid=gid, size=size)}",
        f"--shm-size={min(_SHM_BYTES, size)}",
        f"--user={uid}:{gid}",
        "--ipc=private",
        "--cgroupns=private",
        "--log-driver=none",
        "--no-healthcheck",
        *dialect.more,
    ]


def _init(dialect: Dialect) -> list[str]:
    """The options for an init process: it hands on signals and reaps what the command leaves."""
    found = [path for path in dialect.init if os.path.exists(path)]
    if not found or found[0] == dialect.init[0]:
        return ["--init"]
    return ["--init", f"--init-path={found[0]}"]


def _limits(dialect: Dialect, spec: Spec, own: int) -> list[str]:
    """The ceilings; `own` are the processes that stand around the command."""
    bounds = spec.bounds
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    words = [f"--pids-limit={(bounds.pids or DEFAULT_PIDS) + own}", "--ulimit=core=0:0"]
    words.append(f"--ulimit=nofile={min(1024, files)}:{files}")
    if dialect.name == "podman":
        # Its own default can be more than its caller may set; the ceiling that counts is that of pids.
        words.append(f"--ulimit=nproc={_PROCESSES}:{_PROCESSES}")
    if bounds.memory_bytes is not None:
        if bounds.memory_bytes < MIN_MEMORY_BYTES:
            raise Refused(
                f"a container can't run in {bounds.memory_bytes} bytes of memory: the engines take 6 MiB or more",
                "raise resources.memory to 6MiB at least",
            )
        words += [f"--memory={bounds.memory_bytes}", f"--memory-swap={bounds.memory_bytes}"]
    if bounds.cpu is not None:
        # More than there is is no ceiling, and the engines refuse it.
        words.append(f"--cpus={max(0.01, min(bounds.cpu, os.cpu_count() or 1)):.2f}")
    if bounds.file_size_bytes is not None:
        words.append(f"--ulimit=fsize={bounds.file_size_bytes}:{bounds.file_size_bytes}")
    return words


def hosts_of(spec: Spec) -> tuple[str, ...]:
    """The hosts that an attempt is held to; () where there is no list."""
    return spec.network if isinstance(spec.network, tuple) else ()


def _network(spec: Spec) -> str:
    # With a list too: its only way out is a door that dagrun makes inside.
    return "bridge" if spec.network == "any" else "none"


def _mount(mount: Mount) -> str:
    text = f"type=bind,source={mount.source},destination={mount.path}"
    return f"--mount={text}" + ("" if mount.writable else ",readonly")


def _command(spec: Spec, image: str, inside: str) -> list[str]:
    if not spec.argv or not spec.argv[0]:
        raise Refused("the command is empty")
    if inside:
        return ["--entrypoint=sh", image, "-c", inside, "dagrun", *spec.argv]
    return [f"--entrypoint={spec.argv[0]}", image, *spec.argv[1:]]


def _image(name: str) -> str:
    if _IMAGE.fullmatch(name) is None:
        raise Refused(f"{name!r} is not the name of an image", "write NAME, NAME:TAG or NAME@DIGEST")
    return name


def _variables(dialect: Dialect, spec: Spec, image: Image) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """What --env-file carries, and what only sh can: secrets, values of several lines, odd bytes."""
    env = {**spec.env, "HOME": TMP, "TMPDIR": TMP, _GROUP: "1"}
    if hosts_of(spec):
        from dagrun.sandbox.netproxy import proxy_environment

        env |= proxy_environment()
    plain: list[tuple[str, str]] = []
    odd: list[tuple[str, str]] = []
    for name, value in env.items():
        if _NAME.fullmatch(name) is None or "\0" in value:
            raise Refused(f"the variable {name!r} can't be given to a container", "take it out of env or pass_env")
        simple = re.fullmatch(dialect.plain_value, value) is not None and _utf8(value)
        (plain if simple and name not in spec.secret_env else odd).append((name, value))
    if odd and image.shell is False:
        names = ", ".join([name for name, _ in odd][:5])
        raise Refused(
            f"the image {image.name} has no sh, which it needs for secrets and for values of several lines: {names}",
            "give secrets as files (secrets: [{NAME: file}]), or take an image with a shell",
        )
    return plain, odd


def _utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
