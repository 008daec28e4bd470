"""`import foldwise`: the names that other people's programs may rely on."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import foldwise
import foldwise.readers
from client.study_client import StudyClient
from services.errors import InvalidInput, NotFound


def test_the_version_is_that_of_the_distribution() -> None:
    assert foldwise.__version__ == version("foldwise")
    assert foldwise.__all__ == ["__version__", "connect", "load_model"]
    with pytest.raises(AttributeError, match="no attribute 'studies'"):
        foldwise.studies  # noqa: B018 - the access itself is tested


def test_importing_it_loads_no_optional_package() -> None:
    code = (
        "import sys, foldwise; print([m for m in ('torch', 'cv2', 'sqlalchemy', 'httpx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_connect_without_a_service_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no foldwise runs on .*; start it with `foldwise up`"):
        foldwise.connect(state=tmp_path)


def test_connect_needs_a_token_for_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOLDWISE_TOKEN", raising=False)
    monkeypatch.delenv("FOLDWISE_TOKEN_FILE", raising=False)
    monkeypatch.setenv("FOLDWISE_URL", "http://127.0.0.1:9")
    with pytest.raises(
        InvalidInput, match=r"the token for http://127\.0\.0\.1:9 is missing; set FOLDWISE_TOKEN"
    ):
        foldwise.connect()
    with foldwise.connect("http://127.0.0.1:9", "some-token") as client:
        assert isinstance(client, StudyClient)


def test_load_model_names_the_models_there_are(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no model 'first'"):
        foldwise.load_model("first", models=tmp_path)


def test_readers_has_what_the_documented_reader_imports() -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "own-reader.md"
    (line,) = [
        line for line in page.read_text().splitlines() if line.startswith("from foldwise.readers import")
    ]
    names = line.removeprefix("from foldwise.readers import").replace(" ", "").split(",")
    assert set(names) <= set(foldwise.readers.__all__)
