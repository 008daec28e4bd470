"""A backup has everything that cannot be made again, is complete or absent, and a restore is too."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Engine, inspect, text

from cli.local import backup, postgres_account
from cli.local.backup import back_up, restore
from cli.local.backup_archive import MANIFEST, TOKENS
from cli.local.embedded_postgres import embedded_postgres
from cli.local.postgres_programs import load_database
from cli.local.state import RESTORED, StateFolder
from client.local_service import Service
from coordinator.store.database import connect, migrate
from coordinator.store.revisions import alembic_config, newest_revision, revision_of
from services.contracts import TrainingSettings
from services.errors import Conflict, FoldwiseError, InvalidInput, NotFound
from services.model_catalogue import add_model, list_models
from services.search_space import Hyperparameters
from tests.acceptance.up import foldwise_here, wait_for
from tests.harness.coordinator_harness import Harness, SteppedLeader
from tests.harness.tiny_cache import write_tiny_cache

Rows = dict[str, list[Any]]


def all_rows(engine: Engine) -> Rows:
    """Every row of every table, foldwise's and Optuna's."""
    rows: Rows = {}
    with engine.connect() as connection:
        for schema in ("foldwise", "public"):
            for table in inspect(connection).get_table_names(schema=schema):
                query = f'SELECT t::text FROM {schema}."{table}" t ORDER BY 1'  # noqa: S608
                found = connection.execute(text(query))
                rows[f"{schema}.{table}"] = list(found.scalars())
    return rows


def rows_in(state: StateFolder) -> Rows:
    with embedded_postgres(state.database) as server:
        engine = connect(server.url)
        try:
            return all_rows(engine)
        finally:
            engine.dispose()


def run_a_study(engine: Engine, cache_root: Path) -> None:
    """Half of a study, with a live lease and with Optuna's tables."""
    migrate(engine)
    harness = Harness(engine, cache_root)
    harness.leader = SteppedLeader(engine, harness.settings)
    harness.create(name="s", trials=4, protocol={"kind": "kfold", "k": 2})
    for wrong in (0, 1, 0):
        harness.report(harness.must_claim(), wrong, more=False)
        harness.leader.round()
    harness.must_claim("w2")


@dataclass(frozen=True, kw_only=True)
class Made:
    """A state folder with half a study, two models and a cache; and its backup, made while a service ran."""

    state: StateFolder
    archive: Path
    rows: Rows
    running: Service
    running_after: Service | None
    backup: subprocess.CompletedProcess[str]
    restore_into_it: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    state, archive = StateFolder(folder / "state"), folder / "backup.tar"
    state.folder.mkdir(mode=0o755)
    write_tiny_cache(state.caches)
    for name in ("first", "second"):
        add_model(state.models, name, name.encode(), CARD)
    with state.lock(), embedded_postgres(state.database) as server:
        engine = connect(server.url)
        run_a_study(engine, state.caches)
        rows = all_rows(engine)
        running = service_on(state, server.url)
        with engine.begin() as writing:
            writing.execute(text("INSERT INTO foldwise.deleted_studies VALUES ('not committed')"))
            backup = foldwise_here("backup", str(archive), "--state", str(state.folder))
            writing.rollback()
        engine.dispose()
        return Made(
            state=state,
            archive=archive,
            rows=rows,
            running=running,
            running_after=state.service(),
            backup=backup,
            restore_into_it=foldwise_here("restore", str(archive), "--state", str(state.folder)),
        )


def service_on(state: StateFolder, database_url: str) -> Service:
    admin, worker = state.tokens()
    running = Service(
        url="http://127.0.0.1:1",
        admin_token=admin,
        worker_token=worker,
        database_url=database_url,
        pid=os.getpid(),
    )
    state.announce(running)
    return running


CARD = {
    "dataset": "tiny",
    "fingerprint": "f" * 64,
    "classes": ["anger", "happy"],
    "clips": 10,
    "hyperparameters": Hyperparameters(),
    "training": TrainingSettings(),
    "seed": 1,
    "loss": 0.5,
}


@pytest.fixture
def archive(made: Made) -> Path:
    return made.archive


@pytest.fixture
def target(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "restored")


def test_a_backup_of_a_running_service_disturbs_nobody(made: Made) -> None:
    assert made.backup.returncode == 0, made.backup.stderr
    assert made.running_after == made.running
    refused = made.restore_into_it
    assert (refused.returncode, "stop it" in refused.stderr) == (1, True), refused.stderr


def test_a_restored_state_folder_is_as_it_was(made: Made, target: StateFolder) -> None:
    state, rows = made.state, made.rows
    assert len(rows["foldwise.results"]) == 3
    assert len(rows["foldwise.leases"]) == 4
    assert len(rows["public.trials"]) >= 1
    assert stat.S_IMODE(made.archive.stat().st_mode) == 0o600
    restored = foldwise_here("restore", str(made.archive), "--state", str(target.folder))
    assert restored.returncode == 0, restored.stderr
    assert "next: foldwise up --state" in restored.stdout
    assert "tiny/" + "f" * 64 in restored.stdout
    assert target.tokens() == state.tokens()
    assert stat.S_IMODE(target.tokens_file.stat().st_mode) == 0o600
    assert list_models(target.models) == list_models(state.models)
    assert len(list_models(target.models)) == 2
    assert rows_in(target) == rows
    left = {path.name for path in target.folder.iterdir()}
    assert left <= {"postgres", "postgres.log", "postgres.lock", "models", "tokens.json", "lock"}


def test_a_restored_study_continues_as_the_first_does(
    made: Made, target: StateFolder, cache_root: Path
) -> None:
    assert restore(target, made.archive).caches == ("tiny/" + "f" * 64,)
    ended = []
    for folder in (made.state, target):
        with embedded_postgres(folder.database) as server:
            engine = connect(server.url)
            harness = Harness(engine, cache_root)
            harness.leader = SteppedLeader(engine, harness.settings)
            with engine.begin() as connection:
                connection.execute(text("UPDATE foldwise.leases SET expires_at = now() WHERE outcome IS NULL"))
            harness.leader.round()
            number = 0
            while harness.study().state == "running":
                harness.report(harness.must_claim(), number % 2, more=False)
                harness.leader.round()
                number += 1
            trials = [harness.trial(number) for number in range(4)]
            with engine.connect() as connection:
                optuna = connection.execute(
                    text(
                        "SELECT number, param_name, param_value FROM trials JOIN trial_params USING (trial_id) "
                        "ORDER BY 1, 2"
                    )
                ).all()
            ended.append((trials, optuna))
            engine.dispose()
    assert ended[0] == ended[1]
    assert [trial.state for trial in ended[0][0]] == ["complete"] * 4


def test_an_interrupted_backup_leaves_no_file(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "running")
    state.folder.mkdir(mode=0o755)
    target = tmp_path / "out" / "b.tar"
    target.parent.mkdir()
    with embedded_postgres(state.database) as server:
        engine = connect(server.url)
        service_on(state, server.url)
        with engine.begin() as creating:
            creating.execute(text("CREATE TABLE held ()"))
        waits = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")

        def interrupt(pid: int, how: signal.Signals) -> None:
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as looking:
                wait_for(lambda: looking.scalar(waits))
                os.kill(pid, how)

        with engine.begin() as holding:
            # pg_dump waits for this lock, so the backup is in its middle when the signal arrives.
            holding.execute(text("LOCK TABLE held IN ACCESS EXCLUSIVE MODE"))
            command = [sys.executable, "-m", "cli.main", "backup", str(target), "--state", str(state.folder)]
            running = subprocess.Popen(command)
            interrupt(running.pid, signal.SIGTERM)
            assert running.wait(30) == 75
            assert list(target.parent.iterdir()) == []
            child = os.fork()
            if child == 0:
                with suppress(BaseException):
                    back_up(state, target)
                os._exit(1)
            interrupt(child, signal.SIGKILL)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
            assert not target.exists()
        engine.dispose()


def test_a_backup_never_replaces_a_file_and_needs_a_database(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="exists already; choose another name"):
        back_up(StateFolder(tmp_path), archive)
    with pytest.raises(NotFound, match="has no database yet; give the --state"):
        back_up(StateFolder(tmp_path), tmp_path / "b.tar")


def test_a_folder_with_data_is_refused(archive: Path, target: StateFolder) -> None:
    target.tokens_file.parent.mkdir()
    target.tokens_file.write_text("{}")
    with pytest.raises(Conflict, match=r"already has data \(tokens.json\); restore into another --state"):
        restore(target, archive)
    assert target.tokens_file.read_text() == "{}"
    target.tokens_file.unlink()
    (target.models / "mine").mkdir(parents=True)
    with pytest.raises(Conflict, match=r"already has data \(models\)"):
        restore(target, archive)
    (target.models / "mine").rmdir()
    # Caches are often there first.
    target.caches.mkdir()
    restore(target, archive)


def members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def write(target: Path, content: dict[str, bytes], change: Callable[[tarfile.TarInfo], None]) -> None:
    with tarfile.open(target, "w") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            change(info)
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)


def remanifest(content: dict[str, bytes], **fields: Any) -> dict[str, bytes]:
    manifest = json.loads(content[MANIFEST]) | fields
    return {**content, MANIFEST: json.dumps(manifest).encode()}


def unchanged(_: tarfile.TarInfo) -> None:
    pass


def linked(info: tarfile.TarInfo) -> None:
    if info.name == TOKENS:
        info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/passwd", 0


@pytest.mark.parametrize(
    ("damage", "change", "words"),
    [
        (lambda c: {"../evil": b"x", **c}, unchanged, "the member '../evil', which no backup has"),
        (lambda c: {"models/../../evil": b"x", **c}, unchanged, "which no backup has"),
        (lambda c: {"/tmp/evil": b"x", **c}, unchanged, "which no backup has"),  # noqa: S108
        (lambda c: {"models//evil": b"x", **c}, unchanged, "which no backup has"),
        (lambda c: {"caches/x": b"x", **c}, unchanged, "which no backup has"),
        (lambda c: c, linked, "the member 'tokens.json', which no backup has"),
        (lambda c: {"models/more/x": b"x", **c}, unchanged, "models/more/x is not as its manifest says"),
        (lambda c: {**c, TOKENS: b"{}"}, unchanged, "tokens.json is not as its manifest says"),
        (lambda c: {n: d for n, d in c.items() if n != TOKENS}, unchanged, "tokens.json is not as"),
        (lambda c: {n: d for n, d in c.items() if n != MANIFEST}, unchanged, "cut off before its manifest"),
        (lambda c: {MANIFEST: c[MANIFEST], **c}, unchanged, "twice or after the manifest"),
        (lambda c: remanifest(c, format="foldwise-backup/2"), unchanged, "format: Input should be"),
        (lambda c: {MANIFEST: b"no JSON"}, unchanged, "its manifest is not one"),
        (lambda c: remanifest({MANIFEST: c[MANIFEST]}, files={}), unchanged, "it has no database"),
    ],
)
def test_a_damaged_or_foreign_archive_is_refused_before_anything_is_written(
    damage: Callable[[dict[str, bytes]], dict[str, bytes]],
    change: Callable[[tarfile.TarInfo], None],
    words: str,
    archive: Path,
    target: StateFolder,
) -> None:
    broken = target.folder.parent / "broken.tar"
    write(broken, damage(members(archive)), change)
    with pytest.raises(
        InvalidInput, match=r"broken\.tar is not a complete backup: .*; copy it again"
    ) as refused:
        restore(target, broken)
    assert words in refused.value.message
    assert not target.folder.exists()
    assert [path.name for path in target.folder.parent.iterdir()] == ["broken.tar"]


def test_no_flipped_or_missing_bytes_pass(archive: Path, target: StateFolder) -> None:
    content = archive.read_bytes()
    broken = target.folder.parent / "broken.tar"
    rng = random.Random(1)
    ends = [0, 1, 511, 512, 513, *(rng.randrange(len(content) - 20_000) for _ in range(20))]
    for damaged in (
        *(content[:end] for end in ends),
        *(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :] for at in ends[1:]),
        *(content[:at] + rng.randbytes(512) + content[at + 512 :] for at in ends[1:]),
    ):
        broken.write_bytes(damaged)
        with pytest.raises(InvalidInput, match="not a complete backup"):
            restore(target, broken)
    assert not target.folder.exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"schema_revision": "0099", "foldwise": "9.1"},
            "has revision 0099, this program knows revisions up to",
        ),
        ({"postgresql": 99, "foldwise": "9.1"}, "is from PostgreSQL 99"),
    ],
)
def test_an_archive_of_a_newer_program_is_refused(
    fields: dict[str, Any], words: str, archive: Path, target: StateFolder
) -> None:
    newer = target.folder.parent / "newer.tar"
    write(newer, remanifest(members(archive), **fields), unchanged)
    ended = foldwise_here("restore", str(newer), "--state", str(target.folder))
    assert (ended.returncode, words in ended.stderr) == (1, True), ended.stderr
    assert ended.stderr.endswith("restore it with foldwise 9.1 or newer\n")
    assert not target.folder.exists()


def test_an_archive_of_an_older_schema_is_migrated_at_the_next_start(
    tmp_path: Path, target: StateFolder
) -> None:
    old = StateFolder(tmp_path / "old")
    old.folder.mkdir(mode=0o755)
    with embedded_postgres(old.database) as server:
        engine = connect(server.url)
        with engine.begin() as connection:
            connection.execute(text("CREATE SCHEMA foldwise"))
            config = alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "0005")
        engine.dispose()
    assert back_up(old, tmp_path / "old.tar").schema_revision == "0005"
    restore(target, tmp_path / "old.tar")
    with embedded_postgres(target.database) as server:
        engine = connect(server.url)
        migrate(engine)
        with engine.connect() as connection:
            assert revision_of(connection) == newest_revision()
        engine.dispose()


def test_a_failed_restore_leaves_no_data(
    archive: Path, target: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(url: str, data: Path, source: Path) -> None:
        load(url, data, source)
        raise FoldwiseError("the disk is full")

    load = load_database
    monkeypatch.setattr(backup, "load_database", fail)
    with pytest.raises(FoldwiseError, match="the disk is full"):
        restore(target, archive)
    assert [path.name for path in target.folder.iterdir()] == ["lock"]


def killed_after(renames: int, function: Callable[[], object]) -> None:
    """Run a function in another process, which ends at once before the next rename of what is restored."""

    def counted(path: Path, new: Path) -> Path:
        nonlocal renames
        if ".restor" in str(path) and "initdb" not in str(path):
            if renames == 0:
                os._exit(9)
            renames -= 1
        return rename(path, new)

    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            rename, Path.rename = Path.rename, counted  # type: ignore[assignment,method-assign]
            function()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_a_restore_that_is_killed_at_any_point_is_done_or_can_be_repeated(
    made: Made, target: StateFolder, tmp_path: Path
) -> None:
    """Killed after each rename: before that of the folder, nothing was restored; after it, all was."""
    killed_after(0, lambda: restore(target, made.archive))
    assert not target.database.exists()
    assert not target.tokens_file.exists()
    with pytest.raises(NotFound, match="has no database yet"):
        back_up(target, tmp_path / "again.tar")
    killed_after(1, lambda: restore(target, made.archive))
    assert (target.folder / RESTORED).is_dir()
    assert not target.models.exists()
    for moved in (target.models, target.tokens_file):
        killed_after(1, lambda: back_up(target, tmp_path / "again.tar"))
        assert moved.exists()
        assert not target.database.exists()
    back_up(target, tmp_path / "again.tar")
    assert members(tmp_path / "again.tar").keys() == members(made.archive).keys()
    assert not (target.folder / RESTORED).exists()
    assert len(list_models(target.models)) == 2
    assert rows_in(target) == made.rows


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's PostgreSQL runs as another user")
def test_a_restore_spares_a_database_that_was_moved_out_of_a_folder_that_only_root_can_reach(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_account, "ROOTS_FOLDER", tmp_path / "var")
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    state = StateFolder(private / "state")
    # An empty folder, in whose place comes a link.
    state.database.mkdir(parents=True)
    restore(state, archive)
    first = state.database.rename(private / "first")
    assert first.is_symlink()
    state.tokens_file.unlink()
    shutil.rmtree(state.models)

    def fail(url: str, data: Path, source: Path) -> None:
        raise FoldwiseError("the disk is full")

    monkeypatch.setattr(backup, "load_database", fail)
    with pytest.raises(FoldwiseError, match="the disk is full"):
        restore(state, archive)
    assert (first / "PG_VERSION").exists()
    assert [path.name for path in (tmp_path / "var").glob("postgres-*")] == [first.resolve().name]
