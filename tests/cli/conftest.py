"""The ledger of a test's commands."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.ledgers import placed
from tests.storage.engines import Ledgers
from tests.storage.files import new_file


@pytest.fixture
def on_each_engine(engine_name: str, ledgers: Ledgers, tmp_path: Path) -> Iterator[None]:
    """The commands use a ledger in the default file, then one in a database that `.env` names."""
    if engine_name == "sqlite":
        new_file(tmp_path / "credit-service.db")
        yield
        return
    with ledgers.new(tmp_path) as url:
        placed(tmp_path, url)
        yield
