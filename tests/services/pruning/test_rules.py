"""Pruning: `bound` is exact, `median` is Optuna's, `paired` as it says; in order and never in the warm-up."""

from __future__ import annotations

import importlib
import itertools
import math
import pkgutil
import random
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import services.pruning
from coordinator.pages.heat_map import rule_marks
from coordinator.pruning.rules import decide
from services.contracts import PRUNING_RULES, PruneDecision, StudySpec
from services.pruning.rule import FoldTable, Rule
from services.scores import Counts, confusion
from tests.harness.judged_trials import Folds, compared, never_asked, progress, study, table

CKPLUS_SEQUENCES = {1: 21, 2: 22, 3: 47, 4: 20, 5: 7, 6: 1}
"""CK+: how many of its 118 subjects have so many labelled sequences."""


def run(spec: StudySpec, folds: Folds) -> tuple[int, PruneDecision | None]:
    """Reports fold by fold until pruned: how many folds were run, and the decision."""
    total = sum(clips for _, clips in folds)
    for done in range(1, len(folds)):
        if decision := decide(spec, progress(folds[:done], total), table()):
            return done, decision
    return len(folds), None


def folds_strategy(max_folds: int = 15) -> st.SearchStrategy[Folds]:
    one = st.integers(1, 6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
    return st.lists(one, min_size=2, max_size=max_folds)


def curve_of(folds: Folds) -> list[float]:
    return [
        sum(c for c, _ in folds[:done]) / sum(n for _, n in folds[:done]) for done in range(1, len(folds) + 1)
    ]


# --- bound --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_the_paper_threshold_ends_a_ckplus_trial_exactly_at_its_twelfth_error(seed: int) -> None:
    rng = random.Random(seed)
    sizes = [size for size, subjects in CKPLUS_SEQUENCES.items() for _ in range(subjects)]
    assert (len(sizes), sum(sizes)) == (118, 327)
    rng.shuffle(sizes)
    wrong = set(rng.sample(range(118), 12))
    folds = [(size - (fold in wrong), size) for fold, size in enumerate(sizes)]
    spec = study({"rule": "bound", "threshold": 0.965})
    done, decision = run(spec, folds)
    twelfth = sorted(wrong)[11]
    if twelfth == 117:
        assert decision is None
        return
    assert done == twelfth + 1
    assert decision is not None
    assert decision.rule == "bound"
    assert decision.fold == twelfth
    assert decision.numbers == {
        "threshold": 0.965,
        "errors": 12,
        "errors_allowed": 11,
        "best_reachable": 315 / 327,
    }


@pytest.mark.parametrize("seed", range(5))
def test_eleven_errors_of_327_are_let_through_whatever_the_order(seed: int) -> None:
    rng = random.Random(seed)
    folds = [(0 if i < 11 else 1, 1) for i in range(327)]
    rng.shuffle(folds)
    assert run(study({"rule": "bound", "threshold": 0.965}), folds) == (327, None)


@given(folds=folds_strategy(), threshold=st.integers(0, 1000).map(lambda n: n / 1000))
@settings(max_examples=200, deadline=None)
@example(folds=[(9, 10), (10, 10)], threshold=0.95)
@example(folds=[(0, 1), (1, 1)], threshold=0.0)
def test_bound_prunes_those_that_cannot_reach_the_threshold_at_once_and_nobody_else(
    folds: Folds, threshold: float
) -> None:
    total = sum(clips for _, clips in folds)
    spec = study({"rule": "bound", "threshold": threshold})
    done, decision = run(spec, folds)
    final = Fraction(sum(correct for correct, _ in folds), total)
    if final >= Fraction(str(threshold)):
        assert decision is None
    if decision is not None:
        best_case = Fraction(total - sum(n - c for c, n in folds[:done]), total)
        assert best_case < Fraction(str(threshold))
        before = Fraction(total - sum(n - c for c, n in folds[: done - 1]), total)
        assert before >= Fraction(str(threshold))
    elif final < Fraction(str(threshold)):
        # Only the last fold put it out of reach: the trial is complete, there is nothing left to prune.
        before = Fraction(total - sum(n - c for c, n in folds[:-1]), total)
        assert before >= Fraction(str(threshold))


Clips = list[tuple[int, int]]
"""(true, predicted) label of each clip."""


@st.composite
def halves_of_a_trial(draw: st.DrawFn) -> tuple[Clips, list[int]]:
    """Clips that are counted, and the true labels of the few that are to come."""
    label = st.integers(0, 2)
    return draw(st.lists(st.tuples(label, label), max_size=8)), draw(st.lists(label, min_size=1, max_size=4))


def score_of(clips: Clips, metric: str) -> Fraction:
    """UAR or UF1 from their definitions."""
    values = []
    for label in sorted({true for true, _ in clips}):
        true = sum(t == label for t, _ in clips)
        assigned = sum(p == label for _, p in clips)
        right = sum(t == p == label for t, p in clips)
        recall, precision = Fraction(right, true), Fraction(right, assigned or 1)
        f1 = 2 * precision * recall / (precision + recall) if right else Fraction(0)
        values.append(recall if metric == "uar" else f1)
    return sum(values, start=Fraction(0)) / len(values)


@pytest.mark.parametrize("metric", ["uar", "uf1"])
@given(halves=halves_of_a_trial(), thousandths=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
@example(halves=([(0, 0), (0, 1)], [1]), thousandths=750)
@example(halves=([], [2]), thousandths=1000)
def test_bound_prunes_exactly_where_no_outcome_of_the_clips_to_come_reaches_the_threshold(
    metric: str, halves: tuple[Clips, list[int]], thousandths: int
) -> None:
    done, to_come = halves
    outcomes = itertools.product(range(3), repeat=len(to_come))
    best = max(score_of([*done, *zip(to_come, predicted, strict=True)], metric) for predicted in outcomes)

    def confusions_so_far(_length: int) -> tuple[list[Counts], list[int]]:
        counts = confusion([true for true, _ in done], [predicted for _, predicted in done], 3)
        return [counts], [to_come.count(label) for label in range(3)]

    spec = study({"rule": "bound", "threshold": thousandths / 1000, "metric": metric})
    right = sum(true == predicted for true, predicted in done)
    so_far = progress([(right, len(done))], len(done) + len(to_come))
    decision = decide(spec, so_far, table(confusions=confusions_so_far))
    assert (decision is not None) == (best < Fraction(thousandths, 1000))
    if decision is not None:
        assert decision.numbers == {
            "threshold": thousandths / 1000,
            "errors": len(done) - right,
            f"best_reachable_{metric}": float(best),
        }


# --- median -------------------------------------------------------------------------------------------------


def optuna_prunes(complete: list[list[float]], curve: list[float], *, startup: int, warmup: int) -> bool:
    """What Optuna's pruner says of a running trial with this curve; step n is the value after n folds."""
    pruner = optuna.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=warmup)
    projected = optuna.create_study(direction="maximize", pruner=pruner)
    for one in complete:
        projected.add_trial(
            optuna.trial.create_trial(value=one[-1], intermediate_values=dict(enumerate(one, start=1)))
        )
    running = projected.ask()
    for step, value in enumerate(curve, start=1):
        running.report(value, step)
    return running.should_prune()


def ours_prunes(complete: list[list[float]], folds: Folds, *, startup: int, warmup: int, of: int) -> bool:
    spec = study({"rule": "median", "startup_trials": startup, "warmup_folds": warmup})
    total = sum(clips for _, clips in folds) + of - len(folds)
    others = table(lambda step: [one[step - 1] for one in complete])
    return decide(spec, progress(folds, total), others) is not None


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Folds], Folds, int, int]:
    """Complete trials over the same folds, a running one's first folds, start-up, warm-up."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=2, max_size=8))

    def trial(count: int) -> st.SearchStrategy[Folds]:
        return st.tuples(*(st.tuples(st.integers(0, n), st.just(n)) for n in sizes[:count])).map(list)

    complete = draw(st.lists(trial(len(sizes)), max_size=6))
    running = draw(st.integers(1, len(sizes) - 1).flatmap(trial))
    return complete, running, draw(st.integers(1, 4)), draw(st.integers(0, 5))


@given(histories())
@settings(max_examples=150, deadline=None)
def test_median_decides_as_optunas_median_pruner(history: tuple[list[Folds], Folds, int, int]) -> None:
    complete, running, startup, warmup = history
    curves = [curve_of(folds) for folds in complete]
    ours = ours_prunes(curves, running, startup=startup, warmup=warmup, of=len(running) + 1)
    assert ours == optuna_prunes(curves, curve_of(running), startup=startup, warmup=warmup)


@given(
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=6),
    rng=st.randoms(use_true_random=False),
    startup=st.integers(1, 3),
    warmup=st.integers(0, 4),
)
@settings(max_examples=40, deadline=None)
def test_a_whole_search_is_pruned_as_optuna_prunes_it(
    sizes: list[int], rng: random.Random, startup: int, warmup: int
) -> None:
    spec = study({"rule": "median", "startup_trials": startup, "warmup_folds": warmup})
    pruner = optuna.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=warmup)
    projected = optuna.create_study(direction="maximize", pruner=pruner)
    complete: list[list[float]] = []
    others = table(lambda step: [curve[step - 1] for curve in complete])
    for _ in range(10):
        folds = [(rng.randint(0, size), size) for size in sizes]
        curve, running = curve_of(folds), projected.ask()
        pruned_after = None
        for done in range(1, len(folds)):
            running.report(curve[done - 1], done)
            decision = decide(spec, progress(folds[:done], sum(sizes)), others)
            assert (decision is not None) == running.should_prune()
            if decision is not None:
                pruned_after = done
                break
        if pruned_after is None:
            running.report(curve[-1], len(folds))
            projected.tell(running, curve[-1])
            complete.append(curve)
        else:
            projected.tell(running, state=optuna.trial.TrialState.PRUNED)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(max_examples=200, deadline=None)
@example([0.1, 0.2, 0.3, 1.0])
def test_the_median_is_numpys_to_the_last_bit(values: list[float]) -> None:
    spec = study({"rule": "median", "startup_trials": 1, "warmup_folds": 0})
    decision = decide(spec, progress([(0, 1)], 2), table(lambda _step: values))
    middle = float(np.percentile(values, 50))
    if decision is None:
        assert middle == 0
    else:
        assert decision.numbers["median"] == middle


@pytest.mark.parametrize(
    ("one", "other"), [("1/24", "5/18"), ("1/24", "1/2"), ("1/23", "23/24"), ("1/22", "6/13"), ("1/2", "1/4")]
)
def test_a_tie_with_the_median_of_two_is_broken_as_optuna_breaks_it(one: str, other: str) -> None:
    # Here a mean rounded in another way than Optuna's differs in the last bit, on one side of the curve.
    middle = (Fraction(one) + Fraction(other)) / 2
    curves = [[float(Fraction(one))], [float(Fraction(other))]]
    running = [(middle.numerator, middle.denominator)]
    ours = ours_prunes(curves, running, startup=2, warmup=0, of=2)
    assert ours == optuna_prunes(curves, [float(middle)], startup=2, warmup=0)


def test_median_says_what_it_compared() -> None:
    spec = study({"rule": "median", "startup_trials": 3, "warmup_folds": 2})
    asked: list[int] = []

    def others(step: int) -> list[float]:
        asked.append(step)
        return [0.5, 0.9, 0.8]

    decision = decide(spec, progress([(3, 5), (4, 5)], 20), table(others))
    assert asked == [2]
    assert decision == PruneDecision(
        rule="median", fold=1, numbers={"best_running_accuracy": 0.7, "median": 0.8, "complete_trials": 3}
    )
    assert decision.describe_numbers() == "best running accuracy 0.7, median 0.8, complete trials 3"


def test_a_trial_at_the_median_goes_on() -> None:
    spec = study({"rule": "median", "startup_trials": 1, "warmup_folds": 0})
    assert decide(spec, progress([(4, 5)], 10), table(lambda _step: [0.8])) is None
    assert decide(spec, progress([(4, 5)], 10), table(lambda _step: [0.81])) is not None


def test_the_best_of_the_curve_so_far_counts_not_its_end() -> None:
    spec = study({"rule": "median", "startup_trials": 1, "warmup_folds": 0})
    assert decide(spec, progress([(5, 5), (0, 5)], 20), table(lambda _step: [0.9])) is None


def test_too_few_complete_trials_prune_nothing() -> None:
    spec = study({"rule": "median", "startup_trials": 5, "warmup_folds": 0})
    assert decide(spec, progress([(0, 5)], 10), table(lambda _step: [1.0] * 4)) is None
    assert decide(spec, progress([(0, 5)], 10), table(lambda _step: [1.0] * 5)) is not None


@pytest.mark.parametrize(
    ("protocol", "warmup"),
    [({"kind": "loso"}, 10), ({"kind": "kfold", "k": 10}, 3), ({"kind": "kfold", "k": 5}, 3)],
)
def test_nothing_is_pruned_in_the_warm_up_and_its_default_hangs_on_the_protocol(
    protocol: dict[str, Any], warmup: int
) -> None:
    spec = study({"rule": "median", "startup_trials": 1}, protocol=protocol)
    worst = [(0, 2)] * 20
    decisions = [decide(spec, progress(worst[:n], 40), table(lambda _step: [1.0])) for n in range(1, 20)]
    assert [d is not None for d in decisions] == [n >= warmup for n in range(1, 20)]


def test_a_warm_up_that_is_given_replaces_the_default() -> None:
    spec = study({"rule": "median", "startup_trials": 1, "warmup_folds": 0})
    assert decide(spec, progress([(0, 2)], 40), table(lambda _step: [1.0])) is not None


# --- paired -------------------------------------------------------------------------------------------------

PAIRED = {"rule": "paired", "startup_trials": 1, "warmup_folds": 0}


def paired_with(folds: Folds, *, complete: int = 5) -> FoldTable:
    """A fold table whose median trial has these folds."""
    return table(median_trial=lambda: compared(number=3, complete_trials=complete, folds=folds))


@st.composite
def two_trials(draw: st.DrawFn) -> tuple[Folds, Folds, int]:
    """The folds of a trial and of another on the same clips, and how many of the trial's are done."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=3, max_size=12))
    ours, theirs = ([(draw(st.integers(0, n)), n) for n in sizes] for _ in range(2))
    return ours, theirs, draw(st.integers(1, len(sizes) - 1))


@given(trials=two_trials(), tenths=st.integers(0, 40))
@settings(max_examples=300, deadline=None)
@example(trials=([(0, 1), (1, 1), (1, 1)], [(1, 1), (1, 1), (1, 1)], 2), tenths=10)
@example(trials=([(0, 3), (0, 6), (1, 1)], [(1, 3), (2, 6), (1, 1)], 2), tenths=40)
def test_paired_prunes_where_the_mean_difference_lies_so_many_standard_errors_below_zero(
    trials: tuple[Folds, Folds, int], tenths: int
) -> None:
    ours, theirs, done = trials
    spec = study({**PAIRED, "standard_errors": tenths / 10})
    decision = decide(spec, progress(ours[:done], sum(n for _, n in ours)), paired_with(theirs))
    differences = [Fraction(a - b, n) for (a, n), (b, _) in zip(ours[:done], theirs[:done], strict=True)]
    mean = sum(differences, start=Fraction(0)) / done
    if done == 1:
        assert decision is None
        return
    variance = sum(((d - mean) ** 2 for d in differences), start=Fraction(0)) / (done - 1)
    below = mean < 0 and mean**2 > Fraction(tenths, 10) ** 2 * variance / done
    assert (decision is not None) == below
    if decision is not None:
        assert decision.fold == done - 1
        assert decision.numbers == {
            "mean_difference": pytest.approx(float(mean)),
            "standard_error": pytest.approx(math.sqrt(variance / done)),
            "folds": done,
            "median_trial": 3,
            "complete_trials": 5,
        }


def test_paired_prunes_a_trial_that_is_worse_in_every_fold_and_spares_one_that_is_worse_in_one() -> None:
    median = [(3, 3)] * 20
    assert decide(study(PAIRED), progress([(2, 3)] * 10, 60), paired_with(median)) is not None
    assert decide(study(PAIRED), progress([(3, 3)] * 9 + [(0, 3)], 60), paired_with(median)) is None


def test_paired_waits_for_start_up_trials_and_in_the_warm_up() -> None:
    median = [(1, 1)] * 30
    spec = study({"rule": "paired"})
    assert decide(spec, progress([(0, 1)] * 9, 30), table(median_trial=never_asked)) is None
    assert decide(spec, progress([(0, 1)] * 10, 30), paired_with(median, complete=4)) is None
    assert decide(spec, progress([(0, 1)] * 10, 30), table(median_trial=lambda: None)) is None
    assert decide(spec, progress([(0, 1)] * 10, 30), paired_with(median)) is not None


def test_a_decision_names_the_last_fold_of_the_trials_own_order() -> None:
    so_far = replace(progress([(0, 2), (0, 2)], 10), order=[4, 2, 0, 1, 3])
    median = decide(
        study({"rule": "median", "startup_trials": 1, "warmup_folds": 0}), so_far, table(lambda _step: [1.0])
    )
    paired = decide(study(PAIRED), so_far, paired_with([(2, 2)] * 5))
    assert median is not None
    assert paired is not None
    assert (median.fold, paired.fold) == (2, 2)


# --- rules together -----------------------------------------------------------------------------------------

BOUND = {"rule": "bound", "threshold": 0.9}
MEDIAN = {"rule": "median", "startup_trials": 1, "warmup_folds": 1}


@pytest.mark.parametrize(("rules", "first"), [((BOUND, MEDIAN), "bound"), ((MEDIAN, BOUND), "median")])
def test_the_first_rule_that_fires_is_the_decision(rules: tuple[dict[str, Any], ...], first: str) -> None:
    decision = decide(study(*rules), progress([(0, 10)], 20), table(lambda _step: [1.0]))
    assert decision is not None
    assert decision.rule == first


@pytest.mark.parametrize("rules", [(BOUND, MEDIAN), (MEDIAN, BOUND)])
def test_a_rule_that_does_not_fire_leaves_it_to_the_next(rules: tuple[dict[str, Any], ...]) -> None:
    below_median_within_reach = decide(study(*rules), progress([(9, 10)], 20), table(lambda _step: [1.0]))
    assert below_median_within_reach is not None
    assert below_median_within_reach.rule == "median"
    out_of_reach_at_the_median = decide(study(*rules), progress([(0, 10)], 20), table(lambda _step: [0.0]))
    assert out_of_reach_at_the_median is not None
    assert out_of_reach_at_the_median.rule == "bound"


def test_without_rules_nothing_is_pruned_and_nobody_is_asked() -> None:
    def never(_step: int) -> list[float]:
        raise AssertionError("asked for the other trials")

    assert decide(study(), progress([(0, 10)], 20), table(never)) is None
    assert decide(study(BOUND), progress([(10, 10)], 20), table(never)) is None


@pytest.mark.parametrize("rules", list(itertools.permutations([BOUND, MEDIAN, PAIRED])))
@pytest.mark.parametrize(
    "done", [[(4, 5), (4, 5)], [(4, 5), (0, 5)], [(3, 5), (4, 5)], [(5, 5), (5, 5)]], ids=str
)
def test_a_set_of_rules_decides_as_the_first_of_them_that_fires_alone(
    rules: tuple[dict[str, Any], ...], done: Folds
) -> None:
    others = table(
        lambda _step: [0.75],
        median_trial=lambda: compared(number=0, complete_trials=1, folds=[(5, 5), (5, 5)]),
    )
    alone = [decide(study(rule), progress(done, 20), others) for rule in rules]
    assert decide(study(*rules), progress(done, 20), others) == next(filter(None, alone), None)


# --- What the study page and the report ask of rules --------------------------------------------------------


def test_every_rule_of_the_package_can_be_named_by_a_study() -> None:
    for module in pkgutil.iter_modules(services.pruning.__path__):
        importlib.import_module(f"services.pruning.{module.name}")
    assert set(Rule.__subclasses__()) == set(PRUNING_RULES)


def test_no_two_rules_share_a_name_or_a_mark() -> None:
    assert len(rule_marks()) == len(PRUNING_RULES)
    assert len(set(rule_marks().values())) == len(PRUNING_RULES)


@pytest.mark.parametrize(
    ("rule", "words", "threshold", "compares"),
    [
        ({"rule": "bound", "threshold": 0.965}, "bound: 96.50 % out of reach", 0.965, False),
        (
            {"rule": "bound", "threshold": 0.9, "metric": "uar"},
            "bound: uar 90.00 % out of reach",
            None,
            False,
        ),
        ({"rule": "median"}, "median, from 5 complete trials on", None, True),
        ({"rule": "paired"}, "paired, 2.5 standard errors", None, True),
        ({"rule": "wilcoxon"}, "wilcoxon, p below 0.1 against the best trial", None, False),
        ({"rule": "forgiving"}, "forgiving: mean below the worst fold of the best trial", None, False),
    ],
)
def test_a_rule_says_what_the_page_and_the_report_show_of_it(
    rule: dict[str, Any], words: str, threshold: float | None, compares: bool
) -> None:
    (parsed,) = study(rule).pruning
    assert (parsed.describe(), parsed.drawn_threshold("accuracy"), parsed.compares_with_median) == (
        words,
        threshold,
        compares,
    )
