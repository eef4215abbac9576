"""A simulated next release, for tests of databases that an older or newer release wrote."""

from pathlib import Path

import pytest
from alembic.config import Config

from credit_service.storage import databases, migrations, tables

NEXT = "next"
_SCRIPT = f'''
"""Add the maker of a key."""

import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "{NEXT}", "{tables.REVISION}", None, None


def upgrade() -> None:
    with op.batch_alter_table("api_keys") as keys:
        keys.add_column(sa.Column("made_by", sa.Text(), nullable=True))
'''


def next_release(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make this code act as the next release, whose migration adds a column."""
    original = migrations._config
    (folder / "next").mkdir(exist_ok=True)
    (folder / "next" / "next_release.py").write_text(_SCRIPT)

    def config() -> Config:
        made = original()
        made.set_main_option("version_locations", f"{migrations.HERE / 'versions'}:{folder / 'next'}")
        return made

    patch.setattr(migrations, "_config", config)
    patch.setattr(databases, "REVISION", NEXT)
