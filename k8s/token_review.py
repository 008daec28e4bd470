"""Ask the Kubernetes API server whose a token is: TokenReview of authentication.k8s.io/v1.

A pod's projected service account token says nothing that can be trusted until the API server has checked it.
The audience is asked for and looked for in the answer, as the API's reference demands: a server that does not
know audiences would otherwise pass a token that was made for somebody else.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import httpx
import structlog
from pydantic import BaseModel, ValidationError

from k8s.api_server import SERVICE_ACCOUNT, address_in_cluster, open_client
from services.errors import InvalidInput, Unavailable

log = structlog.get_logger()

_OPTION = "--token-review-audience"

REQUEST_TIMEOUT_SECONDS = 5.0
"""The API server is not waited for any longer."""

_USER_PREFIX = "system:serviceaccount:"
_POD_UID = "authentication.kubernetes.io/pod-uid"


@dataclass(frozen=True, kw_only=True)
class ServiceAccount:
    """Whose a reviewed token is."""

    name: str
    """NAMESPACE/NAME of the service account."""

    pod_uid: str | None
    """Of the pod that the token was made for; None where it is bound to no pod."""


class TokenReviewer:
    """Reviews tokens of some service accounts for one audience. Safe to share by threads."""

    def __init__(
        self, url: str, *, audience: str, accounts: Collection[str], token_file: Path, ca_file: Path
    ) -> None:
        """A reviewer at the API server `url`.

        Args:
            url: such as `https://10.0.0.1:443`.
            audience: that a token must have been made for.
            accounts: NAMESPACE/NAME of each service account whose tokens are good.
            token_file: the reviewer's own token, read again for each review: it is replaced every hour.
            ca_file: the certificates that the API server is checked by.

        Raises:
            InvalidInput: no account is named, one is no NAMESPACE/NAME, or a file cannot be read.
        """
        if not accounts:
            raise InvalidInput("--token-review-account is missing; name the workers' NAMESPACE/NAME")
        for account in accounts:
            if account.count("/") != 1 or account.startswith("/") or account.endswith("/"):
                raise InvalidInput(f"--token-review-account {account!r} is no NAMESPACE/NAME")
        self._audience = audience
        self._accounts = frozenset(accounts)
        self._http = open_client(
            url, option=_OPTION, timeout=REQUEST_TIMEOUT_SECONDS, ca_file=ca_file, token_file=token_file
        )

    @classmethod
    def in_cluster(cls, audience: str, accounts: Collection[str]) -> TokenReviewer:
        """A reviewer for the cluster that this process runs in.

        Raises:
            InvalidInput: it runs in none, or as the constructor says.
        """
        return cls(
            address_in_cluster(_OPTION),
            audience=audience,
            accounts=accounts,
            token_file=SERVICE_ACCOUNT / "token",
            ca_file=SERVICE_ACCOUNT / "ca.crt",
        )

    def review(self, token: str) -> ServiceAccount | None:
        """Whose `token` is, or None when it is nobody's, of another audience or of another account.

        Raises:
            Unavailable: the API server does not answer, or lets this process review nothing.
        """
        asked = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self._audience]},
        }
        try:
            answer = self._http.post("/apis/authentication.k8s.io/v1/tokenreviews", json=asked)
        except (httpx.TransportError, OSError) as error:
            log.warning("token_review_failed", error=str(error) or type(error).__name__)
            raise Unavailable("the Kubernetes API server does not answer; try again") from error
        if answer.status_code not in {HTTPStatus.OK, HTTPStatus.CREATED}:
            log.error(
                "token_review_refused",
                status=answer.status_code,
                note="the coordinator's service account needs the cluster role system:auth-delegator",
            )
            raise Unavailable("the Kubernetes API server reviews no token of ours; see the coordinator's log")
        try:
            status = _Review.model_validate_json(answer.content).status
        except ValidationError as error:
            log.error("token_review_unknown", note="the API server's answer is no TokenReview")
            raise Unavailable("the Kubernetes API server's answer is no TokenReview") from error
        return self._accepted(status)

    def close(self) -> None:
        """End its connections."""
        self._http.close()

    def _accepted(self, status: _Status) -> ServiceAccount | None:
        account = status.user.username.removeprefix(_USER_PREFIX).replace(":", "/")
        good = (
            status.authenticated
            and self._audience in status.audiences
            and status.user.username.startswith(_USER_PREFIX)
            and account in self._accounts
        )
        if not good:
            log.warning(
                "token_review_negative",
                authenticated=status.authenticated,
                user=status.user.username,
                audiences=status.audiences,
            )
            return None
        uids = status.user.extra.get(_POD_UID, [])
        return ServiceAccount(name=account, pod_uid=uids[0] if uids else None)


class _User(BaseModel):
    username: str = ""
    extra: dict[str, list[str]] = {}


class _Status(BaseModel):
    authenticated: bool = False
    audiences: list[str] = []
    user: _User = _User()


class _Review(BaseModel):
    status: _Status
