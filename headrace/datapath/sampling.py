"""A watcher of drops: asks the datapath for samples, takes them, and lets go.

The datapath samples for at most four watchers, each with its own filter, rate and ring buffer (``bpf/sample.h``).
A watcher asks for three seconds and renews that each second, so one that is killed costs nothing for longer than that;
its slot, and the ring buffer in it, goes to the next who comes.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Self

from headrace import abi
from headrace.datapath.bpfmap import Map
from headrace.datapath.reader import Reader
from headrace.datapath.ringbuf import RingBuffer, create_ring
from headrace.errors import Unavailable

LEASE = 3.0
"""Seconds that a watcher asks for."""
RENEWAL = 1.0
"""Seconds between two renewals."""
ROOM = 262144
"""Octets of a watcher's ring buffer: about 1,300 samples."""
NO_DROPS = {abi.Reason.NONE, abi.Reason.ANSWERED, abi.Reason.FLOODED, abi.Reason.PUNTED}
NANOSECONDS = 1_000_000_000


class Watch:
    """Hands every sample to ``receive``, until closed. ``renew`` wants to be called every ``RENEWAL`` seconds.

    ``port``: index of the port that drops count on (0: the uplink), None for any. ``reasons``: empty for any.
    ``rate``: samples a second at most; the datapath does not take more. Raises Unavailable if all slots are taken.
    """

    def __init__(
        self,
        reader: Reader,
        receive: Callable[[abi.Sample], None],
        *,
        port: int | None = None,
        reasons: Collection[abi.Reason] = (),
        rate: int = 100,
    ) -> None:
        self._reader = reader
        self._owner = secrets.randbits(63) | 1
        self._wanted = abi.Watch(
            owner=self._owner,
            reasons=sum(1 << reason for reason in (reasons or set(abi.Reason) - NO_DROPS)),
            port=abi.WATCH_ALL if port is None else port,
            rate=rate,
        )
        self._missed = 0
        self._table = create_ring("hr_sample_ring", ROOM)
        try:
            self.ring = RingBuffer(self._table, lambda record: receive(abi.Sample.unpack(record)))
            try:
                self.slot = self._claim()
            except BaseException:
                self.ring.close()
                raise
        except BaseException:
            self._table.close()
            raise

    def renew(self) -> bool:
        """Ask for some more seconds; false if it was too late and somebody else has the slot."""
        with self._alone():
            if self._slot(self.slot).owner != self._owner:
                return False
            self._write(self.slot, self._until())
            return True

    def missed(self) -> int:
        """Drops since the last call that were wanted and not shown: over the rate, or without room."""
        total = self._state().missed
        fresh, self._missed = total - self._missed, total
        return fresh

    def close(self) -> None:
        """Ask no more, and leave the slot."""
        with self._alone():
            if self._slot(self.slot).owner == self._owner:
                self._write(self.slot, 0)
                self._maps("hr_samples").delete(_key(self.slot))
        self.ring.close()
        self._table.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _claim(self) -> int:
        with self._alone():
            now = time.monotonic_ns()
            slot = next((slot for slot in range(abi.WATCHERS) if self._slot(slot).until <= now), None)
            if slot is None:
                raise Unavailable(f"{abi.WATCHERS} others watch drops on this host already; end one of them")
            self._write(slot, 0)
            self._maps("hr_watch_states").update(_key(slot), abi.WatchState().pack())
            self._maps("hr_samples").update(_key(slot), self._table.fd.to_bytes(4, "little"))
            self._write(slot, self._until())
            return slot

    def _until(self) -> int:
        return time.monotonic_ns() + int(LEASE * NANOSECONDS)

    def _slot(self, slot: int) -> abi.Watch:
        return abi.Watch.unpack(self._maps("hr_watches").lookup(_key(slot)) or b"")

    def _state(self) -> abi.WatchState:
        return abi.WatchState.unpack(self._maps("hr_watch_states").lookup(_key(self.slot)) or b"")

    def _write(self, slot: int, until: int) -> None:
        """Write the own slot; ``until`` 0 gives it back. The word that drops look at first is all slots' latest."""
        watch = abi.Watch(
            until=until,
            owner=self._wanted.owner if until else 0,
            reasons=self._wanted.reasons,
            port=self._wanted.port,
            rate=self._wanted.rate,
        )
        self._maps("hr_watches").update(_key(slot), watch.pack())
        now = time.monotonic_ns()
        latest = max(self._slot(number).until for number in range(abi.WATCHERS))
        self._maps("hr_watched_until").update(bytes(4), abi.U64(value=latest if latest > now else 0).pack())

    def _maps(self, name: str) -> Map:
        return self._reader.maps[name]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other watcher changes a slot meanwhile; the lock ends with the process, however that ends."""
        fd = os.open(self._reader.pins, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _key(slot: int) -> bytes:
    return abi.U32(value=slot).pack()
