"""Where both branches begin."""

revision = "start_headrace"
down_revision = None


def upgrade() -> None:
    """Nothing is there before the first expansion."""
