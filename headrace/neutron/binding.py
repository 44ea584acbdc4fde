"""Whether a port may be bound to a host, and why not. Pure: decides from what Neutron already looked up.

A port that loses a feature by being bound here is refused: never a silent loss of security (design.md section 8).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from headrace.errors import NotSupported
from headrace.neutron.translate import NotCarried, carried_segment, port

DRIVER_NAME = "headrace"
"""Our name in ``mechanism_drivers``, and so in the levels of a binding."""

AGENT_TYPE = "Headrace agent"
VIF_TYPE = "tap"
VNIC_TYPES = ("normal",)
OVERHEAD = {4: 50, 6: 70}
"""Octets that VXLAN adds to a workload's IP packet, by version of the outer IP (RFC 7348; inner Ethernet included)."""

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
) -> Attributes:
    """The segment to bind the port to. Raises Refused with the reason.

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
    for attribute in ("vlan_transparent", "vlan_qinq"):
        if network.get(attribute):
            raise Refused(f"network {network['id']} is {attribute}; tagged frames are not carried")
    try:
        port(source, ours=True)
    except NotCarried as error:
        raise Refused(str(error)) from None
    configurations = abilities(host, agents)
    carried = carried_segment(segments)
    reasons = []
    for segment in to_bind:
        reason = obstacle(segment, carried, network, configurations)
        if reason is None:
            return segment
        reasons.append(f"segment {segment['id']}: {reason} on host {host}")
    raise Refused("; ".join(reasons) or f"network {network['id']} has no segment to bind")


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


def obstacle(
    segment: Attributes, carried: Attributes | None, network: Attributes, configurations: Attributes
) -> str | None:
    """Why this segment cannot be used with these abilities, or None."""
    kind, physical = segment["network_type"], segment.get("physical_network")
    if kind not in configurations.get("network_types", ()):
        return f"network type {kind} is not available"
    if physical and physical not in configurations.get("physical_networks", ()):
        return f"physical network {physical} is not connected"
    if carried is None or segment["id"] != carried["id"]:
        return f"network type {kind} is not one Headrace carries here"
    mtu, needed = configurations.get("mtu") or 0, network["mtu"] + overhead(configurations)
    if mtu and mtu < needed:
        return f"network mtu {network['mtu']} needs {needed} on the uplink, which has {mtu}"
    return None


def overhead(configurations: Attributes) -> int:
    """Octets that the tunnel adds between hosts with these tunnel endpoints."""
    vteps = configurations.get("vteps") or ()
    only6 = bool(vteps) and all(":" in address for address in vteps)
    return OVERHEAD[6 if only6 else 4]
