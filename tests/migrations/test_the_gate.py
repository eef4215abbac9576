"""0007, on both engines: keys that were made before stay, and one for a page can be made."""

import asyncio
from pathlib import Path

import pytest
from alembic import command as alembic
from sqlalchemy import Connection

from credit_service.storage import migrations
from credit_service.storage.base import ApiKey, BadRow
from tests.storage.engines import opened, rows

_SQLITE = "sqlite:///"


@pytest.fixture
def empty_url(engine_name: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without a schema."""
    if engine_name == "sqlite":
        return f"{_SQLITE}{tmp_path / 'empty.db'}"
    return str(request.getfixturevalue("postgres_url"))


def upgraded(url: str, revision: str) -> None:
    """Bring a database to a revision."""

    def run(connection: Connection) -> bool:
        config = migrations._config()
        config.attributes["connection"] = connection
        alembic.upgrade(config, revision)
        return True

    if url.startswith(_SQLITE):
        with migrations._begun(Path(url.removeprefix(_SQLITE)), "BEGIN IMMEDIATE") as connection:
            run(connection)
    else:
        migrations._in_postgres(url, False, run)


async def add(url: str, key: ApiKey) -> None:
    store = opened(url)
    try:
        await store.add_key(key)
    finally:
        await store.close()


async def test_keys_of_before_stay_and_one_for_a_page_can_be_made(empty_url: str) -> None:
    old, page = (ApiKey(id_, "n", scope, bytes(32), 1) for id_, scope in (("old", "admin"), ("page", "status")))
    await asyncio.to_thread(upgraded, empty_url, "0002")
    await add(empty_url, old)
    with pytest.raises(BadRow):
        await add(empty_url, page)
    await asyncio.to_thread(upgraded, empty_url, "head")
    assert rows(empty_url, "SELECT id, scope, created_at FROM api_keys") == [("old", "admin", 1)]
    await add(empty_url, page)
    assert rows(empty_url, "SELECT id FROM api_keys ORDER BY id") == [("old",), ("page",)]
