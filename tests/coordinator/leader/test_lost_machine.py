"""A leader whose machine vanishes from the network, without closing a connection, is followed by another."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.acceptance.up import wait_for
from tests.harness.lost_machine import coordinator, cut, leads, namespace, postgres_on_tcp


@pytest.mark.long
def test_another_coordinator_leads_once_the_leaders_machine_has_vanished(tmp_path: Path) -> None:
    with ExitStack() as stack:
        try:
            stack.enter_context(namespace())
        except PermissionError as error:
            pytest.skip(str(error))
        url = stack.enter_context(postgres_on_tcp(tmp_path))
        lost = stack.enter_context(coordinator(url, tmp_path, lost=True))
        wait_for(lambda: leads(lost))
        other = stack.enter_context(coordinator(url, tmp_path, lost=False))
        wait_for(lambda: leads(other) is False)
        cut()
        wait_for(lambda: leads(other))
