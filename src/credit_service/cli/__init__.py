"""The command line. Exit codes: 0 done, 1 found wrong, 2 asked wrong; 130 stopped by Ctrl-C.

A command imports the modules of the server when it runs, so that `--help` is quick.
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from credit_service.cli.backup import backup
from credit_service.cli.common import say
from credit_service.cli.config import config
from credit_service.cli.dead_letters import dead_letters
from credit_service.cli.doctor import doctor
from credit_service.cli.erase import erase
from credit_service.cli.events import events
from credit_service.cli.keys import keys
from credit_service.cli.migrate import migrate
from credit_service.cli.parked import parked
from credit_service.cli.replay import replay
from credit_service.cli.serve import serve
from credit_service.cli.verify import verify

app = typer.Typer(name="credit-service", add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
for command in (serve, migrate, replay, verify, backup, erase, config, doctor):
    app.command()(command)
for group in (keys, events, dead_letters, parked):
    app.add_typer(group)


def _version(asked: bool) -> None:
    if asked:
        from credit_service import __version__

        typer.echo(f"credit-service {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """A prepaid-credit ledger and access gate."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of the `credit-service` command; ends the process with its exit code."""
    try:
        code = app(arguments, prog_name="credit-service", standalone_mode=False)
    except typer.TyperException as error:  # an unknown option, a missing one, an impossible value
        context = getattr(error, "ctx", None)
        asked = "credit-service" if context is None else context.command_path
        sentence = " ".join(error.format_message().replace("Value error, ", "").split())
        say(f"{sentence if sentence.endswith(('.', '?')) else f'{sentence}.'} See {asked} --help.")
        code = 2
    sys.exit(code or 0)
