"""`foldwise study ...`: running studies (`run`) and changing them (`edit`).

Not allowed here: work that a test would want to call without a command line.
"""

from cli.commands.study import edit
from cli.commands.study.run import app, logs

app.add_typer(edit.app)

__all__ = ["app", "logs"]
