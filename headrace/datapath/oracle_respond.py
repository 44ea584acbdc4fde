"""respond: answer ARP and ND for the fixed addresses of a segment. docs/pipeline.md, "respond"."""

from __future__ import annotations

import ipaddress

from headrace.datapath.decision import IpAddress
from headrace.datapath.frame import neighbour_advertisement, octets
from headrace.datapath.oracle_admit import Entry
from headrace.datapath.oracle_spoof import NEIGHBOUR_SOLICITATION, icmpv6_type, neighbour
from headrace.datapath.oracle_view import View
from headrace.datapath.packet import ETHERNET
from headrace.model import Port

ARP_REQUEST = 1
ND_BARE = 24
ND_WITH_OPTION = 32


def respond(view: View, entry: Entry) -> tuple[bytes, str] | None:
    """The answer that goes back to the port, and whose it is; None if the packet goes on."""
    if entry.port is None:
        return None
    if entry.packet.arp is not None:
        return answer_arp(view, entry)
    if entry.packet.ip is not None and icmpv6_type(entry.packet.ip) == NEIGHBOUR_SOLICITATION:
        return answer_solicitation(view, entry)
    return None


def answer_arp(view: View, entry: Entry) -> tuple[bytes, str] | None:
    packet, arp = entry.packet, entry.packet.arp
    assert arp is not None
    owner = owner_of(view, entry, arp.target)
    if arp.operation != ARP_REQUEST or arp.sender == arp.target or owner is None:
        return None
    message = packet.frame[ETHERNET:]
    answer = (
        octets(packet.source)
        + octets(owner.mac)
        + packet.frame[12:14]
        + message[0:6]
        + b"\x00\x02"
        + octets(owner.mac)
        + arp.target.packed
        + message[8:14]
        + message[14:18]
        + message[28:]
    )
    return answer, f"{arp.target} is at {owner.mac}, {owner.label()}"


def answer_solicitation(view: View, entry: Entry) -> tuple[bytes, str] | None:
    packet, ip = entry.packet, entry.packet.ip
    assert ip is not None
    message = neighbour(packet.frame, ip)
    if message is None or ip.extended or ip.source.is_unspecified:
        return None
    with_option = message.length == ND_WITH_OPTION and message.option is not None and message.option_length == 1
    bare = message.length == ND_BARE and not packet.is_multicast
    owner = owner_of(view, entry, message.target)
    if not (with_option or bare) or owner is None:
        return None
    assert isinstance(ip.source, ipaddress.IPv6Address)
    advertisement = neighbour_advertisement(
        source=message.target, destination=ip.source, mac=owner.mac if with_option else None
    )
    answer = (
        octets(packet.source)
        + octets(owner.mac)
        + packet.frame[12:14]
        + packet.frame[ETHERNET : ETHERNET + 8]
        + message.target.packed
        + ip.source.packed
        + advertisement
        + packet.frame[ip.end :]
    )
    return answer, f"{message.target} is at {owner.mac}, {owner.label()}"


def owner_of(view: View, entry: Entry, address: IpAddress) -> Port | None:
    """The port of the segment that has a fixed address, unless the asker has its MAC."""
    for port in view.ports_of(entry.network):
        if port.port_security and not port.is_router and address in map(ipaddress.ip_address, port.addresses):
            return port if port.mac != entry.packet.source else None
    return None
