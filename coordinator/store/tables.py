"""The tables, in their own schema `foldwise`. Optuna's tables are in the default schema.

A trial's folds are stored as rows together with the trial. The primary key of `results` is the fold, so the
database cannot count a fold twice; in the same way `leases` allows one live lease per fold. Every result comes
from a lease, from the same fold of a trial with equal parameters, or from an imported study.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Computed,
    DateTime,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    MetaData,
    Text,
    UniqueConstraint,
    false,
    func,
    text,
    true,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA = "foldwise"

_NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Maps Python types to columns; JSON keeps the order of keys, which a search space needs."""

    metadata = MetaData(schema=SCHEMA, naming_convention=_NAMES)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own declaration
        str: Text,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSON,
        list[Any]: JSON,
    }


class StudyRow(Base):
    """A study. `fold_order` is set once, when the study has learnt which folds are hardest.

    `plan` is set with the first lease.
    """

    __tablename__ = "studies"
    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    state: Mapped[str]
    reason: Mapped[str | None]
    spec: Mapped[dict[str, Any]]
    dataset: Mapped[str]
    fingerprint: Mapped[str]
    classes: Mapped[list[Any]]
    clips: Mapped[int]
    fold_count: Mapped[int]
    split_hash: Mapped[str]
    fold_order: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))
    plan: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    priority: Mapped[int] = mapped_column(server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    started_at: Mapped[datetime | None]


class StudyFoldRow(Base):
    """The split of a study: which clips each fold tests, which choose its epoch, and their true labels."""

    __tablename__ = "study_folds"
    study_id: Mapped[int] = mapped_column(ForeignKey(StudyRow.id), primary_key=True)
    fold: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    name: Mapped[str]
    clip_ids: Mapped[list[Any]]
    labels: Mapped[list[Any]]
    validation_clip_ids: Mapped[list[Any]] = mapped_column(server_default=text("'[]'"))
    validation_labels: Mapped[list[Any]] = mapped_column(server_default=text("'[]'"))


class EnqueuedRow(Base):
    """The configuration that the trial of this number gets, enqueued after the study was created."""

    __tablename__ = "enqueued"
    study_id: Mapped[int] = mapped_column(ForeignKey(StudyRow.id), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    parameters: Mapped[dict[str, Any]]


class InheritedTrialRow(Base):
    """A trial of another study as it was when this one was created; the sampler learns from it."""

    __tablename__ = "inherited_trials"
    study_id: Mapped[int] = mapped_column(ForeignKey(StudyRow.id), primary_key=True)
    place: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    parameters: Mapped[dict[str, Any]]
    state: Mapped[str]
    value: Mapped[float | None] = mapped_column(Float(53))
    curve: Mapped[list[Any]]


class TrialRow(Base):
    """A trial. `value`, what its study maximises, is set when it is complete; `pruned` when a rule ended it.

    `uar` and `uf1` over the folds that count are set when it is complete or pruned; null in older trials.

    `completed` is the number of complete trials of its study, this one included. It is set under the study's
    lock, so that a lower one never becomes visible after a higher one.

    `learnt_order` says that the trial runs its folds in the study's `fold_order` and not by index.
    """

    __tablename__ = "trials"
    __table_args__ = (
        UniqueConstraint("study_id", "number"),
        Index(None, "study_id", "parameters_hash"),
        Index(
            "ix_trials_open",
            "study_id",
            "number",
            postgresql_where=text("state IN ('ready', 'running')"),
        ),
        Index(
            "uq_trials_completed",
            "study_id",
            "completed",
            unique=True,
            postgresql_where=text("completed IS NOT NULL"),
        ),
    )
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey(StudyRow.id))
    number: Mapped[int]
    parameters: Mapped[dict[str, Any]]
    parameters_hash: Mapped[str]
    state: Mapped[str]
    learnt_order: Mapped[bool] = mapped_column(server_default=false())
    value: Mapped[float | None] = mapped_column(Float(53))
    uar: Mapped[float | None] = mapped_column(Float(53))
    uf1: Mapped[float | None] = mapped_column(Float(53))
    completed: Mapped[int | None]
    pruned: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    end_reason: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    ended_at: Mapped[datetime | None]


class FoldRow(Base):
    """One fold of a trial; every lease raises `term` by one."""

    __tablename__ = "folds"
    __table_args__ = (
        Index("ix_folds_not_done", "state", "trial_id", "fold", postgresql_where=text("state <> 'done'")),
    )
    trial_id: Mapped[int] = mapped_column(ForeignKey(TrialRow.id), primary_key=True)
    fold: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    state: Mapped[str]
    term: Mapped[int]


class WorkerRow(Base):
    """A worker process that has claimed folds. `drain` tells it to end: `now`, or `after` its fold."""

    __tablename__ = "workers"
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    device: Mapped[str]
    pod_uid: Mapped[str | None]
    drain: Mapped[str | None]
    first_seen: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    last_seen: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class LeaseRow(Base):
    """A lease, kept after its end. `outcome` says how it ended; it is null while the lease is live."""

    __tablename__ = "leases"
    __table_args__ = (
        ForeignKeyConstraint(["trial_id", "fold"], [FoldRow.trial_id, FoldRow.fold]),
        UniqueConstraint("trial_id", "fold", "term"),
        Index("uq_leases_live", "trial_id", "fold", unique=True, postgresql_where=text("outcome IS NULL")),
        Index("ix_leases_live_worker", "worker_id", postgresql_where=text("outcome IS NULL")),
        Index("ix_leases_environment", "ended_at", postgresql_where=text("outcome = 'environment'")),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    trial_id: Mapped[int] = mapped_column(BigInteger)
    fold: Mapped[int]
    term: Mapped[int]
    secret: Mapped[str]
    worker_id: Mapped[str] = mapped_column(ForeignKey(WorkerRow.id))
    granted_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    expires_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    message: Mapped[str | None]
    epoch: Mapped[int | None]
    step: Mapped[int | None]
    step_at: Mapped[datetime | None]


class ClaimRow(Base):
    """A claim by its idempotency key: a retry gets the same lease; with `lease_id` null it got no fold."""

    __tablename__ = "claims"
    key: Mapped[str] = mapped_column(primary_key=True)
    # Indexed for the deletion of leases, each of which looks for the claims that name it.
    lease_id: Mapped[str | None] = mapped_column(ForeignKey(LeaseRow.id), index=True)
    answered_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class ResultRow(Base):
    """An accepted result, one per fold, which never changes.

    `best_epoch` is the epoch at which the fold counts, from 0; `correct` and `confusion` are its counts there.
    Where a study chooses one epoch for all folds, these three follow its choice until the trial ends.

    `beyond_verdict` is set when a rule prunes the trial on fewer folds than were finished: this fold comes
    after them in the trial's order and enters no figure of the trial. `predictions_sha256` is the hash of its
    epochs.

    `reused_from` is the trial that ran the fold, where it was not run for this trial. The leases of `imported`
    results belong to another coordinator and are not stored here, because they fence nothing here.
    """

    __tablename__ = "results"
    __table_args__ = (
        ForeignKeyConstraint(["trial_id", "fold"], [FoldRow.trial_id, FoldRow.fold]),
        # Refers to results and not to trials: only a fold that was run can be reused, and the check of the key
        # then waits for no other trial's lock.
        ForeignKeyConstraint(["reused_from", "fold"], ["results.trial_id", "results.fold"]),
        CheckConstraint("correct BETWEEN 0 AND clips", name="correct"),
        CheckConstraint("num_nonnulls(lease_id, reused_from) + imported::integer = 1", name="origin"),
        Index(None, "reused_from", "fold", postgresql_where=text("reused_from IS NOT NULL")),
    )
    trial_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    fold: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    lease_id: Mapped[str | None] = mapped_column(ForeignKey(LeaseRow.id), unique=True)
    reused_from: Mapped[int | None] = mapped_column(BigInteger)
    imported: Mapped[bool] = mapped_column(server_default=text("false"))
    sha256: Mapped[str]
    payload: Mapped[dict[str, Any]]
    best_epoch: Mapped[int]
    correct: Mapped[int]
    clips: Mapped[int]
    confusion: Mapped[list[Any]]
    beyond_verdict: Mapped[bool] = mapped_column(server_default=false())
    predictions_sha256: Mapped[str] = mapped_column(
        # PostgreSQL computes it, so that it is always the hash of what is stored. jsonb removes
        # differences in white space, order of keys and exponents.
        Computed("encode(sha256((payload -> 'epochs')::jsonb::text::bytea), 'hex')", persisted=True)
    )
    verdict: Mapped[dict[str, Any]]
    received_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class OutboxRow(Base):
    """A trial that changed and is not projected to Optuna yet; deleted once it is."""

    __tablename__ = "outbox"
    seq: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    trial_id: Mapped[int] = mapped_column(ForeignKey(TrialRow.id))


class DeletedStudyRow(Base):
    """A study that was deleted here and not yet in Optuna; deleted once it is deleted there."""

    __tablename__ = "deleted_studies"
    name: Mapped[str] = mapped_column(primary_key=True)


class EventRow(Base):
    """An event, written in the transaction of the change that it reports.

    Events are ordered by (xid, id), because ids alone become visible out of order.
    """

    __tablename__ = "events"
    xid: Mapped[int] = mapped_column(
        BigInteger,
        primary_key=True,
        autoincrement=False,
        server_default=text("pg_current_xact_id()::text::bigint"),
    )
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    study_id: Mapped[int]
    kind: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    data: Mapped[dict[str, Any]]


class TokenRow(Base):
    """A token of the REST interface, with the hash of its secret. Revoked tokens stay as a record."""

    __tablename__ = "tokens"
    __table_args__ = (
        Index("uq_tokens_name", "name", unique=True, postgresql_where=text("revoked_at IS NULL")),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    scope: Mapped[str]
    sha256: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    last_used: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class SessionRow(Base):
    """A browser session, with the hashes of its secret and of the token that it stands for."""

    __tablename__ = "sessions"
    sha256: Mapped[str] = mapped_column(primary_key=True)
    token_sha256: Mapped[str]
    expires_at: Mapped[datetime]


class LeaderRow(Base):
    """The one row that says which coordinator leads, until when, and when it last finished a round.

    `term` is a key: a transaction that holds the row with FOR KEY SHARE keeps the term from changing, and lets
    the leader renew `expires_at`.
    """

    __tablename__ = "leader"
    __table_args__ = (UniqueConstraint("term"), CheckConstraint("single", name="single"))
    single: Mapped[bool] = mapped_column(primary_key=True, server_default=true())
    term: Mapped[int] = mapped_column(BigInteger)
    holder: Mapped[str]
    expires_at: Mapped[datetime]
    round_at: Mapped[datetime]


class FailingDutyRow(Base):
    """A duty of the leader that fails for a study; deleted when it succeeds."""

    __tablename__ = "failing_duties"
    study_id: Mapped[int] = mapped_column(ForeignKey(StudyRow.id, ondelete="CASCADE"), primary_key=True)
    duty: Mapped[str] = mapped_column(primary_key=True)
    failures: Mapped[int]
    message: Mapped[str]
    since: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    last_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
