"""Headrace's own tables in Neutron's database.

They hold what has to outlive a process of Neutron, and nothing that can be computed: what changed, what the
controller has acknowledged, who leads, why a port could not be bound, and which labels and paths networks have.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from neutron_lib.db import model_base

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""SQLite numbers rows by itself only in a column of exactly INTEGER."""


class Dirty(model_base.BASEV2):
    """One change, written in the transaction that made it; the worker deletes it once the controller has the object.

    Rows are only ever inserted by the API, so that two requests never wait for each other here.
    """

    __tablename__ = "headrace_dirty"
    id = sa.Column(BIG, primary_key=True, autoincrement=True)
    type = sa.Column(sa.String(32), nullable=False)
    object_id = sa.Column(sa.String(36), nullable=False)


class Ledger(model_base.BASEV2):
    """What the controller has acknowledged.

    ``revision``: Neutron's ``revision_number`` of the version it has (-1: it refused; try again).
    ``stored``: the controller's revision in the answer: who has applied that, has applied this version.
    ``refusal``: why the controller does not have the object, though Neutron does.
    """

    __tablename__ = "headrace_ledger"
    type = sa.Column(sa.String(32), primary_key=True)
    object_id = sa.Column(sa.String(36), primary_key=True)
    revision = sa.Column(sa.BigInteger(), nullable=False)
    stored = sa.Column(sa.BigInteger(), nullable=False, default=0)
    refusal = sa.Column(sa.String(512))


class Refusal(model_base.BASEV2):
    """Why a port could not be bound to the host that was asked for; written with the failed binding."""

    __tablename__ = "headrace_refusal"
    port_id = sa.Column(sa.String(36), primary_key=True)
    host = sa.Column(sa.String(255), nullable=False, index=True)
    reason = sa.Column(sa.String(512), nullable=False)


class Leader(model_base.BASEV2):
    """One row: which worker pushes, until when (Unix seconds by the database's clock), and the two epochs.

    ``writer_epoch`` names this life of Neutron's database. ``controller_epoch`` is the one that the ledger belongs
    to; None while a full resync is due or under way. ``translation``: what decided, beside Neutron's objects, on the
    bodies that were pushed.
    """

    __tablename__ = "headrace_leader"
    id = sa.Column(sa.Integer(), primary_key=True, autoincrement=False)
    holder = sa.Column(sa.String(255), nullable=False, default="")
    until = sa.Column(sa.BigInteger(), nullable=False, default=0)
    writer_epoch = sa.Column(sa.String(36), nullable=False)
    controller_epoch = sa.Column(sa.String(64))
    translation = sa.Column(sa.String(64))


class MplsAllocation(model_base.BASEV2):
    """A label that networks of type mpls are given, or one outside the ranges that a network was created with."""

    __tablename__ = "headrace_mpls_allocations"
    label = sa.Column(sa.Integer(), primary_key=True, autoincrement=False)
    allocated: Any = sa.Column(sa.Boolean(), nullable=False, default=False, server_default=sa.sql.false(), index=True)


class NshAllocation(model_base.BASEV2):
    """The same of service path identifiers, for networks of type nsh."""

    __tablename__ = "headrace_nsh_allocations"
    path = sa.Column(sa.Integer(), primary_key=True, autoincrement=False)
    allocated: Any = sa.Column(sa.Boolean(), nullable=False, default=False, server_default=sa.sql.false(), index=True)


ALL = (Dirty, Ledger, Refusal, Leader, MplsAllocation, NshAllocation)
