"""`foldwise`: the command line. Each module of `cli.commands` brings its commands; this one wires them.

A command imports what it needs when it runs, because each image carries only its own packages.
"""

from __future__ import annotations

import os
import sys
from importlib import metadata
from typing import Annotated

import typer

from cli.cluster_access import KubeContext, chosen_context
from cli.commands import cache, local, model, plan, processes, result, study, token, workers
from cli.interruption import Interrupted, raise_on_signals
from services.errors import EXIT_FAILURE, EXIT_TRY_AGAIN, FoldwiseError, InvalidInput
from services.printable import escape_controls
from services.revision import running_revision

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for commands in (local, cache, processes, plan, result, model):
    app.add_typer(commands.app)
app.add_typer(study.app, name="study")
app.command(epilog="Example: foldwise logs first --follow")(study.logs)
app.add_typer(token.app, name="token")
app.add_typer(workers.app, name="workers")


def _show_version(wanted: bool) -> None:
    if wanted:
        version, revision = metadata.version("foldwise"), running_revision()
        print(f"foldwise {version}{f', revision {revision}' if revision != version else ''}")
        raise typer.Exit


@app.callback()
def choose(
    context: Annotated[
        str | None,
        typer.Option(
            envvar="FOLDWISE_CONTEXT", help="Use the foldwise release in this kubectl context's cluster."
        ),
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option(
            "--namespace", "-n", envvar="FOLDWISE_NAMESPACE", help="Use the release in this namespace."
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Hyper-parameter search for 3D-CNN facial emotion recognition, fold by fold."""
    if context is not None or namespace is not None:
        chosen_context.set(KubeContext(context=context, namespace=namespace))


def main() -> None:
    """Run a command; print an expected error as one line and exit with the code of its class."""
    raise_on_signals()
    try:
        _refuse_root()
        app()
    except FoldwiseError as error:
        print(f"foldwise: {escape_controls(error.message)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"foldwise: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(EXIT_FAILURE)
    except Interrupted:
        print("foldwise: stopped; run the same command again to continue", file=sys.stderr)
        sys.exit(EXIT_TRY_AGAIN)


def _refuse_root() -> None:
    """Images run as an unprivileged user; a pod that overrides that must not go unnoticed."""
    user = os.environ.get("FOLDWISE_IMAGE_USER")
    if user is not None and os.geteuid() == 0:
        raise InvalidInput(
            f"this image does not run as root; keep its user, {user}, or set another non-zero user id"
        )


if __name__ == "__main__":
    main()
