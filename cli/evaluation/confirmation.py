"""`foldwise confirm`: repeat the best trials of a search with new seeds, to see how much was luck."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean, stdev

from pydantic import BaseModel, ConfigDict

from cli.evaluation.readings import ReadingOfRuns, given_away, number_of_clips, readings_of_runs, readings_table
from cli.evaluation.runs import run_studies, spec_of_configurations
from client.study_client import StudyClient
from report.selection import check_cross_validated
from report.table import Percent, Table
from services.contracts import StudySpec, StudyView, TrialState, TrialView
from services.contracts.base import EpochChoice, Objective
from services.errors import NotFound
from services.score_names import OBJECTIVE_NAMES
from services.search_space import ParameterValue


class Confirmed(BaseModel):
    """A trial of the search, and the same configuration repeated with other seeds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trial: int
    parameters: dict[str, ParameterValue]
    selected: float
    """What the study maximises, in the search."""

    again: tuple[float, ...]
    """The same with each of the other seeds."""

    mean: float
    """Mean of `again`; the value in the search is not included."""

    deviation: float | None
    """Standard deviation over the seeds; null for a single seed."""

    optimism: float
    """Value in the search minus the mean."""

    readings: tuple[ReadingOfRuns, ...]
    """Accuracy under each reading of the best epoch, with each of the other seeds."""


class Confirmation(BaseModel):
    """What `foldwise confirm --json` prints."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: str
    objective: Objective
    epoch_choice: EpochChoice
    clips: int
    subjects: int | None
    """Null if the coordinator does not have the study's clip cache."""

    complete_trials: int
    """Number of complete trials from which the best were selected."""

    seeds: tuple[int, ...]
    studies: tuple[str, ...]
    trials: tuple[Confirmed, ...]
    """The best trial of the search first."""


def confirm(
    client: StudyClient, name: str, *, top: int, seeds: int, watch: Callable[[StudyView], StudyView]
) -> Confirmation:
    """Repeat the best trials of a study without pruning, in one new study per seed.

    A new seed gives other initial weights, another order of clips and other augmented copies; the clips and the
    split stay the same. This shows how much of a selected accuracy was luck of the seed, but not how well the
    configuration works on other people.

    Args:
        client: a client with the scope write.
        name: name of the study.
        top: number of complete trials to repeat; equal configurations count once.
        seeds: number of new seeds.
        watch: a function that waits until a study is over, and returns it.

    Raises:
        NotFound: there is no such study, or it has no complete trial.
        InvalidInput: the study does not cross-validate.
        Conflict: a study of one of the new names exists and differs.
        FoldwiseError: a study or a trial has not completed.
    """
    study = client.get(name)
    check_cross_validated(study)
    complete = [trial for trial in client.trials(name) if trial.state == TrialState.COMPLETE]
    best = _best_distinct(complete, top)
    if not best:
        raise NotFound(f"study {name} has no complete trial to confirm", field="name")
    new_seeds = [study.spec.seed + number for number in range(1, seeds + 1)]
    specs = [_repeat_spec(study, best, seed) for seed in new_seeds]
    trials_by_seed = run_studies(client, specs, watch=watch)
    confirmed = []
    for index, trial in enumerate(best):
        again = [trials[index].trial.value or 0.0 for trials in trials_by_seed]
        selected = trial.value or 0.0
        confirmed.append(
            Confirmed(
                trial=trial.number,
                parameters=trial.parameters,
                selected=selected,
                again=tuple(again),
                mean=fmean(again),
                deviation=stdev(again) if len(again) > 1 else None,
                optimism=selected - fmean(again),
                readings=readings_of_runs([trials[index].readings for trials in trials_by_seed]),
            )
        )
    return Confirmation(
        study=name,
        objective=study.spec.objective,
        epoch_choice=study.spec.counted_epoch,
        clips=trials_by_seed[0][0].readings.clips,
        subjects=trials_by_seed[0][0].readings.subjects,
        complete_trials=len(complete),
        seeds=tuple(new_seeds),
        studies=tuple(spec.name for spec in specs),
        trials=tuple(confirmed),
    )


def confirmation_table(found: Confirmation) -> Table:
    """A row for each repeated trial, the best of the search first."""
    return Table(
        name="confirmation",
        caption=f"The best trials of {found.study} by {OBJECTIVE_NAMES[found.objective]}, repeated with "
        f"{len(found.seeds)} other seeds",
        columns=("Trial", "In the search", *(f"Seed {seed}" for seed in found.seeds), "Mean", "SD", "Optimism"),
        rows=[
            (
                one.trial,
                *(
                    Percent(share)
                    for share in (one.selected, *one.again, one.mean, one.deviation, one.optimism)
                ),
            )
            for one in found.trials
        ],
    )


def confirmed_readings_table(found: Confirmation) -> Table:
    """A row for each reading of the best epoch of each repeated trial."""
    return readings_table(
        "readings",
        [f"Seed {seed}" for seed in found.seeds],
        {f"trial {one.trial}": one.readings for one in found.trials},
        found.epoch_choice,
    )


def confirmation_sentences(found: Confirmation) -> list[str]:
    """What to report instead of the best value of the search, and what n and the choice of the epoch are."""
    first, best = found.trials[0], max(found.trials, key=lambda one: one.mean)
    spread = "" if best.deviation is None else f" +- {100 * best.deviation:.2f}"
    luck = f"{100 * first.optimism:.2f} points above" if first.optimism > 0 else "not above"
    chosen = {
        "best_per_fold": "each fold counts at its best epoch and ",
        "best_common": "the epoch is the best for these clips and ",
    }.get(found.epoch_choice, "")
    gained = given_away(best.readings, found.epoch_choice)
    return [
        f"The best trial of the search, trial {first.trial} of {found.complete_trials} complete ones, was "
        f"{luck} its mean with other seeds. By this mean, trial {best.trial} is the best: "
        f"{100 * best.mean:.2f}{spread} % ({number_of_clips(found.clips, found.subjects)}). The mean is still "
        f"optimistic, because {chosen}the clips are those of the search; expect less on new people.",
        *([] if gained is None else [f"For trial {best.trial}, {gained}"]),
    ]


def _best_distinct(complete: list[TrialView], top: int) -> list[TrialView]:
    best: list[TrialView] = []
    for trial in sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number)):
        if len(best) < top and all(trial.parameters != other.parameters for other in best):
            best.append(trial)
    return best


def _repeat_spec(study: StudyView, best: list[TrialView], seed: int) -> StudySpec:
    return spec_of_configurations(
        study.spec,
        [trial.parameters for trial in best],
        name=f"{study.name}-seed-{seed}",
        cache=f"{study.dataset}/{study.fingerprint}",
        seed=seed,
        start=True,
    )
