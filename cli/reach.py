"""How a command reaches a coordinator: in a cluster, at a URL, or on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.cluster_access import chosen_context, reach_release
from client.connect import connect
from client.study_client import StudyClient


@contextmanager
def reach(url: str | None, state: Path | None) -> Iterator[StudyClient]:
    """Open a client of the coordinator in the chosen cluster, else at `url`, else on this machine.

    Args:
        url: URL of the coordinator, or None.
        state: state folder of the service on this machine; None means the default one.

    Raises:
        InvalidInput: no coordinator runs there, or the token is missing.
        NotFound, Unavailable: the cluster has no release, or it cannot be reached.
    """
    context = chosen_context.get()
    if context is None:
        with connect(url, state=state) as client:
            yield client
        return
    with reach_release(context) as (address, admin_token), connect(address, admin_token) as client:
        yield client
