"""Marks: what changed, noted in the transaction that changed it, for the worker to look at."""

from __future__ import annotations

from typing import Any

from neutron_lib.db import api as db_api

from headrace.neutron.models import Dirty


def mark(context: Any, kind: str, identity: str) -> None:
    """Note a change in the caller's transaction, or in one of its own where the caller has none."""
    change = Dirty(type=kind, object_id=identity)
    if db_api.is_session_active(context.session):
        # Not flushed here: a deadlock would come out of a callback, as 409, where Neutron's own flush tries again.
        context.session.add(change)
        return
    with db_api.CONTEXT_WRITER.using(context):
        context.session.add(change)
