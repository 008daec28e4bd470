"""The only importer of Optuna: suggests parameters, and keeps Optuna's study equal to our tables.

Our tables are the truth. A suggestion is a pure function of the study, its history and the trial's number, so
it needs no memory and survives any restart; what Optuna stores is a projection for its dashboard and tools.

Where to look: `search` suggests parameters; `importance` says which of them matter; `projection` writes our
trials into Optuna's tables; `records` reads our rows for all three; `translation` puts them into Optuna's
terms. Not allowed here: writes to our tables, leases, HTTP.
"""

from coordinator.optimizer.importance import importances
from coordinator.optimizer.projection import (
    ProjectionConflict,
    create_tables,
    delete_some,
    open_study,
    project,
)
from coordinator.optimizer.records import TrialRecord, inherited_trials, trial_record, trial_records
from coordinator.optimizer.search import Search, suggest
from coordinator.optimizer.translation import distributions

__all__ = [
    "ProjectionConflict",
    "Search",
    "TrialRecord",
    "create_tables",
    "delete_some",
    "distributions",
    "importances",
    "inherited_trials",
    "open_study",
    "project",
    "suggest",
    "trial_record",
    "trial_records",
]
