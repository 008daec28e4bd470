"""Follow a study until it is over: a live table in a terminal, otherwise a line per event."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

from rich.console import Console
from rich.live import Live

from cli.terminal.tables import live_view, percent
from client.study_client import StudyClient
from report.outcome import trial_outcome
from services.contracts import StudyView, TrialState, TrialView

INTERVAL_SECONDS = 1.0


def watch(
    client: StudyClient,
    name: str,
    console: Console,
    *,
    on_poll: Callable[[], None] = lambda: None,
) -> StudyView:
    """Show a study until it is over, and return its last state.

    Args:
        client: a client of the coordinator.
        name: name of the study.
        console: where to show it.
        on_poll: called before every poll of the coordinator, about once a second.
    """
    if console.is_terminal:
        return _live(client, name, console, on_poll)
    return _lines(client, name, console, on_poll)


def _live(client: StudyClient, name: str, console: Console, on_poll: Callable[[], None]) -> StudyView:
    with Live(console=console, auto_refresh=False) as live:
        while True:
            on_poll()
            study = client.get(name)
            live.update(live_view(study, client.trials(name), client.workers()), refresh=True)
            if study.state.over:
                return study
            time.sleep(INTERVAL_SECONDS)


def _lines(client: StudyClient, name: str, console: Console, on_poll: Callable[[], None]) -> StudyView:
    shown: dict[int, tuple[TrialState, int]] = {}
    started = time.monotonic()
    while True:
        on_poll()
        # Read the study before its trials: if it is over, the trials are then in their last state.
        study = client.get(name)
        for trial in client.trials(name):
            current = (trial.state, trial.folds_done)
            if shown.get(trial.number) != current and trial.state != TrialState.READY:
                elapsed = timedelta(seconds=int(time.monotonic() - started))
                console.print(f"{elapsed}  {_line(trial)}", highlight=False, soft_wrap=True)
            shown[trial.number] = current
        if study.state.over:
            return study
        time.sleep(INTERVAL_SECONDS)


def _line(trial: TrialView) -> str:
    line = (
        f"trial {trial.number:<3} {trial.state:<9} folds {trial.folds_done}/{trial.folds}  "
        f"accuracy {percent(trial.running_accuracy):>8}"
    )
    outcome = trial_outcome(trial)
    return f"{line}  {outcome}" if outcome else line
