"""What goes over the wire between the controller and everyone else, besides records and status."""

from __future__ import annotations

from typing import Literal

import msgspec

from headrace import errors
from headrace.model import HostStatus, Record
from headrace.model.object import Identity

HEARTBEAT = 5.0
"""Seconds between sync lines on a quiet watch."""

PORT = 9797
"""TCP port of the controller."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """To a write: the store's epoch and revision after it, and whether it changed anything."""

    epoch: str
    revision: int
    changed: bool


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """All records of a type, as of a revision."""

    epoch: str
    revision: int
    items: tuple[Record, ...]


class Resync(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything of a writer, among these types, that is not kept, goes. Makes the writer epoch the current one."""

    writer: Identity
    writer_epoch: str
    types: tuple[str, ...]
    keep: tuple[tuple[str, str], ...]


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of a watch.

    ``reset``: forget everything, a snapshot follows. ``put``, ``delete``: one object.
    ``sync``: everything up to ``revision`` of ``epoch`` has been told; also the heartbeat.
    ``status``: one host's word about itself.
    """

    kind: Literal["reset", "put", "delete", "sync", "status"]
    epoch: str = ""
    revision: int = 0
    record: Record | None = None
    status: HostStatus | None = None


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The body of an answer that is an error: the class in `headrace.errors` and its message."""

    error: str
    message: str


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How the controller is. ``store`` is ``ok`` or what is wrong with it; ``time`` is its clock's, as in status."""

    epoch: str
    revision: int
    objects: int
    watchers: int
    store: str
    time: float


class Signing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request for a host certificate (PEM), its subject ignored: the path names the host."""

    request: str


class Signed(msgspec.Struct, frozen=True, kw_only=True):
    """A host's certificate and the authority's (PEM)."""

    certificate: str
    authority: str


HTTP_STATUS: dict[type[errors.HeadraceError], int] = {
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.InvalidInput: 400,
    errors.NotSupported: 422,
    errors.Denied: 403,
    errors.StoreFull: 507,
    errors.Unavailable: 503,
    errors.HeadraceError: 500,
}
"""How an error is told over HTTP; the first class that fits."""


def http_status(error: errors.HeadraceError) -> int:
    """The status code of an error."""
    return next(code for cls, code in HTTP_STATUS.items() if isinstance(error, cls))


def revive(failure: Failure) -> errors.HeadraceError:
    """The error that a controller told of."""
    cls = getattr(errors, failure.error, errors.Unavailable)
    return cls(failure.message) if issubclass(cls, errors.HeadraceError) else errors.Unavailable(failure.message)
