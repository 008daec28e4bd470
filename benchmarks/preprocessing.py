"""foldwise's preprocessing compared with a simple script, on the same sequences.

    python -m benchmarks.preprocessing [--subjects 12] [--rounds 3] [--processes 2]

The sequences are synthetic, 640 x 490 pixels, seven per subject. Both programs read the same files, alternating
in rounds. The baseline (`benchmarks/naive_preprocessing.py`) is one process with OpenCV's defaults. foldwise
runs as `foldwise preprocess` does with YuNet; its time includes the start of processes, hashing all files,
syncing parts to the disk, and joining, hashing and checking the cache.

Memory is the peak of the job's process plus that of its largest child, with a third of the subjects and with
all.

The last line is JSON:
    rate_ratio              sequences per second of foldwise divided by the baseline's, median over rounds
    boxes_equal_share       share of frames on which both boxes have an intersection over union of at least 0.9
    least_overlap           smallest intersection over union of all frames
    our_rate, naive_rate    sequences per second, medians
    memory_ratio            peak memory with all subjects divided by that with a third of them
    peak_megabytes          peak memory with all subjects
    sequences, rounds, processes, cores, opencv
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
from rich.console import Console
from rich.table import Table

from benchmarks.naive_preprocessing import Box, run_naive_preprocessing
from preprocessing.clips import ClipSettings
from preprocessing.datasets.registry import read_dataset
from preprocessing.datasets.synthetic import write_ckplus_tree
from preprocessing.faces import FaceBox, intersection_over_union
from preprocessing.job import preprocess
from services.clip_cache import CacheRecord, open_cache

SETTINGS = ClipSettings()


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--measure-memory", nargs=2, metavar=("TREE", "CACHES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure_memory:
        tree, caches = options.measure_memory
        _measure_memory(Path(tree), Path(caches), options.processes)
        return
    with tempfile.TemporaryDirectory(prefix="foldwise-preprocessing-") as folder:
        run_benchmark(
            Path(folder), subjects=options.subjects, rounds=options.rounds, processes=options.processes
        )


def run_benchmark(folder: Path, *, subjects: int, rounds: int, processes: int) -> None:
    """Measure in `folder`, and print a table and the JSON line.

    Args:
        folder: folder for all files.
        subjects: number of synthetic subjects.
        rounds: number of rounds.
        processes: number of foldwise's processes.
    """
    console = Console(stderr=True)
    tree, small_tree = folder / "tree", folder / "small"
    write_ckplus_tree(tree, subjects=subjects)
    write_ckplus_tree(small_tree, subjects=max(1, subjects // 3))
    sequences = read_dataset("ckplus", tree).sequences
    seconds: dict[str, list[float]] = {"naive": [], "ours": []}
    overlaps: list[float] = []
    for number in range(rounds):
        started = time.perf_counter()
        naive = run_naive_preprocessing(sequences, folder / f"naive{number}", SETTINGS.frame_size)
        seconds["naive"].append(time.perf_counter() - started)
        started = time.perf_counter()
        outcome = preprocess("ckplus", tree, folder / f"ours{number}", settings=SETTINGS, processes=processes)
        seconds["ours"].append(time.perf_counter() - started)
        overlaps = _overlaps(naive, open_cache(outcome.folder).records)
        console.print(
            f"round {number + 1}: naive {seconds['naive'][-1]:.1f} s, ours {seconds['ours'][-1]:.1f} s"
        )
        shutil.rmtree(folder / f"naive{number}")
        shutil.rmtree(folder / f"ours{number}")
    peaks = [_peak_megabytes(one, folder / f"{one.name}-caches", processes) for one in (small_tree, tree)]
    rates = {name: len(sequences) / statistics.median(times) for name, times in seconds.items()}
    table = Table("", "sequences/s, median", "slowest to fastest", "peak memory, a third and all subjects")
    for name, times in seconds.items():
        span = f"{len(sequences) / max(times):.2f} to {len(sequences) / min(times):.2f}"
        table.add_row(
            name, f"{rates[name]:.2f}", span, "" if name == "naive" else f"{peaks[0]:.0f}, {peaks[1]:.0f} MB"
        )
    console.print(table)
    ratios = [naive / ours for naive, ours in zip(seconds["naive"], seconds["ours"], strict=True)]
    print(
        json.dumps(
            {
                "rate_ratio": round(statistics.median(ratios), 2),
                "boxes_equal_share": round(sum(one >= 0.9 for one in overlaps) / len(overlaps), 4),
                "least_overlap": round(min(overlaps), 3),
                "our_rate": round(rates["ours"], 2),
                "naive_rate": round(rates["naive"], 2),
                "memory_ratio": round(peaks[1] / peaks[0], 2),
                "peak_megabytes": round(peaks[1]),
                "sequences": len(sequences),
                "rounds": rounds,
                "processes": processes,
                "cores": os.cpu_count(),
                "opencv": cv2.__version__,
            }
        )
    )


def _overlaps(naive: Sequence[Sequence[Box | None]], records: Sequence[CacheRecord]) -> list[float]:
    """Intersection over union on each frame; 0 if only one of the two found a face, 1 if neither did."""
    return [
        float(theirs is ours)
        if theirs is None or ours is None
        else intersection_over_union(_as_face(theirs), _as_face(ours))
        for found, record in zip(naive, records, strict=True)
        for theirs, ours in zip(found, record.boxes[: len(found)], strict=True)
    ]


def _as_face(box: Box) -> FaceBox:
    return FaceBox(x=box[0], y=box[1], width=box[2], height=box[3], confidence=1.0)


def _peak_megabytes(tree: Path, caches: Path, processes: int) -> float:
    command = ["-m", "benchmarks.preprocessing", "--processes", str(processes), "--measure-memory"]
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, *command, str(tree), str(caches)], check=True, stdout=subprocess.PIPE, text=True
    )
    return float(done.stdout)


def _measure_memory(tree: Path, caches: Path, processes: int) -> None:
    preprocess("ckplus", tree, caches, settings=SETTINGS, processes=processes)
    # Linux reports kibibytes.
    peaks = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(sum(peaks) / 1024)


if __name__ == "__main__":
    main()
