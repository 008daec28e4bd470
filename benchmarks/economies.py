"""What the lossless economies and exact pruning save, separately and together, over REST with real workers.

    python -m benchmarks.economies [--subjects 6] [--epochs 16] [--workers 2]

The same 16 configurations of Table 1 run as Leave-One-Subject-Out studies on one synthetic set, one study after
another: without any economy, with each economy alone, with `bound` pruning alone, and with all together. Two
configurations are enqueued twice, because a sampler over a mostly discrete space also repeats configurations.
By default the set has three of the seven emotions, which a small network learns as well as large ones learn
CK+. The threshold of `bound` is an accuracy to beat, as in the paper: that of the best trial of the first
study, minus one clip.

The last line is JSON:
    clip_pass_ratio   clip passes without economies, divided by those with everything
    time_ratio        the same for the seconds of training
    same_best         whether the best trial is the same configuration with the same accuracy
    equal_folds       per variant, the share of its folds with the same reported labels as without economies;
                      below 1 only if rounding in fp32 changed a label
    folds, clip_passes, seconds   per variant
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.synthetic_cache import synthetic_cache
from cli.local.service import LocalService, local_service
from cli.local.state import StateFolder
from services.clip_cache import ClipCache
from services.contracts import (
    ANY_CLASS,
    Augmentation,
    AugmentationCounts,
    BoundRule,
    Economies,
    FoldState,
    StudySpec,
    TrainingSettings,
)
from services.folds import LeaveOneSubjectOut
from services.search_space import SearchSpace, paper_space

CONFIGURATIONS = 16
REPEATED = 2
NOTHING = Economies(stop_when_perfect=False, skip_dead_taps=False, gray_as_one_channel=False, reuse_folds=False)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Cost and results of a study."""

    folds: int
    reused: int
    clip_passes: int
    seconds: float
    """Seconds of training, summed over all workers."""

    best: tuple[dict[str, Any], float] | None
    """Parameters and accuracy of the best complete trial."""

    reported: dict[tuple[int, int], tuple[int, ...]]
    """Labels predicted at the best epoch, by trial and fold. Accuracy and confusion follow from them."""


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--subjects", type=int, default=6)
    parser.add_argument("--classes", nargs="+", default=["anger", "happy", "surprise"])
    parser.add_argument("--difficulty", type=float, default=0.0)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--frame-size", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument(
        "--bn-momentum", type=float, default=0.4, help="high, because a short training has few steps"
    )
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    console = Console()
    variants = {
        "nothing": (NOTHING, False),
        **{name: (NOTHING.model_copy(update={name: True}), False) for name in Economies.model_fields},
        "bound": (NOTHING, True),
        "everything": (Economies(), True),
    }
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        state = StateFolder(Path(folder) / "state")
        cache = synthetic_cache(
            Path(folder),
            subjects=arguments.subjects,
            classes=arguments.classes,
            frame_size=arguments.frame_size,
            difficulty=arguments.difficulty,
        )
        state.folder.mkdir()
        (Path(folder) / "caches").rename(state.caches)
        with local_service(
            state, devices=["cpu"] * arguments.workers, port=0, notify=lambda _: None, threads=1
        ) as service:
            for name, (economies, bound) in variants.items():
                spec = StudySpec(
                    name=name.replace("_", "-"),
                    cache=cache.manifest.dataset,
                    protocol=LeaveOneSubjectOut(),
                    space=_space(),
                    trials=CONFIGURATIONS,
                    enqueue=_configurations(),
                    pruning=(BoundRule(threshold=_threshold(outcomes["nothing"], cache)),) if bound else (),
                    economies=economies,
                    training=TrainingSettings(
                        width=arguments.width,
                        frame_size=arguments.frame_size,
                        batch_size=arguments.batch_size,
                        learning_rate=arguments.learning_rate,
                        bn_momentum=arguments.bn_momentum,
                        epochs=arguments.epochs,
                        augmentation=Augmentation(counts={ANY_CLASS: AugmentationCounts(flip=1, rotation=1)}),
                    ),
                )
                outcomes[name] = _run(service, spec)
                console.print(f"{name}: {outcomes[name].seconds:.0f} s of training", highlight=False)
    console.print(_table(outcomes))
    _print_json(outcomes)


def _space() -> SearchSpace:
    # Four values of dropout instead of a range, so that configurations can repeat.
    return SearchSpace.model_validate({**paper_space().model_dump(), "dropout": [0.0, 0.15, 0.3, 0.45]})


def _configurations() -> tuple[dict[str, Any], ...]:
    rng = random.Random(0)
    space = {name: domain for name, domain in _space().items() if isinstance(domain, tuple)}
    distinct = [
        {name: rng.choice(options) for name, options in space.items()} for _ in range(CONFIGURATIONS - REPEATED)
    ]
    return tuple(distinct + distinct[:REPEATED])


def _threshold(nothing: Outcome, cache: ClipCache) -> float:
    if nothing.best is None:
        raise RuntimeError("the first study has no complete trial")
    return nothing.best[1] - 1 / len(cache.records)


def _run(service: LocalService, spec: StudySpec) -> Outcome:
    client = service.client
    client.create(spec)
    while not client.get(spec.name).state.over:
        service.tend()
        time.sleep(0.5)
    study = client.get(spec.name)
    if study.state != "complete":
        raise RuntimeError(f"study {study.name} is {study.state}: {study.reason}")
    reported: dict[tuple[int, int], tuple[int, ...]] = {}
    clip_passes, seconds, reused = 0, 0.0, 0
    for trial in client.trials(spec.name):
        for fold in client.folds(spec.name, trial.number):
            if fold.state != FoldState.DONE:
                continue
            record = client.fold(spec.name, trial.number, fold.index)
            best = record.result.epochs[record.best_epoch]
            reported[trial.number, fold.index] = best.predicted
            if record.reused_from is None:
                clip_passes += record.result.provenance.clip_passes
                seconds += record.result.provenance.seconds
            else:
                reused += 1
    best_trial = study.best if study.best is not None and study.best.value is not None else None
    return Outcome(
        folds=len(reported) - reused,
        reused=reused,
        clip_passes=clip_passes,
        seconds=seconds,
        best=None if best_trial is None else (best_trial.parameters, best_trial.value or 0.0),
        reported=reported,
    )


def _equal(outcome: Outcome, nothing: Outcome) -> float:
    same = sum(nothing.reported[fold] == labels for fold, labels in outcome.reported.items())
    return round(same / len(outcome.reported), 4)


def _table(outcomes: dict[str, Outcome]) -> Table:
    nothing = outcomes["nothing"]
    table = Table(
        "", "folds run", "reused", "clip passes", "savings factor", "seconds", "savings factor", "equal folds"
    )
    for name, outcome in outcomes.items():
        table.add_row(
            name,
            str(outcome.folds),
            str(outcome.reused),
            str(outcome.clip_passes),
            f"{nothing.clip_passes / outcome.clip_passes:.2f}x",
            f"{outcome.seconds:.0f}",
            f"{nothing.seconds / outcome.seconds:.2f}x",
            f"{_equal(outcome, nothing):.1%}",
        )
    return table


def _print_json(outcomes: dict[str, Outcome]) -> None:
    nothing, everything = outcomes["nothing"], outcomes["everything"]
    print(
        json.dumps(
            {
                "clip_pass_ratio": round(nothing.clip_passes / everything.clip_passes, 2),
                "time_ratio": round(nothing.seconds / everything.seconds, 2),
                "same_best": nothing.best == everything.best,
                "best_accuracy": None if nothing.best is None else round(nothing.best[1], 4),
                "equal_folds": {name: _equal(outcome, nothing) for name, outcome in outcomes.items()},
                "folds": {name: outcome.folds for name, outcome in outcomes.items()},
                "clip_passes": {name: outcome.clip_passes for name, outcome in outcomes.items()},
                "seconds": {name: round(outcome.seconds, 1) for name, outcome in outcomes.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
