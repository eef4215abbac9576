"""On SQLite the gate asks again for all it cached after a commit of another process, and only then."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from credit_service.gate import sqlite as file_channel
from credit_service.gate.sqlite import FileChannel
from credit_service.storage.keys import Keys
from credit_service.storage.sqlite.engine import SQLiteEngine
from tests.storage.files import new_file
from tests.storage.values import FULL_KEY


async def test_each_new_version_counts_as_joining_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_channel, "LOOK_SECONDS", 0)
    versions = [3, 3, 3, 4, 4, 5]
    joined: list[int] = []

    async def version() -> int:
        if not versions:
            raise ConnectionError
        return versions.pop(0)

    with pytest.raises(ConnectionError):
        await FileChannel(version).listen(lambda: joined.append(6 - len(versions)), lambda line: None)
    assert joined == [1, 4, 6]


async def test_the_version_changes_with_commits_of_others_alone(tmp_path: Path) -> None:
    store = SQLiteEngine(new_file(tmp_path / "ledger.db"))
    try:
        first = await store.data_version()
        await Keys(store).add(FULL_KEY)
        assert await store.data_version() == first
        with closing(sqlite3.connect(tmp_path / "ledger.db")) as other, other:
            other.execute("DELETE FROM api_keys")
        assert await store.data_version() != first
    finally:
        await store.close()
