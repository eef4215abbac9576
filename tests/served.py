"""A real `credit-service serve` in a process of its own, for tests that need one.

It ends with the test that started it, and with pytest itself however that ends.
"""

import contextlib
import ctypes
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import httpx2

from tests.commands import clean_environment
from tests.storage.files import new_file

_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = count(1)


def die_with_parent() -> None:
    """For `preexec_fn`: the kernel kills this process when the one that started it is gone; Ctrl-C reaches it."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a shell ignores for what it runs in the background


def start(*arguments: str | Path, cwd: Path, **popen: Any) -> subprocess.Popen[str]:
    """Start a `credit-service` command; the settings in `env` are all it gets."""
    popen["env"] = clean_environment(**popen.pop("env", {}))
    return subprocess.Popen(
        [sys.executable, "-m", "credit_service", *map(str, arguments)],
        cwd=cwd,
        text=True,
        preexec_fn=die_with_parent,
        **popen,
    )


def plain_client(url: str = "", **options: Any) -> httpx2.Client:
    """A client without TLS, for which it would first read all certificates of this machine: 20 ms each time."""
    return httpx2.Client(base_url=url, verify=False, **options)


class Served:
    """A service that answers, with its URL and its first admin key."""

    def __init__(
        self,
        database: Path | str,
        *,
        folder: Path | None = None,
        port: int = 0,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Start it on an SQLite file, in its folder; or in a folder on the PostgreSQL database of a URL.

        A file that is not there yet is made first, since a service that has to migrate takes half as long again to
        start. That it can is shown where its greeting is (tests/test_service.py).
        """
        self.database = database
        if isinstance(database, Path):
            if not database.exists():
                new_file(database)
            folder, name, url = database.parent, database.name, f"sqlite:///{database}"
        else:
            assert folder is not None, "where the first admin key is, or will be"
            name, url = "credit-service", database
        self._passed_over = 0
        # Read by its name: an open file shares its place with the process that writes there.
        self._stderr = folder / f"{name}.{next(_numbers)}.stderr"
        with self._stderr.open("w") as errors:
            self.process = start(
                *("serve", "--port", str(port)),
                cwd=folder,
                env={"DATABASE_URL": url, **(settings or {})},
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        try:
            self.url = self._read_url()
            self._wait_until_it_listens()
        except BaseException:
            self.kill()
            raise
        self.port = int(self.url.rpartition(":")[2])
        self.key = (folder / f"{name}.admin-key").read_text().strip()

    def _read_url(self) -> str:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], _START_SECONDS)
        first_line = self.process.stdout.readline() if ready else ""
        found = re.search(r"http://\S+?:\d+", first_line)
        assert found is not None, f"the service did not start: {self.errors()}"
        return found[0]

    def _wait_until_it_listens(self) -> None:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        until = time.monotonic() + _START_SECONDS
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=_START_SECONDS).close()
            except ConnectionRefusedError:
                assert self.process.poll() is None, f"the service ended: {self.errors()}"
                assert time.monotonic() < until, f"the service never listened: {self.errors()}"
                time.sleep(0.02)
            else:
                return

    def errors(self) -> str:
        """What it wrote to standard error."""
        return self._stderr.read_text()[self._passed_over :]

    def pass_over_errors(self) -> None:
        """Leave out of `errors` what it has written so far, for the next test."""
        self._passed_over = len(self._stderr.read_text())

    def client(self) -> httpx2.Client:
        """An HTTP client that calls with the admin key."""
        return plain_client(f"{self.url}/api/v1", headers={"Authorization": f"Bearer {self.key}"}, timeout=60)

    def stop(self) -> None:
        """Ask it to stop, and wait until it has finished what was under way."""
        self.process.terminate()
        try:
            assert self.process.wait(_STOP_SECONDS) in (0, -signal.SIGTERM), self.errors()
        finally:
            self.kill()

    def kill(self) -> None:
        """`kill -9`: it gets no chance to finish anything."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextlib.contextmanager
def served(
    database: Path | str, *, folder: Path | None = None, port: int = 0, settings: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """A service on this database, with these settings (DATABASE_URL apart) in its environment; see `Served`."""
    service = Served(database, folder=folder, port=port, settings=settings)
    try:
        yield service
    finally:
        service.kill()


@contextlib.contextmanager
def reaped(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive the block."""
    try:
        yield process
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()
