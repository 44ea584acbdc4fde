"""Desired state as the controller knows it, and what a write would change. No I/O.

A write is planned against what is known, as a list of records to store; the caller stores them under
the condition that nothing planned upon has changed meanwhile, and `Desired.load` takes in what the
store then tells. So any number of controllers may do it over one store.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable, Sequence
from typing import cast

import msgspec

from headrace.controller import trunk
from headrace.controller.closure import Key
from headrace.errors import Conflict, InvalidInput
from headrace.model import TYPES, Host, Network, Object, Port, Record, Segment, decode

AGENT = "agent"
"""The writer of hosts as their agents report them."""

CLI = "cli"
"""The writer of what an operator applies by hand; a person's slip is refused rather than waited for."""

RETIRED_KEPT = 32


class Entry(msgspec.Struct, frozen=True):
    """A record (live or tombstone), the object in it, and the store's revision of its key."""

    record: Record
    item: Object | None
    modified: int


class WriterLife(msgspec.Struct, frozen=True, kw_only=True):
    """Which life of its database a writer is in, and which are over: what still arrives from those is refused."""

    epoch: str
    retired: tuple[str, ...] = ()


class Plan(msgspec.Struct, frozen=True):
    """What a write would store: records by key, and writers whose life changed."""

    records: dict[Key, Record]
    writers: dict[str, WriterLife]


class Desired:
    """All records, and the live objects by type. ``subports_of``: parent -> its sub-ports."""

    def __init__(self) -> None:
        self.entries: dict[Key, Entry] = {}
        self.writers: dict[str, tuple[WriterLife, int]] = {}
        self._live: dict[str, dict[str, Object]] = {name: {} for name in TYPES}
        self._ports_of: dict[str, set[str]] = {}
        self.subports_of: dict[str, set[str]] = {}

    def live(self, key: Key) -> Entry | None:
        """The entry of an object that is there."""
        entry = self.entries.get(key)
        return entry if entry and entry.item else None

    def load(self, key: Key, entry: Entry | None) -> None:
        """Take in what the store holds for a key."""
        old = self.entries.pop(key, None)
        if old and isinstance(old.item, Port):
            self._ports_of[old.item.network].discard(old.item.id)
            if not self._ports_of[old.item.network]:
                del self._ports_of[old.item.network]
            if old.item.parent is not None:
                self.subports_of[old.item.parent].discard(old.item.id)
                if not self.subports_of[old.item.parent]:
                    del self.subports_of[old.item.parent]
        self._live[key[0]].pop(key[1], None)
        if entry is None:
            return
        self.entries[key] = entry
        if entry.item:
            self._live[key[0]][key[1]] = entry.item
        if isinstance(entry.item, Port):
            self._ports_of.setdefault(entry.item.network, set()).add(entry.item.id)
            if entry.item.parent is not None:
                self.subports_of.setdefault(entry.item.parent, set()).add(entry.item.id)

    # Planning

    def plan(self, records: Iterable[Record]) -> Plan:
        """Puts and (body None) deletes, as one transaction. Raises InvalidInput, naming object and field."""
        plan = Plan({}, {})
        for record in records:
            self._plan_writer(plan, record.writer, record.writer_epoch)
            key = (record.type, record.id)
            before = plan.records.get(key) or (self.entries[key].record if key in self.entries else None)
            if after := accept(before, record):
                plan.records[key] = after
        self._check(plan)
        return plan

    def plan_resync(self, writer: str, epoch: str, types: Sequence[str], keep: Iterable[Key]) -> Plan:
        """Delete what is the writer's, of these types, and not kept; its word is final for its own objects."""
        for name in types:
            if name not in TYPES:
                raise InvalidInput(f"unknown object type {name!r}; known: {', '.join(TYPES)}")
        plan = Plan({}, {})
        self._plan_writer(plan, writer, epoch, revive=True)
        kept = set(keep)
        for name in types:
            for id_ in self._live[name]:
                record = self.entries[name, id_].record
                if record.writer == writer and (name, id_) not in kept:
                    plan.records[name, id_] = msgspec.structs.replace(record, writer_epoch=epoch, body=None)
        return plan

    def plan_host(self, host: str, vteps: tuple[str, ...], *, introduce: bool = False) -> Plan:
        """Make a host known by what its agent says of it.

        Who has no tunnel endpoint is no host yet (a writer may also have a word to say on ports), unless introduced.
        """
        entry = self.live(("host", host))
        if entry is None and not vteps and not introduce:
            return Plan({}, {})
        if entry and entry.record.writer != AGENT and cast("Host", entry.item).vteps:
            return Plan({}, {})  # an operator has said where it is
        if entry and entry.record.writer != AGENT and not vteps:
            return Plan({}, {})  # declared, and its agent adds nothing
        base = cast("Host", entry.item) if entry else Host(id=host)
        body = encode(msgspec.structs.replace(base, vteps=check_vteps(host, vteps)))
        if entry and entry.record.writer == AGENT and entry.record.body == body:
            return Plan({}, {})
        self._check_vteps_free(host, vteps)
        return Plan({("host", host): Record(type="host", id=host, writer=AGENT, body=body)}, {})

    def _plan_writer(self, plan: Plan, writer: str, epoch: str, *, revive: bool = False) -> None:
        """Check a writer's epoch; one never seen retires the one before."""
        stored = self.writers.get(writer)
        life = plan.writers.get(writer) or (stored[0] if stored else None)
        if life is None:
            if epoch:
                plan.writers[writer] = WriterLife(epoch=epoch)
            return
        if epoch == life.epoch:
            return
        if not epoch:
            raise Conflict(f"writer {writer} is in epoch {life.epoch}; give writer_epoch")
        if epoch in life.retired and not revive:
            raise Conflict(f"writer {writer}: epoch {epoch} is over, {life.epoch} came after it; resync first")
        retired = (*(old for old in life.retired if old != epoch), life.epoch)[-RETIRED_KEPT:]
        plan.writers[writer] = WriterLife(epoch=epoch, retired=retired)

    def _check(self, plan: Plan) -> None:
        for (type_name, id_), record in plan.records.items():
            if type_name == "network" and record.body is None:
                self._check_unused(id_, plan)
            if type_name == "port" and record.writer == CLI:
                if record.body:
                    self._check_host(record, plan)
                trunk.check(id_, PlannedPorts(self, plan))
            if type_name == "network" and record.body and record.writer == CLI:
                self._check_segment(record, plan)
            if type_name == "host" and record.body:
                self._check_vteps_free(id_, record.body.get("vteps", ()), plan)

    def _check_unused(self, network: str, plan: Plan) -> None:
        used = set(self._ports_of.get(network, ()))
        for (type_name, id_), record in plan.records.items():
            if type_name == "port":
                used.discard(id_)
                if record.body and record.body["network"] == network:
                    used.add(id_)
        if used:
            port = min(used)
            more = f" and {len(used) - 1} more" if len(used) > 1 else ""
            raise Conflict(f"network {network} is in use by port {port}{more}; delete or move ports first")

    def _check_segment(self, record: Record, plan: Plan) -> None:
        """Two networks on one segment would be one. Only of what a person writes: other writers send in any order."""
        wanted = segment_of(record)
        held: dict[str, Segment | None] = {}
        held |= {id_: item.segment for id_, item in self._live["network"].items() if isinstance(item, Network)}
        held |= {id_: segment_of(other) for (kind, id_), other in plan.records.items() if kind == "network"}
        for holder, segment in sorted(held.items()):
            if holder != record.id and segment and wanted and segment.place == wanted.place:
                raise Conflict(
                    f"network {record.id}: segment: network {holder} has {wanted.text} already; give another"
                )

    def _check_host(self, record: Record, plan: Plan) -> None:
        host = (record.body or {}).get("host")
        if host is None or plan.records.get(("host", host)) or self.live(("host", host)):
            return
        known = ", ".join(sorted(self._live["host"])) or "none yet; enroll it, or start its agent"
        raise InvalidInput(f"port {record.id}: host: unknown host {host!r}; known: {known}")

    def _check_vteps_free(self, host: str, vteps: Iterable[str], plan: Plan | None = None) -> None:
        """An address leads to one host: else a host could draw another's traffic to itself."""
        wanted = set(vteps)
        for other in self._live["host"].values():
            if other.id == host or wanted.isdisjoint(cast("Host", other).vteps):
                continue
            if plan and ("host", other.id) in plan.records:
                continue
            taken = ", ".join(sorted(wanted.intersection(cast("Host", other).vteps)))
            raise Conflict(f"host {host}: vteps: {taken} belongs to host {other.id}; delete that host first")


class PlannedPorts:
    """Ports as a plan would leave them."""

    def __init__(self, desired: Desired, plan: Plan) -> None:
        self._desired = desired
        self._plan = plan

    def port(self, id_: str) -> Port | None:
        """One of them."""
        if record := self._plan.records.get(("port", id_)):
            return None if record.body is None else cast("Port", decode("port", record.body))
        entry = self._desired.live(("port", id_))
        return cast("Port", entry.item) if entry else None

    def subports(self, parent: str) -> list[Port]:
        """Those whose parent this is, by id."""
        known = self._desired.subports_of.get(parent, set())
        planned = {id_ for kind, id_ in self._plan.records if kind == "port"}
        found = map(self.port, sorted(known | planned))
        return [port for port in found if port and port.parent == parent]


def accept(before: Record | None, record: Record) -> Record | None:
    """What to store when a record arrives upon another (or a tombstone), or None when it changes nothing.

    Revision 0: the writer counts none, and each of its words is the latest.
    """
    label = f"{record.type} {record.id}"
    body = None if record.body is None else normal(record)
    if before is None:
        if body is None and not record.revision:
            return None
        return msgspec.structs.replace(record, body=body, stored=0)
    if before.writer != record.writer:
        return take_over(before, record, body, label)
    same_life = before.writer_epoch == record.writer_epoch
    if same_life and record.revision:
        # A tombstone outlives its own revision, so a late put of what was deleted resurrects nothing.
        late = record.revision <= before.revision if before.body is None else record.revision < before.revision
        if late:
            return None
    revision = record.revision or (before.revision if same_life else 0)
    after = msgspec.structs.replace(record, body=body, revision=revision, stored=0)
    if before.body is None and body is None:
        return None if revision == before.revision and same_life else after
    return None if msgspec.structs.replace(before, stored=0) == after else after


def take_over(before: Record, record: Record, body: dict[str, object] | None, label: str) -> Record | None:
    """A record of another writer. Only what is gone may change hands, and hosts, which agents merely report."""
    if before.body is None:
        return None if body is None else msgspec.structs.replace(record, body=body, stored=0)
    if record.type != "host" or before.writer != AGENT:
        raise Conflict(f"{label}: belongs to writer {before.writer}; {record.writer} cannot change it")
    if body is not None and not body.get("vteps"):
        # Declared without saying where it is: that stays the agent's to say.
        merged = before.body | body
        return None if merged == before.body else msgspec.structs.replace(before, body=merged, stored=0)
    return msgspec.structs.replace(record, body=body, stored=0)


def normal(record: Record) -> dict[str, object]:
    """A record's body as the model writes it. Raises InvalidInput, naming object and field."""
    body = dict(record.body or {})
    if body.setdefault("id", record.id) != record.id:
        raise InvalidInput(f"{record.type} {record.id}: body says id {body['id']!r}")
    item = decode(record.type, body)
    if isinstance(item, Host):
        check_vteps(item.id, item.vteps)
    return encode(item)


def encode(item: Object) -> dict[str, object]:
    """An object as JSON values, without what equals its default: equal objects look equal.

    (msgspec's ``omit_defaults`` compares by identity, so 1450 spelt out would differ from 1450 left out.)
    """
    return cast("dict[str, object]", plain(item))


def plain(value: object) -> object:
    """The same in dictionaries and lists."""
    if isinstance(value, msgspec.Struct):
        return {
            name: plain(inner) for name, default in defaults(type(value)) if (inner := getattr(value, name)) != default
        }
    if isinstance(value, tuple):
        return [plain(inner) for inner in value]
    return value


@functools.cache
def defaults(type_: type[msgspec.Struct]) -> tuple[tuple[str, object], ...]:
    """The fields of a type with their defaults, ``id`` first."""
    fields = [(field.name, field.default) for field in msgspec.structs.fields(type_)]
    return tuple(sorted(fields, key=lambda field: field[0] != "id"))


def check_vteps(host: str, vteps: tuple[str, ...]) -> tuple[str, ...]:
    """At most one tunnel endpoint per IP version."""
    versions = [ipaddress.ip_address(address).version for address in vteps]
    if len(set(versions)) != len(versions):
        raise InvalidInput(f"host {host}: vteps: {', '.join(vteps)}: give at most one per IP version")
    return vteps


def segment_of(record: Record) -> Segment | None:
    """A network's segment; None of one that is deleted."""
    return None if record.body is None else msgspec.convert(record.body["segment"], Segment)
