"""Expand branch: labels and service paths of networks, and what decided on the bodies that were pushed."""

import sqlalchemy as sa
from alembic import op

revision = "h0003expand"
down_revision = "h0002expand"


def upgrade() -> None:
    """Make the two tables and the column. Without a value in it, everything is pushed again."""
    for table, key in (("headrace_mpls_allocations", "label"), ("headrace_nsh_allocations", "path")):
        op.create_table(
            table,
            sa.Column(key, sa.Integer(), primary_key=True, autoincrement=False),
            sa.Column("allocated", sa.Boolean(), nullable=False, server_default=sa.sql.false(), index=True),
        )
    op.add_column("headrace_leader", sa.Column("translation", sa.String(64)))
