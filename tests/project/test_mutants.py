"""The safeguards that `make mutants` removes are still where it looks for them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.harness.source_copy import PROJECT
from tests.mutants import MUTANTS, Mutant, apply


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.without)
def test_a_mutant_can_be_made(mutant: Mutant, tmp_path: Path) -> None:
    copy = tmp_path / mutant.file
    copy.parent.mkdir(parents=True)
    shutil.copy(PROJECT / mutant.file, copy)
    apply(mutant, tmp_path)
    compile(copy.read_text(encoding="utf-8"), str(copy), "exec")
