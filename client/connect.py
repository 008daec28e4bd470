"""A client of the coordinator at a URL, or of the one on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from client.connection import Connection, Token
from client.local_service import default_state, running_service
from client.study_client import StudyClient
from services.errors import InvalidInput
from services.secrets import read_secret

GIVE_UP_SECONDS = 5.0
"""Seconds to retry while the coordinator does not answer."""


def connect(
    url: str | None = None, token: Token | None = None, *, state: str | os.PathLike[str] | None = None
) -> StudyClient:
    """Connect to a coordinator; close the client after use, or use it in a `with` statement.

    Args:
        url: of the coordinator, such as `http://127.0.0.1:8080`. Without `url` and `state`, FOLDWISE_URL is
            used if it is set, otherwise the `foldwise up` that runs on this machine.
        token: for `url`; by default FOLDWISE_TOKEN, or the content of the file FOLDWISE_TOKEN_FILE.
        state: state folder of a `foldwise up` on this machine; replaces `url` and `token`.

    Raises:
        InvalidInput: no coordinator runs there, the URL cannot be used, or the token is missing.
        NotFound: the file FOLDWISE_TOKEN_FILE cannot be read.
        TokenRefused: the token has characters that cannot be sent.
    """
    if state is None and url is None:
        url = os.environ.get("FOLDWISE_URL") or None
    if state is None and url is not None:
        token = token or read_secret("FOLDWISE_TOKEN", what=f"the token for {url}")
    else:
        folder = Path(state).expanduser().absolute() if state is not None else default_state()
        service = running_service(folder)
        if service is None:
            raise InvalidInput(
                f"no foldwise runs on {folder}; start it with `foldwise up`, or give --state or --url"
            )
        url, token = service.url, service.admin_token
    return StudyClient(Connection(url, token, give_up_after=GIVE_UP_SECONDS))
