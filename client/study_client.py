"""What people ask a coordinator, as contract types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO, Any
from urllib.parse import quote

from client.connection import Connection, parse
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
    SplitView,
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

    Every call raises `NotFound`, `Conflict`, `InvalidInput`, `CacheMismatch`, `TokenRefused`, `ScopeMissing`,
    `TooManyRequests` or `Unavailable` as the coordinator says.
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
        """What it calls through."""
        return self._connection

    def create(self, spec: StudySpec) -> StudyView:
        """Create a study; it starts at once unless the spec says not to."""
        return parse(StudyView, self._connection.call("POST", "/studies", body=spec))

    def studies(self) -> list[StudyView]:
        """All studies, oldest first, all pages."""
        studies: list[StudyView] = []
        params: dict[str, str] = {}
        while page := self._connection.call("GET", "/studies", params=params):
            studies += [parse(StudyView, item) for item in page]
            params = {"after": studies[-1].name}
        return studies

    def get(self, name: str) -> StudyView:
        """One study."""
        return parse(StudyView, self._connection.call("GET", f"/studies/{quote(name, safe='')}"))

    def move(self, name: str, verb: str, *, now: bool = False) -> StudyView:
        """`start`, `pause` (at once with `now`), `resume` or `stop` a study."""
        params = {"now": True} if now else None
        return parse(
            StudyView, self._connection.call("POST", f"/studies/{quote(name, safe='')}/{verb}", params=params)
        )

    def enqueue(self, name: str, configurations: Sequence[Mapping[str, ParameterValue]]) -> Enqueued:
        """Run these configurations next. Not repeated: twice sent they would run twice."""
        body = Enqueue(configurations=tuple(dict(parameters) for parameters in configurations))
        path = f"/studies/{quote(name, safe='')}/enqueue"
        return parse(Enqueued, self._connection.call("POST", path, body=body, give_up_after=0))

    def set_budget(self, name: str, trials: int) -> StudyView:
        """Set how many trials a study runs in all."""
        path = f"/studies/{quote(name, safe='')}/budget"
        return parse(StudyView, self._connection.call("POST", path, body=Budget(trials=trials)))

    def set_workers(self, name: str, workers: int | None) -> StudyView:
        """Set how many pods of workers a study has in Kubernetes; None is what the chart says."""
        path = f"/studies/{quote(name, safe='')}/workers"
        return parse(StudyView, self._connection.call("POST", path, body=WorkerCount(workers=workers)))

    def study_workers(self, name: str) -> StudyWorkersView:
        """A study's Job and pods in Kubernetes."""
        path = f"/studies/{quote(name, safe='')}/workers"
        return parse(StudyWorkersView, self._connection.call("GET", path))

    def logs(self, name: str, file: IO[bytes], *, follow: bool, tail: int | None) -> None:
        """Write the logs of a study's pods to a file as they come."""
        params: dict[str, Any] = {"follow": follow} | ({} if tail is None else {"tail": tail})
        self._connection.download(f"/studies/{quote(name, safe='')}/logs", file, params=params)

    def clone(self, name: str, clone: Clone) -> StudyView:
        """Create a study like another."""
        path = f"/studies/{quote(name, safe='')}/clone"
        return parse(StudyView, self._connection.call("POST", path, body=clone))

    def train_final(self, name: str, wanted: TrainFinal) -> StudyView:
        """Create the study that trains a study's best configuration, or another, on all clips."""
        path = f"/studies/{quote(name, safe='')}/final"
        return parse(StudyView, self._connection.call("POST", path, body=wanted))

    def export(self, name: str, file: IO[bytes]) -> None:
        """Write a study to a file as JSON lines."""
        self._connection.download(f"/studies/{quote(name, safe='')}/export", file)

    def import_study(self, file: IO[bytes], name: str | None = None) -> StudyView:
        """Store a study from a file that `export` wrote, under its own name or another."""
        params = None if name is None else {"name": name}
        return parse(StudyView, self._connection.upload("/studies/import", file, params=params))

    def delete(self, name: str, confirm: str) -> None:
        """Delete a study; `confirm` is its name again."""
        self._connection.call("DELETE", f"/studies/{quote(name, safe='')}", params={"confirm": confirm})

    def trials(self, name: str, *, after: int = -1) -> list[TrialView]:
        """Trials with numbers above `after`, all pages."""
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
        """A finished fold of a trial; `Conflict` while it has no result."""
        path = f"/studies/{quote(name, safe='')}/trials/{number}/folds/{index}"
        return parse(FoldRecord, self._connection.call("GET", path))

    def confusion(self, name: str, number: int) -> ConfusionView:
        """Confusion counts of a trial."""
        return parse(
            ConfusionView,
            self._connection.call("GET", f"/studies/{quote(name, safe='')}/trials/{number}/confusion"),
        )

    def split(self, name: str) -> SplitView:
        """Which clips each fold of a study tests, with their subjects and true classes."""
        return parse(SplitView, self._connection.call("GET", f"/studies/{quote(name, safe='')}/split"))

    def costs(self, name: str) -> list[TrialCost]:
        """What each trial of a study took, all pages."""
        costs: list[TrialCost] = []
        params = {"after": -1}
        while page := self._connection.call("GET", f"/studies/{quote(name, safe='')}/costs", params=params):
            costs += [parse(TrialCost, item) for item in page]
            params = {"after": costs[-1].number}
        return costs

    def importance(self, name: str) -> ImportanceView:
        """How much each parameter of a study mattered."""
        return parse(
            ImportanceView, self._connection.call("GET", f"/studies/{quote(name, safe='')}/importance")
        )

    def datasets(self) -> list[DatasetView]:
        """The clip caches a study can name."""
        return [parse(DatasetView, item) for item in self._connection.call("GET", "/datasets")]

    def workers(self) -> list[WorkerView]:
        """Workers heard of lately."""
        return [parse(WorkerView, item) for item in self._connection.call("GET", "/workers")]

    def drain(self, worker: str, *, now: bool) -> None:
        """Let a worker end, by its id or name: after its fold, or at once."""
        path = f"/workers/{quote(worker, safe='')}/drain"
        self._connection.call("POST", path, params={"now": True} if now else None)

    def models(self) -> list[ModelCard]:
        """The models of the catalogue."""
        return [parse(ModelCard, item) for item in self._connection.call("GET", "/models")]

    def create_token(self, wanted: TokenSpec) -> NewToken:
        """Make a token; only this answer tells its secret."""
        return parse(NewToken, self._connection.call("POST", "/tokens", body=wanted))

    def tokens(self) -> list[TokenView]:
        """All tokens, oldest first, the revoked ones too."""
        return [parse(TokenView, item) for item in self._connection.call("GET", "/tokens")]

    def revoke_token(self, token_id: str) -> None:
        """Let a token count no more."""
        self._connection.call("DELETE", f"/tokens/{quote(token_id, safe='')}")
