"""Where desired state comes from: a controller's watch, or a file; and the copy kept for a start without either."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from headrace.controller.client import Client
from headrace.errors import HeadraceError
from headrace.model import Object, Record, State, decode

log = logging.getLogger(__name__)


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    """Desired state as of a revision of a controller's epoch. ``stored``: port id -> the revision it came with."""

    state: State
    epoch: str = ""
    revision: int = 0
    stored: dict[str, int] = msgspec.field(default_factory=dict)


class Mirror:
    """What a watch has told so far."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, str], Record] = {}
        self._objects: dict[tuple[str, str], Object] = {}

    async def follow(self, client: Client, host: str) -> AsyncIterator[Desired]:
        """Desired state of a host, each time a consistent one is complete. Ends by raising Unavailable."""
        last: tuple[str, int] | None = None
        async for event in client.watch(host):
            if event.kind == "reset":
                self._records.clear()
                self._objects.clear()
                last = None
            elif event.record is not None:
                self.learn(event.kind == "put", event.record)
                last = None
            elif event.kind == "sync" and last != (event.epoch, event.revision):
                if last is None:
                    yield self.desired(event.epoch, event.revision)
                last = (event.epoch, event.revision)

    def learn(self, put: bool, record: Record) -> None:  # noqa: FBT001
        """One object is new, changed or gone. One that this version cannot understand is left out, and said."""
        key = record.type, record.id
        self._records.pop(key, None)
        self._objects.pop(key, None)
        if put:
            try:
                self._objects[key] = decode(record.type, record.body)
                self._records[key] = record
            except HeadraceError as error:
                log.error("desired state: %s; it is left out", error)  # noqa: TRY400 - the message says all

    def desired(self, epoch: str, revision: int) -> Desired:
        """What has been told, as one state."""
        stored = {record.id: record.stored for record in self._records.values() if record.type == "port"}
        return Desired(state=State.of(self._objects.values()), epoch=epoch, revision=revision, stored=stored)

    def save(self, path: Path, epoch: str, revision: int) -> None:
        """Keep what has been told; replaced as a whole."""
        content = Saved(epoch=epoch, revision=revision, records=tuple(self._records.values()))
        replace(path, msgspec.json.encode(content))

    def restore(self, path: Path) -> Desired | None:
        """What was kept, if anything readable."""
        try:
            saved = msgspec.json.decode(path.read_bytes(), type=Saved)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("desired state kept in %s cannot be read (%s); waiting for the controller", path, error)
            return None
        for record in saved.records:
            self.learn(True, record)
        return self.desired(saved.epoch, saved.revision)


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """The file that `Mirror.save` writes."""

    epoch: str
    revision: int
    records: tuple[Record, ...]


def replace(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old or the new one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(content)
    fresh.replace(path)
