"""The first schema: that of `storage/tables.py`.

Until the first release there is one schema and nothing to upgrade. From then on this migration must always create the
schema of that release, so the first later change of `tables.py` replaces this file by a frozen copy (docs/decisions/0039).
"""

from alembic import op

from credit_service.storage import tables

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    tables.metadata.create_all(op.get_bind())
