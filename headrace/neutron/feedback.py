"""What hosts say, brought into Neutron: agents and their heartbeats, and ports ACTIVE, DOWN or ERROR.

There is no API for a port's status, so this runs inside a process of Neutron. It judges by the whole status of a
host, never by a change in it: saying the same twice does nothing.
"""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import sqlalchemy as sa
from neutron.db import models_v2, provisioning_blocks
from neutron.plugins.ml2.models import PortBinding, PortBindingLevel
from neutron_lib import constants
from neutron_lib.callbacks import resources
from neutron_lib.db import api as db_api
from neutron_lib.db import standard_attr
from neutron_lib.exceptions import NeutronException
from neutron_lib.plugins import directory
from oslo_config import cfg

from headrace.model import HostStatus, PortStatus
from headrace.neutron import refusal
from headrace.neutron.binding import AGENT_TYPE, DRIVER_NAME, VIF_TYPE
from headrace.neutron.ledger import admin
from headrace.neutron.models import Ledger
from headrace.neutron.translate import WRITER

LOG = logging.getLogger(__name__)

HEARTBEATS = 6
"""Times that a live agent is written down within Neutron's ``agent_down_time``."""

PHYSICAL_TYPES = (constants.TYPE_FLAT, constants.TYPE_VLAN)

OUTCOME: dict[str, str] = {"down": constants.PORT_STATUS_DOWN, "error": constants.PORT_STATUS_ERROR}


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A port that Neutron has bound to a host through us. ``stored``: see models.Ledger; None: not pushed as it is."""

    id: str
    status: str
    admin_up: bool
    stored: int | None


class Feedback:
    """Remembers each host's last word, to know a new one and to judge again when desired state has moved.

    ``clock``: the controller's, in Unix seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.statuses: dict[str, HostStatus] = {}
        self._written: dict[str, tuple[float, dict[str, Any]]] = {}
        self._refusals: tuple[PortStatus, ...] | None = None

    def hear(self, statuses: Iterable[HostStatus], controller_epoch: str | None) -> None:
        """Take in what hosts say: agents first, for ports are bound only where an agent lives."""
        for status in statuses:
            if status.id == WRITER:
                continue
            before = self.statuses.get(status.id)
            if before is not None and status.time < before.time:
                continue
            self.statuses[status.id] = status
            self.report_agent(status, alive=before is None or status.time > before.time)
            self.judge([status.id], controller_epoch)

    def report_agent(self, status: HostStatus, *, alive: bool) -> None:
        """Keep the host's agent alive in Neutron, as often as that needs, and at once when its abilities change."""
        configurations = abilities(status)
        last, written = self._written.get(status.id, (0.0, None))
        now = time.monotonic()
        if written is None:
            # The first word that we hear may be an old one, kept by the controller: that agent is not alive.
            due = alive and self._clock() - status.time < cfg.CONF.agent_down_time
        else:
            due = alive and now - last >= cfg.CONF.agent_down_time / HEARTBEATS
        if not due and (written is None or configurations == written):
            return
        turned = configurations != written and shown_drained(status.id) != status.drained
        state, _ = directory.get_plugin().create_or_update_agent(
            admin(),
            {
                "agent_type": AGENT_TYPE,
                "binary": "headrace-agent",
                "host": status.id,
                "topic": "N/A",
                "configurations": configurations,
                # Neutron negotiates object versions over RPC with agents that have them; ours speaks no RPC.
                "resource_versions": {},
            },
            dt.datetime.now(dt.UTC),
        )
        if turned:
            show_drained(status.id, drained=status.drained)
        self._written[status.id] = (now, configurations)
        if state != "alive" or configurations != written:
            LOG.info("agent on host %s is %s: %s", status.id, state, configurations)
            rebind(status.id)

    def judge(self, hosts: Iterable[str], controller_epoch: str | None) -> None:
        """Make the status of each port on these hosts what its host says, once it speaks of the present port."""
        for host in hosts:
            status = self.statuses.get(host)
            if status is None or status.epoch != controller_epoch:
                continue
            said = {port.id: port for port in status.ports}
            for port in bound(host):
                verdict = decide(port, said.get(port.id), status.applied)
                if verdict is not None and verdict != port.status:
                    write(port.id, verdict, host)

    def refusals(self) -> HostStatus | None:
        """Ports that could not be bound or pushed, as a status of ours; None if the controller has it already."""
        found = tuple(refused_ports())
        if found == self._refusals:
            return None
        self._refusals = found
        return HostStatus(id=WRITER, network_types=(), ports=found)


def decide(port: Wanted, said: PortStatus | None, applied: int) -> str | None:
    """The status a port should have, or None while its host has not yet spoken of the port as it now is.

    ACTIVE needs the host to have applied the very revision that Neutron now has. Bad news is believed at once.
    """
    current = port.stored is not None and max(applied, said.revision if said else 0) >= port.stored
    if said is not None and said.state in OUTCOME:
        return OUTCOME[said.state]
    if not current:
        return None
    if said is None or not port.admin_up:
        return str(constants.PORT_STATUS_DOWN)
    return str(constants.PORT_STATUS_ACTIVE)


def bound(host: str) -> list[Wanted]:
    """The ports whose active binding on a host is ours."""
    context, attributes = admin(), standard_attr.StandardAttribute
    pushed = sa.and_(
        Ledger.type == "port",
        Ledger.object_id == models_v2.Port.id,
        Ledger.revision == attributes.revision_number,
        Ledger.refusal.is_(None),
    )
    query = (
        sa.select(
            models_v2.Port.id, models_v2.Port.status, models_v2.Port.admin_state_up.label("admin_up"), Ledger.stored
        )
        .join(PortBinding, PortBinding.port_id == models_v2.Port.id)
        .join(
            PortBindingLevel,
            sa.and_(
                PortBindingLevel.port_id == PortBinding.port_id,
                PortBindingLevel.host == PortBinding.host,
                PortBindingLevel.driver == DRIVER_NAME,
            ),
        )
        .join(attributes, attributes.id == models_v2.Port.standard_attr_id)
        .outerjoin(Ledger, pushed)
        .where(
            PortBinding.host == host,
            PortBinding.status == constants.ACTIVE,
            PortBinding.vif_type == VIF_TYPE,
        )
    )
    with db_api.CONTEXT_READER.using(context):
        return [Wanted(**row) for row in context.session.execute(query).mappings()]


def write(port: str, status: str, host: str) -> None:
    """Set a port's status the way Neutron wants it: ACTIVE by completing provisioning, which also tells Nova."""
    LOG.info("port %s is %s, says host %s", port, status, host)
    if status == constants.PORT_STATUS_ACTIVE:
        provisioning_blocks.provisioning_complete(admin(), port, resources.PORT, provisioning_blocks.L2_AGENT_ENTITY)
    else:
        directory.get_plugin().update_port_status(admin(), port, status, host)


def rebind(host: str) -> None:
    """Try the ports again that were refused on a host, now that it can do more than before."""
    for port in refusal.on_host(admin(), host):
        try:
            directory.get_plugin().get_bound_port_context(admin(), port, host)
        except NeutronException as error:
            LOG.warning("port %s could not be bound again to host %s: %s", port, host, error)


def refused_ports() -> Iterable[PortStatus]:
    """Each refused port with its reason, by id."""
    reasons = {port: reason for port, _, reason in refusal.every(admin())}
    context = admin()
    with db_api.CONTEXT_READER.using(context):
        rows = context.session.execute(
            sa.select(Ledger.object_id, Ledger.refusal).where(Ledger.type == "port", Ledger.refusal.is_not(None))
        ).all()
    for port, reason in rows:
        reasons.setdefault(port, reason)
    return [PortStatus(id=port, state="error", reason=reason) for port, reason in sorted(reasons.items())]


def abilities(status: HostStatus) -> dict[str, Any]:
    """What a host can do, as ``configurations`` of its agent."""
    return {
        "network_types": list(status.network_types),
        "tunnel_types": [kind for kind in status.network_types if kind not in PHYSICAL_TYPES],
        "physical_networks": list(status.physical_networks),
        # Where Neutron's service plug-in ``segments`` looks for them.
        "bridge_mappings": {name: wire.device for name, wire in status.wires.items()},
        "vteps": list(status.vteps),
        "mtu": status.mtu,
        "physical_mtus": {name: wire.mtu for name, wire in status.wires.items()},
        "version": status.version,
        "drained": status.drained,
    }


def agents_of(host: str) -> list[dict[str, Any]]:
    """Neutron's record of a host's agent, if it has one."""
    found: list[dict[str, Any]] = directory.get_plugin().get_agents(
        admin(), filters={"host": [host], "agent_type": [AGENT_TYPE]}
    )
    return found


def shown_drained(host: str) -> bool:
    """Whether Neutron knows a host to be drained."""
    return any(agent["configurations"].get("drained") for agent in agents_of(host))


def show_drained(host: str, *, drained: bool) -> None:
    """Show an operator of Neutron that a host is drained, or no longer: its agent is administratively down, or up."""
    for agent in agents_of(host):
        directory.get_plugin().update_agent(admin(), agent["id"], {"agent": {"admin_state_up": not drained}})
