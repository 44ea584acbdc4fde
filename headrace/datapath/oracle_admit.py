"""admit: which port, VTEP or wire a packet came from, on which network, and is it well formed.

docs/pipeline.md, "admit".
"""

from __future__ import annotations

import msgspec

from headrace.abi import Reason
from headrace.datapath.decision import Dropped, Place
from headrace.datapath.frame import with_checksum
from headrace.datapath.oracle_outer import Approach
from headrace.datapath.oracle_view import View
from headrace.datapath.packet import ETHERNET, Packet, number, parse
from headrace.model import Network, Port

ECN = 0x03
NOT_ECT, ECT_1, ECT_0, CE = 0, 1, 2, 3
"""RFC 3168 section 5."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """An admitted packet: what it is, and where it entered.

    ``port``: local. Else ``host`` sent it by tunnel, one without a name perhaps; or, ``by_wire``, it came from the wire
    of a physical network.
    """

    packet: Packet
    place: Place
    network: Network
    port: Port | None = None
    host: str | None = None
    by_wire: bool = False


def admit(view: View, found: Approach) -> Entry:
    """Admit a frame from a port, by tunnel, or from a wire; raises Dropped."""
    if found.port is not None:
        return admit_from_port(view, found, found.port)
    if found.network is not None:
        return admit_from_wire(view, found, found.network)
    assert found.source is not None, "what came by tunnel came from somewhere"
    host = view.sender(found.source, found.wire)
    if host is None and not view.surroundings.any_vtep:
        raise Dropped(Reason.UNKNOWN_VTEP, f"{found.source} is no VTEP of another host")
    network = view.network_at((found.wire, "", 0, found.id))
    if network is None:
        raise Dropped(Reason.UNKNOWN_SEGMENT, f"no port of host {view.host} is on {found.wire} {found.id}")
    packet = marked(read(found), found.tos & ECN)
    return Entry(packet=packet, place=place_of(network), network=network, host=host)


def admit_from_port(view: View, found: Approach, port: Port) -> Entry:
    check_ethernet(found.frame)
    if not view.is_up(port):
        raise Dropped(Reason.PORT_DOWN, f"{port.label()} is administratively down, or without a device")
    packet = parse(found.frame, found.vlan)
    return Entry(
        packet=packet, place=Place("port", port.attachment), network=view.state.networks[port.network], port=port
    )


def admit_from_wire(view: View, found: Approach, network: Network) -> Entry:
    packet = read(found)
    for port in view.here.values():
        if port.network == network.id and port.mac == packet.source:
            raise Dropped(Reason.SPOOFED_MAC, f"from the wire comes the MAC of {port.label()}, which is here")
    return Entry(packet=packet, place=place_of(network), network=network, by_wire=True)


def read(found: Approach) -> Packet:
    check_ethernet(found.frame)
    return parse(found.frame, found.vlan)


def check_ethernet(frame: bytes) -> None:
    if len(frame) < ETHERNET:
        raise Dropped(Reason.MALFORMED_ETHERNET, f"{len(frame)} octets are no Ethernet frame")


def place_of(network: Network) -> Place:
    """Where packets of a network enter that come from elsewhere."""
    return Place("segment", network.segment.plain)


def marked(packet: Packet, outer: int) -> Packet:
    """A packet with its ECN field as the way here left it (RFC 6040 section 4.2); raises Dropped."""
    if packet.ip is None:
        return packet
    inner = packet.ip.tos & ECN
    if outer == CE and inner == NOT_ECT:
        raise Dropped(Reason.ECN, "it was marked as congested on its way, and its ends do not know of such marks")
    if not (outer == CE or (outer == ECT_1 and inner == ECT_0)) or outer == inner:
        return packet
    frame, at = packet.frame, ETHERNET + 1
    if packet.ip.version == 4:
        changed = frame[:at] + bytes([frame[at] & ~ECN | outer]) + frame[at + 1 :]
        old, new = number(frame[ETHERNET : ETHERNET + 2]), number(changed[ETHERNET : ETHERNET + 2])
        changed = with_checksum(changed, ETHERNET + 10, mended(number(frame[ETHERNET + 10 : ETHERNET + 12]), old, new))
    else:
        changed = frame[:at] + bytes([frame[at] & ~(ECN << 4) | outer << 4]) + frame[at + 1 :]
    ip = msgspec.structs.replace(packet.ip, tos=packet.ip.tos & ~ECN | outer)
    return msgspec.structs.replace(packet, frame=changed, ip=ip)


def mended(checksum: int, old: int, new: int) -> int:
    """A checksum after a change of one word: HC' = ~(~HC + ~m + m'), RFC 1624 equation 3."""
    total = (~checksum & 0xFFFF) + (~old & 0xFFFF) + new
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
