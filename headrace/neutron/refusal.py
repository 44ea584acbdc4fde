"""Why ports could not be bound. Neutron has no field for it, so Headrace keeps it, and shows it as port status."""

from __future__ import annotations

from typing import Any

from neutron_lib.db import api as db_api

from headrace.neutron.models import Refusal

LONGEST = 512


def record(context: Any, port: str, host: str, reason: str) -> None:
    """Keep the reason for a port, instead of any older one."""
    with db_api.CONTEXT_WRITER.using(context):
        context.session.merge(Refusal(port_id=port, host=host, reason=reason[:LONGEST]))


def clear(context: Any, port: str) -> None:
    """Forget a port's reason, if there is one."""
    with db_api.CONTEXT_WRITER.using(context):
        context.session.query(Refusal).filter_by(port_id=port).delete(synchronize_session=False)


def on_host(context: Any, host: str) -> list[str]:
    """The ports refused on a host."""
    with db_api.CONTEXT_READER.using(context):
        return [port for (port,) in context.session.query(Refusal.port_id).filter_by(host=host)]


def every(context: Any) -> list[tuple[str, str, str]]:
    """(port, host, reason) of all, by port."""
    with db_api.CONTEXT_READER.using(context):
        rows = context.session.query(Refusal.port_id, Refusal.host, Refusal.reason).order_by(Refusal.port_id)
        return [tuple(row) for row in rows]
