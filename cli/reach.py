"""How a command reaches a coordinator: a cluster's release, a URL, or this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.cluster_access import chosen, reach_release
from cli.local.state import StateFolder, default_state
from client.connection import Connection
from client.study_client import StudyClient
from services.errors import InvalidInput
from services.secrets import read_secret


@contextmanager
def reach(url: str | None, state: Path | None) -> Iterator[StudyClient]:
    """A client of the coordinator in the cluster that was chosen, at `url`, or on this machine.

    Raises:
        InvalidInput: none is there, or the token is missing.
        NotFound, Unavailable: the cluster has no release, or none that can be reached.
    """
    place = chosen.get()
    if place is not None:
        with (
            reach_release(place) as (address, admin),
            Connection(address, admin, give_up_after=5.0) as connection,
        ):
            yield StudyClient(connection)
        return
    if url is not None and state is None:
        token = read_secret("FOLDWISE_TOKEN", what=f"the token for {url}")
    else:
        folder = StateFolder(state or default_state())
        service = folder.service()
        if service is None:
            raise InvalidInput(
                f"no foldwise runs on {folder.folder}; start it with `foldwise up`, or give --state or --url"
            )
        url, token = service.url, service.admin_token
    with Connection(url, token, give_up_after=5.0) as connection:
        yield StudyClient(connection)
