"""Asks the Kubernetes API server to whom a token belongs: TokenReview of authentication.k8s.io/v1.

A pod's projected service account token must not be trusted before the API server has verified it. The audience
is sent with the review and checked in the answer, as the API's reference demands: otherwise a server that does
not support audiences would accept a token that was made for another audience.
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
"""Seconds to wait for an answer of the API server."""

_USER_PREFIX = "system:serviceaccount:"
_POD_UID = "authentication.kubernetes.io/pod-uid"


@dataclass(frozen=True, kw_only=True)
class ServiceAccount:
    """The owner of a reviewed token."""

    name: str
    """NAMESPACE/NAME of the service account."""

    pod_uid: str | None
    """UID of the pod that the token was made for; None if it is bound to no pod."""


class TokenReviewer:
    """Reviews tokens of some service accounts for one audience. Threads may share it."""

    def __init__(
        self, url: str, *, audience: str, accounts: Collection[str], token_file: Path, ca_file: Path
    ) -> None:
        """A reviewer at the API server `url`.

        Args:
            url: such as `https://10.0.0.1:443`.
            audience: the audience that a token must have been made for.
            accounts: NAMESPACE/NAME of each service account whose tokens are accepted.
            token_file: the reviewer's own token; read again for each review, because it is replaced every hour.
            ca_file: certificates that verify the API server.

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
            InvalidInput: this process does not run in a cluster, or as for the constructor.
        """
        return cls(
            address_in_cluster(_OPTION),
            audience=audience,
            accounts=accounts,
            token_file=SERVICE_ACCOUNT / "token",
            ca_file=SERVICE_ACCOUNT / "ca.crt",
        )

    def review(self, token: str) -> ServiceAccount | None:
        """The owner of `token`; None if it is invalid, or made for another audience or account.

        Raises:
            Unavailable: the API server does not answer, or does not let this process review tokens.
        """
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self._audience]},
        }
        try:
            answer = self._http.post("/apis/authentication.k8s.io/v1/tokenreviews", json=review)
        except (httpx.TransportError, OSError) as error:
            log.warning("token_review_failed", error=str(error) or type(error).__name__)
            raise Unavailable("the Kubernetes API server does not answer; try again") from error
        if answer.status_code not in {HTTPStatus.OK, HTTPStatus.CREATED}:
            log.error(
                "token_review_refused",
                status=answer.status_code,
                note="the coordinator's service account needs the cluster role system:auth-delegator",
            )
            raise Unavailable("the Kubernetes API server did not review the token; see the coordinator's log")
        try:
            status = _Review.model_validate_json(answer.content).status
        except ValidationError as error:
            log.error("token_review_unknown", note="the API server's answer is no TokenReview")
            raise Unavailable("the Kubernetes API server's answer is no TokenReview") from error
        return self._accepted(status)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _accepted(self, status: _Status) -> ServiceAccount | None:
        account = status.user.username.removeprefix(_USER_PREFIX).replace(":", "/")
        accepted = (
            status.authenticated
            and self._audience in status.audiences
            and status.user.username.startswith(_USER_PREFIX)
            and account in self._accounts
        )
        if not accepted:
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
