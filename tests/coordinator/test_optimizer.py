"""Suggestions: a pure function of study, history and number, inside the space, that learns."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from coordinator.optimizer import TrialRecord, suggest
from services.contracts import StudySpec, TrialState
from services.search_space import ParameterValue, Range, SearchSpace

Parameters = dict[str, ParameterValue]

SMALL = {"activation": ["ReLU", "ELU", "Mish"], "dropout": {"low": 0.0, "high": 1.0}}


def study(space: dict[str, Any] | None = None, *, startup: int = 2, **given: Any) -> StudySpec:
    searched = {} if space is None else {"space": space}
    return StudySpec.model_validate(
        {"name": "s", "cache": "c", "sampler": {"startup_trials": startup}, **searched, **given}
    )


def draw(space: SearchSpace, rng: random.Random) -> Parameters:
    drawn: dict[str, Any] = {}
    for name, domain in space.items():
        if not isinstance(domain, Range):
            drawn[name] = rng.choice(domain)
        elif name in {"width", "epochs"}:
            drawn[name] = rng.randint(int(domain.low), int(domain.high))
        else:
            drawn[name] = rng.uniform(domain.low, domain.high)
    return space.canonicalize(drawn)


def complete(number: int, parameters: Parameters, value: float) -> TrialRecord:
    return TrialRecord(
        number=number, state=TrialState.COMPLETE, parameters=parameters, value=value, curve=(0.5, value)
    )


def inside(space: SearchSpace, parameters: Parameters) -> bool:
    return space.canonicalize(parameters) == parameters


@pytest.fixture(scope="module")
def history() -> list[TrialRecord]:
    rng = random.Random(0)
    return [complete(n, draw(study().space, rng), rng.random()) for n in range(12)]


def test_the_same_study_history_and_number_give_the_same_suggestion(history: list[TrialRecord]) -> None:
    for number in (0, 12):
        known = history[:number]
        assert suggest(study(), known, number) == suggest(study(), list(known), number)


def test_first_suggestions_need_no_history_and_differ() -> None:
    drawn = [suggest(study(startup=10), [], number) for number in range(10)]
    assert len({str(parameters) for parameters in drawn}) == 10
    assert all(inside(study().space, parameters) for parameters in drawn)


def test_what_is_enqueued_comes_first_whatever_the_history() -> None:
    wanted = [{"activation": "Mish", "dropout": 0.123456}, {"dropout": 1, "activation": "ReLU"}]
    spec = study(SMALL, enqueue=wanted)
    past = preferring("ELU", best_dropout=0.5)
    assert suggest(spec, past, 0) == {"activation": "Mish", "dropout": 0.1235}
    assert list(suggest(spec, [], 1).items()) == [("activation", "ReLU"), ("dropout", 1.0)]
    assert suggest(spec, past, 2) == suggest(study(SMALL), past, 2)


def test_numbers_seeds_and_histories_make_a_difference(history: list[TrialRecord]) -> None:
    base = suggest(study(), history, 12)
    assert base != suggest(study(), history, 13)
    assert base != suggest(study(seed=1), history, 12)
    reversed_values = [
        complete(r.number, dict(r.parameters), 1.0 - r.value) for r in history if r.value is not None
    ]
    assert base != suggest(study(), reversed_values, 12)


def test_a_study_name_makes_no_difference(history: list[TrialRecord]) -> None:
    other = study().model_copy(update={"name": "other"})
    assert suggest(other, history, 12) == suggest(study(), history, 12)


@pytest.mark.parametrize("known", [0, 12], ids=["at random", "by the model"])
def test_suggestions_are_configurations_of_table_1(history: list[TrialRecord], known: int) -> None:
    for number in range(known, known + 10):
        parameters = suggest(study(), history[:known], number)
        assert inside(study().space, parameters)
        assert list(parameters) == [name for name, _ in study().space.items()]
        assert type(parameters["clahe"]) is bool
        assert type(parameters["temporal_size"]) is int
        assert isinstance(parameters["dropout"], float)
        assert round(parameters["dropout"], 4) == parameters["dropout"]


CUSTOM = {
    "width": {"low": 4, "high": 64, "log": True},
    "epochs": {"low": 3, "high": 5},
    "learning_rate": {"low": 1e-6, "high": 1e-1, "log": True},
    "bn_momentum": {"low": 0.05, "high": 0.3},
    "batch_size": [16, 30],
    "temporal_size": [3],
    "dropout": [0.0, 0.25],
}


@pytest.mark.parametrize("known", [0, 8], ids=["at random", "by the model"])
def test_spaces_of_ones_own_are_respected(known: int) -> None:
    spec = study(CUSTOM)
    rng = random.Random(3)
    past = [complete(number, draw(spec.space, rng), rng.random()) for number in range(known)]
    drawn_by_us = [suggest(spec, past, number) for number in range(known, known + 25)]
    for parameters in drawn_by_us:
        assert inside(spec.space, parameters)
        assert type(parameters["width"]) is int
        assert type(parameters["epochs"]) is int
        assert parameters["epochs"] in {3, 4, 5}
        assert parameters["batch_size"] in {16, 30}
        assert parameters["temporal_size"] == 3
        assert parameters["dropout"] in {0.0, 0.25}
    assert {p["epochs"] for p in drawn_by_us} == {3, 4, 5}


def test_a_logarithmic_range_is_searched_by_its_exponent() -> None:
    spec = study({"learning_rate": {"low": 1e-6, "high": 1e-2, "log": True}}, startup=100)
    drawn = [suggest(spec, [], number)["learning_rate"] for number in range(60)]
    # A uniform draw would put about one in a hundred below 1e-4; by exponent it is half of them.
    assert 15 <= sum(float(rate) < 1e-4 for rate in drawn) <= 45


def preferring(option: str, *, best_dropout: float, trials: int = 24) -> list[TrialRecord]:
    """A past in which one activation and dropouts near one value did much better."""
    rng = random.Random(5)
    past = []
    for number in range(trials):
        parameters = draw(study(SMALL).space, rng)
        dropout = parameters["dropout"]
        assert isinstance(dropout, float)
        value = 0.5 + 0.3 * (parameters["activation"] == option) - 0.2 * abs(dropout - best_dropout)
        past.append(complete(number, parameters, value))
    return past


@pytest.mark.parametrize("good", ["ReLU", "ELU", "Mish"])
def test_tpe_mostly_suggests_what_did_well(good: str) -> None:
    past = preferring(good, best_dropout=0.2)
    drawn = [suggest(study(SMALL), past, number) for number in range(24, 54)]
    counts = Counter(parameters["activation"] for parameters in drawn)
    assert counts[good] > 20
    near = sum(abs(float(parameters["dropout"]) - 0.2) < 0.25 for parameters in drawn)
    assert near > 20


def test_before_the_start_up_is_over_history_is_not_used() -> None:
    past = preferring("Mish", best_dropout=0.2)
    spec = study(SMALL, startup=len(past) + 1)
    assert suggest(spec, past, 24) == suggest(spec, [], 24)


@pytest.mark.parametrize("good", ["ReLU", "Mish"])
def test_pruned_trials_count_with_their_last_accuracy(good: str) -> None:
    rng = random.Random(7)
    past = []
    for number in range(24):
        parameters = draw(study(SMALL).space, rng)
        curve = (0.5, 0.7) if parameters["activation"] == good else (0.9, 0.2)
        past.append(
            TrialRecord(number=number, state=TrialState.PRUNED, parameters=parameters, value=None, curve=curve)
        )
    drawn = Counter(suggest(study(SMALL), past, n)["activation"] for n in range(24, 54))
    assert drawn[good] > 20


@pytest.mark.parametrize("state", list(TrialState))
@pytest.mark.parametrize("curve", [(), (0.4,), (0.4, 0.6, 0.5)], ids=["no folds", "one fold", "three folds"])
def test_trials_of_every_state_are_accepted_in_the_history(
    history: list[TrialRecord], state: TrialState, curve: tuple[float, ...]
) -> None:
    value = 0.5 if state is TrialState.COMPLETE else None
    extra = TrialRecord(
        number=12, state=state, parameters=history[0].parameters, value=value, curve=curve, attributes={"a": 1}
    )
    parameters = suggest(study(), [*history, extra], 13)
    assert inside(study().space, parameters)
    assert suggest(study(), [*history, extra], 13) == parameters


def test_failed_and_cancelled_trials_teach_nothing(history: list[TrialRecord]) -> None:
    base = suggest(study(), history, 24)
    for state in (TrialState.FAILED, TrialState.CANCELLED):
        lost = [
            TrialRecord(number=12 + n, state=state, parameters=r.parameters, value=None, curve=(0.9,))
            for n, r in enumerate(history)
        ]
        assert suggest(study(), [*history, *lost], 24) == base


def test_running_trials_keep_others_away() -> None:
    past = preferring("ELU", best_dropout=0.5)
    under_way = [
        TrialRecord(
            number=24 + n, state=TrialState.RUNNING, parameters={"activation": "ELU", "dropout": d}, value=None
        )
        for n, d in enumerate((0.45, 0.5, 0.55))
    ]
    alone = [suggest(study(SMALL), past, n) for n in range(30, 50)]
    beside = [suggest(study(SMALL), [*past, *under_way], n) for n in range(30, 50)]
    assert alone != beside


def test_every_sampler_setting_is_accepted() -> None:
    past = preferring("ReLU", best_dropout=0.5)
    for multivariate in (True, False):
        for constant_liar in (True, False):
            sampler = {
                "startup_trials": 3,
                "candidates": 7,
                "multivariate": multivariate,
                "constant_liar": constant_liar,
            }
            spec = StudySpec.model_validate({"name": "s", "cache": "c", "space": SMALL, "sampler": sampler})
            assert inside(spec.space, suggest(spec, past, 24))
