"""The readings of the best epoch of several runs, beside each other: what the choice of the epoch gave away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from pydantic import BaseModel, ConfigDict

from report.table import Percent, Table
from services.contracts import ReadingsView
from services.contracts.base import EpochChoice
from services.score_names import READING_NAMES


class ReadingOfRuns(BaseModel):
    """One reading of the best epoch, in each of several runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    choice: EpochChoice
    accuracies: tuple[float, ...]
    """Of each run."""

    epochs: tuple[int | None, ...]
    """The epoch that counts in each run, from 1; null if each fold has its own."""

    mean: float
    """Mean of the accuracies."""


def readings_of_runs(runs: Sequence[ReadingsView]) -> tuple[ReadingOfRuns, ...]:
    """The readings that all runs recorded."""
    by_choice = [{reading.choice: reading for reading in run.readings} for run in runs]
    found = []
    for choice in READING_NAMES:
        of_runs = [readings.get(choice) for readings in by_choice]
        accuracies = [one.accuracy for one in of_runs if one is not None and one.accuracy is not None]
        if len(accuracies) == len(runs):
            found.append(
                ReadingOfRuns(
                    choice=choice,
                    accuracies=tuple(accuracies),
                    epochs=tuple(None if one is None else one.epoch for one in of_runs),
                    mean=fmean(accuracies),
                )
            )
    return tuple(found)


def readings_table(
    name: str, runs: Sequence[str], readings: Mapping[str, Sequence[ReadingOfRuns]], counted: EpochChoice
) -> Table:
    """A row for each reading of each configuration.

    Args:
        name: of the table.
        runs: titles of the columns with accuracies.
        readings: by the name of the configuration.
        counted: the reading that counts.
    """
    return Table(
        name=name,
        caption="Accuracy under each reading of the best epoch",
        columns=("", "Reading", *runs, "Mean"),
        rows=[
            (
                configuration,
                READING_NAMES[reading.choice] + (" (counts)" if reading.choice == counted else ""),
                *map(Percent, (*reading.accuracies, reading.mean)),
            )
            for configuration, of_configuration in readings.items()
            for reading in of_configuration
        ],
    )


def given_away(readings: Sequence[ReadingOfRuns], counted: EpochChoice) -> str | None:
    """What the choice of the epoch added to the accuracy, without the beginning of the sentence.

    None if the last epoch counts or was not recorded.
    """
    means = {reading.choice: reading.mean for reading in readings}
    if counted == "last" or not {"last", counted} <= set(means):
        return None
    gained = means[counted] - means["last"]
    return (
        f"counting the {READING_NAMES[counted]} instead of the last epoch changed the accuracy by "
        f"{100 * gained:+.2f} points, from {100 * means['last']:.2f} to {100 * means[counted]:.2f} %."
    )


def number_of_clips(clips: int, subjects: int | None) -> str:
    """What n is, such as `n = 70 clips of 10 people`."""
    return f"n = {clips} clips" + ("" if subjects is None else f" of {subjects} people")
