"""The images that `make images` built with buildah, each run as its user on its own root, mounted read-only."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

PROJECT = Path(__file__).parents[2]
VERSION = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
NAMES = ("coordinator", "worker", "preprocessing", "dashboard")
PREFIX = os.environ.get("PREFIX", "foldwise")


def buildah(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["buildah", *arguments], capture_output=True, text=True, check=False)


def built(name: str) -> str:
    return f"{PREFIX}/{name}:{os.environ.get('TAG', VERSION)}"


def why_not() -> str | None:
    if os.geteuid() != 0 or shutil.which("buildah") is None:
        return "needs root and buildah"
    missing = [name for name in NAMES if buildah("inspect", "--type", "image", built(name)).returncode]
    return f"run `make images` first: no image of {', '.join(missing)}" if missing else None


pytestmark = [pytest.mark.long, pytest.mark.skipif(why_not() is not None, reason=why_not() or "")]


def configuration(name: str) -> dict[str, Any]:
    inspected = json.loads(buildah("inspect", "--type", "image", built(name)).stdout)
    found: dict[str, Any] = inspected["OCIv1"]["config"]
    return found


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def root_of(name: str) -> Iterator[Path]:
    container = buildah("from", "--pull-never", built(name)).stdout.strip()
    try:
        yield Path(buildah("mount", container).stdout.strip())
    finally:
        buildah("rm", container)


UNSHARE = ("unshare", "--mount", "--propagation=private", "--pid", "--fork")
INSIDE = """
mount --bind "$ROOT" "$ROOT"
mount -t proc proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
mount -t tmpfs -o mode=1777 tmpfs "$ROOT/tmp"
mount -o remount,bind,ro "$ROOT"
exec chroot --userspec="$AS" "$ROOT" /usr/bin/env --ignore-environment "$@"
"""


def start(
    name: str, root: Path, *command: str, user: str = "10001:10001", **given: str
) -> subprocess.Popen[str]:
    """A command in an image's environment, as a container runtime starts it."""
    environment = [*configuration(name)["Env"], *(f"{key}={value}" for key, value in given.items())]
    return subprocess.Popen(
        # Process 1 of its own, as in a pod.
        [*UNSHARE, "sh", "-ec", INSIDE, "sh", *environment, *command],
        env={**os.environ, "ROOT": str(root), "AS": user},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def foldwise(name: str, root: Path, *arguments: str, **given: str) -> subprocess.Popen[str]:
    return start(name, root, *configuration(name)["Entrypoint"], *arguments, **given)


def said_by(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def test_it_starts_with_its_own_extra_alone(name: str) -> None:
    config = configuration(name)
    assert config["User"] == "10001:10001"
    assert any(
        entry.startswith("FOLDWISE_REVISION=") and entry != "FOLDWISE_REVISION=" for entry in config["Env"]
    )
    with root_of(name) as root:
        code, said = said_by(foldwise(name, root, "--help"))
        assert (code, "Hyper-parameter search" in said) == (0, True), said
        code, said = said_by(foldwise(name, root, "doctor"))
        assert code == 0, said
        assert VERSION in said
        code, said = said_by(foldwise(name, root, "--help", user="0:0"))
        assert code == 2, said
        assert "does not run as root" in said
        # Nothing in it installs or compiles anything.
        assert not list(root.glob("opt/foldwise/bin/pip*"))
        assert not list(root.glob("usr/bin/*gcc*"))


def answers_sigterm(name: str, when: str, code: int, *arguments: str, **given: str) -> float:
    """Seconds from SIGTERM, sent once `when` was said, to an end with `code`: the best of three.

    The machine may have other work; the program has the same three times.
    """
    took = []
    for _ in range(3):
        with root_of(name) as root:
            process = foldwise(name, root, *arguments, **given)
            assert process.stdout is not None
            said = ""
            while when not in said:
                line = process.stdout.readline()
                assert line, said
                said += line
            (first,) = psutil.Process(process.pid).children()
            began = time.monotonic()
            first.send_signal(signal.SIGTERM)
            assert process.wait(30) == code
            took.append(time.monotonic() - began)
            process.stdout.close()
    return min(took)


def test_a_worker_ends_within_a_second() -> None:
    environment = {"FOLDWISE_TOKEN": "t" * 20, "FOLDWISE_URL": "http://127.0.0.1:1"}
    command = ("worker", "--cache-root=/tmp")
    assert answers_sigterm("worker", "coordinator_unreachable", 75, *command, **environment) < 1.0


def test_a_coordinator_that_waits_for_its_database_ends_within_a_second() -> None:
    environment = {
        "FOLDWISE_ADMIN_TOKEN": "t" * 20,
        "FOLDWISE_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
    }
    command = ("coordinator", "--cache-root=/tmp", "--no-migrate", "--port=0")
    assert answers_sigterm("coordinator", "waiting_for_schema", 0, *command, **environment) < 1.0


def test_preprocessing_finds_faces_with_the_weights_it_carries() -> None:
    script = (
        "foldwise synth /tmp/faces --subjects 2 && "
        "foldwise preprocess --dataset ckplus --root /tmp/faces --cache-root /tmp/cache --processes 2"
    )
    with root_of("preprocessing") as root:
        code, said = said_by(start("preprocessing", root, "sh", "-c", script))
        assert code == 0, said
        assert "14 clips of 2 subjects" in said
