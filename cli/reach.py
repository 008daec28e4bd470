"""How a command reaches a coordinator: a release in a cluster, a URL, or this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.cluster_access import chosen, reach_release
from client.connect import connect
from client.study_client import StudyClient


@contextmanager
def reach(url: str | None, state: Path | None) -> Iterator[StudyClient]:
    """A client of the coordinator in the chosen cluster, at `url`, or on this machine.

    Raises:
        InvalidInput: no coordinator runs there, or the token is missing.
        NotFound, Unavailable: the cluster has no release, or none that can be reached.
    """
    cluster = chosen.get()
    if cluster is None:
        with connect(url, state=state) as client:
            yield client
        return
    with reach_release(cluster) as (address, admin_token), connect(address, admin_token) as client:
        yield client
