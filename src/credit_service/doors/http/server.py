"""The HTTP server: uvicorn with our protocol, its listening socket, and how both stop."""

import asyncio
import contextlib
import resource
import socket
from collections.abc import Iterator
from functools import partial
from types import FrameType
from typing import Any, Protocol

import uvicorn

from credit_service.doors.http.addresses import Addresses
from credit_service.doors.http.call import Application, Receive, Scope, Send
from credit_service.doors.http.connections import Connections
from credit_service.doors.http.protocol import LimitedProtocol, close_unread
from credit_service.settings import Settings
from credit_service.storage.engine import StorageError

_OTHER_FILES = 200
"""File descriptors for everything that is not a connection of a client."""
_HEADERS = [("X-Content-Type-Options", "nosniff")]


class Served(Protocol):
    """The service, as the server sees it. `stopping` becomes true when the service was told to stop."""

    app: Application
    stopping: bool

    def end_streams(self) -> None:
        """End the streams of events, which would never end by themselves."""
        ...


class Server(uvicorn.Server):
    """Serves until it is told to stop. For SHUTDOWN_DELAY_SECONDS before, /readyz says that the service stops."""

    def __init__(self, served: Served, settings: Settings) -> None:
        super().__init__(_config(served.app, settings))
        self._served = served
        self._settings = settings
        self._loop = asyncio.get_running_loop()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        connections: Any = self.server_state.connections
        closing = asyncio.create_task(close_unread(connections, self._settings.write_timeout_seconds))
        try:
            await super().serve(sockets)
        finally:
            closing.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams first; then finish the requests under way."""
        self._served.end_streams()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the stop, a second one ends the delay."""
        if self._settings.shutdown_delay_seconds and not self._served.stopping:
            self._served.stopping = True
            end = partial(super().handle_exit, sig, frame)
            self._loop.call_soon_threadsafe(self._loop.call_later, self._settings.shutdown_delay_seconds, end)
        else:
            super().handle_exit(sig, frame)


class MetricsServer(uvicorn.Server):
    """Serves /metrics of this process alone, so that Prometheus sees each worker. It ends with the service."""

    def __init__(self, served: Served, settings: Settings) -> None:
        async def only_metrics(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"] != "/metrics":
                scope = {**scope, "path": "/", "raw_path": b"/"}
            await served.app(scope, receive, send)

        config = _config(only_metrics, settings)
        config.lifespan = "off"
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the service's own server."""
        yield


def _config(app: Application, settings: Settings) -> uvicorn.Config:
    """uvicorn's configuration: with our limits, and without its own logs and headers."""
    is_trusted = Addresses(settings.trusted_proxy_networks).is_trusted
    limits = Connections(_affordable(settings.connections_max), settings.connections_max_per_address, is_trusted)
    protocol = type(
        "Protocol",
        (LimitedProtocol,),
        {
            "limits": limits,
            "headers_max_bytes": settings.headers_max_bytes,
            "header_timeout_seconds": settings.header_timeout_seconds,
        },
    )
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        loop="uvloop",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        headers=_HEADERS,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=int(settings.posting_deadline_seconds) + 1,
    )


def _affordable(connections: int) -> int:
    """As many connections as asked for, or as the operating system allows; its soft limit is raised if need be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return max(1, allowed - _OTHER_FILES)


def listen(settings: Settings, port: int | None = None) -> socket.socket:
    """The listening socket. It is bound before anything else is opened, since a port in use is a common fault.

    Raises StorageError with one readable line.
    """
    host, port = settings.service_host, settings.service_port if port is None else port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(2048)  # callers may come as soon as the address is known
    except (OSError, UnicodeError) as error:  # a name that cannot be looked up is not even an OSError
        listening.close()
        reason = error.strerror if isinstance(error, OSError) else "this is not the name of a host"
        raise StorageError(f"{host}:{port} cannot be listened on: {reason}.") from None
    return listening
