"""Every `foldwise` command that the documentation shows is one: its options exist and take such values."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from typing import Any

import pytest
import typer
from typer._click.exceptions import UsageError
from typer.core import TyperGroup

from cli.main import app
from tests.harness.documented_commands import PROJECT, shell_blocks

PAGES = sorted(
    str(page.relative_to(PROJECT))
    for page in (PROJECT / "README.md", *(PROJECT / "docs").rglob("*.md"), *(PROJECT / "helm").rglob("*.md"))
)


def commands(page: str) -> Iterator[list[str]]:
    """The words after `foldwise` of each command in the page's shell blocks."""
    for block in shell_blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            environment = list(takewhile(re.compile(r"[A-Z_]+=").match, words))
            words = words[len(environment) :]
            # Its options stand in a file.
            elsewhere = any(word.startswith("FOLDWISE_SETTINGS=") for word in environment)
            if words and words[0] == "foldwise" and not elsewhere:
                # What follows is the shell's; dots stand for what the reader knows.
                ends = [place for place, word in enumerate(words) if word in {">", "|", "&&", "&"}]
                yield [word for word in words[1 : min(ends, default=None)] if word != "..."]


@cache
def command_line() -> Any:
    return typer.main.get_command(app)


def parse(words: list[str]) -> None:
    """As far as to the call of the command's function."""
    command = command_line()
    name: str | None = "foldwise"
    parent: Any = None
    while True:
        context = command.make_context(name, list(words), parent=parent)
        if not isinstance(command, TyperGroup):
            return
        name, below, words = command.resolve_command(context, [*context._protected_args, *context.args])
        command, parent = below, context


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_exist_and_take_these_options(page: str) -> None:
    for words in commands(page):
        try:
            parse(words)
        except UsageError as error:
            raise AssertionError(f"foldwise {shlex.join(words)}: {error.format_message()}") from error


def test_a_command_that_is_none_is_noticed() -> None:
    with pytest.raises(UsageError, match="No such option"):
        parse(["study", "create", "--presets", "demo"])
    with pytest.raises(UsageError, match="No such command"):
        parse(["study", "remove", "first"])
    assert sum(len(list(commands(page))) for page in PAGES) > 80
