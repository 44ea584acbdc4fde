"""One BPF map: read, write, walk, in batches where the kernel has them."""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from headrace.datapath.binding import ENOTSUPP, Refused, check, ffi, get_pinned, info, lib, pin
from headrace.errors import DatapathError

BPF_ANY, BPF_NOEXIST, BPF_EXIST, BPF_F_LOCK = 0, 1, 2, 4
BATCH = 4096


class MapType(enum.IntEnum):
    """``enum bpf_map_type``, those that Headrace meets."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    DEVMAP = 14
    CPUMAP = 16
    QUEUE = 22
    STACK = 23
    DEVMAP_HASH = 25
    RINGBUF = 27


PER_CPU = {MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH}


def possible_cpus() -> int:
    """How many values a per-CPU entry has."""
    return check(lib.libbpf_num_possible_cpus(), "number of possible CPUs")


class Chunk(NamedTuple):
    """Consecutive entries as the kernel hands them out: packed keys, packed values."""

    entries: int
    keys: bytes
    values: bytes


class Map:
    """A map by its descriptor.

    A value is ``bytes``; a per-CPU value is the values of all possible CPUs one after another, each
    padded to eight octets - ``cpus`` splits it.
    """

    def __init__(self, fd: int, name: str = "", *, owned: bool = False) -> None:
        facts = info(fd, "map")
        self.fd = fd
        self.name = name or ffi.string(facts.name).decode()
        self.id = int(facts.id)
        self.type = int(facts.type)
        self.key_size = int(facts.key_size)
        self.value_size = int(facts.value_size)
        self.max_entries = int(facts.max_entries)
        self.flags = int(facts.map_flags)
        self.per_cpu = self.type in PER_CPU
        self._cpus = possible_cpus() if self.per_cpu else 1
        self._stride = -(-self.value_size // 8) * 8 if self.per_cpu else self.value_size
        self._room = self._stride * self._cpus
        self._owned = owned

    @classmethod
    def from_pin(cls, path: Path) -> Self:
        """The map pinned at ``path``; the caller closes it."""
        return cls(get_pinned(path, "map"), path.name, owned=True)

    def close(self) -> None:
        """Give back the descriptor when it is ours (a map of an Object goes with the Object)."""
        if self._owned and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pin(self, path: Path) -> None:
        """Pin the map at ``path``."""
        pin(self.fd, path, f"map {self.name}")

    def lookup(self, key: bytes) -> bytes | None:
        """The value at ``key``; of a per-CPU map all CPUs' values (see ``cpus``)."""
        self._fits(key, self.key_size, "key")
        value = ffi.new("char[]", self._room)
        if (result := lib.bpf_map_lookup_elem(self.fd, key, value)) == -errno.ENOENT:
            return None
        check(result, self._doing("look up", key))
        return bytes(ffi.buffer(value, self._room))

    def lookup_cpus(self, key: bytes) -> list[bytes] | None:
        """The values at ``key``, one for each possible CPU."""
        value = self.lookup(key)
        return None if value is None else self.cpus(value)

    def cpus(self, value: bytes) -> list[bytes]:
        """Split a per-CPU value into one for each possible CPU."""
        return [value[at : at + self.value_size] for at in range(0, self._room, self._stride)]

    def update(self, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
        """Write one entry; a per-CPU map takes one value for every CPU, or all of them as ``lookup`` gives them."""
        self._fits(key, self.key_size, "key")
        check(lib.bpf_map_update_elem(self.fd, key, self._value(value), flags), self._doing("update", key))

    def delete(self, key: bytes) -> bool:
        """Remove one entry; false when there was none."""
        self._fits(key, self.key_size, "key")
        if (result := lib.bpf_map_delete_elem(self.fd, key)) == -errno.ENOENT:
            return False
        check(result, self._doing("delete", key))
        return True

    def chunks(self, size: int = BATCH) -> Iterator[Chunk]:
        """All entries, in packed chunks; falls back to one at a time where the map type has no batches."""
        token = ffi.new("char[]", max(4, self.key_size))
        first = True
        while True:
            keys = ffi.new("char[]", size * self.key_size)
            values = ffi.new("char[]", size * self._room)
            count = ffi.new("__u32 *", size)
            result = lib.bpf_map_lookup_batch(
                self.fd, ffi.NULL if first else token, token, keys, values, count, ffi.NULL
            )
            if first and result in {-ENOTSUPP, -errno.EINVAL}:
                yield from self._singly()
                return
            if result == -errno.ENOSPC:  # one hash bucket holds more than a batch
                size *= 2
                continue
            if result != -errno.ENOENT:
                check(result, f"read map {self.name}")
            first = False
            if got := int(count[0]):
                yield Chunk(
                    got, bytes(ffi.buffer(keys, got * self.key_size)), bytes(ffi.buffer(values, got * self._room))
                )
            if result == -errno.ENOENT:
                return

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries; those that come or go meanwhile may or may not be seen."""
        for entries, keys, values in self.chunks():
            for at in range(entries):
                key = keys[at * self.key_size : (at + 1) * self.key_size]
                yield key, values[at * self._room : (at + 1) * self._room]

    def keys(self) -> Iterator[bytes]:
        """All keys."""
        for entries, keys, _ in self.chunks():
            for at in range(entries):
                yield keys[at * self.key_size : (at + 1) * self.key_size]

    def update_many(self, items: Iterable[tuple[bytes, bytes]], flags: int = BPF_ANY) -> None:
        """Write entries, in the order given."""
        rows = items if isinstance(items, Sequence) else list(items)
        if flags & ~BPF_F_LOCK:  # batches know no other flag
            for key, value in rows:
                self.update(key, value, flags)
            return
        options = self._options(flags)
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            keys = b"".join(self._key(row[0]) for row in part)
            values = b"".join(self._value(value) for _, value in part)
            count = ffi.new("__u32 *", len(part))
            result = lib.bpf_map_update_batch(self.fd, keys, values, count, options)
            if result in {-ENOTSUPP, -errno.EINVAL}:
                for key, value in part:
                    self.update(key, value, flags)
            elif result < 0:
                raise Refused(self._doing("update", part[min(int(count[0]), len(part) - 1)][0]), -result)

    def update_packed(self, keys: bytes, values: bytes) -> None:
        """Write entries whose keys and values lie one after another; far faster than one by one."""
        step = BATCH
        for at in range(0, len(keys) // self.key_size, step):
            part = keys[at * self.key_size : (at + step) * self.key_size]
            given = values[at * self._room : (at + step) * self._room]
            number = len(part) // self.key_size
            count = ffi.new("__u32 *", number)
            result = lib.bpf_map_update_batch(self.fd, part, given, count, self._options(0))
            if result in {-ENOTSUPP, -errno.EINVAL}:
                for row in range(number):
                    key = part[row * self.key_size : (row + 1) * self.key_size]
                    self.update(key, given[row * self._room : (row + 1) * self._room])
            elif result < 0:
                bad = min(int(count[0]), number - 1)
                raise Refused(self._doing("update", part[bad * self.key_size : (bad + 1) * self.key_size]), -result)

    def delete_many(self, keys: Iterable[bytes]) -> int:
        """Remove entries; answers how many there were."""
        rows = keys if isinstance(keys, Sequence) else list(keys)
        gone = start = 0
        options = self._options(0)
        while start < len(rows):
            part = rows[start : start + BATCH]
            count = ffi.new("__u32 *", len(part))
            result = lib.bpf_map_delete_batch(self.fd, b"".join(map(self._key, part)), count, options)
            if result in {-ENOTSUPP, -errno.EINVAL}:
                gone += sum(self.delete(key) for key in part)
                start += len(part)
                continue
            done = int(count[0])
            gone += done
            start += done
            if result == -errno.ENOENT:  # the kernel stops at a key that is not there
                start += 1
            else:
                check(result, self._doing("delete", part[min(done, len(part) - 1)]))
        return gone

    def push(self, value: bytes) -> None:
        """Append to a queue or stack."""
        check(lib.bpf_map_update_elem(self.fd, ffi.NULL, self._value(value), 0), f"push to map {self.name}")

    def pop(self) -> bytes | None:
        """Take the next of a queue or stack."""
        value = ffi.new("char[]", self.value_size)
        if (result := lib.bpf_map_lookup_and_delete_elem(self.fd, ffi.NULL, value)) == -errno.ENOENT:
            return None
        check(result, f"pop from map {self.name}")
        return bytes(ffi.buffer(value, self.value_size))

    def _singly(self) -> Iterator[Chunk]:
        key: Any = ffi.NULL
        for _ in range(self.max_entries * 2 + 1):  # a walk beside deletes may start anew; it must still end
            following = ffi.new("char[]", max(1, self.key_size))
            if (result := lib.bpf_map_get_next_key(self.fd, key, following)) == -errno.ENOENT:
                return
            check(result, f"walk map {self.name}")
            key = following
            name = bytes(ffi.buffer(key, self.key_size))
            if (value := self.lookup(name)) is not None:
                yield Chunk(1, name, value)

    def _key(self, key: bytes) -> bytes:
        self._fits(key, self.key_size, "key")
        return key

    def _value(self, value: bytes) -> bytes:
        if self.per_cpu and len(value) == self.value_size:
            return value.ljust(self._stride, b"\0") * self._cpus
        self._fits(value, self._room, "value")
        return value

    def _fits(self, octets: bytes, size: int, what: str) -> None:
        if len(octets) != size:
            raise DatapathError(
                f"map {self.name}: a {what} of {len(octets)} octets, not {size}; rebuild headrace/abi.py"
            )

    def _doing(self, verb: str, key: bytes) -> str:
        return f"{verb} key {key.hex()} of map {self.name} (at most {self.max_entries} entries)"

    @staticmethod
    def _options(flags: int) -> Any:
        return ffi.new(
            "struct bpf_map_batch_opts *", {"sz": ffi.sizeof("struct bpf_map_batch_opts"), "elem_flags": flags}
        )
