"""Where desired state comes from: a controller's watch, or a file; and the copy kept for a start without either."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import msgspec

from headrace.controller.client import Client
from headrace.errors import HeadraceError
from headrace.model import TYPES, Object, Record, State, decode, plural

log = logging.getLogger(__name__)


class Desired(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Desired state as of a revision of a controller's epoch, and the records it came in; ``lines``: as JSON."""

    state: State
    epoch: str = ""
    revision: int = 0
    records: tuple[Record, ...] = ()
    lines: tuple[bytes, ...] = ()

    @cached_property
    def stored(self) -> dict[str, int]:
        """Port id -> the revision it came with."""
        return {record.id: record.stored for record in self.records if record.type == "port"}


class Mirror:
    """What a watch has told so far."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, str], Record] = {}
        self._lines: dict[tuple[str, str], bytes] = {}
        self._objects: dict[str, dict[str, Object]] = {name: {} for name in TYPES}
        self._told: Desired | None = None

    async def follow(self, client: Client, host: str) -> AsyncIterator[Desired]:
        """Desired state of a host, each time a consistent one is complete. Ends by raising Unavailable.

        A revision that changed nothing for the host comes with the same ``state`` object.
        """
        last: tuple[str, int] | None = None
        async for event in client.watch(host):
            if event.kind == "reset":
                self._records.clear()
                self._lines.clear()
                for held in self._objects.values():
                    held.clear()
                self._told = last = None
            elif event.record is not None:
                self.learn(event.kind == "put", event.record)
                last = None
            elif event.kind == "sync" and last != (event.epoch, event.revision):
                yield self.desired(event.epoch, event.revision)
                last = (event.epoch, event.revision)

    def learn(self, put: bool, record: Record) -> None:  # noqa: FBT001
        """One object is new, changed or gone. One that this version cannot understand is left out, and said."""
        key = record.type, record.id
        old = self._records.pop(key, None)
        self._lines.pop(key, None)
        before = self._objects.get(record.type, {}).pop(record.id, None)
        self._told = None
        if put:
            try:
                item = decode(record.type, record.body, (old.body, before) if old and before else None)
                self._objects[record.type][record.id] = item
                self._records[key], self._lines[key] = record, msgspec.json.encode(record)
            except HeadraceError as error:
                log.error("desired state: %s; it is left out", error)  # noqa: TRY400 - the message says all

    def desired(self, epoch: str, revision: int) -> Desired:
        """What has been told, as one state."""
        if self._told is None:
            records, lines = tuple(self._records.values()), tuple(self._lines.values())
            objects = {plural(name): dict(held) for name, held in self._objects.items()}
            self._told = Desired(state=State(**cast("Any", objects)), records=records, lines=lines)
        self._told = msgspec.structs.replace(self._told, epoch=epoch, revision=revision)
        return self._told


def covers(new: Desired, old: Desired, host: str) -> bool:
    """Whether a state can be believed at once: of the same database, or with all that a host carries in the old one.

    A database that was lost begins empty and is told everything again: until then it would tear every host down.
    """
    if new.epoch == old.epoch:
        return True
    before, after = old.state.ports_on(host), new.state.ports_on(host)
    groups = {group for port in before.values() for group in port.security_groups} & old.state.security_groups.keys()
    return before.keys() <= after.keys() and groups <= new.state.security_groups.keys()


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """The file that `save` writes."""

    epoch: str
    revision: int
    records: tuple[Record, ...]


def save(path: Path, desired: Desired) -> None:
    """Keep desired state; replaced as a whole."""
    about = msgspec.json.encode(Saved(epoch=desired.epoch, revision=desired.revision, records=()))
    replace(path, about.removesuffix(b"]}") + b",".join(desired.lines) + b"]}")


def restore(path: Path) -> Desired | None:
    """What was kept, if anything readable."""
    try:
        saved = msgspec.json.decode(path.read_bytes(), type=Saved)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("desired state kept in %s cannot be read (%s); waiting for the controller", path, error)
        return None
    mirror = Mirror()
    for record in saved.records:
        mirror.learn(True, record)
    return mirror.desired(saved.epoch, saved.revision)


def replace(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old or the new one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(content)
    fresh.replace(path)
