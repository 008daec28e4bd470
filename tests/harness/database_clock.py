"""PostgreSQL's clock in the hands of a test.

All times of the service are those of the database. Functions of a schema named before `pg_catalog` in the
search path win over its own, so the same statements read a clock that a test moves.
"""

from __future__ import annotations

from sqlalchemy import Engine, make_url, text


def take_over_clock(engine: Engine) -> None:
    """Let `clock_timestamp()` of new connections to this database be the moved one."""
    database = make_url(engine.url).database
    with engine.begin() as connection:
        for statement in (
            "CREATE SCHEMA test_clock",
            "CREATE TABLE test_clock.moved (seconds double precision NOT NULL)",
            "INSERT INTO test_clock.moved VALUES (0)",
            "CREATE FUNCTION test_clock.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS $$"
            " SELECT pg_catalog.clock_timestamp() + make_interval(secs => seconds) FROM test_clock.moved $$",
            f"ALTER DATABASE {database} SET search_path = test_clock, pg_catalog, public",
        ):
            connection.execute(text(statement))
    engine.dispose()


def move_clock(engine: Engine, seconds: float) -> None:
    """Let so many seconds pass."""
    with engine.begin() as connection:
        connection.execute(text("UPDATE test_clock.moved SET seconds = seconds + :more"), {"more": seconds})
