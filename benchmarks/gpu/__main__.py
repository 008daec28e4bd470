"""Measure on a GPU, within some minutes, all that foldwise's training claims and cannot show without one.

    python -m benchmarks.gpu [--minutes 8] [--out gpu-results] [--device cuda:0]

It trains the paper's network (64 filters, 112 x 112, batches of 30, temporal size 3) on a generated set of
CK+'s shape; without a GPU a scaled network on the CPU, through the same code. After each part it writes
`gpu.md` and adds a line to `gpu.jsonl` in the folder of `--out`, so that a run that is cut off keeps what it
had. A part that fails or takes too long is named, and the next one runs in a fresh process. It needs torch
2.10 or newer and few other packages, and names those that are missing.

Each plan is timed between two runs of the baseline (`benchmarks/naive_training.py`: a loader with processes,
eager, TF32 convolutions as PyTorch has them). MFU is the share of the rate of a large matrix product in the
same precision on the same device; only operations that a gray clip needs count.

The last line is JSON:
    device, torch             what was measured
    plan                      the plan that `compute: auto` takes here: the first sound one
    clips_per_second          training clips per second in this plan
    ratio                     the same, divided by the baseline's
    mfu                       useful operations per second, divided by those of the matrix product (0 to 1)
    fold_seconds              a whole fold in this plan, all epochs
    repeat_equal              whether two runs of a fold in one process had the same bits
    replay_equal              whether a run in another process had the same bits too
    differs                   the layer that differs if they had not; otherwise null
    out_of_memory             whether a batch that cannot fit was named, and the device worked afterwards
    not_measured              parts without a result, each with its reason
    seconds                   of the whole run
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.gpu.required_packages import stop_if_missing


def main() -> None:
    """Run all parts and print what they found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="minutes for everything (default: 8)")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of the results")
    parser.add_argument("--device", default=None, help="a torch device (default: the first GPU, else the CPU)")
    arguments = parser.parse_args()
    stop_if_missing()
    # Only now, because it imports those packages.
    from benchmarks.gpu.run import run

    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), arguments.out, arguments.device, seconds=60 * arguments.minutes)


if __name__ == "__main__":
    main()
