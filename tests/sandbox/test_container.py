"""Attempts in real containers: how they start and end, and that nothing outlives them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagrun.sandbox.container import Container
from dagrun.sandbox.container_line import Image, folder_label
from dagrun.sandbox.wall import NOTHING_MORE, Bounds, Refused
from tests.images import ABSENT, BARE, need_image

from .conftest import readable, until
from .container_rig import Rig, ask
from .descriptors import descriptors_kept

pytestmark = pytest.mark.docker
MIB = 1024 * 1024


@pytest.fixture
def rig(tmp_path: Path, docker: str) -> Iterator[Rig]:
    made = Rig(tmp_path, "docker", docker)
    yield made
    made.close()


def test_a_command_runs_and_leaves_nothing(rig: Rig) -> None:
    ended, after, said = rig.run(rig.spec("sh", "-c", "echo here; echo there >&2; echo made >out/file; pwd"))
    assert (ended.code, after) == (0, NOTHING_MORE), said
    assert said == f"here\n{rig.project}\nthere\n"
    assert (rig.project / "out" / "file").read_text() == "made\n"
    assert rig.names() == set()
    assert not [p for p in (rig.run_dir / "containers").iterdir() if p.name.startswith("dagrun-")]


@pytest.mark.parametrize("code", [1, 3, 125, 126, 127, 137, 143])
def test_the_commands_own_exit_codes_stay_its_own(rig: Rig, code: int) -> None:
    ended, after, _ = rig.run(rig.spec("sh", "-c", f"exit {code}"))
    assert ended.code == code
    assert after.outcome == ""
    assert after.error == ""


@pytest.mark.parametrize("shell", [True, False])
def test_a_program_that_is_not_in_the_image_is_named(rig: Rig, shell: bool) -> None:
    if not shell:  # else sh starts the command
        rig.wall._probe._images[rig.image] = Image(rig.image, shell=False)
    ended, after, _ = rig.run(rig.spec("no-such-program"))
    assert ended.code == 127
    assert "no-such-program" in after.error
    assert rig.image in after.error


def test_a_missing_image_is_told_from_a_failing_command(rig: Rig) -> None:
    assert ABSENT in rig.wall.check_image(ABSENT, "never")
    assert rig.wall.check_image(ABSENT, "missing") == ""
    assert rig.wall.check_image(rig.image, "never") == ""
    ended, after, _ = rig.run(rig.spec("true", image=ABSENT))
    assert ended.code == 125
    assert after.outcome == "failed"
    assert f"docker pull {ABSENT}" in after.error


def test_an_image_that_no_registry_gives_fails_the_attempt(rig: Rig) -> None:
    ended, after, _ = rig.run(rig.spec("true", image="localhost:1/dagrun/none:1", pull="missing"))
    assert ended.code == 125
    assert after.outcome == "failed"
    assert "the image localhost:1/dagrun/none:1 is not here and can't be pulled" in after.error


def test_a_refused_container_says_why(rig: Rig) -> None:
    spec = rig.spec("true")
    launch = rig.wall.launch(spec)
    launch.argv = tuple("--cpus=100000" if word.startswith("--pids-limit") else word for word in launch.argv)
    child = rig.plain.spawn(launch.argv, launch.env, out_fd=rig.out, err_fd=rig.err, attempt_id=spec.attempt_id)
    ended, after = rig.end(launch, child)  # type: ignore[arg-type]
    assert ended.code == 125
    assert after.outcome == "failed"
    assert "CPUs" in after.error


def test_stdin_is_empty_or_what_was_given(rig: Rig) -> None:
    assert rig.sh("cat; echo end") == "end\n"
    read, write = os.pipe()
    os.write(write, b"given\n")
    os.close(write)
    assert rig.sh("cat; echo end", stdin=read) == "given\nend\n"
    os.close(read)


# ---------------------------------------------------------------- limits


def test_memory_beyond_its_limit_is_named(rig: Rig) -> None:
    text = "x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo ${#x}"
    assert rig.sh(text) == "100000000\n"  # control
    _, after, _ = rig.run(rig.spec("sh", "-c", text, bounds=Bounds(memory_bytes=32 * MIB)))
    assert after.limit == "memory"
    assert "32 MiB" in after.error


def test_memory_is_named_where_the_engine_does_not_say_so(tmp_path: Path, podman: str) -> None:
    rig = Rig(tmp_path, "podman", podman)
    text = "x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo ${#x}"
    assert rig.sh(text) == "100000000\n"  # control
    _, after, _ = rig.run(rig.spec("sh", "-c", text, bounds=Bounds(memory_bytes=32 * MIB)))
    assert after.limit == "memory"
    rig.close()


def test_what_a_container_writes_to_tmp_counts_as_memory(rig: Rig) -> None:
    text = "head -c 60000000 /dev/zero >/tmp/big && stat -c %s /tmp/big"
    assert rig.sh(text) == "60000000\n"
    ended, after, _ = rig.run(rig.spec("sh", "-c", text, bounds=Bounds(memory_bytes=32 * MIB)))
    assert ended.code != 0
    assert after.limit in ("memory", "")  # the file system is as small: what comes first


def test_processes_beyond_their_limit_are_named(rig: Rig) -> None:
    text = 'i=0; while [ $i -lt 40 ]; do sleep 30 & i=$((i+1)); done; echo "started $i"; kill -9 -1'
    assert "started 40" in rig.run(rig.spec("sh", "-c", text))[2]
    ended, after, said = rig.run(rig.spec("sh", "-c", text, bounds=Bounds(pids=20)))
    assert "started 40" not in said
    assert ended.code != 0
    assert after.limit == "pids"
    assert "20" in after.error


QUIET = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 30 & done"


def test_processes_beyond_their_limit_are_named_though_nothing_says_so(rig: Rig) -> None:
    """The kernel counts what could not be started; a command that hides its errors hides nothing."""
    text = f"sh -c '{QUIET}' 2>/dev/null || exit 3"
    assert rig.run(rig.spec("sh", "-c", text))[0].code == 0  # control
    ended, after, _ = rig.run(rig.spec("sh", "-c", text, bounds=Bounds(pids=8)))
    assert ended.code == 3
    assert after.limit == "pids"
    assert "(peak 8)" in after.error


def test_a_command_that_lives_with_its_limit_of_processes_completes(rig: Rig) -> None:
    text = f"sh -c '{QUIET}' 2>/dev/null; echo went on"
    ended, after, said = rig.run(rig.spec("sh", "-c", text, bounds=Bounds(pids=8)))
    assert (ended.code, after.limit, said) == (0, "", "went on\n")


@pytest.mark.parametrize("pids", [None, 8], ids=["plain", "counted"])
def test_a_limit_of_processes_changes_no_end(rig: Rig, pids: int | None) -> None:
    """Whatever stands around a command whose processes are counted: codes, signals, names, stdin stay its own."""
    bounds = Bounds(pids=pids)
    for code in (0, 3, 125, 127):
        assert rig.run(rig.spec("sh", "-c", f"exit {code}", bounds=bounds))[0].code == code
    assert rig.run(rig.spec("sh", "-c", "kill -9 $$", bounds=bounds))[0].code == 137
    ended, after, _ = rig.run(rig.spec("exit", bounds=bounds))  # no builtin of the gate's own shell
    assert (ended.code, after.error) == (127, f"exit can't be run in the image {rig.image}: not found")
    said = rig.sh("trap; echo $0; ps | wc -l; ulimit -u", bounds=Bounds(pids=1000 if pids else None))
    assert said.splitlines()[0] == "sh"  # no trap of the gate's reaches it


def test_as_many_processes_as_the_limit_says_can_be(rig: Rig) -> None:
    text = "for i in 1 2 3 4 5 6 7; do sleep 1 & done; wait; echo all"
    assert rig.sh(text, bounds=Bounds(pids=8)) == "all\n"


def test_a_file_beyond_its_limit_is_named(rig: Rig) -> None:
    text = "exec dd if=/dev/zero of=out/big bs=65536 count=64"
    assert rig.run(rig.spec("sh", "-c", text))[0].code == 0
    _, after, _ = rig.run(rig.spec("sh", "-c", text, bounds=Bounds(file_size_bytes=MIB)))
    assert after.limit == "file_size"
    assert (rig.project / "out" / "big").stat().st_size <= MIB


def test_cpu_is_held_back(rig: Rig) -> None:
    said = rig.sh(
        "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null; true", bounds=Bounds(cpu=0.25)
    )
    assert said.split()[0] == "25000"


def test_more_cpu_than_there_is_is_no_error(rig: Rig) -> None:
    assert rig.sh("echo ran", bounds=Bounds(cpu=4096.0)) == "ran\n"


def test_too_little_memory_for_the_engine_is_refused(rig: Rig) -> None:
    with pytest.raises(Refused, match="6 MiB"):
        rig.wall.launch(rig.spec("true", bounds=Bounds(memory_bytes=MIB)))


def test_a_working_folder_that_is_not_there_is_named_and_not_made(rig: Rig) -> None:
    """Docker would make it, as root, in a granted folder of this machine."""
    ended, after, _ = rig.run(rig.spec("true", cwd=str(rig.project / "out" / "nope")))
    assert ended.code != 0
    assert after.outcome == "failed"
    assert after.error == f"can't enter the directory {rig.project}/out/nope: it is not there"
    assert not (rig.project / "out" / "nope").exists()
    assert rig.run(rig.spec("pwd", cwd=str(rig.project / "out")))[2] == f"{rig.project}/out\n"  # control


# ---------------------------------------------------------------- the end


def _running(rig: Rig, text: str, **more: object) -> tuple:
    """An attempt that has said `ready`."""
    before = rig.said().count("ready")
    launch, child = rig.start(rig.spec("sh", "-c", text, **more))
    until(lambda: rig.said().count("ready") > before or readable(child.pidfd, 0), "ready")
    assert not readable(child.pidfd, 0), "it ended before it was ready"
    return launch, child


@pytest.mark.parametrize("pids", [None, 64], ids=["plain", "counted"])
def test_terminate_reaches_the_whole_group(rig: Rig, pids: int | None) -> None:
    inner = 'trap "echo inner >>out/told; exit 0" TERM; echo ready; while :; do sleep 0.1; done'
    text = f"trap : TERM; sh -c '{inner}'; echo after"
    launch, child = _running(rig, text, bounds=Bounds(pids=pids))
    assert rig.wall.terminate(launch, child) == 1
    ended, _ = rig.end(launch, child)
    assert ended.code == 0
    assert (rig.project / "out" / "told").read_text() == "inner\n"
    assert rig.names() == set()


@pytest.mark.parametrize(
    "text",
    [
        "trap '' TERM INT HUP; echo ready; while :; do sleep 1; done",
        "setsid sh -c 'trap \"\" TERM; while :; do sleep 1; done' & sh -c '(sleep 1000 &) ; :'; echo ready; sleep 1000",
        "kill -STOP 1; echo ready; kill -STOP $$",
        "echo ready; kill -STOP $$",
    ],
    ids=["traps", "forks", "stops its init", "stops itself"],
)
def test_kill_ends_what_will_not_end(rig: Rig, text: str) -> None:
    launch, child = _running(rig, text)
    rig.wall.terminate(launch, child)
    end = time.monotonic() + 30
    while not readable(child.pidfd, 0.2):
        assert rig.wall.kill(launch, child) == 1
        assert time.monotonic() < end
    ended, after = rig.end(launch, child)
    assert ended.code != 0
    assert after == NOTHING_MORE
    assert rig.names() == set()


def test_a_kill_before_the_container_is_there_ends_it_too(rig: Rig) -> None:
    launch, child = rig.start(rig.spec("sh", "-c", "sleep 1000"))
    while not readable(child.pidfd, 0.05):
        rig.wall.kill(launch, child)
    rig.end(launch, child)
    assert rig.names() == set()


def test_what_survives_a_killed_command_line_is_swept(rig: Rig) -> None:
    launch, child = _running(rig, "echo ready; sleep 1000")
    assert len(rig.names()) == 1
    os.killpg(child.pid, signal.SIGKILL)
    assert readable(child.pidfd)
    assert len(rig.names()) == 1, "control: the container outlives its command line"
    stranger = Container("docker", lambda pid: None)  # as a watchdog, or the next start
    assert stranger.sweep(str(rig.project)) == []
    assert stranger.sweep() == []
    assert stranger.sweep(is_dead=lambda run, folder: (run, folder) == ("r2", folder_label(str(rig.run_dir)))) == []
    assert len(rig.names()) == 1
    removed = stranger.sweep(is_dead=lambda run, folder: (run, folder) == ("r1", folder_label(str(rig.run_dir))))
    assert len(removed) == 1
    assert rig.names() == set()
    rig.plain.sweep(child)
    rig.wall.ended(launch, rig.plain.reap(child))


def _files_of(rig: Rig) -> list[str]:
    """Where the token of `_with_secret` is in the folder of the run."""
    files = [path for path in rig.run_dir.rglob("*") if path.is_file()]
    return [path.name for path in files if b"the-token" in path.read_bytes()]


def _with_secret(rig: Rig) -> tuple:
    more = {"env": {"TOKEN": "the-token"}, "secret_env": frozenset({"TOKEN"})}
    launch, child = _running(rig, "echo ready; sleep 1000", **more)
    assert _files_of(rig) == ["secret"], "control: it is there while the container runs"
    return launch, child


def test_no_secret_stays_behind_a_killed_command_line(rig: Rig) -> None:
    launch, child = _with_secret(rig)
    os.killpg(child.pid, signal.SIGKILL)
    assert readable(child.pidfd)
    rig.plain.sweep(child)
    rig.wall.ended(launch, rig.plain.reap(child))
    assert _files_of(rig) == []


def test_no_secret_stays_behind_a_dead_engine(rig: Rig) -> None:
    launch, child = _with_secret(rig)
    os.killpg(child.pid, signal.SIGKILL)
    assert readable(child.pidfd)
    assert _files_of(rig) == ["secret"]
    Container("docker", lambda pid: None).sweep(str(rig.run_dir))  # as its watchdog, or the next session
    assert _files_of(rig) == []
    rig.plain.sweep(child)
    rig.wall.ended(launch, rig.plain.reap(child))


def test_no_secret_stays_when_the_watchdog_is_dead(rig: Rig) -> None:
    _, child = _with_secret(rig)
    os.killpg(child.pid, signal.SIGKILL)
    assert readable(child.pidfd)
    rig.wall.close()  # all that the engine does then
    assert _files_of(rig) == []
    assert rig.names() == set()
    rig.plain.sweep(child)
    rig.plain.reap(child)


def test_a_pull_that_hangs_ends_at_once(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which("docker")
    (tmp_path / "docker").write_text(f'#!/bin/sh\n[ "$1" != pull ] || exec sleep 1000\nexec {real} "$@"\n')
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    rig.wall = Container("docker", rig.plain.exempt)
    launch, child = rig.start(rig.spec("true", image=ABSENT, pull="missing"))
    folder = Path(launch.token.folder)  # type: ignore[attr-defined]
    until(lambda: (folder / "pulling").exists() or readable(child.pidfd, 0), "the pull")
    rig.wall.kill(launch, child)
    assert readable(child.pidfd, 5)
    rig.end(launch, child)
    assert not folder.exists()


def test_close_removes_what_could_not_be_removed_before(rig: Rig) -> None:
    launch, child = _running(rig, "echo ready; sleep 1000")
    os.killpg(child.pid, signal.SIGKILL)
    assert readable(child.pidfd)
    rig.plain.sweep(child)
    rig.wall.ended(launch, rig.plain.reap(child))
    rig.wall.close()
    assert rig.names() == set()


def test_an_attempt_that_was_not_spawned_leaves_nothing(rig: Rig) -> None:
    with descriptors_kept():
        rig.wall.discard(rig.wall.launch(rig.spec("true")))
    assert not [p for p in (rig.run_dir / "containers").iterdir() if p.name.startswith("dagrun-")]


def test_no_descriptor_is_lost(rig: Rig) -> None:
    rig.sh("true")
    with descriptors_kept():
        rig.sh("true")
        with pytest.raises(Refused):
            rig.wall.launch(rig.spec("true", read=("nowhere",)))


# ---------------------------------------------------------------- secrets and values


def test_secrets_arrive_and_are_shown_nowhere(rig: Rig) -> None:
    secret = "s3cret'\"$(touch /tmp/x)\nof two lines"
    env = {"TOKEN": secret, "PLAIN": "a b=c '\"$x", "LINES": "one\ntwo"}
    launch, child = _running(
        rig,
        'printf "%s|" "$TOKEN" "$PLAIN" "$LINES" "$HOME" "$TMPDIR"; [ ! -e /tmp/x ] && echo ready; sleep 1000',
        env=env,
        secret_env=frozenset({"TOKEN"}),
    )
    assert f"{secret}|{env['PLAIN']}|{env['LINES']}|/tmp|/tmp|ready" in rig.said()
    (name,) = rig.names()
    shown = ask("docker", "inspect", name)
    assert json.loads(shown)[0]["Config"]["Labels"]["dagrun.node"] == "n"
    command = Path(f"/proc/{child.pid}/cmdline").read_bytes() + b"".join(
        Path(f"/proc/{pid}/cmdline").read_bytes() for pid in _below(child.pid)
    )
    environments = b"".join(Path(f"/proc/{pid}/environ").read_bytes() for pid in (child.pid, *_below(child.pid)))
    for place in (shown, command.decode(), environments.decode()):
        assert "s3cret" not in place
    assert "PLAIN" not in environments.decode()
    rig.wall.kill(launch, child)
    rig.end(launch, child)
    assert b"s3cret" not in b"".join(p.read_bytes() for p in rig.run_dir.rglob("*") if p.is_file())


def _below(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [kid for text in found for kid in (int(text), *_below(int(text)))]


def test_an_image_without_a_shell_runs_without_secrets(rig: Rig) -> None:
    bare = need_image("docker", BARE)
    (rig.project / "in" / "file").write_text("read\n")
    assert rig.wall.check_image(bare, "never") == ""
    ended, _, said = rig.run(rig.spec("cat", "in/file", image=bare, env={"A": "x y"}))
    assert (ended.code, said) == (0, "read\n")
    rig.wall.prefer(bare)
    proved = rig.wall.proved()
    assert {name for name, why in proved.items() if why} == {"net.allowlist"}
    with pytest.raises(Refused, match="has no sh"):
        rig.wall.launch(rig.spec("cat", image=bare, env={"TOKEN": "x"}, secret_env=frozenset({"TOKEN"})))


ODD_VALUES = ["", " ", "a\rb", "x" * 70_000, "é\udcff", "#no comment", "a=b=c", "\\", "$HOME", "`id`"]


@pytest.mark.parametrize("value", ODD_VALUES)
def test_values_arrive_as_they_are(rig: Rig, value: str) -> None:
    said = rig.run(rig.spec("sh", "-c", 'printf %s "$V" >out/v', env={"V": value}))
    assert (rig.project / "out" / "v").read_bytes() == value.encode("utf-8", "surrogateescape"), said


def test_variables_that_steer_programs_do_not_reach_the_command_line(rig: Rig) -> None:
    env = {"LD_PRELOAD": "/nowhere.so", "DOCKER_HOST": "tcp://1.2.3.4:1", "PATH": "/bin", "BASH_ENV": "/x"}
    assert rig.sh('echo "$DOCKER_HOST $PATH"', env=env) == "tcp://1.2.3.4:1 /bin\n"


@pytest.mark.parametrize("image", ["--privileged", "-v/:/host", "a b", "x;y", "", "Ünicode"])
def test_names_of_images_are_no_options(rig: Rig, image: str) -> None:
    with pytest.raises(Refused, match="not the name of an image"):
        rig.wall.launch(rig.spec("true", image=image))


@pytest.mark.parametrize(
    "argv", [("--privileged",), ("-v", "/:/host"), ("-a", "x", "true"), ("echo", "--rm", "$(id)", "a\nb", "")]
)
@pytest.mark.parametrize("shell", [True, False])
def test_words_of_a_command_are_no_options(rig: Rig, argv: tuple[str, ...], shell: bool) -> None:
    rig.wall._probe._images[rig.image] = Image(rig.image, shell=shell)
    ended, _, said = rig.run(rig.spec(*argv))
    if argv[0] == "echo":
        assert said == "--rm $(id) a\nb \n"
    else:
        assert ended.code == 127


@pytest.mark.parametrize("user", ["0", "root", "0:0", "00", "1000:0", "1000:00", "1000:x", "-1", "nobody"])
def test_root_and_names_are_refused_as_users(rig: Rig, user: str) -> None:
    with pytest.raises(Refused, match=r"docker\.user"):
        rig.wall.launch(rig.spec("true", user=user))


def test_it_runs_as_the_user_that_was_asked_for(rig: Rig) -> None:
    assert rig.sh("id -u; id -g", user="1234:4321") == "1234\n4321\n"
    assert rig.sh('echo given >"$OUT"', user="1234", env={"OUT": f"{rig.exchange}/x"}) == ""
    assert (rig.exchange / "x").read_text() == "given\n"


@pytest.mark.skipif(os.getuid() != 0, reason="about containers that root starts")
def test_root_starts_containers_as_the_owner_of_what_they_write(rig: Rig) -> None:
    assert rig.sh("id -u") == "65534\n"
    assert rig.sh("echo x >fresh/file && id -u", write=("fresh",)) == "65534\n"  # made for it
    os.chown(rig.project / "out", 1234, 4321)
    assert rig.sh("id -u; id -g; echo y >out/y") == "1234\n4321\n"
    assert (rig.project / "out" / "y").stat().st_uid == 1234


@pytest.mark.skipif(os.getuid() != 0, reason="about containers that root starts")
def test_what_the_user_of_a_container_can_not_write_is_warned_of(rig: Rig) -> None:
    (rig.project / "closed").mkdir(mode=0o755)
    ended, after, _ = rig.run(rig.spec("sh", "-c", "echo x >closed/x", write=("closed",)))
    assert ended.code != 0
    assert "chown 65534" in after.notes[0]


def test_the_launch_of_a_dead_daemon_is_told(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dagrun.errors import EnvironmentFault

    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing.sock")
    gone = Container("docker", lambda pid: None)
    (why,) = set(gone.proved().values())
    assert why.startswith(f"the Docker daemon does not run (nobody answers at {tmp_path}/nothing.sock)")
    assert "systemctl start docker" in why
    with pytest.raises(EnvironmentFault, match="does not run"):
        gone.launch(rig.spec("true"))
