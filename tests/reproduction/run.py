"""Types the commands of docs/reproduce.md on drawn faces, with small networks and few trials.

    python -m tests.reproduction.run [--folder build/reproduce] [--ckplus-subjects 47] [--oulu-subjects 80]

The shell finds a `foldwise` that adds sizes to some commands (`SIZES`) and passes everything on. The folders of
the two datasets are replaced by drawn ones with nearly as many clips as the genuine sets, so that the reports
also have the paper's Tables 6 to 8. Accuracies on drawn faces say nothing about real ones.

What the commands make is in FOLDER/reproduction; the program fails unless all files are there that the page's
table names.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from preprocessing.datasets import ckplus, oulu_casia
from preprocessing.datasets.synthetic import write_synthetic_tree
from tests.acceptance.up import wait_for
from tests.harness.documented_commands import PROJECT, shell_blocks

PAGE = "docs/reproduce.md"
RESULTS = "reproduction"
SERVICE = "foldwise up"

CLIPS = ("--frames", "4", "--frame-size", "24")
NETWORK = (
    "training.frames=4",
    "training.frame_size=24",
    "training.width=4",
    "training.batch_size=16",
    "training.learning_rate=0.003",
    "training.epochs=4",
    "training.augmentation={}",
)
TRIALS = 8
SIZES = {
    "preprocess": CLIPS,
    "up": ("--devices", "cpu", "--workers", "2", "--threads", "1", "--port", "0"),
    "compare": tuple(f"--set={setting}" for setting in NETWORK),
    "study create": tuple(f"--set={setting}" for setting in NETWORK),
    # Drawn faces and networks this small do not reach 96.5 %.
    "study create --preset ckplus-loso": (
        f"--set=trials={TRIALS}",
        "--set=pruning=[{rule: bound, threshold: 0.3}]",
    ),
    # With one seed, both searches begin with the same random trials, and may have the same best one.
    "study create --preset oulu-10fold": (f"--set=trials={TRIALS}", "--set=seed=1"),
}
"""Words that are added to a command that begins with these."""


def reproduce(folder: Path, *, ckplus_subjects: int, oulu_subjects: int) -> None:
    """Draw two datasets and type all commands of the page in `folder`; earlier results there are deleted.

    Raises:
        subprocess.CalledProcessError: a command failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("data", RESULTS):
        shutil.rmtree(folder / name, ignore_errors=True)
    trees = {"/data/CK+": folder / "ckplus", "/data/Oulu": folder / "oulu-casia"}
    for tree, layout, subjects in (
        (folder / "ckplus", ckplus.NAME, ckplus_subjects),
        (folder / "oulu-casia", oulu_casia.NAME, oulu_subjects),
    ):
        started = time.monotonic()
        write_synthetic_tree(tree, layout=layout, subjects=subjects)
        _say(f"drew {subjects} people in {tree}", started)
    data = folder / "data"
    environment = {
        **os.environ,
        "XDG_DATA_HOME": str(data),
        "PATH": f"{_write_program(folder)}:{os.environ['PATH']}",
    }
    blocks = shell_blocks(PAGE)
    (place,) = [place for place, block in enumerate(blocks) if block.strip() == SERVICE]
    for genuine, drawn in trees.items():
        blocks = [block.replace(genuine, str(drawn)) for block in blocks]
    _type(blocks[:place], folder, environment)
    up = subprocess.Popen(shlex.split(SERVICE), cwd=folder, env=environment)
    try:
        wait_for(lambda: (data / "foldwise" / "service.json").exists() or up.poll() is not None)
        _type(blocks[place + 1 :], folder, environment)
    finally:
        up.send_signal(signal.SIGINT)
        up.wait(timeout=60)


def documented_files() -> list[str]:
    """The paths in the page's table of results, without suffixes, relative to `RESULTS`."""
    table = (PROJECT / PAGE).read_text(encoding="utf-8").split("| paper | in")[1].split("\n\n")[0]
    return re.findall(r"`([a-z0-9-]+/[a-z0-9/-]+)`", table)


def missing_files(folder: Path, paths: Sequence[str]) -> list[str]:
    """Those of the documented paths that the commands in `folder` did not make."""
    return [path for path in paths if not list((folder / RESULTS).glob(f"{path}.*"))]


def sized(words: Sequence[str]) -> list[str]:
    """The words after `foldwise` with those that `SIZES` adds."""
    typed = shlex.join(words)
    return [
        *words,
        *(word for start, added in SIZES.items() if f"{typed} ".startswith(f"{start} ") for word in added),
    ]


def _write_program(folder: Path) -> Path:
    """Write a program `foldwise` that adds sizes, and return its folder."""
    program = folder / "bin" / "foldwise"
    program.parent.mkdir(exist_ok=True)
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        f"sys.path.insert(0, {str(PROJECT)!r})\n"
        "from cli.main import main\n"
        "from tests.reproduction.run import sized\n"
        # Processes that preprocess starts import this file too.
        "if __name__ == '__main__':\n"
        "    sys.argv = ['foldwise', *sized(sys.argv[1:])]\n"
        "    main()\n"
    )
    program.chmod(0o755)
    return program.parent


def _type(blocks: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
    for block in blocks:
        started = time.monotonic()
        subprocess.run(
            ["bash", "-e", "-u", "-o", "pipefail", "-x"],
            input=block,
            text=True,
            cwd=folder,
            env=environment,
            check=True,
        )
        _say(block.splitlines()[0], started)


def _say(what: str, started: float) -> None:
    print(f"=== {time.monotonic() - started:.0f} s: {what}", flush=True)


def _lines(folder: Path) -> Iterator[str]:
    for path in documented_files():
        found = sorted((folder / RESULTS).glob(f"{path}.*"))
        yield f"{path}: {', '.join(file.suffix for file in found) or 'MISSING'}"


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=PROJECT / "build" / "reproduce")
    parser.add_argument("--ckplus-subjects", type=int, default=47)
    parser.add_argument("--oulu-subjects", type=int, default=80)
    given = parser.parse_args()
    folder = given.folder.resolve()
    started = time.monotonic()
    reproduce(folder, ckplus_subjects=given.ckplus_subjects, oulu_subjects=given.oulu_subjects)
    print("\n".join(_lines(folder)))
    _say(f"tables and figures are in {folder / RESULTS}", started)
    sys.exit(1 if missing_files(folder, documented_files()) else 0)


if __name__ == "__main__":
    main()
