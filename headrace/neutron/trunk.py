"""Trunks, where the API is: the driver that Neutron's ``trunk`` service plug-in asks for, and marks of what changes.

A sub-port is pushed as a port with a parent, so whatever changes its place raises its revision, in the same
transaction: its row in ``subports`` is none of its own attributes to Neutron. Binding sub-ports to their parents' hosts
is the worker's part (headrace.neutron.follow): a trunk may have hundreds, and the request that binds the parent cannot
wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

from neutron.db.models_v2 import Port
from neutron.services.trunk.drivers import base
from neutron_lib.callbacks import events, registry, resources
from neutron_lib.services.trunk import constants
from oslo_config import cfg

from headrace.neutron.binding import DRIVER_NAME, VIF_TYPE
from headrace.neutron.dirty import mark

MARK = "trunk"
"""The kind of mark that names a port whose trunk, present or past, has to be looked at."""

SEGMENTATION_TYPES = (constants.SEGMENTATION_TYPE_VLAN,)


class TrunkDriver(base.DriverBase):
    """Parents of vif type ``tap``, sub-ports by VLAN tag; ports may become trunks, and cease to be, while bound."""

    @classmethod
    def create(cls) -> Self:
        """Make the one driver. Without an agent type: agents are told by the controller, not by RPC."""
        return cls(DRIVER_NAME, (VIF_TYPE,), SEGMENTATION_TYPES, agent_type=None, can_trunk_bound_port=True)

    @property
    def is_loaded(self) -> bool:
        """Whether our mechanism driver is there to bind parents."""
        return DRIVER_NAME in cfg.CONF.ml2.mechanism_drivers

    @registry.receives(resources.TRUNK_PLUGIN, [events.AFTER_INIT])
    def register(self, resource: str, event: str, trigger: Any, payload: Any = None) -> None:
        """Join the trunk plug-in, once it is there."""
        super().register(resource, event, trigger, payload=payload)
        for event_ in (events.PRECOMMIT_CREATE, events.PRECOMMIT_DELETE):
            registry.subscribe(self.mark_trunk, resources.TRUNK, event_)
            registry.subscribe(self.mark_subports, resources.SUBPORTS, event_)

    def mark_trunk(self, _resource: str, _event: str, _trigger: object, payload: Any) -> None:
        """Mark parent and sub-ports of a trunk that comes or goes."""
        trunk = payload.desired_state or payload.states[0]
        mark(payload.context, MARK, trunk.port_id)
        moved(payload.context, trunk.sub_ports)

    def mark_subports(self, _resource: str, _event: str, _trigger: object, payload: Any) -> None:
        """Mark sub-ports that join or leave."""
        mark(payload.context, MARK, payload.states[0].port_id)
        moved(payload.context, payload.metadata["subports"])


def moved(context: Any, subports: Iterable[Any]) -> None:
    """Mark these ports and raise their revisions: they are somewhere else now."""
    identities = [subport.port_id for subport in subports]
    for port in context.session.query(Port).filter(Port.id.in_(identities)) if identities else ():
        port.bump_revision()
        mark(context, "port", port.id)
        mark(context, MARK, port.id)


def concerns(port: Mapping[str, Any]) -> bool:
    """Whether a port, as Neutron's API has it, is the parent of a trunk or has been bound as a sub-port."""
    return bool(port.get("trunk_details")) or port["device_owner"] == constants.TRUNK_SUBPORT_OWNER
