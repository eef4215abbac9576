"""The composition root: how the service starts, what it says, and how it stops."""

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
    """An empty ledger, on each engine."""
    return new_ledger()


# ---- the first key


async def test_the_first_key_of_an_empty_service_is_written_for_its_owner_alone(url: str, tmp_path: Path) -> None:
    store = await database_of(settings(url)).opened()
    try:
        said = await first_key(Keys(store), tmp_path / "a.db.admin-key", terminal=False)
        file = tmp_path / "a.db.admin-key"
        assert said == f"$(cat {file})"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        whole = file.read_text().strip()
        key = await key_of(Keyring(Keys(store)), whole)
        assert key is not None
        assert (key.scope, key.expires_at) == ("admin", None)
        assert await first_key(Keys(store), tmp_path / "a.db.admin-key", terminal=False) is None
        assert file.read_text().strip() == whole
    finally:
        await store.close()


async def test_on_a_terminal_the_first_key_is_returned_and_written_nowhere(url: str, tmp_path: Path) -> None:
    store = await database_of(settings(url)).opened()
    try:
        said = await first_key(Keys(store), tmp_path / "a.db.admin-key", terminal=True)
        assert said is not None
        key = await key_of(Keyring(Keys(store)), said)
        assert key is not None
        assert key.scope == "admin"
        assert not (tmp_path / "a.db.admin-key").exists()
    finally:
        await store.close()


async def test_a_file_that_was_there_before_does_not_get_the_key(url: str, tmp_path: Path) -> None:
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


def test_a_path_with_spaces_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    directory = tmp_path / "two words"
    directory.mkdir()

    async def make() -> str | None:
        store = await database_of(settings(directory / "a.db")).opened()
        try:
            return await first_key(Keys(store), directory / "a.db.admin-key", terminal=False)
        finally:
            await store.close()

    said = asyncio.run(make())
    shown = subprocess.run(["sh", "-c", f'echo "{said}"'], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("cs_")


# ---- the start


@pytest.mark.skipif(shutil.which("curl") is None, reason="the greeting is a curl command")
def test_the_greeting_says_where_it_is_and_how_to_make_the_first_call(tmp_path: Path) -> None:
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


def test_the_start_is_quick_because_what_few_use_is_not_imported_for_it() -> None:
    heavy = ["aiohttp", "alembic", "nats", "opentelemetry.sdk", "redis"]
    code = f"import sys, credit_service.service; print([name for name in {heavy} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def ask(command: str, directory: Path) -> str:
    """Run a curl command as soon as somebody listens."""
    retrying = f"{command} --silent --retry 50 --retry-delay 0 --retry-connrefused --retry-max-time 20"
    return subprocess.run(["sh", "-c", retrying], cwd=directory, capture_output=True, text=True, check=True).stdout


async def refused(**given: Any) -> str:
    """The one line that says why the service cannot start."""
    with pytest.raises(StorageError) as error:
        await serve(settings(**{"service_port": 0, **given}))
    assert "\n" not in str(error.value)
    return str(error.value)


async def test_a_port_in_use_is_one_readable_line(tmp_path: Path) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = await refused(database=tmp_path / "a.db", service_port=port)
    assert said == f"127.0.0.1:{port} cannot be listened on: Address already in use."
    assert not (tmp_path / "a.db").exists()  # nothing was begun


@pytest.mark.parametrize("host", ["no.such.host.invalid", "..", "256.256.256.256", "x" * 70])
async def test_a_host_that_cannot_be_listened_on_is_one_readable_line(tmp_path: Path, host: str) -> None:
    assert "cannot be listened on" in await refused(database=tmp_path / "a.db", service_host=host)


async def test_a_second_process_on_the_same_database_is_one_readable_line(tmp_path: Path) -> None:
    store = await database_of(settings(tmp_path / "a.db")).opened()
    try:
        said = await refused(database=tmp_path / "a.db")
        assert "a.db is in use by another credit-service process" in said
        assert str(os.getpid()) in said
    finally:
        await store.close()


async def test_a_database_that_cannot_be_opened_is_one_readable_line(tmp_path: Path) -> None:
    assert "nowhere" in await refused(database=tmp_path / "nowhere" / "at" / "all.db")
    (tmp_path / "other.db").write_text("this is no database at all, but long enough to be looked at as one" * 100)
    assert "other.db" in await refused(database=tmp_path / "other.db")


async def test_a_first_key_that_cannot_be_written_is_one_readable_line(tmp_path: Path) -> None:
    (tmp_path / "a.db.admin-key").mkdir()
    assert "admin-key: the first admin key cannot be written" in await refused(database=tmp_path / "a.db")
    store = await database_of(settings(tmp_path / "a.db")).opened()  # it was let go of
    await store.close()


# ---- the end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_when_all_that_was_sent_is_posted_and_answered(tmp_path: Path, number: signal.Signals) -> None:
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
                        return  # the door was closed before it was heard
                    answers.append(answer.status_code)
                    if len(answers) > 50:
                        enough.set()

        workers = [threading.Thread(target=post, args=(worker,)) for worker in range(8)]
        for worker in workers:
            worker.start()
        assert enough.wait(30)
        with closing(socket.create_connection(("127.0.0.1", first.port))):  # somebody is connected, and idle
            first.process.send_signal(number)
            assert first.process.wait(30) in (0, -number)
        for worker in workers:
            worker.join()
        said = first.errors()
        assert "Traceback" not in said
        assert "rror" not in said
    assert set(answers) == {201}
    assert list(tmp_path.glob("a.db-*")) == []  # all is in the one file
    # Everything that was answered is there, and at most what was sent and not heard of.
    sequence, used_at = asyncio.run(look(tmp_path / "a.db"))
    assert len(answers) + 1 <= sequence <= len(answers) + 1 + len(workers)
    assert used_at is not None


async def look(database: Path) -> tuple[int, int | None]:
    """How many transactions the one account has, and when the one key was last used."""
    store = await database_of(settings(database)).opened()
    (books,) = [books async for books in store.books()]
    (key,) = await Keys(store).all()
    await store.close()
    return books.account.sequence, key.last_used_at


async def test_what_is_queued_is_posted_before_the_store_is_closed(url: str) -> None:
    store = await database_of(settings(url)).opened()
    service = Service(store, settings(url))
    merchants = [uuid4() for _ in range(2500)]
    async with service.running():
        commands = [OpenAccount(merchant_id=merchant, key=trial_key(merchant)) for merchant in merchants]
        submitted = [asyncio.ensure_future(service.posting.submit(command)) for command in commands]
        await asyncio.sleep(0)
    assert all(isinstance(task.result(), Posted) for task in submitted if task.done())
    assert all(task.done() for task in submitted)


async def test_a_store_is_closed_also_where_the_end_goes_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await database_of(settings(tmp_path / "a.db")).opened()
    service = Service(store, settings(tmp_path / "a.db"))

    async def broken() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(service.keyring, "flush", broken)
    with pytest.raises(RuntimeError):
        async with service.running():
            pass
    again = await database_of(settings(tmp_path / "a.db")).opened()  # its lock was let go of
    await again.close()


# ---- what it logs


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_the_log_is_quiet_and_has_no_secrets(tmp_path: Path, log_format: str) -> None:
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
        # A table is gone, so that a request fails as nobody foresaw; its key was a variable on the way.
        with closing(sqlite3.connect(tmp_path / "a.db")) as database:
            database.execute("DROP TABLE grants")
        assert client.post("/credits/accounts", json={"merchant_id": MERCHANT}).json()["code"] == "internal"
        said = first.errors()
        assert "Traceback" in said
        assert "no such table" in said
        assert first.key.split("_", 2)[2] not in said
        assert made.split("_", 2)[2] not in said
        assert "authorization" not in said.lower()
        if log_format == "json":
            assert all(json.loads(line) for line in said.splitlines())
