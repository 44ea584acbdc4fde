"""Carrying Neutron's state to the controller: what was marked at once, what differs now and then, all of it if need be.

Every record is (type, id, revision, whole body), so pushing twice, late or out of order changes nothing. The
controller's epoch in each answer tells when it has lost what it acknowledged; then everything is pushed again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from headrace.controller.api import Answer
from headrace.controller.client import Client
from headrace.errors import InvalidInput
from headrace.model import TYPES, Port, Record
from headrace.neutron import config, ledger, trunk
from headrace.neutron.ledger import Entry, Key, Lease
from headrace.neutron.reader import Found, read
from headrace.neutron.translate import WRITER

LOG = logging.getLogger(__name__)

MARKS = 1000
"""Marks taken at a time."""

BATCH = 200
"""Records in one transaction of the controller."""

ORDER = [name for name in TYPES if name in ledger.MODELS]
"""Types, referenced ones first: puts go in this order and deletions in the reverse."""

T = TypeVar("T")


class EpochChanged(Exception):
    """The controller is not the one that the ledger belongs to."""


class Pusher:
    """One leader's dealings with one controller. ``lease`` changes as epochs do; any other state is in the ledger.

    ``trunks``: ports that were marked as members of trunks, for whoever looks at those (headrace.neutron.follower).
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.lease = Lease(writer_epoch="", controller_epoch=None)
        self.trunks: set[str] = set()

    @property
    def epoch(self) -> str | None:
        """The controller's epoch that the ledger is, or during a resync is going to be, for."""
        return self.lease.controller_epoch

    async def begin(self) -> None:
        """Find out whether the controller has what the ledger says, and make it so."""
        self.lease = await asyncio.to_thread(ledger.current)
        if await asyncio.to_thread(ledger.forget_translation, config.translation()):
            LOG.info("Neutron's objects are translated in another way than before; pushing everything")
        await asyncio.to_thread(ledger.unmark_all)
        listings = [await self.client.list(kind) for kind in ORDER]
        epoch = listings[0].epoch
        held = {
            (record.type, record.id): record
            for listing in listings
            for record in listing.items
            if record.writer == WRITER
        }
        ours = await asyncio.to_thread(ledger.revisions)
        known = {} if epoch != self.lease.controller_epoch else await asyncio.to_thread(ledger.entries)
        if problem := contradiction(self.lease.writer_epoch, held, ours, known):
            LOG.warning("starting a new writer epoch, and pushing everything: %s", problem)
            self.lease = await asyncio.to_thread(ledger.start_over, new_writer_epoch=True)
        if epoch != self.lease.controller_epoch:
            await self.resync()
        else:
            await self.push(held.keys() - ours.keys())
            await self.compare()

    async def marked(self) -> set[str] | None:
        """Push what has been marked; returns the hosts of ports among it, or None if there was no mark."""
        rows, keys = await asyncio.to_thread(ledger.marks, MARKS)
        if not rows:
            return None
        hosts = await self.push([key for key in keys if key[0] in ledger.MODELS])
        self.trunks |= {port for kind, port in keys if kind == trunk.MARK}
        await asyncio.to_thread(ledger.unmark, rows)
        return hosts

    async def compare(self) -> None:
        """Push whatever the controller has not acknowledged at its present revision."""
        keys = await asyncio.to_thread(ledger.differences)
        if keys:
            LOG.info("the ledger differs for %d objects", len(keys))
            await self.push(keys)
        else:
            self._check((await self.client.health()).epoch)

    async def resync(self) -> None:
        """Push everything, and have the controller delete whatever else it holds of ours."""
        LOG.info("full resync: the ledger is for controller epoch %s", self.lease.controller_epoch)
        self.lease = await asyncio.to_thread(ledger.start_over, new_writer_epoch=False)
        keys = await asyncio.to_thread(ledger.differences)
        await self.push(keys)
        held = await asyncio.to_thread(ledger.entries)
        keep = [entry.key for entry in held.values() if entry.stored]
        answer = await self.client.resync(WRITER, self.lease.writer_epoch, ORDER, keep)
        # Had the epoch changed on the way, the first of the pushes would be lost: then start again.
        self._check(answer.epoch)
        await asyncio.to_thread(ledger.complete, answer.epoch)
        LOG.info("full resync done: %d objects, controller epoch %s", len(keep), answer.epoch)

    async def push(self, keys: Iterable[Key]) -> set[str]:
        """Bring these objects' present state to the controller; returns the hosts of ports among them."""
        rank = {kind: position for position, kind in enumerate(ORDER)}
        going: list[Found] = []
        hosts: set[str] = set()
        for chunk in chunks(sorted(keys, key=lambda key: rank[key[0]]), BATCH):
            found = await asyncio.to_thread(read, chunk)
            await self._send([each for each in found if each.item is not None])
            hosts.update(each.item.host for each in found if isinstance(each.item, Port) and each.item.host)
            going += [each for each in found if each.item is None]
        # What Neutron has and we do not carry is deleted only if the controller ever had it. What Neutron has no more
        # is deleted always: a worker may have died between pushing it and writing that down.
        held = await asyncio.to_thread(ledger.entries, [each.key for each in going])
        never = [each for each in going if each.refusal and not (each.key in held and held[each.key].stored)]
        written, gone = outcome(never, None)
        await asyncio.to_thread(ledger.acknowledge, written, gone)
        skipped = {each.key for each in never}
        going = [each for each in going if each.key not in skipped]
        # Deletions come last and in reverse: the controller refuses to take a network from under its ports.
        for part in chunks(sorted(going, key=lambda each: -rank[each.key[0]]), BATCH):
            await self._send(part)
        return hosts

    async def _send(self, found: Sequence[Found]) -> None:
        """Send one batch and write down the answer. A batch that is refused is halved until the culprit is alone."""
        if not found:
            return
        try:
            answer = await self.client.batch([each.record(self.lease.writer_epoch) for each in found])
        except InvalidInput as error:
            if len(found) > 1:
                middle = len(found) // 2
                await self._send(found[:middle])
                await self._send(found[middle:])
                return
            LOG.warning("the controller refused %s %s: %s", *found[0].key, error)
            entry = Entry(key=found[0].key, revision=ledger.REFUSED, refusal=str(error))
            await asyncio.to_thread(ledger.acknowledge, [entry], [])
            return
        self._check(answer.epoch)
        if not answer.changed:
            # The controller told nobody of this answer's revision: hosts would be waited for that never hear of it.
            known = await asyncio.to_thread(ledger.entries, [each.key for each in found])
            found = [each for each in found if not (each.key in known and known[each.key].holds(each.revision))]
        written, gone = outcome(found, answer)
        await asyncio.to_thread(ledger.acknowledge, written, gone)

    def _check(self, epoch: str) -> None:
        """Notice another epoch of the controller. During a resync the first answer sets it."""
        if self.lease.controller_epoch is None:
            self.lease = Lease(writer_epoch=self.lease.writer_epoch, controller_epoch=epoch)
        elif self.lease.controller_epoch != epoch:
            raise EpochChanged(f"the controller's epoch was {self.lease.controller_epoch} and is {epoch}")


def contradiction(
    writer_epoch: str, held: Mapping[Key, Record], ours: Mapping[Key, int], known: Mapping[Key, Entry]
) -> str | None:
    """What the controller holds that this database cannot have said, or lacks though it acknowledged it.

    Either happens when a database was restored from a backup, on their side or ours. Revisions then mean other
    things than before, and deletions stand in the way of what came back: only a new writer epoch helps.
    ``known``: the ledger, where it is for the epoch that the controller is in.
    """
    for (kind, identity), record in held.items():
        if record.writer_epoch != writer_epoch:
            return f"{kind} {identity} is of writer epoch {record.writer_epoch}, not {writer_epoch}"
        if record.revision > ours.get((kind, identity), record.revision):
            return f"{kind} {identity} has revision {record.revision} there and {ours[kind, identity]} here"
    for (kind, identity), entry in known.items():
        there = held.get((kind, identity))
        if entry.stored and (there is None or there.revision < entry.revision):
            return f"{kind} {identity} was acknowledged at revision {entry.revision} and is not there"
    return None


def outcome(found: Iterable[Found], answer: Answer | None) -> tuple[list[Entry], list[Key]]:
    """The ledger's rows after an answer: written, and gone."""
    written, gone = [], []
    for each in found:
        if each.revision is None:
            gone.append(each.key)
        elif each.item is None or answer is None:
            written.append(Entry(key=each.key, revision=each.revision, refusal=each.refusal))
        else:
            written.append(Entry(key=each.key, revision=each.revision, stored=answer.revision))
    return written, gone


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Consecutive parts of at most this size."""
    return (items[start : start + size] for start in range(0, len(items), size))
