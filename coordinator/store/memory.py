"""What a coordinator keeps of studies in memory, so that it need not be read or parsed again."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from cachetools import LRUCache
from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

T = TypeVar("T")


class StudyMemory(Generic[T]):
    """A value for each of the last used studies of a database, by study id.

    Threads share it: hold `lock` while you call `of` and while you use its result.
    """

    def __init__(self, *, studies: int) -> None:
        """`studies` is the number kept per database; beyond it the least recently used is dropped."""
        self.lock = threading.Lock()
        self._studies = studies
        self._of_database: WeakKeyDictionary[Engine | Connection, LRUCache[int, T]] = WeakKeyDictionary()

    def of(self, session: Session) -> LRUCache[int, T]:
        """The values of the studies in the session's database."""
        database = session.get_bind()
        if database not in self._of_database:
            self._of_database[database] = LRUCache(self._studies)
        return self._of_database[database]
