"""Workers that run a study in simulated time, by the coordinator's policy and without a database.

The order of candidates is that of `coordinator.scheduling.claims.grant_any`, trials are suggested when
`coordinator.leader.asking` would suggest them, and verdicts come from the coordinator's own pruning functions.
The sampler and the network take no time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import ceil

from coordinator.pruning.knowledge import known_below
from coordinator.pruning.replay import CompleteTrials, Folds
from coordinator.pruning.rules import first_decision, folds_judged
from coordinator.settings import CoordinatorSettings
from services.contracts import PruneDecision, StudySpec
from services.running_scores import at_one_epoch

ASK_AHEAD = CoordinatorSettings.ask_ahead
HEARTBEAT_SECONDS = CoordinatorSettings.heartbeat_seconds

FASTEST_SECONDS, SECONDS_RATIO = 20.0, 20.0
"""Seconds of a fold of the fastest trials, and how many times slower the slowest are."""


@dataclass(frozen=True, kw_only=True)
class TrialToRun:
    """What happens to a trial when workers run it."""

    folds: Folds
    """(correct, clips) of every fold, by index."""

    seconds: Sequence[float]
    """Seconds that a worker takes for every fold, by index; all positive."""


Suggest = Callable[[int, Sequence[int]], TrialToRun]
"""Gives the trial of a number, knowing the results of the trials of these numbers, in ascending order."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """What workers did with a study; times are summed over the workers, in seconds."""

    seconds: float
    """Seconds from the start to the end of the last trial."""

    suggested_at: float
    """Seconds from the start until the last trial was suggested."""

    waiting: float
    """Time without a fold until the last trial was suggested."""

    waiting_at_end: float
    """Time without a fold after that."""

    working: float
    """Time spent on folds, whether they counted or not."""

    thrown_away: float
    """Part of `working` for folds beyond a verdict, finished or abandoned."""

    pruned: dict[int, PruneDecision]
    """Decision on each pruned trial, by its number."""

    most_open: int
    """Largest number of trials that were open at the same time."""


def run_study(spec: StudySpec, suggest: Suggest, *, workers: int, help_at_end: bool = True) -> Course:
    """Run all trials of a study.

    Args:
        spec: gives the number of trials, the rules, the delay and how workers help. Folds run by index.
        suggest: called once for each number, in ascending order.
        workers: number of workers, which all start at second 0.
        help_at_end: False if workers may exceed `workers_per_trial` only until all trials have been suggested,
            which the coordinator does not offer.
    """
    return _Study(spec, suggest, workers, help_at_end).run()


@dataclass(eq=False, kw_only=True)
class _Trial:
    number: int
    run: TrialToRun
    clips: int
    pending: deque[int]
    done: set[int] = field(default_factory=set)
    leases: list[_Lease] = field(default_factory=list)
    judged: int = 0
    started: bool = False


@dataclass(eq=False, kw_only=True)
class _Lease:
    trial: _Trial
    fold: int
    granted: float
    end: float
    abandoned: bool = False


class _Study:
    def __init__(self, spec: StudySpec, suggest: Suggest, workers: int, help_at_end: bool) -> None:
        self._spec, self._suggest, self._help_at_end = spec, suggest, help_at_end
        self._now = 0.0
        self._events: list[tuple[float, int, _Lease]] = []
        self._granted = 0
        self._idle = workers
        self._open: dict[int, _Trial] = {}
        self._ready = 0
        self._ended: set[int] = set()
        self._complete: CompleteTrials | None = None
        self._suggested = 0
        self._suggested_at = 0.0
        self._waited = self._waited_until_last = self._working = self._thrown_away = 0.0
        self._most_open = 0
        self._pruned: dict[int, PruneDecision] = {}

    def run(self) -> Course:
        self._serve_idle()
        while self._open:
            end, _, lease = heappop(self._events)
            if end != lease.end:
                # It was abandoned and has another event.
                continue
            self._waited += self._idle * (end - self._now)
            self._now = end
            self._working += end - lease.granted
            self._report(lease)
            self._serve_idle()
        return Course(
            seconds=self._now,
            suggested_at=self._suggested_at,
            waiting=self._waited_until_last,
            waiting_at_end=self._waited - self._waited_until_last,
            working=self._working,
            thrown_away=self._thrown_away,
            pruned=self._pruned,
            most_open=self._most_open,
        )

    def _serve_idle(self) -> None:
        self._add_trials()
        while self._idle and self._grant_any():
            self._idle -= 1
            self._add_trials()

    def _add_trials(self) -> None:
        while (
            self._ready < ASK_AHEAD
            and self._suggested < self._spec.trials
            and not (self._open and self._must_wait_for_lowest())
        ):
            number = self._suggested
            below = known_below(self._spec, number)
            known = sorted(other for other in self._ended if below is None or other < below)
            run = self._suggest(number, known)
            self._open[number] = _Trial(
                number=number,
                run=run,
                clips=sum(clips for _, clips in run.folds),
                pending=deque(range(len(run.folds))),
            )
            self._suggested += 1
            self._ready += 1
            self._most_open = max(self._most_open, len(self._open))
            self._suggested_at, self._waited_until_last = self._now, self._waited

    def _must_wait_for_lowest(self) -> bool:
        """Whether the next trial must know the open trial of lowest number."""
        below = known_below(self._spec, self._suggested)
        # Trials are opened in order of their numbers.
        return below is not None and next(iter(self._open)) < below

    def _no_trial_can_start(self) -> bool:
        if self._spec.feedback_delay is None or not self._open:
            return False
        if self._suggested == self._spec.trials:
            return self._help_at_end
        return self._must_wait_for_lowest()

    def _grant_any(self) -> bool:
        help_all = self._spec.idle_workers_help and self._no_trial_can_start()
        best: tuple[int, int] | None = None
        for number, trial in self._open.items():
            if not trial.pending:
                continue
            has_room = len(trial.leases) < self._spec.workers_per_trial
            if has_room or help_all:
                rank = 3 if not has_room else 2 if trial.leases else 0 if trial.started else 1
                best = min(best, (rank, number)) if best else (rank, number)
        if best is None:
            return False
        self._grant(self._open[best[1]])
        return True

    def _grant(self, trial: _Trial) -> None:
        if not trial.started:
            trial.started = True
            self._ready -= 1
        fold = trial.pending.popleft()
        lease = _Lease(trial=trial, fold=fold, granted=self._now, end=self._now + trial.run.seconds[fold])
        trial.leases.append(lease)
        self._enqueue(lease)

    def _enqueue(self, lease: _Lease) -> None:
        # The count decides between events of the same time.
        self._granted += 1
        heappush(self._events, (lease.end, self._granted, lease))

    def _report(self, lease: _Lease) -> None:
        """Count the fold of a lease that has ended, and grant its worker the next one."""
        trial = lease.trial
        if lease.abandoned:
            self._thrown_away += self._now - lease.granted
        else:
            trial.leases.remove(lease)
            trial.done.add(lease.fold)
            self._judge(trial)
            if trial.number in self._open and trial.pending:
                self._grant(trial)
                return
        if not self._grant_any():
            self._idle += 1

    def _judge(self, trial: _Trial) -> None:
        folds, length = trial.run.folds, trial.judged
        while length in trial.done:
            length += 1
        if length == trial.judged:
            return
        if self._complete is None:
            self._complete = CompleteTrials(range(len(folds)))
        decision = first_decision(
            self._spec,
            self._complete.order,
            at_one_epoch(folds[:length]),
            trial.clips,
            self._complete.table(known_below(self._spec, trial.number)),
            judged=trial.judged,
        )
        trial.judged = length
        if decision is not None:
            self._pruned[trial.number] = decision
            beyond = trial.done.difference(folds_judged(self._complete.order, decision))
            self._thrown_away += sum(trial.run.seconds[fold] for fold in beyond)
            self._end(trial)
        elif length == len(folds):
            self._complete.add(trial.number, at_one_epoch(folds))
            self._end(trial)

    def _end(self, trial: _Trial) -> None:
        del self._open[trial.number]
        self._ended.add(trial.number)
        for lease in trial.leases:
            # Its worker learns it with its next heartbeat, or with its result.
            lease.abandoned = True
            beats = ceil((self._now - lease.granted) / HEARTBEAT_SECONDS)
            notice = lease.granted + max(beats, 1) * HEARTBEAT_SECONDS
            if notice < lease.end:
                lease.end = notice
                self._enqueue(lease)
