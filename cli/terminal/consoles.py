"""The console that all commands print to: text of other people is shown as it is, and steers no terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from services.printable import escape_controls


class PlainConsole(Console):
    """A console that takes strings literally, in lines as in tables.

    Names of workers, reasons and paths come from other programs. Square brackets in them are no markup, and
    control characters, with which a text could move the cursor or change the title, are printed as `\\x1b`.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(markup=False, emoji=False, **given)

    def render_str(self, text: str, **given: Any) -> Text:
        """Render a string without its control characters."""
        return super().render_str(escape_controls(text), **given)


def bold(text: str) -> Text:
    """A text of ours in bold, to be joined with `+` or printed beside others."""
    return Text(escape_controls(text), style="bold")
