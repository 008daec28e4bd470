"""No number of one study, and no duty that fails, keeps the leader from serving the other studies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import DataError, SQLAlchemyError

from coordinator.leader import duties, failing
from coordinator.store import views
from coordinator.store.database import connect, database_is_gone
from coordinator.store.fold_map import fold_map
from coordinator.store.studies import get_study
from coordinator.store.tables import TrialRow
from coordinator.studies import life
from docs.make_rest import description
from services.contracts import StudySpec, TrialState
from services.errors import FoldwiseError
from tests.harness.coordinator_harness import Harness

SEMANTIC = {"SearchSpace", "Range", "enqueue", "configurations"}
"""Values of hyper-parameters, which are checked against the bounds of their parameter."""


def numbers(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Each number in a JSON schema, with the names that lead to it; `[]` stands for an item."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name not in path:
            yield from numbers(definitions[name], definitions, (*path, name))
        return
    if schema.get("type") in {"number", "integer"}:
        yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from numbers(part, definitions, (*path, name))
    for kind in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for part in schema.get(kind, ()):
            yield from numbers(part, definitions, path)
    for kind in ("items", "additionalProperties"):
        if isinstance(schema.get(kind), Mapping):
            yield from numbers(schema[kind], definitions, (*path, "[]"))


def test_every_number_of_a_request_is_bounded() -> None:
    api = description()
    found = 0
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {})
            schemas = [given["schema"] for given in content.values()]
            schemas += [parameter["schema"] for parameter in operation.get("parameters", ())]
            for schema in schemas:
                for names, number in numbers(schema, api["components"]["schemas"]):
                    if not SEMANTIC & set(names):
                        given = " ".join(number)
                        assert "inimum" in given, f"{method} {path}: {'.'.join(names)} has no minimum"
                        assert "aximum" in given, f"{method} {path}: {'.'.join(names)} has no maximum"
                        found += 1
    assert found > 60


BASES: list[dict[str, Any]] = [
    {
        "protocol": {"kind": "kfold", "k": 2},
        "sampler": {"kind": "tpe"},
        "pruning": [{"rule": "bound", "threshold": 0.5}, {"rule": "median"}, {"rule": "paired"}],
        "trial_seconds": 60,
        "study_seconds": 60,
    },
    {
        "protocol": {"kind": "loso"},
        "sampler": {"kind": "grid", "points": {"dropout": 3}},
        "space": {"dropout": {"low": 0.0, "high": 1.0}, "temporal_size": [1, 3]},
        "pruning": [],
        "trials": 6,
    },
]

LADDER = (-1, 0, 1e-300, 0.5, 1, 2, 3, 10, 100, 999, 1e4, 1e5, 1e6, 1e9, 2**31, 2e11, 1e12, 2**63, 1e300)


def extremes(base: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A spec for each of its numbers, with the smallest and the largest of `LADDER` that a spec can have."""
    whole = StudySpec.model_validate({"name": "s", "cache": "tiny", **base}).model_dump(mode="json")
    for path in leaves(whole):
        allowed = []
        for number in LADDER:
            given = deepcopy(whole)
            *where, last = path
            part: Any = given
            for key in where:
                part = part[key]
            part[last] = number
            with suppress(ValidationError, FoldwiseError):
                StudySpec.model_validate(given)
                allowed.append((f"{'.'.join(map(str, path))} = {number:g}", given))
        yield from (allowed[:1] + allowed[1:][-1:])


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, (*path, key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


@pytest.mark.parametrize("base", BASES, ids=["tpe", "grid"])
def test_no_number_of_a_study_stops_the_leader(
    harness: Harness, base: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[Mapping[str, Any]] = []
    for module in (duties, failing):
        monkeypatch.setattr(module.log, "exception", lambda event, **what: failed.append(what))
    made: list[str] = []
    for what, given in extremes(base):
        spec = {**given, "name": f"s{len(made)}", "training": {**given["training"], **CLIPS}}
        with suppress(FoldwiseError), harness.sessions.begin() as session:
            life.create(session, StudySpec.model_validate(spec), harness.settings.cache_root)
            made.append(what)
    assert len(made) > 20
    harness.create(name="quiet", trials=1)
    rounds = 0
    while not harness.study("quiet").trials[TrialState.READY]:
        # A round has a budget of time; the study's turn comes.
        harness.leader.round()
        rounds += 1
        assert rounds < len(made)
    harness.report(harness.must_claim(study="quiet"))
    harness.leader.round()
    assert harness.study("quiet").trials[TrialState.RUNNING] == 1
    assert [(what["duty"], what.get("study_id")) for what in failed] == [], dict(enumerate(made, start=1))


CLIPS = {"frames": 2, "frame_size": 16}
"""The settings that must fit the cache."""


def test_a_duty_that_fails_does_not_keep_the_others_from_being_done(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise DataError("SELECT", {}, Exception("interval out of range"))

    monkeypatch.setattr("coordinator.studies.life.overdue_studies", fail)
    harness.create(trials=1)
    assert harness.study().trials[TrialState.READY] == 1


def test_a_wrong_statement_is_not_a_database_that_is_gone(engine: Engine) -> None:
    def error_of(statement: str) -> SQLAlchemyError:
        with pytest.raises(SQLAlchemyError) as caught, engine.begin() as connection:
            connection.execute(text(statement))
        return caught.value

    assert not database_is_gone(error_of("SELECT 1/0"))
    assert not database_is_gone(error_of("SELECT clock_timestamp() - make_interval(secs => 1e300)"))
    assert not database_is_gone(error_of("SET LOCAL statement_timeout = 10; SELECT pg_sleep(5)"))
    assert database_is_gone(error_of("SELECT pg_terminate_backend(pg_backend_pid())"))
    with pytest.raises(SQLAlchemyError) as caught:
        connect("postgresql://127.0.0.1:9/x").connect()
    assert database_is_gone(caught.value)


@pytest.mark.long
def test_more_trials_than_a_statement_has_parameters(harness: Harness) -> None:
    space = {"dropout": {"low": 0.0, "high": 1.0}}
    harness.create(trials=100_000, sampler={"kind": "random"}, space=space, start=False)
    with harness.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO foldwise.trials"
                " (study_id, number, parameters, parameters_hash, state, value, completed)"
                " SELECT study.id, number, '{\"dropout\": 0.5}', number::text, 'complete', 0.5, number + 1"
                " FROM foldwise.studies study, generate_series(0, 69999) AS number"
            )
        )
    with harness.sessions.begin() as session:
        life.start(session, "s")
    harness.leader.round()
    assert harness.study().trials[TrialState.READY] == harness.settings.ask_ahead
    with harness.sessions() as session:
        study = get_study(session, "s")
        rows = session.scalars(select(TrialRow).where(TrialRow.study_id == study.id)).all()
        assert len(views.trial_views(session, study, rows)) > 70_000
        assert len(fold_map(session, study)) > 70_000
