"""`foldwise token create, list, revoke`: the tokens of a coordinator."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.table import Table

from cli.options import Json, State, Url, console
from cli.reach import reach
from services.contracts import TokenScope, TokenSpec, TokenView
from services.errors import InvalidInput
from services.search_space import first_problem

app = typer.Typer(
    no_args_is_help=True, help="Create, list and revoke tokens (scope admin).", rich_markup_mode="rich"
)


@app.command(epilog="Example: foldwise token create nightly --scope read > nightly.token")
def create(
    name: Annotated[str, typer.Argument(help="Person or program that will use the token.")],
    scope: Annotated[
        TokenScope,
        typer.Option(help="What the token allows; admin includes write and worker, write includes read."),
    ],
    url: Url = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Create a token and print it, once: it cannot be shown again."""
    try:
        wanted = TokenSpec(name=name, scope=scope)
    except ValidationError as error:
        raise InvalidInput(first_problem(error), field="name") from error
    with reach(url, state) as client:
        made = client.create_token(wanted)
    if json:
        print(made.model_dump_json())
        return
    # Alone on standard output, so that it can be sent to a file.
    print(made.token)
    print(
        f"this token is not shown again; set it as FOLDWISE_TOKEN or FOLDWISE_TOKEN_FILE, and revoke it with: "
        f"foldwise token revoke {made.id}",
        file=sys.stderr,
    )


@app.command("list")
def list_(url: Url = None, state: State = None, json: Json = False) -> None:
    """List all tokens, except those that the coordinator was started with."""
    with reach(url, state) as client:
        tokens = client.tokens()
    if json:
        print("[" + ",".join(token.model_dump_json() for token in tokens) + "]")
    elif tokens:
        console(False).print(_table(tokens))
    else:
        print("there is no token yet; create one with: foldwise token create NAME --scope read")


@app.command(epilog="Example: foldwise token revoke 3f9a21bc77d0")
def revoke(
    token_id: Annotated[
        str, typer.Argument(metavar="ID", help="Id of the token, as `foldwise token list` shows it.")
    ],
    url: Url = None,
    state: State = None,
) -> None:
    """Revoke a token; every coordinator refuses it within five seconds."""
    with reach(url, state) as client:
        client.revoke_token(token_id)
    print(f"token {token_id} is revoked")


def _table(tokens: Sequence[TokenView]) -> Table:
    table = Table("id", "name", "scope", "created", "last used", "revoked", box=None, pad_edge=False)
    for token in tokens:
        times = (token.created_at, token.last_used, token.revoked_at)
        table.add_row(token.id, token.name, token.scope, *(_minute(time) for time in times))
    return table


def _minute(time: datetime | None) -> str:
    return "-" if time is None else f"{time.astimezone():%Y-%m-%d %H:%M}"
