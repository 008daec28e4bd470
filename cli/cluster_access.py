"""Access to a foldwise release in a cluster through kubectl, with the rights that the user has there."""

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

KUBECTL_TIMEOUT_SECONDS = 30.0

_COORDINATOR = "app.kubernetes.io/part-of=foldwise,app.kubernetes.io/component=coordinator"
_FORWARDING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) ")


@dataclass(frozen=True, kw_only=True)
class KubeContext:
    """A kubectl context and a namespace; None means the one that kubectl uses by default."""

    context: str | None = None
    namespace: str | None = None


chosen_context: ContextVar[KubeContext | None] = ContextVar("chosen_context", default=None)
"""The values of `--context` and `--namespace`; None if neither was given."""


class Kubectl:
    """The program kubectl, run for one context and namespace."""

    def __init__(self, context: KubeContext) -> None:
        self._command = ["kubectl"]
        if context.context is not None:
            self._command += ["--context", context.context]
        if context.namespace is not None:
            self._command += ["--namespace", context.namespace]

    def read(self, *arguments: str) -> dict[str, Any]:
        """Run a command such as `get nodes` and return its JSON output.

        Raises:
            InvalidInput: kubectl is not installed.
            Unavailable: kubectl fails (the message quotes it) or does not answer.
        """
        try:
            finished = subprocess.run(  # noqa: S603 - no shell, and the user's own program
                [*self._command, *arguments, "--output", "json"],
                capture_output=True,
                text=True,
                timeout=KUBECTL_TIMEOUT_SECONDS,
                check=False,
            )
        except FileNotFoundError as error:
            raise InvalidInput(
                "--context and --namespace need kubectl; install it, or give --url and FOLDWISE_TOKEN"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise Unavailable(
                f"kubectl did not answer within {KUBECTL_TIMEOUT_SECONDS:g} s; check --context"
            ) from error
        if finished.returncode:
            raise Unavailable(f"kubectl: {finished.stderr.strip()}")
        answer: dict[str, Any] = json.loads(finished.stdout)
        return answer

    @contextmanager
    def forward(self, service: str, port: int) -> Iterator[str]:
        """Forward a port of a Service to this machine until the `with` block ends; yield the local URL.

        Raises:
            Unavailable: kubectl cannot forward the port; the message quotes it.
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
                # kubectl prints a line per connection; if nobody read the pipe, it would fill up and block.
                threading.Thread(target=process.stdout.read, daemon=True).start()
                yield f"http://127.0.0.1:{found[1]}"
            finally:
                process.terminate()


@contextmanager
def reach_release(context: KubeContext) -> Iterator[tuple[str, str]]:
    """Forward the coordinator of the release in a namespace; yield its local URL and its admin token.

    Raises:
        NotFound: the namespace has no release or several, or the release has no admin token.
        InvalidInput, Unavailable: kubectl is not installed, fails or does not answer.
    """
    kubectl = Kubectl(context)
    where = "the namespace" if context.namespace is None else f"namespace {context.namespace}"
    deployments = kubectl.read("get", "deployments", "--selector", _COORDINATOR)["items"]
    if len(deployments) != 1:
        names = ", ".join(item["metadata"]["name"] for item in deployments) or "none"
        raise NotFound(f"{where} should have one foldwise release, but has: {names}; check --namespace")
    name = deployments[0]["metadata"]["name"]
    volumes = deployments[0]["spec"]["template"]["spec"]["volumes"]
    secret = next(volume["secret"]["secretName"] for volume in volumes if volume["name"] == "auth")
    token = kubectl.read("get", "secret", secret).get("data", {}).get("admin-token")
    if token is None:
        raise NotFound(f"Secret {secret} in {where} has no key admin-token")
    port = kubectl.read("get", "service", name)["spec"]["ports"][0]["port"]
    with kubectl.forward(name, port) as url:
        yield url, base64.b64decode(token).decode()
