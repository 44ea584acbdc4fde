"""Log lines on stderr: ``level logger message``; systemd adds the time, and reads the level from ``<N>``."""

from __future__ import annotations

import logging
import os
import sys

PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""syslog's priorities (sd-daemon(3))."""


class Formatter(logging.Formatter):
    """One line a record, without a time when the journal is the reader."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__("%(name)s %(message)s" if journal else "%(asctime)s %(levelname)-7s %(name)s %(message)s")
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        text = super().format(record)
        if not self._journal:
            return text
        prefix = f"<{PRIORITY.get(record.levelno, 6)}>"
        return "\n".join(prefix + part for part in text.splitlines())


def set_up(level: str = "info") -> None:
    """Log from now on, at a level and above."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(journal="JOURNAL_STREAM" in os.environ))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
