"""`foldwise confirm`: the best trials of a search again, with other seeds, to see how much of it was luck."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean, stdev

from pydantic import BaseModel, ConfigDict

from cli.evaluation.runs import evaluate, exactly
from client.study_client import StudyClient
from report.selection import check_cross_validated
from report.table import Percent, Table
from services.contracts import StudySpec, StudyView, TrialState, TrialView
from services.errors import NotFound
from services.search_space import ParameterValue


class Confirmed(BaseModel):
    """A trial of the search beside the same configuration with other seeds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trial: int
    parameters: dict[str, ParameterValue]
    selected: float
    """Accuracy in the search."""

    again: tuple[float, ...]
    """Accuracy with each of the other seeds."""

    mean: float
    """Of these; the one of the search is not among them."""

    deviation: float | None
    """Standard deviation over the seeds; null for a single one."""

    optimism: float
    """By how much the accuracy of the search was higher than the mean."""


class Confirmation(BaseModel):
    """What `foldwise confirm --json` prints."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: str
    complete_trials: int
    """That the best were chosen from."""

    seeds: tuple[int, ...]
    studies: tuple[str, ...]
    trials: tuple[Confirmed, ...]
    """In the order of the search, the best first."""


def confirm(
    client: StudyClient, name: str, *, top: int, seeds: int, watch: Callable[[StudyView], StudyView]
) -> Confirmation:
    """Run the best trials of a study again, without pruning, in a study for each of so many other seeds.

    A seed gives other initial weights, another order of clips and other augmented copies; the clips and the
    split are the same. So it shows how much of a selected number was the luck of its seed, not how it would do
    on other people.

    Args:
        client: with the scope write.
        name: of the study.
        top: how many of its complete trials; equal configurations count once.
        seeds: how many times each.
        watch: waits until a study is over, and returns it.

    Raises:
        NotFound: no such study, or no trial of it is complete.
        InvalidInput: it cross-validates nothing.
        Conflict: a study of one of the names to be used is another one.
        FoldwiseError: a fold could not be run.
    """
    study = client.get(name)
    check_cross_validated(study)
    complete = [trial for trial in client.trials(name) if trial.state == TrialState.COMPLETE]
    best = _best(complete, top)
    if not best:
        raise NotFound(f"study {name} has no complete trial to confirm", field="name")
    others = [study.spec.seed + number for number in range(1, seeds + 1)]
    specs = [_again(study, best, seed) for seed in others]
    results = evaluate(client, specs, watch=watch)
    confirmed = []
    for place, trial in enumerate(best):
        again = [of_seed[place].trial.value or 0.0 for of_seed in results]
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
            )
        )
    return Confirmation(
        study=name,
        complete_trials=len(complete),
        seeds=tuple(others),
        studies=tuple(spec.name for spec in specs),
        trials=tuple(confirmed),
    )


def confirmation_table(found: Confirmation) -> Table:
    """The trials confirmed, best of the search first."""
    return Table(
        name="confirmation",
        caption=f"The best trials of {found.study} again with {len(found.seeds)} other seeds",
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


def confirmation_sentence(found: Confirmation) -> str:
    """What to report instead of the search's best number."""
    first, best = found.trials[0], max(found.trials, key=lambda one: one.mean)
    spread = "" if best.deviation is None else f" +- {100 * best.deviation:.2f}"
    luck = f"{100 * first.optimism:.2f} points above" if first.optimism > 0 else "not above"
    return (
        f"The search's best, trial {first.trial} of {found.complete_trials} complete ones, was {luck} its mean "
        f"over other seeds. Trial {best.trial} is the best of these by mean: {100 * best.mean:.2f}{spread} %. "
        "In each fold the best epoch still counts, and the clips are those of the search: expect less on new "
        "people."
    )


def _best(complete: list[TrialView], top: int) -> list[TrialView]:
    best: list[TrialView] = []
    for trial in sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number)):
        if len(best) < top and all(trial.parameters != other.parameters for other in best):
            best.append(trial)
    return best


def _again(study: StudyView, best: list[TrialView], seed: int) -> StudySpec:
    return exactly(
        study.spec,
        [trial.parameters for trial in best],
        name=f"{study.name}-seed-{seed}",
        cache=f"{study.dataset}/{study.fingerprint}",
        seed=seed,
        start=True,
    )
