"""The gate: fail policies of accounts of their own, and API keys that may ask for a plugin status and nothing else."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "gate_policies",
        sa.Column("merchant_id", sa.LargeBinary(), nullable=False),
        sa.Column("fail", sa.Text(), nullable=False),
        sa.CheckConstraint("fail IN ('closed', 'open')", name=op.f("ck_gate_policies_fail")),
        sa.CheckConstraint("length(merchant_id) = 16", name=op.f("ck_gate_policies_id_length")),
        sa.PrimaryKeyConstraint("merchant_id", name=op.f("pk_gate_policies")),
        sqlite_strict=True,
    )
    with op.batch_alter_table("api_keys", table_kwargs={"sqlite_strict": True}) as keys:
        keys.drop_constraint(op.f("ck_api_keys_scope"), type_="check")
        keys.create_check_constraint(op.f("ck_api_keys_scope"), "scope IN ('status', 'read', 'write', 'admin')")
