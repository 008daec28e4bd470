"""How a command reaches a coordinator: in a cluster, at a URL, or on this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.cluster_access import chosen_context, reach_release
from cli.local.state import StateFolder
from client.connect import connect
from client.local_service import default_state
from client.study_client import StudyClient
from services.contracts import DatasetView
from services.errors import InvalidInput
from services.presets import PRESETS


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


def find_clips(url: str | None, state: Path | None) -> Callable[[str], DatasetView]:
    """A function that finds a clip cache of the coordinator that `reach` opens, for a study that fits it.

    It raises `CacheMismatch` if there is no such cache, and `InvalidInput` if the coordinator is too old to
    describe it.
    """

    def find(cache: str) -> DatasetView:
        with reach(url, state) as client:
            found = client.find_dataset(cache)
        if not found.class_counts:
            raise InvalidInput(
                "this coordinator is of an earlier version and cannot say how many clips each class has; name "
                "the study's settings with --preset or --spec",
                field="preset",
            )
        return found

    return find


@contextmanager
def reach_workers(
    url: str | None,
    state: Path | None,
    study: str,
    *,
    devices: str | None,
    workers: int | None,
    notify: Callable[[str], None],
) -> Iterator[tuple[StudyClient, Callable[[], None]]]:
    """Open a client of the service that has a study, and start that service with workers if it does not run.

    Args:
        url: URL of the coordinator, or None.
        state: state folder of the service on this machine; None means the default one, or that of the demo
            for a study of the demo.
        study: name of the study; workers that are started use the number of threads of its compute plan.
        devices: devices of the workers to start, as in `--devices`.
        workers: number of workers to start; None means one per GPU, or two on the CPU.
        notify: called with a line of text for the user when something happens.

    Yields:
        The client, and a function to call about once a second, which restarts workers that died.

    Raises:
        InvalidInput, MachineUnusable: there is no service to reach or to start, or no such device.
    """
    # Only commands that may start a service load what it needs.
    from cli.local.devices import devices_of_workers
    from cli.local.service import local_service

    elsewhere = url is not None or chosen_context.get() is not None
    elsewhere |= state is None and bool(os.environ.get("FOLDWISE_URL"))
    folder = StateFolder(state or _default_state(study))
    if elsewhere or folder.service() is not None or not folder.has_database():
        with reach(url, state if elsewhere else folder.folder) as client:
            yield client, lambda: None
        return
    chosen = devices_of_workers(devices, workers, notify=notify, workers_on_cpu=2)
    with local_service(folder, devices=(), port=0, notify=notify) as service:
        plan = service.client.get(study).plan
        service.threads = None if plan is None else plan.threads
        for number, device in enumerate(chosen, start=1):
            service.start_worker(f"worker-{number}", device)
        yield service.client, service.tend


def _default_state(study: str) -> Path:
    from cli.local.demo import demo_state

    of_demo = re.fullmatch(rf"{PRESETS['demo'].name}(-\d+)?", study) is not None
    if of_demo and StateFolder(default_state()).service() is None and StateFolder(demo_state()).has_database():
        return demo_state()
    return default_state()
