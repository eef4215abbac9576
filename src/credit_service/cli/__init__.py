"""The command line. Exit codes: 0 done, 1 found wrong, 2 asked wrong.

What a command needs of the server is imported when it runs, so that `--help` is quick.
"""

from typing import Annotated, Any

import typer

app = typer.Typer(
    name="credit-service",
    help="A prepaid-credit ledger and access gate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for a program to read.")]


def _settings(**given: Any) -> Any:
    from credit_service.settings import SettingsError, load

    try:
        return load(**given)
    except SettingsError as error:
        raise wrong(str(error)) from None


def wrong(sentence: str) -> typer.Exit:
    """Say in one line what was asked wrong, and end with exit code 2."""
    typer.echo(f"credit-service: {sentence}", err=True)
    return typer.Exit(2)


@app.callback()
def _root() -> None:
    pass


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.", show_default="8015")] = None,
    workers: Annotated[int, typer.Option(help="Processes that serve; SQLite has one.", min=1)] = 1,
) -> None:
    """Serve the HTTP API. The embedded database is created and migrated on the way."""
    import uvloop

    from credit_service import service
    from credit_service.observability import configure_logs
    from credit_service.storage.base import StorageError

    settings = _settings(service_host=host, service_port=port)
    if workers > 1:
        raise wrong(f"--workers {workers}: an SQLite ledger has one serving process.")
    configure_logs(settings)
    try:
        uvloop.run(service.serve(settings))
    except StorageError as error:
        raise wrong(str(error)) from None
    except KeyboardInterrupt:
        pass


def main() -> None:
    """The entry point of the `credit-service` command."""
    app()
