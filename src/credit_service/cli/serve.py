"""`credit-service serve`."""

import gc
from typing import Annotated

import typer

from credit_service.cli.common import DatabaseUrl, settings_of, wrong


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0 takes a free one.", show_default="8015")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that serve; SQLite has one.", min=1)] = 1,
    database_url: DatabaseUrl = None,
) -> None:
    """Serve the HTTP API. The embedded database is created and migrated on the way."""
    gc.set_threshold(500_000)  # what is imported stays: looking through it again and again is a quarter of the start
    import uvloop

    from credit_service import service
    from credit_service.observability import configure_logs
    from credit_service.storage.engine import StorageError

    settings = settings_of(service_host=host, service_port=port, database_url=database_url)
    if workers > 1 and not settings.is_postgres:
        raise wrong(f"--workers {workers}: an SQLite ledger has one serving process.")
    configure_logs(settings)
    try:
        if workers > 1:
            from credit_service.workers import serve as serve_with

            serve_with(settings, workers)
        else:
            uvloop.run(service.serve(settings))
    except StorageError as error:
        raise wrong(str(error)) from None
    except KeyboardInterrupt:
        pass
