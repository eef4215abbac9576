"""Shops, each with its merchant, and what Shopify delivered that still has to be applied."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "shops",
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("merchant_id", sa.LargeBinary(), nullable=False),
        sa.Column("linked_at", BIG, nullable=False),
        sa.Column("unlinked_at", BIG, nullable=True),
        sa.Column("uninstalled_at", BIG, nullable=True),
        sa.CheckConstraint("length(merchant_id) = 16", name=op.f("ck_shops_hash_length")),
        sa.PrimaryKeyConstraint("domain", name=op.f("pk_shops")),
        sqlite_strict=True,
    )
    op.create_table(
        "shopify_deliveries",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("shop", sa.Text(), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("awaits", sa.Text(), nullable=True),
        sa.Column("received_at", BIG, nullable=False),
        sa.CheckConstraint("awaits IN ('link', 'merchant')", name=op.f("ck_shopify_deliveries_awaits")),
        sa.CheckConstraint("length(digest) = 16", name=op.f("ck_shopify_deliveries_hash_length")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_shopify_deliveries")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_shopify_deliveries_shop"), "shopify_deliveries", ["shop"])
