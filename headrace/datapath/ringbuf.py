"""Reads a BPF ring buffer map: what programs hand to user space, record by record, in the order they did.

One reader a ring buffer: the kernel keeps one position for all (``kernel/bpf/ringbuf.c``, ``consumer_pos``), so two
would steal from each other. A record that nobody fetched waits; one that finds no room is lost, and its program knows.
libbpf 1.1 reads until nothing is left, and so for as long as somebody writes as fast; what ends it before is an error
from the callback, whose record counts as read (``src/ringbuf.c``, ``ringbuf_process_ring``).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from headrace.datapath.binding import check, ffi, lib, logged, pointer
from headrace.datapath.bpfmap import Map, MapType


class RingBuffer:
    """Hands each record of a ring buffer to ``receive``, as bytes.

    ``fileno()`` is readable while there is something, for ``loop.add_reader(ring.fileno(), ring.consume, 64)``: after
    64 others have their turn. Reading needs the right to open the map (root, or CAP_BPF), no memory lock and no
    CAP_SYS_RESOURCE.
    """

    def __init__(self, table: Map, receive: Callable[[bytes], None]) -> None:
        """Read ``table``, which stays the caller's. Raises Refused if it is no ring buffer."""
        self._receive = receive
        self._error: BaseException | None = None
        self._most: int | None = None
        self._taken = 0
        self._table: Map | None = None
        self._handle: Any = ffi.NULL
        self._callback = ffi.callback("ring_buffer_sample_fn", self._record, error=-errno.EIO)
        with logged():
            self._handle = pointer(
                lib.ring_buffer__new(table.fd, self._callback, ffi.NULL, ffi.NULL), f"read ring buffer {table.name}"
            )

    @classmethod
    def from_pin(cls, path: Path, receive: Callable[[bytes], None]) -> Self:
        """The ring buffer pinned at ``path``, say ``datapath.pins / "hr_punts"``. Raises Refused if there is none."""
        table = Map.from_pin(path)
        try:
            ring = cls(table, receive)
        except BaseException:
            table.close()
            raise
        ring._table = table
        return ring

    def _record(self, _: Any, data: Any, size: int) -> int:
        try:
            self._receive(bytes(ffi.buffer(data, size)))
        except BaseException as error:  # noqa: BLE001 - it cannot cross C; the reading call raises it again
            self._error = error
            return -errno.EIO
        self._taken += 1
        return -errno.ECANCELED if self._taken == self._most else 0

    def consume(self, most: int | None = None) -> int:
        """Hand over the records there are, at most so many, without waiting; answers how many.

        Raises what ``receive`` raised. The record that it failed on is not handed over again.
        """
        self._taken, self._most = 0, most
        return self._read(lib.ring_buffer__consume(self._handle))

    def poll(self, timeout: float = 0) -> int:
        """As ``consume`` of all, but wait at most ``timeout`` seconds for the first record."""
        self._taken, self._most = 0, None
        return self._read(lib.ring_buffer__poll(self._handle, int(timeout * 1000)))

    def _read(self, result: int) -> int:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if result == -errno.ECANCELED:
            return self._taken
        return 0 if result == -errno.EINTR else check(result, "read ring buffer")

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return int(lib.ring_buffer__epoll_fd(self._handle))

    def close(self) -> None:
        """Stop reading; what is not fetched stays for the next reader."""
        if self._handle != ffi.NULL:
            lib.ring_buffer__free(self._handle)
            self._handle = ffi.NULL
        if self._table is not None:
            self._table.close()
            self._table = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def create_ring(name: str, octets: int) -> Map:
    """A new ring buffer with room for ``octets``, a power of two and whole pages; the caller closes it."""
    fd = check(lib.bpf_map_create(MapType.RINGBUF, name.encode(), 0, 0, octets, ffi.NULL), f"create ring buffer {name}")
    return Map(fd, name, owned=True)
