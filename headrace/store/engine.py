"""What the controller asks of a store: revision, compare-and-swap transaction, watch from a revision, time to live.

The terms are etcd v3's (https://etcd.io/docs/v3.5/learning/api/), so that an etcd back end is a
translation and not a design. One difference, on purpose: ``ttl`` belongs to a put. An engine with
leases makes one, or shares one among keys that die about the same time.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

import msgspec

from headrace.errors import Unavailable


class StoreBroken(Unavailable):
    """The store is damaged: trying again does not help, an operator must act."""


class Compacted(Exception):
    """The change log no longer reaches back to the revision asked for."""


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is: ``created`` and ``modified`` are the revisions that made and last changed it."""

    key: str
    value: bytes
    created: int
    modified: int


class Compare(msgspec.Struct, frozen=True):
    """A condition: the key was last changed by ``modified``; 0 means that it does not exist."""

    key: str
    modified: int


class Put(msgspec.Struct, frozen=True):
    """Set a key; with ``ttl`` (seconds) it goes by itself some time after."""

    key: str
    value: bytes
    ttl: float | None = None


class Delete(msgspec.Struct, frozen=True):
    """Remove a key; removing none is no error and no change."""

    key: str


class Commit(msgspec.Struct, frozen=True):
    """The outcome of a transaction. ``revision`` is the store's afterwards, also when a condition failed."""

    succeeded: bool
    revision: int


class Change(msgspec.Struct, frozen=True):
    """One key changed; ``value`` None: it is gone."""

    key: str
    value: bytes | None


class Batch(msgspec.Struct, frozen=True):
    """Everything one transaction changed (under the prefix watched), in its order."""

    revision: int
    changes: tuple[Change, ...]


class Engine(Protocol):
    """A store. Every call may raise Unavailable; StoreBroken when an operator must act."""

    @property
    def epoch(self) -> str:
        """The name of this life of the data: revisions of different epochs cannot be compared."""
        ...

    async def open(self) -> None:
        """Connect; make the store if there is none."""
        ...

    async def close(self) -> None:
        """Let go; watches end."""
        ...

    async def range(self, prefix: str) -> tuple[int, list[Item]]:
        """The keys with a prefix, sorted, and the revision at which they are so."""
        ...

    async def commit(self, compares: Sequence[Compare], operations: Sequence[Put | Delete]) -> Commit:
        """If every condition holds, do every operation as one revision, durably; else nothing.

        Operations that change nothing (deletes of absent keys only) leave the revision alone.
        """
        ...

    def watch(self, prefix: str, after: int) -> AsyncGenerator[Batch, None]:
        """Every change after a revision, past ones first, in order, none twice, none missing.

        Raises Compacted at the first step when the log does not reach back so far; the revision may
        not lie in the future (Compacted too). Ends when the engine closes.
        """
        ...

    async def compact(self, revision: int) -> None:
        """Forget how things came about up to and including a revision; what is, stays."""
        ...
