"""`bound` against every outcome, where the epoch that counts is chosen in each fold or for all folds."""

from __future__ import annotations

from fractions import Fraction
from itertools import chain, product

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.pruning.rules import first_decision
from services.contracts import StudySpec
from services.contracts.base import Objective
from services.running_scores import at_every_epoch, pooled
from services.scores import Counts
from tests.harness.judged_trials import table

CLASSES = 2
Labels = list[int]

labels = st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=2)


@st.composite
def trials(draw: st.DrawFn) -> tuple[list[tuple[Labels, list[Labels]]], list[Labels]]:
    """True labels and predictions by epoch of finished folds, and true labels of the folds to come."""
    folds = []
    for truth in draw(st.lists(labels, min_size=1, max_size=3)):
        predictions = st.lists(st.integers(0, CLASSES - 1), min_size=len(truth), max_size=len(truth))
        folds.append((truth, draw(st.lists(predictions, min_size=1, max_size=3))))
    return folds, draw(st.lists(labels, min_size=1, max_size=2))


@given(
    trial=trials(),
    objective=st.sampled_from(["accuracy", "uar", "uf1"]),
    threshold=st.integers(0, 20).map(lambda n: n / 20),
)
@settings(deadline=None)
def test_bound_ends_a_trial_exactly_where_no_epoch_can_reach_the_threshold(
    trial: tuple[list[tuple[Labels, list[Labels]]], list[Labels]], objective: Objective, threshold: float
) -> None:
    finished, to_come = trial
    folds = [at_every_epoch(truth, epochs, CLASSES) for truth, epochs in finished]
    spec = StudySpec.model_validate(
        {
            "name": "s",
            "cache": "c",
            "objective": objective,
            "epoch_choice": "best_common",
            "pruning": [{"rule": "bound", "threshold": threshold}],
        }
    )
    truths = [truth for truth, _ in finished] + to_come

    def confusions(length: int) -> tuple[list[Counts], list[int]]:
        others = list(chain.from_iterable(truths[length:]))
        return pooled(folds[:length]), [others.count(label) for label in range(CLASSES)]

    decision = first_decision(
        spec, range(len(truths)), folds, sum(map(len, truths)), table(confusions=confusions)
    )
    hopeless = [
        length
        for length in range(1, len(folds) + 1)
        if reachable(finished[:length], truths[length:], objective) < Fraction(repr(threshold))
    ]
    assert (None if decision is None else decision.fold + 1) == (hopeless[0] if hopeless else None)


def reachable(finished: list[tuple[Labels, list[Labels]]], to_come: list[Labels], objective: str) -> Fraction:
    """The highest score, at one epoch for all folds, with any predictions for the clips to come."""
    clips = list(chain.from_iterable(to_come))
    best = Fraction(0)
    for epoch in range(max(len(epochs) for _, epochs in finished)):
        known = [
            pair
            for truth, epochs in finished
            for pair in zip(truth, epochs[min(epoch, len(epochs) - 1)], strict=True)
        ]
        for predicted in product(range(CLASSES), repeat=len(clips)):
            best = max(best, exact_score([*known, *zip(clips, predicted, strict=True)], objective))
    return best


def exact_score(pairs: list[tuple[int, int]], objective: str) -> Fraction:
    """Accuracy, UAR or UF1 of true and predicted labels, by their definitions."""
    if objective == "accuracy":
        return Fraction(sum(t == p for t, p in pairs), len(pairs))
    of_class = []
    for label in {t for t, _ in pairs}:
        true, predicted = sum(t == label for t, _ in pairs), sum(p == label for _, p in pairs)
        both = sum(t == p == label for t, p in pairs)
        of_class.append(Fraction(both, true) if objective == "uar" else Fraction(2 * both, true + predicted))
    return sum(of_class, start=Fraction(0)) / len(of_class)
