"""How long the import and the export of a study take at the paper's size: 800 trials of 118 folds.

    python -m benchmarks.study_files [--trials 800] [--distinct 40] [--epochs 8]

Results are made up, with one clip cache of 327 clips and seven classes. Trials repeat after `--distinct` ones,
so that making the file takes less time than reading it; every tenth of these counts the folds of the first one
again instead of running them. Import and export run in this process, as the coordinator runs them, on an
embedded PostgreSQL.

The last line is JSON:
    trials, folds, file_mb   size of the study and of its file
    import_s, export_s       seconds of the import with its commit, and of the export
    import_cpu_s             seconds of processor time of this process during the import
    import_folds_per_s       folds imported per second
    memory_mb                growth of this process's peak memory during the import
    round_trip_ms            median of `SELECT 1` from this process, which shows how busy the machine was
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.bench_study import DATASET, FINGERPRINT, study_spec
from cli.local.embedded_postgres import embedded_postgres
from coordinator.scheduling.results import imported_result
from coordinator.store.database import connect, migrate
from coordinator.store.folds import fold_task
from coordinator.store.studies import get_study, parsed_spec, study_split
from coordinator.store.tables import TrialRow
from coordinator.studies import life
from coordinator.studies.export_file import export_lines
from coordinator.studies.import_file import import_study, lines_of
from services.contracts import FoldState, StudySpec, TrialState
from services.search_space import Range, paper_space
from services.study_file import ResultLine, ReusedLine, StudyLine, TrialFoldLine, TrialLine
from tests.harness.simulated_results import learning_result
from tests.harness.tiny_cache import write_clips

SUBJECTS, CLIPS = 118, 327
"""Of CK+ in the paper."""

CLASSES = ("anger", "contempt", "disgust", "fear", "happy", "sadness", "surprise")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one run took."""

    file_mb: float
    import_s: float
    import_cpu_s: float
    export_s: float
    memory_mb: float
    round_trip_ms: float


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=800)
    parser.add_argument("--distinct", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        _write_cache(folder / "caches")
        with embedded_postgres(folder / "postgres") as server:
            engine = connect(server.url)
            migrate(engine)
            measured = _measure(engine, folder, arguments.trials, arguments.distinct, arguments.epochs)
            engine.dispose()
    folds = arguments.trials * SUBJECTS
    table = Table("what", "measured")
    table.add_row("file", f"{measured.file_mb:.0f} MB, {arguments.trials} trials, {folds} folds")
    table.add_row("import", f"{measured.import_s:.1f} s, {folds / measured.import_s:.0f} folds per second")
    table.add_row("export", f"{measured.export_s:.1f} s")
    table.add_row("memory of the import", f"{measured.memory_mb:.0f} MB")
    Console().print(table)
    figures = {
        "trials": arguments.trials,
        "folds": folds,
        "file_mb": round(measured.file_mb, 1),
        "import_s": round(measured.import_s, 1),
        "import_cpu_s": round(measured.import_cpu_s, 1),
        "export_s": round(measured.export_s, 1),
        "import_folds_per_s": round(folds / measured.import_s),
        "memory_mb": round(measured.memory_mb),
        "round_trip_ms": round(measured.round_trip_ms, 2),
    }
    print(json.dumps(figures))


def _measure(engine: Engine, folder: Path, trials: int, distinct: int, epochs: int) -> Measured:
    sessions = sessionmaker(engine)
    file = folder / "study.jsonl"
    with file.open("wb") as output:
        for line in _lines(sessions, folder / "caches", trials, distinct, epochs):
            output.write(line)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, began_cpu = time.perf_counter(), time.process_time()
    with file.open("rb") as content, sessions.begin() as session:
        import_study(session, lines_of(content), folder / "caches", "imported")
    imported, imported_cpu = time.perf_counter(), time.process_time()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    with sessions() as session:
        size = sum(len(line) for line in export_lines(session, "imported"))
    return Measured(
        file_mb=size / 1e6,
        import_s=imported - began,
        import_cpu_s=imported_cpu - began_cpu,
        export_s=time.perf_counter() - imported,
        memory_mb=memory / 1024,
        round_trip_ms=_round_trip_ms(engine),
    )


def _lines(
    sessions: sessionmaker[Session], caches: Path, trials: int, distinct: int, epochs: int
) -> Iterator[bytes]:
    with sessions.begin() as session:
        given = study_spec("made", trials=trials, space=paper_space().model_dump(), start=False)
        life.create(session, StudySpec.model_validate(given), caches)
    with sessions() as session:
        first = StudyLine.model_validate_json(next(export_lines(session, "made")))
        yield _json(first.model_copy(update={"trials": trials}))
        patterns = [_trial(session, number, epochs) for number in range(min(distinct, trials))]
    for number in range(trials):
        line = patterns[number % distinct]
        if number >= distinct and number % 10 == 0:
            line = _reusing(line, number % distinct)
        yield _json(line.model_copy(update={"number": number}))


def _reusing(line: TrialLine, origin: int) -> TrialLine:
    reused = ReusedLine(reused_from=origin, received_at=datetime.now(UTC))
    fold = TrialFoldLine(state=FoldState.DONE, result=reused)
    return line.model_copy(update={"folds": (fold,) * len(line.folds)})


def _trial(session: Session, number: int, epochs: int) -> TrialLine:
    """A complete trial with random parameters; its number is to be replaced."""
    study = get_study(session, "made")
    spec, split = parsed_spec(study), study_split(session, study)
    rng = random.Random(number)
    parameters = {
        name: round(rng.uniform(options.low, options.high), 4)
        if isinstance(options, Range)
        else rng.choice(options)
        for name, options in spec.space.items()
    }
    trial = TrialRow(study_id=study.id, number=-1, parameters=parameters)
    folds = []
    for fold in split:
        labels = dict(zip(fold.clip_ids, fold.labels, strict=True))
        task = fold_task(study, spec, trial, fold)
        payload = learning_result(task, labels, epochs=epochs).model_dump(mode="json")
        row = imported_result(study, spec, trial, fold, task, payload)
        line: dict[str, Any] = {
            name: getattr(row, name) for name in ("payload", "sha256", "best_epoch", "correct", "confusion")
        }
        folds.append(
            TrialFoldLine(state=FoldState.DONE, result=ResultLine(**line, received_at=datetime.now(UTC)))
        )
    return TrialLine(
        number=-1,
        parameters=parameters,
        state=TrialState.COMPLETE,
        value=sum(fold.result.correct for fold in folds if isinstance(fold.result, ResultLine)) / study.clips,
        pruned=None,
        end_reason=None,
        created_at=datetime.now(UTC),
        ended_at=datetime.now(UTC),
        folds=tuple(folds),
    )


def _json(line: StudyLine | TrialLine) -> bytes:
    return line.model_dump_json().encode() + b"\n"


def _write_cache(root: Path) -> None:
    clips = [
        (f"S{number % SUBJECTS:03d}_{number}", f"S{number % SUBJECTS:03d}", CLASSES[number % len(CLASSES)])
        for number in range(CLIPS)
    ]
    write_clips(root, sorted(clips), dataset=DATASET, classes=CLASSES, frames=1, fingerprint=FINGERPRINT)


def _round_trip_ms(engine: Engine) -> float:
    times = []
    with engine.connect() as connection:
        for _ in range(200):
            began = time.perf_counter()
            connection.execute(text("SELECT 1"))
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


if __name__ == "__main__":
    main()
