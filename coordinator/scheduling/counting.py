"""Counting a finished fold: the verdict on its trial, reuse of equal folds, and the trial's next fold."""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Integer,
    any_,
    bindparam,
    func,
    select,
    update,
)
from sqlalchemy.orm import Session

from coordinator.pruning import fold_order
from coordinator.pruning.complete_trials import next_completed
from coordinator.pruning.rules import folds_judged
from coordinator.scheduling.failed_folds import fail_if_next
from coordinator.scheduling.judging import Judgement, judge, move_counts
from coordinator.scheduling.leases import PENDING, HeldLease
from coordinator.scheduling.results import reused_result
from coordinator.scheduling.trials import end_trial
from coordinator.store.fold_writes import NewLease, count_fold
from coordinator.store.folds import fold_counts, keep_scores
from coordinator.store.studies import lock_study, parsed_spec
from coordinator.store.tables import (
    FoldRow,
    ResultRow,
    StudyRow,
    TrialRow,
)
from services.contracts import (
    StudySpec,
    TrialState,
    Verdict,
)

log = structlog.get_logger()
_NEXT_FOLD = (
    select(
        FoldRow.fold,
        FoldRow.term,
        select(func.array_agg(TrialRow.id))
        .where(
            TrialRow.study_id == bindparam("study_id"),
            TrialRow.parameters_hash == bindparam("parameters_hash"),
            TrialRow.id != bindparam("trial_id"),
        )
        .scalar_subquery(),
    )
    .where(FoldRow.trial_id == bindparam("trial_id"), FoldRow.state == PENDING)
    # Without an order, folds run by index.
    .order_by(func.array_position(bindparam("order", type_=ARRAY(Integer)), FoldRow.fold), FoldRow.fold)
    .limit(1)
)
# Not joined to the above: PostgreSQL would keep a plan from when there were few results, and scan many by it.
_EQUAL = (
    select(ResultRow)
    .where(
        ResultRow.trial_id == any_(bindparam("trials", type_=ARRAY(BigInteger))),
        ResultRow.fold == bindparam("fold"),
        ResultRow.reused_from.is_(None),
    )
    .order_by(ResultRow.trial_id)
    .limit(1)
)


@dataclass(frozen=True, kw_only=True)
class NextFold:
    """A pending fold whose trial is locked."""

    fold: int
    last_term: int
    equal: ResultRow | None = None
    """Result of a trial with equal parameters that ran this fold, if the study reuses folds."""


def next_to_run(
    session: Session, study: StudyRow, spec: StudySpec, trial: TrialRow
) -> tuple[NextFold | None, Verdict | None]:
    """Count results of trials with equal parameters until a fold is left that must run.

    Equal parameters mean equal seeds on equal clips, so running these folds again would give the same results.
    The trial is judged after each of them, as if it had run it.

    Returns:
        A pair: the fold to run next, or None when the trial has ended or other workers hold the remaining
        folds; the verdict on the last fold counted, or None if none was counted.
    """
    if trial.state == TrialState.READY and spec.feedback_delay is None:
        trial.learnt_order = study.fold_order is not None
    verdict = None
    while (following := _next_fold(session, study, spec, trial)) is not None:
        if following.equal is None:
            return following, verdict
        done = fold_counts(session, [trial.id])[trial.id]
        row = reused_result(trial, following.equal)
        judgement = judge(session, study, spec, trial, row, done)
        record_result(session, study, trial, row, judgement)
        verdict = judgement.verdict
        if verdict.decision != "continue" or fail_if_next(session, study, trial):
            break
    return None, verdict


def known_next_fold(
    session: Session, study: StudyRow, spec: StudySpec, trial: TrialRow, held: HeldLease
) -> NextFold | None:
    """The trial's next fold according to what was read with the lease; None where that is not enough."""
    if not held.pending or (held.has_equals and spec.economies.reuse_folds):
        return None
    order = fold_order.order_of(session, study, trial)
    fold = next(fold for fold in order if fold in held.pending)
    return NextFold(fold=fold, last_term=held.pending[fold])


def record_result(
    session: Session,
    study: StudyRow,
    trial: TrialRow,
    row: ResultRow,
    judgement: Judgement,
    lease_of_next: NewLease | None = None,
) -> None:
    """Store the result of a fold with the verdict, which may end the trial, and the lease of the next fold."""
    verdict = judgement.verdict
    row.verdict = verdict.model_dump(mode="json")
    event = {
        "trial": trial.number,
        "fold": row.fold,
        "correct": row.correct,
        "clips": row.clips,
        "trial_accuracy": verdict.trial_accuracy,
        "reused": row.reused_from is not None,
    }
    count_fold(session, study.id, row, event, lease_of_next)
    move_counts(session, trial.id, judgement)
    if verdict.decision == "complete":
        lock_study(session, study.id)
        trial.value, trial.completed = judgement.score, next_completed(session, study.id)
        keep_scores(session, study, trial)
        end_trial(session, trial, TrialState.COMPLETE, None)
        spec = parsed_spec(study)
        if spec.fold_order == "hardest_first" and spec.feedback_delay is None:
            fold_order.learn(session, study)
    elif verdict.pruned is not None:
        trial.pruned = verdict.pruned.model_dump(mode="json")
        judged = folds_judged(fold_order.order_of(session, study, trial), verdict.pruned)
        beyond = update(ResultRow).where(ResultRow.trial_id == trial.id, ResultRow.fold.not_in(judged))
        session.execute(beyond.values(beyond_verdict=True))
        keep_scores(session, study, trial)
        reason = f"rule {verdict.pruned.rule} after fold {verdict.pruned.fold}"
        end_trial(session, trial, TrialState.PRUNED, reason)
    log.info(
        "fold_accepted" if row.reused_from is None else "fold_reused",
        study=study.name,
        trial=trial.number,
        fold=f"{row.fold + 1}/{study.fold_count}",
        correct=f"{row.correct}/{row.clips}",
        trial_accuracy=round(verdict.trial_accuracy, 4),
        decision=verdict.decision,
    )


def _next_fold(session: Session, study: StudyRow, spec: StudySpec, trial: TrialRow) -> NextFold | None:
    found = session.execute(
        _NEXT_FOLD,
        {
            "study_id": study.id,
            "trial_id": trial.id,
            "parameters_hash": trial.parameters_hash,
            "order": list(fold_order.order_of(session, study, trial)) if trial.learnt_order else None,
        },
    ).one_or_none()
    if found is None:
        return None
    fold, last_term, equal_trials = found
    equal = None
    if equal_trials and spec.economies.reuse_folds:
        equal = session.scalar(_EQUAL, {"trials": equal_trials, "fold": fold})
    return NextFold(fold=fold, last_term=last_term, equal=equal)
