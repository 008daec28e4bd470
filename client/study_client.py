"""The REST calls about studies, workers, models and tokens, as contract types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO, Any
from urllib.parse import quote

from client.connection import Connection, parse
from services.clip_cache import match_cache
from services.contracts import (
    Budget,
    Clone,
    ConfusionView,
    DatasetView,
    Enqueue,
    Enqueued,
    FoldRecord,
    FoldView,
    ImportanceView,
    NewToken,
    ReadingsView,
    ReplayStudy,
    SplitView,
    StudyDigest,
    StudySpec,
    StudyView,
    StudyWorkersView,
    TokenSpec,
    TokenView,
    TrainFinal,
    TrialCost,
    TrialView,
    WorkerCount,
    WorkerView,
)
from services.model_card import ModelCard
from services.search_space import ParameterValue


class StudyClient:
    """The REST calls behind `foldwise study` and `foldwise token`.

    Each call raises the error that the coordinator answers: `NotFound`, `Conflict`, `InvalidInput`,
    `CacheMismatch`, `TokenRefused`, `ScopeMissing`, `TooManyRequests` or `Unavailable`.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> StudyClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @property
    def connection(self) -> Connection:
        """The connection that carries the calls."""
        return self._connection

    def create(self, spec: StudySpec) -> StudyView:
        """Create a study; it starts immediately unless the spec says otherwise."""
        return parse(StudyView, self._connection.call("POST", "/studies", body=spec))

    def studies(self) -> list[StudyView]:
        """All studies, oldest first. Reads all pages."""
        studies: list[StudyView] = []
        params: dict[str, str] = {}
        while page := self._connection.call("GET", "/studies", params=params):
            studies += [parse(StudyView, item) for item in page]
            params = {"after": studies[-1].name}
        return studies

    def get(self, name: str) -> StudyView:
        """One study."""
        return parse(StudyView, self._connection.call("GET", f"/studies/{quote(name, safe='')}"))

    def change_state(self, name: str, verb: str, *, now: bool = False) -> StudyView:
        """Change the state of a study.

        Args:
            name: of the study.
            verb: `start`, `pause`, `resume` or `stop`.
            now: pause without waiting for folds that run.
        """
        params = {"now": True} if now else None
        return parse(
            StudyView, self._connection.call("POST", f"/studies/{quote(name, safe='')}/{verb}", params=params)
        )

    def enqueue(self, name: str, configurations: Sequence[Mapping[str, ParameterValue]]) -> Enqueued:
        """Run these configurations next. Not retried: a request sent twice would run them twice."""
        body = Enqueue(configurations=tuple(dict(parameters) for parameters in configurations))
        path = f"/studies/{quote(name, safe='')}/enqueue"
        return parse(Enqueued, self._connection.call("POST", path, body=body, give_up_after=0))

    def set_budget(self, name: str, trials: int) -> StudyView:
        """Set the total number of trials that a study runs."""
        path = f"/studies/{quote(name, safe='')}/budget"
        return parse(StudyView, self._connection.call("POST", path, body=Budget(trials=trials)))

    def set_workers(self, name: str, workers: int | None) -> StudyView:
        """Set the number of worker pods of a study in Kubernetes; None takes the chart's default."""
        path = f"/studies/{quote(name, safe='')}/workers"
        return parse(StudyView, self._connection.call("POST", path, body=WorkerCount(workers=workers)))

    def study_workers(self, name: str) -> StudyWorkersView:
        """A study's Job and pods in Kubernetes."""
        path = f"/studies/{quote(name, safe='')}/workers"
        return parse(StudyWorkersView, self._connection.call("GET", path))

    def logs(self, name: str, file: IO[bytes], *, follow: bool, tail: int | None) -> None:
        """Write the logs of a study's pods to a file as they arrive.

        Args:
            name: of the study.
            file: where to write.
            follow: continue with new lines until the pods end.
            tail: start with this number of last lines per pod; None starts with the first line.
        """
        params: dict[str, Any] = {"follow": follow} | ({} if tail is None else {"tail": tail})
        self._connection.download(f"/studies/{quote(name, safe='')}/logs", file, params=params)

    def clone(self, name: str, clone: Clone) -> StudyView:
        """Create a copy of a study with some changes."""
        path = f"/studies/{quote(name, safe='')}/clone"
        return parse(StudyView, self._connection.call("POST", path, body=clone))

    def train_final(self, name: str, wanted: TrainFinal) -> StudyView:
        """Create a study that trains the best configuration of a study, or a chosen one, on all clips."""
        path = f"/studies/{quote(name, safe='')}/final"
        return parse(StudyView, self._connection.call("POST", path, body=wanted))

    def replay(self, name: str, wanted: ReplayStudy) -> StudyView:
        """Create a study that runs another one again."""
        path = f"/studies/{quote(name, safe='')}/replay"
        return parse(StudyView, self._connection.call("POST", path, body=wanted))

    def export(self, name: str, file: IO[bytes]) -> None:
        """Write a study to a file as JSON lines."""
        self._connection.download(f"/studies/{quote(name, safe='')}/export", file)

    def import_study(self, file: IO[bytes], name: str | None = None) -> StudyView:
        """Create a study from a file that `export` wrote; `name` replaces its own name."""
        params = None if name is None else {"name": name}
        return parse(StudyView, self._connection.upload("/studies/import", file, params=params))

    def delete(self, name: str, confirm: str) -> None:
        """Delete a study; `confirm` must repeat its name."""
        self._connection.call("DELETE", f"/studies/{quote(name, safe='')}", params={"confirm": confirm})

    def trials(self, name: str, *, after: int = -1) -> list[TrialView]:
        """Trials with numbers above `after`, by number. Reads all pages."""
        trials: list[TrialView] = []
        while True:
            page = self._connection.call(
                "GET", f"/studies/{quote(name, safe='')}/trials", params={"after": after}
            )
            trials += [parse(TrialView, item) for item in page]
            if not page:
                return trials
            after = trials[-1].number

    def folds(self, name: str, number: int) -> list[FoldView]:
        """The folds of a trial."""
        folds = self._connection.call("GET", f"/studies/{quote(name, safe='')}/trials/{number}/folds")
        return [parse(FoldView, item) for item in folds]

    def fold(self, name: str, number: int, index: int) -> FoldRecord:
        """Fold `index` of trial `number` with its task and result; `Conflict` while it has no result."""
        path = f"/studies/{quote(name, safe='')}/trials/{number}/folds/{index}"
        return parse(FoldRecord, self._connection.call("GET", path))

    def confusion(self, name: str, number: int) -> ConfusionView:
        """Confusion counts of a trial."""
        return parse(
            ConfusionView,
            self._connection.call("GET", f"/studies/{quote(name, safe='')}/trials/{number}/confusion"),
        )

    def readings(self, name: str, number: int) -> ReadingsView:
        """The scores of a trial under every choice of the epoch that counts.

        Raises:
            NotFound: there is no such study or trial.
        """
        path = f"/studies/{quote(name, safe='')}/trials/{number}/readings"
        return parse(ReadingsView, self._connection.call("GET", path))

    def split(self, name: str) -> SplitView:
        """The clips that each fold of a study tests, with their subjects and true classes."""
        return parse(SplitView, self._connection.call("GET", f"/studies/{quote(name, safe='')}/split"))

    def costs(self, name: str) -> list[TrialCost]:
        """What each trial of a study cost, by number. Reads all pages."""
        costs: list[TrialCost] = []
        params = {"after": -1}
        while page := self._connection.call("GET", f"/studies/{quote(name, safe='')}/costs", params=params):
            costs += [parse(TrialCost, item) for item in page]
            params = {"after": costs[-1].number}
        return costs

    def digest(self, name: str) -> StudyDigest:
        """The digest of a study."""
        return parse(StudyDigest, self._connection.call("GET", f"/studies/{quote(name, safe='')}/digest"))

    def importance(self, name: str) -> ImportanceView:
        """How much each parameter of a study mattered."""
        return parse(
            ImportanceView, self._connection.call("GET", f"/studies/{quote(name, safe='')}/importance")
        )

    def datasets(self) -> list[DatasetView]:
        """The clip caches that a study can name."""
        return [parse(DatasetView, item) for item in self._connection.call("GET", "/datasets")]

    def find_dataset(self, wanted: str) -> DatasetView:
        """The one clip cache that `wanted` names: a dataset, or `dataset/fingerprint` (a prefix is enough).

        Raises:
            CacheMismatch: none or several match; the message lists them.
        """
        return match_cache(self.datasets(), wanted)

    def workers(self) -> list[WorkerView]:
        """Workers that contacted the coordinator recently."""
        return [parse(WorkerView, item) for item in self._connection.call("GET", "/workers")]

    def drain(self, worker: str, *, now: bool) -> None:
        """Drain a worker, by its id or name: after its fold, or immediately with `now`."""
        path = f"/workers/{quote(worker, safe='')}/drain"
        self._connection.call("POST", path, params={"now": True} if now else None)

    def models(self) -> list[ModelCard]:
        """The models of the catalogue."""
        return [parse(ModelCard, item) for item in self._connection.call("GET", "/models")]

    def create_token(self, wanted: TokenSpec) -> NewToken:
        """Create a token. Only this answer contains its secret."""
        return parse(NewToken, self._connection.call("POST", "/tokens", body=wanted))

    def tokens(self) -> list[TokenView]:
        """All tokens, oldest first, including revoked ones."""
        return [parse(TokenView, item) for item in self._connection.call("GET", "/tokens")]

    def revoke_token(self, token_id: str) -> None:
        """Revoke a token."""
        self._connection.call("DELETE", f"/tokens/{quote(token_id, safe='')}")
