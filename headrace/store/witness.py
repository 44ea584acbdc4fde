"""Notices that a database file is not the one last used here.

A backup put back carries its old epoch and an old revision in it, and would hand out revisions a
second time. So the epoch and the highest revision reached are also kept beside the file, never in a
backup of it. The witness is not synced: after a power cut it may be behind the database (harmless),
never ahead of what was committed. A missing witness costs one full resync.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

WIDTH = 20


class Witness:
    """The file beside the database: an epoch and a revision; and the lock of whoever uses the database."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._epoch = ""

    def hold(self) -> bool:
        """Open the file and keep others from doing so, until closed; False when another has it."""
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            return False
        return True

    def confirms(self, epoch: str, revision: int) -> bool:
        """Whether a database with this epoch and revision goes on from where it was left."""
        try:
            known, highest = os.pread(self._fd, 100, 0).decode().split()
        except ValueError:
            return False
        return known == epoch and revision >= int(highest)

    def begin(self, epoch: str, revision: int) -> None:
        """From here on, this is the epoch."""
        self._epoch = epoch
        os.ftruncate(self._fd, 0)
        self.advance(revision)

    def advance(self, revision: int) -> None:
        """The database reached a revision."""
        # Its length never changes, so a full disk does not stop it; were it to fail, the witness is merely behind.
        with contextlib.suppress(OSError):
            os.pwrite(self._fd, f"{self._epoch} {revision:0{WIDTH}d}\n".encode(), 0)

    def close(self) -> None:
        """Let go of the file; its words stay."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
