"""The rule `wilcoxon` decides as Optuna's WilcoxonPruner, also where fold accuracies tie."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import replace
from typing import Any

import optuna
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coordinator.pruning.replay import accuracy_of
from coordinator.pruning.rules import decide
from services.contracts import PruneDecision
from services.pruning.rule import ComparedTrial, FoldTable
from tests.harness.judged_trials import Folds, compared, never_asked, progress, study, table

History = tuple[list[Folds], Folds]
"""Complete trials, and the first folds of a running one, on the same clips."""


WON, LOST = [(2, 2)] * 10, [(0, 2)] * 10


def against(complete: list[Folds]) -> FoldTable:
    """A fold table of these complete trials."""
    values = [accuracy_of(folds) for folds in complete]

    def best() -> ComparedTrial | None:
        if not complete:
            return None
        number = values.index(max(values))
        return compared(number=number, complete_trials=len(complete), folds=complete[number])

    return table(best_trial=best)


def ours_prunes(history: History, **given: Any) -> bool:
    complete, running = history
    spec = study({"rule": "wilcoxon", **given})
    return decide(spec, progress(running, 1000), against(complete)) is not None


def optuna_prunes(history: History, **given: Any) -> bool:
    """What Optuna's pruner says of the running trial; step = position of the fold, value = its accuracy."""
    complete, running = history
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        pruner = optuna.pruners.WilcoxonPruner(**given)
    projected = optuna.create_study(direction="maximize", pruner=pruner)
    for folds in complete:
        projected.add_trial(
            optuna.trial.create_trial(value=accuracy_of(folds), intermediate_values=values_of(folds))
        )
    return pruner.prune(
        projected,
        optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING, intermediate_values=values_of(running)
        ),
    )


def values_of(folds: Folds) -> dict[int, float]:
    return {step: correct / clips for step, (correct, clips) in enumerate(folds)}


@st.composite
def histories(draw: st.DrawFn, lengths: st.SearchStrategy[int]) -> History:
    """Trials whose folds have 1 to 4 clips; the running one equals an earlier one but for some worse folds."""
    length = draw(lengths)
    sizes = draw(st.lists(st.integers(1, 4), min_size=length + 1, max_size=length + 12))
    rng = draw(st.randoms(use_true_random=False))

    def trial(skill: float) -> Folds:
        return [(sum(rng.random() < skill for _ in range(size)), size) for size in sizes]

    complete = [trial(rng.uniform(0.4, 1)) for _ in range(draw(st.integers(0, 4)))]
    others, share = trial(rng.uniform(0, 1)), rng.random()
    alike = complete[0] if complete else others
    running = [other if rng.random() < share else own for own, other in zip(alike, others, strict=True)]
    return complete, running[:length]


@given(histories(st.integers(1, 9)))
@settings(max_examples=100, deadline=None)
# As fractions 0/3 - 1/3 and 5/6 - 3/6 tie, and the trial would go on; rounded they do not.
@example(([[(2, 2), (5, 6), (0, 3), (3, 4), (5, 6), (1, 1)]], [(1, 2), (1, 6), (1, 3), (2, 4), (3, 6)]))
def test_wilcoxon_decides_as_optunas_pruner_on_few_folds(history: History) -> None:
    assert ours_prunes(history) == optuna_prunes(history, p_threshold=0.1, n_startup_steps=2)


@given(histories(st.integers(14, 117)))
@settings(max_examples=80, deadline=None)
def test_wilcoxon_decides_as_optunas_pruner_on_many_folds(history: History) -> None:
    assert ours_prunes(history) == optuna_prunes(history, p_threshold=0.1, n_startup_steps=2)


@pytest.mark.parametrize(("worse", "prunes"), [(5, False), (6, True)])
def test_wilcoxon_decides_as_optunas_pruner_where_scipy_enumerates_all_signs(worse: int, prunes: bool) -> None:
    # One fold is better, these are worse, the others of ten are equal: the p value is 7/64 or 4/64.
    best = [(1, 2)] + [(2, 2)] * 10
    history = [best], [(2, 2)] + [(1, 2)] * worse + [(2, 2)] * (9 - worse)
    assert ours_prunes(history) == optuna_prunes(history, p_threshold=0.1, n_startup_steps=2) == prunes


@given(
    history=histories(st.integers(1, 9)),
    p_threshold=st.sampled_from([0.0, 0.0625, 0.125, 0.25, 0.5, 1.0]),
    warmup=st.integers(0, 6),
)
@settings(max_examples=60, deadline=None)
@example(history=([WON], LOST[:3]), p_threshold=0.125, warmup=0)
@example(history=([WON], LOST[:3]), p_threshold=0.25, warmup=3)
@example(history=([WON], LOST[:3]), p_threshold=0.25, warmup=4)
def test_its_settings_are_those_of_optunas_pruner(history: History, p_threshold: float, warmup: int) -> None:
    ours = ours_prunes(history, p_threshold=p_threshold, warmup_folds=warmup)
    assert ours == optuna_prunes(history, p_threshold=p_threshold, n_startup_steps=warmup)


def test_a_trial_is_pruned_after_the_fourth_fold_in_which_it_is_worse() -> None:
    worse = [ours_prunes(([WON], [(1, 2)] * folds)) for folds in range(1, 10)]
    # The p value after n folds is 1 / 2^n, and 1 / 8 is above 0.1.
    assert worse == [False] * 3 + [True] * 6


def test_a_trial_that_is_worse_on_its_folds_goes_on_while_its_mean_is_that_of_the_best_trial() -> None:
    best = [(4, 4)] * 5 + [(0, 4)] * 5
    assert not ours_prunes(([best], [(3, 4)] * 5))
    assert not ours_prunes(([best], [(2, 4)] * 5))
    assert ours_prunes(([best], [(1, 4)] * 5))


def test_it_waits_for_complete_trials() -> None:
    worse = LOST[:5]
    assert decide(study({"rule": "wilcoxon"}), progress(worse, 20), table(best_trial=lambda: None)) is None
    two = [WON, [(1, 2)] * 10]
    assert not ours_prunes((two, worse), startup_trials=3)
    assert ours_prunes((two, worse), startup_trials=2)
    assert ours_prunes((two[:1], worse))


def test_nobody_is_asked_in_the_warm_up() -> None:
    spec = study({"rule": "wilcoxon", "warmup_folds": 5})
    assert decide(spec, progress(LOST[:4], 20), table(best_trial=never_asked)) is None
    assert decide(spec, progress(LOST[:5], 20), against([WON])) is not None


def test_it_says_what_it_compared() -> None:
    so_far = replace(progress([(1, 2)] * 4, 10), order=[4, 2, 0, 1, 3])
    decision = decide(study({"rule": "wilcoxon"}), so_far, against([[(0, 2)] * 5, [(2, 2)] * 5]))
    assert decision == PruneDecision(
        rule="wilcoxon",
        fold=1,
        numbers={
            "p_value": 1 / 16,
            "mean_fold_accuracy": 0.5,
            "mean_of_best": 1.0,
            "folds": 4,
            "best_trial": 1,
            "complete_trials": 2,
        },
    )


def test_contracts_and_rules_load_no_numbers_library() -> None:
    code = "import sys, services.contracts; print(*{'numpy', 'scipy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == []


def test_a_decision_loads_no_scipy() -> None:
    code = (
        "import sys; from services.signed_ranks import one_sided_p_value; one_sided_p_value([-0.5] * 20);"
        "print(*{'scipy', 'numpy'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["numpy"]
