"""Follow a study until it is over: a live table in a terminal, a line per event elsewhere."""

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

INTERVAL = 1.0


def watch(
    client: StudyClient,
    name: str,
    console: Console,
    *,
    tend: Callable[[], None] = lambda: None,
) -> StudyView:
    """Show a study until it is over; its last state.

    Args:
        tend: called about once a second.
    """
    if console.is_terminal:
        return _live(client, name, console, tend)
    return _lines(client, name, console, tend)


def _live(client: StudyClient, name: str, console: Console, tend: Callable[[], None]) -> StudyView:
    with Live(console=console, auto_refresh=False) as live:
        while True:
            tend()
            study = client.get(name)
            live.update(live_view(study, client.trials(name), client.workers()), refresh=True)
            if study.state.over:
                return study
            time.sleep(INTERVAL)


def _lines(client: StudyClient, name: str, console: Console, tend: Callable[[], None]) -> StudyView:
    told: dict[int, tuple[TrialState, int]] = {}
    started = time.monotonic()
    while True:
        tend()
        # The study is read first: what is told of trials is then never older than its end.
        study = client.get(name)
        for trial in client.trials(name):
            news = (trial.state, trial.folds_done)
            if told.get(trial.number) != news and trial.state != TrialState.READY:
                elapsed = timedelta(seconds=int(time.monotonic() - started))
                console.print(f"{elapsed}  {_line(trial)}", highlight=False, soft_wrap=True)
            told[trial.number] = news
        if study.state.over:
            return study
        time.sleep(INTERVAL)


def _line(trial: TrialView) -> str:
    line = (
        f"trial {trial.number:<3} {trial.state:<9} fold {trial.folds_done}/{trial.folds}  "
        f"accuracy {percent(trial.running_accuracy):>8}"
    )
    outcome = trial_outcome(trial)
    return f"{line}  {outcome}" if outcome else line
