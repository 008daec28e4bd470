"""What is kept between suggestions changes none of them; the samplers that need no model; inherited trials."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from coordinator.optimizer import Search, TrialRecord, distributions, suggest
from services.contracts import StudySpec, TrialState
from services.search_space import ParameterValue
from services.seeds import derive_seed

SPACE: dict[str, Any] = {
    "activation": ["ReLU", "ELU", "Mish"],
    "clahe": [True],
    "epochs": {"low": 3, "high": 9},
    "dropout": {"low": 0.0, "high": 1.0},
}
GRID: dict[str, Any] = {"activation": ["ReLU", "ELU", "Mish"], "clahe": [True, False]}


def study(
    sampler: dict[str, Any] | None = None, space: dict[str, Any] | None = None, **given: Any
) -> StudySpec:
    return StudySpec.model_validate(
        {
            "name": "s",
            "cache": "c",
            "space": space or SPACE,
            "sampler": sampler or {"startup_trials": 3},
            "trials": 6,
            **given,
        }
    )


def ended(record: TrialRecord, state: TrialState, rng: random.Random) -> TrialRecord:
    curve = tuple(rng.random() for _ in range(rng.randint(1, 5)))
    return replace(record, state=state, curve=curve, value=curve[-1] if state == TrialState.COMPLETE else None)


def asked_of_optuna(spec: StudySpec, history: Sequence[TrialRecord], number: int) -> dict[str, ParameterValue]:
    """The suggestion of Optuna's own `ask` on a study made of nothing but this history."""
    states = {
        TrialState.COMPLETE: optuna.trial.TrialState.COMPLETE,
        TrialState.PRUNED: optuna.trial.TrialState.PRUNED,
        TrialState.FAILED: optuna.trial.TrialState.FAIL,
        TrialState.CANCELLED: optuna.trial.TrialState.FAIL,
    }
    sampler = optuna.samplers.TPESampler(
        n_startup_trials=3,
        n_ei_candidates=24,
        seed=derive_seed("sampler", spec.seed, number) % 2**32,
        multivariate=spec.sampler.kind == "tpe" and spec.sampler.multivariate,
        constant_liar=True,
    )
    asked = optuna.create_study(direction="maximize", sampler=sampler)
    for record in history:
        state = states.get(record.state, optuna.trial.TrialState.RUNNING)
        asked.add_trial(
            optuna.trial.create_trial(
                state=state,
                params=dict(record.parameters),
                distributions=distributions(spec.space),
                value=record.value,
                intermediate_values={len(record.curve): record.curve[-1]} if record.curve else {},
            )
        )
    return spec.space.canonicalize(asked.ask(distributions(spec.space)).params)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), multivariate=st.booleans())
def test_a_search_that_is_kept_suggests_what_a_new_one_and_optuna_itself_do(
    seed: int, multivariate: bool
) -> None:
    rng = random.Random(seed)
    spec = study({"startup_trials": 3, "multivariate": multivariate}, seed=seed, trials=20)
    kept = Search(spec)
    history: list[TrialRecord] = []
    for number in range(14):
        news = [r for r in history if r.number >= kept.n_observed or r.number in kept.under_way]
        kept.observe(news)
        suggested = kept.suggest(number)
        assert suggested == suggest(spec, history, number)
        assert suggested == asked_of_optuna(spec, history, number)
        history.append(TrialRecord(number=number, state=TrialState.READY, parameters=suggested, value=None))
        for index, record in enumerate(history):
            if record.state.over or rng.random() < 0.4:
                continue
            state = rng.choice([s for s in TrialState if s != TrialState.READY])
            running = state == TrialState.RUNNING
            history[index] = replace(record, state=state) if running else ended(record, state, rng)


def test_a_search_knows_which_trials_it_must_observe_again() -> None:
    rng = random.Random(0)
    search = Search(study())
    ready = [
        TrialRecord(number=n, state=TrialState.READY, parameters=search.suggest(n), value=None)
        for n in range(3)
    ]
    search.observe(ready)
    search.observe([ended(ready[1], TrialState.COMPLETE, rng), replace(ready[2], state=TrialState.RUNNING)])
    assert search.n_observed == 3
    assert search.under_way == {0, 2}


def test_random_draws_do_not_depend_on_what_came_of_others() -> None:
    spec = study({"kind": "random"})
    rng = random.Random(1)
    drawn = [suggest(spec, [], number) for number in range(30)]
    history = [
        ended(TrialRecord(number=n, state=TrialState.READY, parameters=p, value=None), TrialState.COMPLETE, rng)
        for n, p in enumerate(drawn)
    ]
    assert suggest(spec, history, 30) == suggest(spec, [], 30)
    assert {parameters["activation"] for parameters in drawn} == {"ReLU", "ELU", "Mish"}
    assert {parameters["epochs"] for parameters in drawn} == set(range(3, 10))
    assert len({parameters["dropout"] for parameters in drawn}) == 30
    assert suggest(spec, [], 0) != suggest(study({"kind": "random"}, seed=1), [], 0)


def test_a_grid_gives_every_configuration_once_in_the_order_that_was_asked_for() -> None:
    everything = [dict(zip(GRID, values, strict=True)) for values in product(*GRID.values())]
    plain = study({"kind": "grid", "order": "lexicographic"}, GRID)
    assert [suggest(plain, [], number) for number in range(6)] == everything
    orders = []
    for seed in range(3):
        spec = study({"kind": "grid"}, GRID, seed=seed)
        kept = Search(spec)
        order = [kept.suggest(number) for number in (3, 0, 1, 2, 4, 5)]
        assert order == [suggest(spec, [], number) for number in (3, 0, 1, 2, 4, 5)]
        orders.append(order)
        assert sorted(order, key=str) == sorted(everything, key=str)
    assert orders[0] != orders[1] or orders[1] != orders[2]


def test_what_is_enqueued_goes_first_and_the_grid_goes_on_behind_it() -> None:
    one = {"activation": "Mish", "clahe": False}
    spec = study({"kind": "grid", "order": "lexicographic"}, GRID, enqueue=[one], trials=7)
    everything = [dict(zip(GRID, values, strict=True)) for values in product(*GRID.values())]
    enqueued: dict[int, dict[str, ParameterValue]] = {2: {"activation": "ReLU", "clahe": False}}
    suggested = [suggest(spec, [], number, enqueued=enqueued) for number in range(6)]
    assert suggested == [one, everything[0], enqueued[2], *everything[1:4]]
    tpe = study()
    wanted: dict[str, ParameterValue] = {"activation": "ELU", "clahe": True, "epochs": 5, "dropout": 0.123456}
    assert suggest(tpe, [], 4, enqueued={4: wanted}) == {**wanted, "dropout": 0.1235}
    assert suggest(tpe, [], 5, enqueued={4: wanted}) == suggest(tpe, [], 5)


def test_inherited_trials_teach_like_the_studys_own() -> None:
    rng = random.Random(5)
    spec = study(space={"activation": ["ReLU", "ELU", "Mish"], "dropout": {"low": 0.0, "high": 1.0}})
    past = []
    for number in range(24):
        parameters = spec.space.canonicalize(
            {"activation": rng.choice(["ReLU", "ELU", "Mish"]), "dropout": rng.random()}
        )
        value = 0.5 + 0.3 * (parameters["activation"] == "Mish")
        past.append(
            TrialRecord(
                number=number, state=TrialState.COMPLETE, parameters=parameters, value=value, curve=(value,)
            )
        )
    drawn = [suggest(spec, [], number, inherited=past)["activation"] for number in range(20)]
    assert drawn.count("Mish") > 13
    assert drawn == [suggest(spec, past, number)["activation"] for number in range(20)]


@pytest.mark.parametrize("trials", ["all", "complete", "best 20"])
def test_a_warm_start_says_which_trials(trials: str) -> None:
    spec = study(warm_start={"study": "first", "trials": trials})
    assert spec.warm_start is not None
    assert spec.warm_start.best == (20 if trials == "best 20" else None)


def test_a_warm_start_is_refused_where_it_is_of_no_use() -> None:
    for sampler, space in (({"kind": "random"}, SPACE), ({"kind": "grid"}, GRID)):
        with pytest.raises(ValidationError, match="learns from no trials"):
            study(sampler, space, warm_start={"study": "first"})
    for trials in ("best", "best 0", "worst 3", ""):
        with pytest.raises(ValidationError, match=r"warm_start\.trials"):
            study(warm_start={"study": "first", "trials": trials})


def test_a_sampler_without_a_kind_is_tpe_and_an_unknown_kind_is_named() -> None:
    assert study({"startup_trials": 4}).sampler.kind == "tpe"
    assert StudySpec.model_validate(study({"kind": "random"}).model_dump(mode="json")).sampler.kind == "random"
    with pytest.raises(ValidationError, match="annealing"):
        study({"kind": "annealing"})
    with pytest.raises(ValidationError, match=r"sampler\.random\.candidates"):
        study({"kind": "random", "candidates": 3})
