"""What a study maximises, and the epoch at which its folds count, held against plain counting."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import chain, product
from statistics import fmean
from typing import Any

import pytest
from sqlalchemy import select

from coordinator.optimizer.records import trial_records
from coordinator.scheduling import reports
from coordinator.store.studies import get_study, study_split
from coordinator.store.tables import ResultRow, StudyFoldRow, TrialRow
from coordinator.studies.export_file import export_lines
from coordinator.studies.import_file import import_study
from services.contracts import EpochResult, FoldAssignment, FoldResult, StudyDigest, TrialState
from services.errors import InvalidInput, LeaseSuperseded
from services.seeds import derive_seed
from tests.coordinator.scheduling.test_feedback_delay import Search
from tests.harness.coordinator_harness import Harness, key_of
from tests.harness.simulated_results import result_of

EPOCHS, THRESHOLD = 4, 0.45
CHOICES = ["best_per_fold", "best_common", "last", "validation"]
OBJECTIVES = ["accuracy", "uar", "uf1"]

Pairs = list[tuple[int, int]]
"""True and predicted label of clips."""


def learnt(assignment: FoldAssignment) -> FoldResult:
    """Predictions of several epochs that follow from the configuration; some folds diverge, some at once."""
    rng = random.Random(derive_seed("epochs", assignment.hyperparameters.dropout, assignment.fold))
    truth = labels_of(assignment, assignment.test_clips)
    to_choose = labels_of(assignment, assignment.validation_clips)
    ran = rng.choice([EPOCHS] * 6 + [2, 0])
    skill = 0.35 + assignment.hyperparameters.dropout * 0.5
    epochs = []
    for _ in range(max(ran, 1)):
        predicted, validated = (
            tuple(label if rng.random() < skill else 1 - label for label in labels)
            for labels in (truth, to_choose)
        )
        epochs.append(
            EpochResult(
                loss=1.0 if ran else None,
                predicted=predicted,
                probabilities=((0.5, 0.5),) * len(truth),
                validation_predicted=validated,
            )
        )
    return result_of(assignment, epochs).model_copy(update={"diverged": ran < EPOCHS})


def labels_of(assignment: FoldAssignment, clips: Sequence[str]) -> list[int]:
    return [assignment.classes.index(clip.rpartition("_")[2]) for clip in clips]


class LearningSearch(Search):
    """A search whose folds have several epochs."""

    def report(self, assignment: FoldAssignment, *, more: bool = True) -> FoldAssignment | None:
        """Count the fold; the next one, if there is one."""
        with self.harness.sessions.begin() as session:
            try:
                key, settings = key_of(assignment.lease), self.harness.settings
                return reports.report(session, key, learnt(assignment), settings, more=more).next
            except LeaseSuperseded:
                return None


@pytest.fixture
def search(harness: Harness) -> LearningSearch:
    return LearningSearch(harness)


LONG = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.mark.parametrize(
    ("choice", "objective", "storms"),
    [
        ("best_common", "uar", 1),
        ("validation", "uf1", 1),
        *(pytest.param(*which, 12, marks=LONG) for which in product(CHOICES, OBJECTIVES)),
    ],
)
def test_every_interleaving_counts_what_the_predictions_say(
    search: LearningSearch, choice: str, objective: str, storms: int
) -> None:
    spec = {"epoch_choice": choice, "objective": objective, "feedback_delay": 2}
    rules = [
        {"rule": "median", "startup_trials": 2, "warmup_folds": 1},
        {"rule": "bound", "threshold": THRESHOLD},
    ]
    calm = search.calm(**spec, pruning=rules)
    check(search, calm, choice, objective)
    rng = random.Random(f"{choice} {objective}")
    for _ in range(storms):
        stormy = search.stormy(
            rng, workers=rng.randint(2, 5), workers_per_trial=rng.randint(1, 3), **spec, pruning=rules
        )
        assert stormy.of_trials == calm.of_trials
        check(search, stormy, choice, objective)


def test_a_study_with_one_epoch_for_all_folds_survives_a_move(search: LearningSearch) -> None:
    rules = [{"rule": "median", "startup_trials": 2, "warmup_folds": 1}]
    spec = {"epoch_choice": "best_common", "objective": "uf1", "feedback_delay": 2, "pruning": rules}
    digest = search.stormy(random.Random(2), workers=4, workers_per_trial=3, **spec)
    with search.harness.sessions.begin() as session:
        lines = list(export_lines(session, digest.study))
        import_study(session, lines, search.harness.settings.cache_root, "moved")
    moved = search.digest("moved")
    assert moved.of_trials == digest.of_trials
    check(search, moved, "best_common", "uf1", bound=False)
    for number in range(moved.trials):
        assert search.harness.trial(number, "moved") == search.harness.trial(number, digest.study)
    with search.harness.sessions() as session:
        assert list(export_lines(session, "moved"))[1:] == lines[1:]

    trial = next(n for n, line in enumerate(map(json.loads, lines[1:]), start=2) if line["state"] == "complete")
    changed = json.loads(lines[trial - 1])
    changed["value"] += 0.01
    lines[trial - 1] = json.dumps(changed).encode()
    with (
        pytest.raises(InvalidInput, match=rf"line {trial}: value: is not the score of its folds"),
        search.harness.sessions.begin() as session,
    ):
        import_study(session, lines, search.harness.settings.cache_root, "changed")


def check(
    search: LearningSearch, digest: StudyDigest, choice: str, objective: str, *, bound: bool = True
) -> None:
    """Hold values, curves and counts of a study against its predictions."""
    states = set()
    with search.harness.sessions() as session:
        study = get_study(session, digest.study)
        splits = study_split(session, study)
        trials = session.scalars(select(TrialRow).where(TrialRow.study_id == study.id)).all()
        records = trial_records(session, study, trials)
        for trial, record in zip(trials, records, strict=True):
            rows = {
                row.fold: row
                for row in session.scalars(
                    select(ResultRow).where(ResultRow.trial_id == trial.id, ~ResultRow.beyond_verdict)
                )
            }
            folds = [pairs_by_epoch(rows[f].payload, splits[f], choice) for f in sorted(rows)]
            steps = [best_step(folds[: n + 1], objective) for n in range(len(folds))]
            states.add(trial.state)
            if trial.state in {TrialState.COMPLETE, TrialState.PRUNED}:
                assert list(record.curve) == pytest.approx([value for value, _ in steps])
                chosen = [epochs[min(steps[-1][1], len(epochs) - 1)] for epochs in folds]
                pooled = list(chain.from_iterable(chosen))
                assert (trial.uar, trial.uf1) == pytest.approx((uar(pooled), uf1(pooled)))
                for row, pairs in zip((rows[f] for f in sorted(rows)), chosen, strict=True):
                    assert (row.correct, row.clips) == (sum(t == p for t, p in pairs), len(pairs))
                    assert row.confusion == [[pairs.count((t, p)) for p in (0, 1)] for t in (0, 1)]
            if trial.state == TrialState.COMPLETE:
                assert trial.value == pytest.approx(steps[-1][0])
            if bound and trial.state in {TrialState.COMPLETE, TrialState.PRUNED}:
                labels = [split.labels for split in splits]
                out_of_reach = [
                    n for n in range(1, len(labels)) if reachable(folds[:n], labels[n:], objective) < THRESHOLD
                ]
                if trial.pruned is not None and trial.pruned["rule"] == "bound":
                    assert out_of_reach[0] == len(folds)
                else:
                    # Another rule may end a trial on the same fold.
                    assert not out_of_reach or out_of_reach[0] >= len(folds)
    assert states >= {TrialState.COMPLETE, TrialState.PRUNED}


def pairs_by_epoch(payload: dict[str, Any], split: StudyFoldRow, choice: str) -> list[Pairs]:
    """True and predicted labels of a fold at each epoch that may count for its trial."""
    labels = split.labels
    epochs = [list(zip(labels, epoch["predicted"], strict=True)) for epoch in payload["epochs"]]
    if choice == "best_per_fold":
        return [max(epochs, key=lambda pairs: sum(t == p for t, p in pairs))]
    if payload["epochs"][0]["loss"] is None:
        # Nothing was trained, so nothing is right.
        return [[(label, 1 - label) for label in labels]]
    if choice == "validation":
        right = [
            sum(t == p for t, p in zip(split.validation_labels, epoch["validation_predicted"], strict=True))
            for epoch in payload["epochs"]
        ]
        return [epochs[right.index(max(right))]]
    return epochs[-1:] if choice == "last" else epochs


def best_step(folds: list[list[Pairs]], objective: str) -> tuple[float, int]:
    """The highest score of these folds at one epoch, and the first such epoch."""
    score = {"accuracy": accuracy, "uar": uar, "uf1": uf1}[objective]
    values = [
        score(list(chain.from_iterable(epochs[min(e, len(epochs) - 1)] for epochs in folds)))
        for e in range(max(map(len, folds)))
    ]
    return max(values), values.index(max(values))


def reachable(folds: list[list[Pairs]], to_come: list[list[int]], objective: str) -> float:
    """The highest score of a trial whose other clips may be predicted in any way at any epoch."""
    clips = list(chain.from_iterable(to_come))
    outcomes = [
        [[list(zip(clips, predicted, strict=True))]] for predicted in product((0, 1), repeat=len(clips))
    ]
    return max(best_step([*folds, *outcome], objective)[0] for outcome in outcomes)


def accuracy(pairs: Pairs) -> float:
    return sum(t == p for t, p in pairs) / len(pairs)


def uar(pairs: Pairs) -> float:
    return fmean(accuracy([pair for pair in pairs if pair[0] == label]) for label in {t for t, _ in pairs})


def uf1(pairs: Pairs) -> float:
    def f1(label: int) -> float:
        both = sum(t == p == label for t, p in pairs)
        return 2 * both / sum((t == label) + (p == label) for t, p in pairs)

    return fmean(map(f1, {t for t, _ in pairs}))
