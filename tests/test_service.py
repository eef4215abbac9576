"""The composition root: the start of the service, its messages and its stop."""

import asyncio
import json
import os
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from credit_service.doors.http.keys import Keyring
from credit_service.ledger.commands import OpenAccount, trial_key
from credit_service.ledger.draft import Posted
from credit_service.service import Service, first_key, serve
from credit_service.settings import Settings, database_of
from credit_service.storage.engine import StorageError
from credit_service.storage.keys import Keys
from tests.doors.keys import key_of
from tests.doors.running import posting
from tests.served import reaped, served, start

MERCHANT = "6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11"


def settings(database: Path | str, **given: Any) -> Settings:
    url = f"sqlite:///{database}" if isinstance(database, Path) else database
    given = {"database_url": url, "database_allow_unsafe": True, **given}
    return Settings(_env_file=None, **given)  # type: ignore[call-arg]


@pytest.fixture
def url(new_ledger: Callable[[], str]) -> str:
    """Return the URL of an empty ledger, on each engine."""
    return new_ledger()


# ---- the first key


async def test_first_key_goes_to_file_that_only_owner_reads(url: str, tmp_path: Path) -> None:
    store = await database_of(settings(url)).opened()
    try:
        shown_key = await first_key(Keys(store), tmp_path / "a.db.admin-key", terminal=False)
        file = tmp_path / "a.db.admin-key"
        assert shown_key == f"$(cat {file})"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        whole = file.read_text().strip()
        key = await key_of(Keyring(Keys(store)), whole)
        assert key is not None
        assert (key.scope, key.expires_at) == ("admin", None)
        assert await first_key(Keys(store), tmp_path / "a.db.admin-key", terminal=False) is None
        assert file.read_text().strip() == whole
    finally:
        await store.close()


async def test_first_key_is_returned_and_not_written_on_a_terminal(url: str, tmp_path: Path) -> None:
    store = await database_of(settings(url)).opened()
    try:
        shown_key = await first_key(Keys(store), tmp_path / "a.db.admin-key", terminal=True)
        assert shown_key is not None
        key = await key_of(Keyring(Keys(store)), shown_key)
        assert key is not None
        assert key.scope == "admin"
        assert not (tmp_path / "a.db.admin-key").exists()
    finally:
        await store.close()


async def test_first_key_replaces_symlink_and_leaves_its_target(url: str, tmp_path: Path) -> None:
    file, elsewhere = tmp_path / "a.db.admin-key", tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    file.symlink_to(elsewhere)
    store = await database_of(settings(url)).opened()
    try:
        await first_key(Keys(store), tmp_path / "a.db.admin-key", terminal=False)
    finally:
        await store.close()
    assert elsewhere.read_text() == "mine"
    assert not file.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_shown_path_with_spaces_works_in_a_shell(tmp_path: Path) -> None:
    directory = tmp_path / "two words"
    directory.mkdir()

    async def make() -> str | None:
        store = await database_of(settings(directory / "a.db")).opened()
        try:
            return await first_key(Keys(store), directory / "a.db.admin-key", terminal=False)
        finally:
            await store.close()

    shown_key = asyncio.run(make())
    shown = subprocess.run(["sh", "-c", f'echo "{shown_key}"'], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("cs_")


# ---- the start


@pytest.mark.skipif(shutil.which("curl") is None, reason="the greeting is a curl command")
def test_greeting_shows_url_ledger_and_a_working_first_call(tmp_path: Path) -> None:
    process = start("serve", "--port", "0", cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with reaped(process):
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        while "-d '" not in lines[-1]:
            lines.append(process.stdout.readline())
        greeting = "".join(lines)
        assert "credit-service 0." in lines[0]
        assert "http://127.0.0.1:" in lines[0]
        assert "ledger in credit-service.db" in lines[0]
        assert "cs_" not in greeting
        command = greeting[greeting.index("curl") :].strip()
        assert json.loads(ask(command, tmp_path))["data"]["balance"] == 100
        key = (tmp_path / "credit-service.db.admin-key").read_text().strip()
        process.terminate()
        out, err = process.communicate(timeout=30)
        assert process.returncode in (0, -signal.SIGTERM)
        assert key not in greeting + out + err
        assert str(tmp_path / "credit-service.db.admin-key") in err
        assert "Traceback" not in err


def test_start_does_not_import_rarely_used_libraries() -> None:
    heavy = ["aiohttp", "alembic", "nats", "opentelemetry.sdk", "redis"]
    code = f"import sys, credit_service.service; print([name for name in {heavy} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def ask(command: str, directory: Path) -> str:
    """Run a curl command, and retry until the service listens."""
    retrying = f"{command} --silent --retry 50 --retry-delay 0 --retry-connrefused --retry-max-time 20"
    return subprocess.run(["sh", "-c", retrying], cwd=directory, capture_output=True, text=True, check=True).stdout


async def refused(**given: Any) -> str:
    """Return the one line that says why the service cannot start."""
    with pytest.raises(StorageError) as error:
        await serve(settings(**{"service_port": 0, **given}))
    assert "\n" not in str(error.value)
    return str(error.value)


async def test_port_in_use_stops_start_with_one_line(tmp_path: Path) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = await refused(database=tmp_path / "a.db", service_port=port)
    assert message == f"127.0.0.1:{port} cannot be listened on: Address already in use."
    assert not (tmp_path / "a.db").exists()  # the start stopped before it made any file


@pytest.mark.parametrize("host", ["no.such.host.invalid", "..", "256.256.256.256", "x" * 70])
async def test_unusable_host_stops_start_with_one_line(tmp_path: Path, host: str) -> None:
    assert "cannot be listened on" in await refused(database=tmp_path / "a.db", service_host=host)


async def test_second_process_on_same_database_stops_with_one_line(tmp_path: Path) -> None:
    store = await database_of(settings(tmp_path / "a.db")).opened()
    try:
        message = await refused(database=tmp_path / "a.db")
        assert "a.db is in use by another credit-service process" in message
        assert str(os.getpid()) in message
    finally:
        await store.close()


async def test_unusable_database_stops_start_with_one_line(tmp_path: Path) -> None:
    assert "nowhere" in await refused(database=tmp_path / "nowhere" / "at" / "all.db")
    (tmp_path / "other.db").write_text("This is not a database, but it is long enough for SQLite to check it." * 100)
    assert "other.db" in await refused(database=tmp_path / "other.db")


async def test_unwritable_first_key_stops_start_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.db.admin-key").mkdir()
    assert "admin-key: the first admin key cannot be written" in await refused(database=tmp_path / "a.db")
    store = await database_of(settings(tmp_path / "a.db")).opened()  # the failed start released its lock
    await store.close()


# ---- the end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_service_after_it_answered_all_requests(tmp_path: Path, number: signal.Signals) -> None:
    answers: list[int] = []
    with served(tmp_path / "a.db", settings={"TRIAL_CREDITS": "100000", "RATE_LIMIT_ENABLED": "false"}) as first:
        with first.client() as client:
            assert client.post("/credits/accounts", json={"merchant_id": MERCHANT}).status_code == 201
        enough = threading.Event()

        def post(worker: int) -> None:
            with first.client() as client:
                for number in count():
                    headers = {"idempotency-key": f"{worker}-{number}"}
                    try:
                        answer = client.post("/credits/transactions", json=posting(MERCHANT), headers=headers)
                    except httpx2.TransportError:
                        return  # the service closed the connection before it read this request
                    answers.append(answer.status_code)
                    if len(answers) > 50:
                        enough.set()

        workers = [threading.Thread(target=post, args=(worker,)) for worker in range(8)]
        for worker in workers:
            worker.start()
        assert enough.wait(30)
        with closing(socket.create_connection(("127.0.0.1", first.port))):  # an idle connection
            first.process.send_signal(number)
            assert first.process.wait(30) in (0, -number)
        for worker in workers:
            worker.join()
        log = first.errors()
        assert "Traceback" not in log
        assert "rror" not in log
    assert set(answers) == {201}
    assert list(tmp_path.glob("a.db-*")) == []  # the one file holds everything
    # The ledger has every answered posting, and at most one unanswered posting of each worker.
    sequence, used_at = asyncio.run(look(tmp_path / "a.db"))
    assert len(answers) + 1 <= sequence <= len(answers) + 1 + len(workers)
    assert used_at is not None


async def look(database: Path) -> tuple[int, int | None]:
    """Return the number of transactions of the only account, and the last use of the only key."""
    store = await database_of(settings(database)).opened()
    (books,) = [books async for books in store.books()]
    (key,) = await Keys(store).all()
    await store.close()
    return books.account.sequence, key.last_used_at


async def test_queued_commands_are_posted_before_the_store_closes(url: str) -> None:
    store = await database_of(settings(url)).opened()
    service = Service(store, settings(url))
    merchants = [str(uuid4()) for _ in range(2500)]
    async with service.running():
        commands = [OpenAccount(merchant_id=merchant, key=trial_key(merchant)) for merchant in merchants]
        submitted = [asyncio.ensure_future(service.posting.submit(command)) for command in commands]
        await asyncio.sleep(0)
    assert all(isinstance(task.result(), Posted) for task in submitted if task.done())
    assert all(task.done() for task in submitted)


async def test_store_closes_even_if_the_stop_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await database_of(settings(tmp_path / "a.db")).opened()
    service = Service(store, settings(tmp_path / "a.db"))

    async def broken() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(service.keyring, "flush", broken)
    with pytest.raises(RuntimeError):
        async with service.running():
            pass
    again = await database_of(settings(tmp_path / "a.db")).opened()  # the failed stop released the lock
    await again.close()


# ---- the log


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_log_has_no_lines_for_bad_requests_and_no_secrets(tmp_path: Path, log_format: str) -> None:
    with served(tmp_path / "a.db", settings={"LOG_FORMAT": log_format}) as first, first.client() as client:
        quiet = first.errors()
        assert quiet.count("\n") == 1
        assert "first_admin_key_written" in quiet
        made = client.post("/api-keys", json={"name": "x", "scope": "read"}).json()["data"]["key"]
        client.get("/credits/accounts", headers={"authorization": f"Bearer {made}x"})
        client.get(f"/nothing?key={made}")
        client.post("/credits/transactions", content=b"nonsense")
        for sent in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n", b""):
            with closing(socket.create_connection(("127.0.0.1", first.port))) as connection:
                connection.sendall(sent)
        assert client.get("/health").status_code == 200
        assert first.errors() == quiet
        # Drop a table, so that a request fails with an unexpected error while its key is a local variable.
        with closing(sqlite3.connect(tmp_path / "a.db")) as database:
            database.execute("DROP TABLE grants")
        assert client.post("/credits/accounts", json={"merchant_id": MERCHANT}).json()["code"] == "internal"
        log = first.errors()
        assert "Traceback" in log
        assert "no such table" in log
        assert first.key.split("_", 2)[2] not in log
        assert made.split("_", 2)[2] not in log
        assert "authorization" not in log.lower()
        if log_format == "json":
            assert all(json.loads(line) for line in log.splitlines())
