"""The ML2 mechanism driver: validates, binds, and marks what changed. It never calls the network.

ML2 tells a mechanism driver of networks, subnets and ports only; groups and rules come by the callback registry,
inside the transaction. Address groups are published after commit, outside one: the ledger catches a mark lost there.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from neutron.db import provisioning_blocks, segments_db
from neutron.db.models.securitygroup import SecurityGroupRule
from neutron.db.models_v2 import Port
from neutron.plugins.ml2.models import PortBindingLevel
from neutron_lib import constants
from neutron_lib.api.definitions import multiprovidernet, portbindings
from neutron_lib.callbacks import events, registry, resources
from neutron_lib.exceptions import InvalidInput
from neutron_lib.plugins.ml2 import api
from oslo_config import cfg

from headrace.neutron import config, refusal, trunk
from headrace.neutron.binding import AGENT_TYPE, DRIVER_NAME, VIF_TYPE, VNIC_TYPES, Refused, choose
from headrace.neutron.dirty import mark

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.neutron.worker import HeadraceWorker

LOG = logging.getLogger(__name__)

VIF_DETAILS = {
    portbindings.CAP_PORT_FILTER: True,
    portbindings.VIF_DETAILS_CONNECTIVITY: portbindings.CONNECTIVITY_L2,
}


class HeadraceMechanismDriver(api.MechanismDriver):
    """Binds ports of vnic type ``normal`` as ``tap``: Nova makes the device, the agent attaches to it."""

    @property
    def connectivity(self) -> str:
        """Ports get L2 service, with or without addresses."""
        return str(portbindings.CONNECTIVITY_L2)

    def initialize(self) -> None:
        """Register options and callbacks. Called once per process that loads ML2."""
        config.register(cfg.CONF)
        self.trunk = trunk.TrunkDriver.create()
        for event in (events.PRECOMMIT_CREATE, events.PRECOMMIT_UPDATE, events.PRECOMMIT_DELETE):
            registry.subscribe(self.mark_security_group, resources.SECURITY_GROUP, event)
        for event in (events.PRECOMMIT_CREATE, events.PRECOMMIT_DELETE):
            registry.subscribe(self.mark_rule, resources.SECURITY_GROUP_RULE, event)
        for event in (events.AFTER_CREATE, events.AFTER_UPDATE, events.AFTER_DELETE):
            registry.subscribe(self.mark_address_group, resources.ADDRESS_GROUP, event)

    def get_workers(self) -> Sequence[HeadraceWorker]:
        """The one process that talks to the controller, hosted by neutron-periodic-workers."""
        from headrace.neutron.worker import HeadraceWorker

        return [HeadraceWorker()]

    # Networks and subnets

    def create_network_precommit(self, context: Any) -> None:
        """Mark it."""
        mark(context.plugin_context, "network", context.current["id"])

    delete_network_precommit = create_network_precommit

    def update_network_precommit(self, context: Any) -> None:
        """Mark it. A second segment is refused while ports are bound here: they would be on half a network."""
        network = context.current
        mark(context.plugin_context, "network", network["id"])
        grown = network.get(multiprovidernet.SEGMENTS) and not context.original.get(multiprovidernet.SEGMENTS)
        if grown and (count := bound_on(context.plugin_context, network["id"])):
            raise InvalidInput(
                error_message=f"network {network['id']} has {count} ports bound by {DRIVER_NAME}, which carries "
                "networks of exactly one segment; make another network, or unbind these ports first"
            )

    def create_subnet_precommit(self, context: Any) -> None:
        """Mark it, and its network, whose revision goes up with it."""
        mark(context.plugin_context, "subnet", context.current["id"])
        mark(context.plugin_context, "network", context.current["network_id"])

    update_subnet_precommit = delete_subnet_precommit = create_subnet_precommit

    # Ports

    def create_port_precommit(self, context: Any) -> None:
        """Mark it; ACTIVE waits for the datapath."""
        self.mark_port(context)
        self.block(context)

    def update_port_precommit(self, context: Any) -> None:
        """Mark it, and keep the reason of a failed binding as long as it is failed."""
        self.mark_port(context)
        if context.vif_type == portbindings.VIF_TYPE_BINDING_FAILED:
            self.record_refusal(context)
        elif context.original_vif_type == portbindings.VIF_TYPE_BINDING_FAILED:
            refusal.clear(context.plugin_context, context.current["id"])
        bound_now = context.vif_type == VIF_TYPE and context.original_vif_type != VIF_TYPE
        if bound_now or context.host != context.original_host:
            self.block(context)

    def delete_port_precommit(self, context: Any) -> None:
        """Mark it."""
        self.mark_port(context)
        if context.vif_type == portbindings.VIF_TYPE_BINDING_FAILED:
            refusal.clear(context.plugin_context, context.current["id"])

    @staticmethod
    def mark_port(context: Any) -> None:
        """Mark a port, and where it is a trunk's the trunk, which follows it."""
        port = context.current["id"]
        mark(context.plugin_context, "port", port)
        if trunk.concerns(context.current) or (context.original and trunk.concerns(context.original)):
            mark(context.plugin_context, trunk.MARK, port)

    def block(self, context: Any) -> None:
        """Keep the port from turning ACTIVE before the datapath on its host has acknowledged it."""
        source = context.current
        if not context.host or source["status"] == constants.PORT_STATUS_ACTIVE:
            return
        if source.get(portbindings.VNIC_TYPE, portbindings.VNIC_NORMAL) not in VNIC_TYPES:
            return
        # Another driver's host has its own agent to lift the block; ours would never.
        if context.host_agents(AGENT_TYPE):
            provisioning_blocks.add_provisioning_component(
                context.plugin_context, source["id"], resources.PORT, provisioning_blocks.L2_AGENT_ENTITY
            )

    def bind_port(self, context: Any) -> None:
        """Bind to the first segment that the host's agent can carry; else leave it to another driver."""
        try:
            segment = self.choose(context, context.segments_to_bind)
        except Refused as error:
            LOG.info("port %s is not bound to host %s: %s", context.current["id"], context.host, error)
            return
        context.set_binding(segment[api.ID], VIF_TYPE, VIF_DETAILS)

    def record_refusal(self, context: Any) -> None:
        """Store why no driver bound the port, in the transaction that stores the failed binding.

        Not in ``bind_port``: ML2 calls that up to ten times, and may throw its result away.
        """
        try:
            self.choose(context, context.network.network_segments)
        except Refused as error:
            reason = str(error)
        else:
            reason = "the host became able to carry the port only after it was refused; update the port to try again"
        LOG.warning("port %s cannot be bound to host %s: %s", context.current["id"], context.host, reason)
        refusal.record(context.plugin_context, context.current["id"], context.host, reason)

    @staticmethod
    def choose(context: Any, to_bind: Any) -> Any:
        """``binding.choose`` on ML2's context."""
        network = context.network.current
        # The context has dynamic segments too, which other drivers made between them.
        segments = segments_db.get_network_segments(context.plugin_context, network["id"])
        agents = context.host_agents(AGENT_TYPE)
        return choose(context.current, network, segments, to_bind, agents, config.transports())

    @staticmethod
    def check_segment_for_agent(segment: Any, agent: Any) -> bool:
        """Whether a host reaches a segment, for Neutron's routed networks (service plug-in ``segments``)."""
        if agent["agent_type"] != AGENT_TYPE:
            return False
        able = agent["configurations"]
        physical = segment[api.PHYSICAL_NETWORK]
        return segment[api.NETWORK_TYPE] in able.get("network_types", ()) and (
            not physical or physical in able.get("physical_networks", ())
        )

    # The callback registry. It holds methods weakly: ML2 keeps the driver, and so these, alive.

    def mark_security_group(self, _resource: str, event: str, _trigger: object, payload: Any) -> None:
        """Mark the group, and on deletion those that lose a rule because it named this one as remote."""
        mark(payload.context, "security_group", payload.resource_id)
        if event == events.PRECOMMIT_DELETE:
            losing = (
                payload.context.session.query(SecurityGroupRule.security_group_id)
                .filter(SecurityGroupRule.remote_group_id == payload.resource_id)
                .distinct()
            )
            for (group,) in losing:
                mark(payload.context, "security_group", group)

    def mark_rule(self, _resource: str, _event: str, _trigger: object, payload: Any) -> None:
        """Mark the group that the rule is in."""
        group = payload.metadata.get("security_group_id") or payload.latest_state["security_group_id"]
        mark(payload.context, "security_group", group)

    def mark_address_group(self, _resource: str, _event: str, _trigger: object, payload: Any) -> None:
        """Mark the address group."""
        mark(payload.context, "address_group", payload.resource_id)


def bound_on(context: Any, network: str) -> int:
    """How many ports of a network are bound through us."""
    ports = context.session.query(Port.id).join(PortBindingLevel, PortBindingLevel.port_id == Port.id)
    return int(ports.filter(Port.network_id == network, PortBindingLevel.driver == DRIVER_NAME).distinct().count())
