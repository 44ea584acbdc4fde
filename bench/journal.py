"""What must be undone, written down before it is done: a run that was killed is cleaned up by the next one."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from bench.process import CommandError, SetupError, run

if TYPE_CHECKING:
    from collections.abc import Iterator

PLACE = Path("/run/lock/headrace-bench")


class Undo(msgspec.Struct, frozen=True):
    """``write``: put ``value`` back into the file ``what``; delete the ``netns`` or ``path``; ``umount``."""

    kind: Literal["write", "netns", "umount", "path"]
    what: str
    value: str = ""

    def do(self) -> None:
        """Also when there is nothing left to undo."""
        with contextlib.suppress(OSError, CommandError):
            if self.kind == "write":
                Path(self.what).write_text(self.value)
            elif self.kind == "netns":
                run("ip", "netns", "del", self.what)
            elif self.kind == "umount":
                run("umount", "-l", self.what)
            elif Path(self.what).is_dir():
                shutil.rmtree(self.what)
            else:
                Path(self.what).unlink()


class Journal:
    """Kept in memory, and in a file while a run is ``open``."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._undos: list[Undo] = []

    @contextlib.contextmanager
    def open(self, path: Path = PLACE) -> Iterator[None]:
        """Undo what a killed run left, then keep others out: two runs would falsify each other's figures."""
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SetupError(f"another bench runs on this machine (it holds {path})") from error
            for left in reversed(read(path)):
                left.do()
            self._path = path
            self._save()
            try:
                yield
            finally:
                self._path = None

    def note(self, undo: Undo) -> Undo:
        """Call before doing what ``undo`` undoes."""
        self._undos.append(undo)
        self._save()
        return undo

    def undo(self, undo: Undo) -> None:
        undo.do()
        self._undos.remove(undo)
        self._save()

    def directory(self, prefix: str) -> tuple[Path, Undo]:
        """Make a temporary one."""
        path = Path(tempfile.mkdtemp(prefix=prefix))
        return path, self.note(Undo("path", str(path)))

    def write(self, path: Path, value: str) -> Undo:
        """Turn a knob of the kernel."""
        undo = self.note(Undo("write", str(path), path.read_text().strip()))
        path.write_text(value)
        return undo

    def _save(self) -> None:
        if self._path is not None:
            self._path.write_bytes(msgspec.json.encode(self._undos))


def read(path: Path) -> list[Undo]:
    """Nothing, if what is there is no journal (a machine may have crashed while it was written)."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Undo])
    except (OSError, msgspec.DecodeError):
        return []


JOURNAL = Journal()
"""The one of this process: kernel settings and namespaces are the machine's."""
