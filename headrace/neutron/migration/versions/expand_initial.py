"""Expand branch: marks, ledger, refusals and leader."""

import sqlalchemy as sa
from alembic import op
from neutron.db.migration import cli

revision = "h0001expand"
down_revision = "start_headrace"
branch_labels = (cli.EXPAND_BRANCH,)


def upgrade() -> None:
    """Make the four tables; headrace.neutron.models says what they are for."""
    op.create_table(
        "headrace_dirty",
        sa.Column("id", sa.BigInteger(), primary_key=True, autoincrement=True),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("object_id", sa.String(36), nullable=False),
    )
    op.create_table(
        "headrace_ledger",
        sa.Column("type", sa.String(32), primary_key=True),
        sa.Column("object_id", sa.String(36), primary_key=True),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("stored", sa.BigInteger(), nullable=False),
        sa.Column("refusal", sa.String(512)),
    )
    op.create_table(
        "headrace_refusal",
        sa.Column("port_id", sa.String(36), primary_key=True),
        sa.Column("host", sa.String(255), nullable=False, index=True),
        sa.Column("reason", sa.String(512), nullable=False),
    )
    op.create_table(
        "headrace_leader",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("holder", sa.String(255), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.Column("writer_epoch", sa.String(36), nullable=False),
        sa.Column("controller_epoch", sa.String(64)),
    )
