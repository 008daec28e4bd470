"""Text of other programs is shown as it is, and steers no terminal and no log."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from cli.terminal.consoles import PlainConsole
from services.logs import configure_logs
from services.printable import escape_controls

HOSTILE = "\x1b]0;pwned\x07\x1b[31mred [/nonsense] [bold]x[/bold] :smile: \x9b2J\u202eright"


def shown(*things: object) -> str:
    file = io.StringIO()
    PlainConsole(file=file, width=400, force_terminal=False).print(*things)
    return file.getvalue()


def table_of(text: str) -> Table:
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    return table


@pytest.mark.parametrize("show", [lambda text: text, table_of], ids=["line", "table"])
def test_a_text_is_printed_literally_and_without_controls(show: Callable[[str], object]) -> None:
    text = shown(show(HOSTILE))
    assert "[/nonsense] [bold]x[/bold] :smile:" in text
    assert "\\x1b]0;pwned\\x07" in text
    assert not set(text) & set("\x1b\x07\x9b\u202e")


@given(st.text())
def test_no_text_breaks_a_table(text: str) -> None:
    printed = shown(table_of(text))
    assert not any(ord(character) < 32 and character not in "\n\t" for character in printed)


@given(st.text())
def test_only_controls_are_changed(text: str) -> None:
    plain = escape_controls(text)
    assert (plain == text) == (not any(escape_controls(character) != character for character in text))
    assert "\n" not in escape_controls(text, lines=False)


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_logged_value_is_one_line(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FOLDWISE_LOG", kind)
    before = structlog.get_config()
    try:
        configure_logs()
        structlog.get_logger().info("worker_seen", worker=f"{HOSTILE}\n2026-01-01 info forged")
    finally:
        structlog.configure(**before)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "\x1b" not in out
    if kind == "json":
        assert "forged" in json.loads(out)["worker"]
