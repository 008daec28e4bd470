"""A release in a cluster, reached by kubectl: with the user's own rights, however they are logged in."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from services.errors import InvalidInput, NotFound, Unavailable

ANSWER_SECONDS = 30.0

_COORDINATOR = "app.kubernetes.io/part-of=foldwise,app.kubernetes.io/component=coordinator"
_FORWARDING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) ")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in which cluster: kubectl's context and namespace, its own where they are None."""

    context: str | None = None
    namespace: str | None = None


chosen: ContextVar[Place | None] = ContextVar("chosen", default=None)
"""What `--context` and `--namespace` say; None where neither was given."""


class Kubectl:
    """The program, for one place."""

    def __init__(self, place: Place) -> None:
        self._command = ["kubectl"]
        if place.context is not None:
            self._command += ["--context", place.context]
        if place.namespace is not None:
            self._command += ["--namespace", place.namespace]

    def read(self, *arguments: str) -> dict[str, Any]:
        """What a command such as `get nodes` prints as JSON.

        Raises:
            InvalidInput: kubectl is not installed.
            Unavailable: it ends with an error, which is told.
        """
        try:
            done = subprocess.run(  # noqa: S603 - no shell, and the user's own program
                [*self._command, *arguments, "--output", "json"],
                capture_output=True,
                text=True,
                timeout=ANSWER_SECONDS,
                check=False,
            )
        except FileNotFoundError as error:
            raise InvalidInput(
                "--context and --namespace need kubectl; install it, or give --url and FOLDWISE_TOKEN"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"kubectl did not answer for {ANSWER_SECONDS:g} s; look at --context") from error
        if done.returncode:
            raise Unavailable(f"kubectl: {done.stderr.strip()}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    @contextmanager
    def forward(self, service: str, port: int) -> Iterator[str]:
        """A URL on this machine that leads to a port of a service while the context lasts.

        Raises:
            Unavailable: there is no way to it; kubectl's words are told.
        """
        process = subprocess.Popen(  # noqa: S603 - as above
            [*self._command, "port-forward", "--address", "127.0.0.1", f"service/{service}", f":{port}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stdout is not None  # noqa: S101 - both are pipes
            assert process.stderr is not None  # noqa: S101
            try:
                found = _FORWARDING.match(process.stdout.readline())
                if found is None:
                    process.terminate()
                    raise Unavailable(f"kubectl port-forward: {process.stderr.read().strip()}")
                # It writes a line for every connection; unread, it would stop in the middle of one.
                threading.Thread(target=process.stdout.read, daemon=True).start()
                yield f"http://127.0.0.1:{found[1]}"
            finally:
                process.terminate()


@contextmanager
def reach_release(place: Place) -> Iterator[tuple[str, str]]:
    """URL and admin token of the release in a namespace, while the context lasts.

    Raises:
        NotFound: there is no release, more than one, or it has no token.
        InvalidInput, Unavailable: kubectl is not installed, or cannot do it.
    """
    kubectl = Kubectl(place)
    where = "the namespace" if place.namespace is None else f"namespace {place.namespace}"
    deployments = kubectl.read("get", "deployments", "--selector", _COORDINATOR)["items"]
    if len(deployments) != 1:
        names = ", ".join(item["metadata"]["name"] for item in deployments) or "none"
        raise NotFound(f"{where} should have one release of foldwise, and has: {names}; look at --namespace")
    name = deployments[0]["metadata"]["name"]
    volumes = deployments[0]["spec"]["template"]["spec"]["volumes"]
    secret = next(volume["secret"]["secretName"] for volume in volumes if volume["name"] == "auth")
    token = kubectl.read("get", "secret", secret).get("data", {}).get("admin-token")
    if token is None:
        raise NotFound(f"the Secret {secret} in {where} has no key admin-token")
    port = kubectl.read("get", "service", name)["spec"]["ports"][0]["port"]
    with kubectl.forward(name, port) as url:
        yield url, base64.b64decode(token).decode()
