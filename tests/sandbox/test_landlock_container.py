"""Where bubblewrap can't work: as root in a container with Docker's default filter, Landlock holds what it holds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dagrun.sandbox import landlock_kernel

REPOSITORY = Path(__file__).parents[2]
PYTHON = os.path.realpath(sys.executable)
INSIDE = """
import json, os, subprocess
from dagrun.sandbox.ceilings import Ceilings
from dagrun.sandbox.landlock import Landlock
from dagrun.sandbox.plain import Plain
from dagrun.sandbox.wall import Launch, Spec

for folder in ("/p/out", "/p/.dagrun", "/exchange"):
    os.makedirs(folder)
for file in ("/p/.env", "/p/.dagrun/journal", "/secret", "/p/code"):
    open(file, "w").write("canary")
TEXT = '''
cat /secret && echo fs.read
echo x >>/secret && echo fs.write
cat .env && echo fs.deny
cat .dagrun/journal && echo hidden
kill -0 $PPID && echo proc.signal
cat /proc/1/environ && echo environ
echo x >out/x && cat out/x code && echo worked
'''
plain, wall = Plain(), Landlock()
said = {}
for name in ("none", "landlock"):
    env = {"PATH": "/usr/bin:/bin", "DAGRUN_ATTEMPT_ID": "r/n/1"}
    argv = ("sh", "-c", TEXT)
    launch = Launch(argv=argv, env=env, cwd="/p")
    if name == "landlock":
        launch = wall.launch(Spec(
            attempt_id="r/n/1", run_id="r", run_dir="/p/.dagrun", node="n", argv=argv, env=env, cwd="/p", project="/p",
            read=(".",), write=("out",), deny=(".env",), network="none", hidden=("/p/.dagrun",), exchange="/exchange",
        ))
    out = os.open("/" + name, os.O_RDWR | os.O_CREAT)
    null = os.open("/dev/null", os.O_RDWR)
    files = {"out_fd": out, "err_fd": null, "attempt_id": "r/n/1", "cwd": "/p"}
    child = plain.spawn(launch.argv, launch.env, around=launch.around, **files)
    if name == "landlock":
        wall.started(launch, child)
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
    plain.sweep(child)
    ended = plain.reap(child)
    if name == "landlock":
        wall.ended(launch, ended)
    said[name] = open("/" + name).read().split()
print(json.dumps({
    "uid": os.getuid(), "said": said, "landlock": dict(wall.proved()), "ceilings": dict(Ceilings("r").proved()),
    "namespaces": subprocess.run(["unshare", "-U", "true"], capture_output=True).returncode == 0,
}))
"""


def in_container(image: str, *options: str) -> dict[str, object]:
    """What INSIDE says in a container of this image, with the programs of this machine in it."""
    # The repository may be closed to the user inside, and a file of another user closed to root without rights.
    shown = {"/usr", "/lib", "/lib64", sys.base_prefix}
    mounts = [f"--volume={path}:{path}:ro" for path in sorted(shown) if os.path.isdir(path)]
    command = [
        *("docker", "run", "--rm", "--network=none", *options, *mounts),
        *(f"--volume={REPOSITORY}:/repository:ro", "--env=PYTHONPATH=/repository", "--env=PYTHONDONTWRITEBYTECODE=1"),
        *(image, PYTHON, "-c", INSIDE),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.docker
@pytest.mark.skipif(not shutil.which("docker"), reason="docker is not installed")
def test_landlock_holds_in_a_default_container_as_root(docker: str) -> None:
    if landlock_kernel.abi() < landlock_kernel.SCOPE_ABI:
        pytest.skip("no Landlock 6 here")
    found = in_container(docker)
    assert found["uid"] == 0
    assert not found["namespaces"], "Docker's default filter should refuse user namespaces"
    said = found["said"]
    assert isinstance(said, dict)
    escapes = ["fs.read", "fs.write", "fs.deny", "hidden", "proc.signal", "environ"]
    assert [name for name in escapes if name in " ".join(said["none"])] == escapes
    assert [name for name in escapes if name in " ".join(said["landlock"])] == []
    assert said["landlock"][-1].endswith("worked")
    proved = found["landlock"]
    assert isinstance(proved, dict)
    gaps = {"fs.meta", "fs.protected", "proc.hide", "net.allowlist", "mem", "pids", "cpu", "fsize"}
    assert {name for name, why in proved.items() if why} == gaps
    ceilings = found["ceilings"]
    assert isinstance(ceilings, dict)
    assert ceilings["fsize"] == ""
    assert "control group" in ceilings["mem"]  # read-only in there


@pytest.mark.docker
@pytest.mark.skipif(not shutil.which("docker"), reason="docker is not installed")
def test_a_container_whose_filter_refuses_landlock_proves_nothing(docker: str, tmp_path: Path) -> None:
    """Fail closed: a filter of an engine that doesn't know the calls."""
    profile = tmp_path / "profile.json"
    refused = {"names": ["landlock_create_ruleset"], "action": "SCMP_ACT_ERRNO"}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [refused]}))
    command = [
        *("docker", "run", "--rm", "--network=none", f"--security-opt=seccomp={profile}"),
        *(f"--volume={path}:{path}:ro" for path in ("/usr", "/lib", "/lib64", sys.base_prefix) if os.path.isdir(path)),
        *(f"--volume={REPOSITORY}:/repository:ro", "--env=PYTHONPATH=/repository", docker, PYTHON, "-c"),
        "import json; from dagrun.sandbox.landlock import Landlock; print(json.dumps(dict(Landlock().proved())))",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    if "landlock_create_ruleset" in done.stderr:
        pytest.skip(f"this engine has no word for Landlock: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    assert all(why for why in json.loads(done.stdout).values())
