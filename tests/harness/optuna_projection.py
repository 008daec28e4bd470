"""Optuna's view of our studies, with no connection left behind."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import optuna


@contextmanager
def optuna_storage(database_url: str) -> Iterator[optuna.storages.RDBStorage]:
    storage = optuna.storages.RDBStorage(database_url)
    try:
        yield storage
    finally:
        _close(storage)


def load_projected(database_url: str, study: str) -> optuna.Study:
    """Optuna's study; its connections are closed with it."""
    storage = optuna.storages.RDBStorage(database_url)
    projected = optuna.load_study(study_name=study, storage=storage)
    weakref.finalize(projected, _close, storage)
    return projected


def _close(storage: optuna.storages.RDBStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()
