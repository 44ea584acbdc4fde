"""Contract branch: nothing to take away yet."""

from neutron.db.migration import cli

revision = "h0000contract"
down_revision = "start_headrace"
branch_labels = (cli.CONTRACT_BRANCH,)


def upgrade() -> None:
    """Nothing to do."""
