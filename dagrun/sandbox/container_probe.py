"""What an engine of containers really holds here, tried in a container with the options of an attempt.

Promises: an engine that ignores an option shows as a cross, a daemon that hangs costs 5 s, nothing is
left behind. One container is started, in the image that will be used; where that has no shell, what
the engine says it applied is taken. Knows no workflow.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from dagrun.sandbox.bwrap_proof import Proof
from dagrun.sandbox.container_canary import CANARY, CPU, FILE_SIZE_BYTES, MEMORY_BYTES, PIDS, VARIABLE, claimed, judged
from dagrun.sandbox.container_cli import Answer, Cli, Unreachable
from dagrun.sandbox.container_files import make_folder, settings, write_files
from dagrun.sandbox.container_line import Image, container_name, line_of
from dagrun.sandbox.container_mounts import prepare
from dagrun.sandbox.wall import GUARANTEES, Bounds, Guarantee, Refused, Spec

_CANARY_S = 20.0
_IMPORT_S = 20.0
_SPACES = ("ipc", "net", "pid", "mnt", "uts", "cgroup")
_LIST_NEEDS: tuple[Guarantee, ...] = ("net.none", "unix", "caps")
_ROOT = "the network of a container of Docker belongs to root: run dagrun as root, or take rootless Podman"
_EMPTY_IMAGE = "dagrun-probe"
_FORMAT = "{{.Id}}|{{json .Config.Env}}"


class Probe:
    """What is known of one engine: asked at the first question, kept for the rest of the process."""

    def __init__(self, cli: Cli, lists: Callable[[int], str] | None = None) -> None:
        """`lists` tries a list of hosts in the network of a process."""
        self._cli = cli
        self._lists = lists
        self._images: dict[str, Image | None] = {}
        self._variables: dict[str, list[str]] = {}
        self._proved: Mapping[Guarantee, str] | None = None
        self._version = ""
        self.tried_in = ""  # the image in which the guarantees were tried, "" if in none

    @property
    def version(self) -> str:
        """The version of the engine, "" while it is not known."""
        return self._version

    def prefer(self, image: str) -> None:
        """Try the guarantees in this image, if nothing was tried yet."""
        if self._proved is None:
            self._images.setdefault(image, None)

    def proved(self) -> Mapping[Guarantee, str]:
        """Each guarantee → "" or why not."""
        if self._proved is None:
            try:
                self._proved = self._try()
            except Unreachable as error:
                self._proved = dict.fromkeys(GUARANTEES, str(error))
        return self._proved

    def image(self, name: str) -> Image:
        """What is known of an image: at least its name."""
        return self._images.get(name) or Image(name)

    def check_image(self, name: str, pull: str) -> str:
        """Why this image can't be used; "" when it is here or may be pulled, or when nobody can say."""
        try:
            image = self._look(name)
            if image is not None:
                self._look_inside(image)
            if image is not None or pull == "missing":
                return ""
        except Unreachable as error:
            return str(error)
        title = self._cli.dialect.name
        return f"there is no image {name!r} here: {title} pull {name}, or docker: {{pull: missing}} in the workflow"

    # ------------------------------------------------------------ images

    def _look(self, name: str) -> Image | None:
        """The image of this name on this machine; asked once, unless it was not there."""
        if self._images.get(name) is None:
            found = self._cli.ask("image", "inspect", f"--format={_FORMAT}", "--", name)
            self._images[name] = None
            if found.ok and "|" in found.out:
                identity, _, variables = found.out.strip().partition("|")
                self._images[name] = Image(name, identity)
                self._variables[name] = _names(variables)
        return self._images[name]

    def _look_inside(self, image: Image) -> None:
        """Learn whether an image in which the guarantees were not tried has what looks before a command."""
        if image.shell is None:
            words = ("run", "--rm", "--pull=never", "--network=none", "--read-only", "--cap-drop=ALL")
            text = "stat -c %d:%i:%n -- / >/dev/null && exit 0 || exit 127"
            more = ("--log-driver=none", "--entrypoint=sh", image.id, "-c", text)
            done = self._cli.ask(*words, *more, timeout_s=_CANARY_S)
            if done.code in (0, 126, 127):
                self._images[image.name] = replace(image, shell=done.ok)

    def _candidates(self) -> list[Image]:
        """Images to try in: those that will be used first, then what there is."""
        wanted = [image for name in list(self._images) if (image := self._look(name)) is not None]
        if wanted:
            return wanted
        listed = self._cli.ask("image", "ls", "--quiet", "--no-trunc")
        return [image for name in listed.out.split()[:3] if (image := self._look(name)) is not None]

    # ------------------------------------------------------------ the trial

    def _try(self) -> Mapping[Guarantee, str]:
        asked = self._cli.ask("version", "--format", "{{.Server.Version}} {{.Server.Os}}/{{.Server.OsArch}}")
        if not asked.ok:
            asked = self._cli.ask("version", "--format", "{{.Client.Version}}")
        if not asked.ok:
            raise Unreachable(f"{self._cli.dialect.title} does not answer: {asked.why}")
        self._version = asked.out.split()[0] if asked.out.split() else "?"
        images = self._candidates()
        for image in images:
            said = self._run_canary(image)
            if said is not None:
                self.tried_in = image.name
                return Proof(said, {"net.allowlist": partial(self._try_list, image, said)})
        if self._cli.dialect.name != "docker":
            why = "not tried, as there is no image with a shell here"
            return dict.fromkeys(GUARANTEES, f"{why}: {self._cli.dialect.name} pull busybox")
        return self._claims(images[0] if images else None)

    def _try_list(self, image: Image, found: Mapping[Guarantee, str]) -> str:
        """A list of hosts: a container without a network, in which a proxy makes a door, tried from inside."""
        if self._lists is None:
            return "there is no proxy to hold a list of hosts"
        if lack := next((why for name in _LIST_NEEDS if (why := found[name])), ""):
            return lack
        try:
            why = self._look_through_door(image, self._lists)
        except Unreachable as error:
            return str(error)
        return f"{why} ({_ROOT})" if why and os.getuid() and self._cli.dialect.name == "docker" else why

    def _look_through_door(self, image: Image, lists: Callable[[int], str]) -> str:
        with _Stage() as stage:
            done = self._call(stage.spec(image.name, ("sleep", str(int(_CANARY_S)))), image, "run", "--rm", "--detach")
            if not done.ok:
                return f"a test container failed: {done.why}"
            name = done.out.strip()
            try:
                pid = self._cli.ask("container", "inspect", "--format={{.State.Pid}}", "--", name).out.strip()
                return lists(int(pid)) if pid.isdigit() and int(pid) > 1 else "a test container has no process"
            finally:
                self._cli.ask(*self._cli.dialect.remove, name)

    def _run_canary(self, image: Image) -> dict[Guarantee, str] | None:
        """What the canary said in this image; None when the image has no shell to say it."""
        with _Stage() as stage:
            spec = stage.spec(image.name, ("sh", "-c", CANARY, "canary", stage.base, str(os.getpid()), _spaces()))
            done = self._call(spec, image, "run", "--rm")
            if done.code == 127:
                self._images[image.name] = replace(image, shell=False)
                return None
            if "end" not in done.out.split():
                return dict.fromkeys(GUARANTEES, f"a test container failed: {done.why}")
            self._images[image.name] = replace(image, shell=True)
            return judged(done.out, self._variables.get(image.name, ()))

    def _claims(self, image: Image | None) -> Mapping[Guarantee, str]:
        """What the engine says it would apply, in an image that can't try it, or in an empty one."""
        made = image is None
        if image is None:
            image = self._empty_image()
        try:
            with _Stage() as stage:
                spec = stage.spec(image.name, ("true",))
                done = self._call(spec, image, "create")
                if not done.ok:
                    return dict.fromkeys(GUARANTEES, f"a test container was refused: {done.why}")
                name = done.out.strip()
                said = self._cli.ask("container", "inspect", "--format={{json .HostConfig}}", "--", name)
                self._cli.ask(*self._cli.dialect.remove, name)
        finally:
            if made:
                self._cli.ask("image", "rm", "--force", image.name)
        try:
            config: object = json.loads(said.out)
        except ValueError:
            config = None
        return claimed(config) if isinstance(config, dict) else dict.fromkeys(GUARANTEES, f"no answer: {said.why}")

    def _empty_image(self) -> Image:
        with tempfile.TemporaryDirectory(prefix="dagrun-probe-") as folder:
            path = os.path.join(folder, "empty.tar")
            with open(path, "wb") as file:
                file.write(bytes(10240))
            done = self._cli.ask("import", path, f"{_EMPTY_IMAGE}:{os.getpid()}", timeout_s=_IMPORT_S)
        if not done.ok:
            raise Unreachable(f"Docker can't make an image: {done.why}")
        return Image(f"{_EMPTY_IMAGE}:{os.getpid()}")

    def _call(self, spec: Spec, image: Image, *verb: str) -> Answer:
        """`run --rm` or `create` with the options of an attempt; the container is gone after the first.

        `--rm` is kept by the engine, even if this process is killed meanwhile.
        """
        name = container_name(spec)
        folder = make_folder(spec.run_dir, name)
        try:
            prepared = prepare(spec, folder)
        except Refused as no:
            raise Unreachable(f"the test of {self._cli.dialect.title} can't be set up: {no.message}") from None
        try:
            line = line_of(self._cli.dialect, spec, image, prepared, name=name, folder=folder)
            write_files(line, folder, prepared.user)
            config = settings(spec.run_dir) if self._cli.endpoint() else ""
            done = self._cli.ask(*verb, *line.arguments, timeout_s=_CANARY_S, config=config)
            if done.code is None or ("--rm" in verb and done.code == 125):
                self._cli.ask(*self._cli.dialect.remove, name)
            return done
        finally:
            prepared.close()


class _Stage:
    """Folders with something to steal and to break in them, gone afterwards."""

    def __init__(self) -> None:
        self.base = os.path.realpath(tempfile.mkdtemp(prefix="dagrun-canary-"))

    def __enter__(self) -> _Stage:
        for folder in ("outside", "run/runs/canary", "project/.dagrun", "project/out/repo/hooks", "exchange"):
            os.makedirs(f"{self.base}/{folder}")
        for mark in ("outside/mark", "project/.dagrun/mark", "project/denied", "project/out/repo/hooks/mark"):
            with open(f"{self.base}/{mark}", "w", encoding="ascii") as file:
                file.write("mark\n")
        # Everything would be allowed, if only the walls were not there.
        for folder in ("outside", "project", "project/out", "project/out/repo", "project/out/repo/hooks"):
            os.chmod(f"{self.base}/{folder}", 0o777)
        os.chmod(f"{self.base}/project/out/repo/hooks/mark", 0o666)
        os.chmod(self.base, 0o755)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.base, ignore_errors=True)

    def spec(self, image: str, argv: tuple[str, ...]) -> Spec:
        project = f"{self.base}/project"
        return Spec(
            attempt_id=f"canary/canary/{os.getpid()}",
            run_id="canary",
            run_dir=f"{self.base}/run/runs/canary",
            node="canary",
            argv=argv,
            env={VARIABLE: "1"},
            cwd=project,
            project=project,
            level="container",
            read=(".",),
            write=("out",),
            deny=("denied",),
            network="none",
            hidden=(f"{project}/.dagrun",),
            protected=(f"{project}/out/repo/hooks",),
            exchange=f"{self.base}/exchange",
            bounds=Bounds(memory_bytes=MEMORY_BYTES, pids=PIDS, cpu=CPU, file_size_bytes=FILE_SIZE_BYTES),
            image=image,
        )


def _spaces() -> str:
    """The inodes of this process's namespaces."""
    return " ".join([str(os.stat(f"/proc/self/ns/{kind}").st_ino) for kind in _SPACES])


def _names(text: str) -> list[str]:
    try:
        found: object = json.loads(text)
    except ValueError:
        return []
    return [str(entry).partition("=")[0] for entry in found] if isinstance(found, list) else []
