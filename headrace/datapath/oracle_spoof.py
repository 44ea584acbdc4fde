"""anti_spoof: may this port send from this MAC and address. docs/pipeline.md, "anti_spoof"."""

from __future__ import annotations

import ipaddress

import msgspec

from headrace.abi import Reason
from headrace.datapath.decision import Dropped, IpAddress, IpNetwork
from headrace.datapath.oracle_admit import Entry
from headrace.datapath.packet import ICMPV6, UDP, Ip, Packet, is_icmp, mac
from headrace.model import Port

ROUTER_ADVERTISEMENT, NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT, REDIRECT = 134, 135, 136, 137
UNSPECIFIED_TYPES = (131, 132, 135, 143)
"""ICMPv6 that may come from ``::`` (Neutron's ICMPV6_ALLOWED_UNSPEC_ADDR_TYPES; 132 by RFC 3590)."""

ND_BARE = 24
"""Octets of NS and NA without options (RFC 4861 sections 4.3, 4.4)."""
ND_OPTION = 8


class Neighbour(msgspec.Struct, frozen=True, kw_only=True):
    """A valid NS or NA. ``option``: the MAC in its link-layer address option, if that comes first."""

    type: int
    target: ipaddress.IPv6Address
    length: int
    option: str | None = None
    option_length: int = 0


def anti_spoof(entry: Entry) -> str:
    """Check the sender's addresses; says what was found. Raises Dropped."""
    port, packet = entry.port, entry.packet
    if port is None:
        return "judged by the host that sent it"
    if not port.port_security:
        return f"{port.label()} has no port security"
    if packet.source not in macs(port):
        raise Dropped(Reason.SPOOFED_MAC, f"{port.label()} may not send from {packet.source}")
    if packet.arp is not None:
        sender = packet.arp.sender
        if packet.arp.sender_mac != packet.source or not (
            sender.is_unspecified or allowed(port, packet.source, sender)
        ):
            raise Dropped(
                Reason.SPOOFED_ARP,
                f"{port.label()} may not say in ARP that {sender} is at {packet.arp.sender_mac}",
            )
        return f"{port.label()} may use {packet.source}, {sender}"
    if packet.ip is None:
        raise Dropped(Reason.ETHERTYPE, f"ethertype {packet.ethertype:#06x} is neither ARP nor IP")
    check_role(port, packet.ip)
    check_source(port, packet, packet.ip)
    check_neighbour(port, packet, packet.ip)
    return f"{port.label()} may use {packet.source}, {packet.ip.source}"


def check_role(port: Port, ip: Ip) -> None:
    """Workloads are no DHCP servers and no routers."""
    if is_udp(ip, 67, 68) if ip.version == 4 else is_udp(ip, 547, 546):
        raise Dropped(Reason.ROGUE_DHCP, f"{port.label()} answers as a DHCP server")
    if icmpv6_type(ip) in {ROUTER_ADVERTISEMENT, REDIRECT} and not port.is_router:
        raise Dropped(Reason.ROGUE_RA, f"{port.label()} is no router's port")


def check_source(port: Port, packet: Packet, ip: Ip) -> None:
    if not ip.source.is_unspecified:
        good = allowed(port, packet.source, ip.source)
    elif ip.version == 4:
        good = is_udp(ip, 68, 67)
    else:
        good = icmpv6_type(ip) in UNSPECIFIED_TYPES
    if not good:
        raise Dropped(Reason.SPOOFED_ADDRESS, f"{port.label()} may not send from {ip.source} at {packet.source}")


def check_neighbour(port: Port, packet: Packet, ip: Ip) -> None:
    if icmpv6_type(ip) not in {NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT}:
        return
    message = neighbour(packet.frame, ip)
    if message is None:
        raise Dropped(Reason.MALFORMED_ND, "receivers must discard this NS or NA (RFC 4861 section 7.1, RFC 6980)")
    if message.type == NEIGHBOUR_ADVERTISEMENT and not allowed(port, packet.source, message.target):
        raise Dropped(Reason.SPOOFED_ND, f"{port.label()} may not advertise {message.target}")
    if message.option is not None and message.option != packet.source:
        raise Dropped(Reason.SPOOFED_ND, f"{port.label()} names {message.option} in an option, not its own MAC")


def neighbour(frame: bytes, ip: Ip) -> Neighbour | None:
    """Read an NS or NA; None if receivers must discard it."""
    message = frame[ip.payload : ip.end]
    if ip.fragment is not None or ip.hop_limit != 255 or len(message) < ND_BARE or message[1] != 0:
        return None
    target = ipaddress.IPv6Address(message[8:24])
    if target.is_multicast or target.ipv4_mapped is not None:
        return None
    kind = 1 if message[0] == NEIGHBOUR_SOLICITATION else 2
    has_option = len(message) >= ND_BARE + ND_OPTION and message[ND_BARE] == kind
    return Neighbour(
        type=message[0],
        target=target,
        length=len(message),
        option=mac(message[26:32]) if has_option else None,
        option_length=message[25] if has_option else 0,
    )


def macs(port: Port) -> set[str]:
    """The MACs a port may send from."""
    return {port.mac} | {pair.mac or port.mac for pair in port.address_pairs}


def sources(port: Port, source_mac: str) -> list[IpNetwork]:
    """The addresses a port may send from with one of its MACs."""
    texts = [eui64(source_mac)]
    if source_mac == port.mac:
        texts += port.addresses
        if not port.addresses and not port.address_pairs:
            texts += ["0.0.0.0/0", "::/0"]
    texts += [pair.address for pair in port.address_pairs if (pair.mac or port.mac) == source_mac]
    return [ipaddress.ip_network(text, strict=False) for text in texts]


def allowed(port: Port, source_mac: str, address: IpAddress) -> bool:
    """Whether the address is in a source of the MAC; the unspecified ones never are."""
    if address.is_unspecified or source_mac not in macs(port):
        return False
    return any(address in source for source in sources(port, source_mac))


def eui64(source_mac: str) -> str:
    """The link-local address that a MAC gives itself (RFC 4291 appendix A)."""
    octets = bytes.fromhex(source_mac.replace(":", ""))
    interface = bytes([octets[0] ^ 0x02]) + octets[1:3] + b"\xff\xfe" + octets[3:6]
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + interface))


def is_udp(ip: Ip, sport: int, dport: int) -> bool:
    if ip.protocol != UDP or ip.transport is None:
        return False
    return (ip.transport.sport, ip.transport.dport) == (sport, dport)


def icmpv6_type(ip: Ip) -> int | None:
    """The ICMPv6 type, or None if the packet is none or a later fragment."""
    if ip.protocol != ICMPV6 or not is_icmp(ip.version, ip.protocol) or ip.transport is None:
        return None
    return ip.transport.dport >> 8
