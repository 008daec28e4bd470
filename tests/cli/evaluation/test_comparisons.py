"""`foldwise compare`, `confirm` and `nested`: what they run, and that their numbers are those of the tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats
from sqlalchemy import text

from cli.evaluation.comparison import (
    Candidate,
    compare,
    comparison_table,
    comparison_warnings,
    paired_tests_of,
    read_candidate,
)
from cli.evaluation.confirmation import (
    confirm,
    confirmation_sentences,
    confirmation_table,
    confirmed_readings_table,
)
from cli.evaluation.nested import nested, nested_sentence, nested_table
from cli.evaluation.runs import create_or_continue, run_studies, spec_of_configurations
from client.study_client import StudyClient
from coordinator.scheduling import reports
from coordinator.settings import CoordinatorSettings
from coordinator.store.tables import StudyFoldRow
from report.material import gather
from services.contracts import BoundRule, FoldAssignment, StudySpec, StudyView
from services.errors import Conflict, FoldwiseError, InvalidInput, NotFound
from services.folds import HeldOut, Holdout, KFold, LeaveOneSubjectOut, OuterFold
from services.search_space import SearchSpace
from tests.harness.coordinator_harness import Harness, key_of, work_until_over
from tests.harness.served_app import ADMIN_TOKEN, study_client
from tests.harness.simulated_results import make_result

FOLDS = 4
TINY_CLIPS = 10
Watch = Callable[[StudyView], StudyView]


@pytest.fixture
def client(settings: CoordinatorSettings) -> Iterator[StudyClient]:
    # The harness leads.
    with study_client(replace(settings, leader_interval=60), ADMIN_TOKEN) as client:
        yield client


@pytest.fixture
def watch(harness: Harness, client: StudyClient) -> Watch:
    """Be the workers of a study until it is over, with errors that follow from seed, trial and fold."""

    def report(assignment: FoldAssignment) -> None:
        drawn = np.random.default_rng([assignment.study_seed, assignment.trial, assignment.fold])
        harness.report(assignment, wrong=int(drawn.integers(0, 2 + assignment.trial % 2)))

    return work_until_over(harness, client, report)


SPEC = StudySpec.model_validate(
    {
        "name": "table",
        "cache": "tiny",
        "protocol": KFold(k=FOLDS),
        "training": {"frames": 2, "frame_size": 16, "width": 4},
        "seed": 3,
    }
)


def fold_accuracies(harness: Harness, study: str, trial: int) -> list[float]:
    statement = text(
        """SELECT r.correct::float / r.clips FROM foldwise.results r
        JOIN foldwise.trials t ON t.id = r.trial_id JOIN foldwise.studies s ON s.id = t.study_id
        WHERE s.name = :study AND t.number = :trial ORDER BY r.fold"""
    )
    with harness.engine.connect() as connection:
        return list(connection.scalars(statement, {"study": study, "trial": trial}))


def pooled(harness: Harness, study: str, trial: int) -> float:
    statement = text(
        """SELECT sum(r.correct)::float / sum(r.clips) FROM foldwise.results r
        JOIN foldwise.trials t ON t.id = r.trial_id JOIN foldwise.studies s ON s.id = t.study_id
        WHERE s.name = :study AND t.number = :trial"""
    )
    with harness.engine.connect() as connection:
        return float(connection.scalar(statement, {"study": study, "trial": trial}) or 0.0)


def test_a_comparison_runs_each_configuration_on_the_same_folds(
    harness: Harness, client: StudyClient, watch: Watch, tmp_path: Path
) -> None:
    harness.create(space={"dropout": [0.1, 0.4], "epochs": [4]}, protocol=KFold(k=2))
    watch(client.get("s"))
    (tmp_path / "other.yaml").write_text("activation: ELU\ndropout: 0.3\n")
    candidates = [
        Candidate(name="c1", source="s", pretrained=None),
        Candidate(name="c2", source=str(tmp_path / "other.yaml"), pretrained=None),
        Candidate(name="c3", source="s", pretrained=None),
    ]
    result = compare(client, candidates, SPEC, watch=watch)

    study = client.get("table")
    assert (study.spec.trials, study.folds_done, study.spec.pruning) == (3, 3 * FOLDS, ())
    first, second, third = result.sides
    assert (first.parameters["activation"], second.parameters["activation"]) == ("ReLU", "ELU")
    assert (second.parameters["dropout"], second.parameters["epochs"]) == (0.3, SPEC.training.epochs)
    best = client.get("s").best
    assert best is not None
    assert (first.parameters["dropout"], first.parameters["epochs"]) == (best.parameters["dropout"], 4)

    for side in result.sides:
        assert list(side.folds) == fold_accuracies(harness, "table", side.trial)
        assert side.mean == pytest.approx(fmean(side.folds))
    assert third.folds == first.folds, "equal parameters are equal folds, counted again"
    assert first.tests is None
    assert second.tests is not None
    assert third.tests is not None
    assert third.tests.two_sided is None
    assert second.tests.two_sided == pytest.approx(stats.ttest_rel(first.folds, second.folds).pvalue)
    # Nadeau and Bengio: of k folds each tests 1 / (k - 1) of what it trains on.
    t = stats.ttest_rel(first.folds, second.folds).statistic
    t *= ((1 / FOLDS) / (1 / FOLDS + 1 / (FOLDS - 1))) ** 0.5
    assert second.tests.corrected == pytest.approx(2 * stats.t.sf(abs(t), FOLDS - 1))

    table = comparison_table(result)
    assert table.columns[1:6] == ("1", "2", "3", "4", "Average")
    assert {len(row) for row in table.rows} == {len(table.columns)}
    assert "c1, c3: selected by a search on tiny itself" in " ".join(comparison_warnings(result))

    leases = harness.leases()
    assert compare(client, candidates, SPEC, watch=watch) == result, "the same call runs nothing again"
    assert harness.leases() == leases
    with pytest.raises(Conflict, match="a study table exists already and differs in trials"):
        compare(client, candidates[:2], SPEC, watch=watch)


def test_folds_of_other_clips_are_not_paired(client: StudyClient, watch: Watch) -> None:
    spec = spec_of_configurations(SPEC, [{"dropout": 0.1}], space={"dropout": [0.1]}, name="five")
    other = spec.model_copy(update={"name": "two", "protocol": KFold(k=2)})
    [[five], [two]] = run_studies(client, [spec, other], watch=watch)
    assert paired_tests_of(five, five).two_sided is None
    with pytest.raises(Conflict, match="the folds of studies five and two test different clips"):
        paired_tests_of(five, two)


def test_what_cannot_be_compared_or_confirmed_is_said_in_a_line(
    harness: Harness, client: StudyClient, tmp_path: Path
) -> None:
    harness.create()
    harness.create(name="final", protocol={"kind": "all"}, trials=1)
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps({"activation": "relu"}))
    wrong: list[tuple[list[str], type[FoldwiseError], str]] = [
        (["c1"], InvalidInput, "write NAME=STUDY"),
        (["c1=s"], InvalidInput, "two configurations or more"),
        (["c1=s", "c1=s"], InvalidInput, "two configurations are called c1"),
        (["c1=nothing", "c2=nothing"], NotFound, "no study 'nothing'"),
        (["c1=s", "c2=s"], NotFound, "study s has no complete trial"),
        (["c1=s", "c2=s@gone"], NotFound, "c2: 0 models have the id 'gone' or begin with it; there are: none"),
        (["c1=final", "c2=s"], InvalidInput, "study final trains on all clips"),
        ([f"c1={bad}", "c2=s"], InvalidInput, "unknown option 'relu' of activation"),
    ]
    for words, error, message in wrong:
        with pytest.raises(error, match=message):
            compare(client, list(map(read_candidate, words)), SPEC, watch=lambda study: study)
    with pytest.raises(InvalidInput, match="study final trains on all clips"):
        gather(client, "final")
    with pytest.raises(NotFound, match="study s has no complete trial to confirm"):
        confirm(client, "s", top=1, seeds=1, watch=lambda study: study)


def test_the_best_trials_are_run_again_with_other_seeds(
    harness: Harness, client: StudyClient, watch: Watch
) -> None:
    harness.create(
        space={"dropout": [0.1, 0.2], "clahe": [True, False]},
        trials=4,
        sampler={"kind": "grid"},
        protocol=KFold(k=2),
    )
    watch(client.get("s"))
    found = confirm(client, "s", top=2, seeds=2, watch=watch)

    by_value = sorted(client.trials("s"), key=lambda trial: (-(trial.value or 0), trial.number))
    assert [one.trial for one in found.trials] == [trial.number for trial in by_value[:2]]
    assert (found.studies, found.seeds) == (("s-seed-1", "s-seed-2"), (1, 2))
    for place, one in enumerate(found.trials):
        again = [pooled(harness, name, place) for name in found.studies]
        assert one.selected == by_value[place].value
        assert list(one.again) == pytest.approx(again)
        assert one.optimism == pytest.approx(one.selected - fmean(again))
        assert one.deviation == pytest.approx(np.std(again, ddof=1))
    for name in found.studies:
        study = client.get(name)
        assert study.split_hash == client.get("s").split_hash
        assert [trial.parameters for trial in client.trials(name)] == [one.parameters for one in found.trials]
    assert confirmation_table(found).columns[2:4] == ("Seed 1", "Seed 2")
    assert f"trial {by_value[0].number} of 4 complete ones" in confirmation_sentences(found)[0]


def test_what_an_earlier_version_began_is_continued(
    harness: Harness, client: StudyClient, watch: Watch
) -> None:
    """It ended folds at a perfect epoch, and wrote the metric of `bound` in full."""
    spec = SPEC.model_copy(update={"name": "old", "trials": 1, "pruning": (BoundRule(threshold=0.1),)})
    earlier = spec.model_copy(
        update={
            "pruning": (BoundRule(threshold=0.1, metric="accuracy"),),
            "economies": spec.economies.model_copy(update={"stop_when_perfect": True}),
        }
    )
    client.create(earlier)
    later = spec.model_copy(
        update={"economies": spec.economies.model_copy(update={"stop_when_perfect": False})}
    )
    assert create_or_continue(client, later).name == "old"
    with pytest.raises(Conflict, match="differs in pruning"):
        create_or_continue(client, later.model_copy(update={"pruning": (BoundRule(threshold=0.2),)}))


def test_a_search_is_measured_on_people_who_had_no_part_in_it(
    harness: Harness, client: StudyClient, watch: Watch
) -> None:
    spec = SPEC.model_copy(
        update={
            "name": "honest",
            "protocol": LeaveOneSubjectOut(),
            "space": SearchSpace.model_validate({"dropout": [0.1, 0.2], "clahe": [True, False]}),
            "trials": 3,
        }
    )
    found = nested(client, spec, outer=2, watch=watch)

    tested: list[str] = []
    for outer in found.folds:
        search, measurement = client.get(outer.search), client.get(outer.measurement)
        (held_out,) = client.split(outer.measurement).folds
        inside = {clip.clip_id for fold in client.split(outer.search).folds for clip in fold.clips}
        assert inside.isdisjoint(clip.clip_id for clip in held_out.clips)
        assert search.clips + measurement.clips == TINY_CLIPS
        assert search.best is not None
        assert (outer.trial, outer.selected) == (search.best.number, search.best.value)
        assert outer.correct / outer.clips == pooled(harness, outer.measurement, 0)
        (measured,) = client.trials(outer.measurement)
        assert measured.parameters == {**outer.parameters, "epochs": outer.epochs}
        task = client.fold(outer.measurement, 0, 0).task
        assert task.outer == OuterFold(k=2, fold=outer.fold)
        assert task.economies.stop_when_perfect is False
        tested.extend(clip.clip_id for clip in held_out.clips)
    assert len(set(tested)) == len(tested) == found.clips == TINY_CLIPS
    assert found.correct == sum(outer.correct for outer in found.folds)
    assert found.accuracy == found.correct / TINY_CLIPS
    assert found.optimism == pytest.approx(fmean(outer.selected for outer in found.folds) - found.accuracy)
    assert nested_table(found).text()[-1][:4] == ["all", "-", "-", str(TINY_CLIPS)]
    assert f"reaches {100 * found.accuracy:.2f} %" in nested_sentence(found)

    leases = harness.leases()
    assert nested(client, spec, outer=2, watch=watch) == found, "the same call runs nothing again"
    assert harness.leases() == leases
    with pytest.raises(InvalidInput, match="study honest-measure-1 only measures a configuration"):
        confirm(client, "honest-measure-1", top=1, seeds=1, watch=watch)
    on_held_out = spec.model_copy(update={"protocol": HeldOut(outer=OuterFold(k=2, fold=0))})
    with pytest.raises(InvalidInput, match="protocol is held_out"):
        compare(client, [read_candidate("c1=s"), read_candidate("c2=s")], on_held_out, watch=watch)
    on_split = spec.model_copy(update={"protocol": Holdout()})
    with pytest.raises(InvalidInput, match="protocol is holdout, which has no folds to pair"):
        compare(client, [read_candidate("c1=s"), read_candidate("c2=s")], on_split, watch=watch)
    with pytest.raises(InvalidInput, match="use loso, kfold or given_folds without outer"):
        nested(client, on_split, outer=2, watch=watch)


def test_the_measured_network_trains_for_as_many_epochs_as_the_folds(
    harness: Harness, client: StudyClient
) -> None:
    def report(assignment: FoldAssignment) -> None:
        """Each fold has three epochs; the best is the third in fold 2, else the second."""
        best = 2 if assignment.fold == 2 else 1
        with harness.sessions.begin() as session:
            right, wrong = (harness.result(session, assignment, wrong=n).epochs[0] for n in (0, 1))
            epochs = tuple(right if epoch == best else wrong for epoch in range(3))
            result = harness.result(session, assignment, wrong=0).model_copy(update={"epochs": epochs})
            reports.report(session, key_of(assignment.lease), result, harness.settings)

    spec = spec_of_configurations(
        SPEC, [{"dropout": 0.1}], space={"dropout": [0.1]}, name="m", protocol=LeaveOneSubjectOut()
    )
    found = nested(client, spec, outer=2, watch=work_until_over(harness, client, report))
    epochs = SPEC.training.epochs
    assert [one.epochs for one in found.folds] == [epochs, epochs]
    assert [client.fold(one.measurement, 0, 0).task.training.epochs for one in found.folds] == [epochs, epochs]
    # The last epoch of three has a wrong clip, and is the one that counts.
    assert [one.correct for one in found.folds] == [5, 3]


def test_all_readings_of_the_best_epoch_stand_beside_each_other(harness: Harness, client: StudyClient) -> None:
    epochs = 3

    def wrong(assignment: FoldAssignment) -> list[int]:
        """Wrong clips of a fold, of two, after each epoch."""
        drawn = np.random.default_rng([assignment.study_seed, assignment.trial, assignment.fold])
        return [int(n) for n in drawn.integers(0, 3, epochs)]

    def report(assignment: FoldAssignment) -> None:
        with harness.sessions.begin() as session:
            made = tuple(harness.result(session, assignment, wrong=n).epochs[0] for n in wrong(assignment))
            result = harness.result(session, assignment, wrong=0).model_copy(update={"epochs": made})
            reports.report(session, key_of(assignment.lease), result, harness.settings)

    watch = work_until_over(harness, client, report)
    training = SPEC.training.model_copy(update={"epochs": epochs})
    configurations = [{"dropout": 0.1}, {"dropout": 0.2}]
    space = SearchSpace.model_validate({"dropout": [0.1, 0.2]})
    spec = spec_of_configurations(
        SPEC, configurations, space=space, name="s", protocol=LeaveOneSubjectOut(), training=training
    )
    run_studies(client, [spec], watch=watch)
    found = confirm(client, "s", top=2, seeds=2, watch=watch)
    for place, one in enumerate(found.trials):
        for seed, name in enumerate(found.studies):
            folds = [client.fold(name, place, index).task for index in range(TINY_CLIPS // 2)]
            assert not any(task.economies.stop_when_perfect for task in folds)
            right = 2 - np.array([wrong(cast("FoldAssignment", task)) for task in folds])
            by_epoch = right.sum(axis=0)
            expected = {
                "best_per_fold": (right.max(axis=1).sum(), None),
                "best_common": (by_epoch.max(), int(by_epoch.argmax()) + 1),
                "last": (by_epoch[-1], epochs),
            }
            assert {
                reading.choice: (round(reading.accuracies[seed] * TINY_CLIPS), reading.epochs[seed])
                for reading in one.readings
            } == expected
            assert {
                reading.choice: (reading.correct, reading.epoch)
                for reading in client.readings(name, place).readings
            } == expected
    assert (found.clips, found.subjects) == (TINY_CLIPS, TINY_CLIPS // 2)
    first, *others = confirmation_sentences(found)
    assert f"(n = {TINY_CLIPS} clips of {TINY_CLIPS // 2} people)" in first
    best = max(found.trials, key=lambda one: one.mean)
    per_fold, _, last = (reading.mean for reading in best.readings)
    assert [f"{100 * (per_fold - last):+.2f} points" in sentence for sentence in others] == [True]
    assert [row[0] for row in confirmed_readings_table(found).rows] == ["trial 0"] * 3 + ["trial 1"] * 3

    honest = nested(client, spec.model_copy(update={"name": "n"}), outer=2, watch=watch)
    tasks = [client.fold(one.measurement, 0, 0) for one in honest.folds]
    clips = [len(one.task.test_clips) for one in tasks]
    right = np.array(
        [n - np.array(wrong(cast("FoldAssignment", one.task))) for n, one in zip(clips, tasks, strict=True)]
    )
    by_epoch = right.sum(axis=0)
    assert [reading.correct for reading in honest.readings] == [
        right.max(axis=1).sum(),
        by_epoch.max(),
        by_epoch[-1],
    ]
    assert honest.correct == by_epoch[-1]
    assert honest.subjects == TINY_CLIPS // 2


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"warm_start": {"study": "s"}}, "warm_start"),
        ({"study_seconds": 60}, "study_seconds"),
        ({"protocol": {"kind": "all"}, "trials": 1}, "protocol"),
        ({"protocol": {"kind": "loso", "outer": {"k": 2, "fold": 0}}}, "protocol"),
        ({"name": "n" * 54}, "name"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_anything_runs(
    client: StudyClient, changes: dict[str, Any], field: str
) -> None:
    spec = StudySpec.model_validate({**SPEC.model_dump(), "pruning": [], **changes})
    with pytest.raises(InvalidInput) as refused:
        nested(client, spec, outer=2, watch=lambda study: study)
    assert refused.value.field == field
    assert client.studies() == []


def test_held_out_clips_count_after_the_last_epoch(harness: Harness) -> None:
    harness.create(protocol={"kind": "held_out", "outer": {"k": 2, "fold": 1}}, trials=1, pruning=())
    assignment = harness.must_claim()
    result = make_result(assignment, ())
    epoch, right = result.epochs[0], (0, 1) * 2
    epochs = tuple(
        epoch.model_copy(update={"predicted": predicted, "probabilities": ((0.5, 0.5),) * 4})
        for predicted in (right, (1, 1) * 2)
    )
    with harness.sessions.begin() as session:
        labels = tuple(session.get_one(StudyFoldRow, (1, 0)).labels)
        assert labels == right
        result = result.model_copy(update={"epochs": epochs})
        reports.report(session, key_of(assignment.lease), result, harness.settings)
    (fold,) = harness.folds(0)
    assert (fold.best_epoch, fold.correct, fold.clips) == (1, 2, 4)


def test_a_study_on_held_out_clips_chooses_nothing(harness: Harness) -> None:
    with pytest.raises(ValidationError, match="protocol held_out: trials is 2"):
        harness.create(protocol={"kind": "held_out", "outer": {"k": 2, "fold": 1}}, trials=2, pruning=())
