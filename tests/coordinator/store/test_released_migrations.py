"""Migrations that databases have run are never changed, removed or given another number."""

from __future__ import annotations

import hashlib
from pathlib import Path

from alembic.script import ScriptDirectory

from coordinator.store.revisions import alembic_config

RELEASED = """
6380cfe6b17781a50dfabb416204755657579c0c78dac01ba73822909a79231f 0001_first_tables.py
e41809fec7fee2a2e27ce59b5186b109482ff52212eeeb5aa101924242441324 0002_reused_folds.py
b91a63a3143d1996b3cd24721f0e16c1b63d9a1b495a83e74ad7398c2391eaa5 0003_open_trials.py
e609035ce925a551802104a5931c6a64a5ff8ebdb903ce04024feaefb61f175c 0004_fold_order.py
cc30c0097ce389ad0e7fb1abbfb3cca97805c5e2040989cbe2f063ee934abbb2 0005_study_life.py
45f6b8eae1c81bf36fa305f0152be8e24dc7dca633b170e4d0864375a012dd15 0006_tokens.py
4d3045ccf48cab61ea41c6d69874a635bdcd757cbefc0349344aa739fe155cf9 0007_completed.py
c3c701dd174b8da9739aec639728ab3643e654129ee4783ce6d19b4f130a15e1 0008_drained_workers.py
bbf72aae7431c0d1dcc90303c474e5c75b18803a45a00d516b81644ed78fd728 0009_sessions.py
721e712c14aa12c19fc8b2c7e5b1b72b45b690f80ecdfcf9cd201985644581c7 0010_pending_folds.py
400a5a9bc1a159c2847b00bf50c543c672b7279d490c1a067893b474e175dd47 0011_bounded_specs.py
a198a044bf357f74834c806608dcf44c478fc905f3eaacafcfabd4dbebe4c523 0012_claims_without_a_fold.py
153c46b573f8f486515f9389a187cc5973a96c43c7e362e76ce5fc26eff3cc39 0013_leader.py
27facc080358e86bc2113b915ed4cfe3908bc00ab9c71ffcf0deb2aea79ec989 0014_frozen_plans.py
0dc734f78b40d2acb25ff53b8b191d11d330544fc9e003f6af94d98f77f88036 0015_beyond_verdict.py
7c1daf2d90d9ba8929938c3be280e57f700692eac482cc9fa1693ed7495afe73 0016_validation_clips.py
53b5ac90fd3d2b41217d7f95e3d66d55c8981ce585b866cce2f26d04c0651813 0017_uar_uf1.py
"""
"""SHA-256 and file name of each migration, in their order; a new migration adds a line, and no line changes."""

WHAT_TO_DO = (
    "restore it as it was and add a new migration instead: databases have already run the old one, and alembic "
    "finds their revision by its number"
)


def problems(files: list[Path]) -> list[str]:
    """What was done to released migrations, and which ones are not in the list."""
    released = dict(line.split()[::-1] for line in RELEASED.split("\n") if line)
    found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    return [
        *(f"{name} was removed or renamed; {WHAT_TO_DO}" for name in released if name not in found),
        *(
            f"{name} was changed; {WHAT_TO_DO}"
            for name, sha256 in released.items()
            if found.get(name, sha256) != sha256
        ),
        *(
            f"{name} is not in the list of released migrations; add the line: {sha256} {name}"
            for name, sha256 in found.items()
            if name not in released
        ),
    ]


def versions() -> list[Path]:
    return sorted(Path(ScriptDirectory.from_config(alembic_config()).versions).glob("*.py"))


def test_released_migrations_are_as_they_were() -> None:
    assert problems(versions()) == []


def test_each_file_s_number_is_its_revision_and_they_form_one_line() -> None:
    scripts = ScriptDirectory.from_config(alembic_config())
    revisions = [script.revision for script in scripts.walk_revisions()][::-1]
    assert revisions == [file.name.partition("_")[0] for file in versions()]
    assert revisions == [f"{number:04}" for number in range(1, len(revisions) + 1)]


def test_a_change_and_another_number_are_named(tmp_path: Path) -> None:
    for file in versions():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with (tmp_path / "0005_study_life.py").open("a") as changed:
        changed.write("\n")
    (tmp_path / "0013_leader.py").rename(tmp_path / "0014_leader.py")
    removed, changed_, added = problems(sorted(tmp_path.iterdir()))
    assert removed.startswith("0013_leader.py was removed or renamed; restore it as it was and add")
    assert changed_.startswith("0005_study_life.py was changed; restore it")
    assert added.startswith("0014_leader.py is not in the list")
