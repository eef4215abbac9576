"""Run a real `credit-service serve` in its own process, for tests that need one.

The process ends with its test. It also ends with pytest, even if pytest is killed.
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
    """Use as `preexec_fn`: the kernel kills the new process when its parent ends, and Ctrl-C interrupts it."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell makes its background processes ignore SIGINT


def start(*arguments: str | Path, cwd: Path, **popen: Any) -> subprocess.Popen[str]:
    """Start a `credit-service` command. Its environment contains only the settings in `env`."""
    popen["env"] = clean_environment(**popen.pop("env", {}))
    return subprocess.Popen(
        [sys.executable, "-m", "credit_service", *map(str, arguments)],
        cwd=cwd,
        text=True,
        preexec_fn=die_with_parent,
        **popen,
    )


def plain_client(url: str = "", **options: Any) -> httpx2.Client:
    """Return a client without TLS. A client with TLS first reads all certificates of the machine, which takes 20 ms."""
    return httpx2.Client(base_url=url, verify=False, **options)


class Served:
    """A running service, with its URL and its first admin key."""

    def __init__(
        self,
        database: Path | str,
        *,
        folder: Path | None = None,
        port: int = 0,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Start the service on an SQLite file in the folder of that file, or on a PostgreSQL URL in `folder`.

        This first creates a missing file from a template, because a service that must migrate takes 1.5 times as long
        to start. tests/test_service.py tests a start that migrates.
        """
        self.database = database
        if isinstance(database, Path):
            if not database.exists():
                new_file(database)
            folder, name, url = database.parent, database.name, f"sqlite:///{database}"
        else:
            assert folder is not None, "the service writes the first admin key into this folder"
            name, url = "credit-service", database
        self._skipped = 0
        # We read this file by its name, because an open file would share its position with the writing process.
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
        """Return the standard error of the service, without skipped text."""
        return self._stderr.read_text()[self._skipped :]

    def skip_errors(self) -> None:
        """Exclude the text written so far from `errors`, for the next test."""
        self._skipped = len(self._stderr.read_text())

    def client(self) -> httpx2.Client:
        """Return an HTTP client that sends the admin key."""
        return plain_client(f"{self.url}/api/v1", headers={"Authorization": f"Bearer {self.key}"}, timeout=60)

    def stop(self) -> None:
        """Stop the service with SIGTERM, and wait until it has finished its current requests."""
        self.process.terminate()
        try:
            assert self.process.wait(_STOP_SECONDS) in (0, -signal.SIGTERM), self.errors()
        finally:
            self.kill()

    def kill(self) -> None:
        """Stop the service with SIGKILL, so that it cannot finish its requests."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextlib.contextmanager
def served(
    database: Path | str, *, folder: Path | None = None, port: int = 0, settings: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """Run a service on this database. Its environment contains only these settings and DATABASE_URL. See `Served`."""
    service = Served(database, folder=folder, port=port, settings=settings)
    try:
        yield service
    finally:
        service.kill()


@contextlib.contextmanager
def reaped(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Kill the process at the end of the block, if it still runs."""
    try:
        yield process
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()
