"""Whether a port may be bound to a host, and why not. Pure: decides from what Neutron already looked up.

A port that loses a feature by being bound here is refused: never a silent loss of security (docs/openstack.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from headrace.errors import NotSupported
from headrace.model import Segment
from headrace.neutron import translate
from headrace.neutron.translate import NotCarried

DRIVER_NAME = "headrace"
"""Our name in ``mechanism_drivers``, and so in the levels of a binding."""

AGENT_TYPE = "Headrace agent"
VIF_TYPE = "tap"
VNIC_TYPES = ("normal",)

WITHOUT = {
    "qos_policy_id": "a QoS policy",
    "qos_network_policy_id": "its network's QoS policy",
}
"""Port attributes that promise what this datapath does not do yet."""

Attributes = Mapping[str, Any]


class Refused(NotSupported):
    """The port cannot be bound; the text says what stands in the way."""


def choose(
    source: Attributes,
    network: Attributes,
    segments: Sequence[Attributes],
    to_bind: Iterable[Attributes],
    agents: Iterable[Attributes],
    transports: Mapping[str, str],
) -> Attributes:
    """The segment to bind the port to. Raises Refused with the reason and what to do about it.

    ``segments``: all static segments of the network; ``to_bind``: those that Neutron offers at this level.
    ``agents``: the Headrace agents that Neutron knows on the host (there is one at most).
    """
    host = source["binding:host_id"]
    vnic = source.get("binding:vnic_type", "normal")
    if vnic not in VNIC_TYPES:
        raise Refused(f"vnic type {vnic} is not supported on host {host}; use {', '.join(VNIC_TYPES)}")
    for attribute, meaning in WITHOUT.items():
        if source.get(attribute):
            raise Refused(f"{meaning} ({source[attribute]}) cannot be enforced yet; remove it from the port")
    try:
        translate.port(source, ours=True)
        segment = translate.segment(network, segments, transports)
    except NotCarried as error:
        raise Refused(str(error)) from None
    configurations = abilities(host, agents)
    # A mechanism driver above ours may offer a segment of its own making, which is no way between our hosts.
    offered = next((each for each in to_bind if each["id"] == segments[0]["id"]), None)
    if offered is None:
        raise Refused(f"network {network['id']}: its segment is not offered to {DRIVER_NAME}; bind it at the top level")
    if reason := obstacle(segment, network["mtu"], configurations, host):
        raise Refused(f"network {network['id']}: {reason}")
    return offered


def abilities(host: str, agents: Iterable[Attributes]) -> Attributes:
    """What the live agent on the host says it can do."""
    known = list(agents)
    if not known:
        raise Refused(f"no {AGENT_TYPE} has reported from host {host}; start headrace-agent there")
    for agent in known:
        if agent["alive"]:
            configurations: Attributes = agent["configurations"]
            if configurations.get("drained"):
                raise Refused(f"host {host} is drained; `headrace host drain --undo` there lets it take ports again")
            return configurations
    raise Refused(f"the {AGENT_TYPE} on host {host} is dead (last heard {known[0]['heartbeat_timestamp']})")


def obstacle(segment: Segment, mtu: int, configurations: Attributes, host: str) -> str | None:
    """Why a host with these abilities cannot carry a network of this segment and MTU, and the cure; or None."""
    physical = segment.physical_network
    if physical is not None and physical not in (configurations.get("physical_networks") or ()):
        return (
            f"physical network {physical} is not connected on host {host}; "
            f'there, set physical_networks = {{{physical} = "DEVICE"}} in agent.toml, and see that the device exists'
        )
    kinds = configurations.get("network_types") or ()
    if segment.type not in kinds:
        return f"network type {segment.type} is not available on host {host} ({', '.join(kinds)}); upgrade its agent"
    if physical is not None:
        room, needed = (configurations.get("physical_mtus") or {}).get(physical, 0), mtu + segment.overhead(4)
        where = f"the device of physical network {physical}"
    else:
        room, needed = configurations.get("mtu") or 0, mtu + segment.overhead(outer_version(configurations))
        where = "the uplinks"
    if room and room < needed:
        return (
            f"its mtu {mtu} needs {needed} on {where} of host {host}, which has {room}; "
            f"raise that, or lower the network's to {room - needed + mtu}"
        )
    return None


def outer_version(configurations: Attributes) -> int:
    """The IP version of tunnels between hosts with these tunnel endpoints: 6 where there is no IPv4 one."""
    vteps = configurations.get("vteps") or ()
    return 6 if vteps and all(":" in address for address in vteps) else 4
