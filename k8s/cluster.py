"""A namespace of a Kubernetes cluster: the few calls that foldwise makes to its API server.

`VERBS` lists every allowed call, and the chart's Role grants the same ones. A call that is not listed fails
here, so the two cannot diverge unnoticed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx

from k8s.api_server import SERVICE_ACCOUNT, address_in_cluster, open_client
from services.errors import Conflict, FoldwiseError, InvalidInput, NotFound, Unavailable

Manifest = dict[str, Any]
"""An object as Kubernetes writes it in JSON."""

_OPTION = "--worker-template"
"""The option that needs a cluster, for errors."""

REQUEST_TIMEOUT_SECONDS = 15.0
"""Seconds to wait for an answer of the API server."""

MAX_WATCH_SECONDS = 240
"""Seconds after which a watch is started again, so that a dead connection is noticed."""

VERBS = frozenset(
    [
        *(("batch", "jobs", verb) for verb in ("create", "get", "list", "watch", "patch", "delete")),
        *(("", "pods", verb) for verb in ("get", "list", "watch")),
        ("", "pods/log", "get"),
        ("", "events", "list"),
        ("", "configmaps", "get"),
        ("kueue.x-k8s.io", "workloads", "list"),
        ("kueue.x-k8s.io", "workloads", "patch"),
    ]
)
"""(API group, resource, verb) of every call."""

_VERSIONS = {"": "api/v1", "batch": "apis/batch/v1"}
"""Paths of Kubernetes' own groups; the API server names the version of other groups, because it changes."""


class WatchTooOld(Exception):
    """The API server has forgotten the changes since this version; list again."""


class Cluster:
    """One namespace. Threads may share it."""

    def __init__(
        self,
        url: str,
        namespace: str,
        *,
        token_file: Path | None = None,
        ca_file: Path | None = None,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        """The namespace at the API server `url`.

        Args:
            url: such as `https://10.0.0.1:443`.
            namespace: of jobs, pods and everything else.
            token_file: the token to send; read again for each request, because it is replaced every hour.
            ca_file: certificates that verify the API server; None: the system's.
            certificate: a client's certificate and key, instead of a token.

        Raises:
            InvalidInput: a file cannot be read.
        """
        self.namespace = namespace
        self._versions = dict(_VERSIONS)
        self._http = open_client(
            url,
            option=_OPTION,
            timeout=REQUEST_TIMEOUT_SECONDS,
            ca_file=ca_file,
            token_file=token_file,
            certificate=certificate,
        )

    @classmethod
    def in_cluster(cls) -> Cluster:
        """The namespace that this process runs in.

        Raises:
            InvalidInput: this process does not run in a cluster.
        """
        url = address_in_cluster(_OPTION)
        try:
            namespace = (SERVICE_ACCOUNT / "namespace").read_text(encoding="ascii").strip()
        except OSError as error:
            raise InvalidInput(f"cannot read {error.filename}: {error.strerror}") from error
        return cls(
            url,
            namespace,
            token_file=SERVICE_ACCOUNT / "token",
            ca_file=SERVICE_ACCOUNT / "ca.crt",
        )

    def get(self, group: str, resource: str, name: str) -> Manifest:
        """Get an object.

        Raises:
            NotFound, FoldwiseError, Unavailable: as the API server answers.
        """
        return self._call("GET", self._path(group, resource, "get", name))

    def list(self, group: str, resource: str, **query: str) -> Manifest:
        """List objects: `items`, and the `metadata.resourceVersion` from which to watch.

        Raises:
            FoldwiseError, Unavailable: as the API server answers.
        """
        return self._call("GET", self._path(group, resource, "list"), query=query)

    def create(self, group: str, resource: str, manifest: Manifest) -> Manifest:
        """Create an object.

        Raises:
            Conflict: it exists.
            FoldwiseError, Unavailable: as the API server answers.
        """
        return self._call("POST", self._path(group, resource, "create"), body=manifest)

    def patch(self, group: str, resource: str, name: str, changes: Manifest) -> Manifest:
        """Change an object by a JSON merge patch (RFC 7396).

        Raises:
            NotFound, FoldwiseError, Unavailable: as the API server answers.
        """
        return self._call("PATCH", self._path(group, resource, "patch", name), body=changes)

    def delete(self, group: str, resource: str, name: str) -> None:
        """Delete an object and, in the background, what it owns; a missing object is no error.

        Raises:
            FoldwiseError, Unavailable: as the API server answers.
        """
        query = {"propagationPolicy": "Background"}
        try:
            self._call("DELETE", self._path(group, resource, "delete", name), query=query)
        except NotFound:
            return

    def watch(self, group: str, resource: str, since: str, **query: str) -> Iterator[tuple[str, Manifest]]:
        """Yield each change after the version `since`: ADDED, MODIFIED, DELETED or BOOKMARK, and the object.

        It ends after `MAX_WATCH_SECONDS`; then watch again from the last object's resource version.

        Args:
            group: API group; empty for the core group.
            resource: plural name, such as `jobs`.
            since: a resource version.
            query: further parameters, such as `labelSelector`.

        Raises:
            WatchTooOld: the API server has forgotten that version.
            FoldwiseError, Unavailable: as the API server answers, or the connection broke.
        """
        path = self._path(group, resource, "watch")
        asked = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(MAX_WATCH_SECONDS),
            "resourceVersion": since,
            **query,
        }
        with self._stream(path, asked) as lines:
            for line in lines:
                event = json.loads(line)
                changed: Manifest = event["object"]
                if event["type"] == "ERROR":
                    if changed.get("code") == HTTPStatus.GONE:
                        raise WatchTooOld
                    raise FoldwiseError(f"a watch of {resource} ended: {changed.get('message')}")
                yield str(event["type"]), changed

    def log(self, pod: str, *, follow: bool, tail: int | None = None) -> Iterator[str]:
        """Yield the lines of a pod's log, to the end or, with `follow`, until its container ends.

        Args:
            pod: name of the pod.
            follow: wait for new lines.
            tail: number of existing lines to start with; None: all.

        Raises:
            NotFound, FoldwiseError, Unavailable: as the API server answers, or the connection broke.
        """
        query = {"follow": str(follow).lower()} | ({} if tail is None else {"tailLines": str(tail)})
        with self._stream(f"{self._path('', 'pods/log', 'get', pod)}", query) as lines:
            yield from lines

    def close(self) -> None:
        """Close the connections; running watches and logs end."""
        self._http.close()

    @contextmanager
    def _stream(self, path: str, query: Mapping[str, str]) -> Iterator[Iterator[str]]:
        # The server ends a watch after MAX_WATCH_SECONDS; until then, silence means that nothing happens.
        timeout = httpx.Timeout(REQUEST_TIMEOUT_SECONDS, read=MAX_WATCH_SECONDS + REQUEST_TIMEOUT_SECONDS)
        try:
            with self._http.stream("GET", path, params=dict(query), timeout=timeout) as response:
                if response.status_code == HTTPStatus.GONE:
                    raise WatchTooOld
                if not response.is_success:
                    response.read()
                    _raise(response)
                yield response.iter_lines()
        except (httpx.TransportError, httpx.StreamError, OSError) as error:
            raise _unreachable(error) from error

    def _call(
        self,
        method: str,
        path: str,
        *,
        body: Manifest | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Manifest:
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        try:
            response = self._http.request(
                method,
                path,
                content=None if body is None else json.dumps(body),
                params=query,
                headers={"Content-Type": kind},
            )
        except (httpx.TransportError, OSError) as error:
            raise _unreachable(error) from error
        if not response.is_success:
            _raise(response)
        answer: Manifest = response.json()
        return answer

    def _path(self, group: str, resource: str, verb: str, name: str | None = None) -> str:
        if (group, resource, verb) not in VERBS:
            raise AssertionError(f"{verb} {resource} is not among the verbs that the chart grants")
        parent, _, part = resource.partition("/")
        path = f"/{self._version(group)}/namespaces/{self.namespace}/{parent}"
        return "/".join([path, *([name] if name else []), *([part] if part else [])])

    def _version(self, group: str) -> str:
        # The preferred version, in which objects are stored: Kueue rejects changes through an older one.
        if group not in self._versions:
            preferred = self._call("GET", f"/apis/{group}")["preferredVersion"]
            self._versions[group] = f"apis/{preferred['groupVersion']}"
        return self._versions[group]


def _raise(response: httpx.Response) -> None:
    try:
        detail = str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        detail = f"status {response.status_code}"
    message = f"the Kubernetes API server says: {detail}"
    match response.status_code:
        case HTTPStatus.NOT_FOUND:
            raise NotFound(message)
        case HTTPStatus.CONFLICT:
            raise Conflict(message)
        case HTTPStatus.TOO_MANY_REQUESTS | HTTPStatus.SERVICE_UNAVAILABLE | HTTPStatus.INTERNAL_SERVER_ERROR:
            raise Unavailable(message)
    raise FoldwiseError(message)


def _unreachable(error: Exception) -> Unavailable:
    return Unavailable(
        f"the Kubernetes API server does not answer ({str(error) or type(error).__name__}); try again"
    )
