"""Fixtures of the integration tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.integration.desk import Desk


@pytest.fixture
def desk(engine: Engine, cache_root: Path) -> Desk:
    return Desk(engine, cache_root)
