"""A backup has everything that cannot be made again, is complete or absent, and a restore is too."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Engine, create_engine, inspect, text

from cli.local import backup
from cli.local.backup import back_up, restore
from cli.local.backup_archive import MANIFEST, TOKENS
from cli.local.embedded_postgres import embedded_postgres
from cli.local.postgres_programs import load_database
from cli.local.state import RESTORED, StateFolder
from client.local_service import Service
from coordinator.store.database import migrate
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
        engine = create_engine(server.url)
        try:
            return all_rows(engine)
        finally:
            engine.dispose()


def run_a_study(url: str, cache_root: Path) -> None:
    """Half of a study, with a live lease and with Optuna's tables."""
    engine = create_engine(url)
    migrate(engine)
    harness = Harness(engine, cache_root)
    harness.leader = SteppedLeader(engine, harness.settings)
    harness.create(name="s", trials=4)
    for wrong in (0, 1, 0, 1, 0, 1):
        harness.report(harness.must_claim(), wrong, more=False)
        harness.leader.round()
    harness.must_claim("w2")
    engine.dispose()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[StateFolder, Path, Rows]:
    """A state folder with half a study, two models and a cache; a backup of it; and its rows."""
    folder = tmp_path_factory.mktemp("made")
    state = StateFolder(folder / "state")
    state.folder.mkdir(mode=0o755)
    write_tiny_cache(state.caches)
    with embedded_postgres(state.database) as server:
        run_a_study(server.url, state.caches)
    state.tokens()
    for name in ("first", "second"):
        add_model(state.models, name, name.encode(), CARD)
    rows = rows_in(state)
    back_up(state, folder / "backup.tar")
    return state, folder / "backup.tar", rows


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
def archive(made: tuple[StateFolder, Path, Rows]) -> Path:
    return made[1]


@pytest.fixture
def target(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "restored")


def test_a_restored_state_folder_is_as_it_was(
    made: tuple[StateFolder, Path, Rows], target: StateFolder
) -> None:
    state, archive, rows = made
    assert len(rows["foldwise.results"]) == 6
    assert len(rows["foldwise.leases"]) == 7
    assert len(rows["public.trials"]) >= 1
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    manifest = restore(target, archive)
    assert manifest.caches == ("tiny/" + "f" * 64,)
    assert target.tokens() == state.tokens()
    assert stat.S_IMODE(target.tokens_file.stat().st_mode) == 0o600
    assert list_models(target.models) == list_models(state.models)
    assert len(list_models(target.models)) == 2
    assert rows_in(target) == rows
    left = {path.name for path in target.folder.iterdir()}
    assert left <= {"postgres", "postgres.log", "postgres.lock", "models", "tokens.json", "lock"}


def test_a_restored_study_continues_as_the_first_does(
    made: tuple[StateFolder, Path, Rows], target: StateFolder, cache_root: Path
) -> None:
    state, archive, _ = made
    restore(target, archive)
    ended = []
    for folder in (state, target):
        with embedded_postgres(folder.database) as server:
            engine = create_engine(server.url)
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


def test_a_backup_of_a_running_service_disturbs_nobody(tmp_path: Path, target: StateFolder) -> None:
    state = StateFolder(tmp_path / "running")
    state.folder.mkdir(mode=0o755)
    with state.lock(), embedded_postgres(state.database) as server:
        engine = create_engine(server.url)
        migrate(engine)
        admin, worker = state.tokens()
        running = Service(
            url="http://127.0.0.1:1",
            admin_token=admin,
            worker_token=worker,
            database_url=server.url,
            pid=os.getpid(),
        )
        state.announce(running)
        with engine.begin() as writing:
            writing.execute(text("INSERT INTO foldwise.deleted_studies VALUES ('not committed')"))
            ended = foldwise_here("backup", str(tmp_path / "b.tar"), "--state", str(state.folder))
            assert ended.returncode == 0, ended.stderr
        engine.dispose()
        assert state.service() == running
        refused = foldwise_here("restore", str(tmp_path / "b.tar"), "--state", str(state.folder))
        assert (refused.returncode, "stop it" in refused.stderr) == (1, True), refused.stderr
    restored = foldwise_here("restore", str(tmp_path / "b.tar"), "--state", str(target.folder))
    assert restored.returncode == 0, restored.stderr
    assert "next: foldwise up --state" in restored.stdout
    assert rows_in(target)["foldwise.deleted_studies"] == []


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_backup_leaves_no_file(how: signal.Signals, tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "running")
    state.folder.mkdir(mode=0o755)
    target = tmp_path / "out" / "b.tar"
    target.parent.mkdir()
    with embedded_postgres(state.database) as server:
        engine = create_engine(server.url)
        migrate(engine)
        state.announce(
            Service(url="", admin_token="", worker_token="", database_url=server.url, pid=os.getpid())
        )
        with engine.begin() as holding:
            # pg_dump waits for this lock, so the backup is in its middle when the signal arrives.
            holding.execute(text("LOCK TABLE foldwise.results IN ACCESS EXCLUSIVE MODE"))
            running = subprocess.Popen(
                [sys.executable, "-m", "cli.main", "backup", str(target), "--state", str(state.folder)]
            )
            waits = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as looking:
                wait_for(lambda: looking.scalar(waits))
                running.send_signal(how)
                assert running.wait(30) == (75 if how == signal.SIGTERM else -9)
        engine.dispose()
    assert not target.exists()
    if how == signal.SIGTERM:
        assert list(target.parent.iterdir()) == []


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
        engine = create_engine(server.url)
        with engine.begin() as connection:
            connection.execute(text("CREATE SCHEMA foldwise"))
            config = alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "0005")
        engine.dispose()
    assert back_up(old, tmp_path / "old.tar").schema_revision == "0005"
    restore(target, tmp_path / "old.tar")
    with embedded_postgres(target.database) as server:
        engine = create_engine(server.url)
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
    monkeypatch.undo()
    restore(target, archive)


def test_a_restore_that_is_killed_at_any_point_is_done_or_can_be_repeated(
    made: tuple[StateFolder, Path, Rows], target: StateFolder
) -> None:
    """Killed after each rename: before that of the folder, nothing was restored; after it, all was."""
    _, archive, rows = made
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom cli.local.backup import restore\n"
        "from cli.local.state import StateFolder\nleft = int(sys.argv[3])\nrename = Path.rename\n"
        "def counted(path, new):\n    global left\n"
        "    if '.restor' in str(path) and 'initdb' not in str(path):\n"
        "        if left == 0: os._exit(9)\n        left -= 1\n    return rename(path, new)\n"
        "Path.rename = counted\nrestore(StateFolder(Path(sys.argv[1])), Path(sys.argv[2]))\n"
    )
    for renames in (0, 1, 3):
        folder = StateFolder(target.folder.with_name(f"killed-{renames}"))
        arguments = [sys.executable, "-c", program, str(folder.folder), str(archive), str(renames)]
        assert subprocess.run(arguments, check=False).returncode == 9
        if renames == 0:
            assert not folder.database.exists()
            assert not folder.tokens_file.exists()
            restore(folder, archive)
        else:
            with folder.lock():
                pass
        assert not (folder.folder / RESTORED).exists()
        assert len(list_models(folder.models)) == 2
        assert rows_in(folder) == rows
