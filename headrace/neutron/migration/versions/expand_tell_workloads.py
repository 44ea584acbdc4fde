"""Expand branch: subnets and ports have more to tell, so that all are pushed again."""

from alembic import op

revision = "h0002expand"
down_revision = "h0001expand"


def upgrade() -> None:
    """No object is acknowledged at a revision that Neutron has (headrace.neutron.ledger.REFUSED)."""
    op.execute("UPDATE headrace_ledger SET revision = -1")
