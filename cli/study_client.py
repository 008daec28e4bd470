"""What people ask a coordinator, as contract types."""

from __future__ import annotations

from services.contracts import (
    ConfusionView,
    DatasetView,
    FoldView,
    StudySpec,
    StudyView,
    TrialView,
    WorkerView,
)
from worker.coordinator_client import Connection


class StudyClient:
    """The REST calls behind `foldwise study`.

    Every call raises `NotFound`, `Conflict`, `InvalidInput`, `CacheMismatch`, `TokenRefused` or `Unavailable`
    as the coordinator says.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create(self, spec: StudySpec) -> StudyView:
        """Create a study; it starts at once unless the spec says not to."""
        return StudyView.model_validate(self._connection.call("POST", "/studies", body=spec))

    def studies(self) -> list[StudyView]:
        """All studies, oldest first."""
        return [StudyView.model_validate(item) for item in self._connection.call("GET", "/studies")]

    def get(self, name: str) -> StudyView:
        """One study."""
        return StudyView.model_validate(self._connection.call("GET", f"/studies/{name}"))

    def move(self, name: str, verb: str, *, now: bool = False) -> StudyView:
        """`start`, `pause` (at once with `now`), `resume` or `stop` a study."""
        params = {"now": True} if now else None
        return StudyView.model_validate(self._connection.call("POST", f"/studies/{name}/{verb}", params=params))

    def trials(self, name: str, *, after: int = -1) -> list[TrialView]:
        """Trials with numbers above `after`, all pages."""
        trials: list[TrialView] = []
        while True:
            page = self._connection.call("GET", f"/studies/{name}/trials", params={"after": after})
            trials += [TrialView.model_validate(item) for item in page]
            if not page:
                return trials
            after = trials[-1].number

    def folds(self, name: str, number: int) -> list[FoldView]:
        """The folds of a trial."""
        folds = self._connection.call("GET", f"/studies/{name}/trials/{number}/folds")
        return [FoldView.model_validate(item) for item in folds]

    def confusion(self, name: str, number: int) -> ConfusionView:
        """Confusion counts of a trial."""
        return ConfusionView.model_validate(
            self._connection.call("GET", f"/studies/{name}/trials/{number}/confusion")
        )

    def datasets(self) -> list[DatasetView]:
        """The clip caches a study can name."""
        return [DatasetView.model_validate(item) for item in self._connection.call("GET", "/datasets")]

    def workers(self) -> list[WorkerView]:
        """Workers heard of lately."""
        return [WorkerView.model_validate(item) for item in self._connection.call("GET", "/workers")]
