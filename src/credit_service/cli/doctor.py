"""`credit-service doctor`."""

import asyncio
import contextlib
import shutil
import socket
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

from credit_service.cli.common import DatabaseUrl, Json, settings_of, show, show_json

if TYPE_CHECKING:
    from credit_service.settings import Settings

_OLDEST_SQLITE = (3, 37, 0)  # the first with STRICT tables
_NATS_SECONDS = 5.0
_ANSWER_SECONDS = 2.0
_LEAST_FREE_BYTES = 256 * 1024 * 1024


class Finding(NamedTuple):
    """What was looked at, whether it is well, and what was seen; with `remedy`, what to do about it."""

    what: str
    well: bool
    seen: str
    remedy: str | None = None


def doctor(json_: Json = False, database_url: DatabaseUrl = None) -> None:
    """Look at everything a service needs here, and say what is wrong and what to do. Changes nothing."""
    settings = settings_of(database_url=database_url)
    findings = [finding for look in _LOOKS for finding in look(settings)]
    if json_:
        show_json({"well": all(finding.well for finding in findings), "findings": _shapes(findings)})
    else:
        for finding in findings:
            show(f"{'ok  ' if finding.well else 'BAD '} {finding.what}: {finding.seen}")
            if finding.remedy is not None:
                show(f"     {finding.remedy}")
    if not all(finding.well for finding in findings):
        raise typer.Exit(1)


def _shapes(findings: list[Finding]) -> list[dict[str, object]]:
    return [finding._asdict() for finding in findings]


def _runtime(settings: "Settings") -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("Python", True, version)
    well = sqlite3.sqlite_version_info >= _OLDEST_SQLITE
    remedy = None if well else f"Use a Python built with SQLite {'.'.join(map(str, _OLDEST_SQLITE))} or newer."
    yield Finding("SQLite", well, sqlite3.sqlite_version, remedy)


def _database(settings: "Settings") -> Iterator[Finding]:
    from credit_service.settings import database_of
    from credit_service.storage.engine import StorageError
    from credit_service.storage.tables import REVISION

    if not settings.is_postgres:
        folder = settings.database_path.absolute().parent
        if not folder.is_dir():
            yield Finding("database", False, f"{folder} is not a folder", f"Make it: mkdir -p {folder}")
            return
        yield from _disk(settings.database_path, folder)
    database = database_of(settings)
    try:
        exists, migrated = asyncio.run(database.exists()), database.is_migrated()
    except StorageError as error:
        remedy = "Mend it, or point DATABASE_URL at a ledger of this release: no start succeeds until then."
        yield Finding("database", False, str(error), remedy)
        return
    if not exists:
        yield Finding("database", True, f"{database.name} holds no ledger yet; serve or migrate creates it")
    elif not migrated:
        seen = f"{database.name} does not have schema {REVISION}, which this release works with"
        yield Finding("database", False, seen, "Stop the service and run: credit-service migrate")
    else:
        yield Finding("database", True, f"{database.name}, schema {REVISION}")


def _disk(path: Path, folder: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(folder).free
    roomy = free >= _LEAST_FREE_BYTES
    remedy = None if roomy else f"Make room on the disk of {folder}: a full disk refuses every posting."
    yield Finding("disk", roomy, f"{free // (1024 * 1024)} MiB free", remedy)
    if path.exists() and path.stat().st_mode & stat.S_IROTH:
        yield Finding("files", False, f"every user of this machine can read {path}", f"Run: chmod 600 {path}*")


def _redis(settings: "Settings") -> Iterator[Finding]:
    if not (url := settings.redis_url.get_secret_value()):
        return
    from credit_service.gate.redis import OLDEST, server_of

    try:
        name, version = asyncio.run(server_of(url))
    except ConnectionError as error:
        remedy = "Mend it, or unset REDIS_URL: without it the service is slower, and as right."
        yield Finding("Redis", False, str(error), remedy)
        return
    well = version >= OLDEST
    seen = f"{name} {'.'.join(map(str, version))}"
    yield Finding("Redis", well, seen, None if well else f"Use Redis {OLDEST[0]} or newer, or Valkey.")


def _port(settings: "Settings") -> Iterator[Finding]:
    host, port = settings.service_host, settings.service_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if _is_a_service(host, port):
                yield Finding("address", True, f"a credit-service answers on {host}:{port}")
                return
            remedy = "Stop the program that listens there, or choose another SERVICE_HOST or SERVICE_PORT."
            yield Finding("address", False, f"{host}:{port} cannot be listened on: {error.strerror}", remedy)
            return
    yield Finding("address", True, f"{host}:{port} is free")


def _is_a_service(host: str, port: int) -> bool:
    from http.client import HTTPConnection, HTTPException

    connection = HTTPConnection(host, port, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().read() == b'{"status":"ok"}'
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _nats(settings: "Settings") -> Iterator[Finding]:
    url = settings.nats_url.get_secret_value()
    if not url:
        return
    from credit_service.broker import Broker, BrokerUnavailable
    from credit_service.observability import configure_logs

    configure_logs(settings)
    broker = Broker(url, name="credit-service doctor")

    async def look() -> None:
        broker.start()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_NATS_SECONDS):
                    await broker.jetstream()
            await broker.check()
        finally:
            await broker.close()

    try:
        asyncio.run(look())
    except BrokerUnavailable as error:
        remedy = "Mend it, or point NATS_URL at another: no events come in until then; HTTP works meanwhile."
        yield Finding("NATS", False, str(error), remedy)
    else:
        yield Finding("NATS", True, broker.name)


def _choices(settings: "Settings") -> Iterator[Finding]:
    """Settings that are possible, and probably not meant."""
    if settings.order_credit_fixed_amount == settings.order_credit_percentage == settings.order_credit_minimum == 0:
        remedy = "Set ORDER_CREDIT_FIXED_AMOUNT, ORDER_CREDIT_PERCENTAGE or ORDER_CREDIT_MINIMUM."
        yield Finding("price", False, "an order costs nothing", remedy)
    if settings.order_credit_percentage and settings.order_credit_fixed_amount:
        seen = "an order costs the percentage or the fixed amount, whichever is higher"
        yield Finding("price", True, seen)


_LOOKS: tuple[Callable[["Settings"], Iterator[Finding]], ...] = (_runtime, _database, _redis, _nats, _port, _choices)
