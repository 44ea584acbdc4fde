"""What Neutron has, what the controller has acknowledged, and who may carry the difference.

All of it is in Neutron's database, in a few short transactions, and none of it calls the network.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from neutron.db import models_v2
from neutron.db.models import address_group, securitygroup
from neutron_lib import context as neutron_context
from neutron_lib.db import api as db_api
from neutron_lib.db import standard_attr

from headrace.neutron.models import Dirty, Leader, Ledger

Key = tuple[str, str]
"""(type, id)."""

MODELS: dict[str, Any] = {
    "network": models_v2.Network,
    "subnet": models_v2.Subnet,
    "security_group": securitygroup.SecurityGroup,
    "address_group": address_group.AddressGroup,
    "port": models_v2.Port,
}
"""Where Neutron keeps each type that the controller mirrors."""

REFUSED = -1
"""A ledger revision that equals none of Neutron's: the object is tried again at the next comparison."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the ledger to be written; see models.Ledger."""

    key: Key
    revision: int
    stored: int = 0
    refusal: str | None = None

    def holds(self, revision: int | None) -> bool:
        """Whether the controller has acknowledged this revision."""
        return bool(self.stored) and self.revision == revision


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """What the leader knows by being it."""

    writer_epoch: str
    controller_epoch: str | None


def admin() -> Any:
    """A fresh administrator's context: one database session, for one task."""
    return neutron_context.get_admin_context()


# Marks


def marks(limit: int) -> tuple[list[int], list[Key]]:
    """The oldest marks: their row ids, and the objects they name, each once."""
    context = admin()
    with db_api.CONTEXT_READER.using(context):
        rows = context.session.query(Dirty.id, Dirty.type, Dirty.object_id).order_by(Dirty.id).limit(limit).all()
    return [row.id for row in rows], list(dict.fromkeys((row.type, row.object_id) for row in rows))


@db_api.retry_db_errors
def unmark(rows: Sequence[int]) -> None:
    """Delete marks by row id. One committed meanwhile has another id, and stays."""
    context = admin()
    with db_api.CONTEXT_WRITER.using(context):
        context.session.query(Dirty).filter(Dirty.id.in_(rows)).delete(synchronize_session=False)


@db_api.retry_db_errors
def unmark_all() -> None:
    """Delete every mark of a mirrored object; only sound before a comparison, which sees all that they could tell."""
    context = admin()
    with db_api.CONTEXT_WRITER.using(context):
        context.session.query(Dirty).filter(Dirty.type.in_(tuple(MODELS))).delete(synchronize_session=False)


# Comparison


def differences() -> list[Key]:
    """Every object whose revision the controller has not acknowledged, and every one it has that Neutron has not.

    Two joins per type; 0.3 s for 200,000 objects on MariaDB.
    """
    context, attributes = admin(), standard_attr.StandardAttribute
    found: list[Key] = []
    with db_api.CONTEXT_READER.using(context):
        for kind, model in MODELS.items():
            known = sa.and_(Ledger.type == kind, Ledger.object_id == model.id)
            changed = (
                sa.select(model.id)
                .join(attributes, attributes.id == model.standard_attr_id)
                .outerjoin(Ledger, known)
                .where(sa.or_(Ledger.object_id.is_(None), Ledger.revision != attributes.revision_number))
            )
            gone = (
                sa.select(Ledger.object_id)
                .outerjoin(model, Ledger.object_id == model.id)
                .where(Ledger.type == kind, model.id.is_(None))
            )
            for query in (changed, gone):
                found += [(kind, identity) for (identity,) in context.session.execute(query)]
    return found


def revisions() -> dict[Key, int]:
    """Neutron's own revision of every mirrored object."""
    context, attributes = admin(), standard_attr.StandardAttribute
    found: dict[Key, int] = {}
    with db_api.CONTEXT_READER.using(context):
        for kind, model in MODELS.items():
            query = sa.select(model.id, attributes.revision_number).join(
                attributes, attributes.id == model.standard_attr_id
            )
            found.update({(kind, identity): revision for identity, revision in context.session.execute(query)})
    return found


def entries(keys: Iterable[Key] | None = None) -> dict[Key, Entry]:
    """The ledger's rows: all, or those of some objects."""
    context = admin()
    query: Any = sa.select(Ledger.type, Ledger.object_id, Ledger.revision, Ledger.stored, Ledger.refusal)
    if keys is not None:
        query = query.where(Ledger.object_id.in_({identity for _, identity in keys}))
    with db_api.CONTEXT_READER.using(context):
        return {
            (kind, identity): Entry(key=(kind, identity), revision=revision, stored=stored, refusal=refusal)
            for kind, identity, revision, stored, refusal in context.session.execute(query)
        }


@db_api.retry_db_errors
def acknowledge(written: Iterable[Entry], gone: Iterable[Key]) -> None:
    """Write what the controller answered: rows for what it has or refused, no row for what it no longer has."""
    context = admin()
    with db_api.CONTEXT_WRITER.using(context):
        for entry in written:
            kind, identity = entry.key
            context.session.merge(
                Ledger(
                    type=kind,
                    object_id=identity,
                    revision=entry.revision,
                    stored=entry.stored,
                    refusal=entry.refusal and entry.refusal[:512],
                )
            )
        for kind, identity in gone:
            context.session.query(Ledger).filter_by(type=kind, object_id=identity).delete(synchronize_session=False)


# Leadership and epochs


def lead(holder: str, seconds: int) -> Lease | None:
    """Take or renew the lease for this long; None while another worker has it.

    A holder that was suspended past its lease may still write for a moment. That is harmless: the controller ignores
    older revisions, and a row of the ledger is true whoever wrote it.
    """
    context, now = admin(), sa.func.unix_timestamp()
    ensure_row()
    with db_api.CONTEXT_WRITER.using(context):
        taken = context.session.execute(
            sa.update(Leader)
            .where(Leader.id == 1, sa.or_(Leader.holder == holder, Leader.until < now))
            .values(holder=holder, until=now + seconds)
        )
        if not taken.rowcount:
            return None
    return current()


def current() -> Lease:
    """What the leader's row says now."""
    context = admin()
    with db_api.CONTEXT_READER.using(context):
        row = context.session.execute(sa.select(Leader.writer_epoch, Leader.controller_epoch)).one()
    return Lease(writer_epoch=row.writer_epoch, controller_epoch=row.controller_epoch)


def resign(holder: str) -> None:
    """Give the lease back, so that another worker need not wait for its end."""
    context = admin()
    with db_api.CONTEXT_WRITER.using(context):
        context.session.execute(sa.update(Leader).where(Leader.holder == holder).values(until=0))


@db_api.retry_db_errors
def forget_translation(translation: str) -> bool:
    """Have everything pushed again if what decides on bodies, beside Neutron's objects, is not what it was."""
    context = admin()
    with db_api.CONTEXT_WRITER.using(context):
        row = context.session.get(Leader, 1)
        if row.translation == translation:
            return False
        row.translation = translation
        context.session.query(Ledger).update({"revision": REFUSED}, synchronize_session=False)
        return True


@db_api.retry_db_errors
def ensure_row() -> None:
    """Make the one row of the leader's table, once in the life of a database."""
    context = admin()
    with db_api.CONTEXT_WRITER.using(context):
        if context.session.get(Leader, 1) is None:
            context.session.add(Leader(id=1, writer_epoch=str(uuid.uuid4())))


@db_api.retry_db_errors
def start_over(*, new_writer_epoch: bool) -> Lease:
    """Forget what the controller acknowledged: it lost it, or (a new epoch of ours) it knows a future we lost."""
    context = admin()
    with db_api.CONTEXT_WRITER.using(context):
        context.session.query(Ledger).delete(synchronize_session=False)
        row = context.session.get(Leader, 1)
        row.controller_epoch = None
        if new_writer_epoch:
            row.writer_epoch = str(uuid.uuid4())
        return Lease(writer_epoch=row.writer_epoch, controller_epoch=None)


@db_api.retry_db_errors
def complete(controller_epoch: str) -> None:
    """Note that the ledger now belongs to this epoch of the controller: a full resync is done."""
    context = admin()
    with db_api.CONTEXT_WRITER.using(context):
        context.session.execute(sa.update(Leader).values(controller_epoch=controller_epoch))
