"""DHCPv4 for one port: its question in, our answer out. RFC 2131, RFC 2132, RFC 3396, RFC 3442, RFC 6842.

A port has its addresses already, by desired state: nothing is allocated, and no lease is remembered.
"""

from __future__ import annotations

import enum
import ipaddress
import struct
from collections.abc import Mapping

import msgspec

from headrace.agent.client import NOBODY4, Client, Silence, Unanswered
from headrace.agent.dhcp_option import NEXT_SERVER, chosen, route
from headrace.datapath import frame
from headrace.model.offer import Lease

COOKIE = bytes.fromhex("63825363")
FIXED = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s")
"""RFC 2131 section 2: op ... file; the cookie and options follow."""

SHORTEST = 300
"""Octets of a BOOTP message, which old clients insist on (RFC 951)."""

LARGEST = 576
"""Octets of an IP packet that every client takes (RFC 2131 section 2)."""

BROADCAST = ipaddress.IPv4Address("255.255.255.255")
BROADCAST_FLAG = 0x8000
PAD, END = 0, 255
ROUTES, ROUTES_MICROSOFT = 121, 249
IPXE = 175
"""The option that iPXE sends of itself; so does its user class (RFC 3004)."""


class Code(enum.IntEnum):
    """Options that the protocol itself reads and writes."""

    REQUESTED = 50
    LEASE = 51
    OVERLOAD = 52
    TYPE = 53
    SERVER = 54
    ASKED = 55
    LARGEST = 57
    CLIENT = 61
    USER_CLASS = 77


class Type(enum.IntEnum):
    """Message types."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A client's message."""

    type: int
    transaction: int
    flags: int
    own: ipaddress.IPv4Address
    relay: ipaddress.IPv4Address
    hardware: bytes
    options: Mapping[int, bytes]

    def address(self, code: Code) -> ipaddress.IPv4Address | None:
        """An option that holds one address."""
        value = self.options.get(code)
        if value is None:
            return None
        if len(value) != 4:
            raise Unanswered(Silence.MALFORMED)
        return ipaddress.IPv4Address(value)


def answer(message: bytes, client: Client) -> bytes:
    """The frame that answers a client's UDP payload. Raises Unanswered."""
    request = read(message)
    if request.hardware != frame.octets(client.port.mac):
        raise Unanswered(Silence.FOREIGN)
    if request.relay != NOBODY4:
        raise Unanswered(Silence.RELAYED)
    if not client.offer.dhcp4:
        raise Unanswered(Silence.UNSERVED)
    kind, lease = decide(request, client.offer.dhcp4, client)
    return reply(request, kind, lease, client)


def decide(request: Request, leases: tuple[Lease, ...], client: Client) -> tuple[Type, Lease]:
    """What to say, and of which address (RFC 2131 section 4.3)."""
    own = {lease.address: lease for lease in leases}
    wanted = request.address(Code.REQUESTED)
    if request.type == Type.DISCOVER:
        return Type.OFFER, own.get(wanted, leases[0]) if wanted else leases[0]
    if request.type == Type.INFORM:
        if request.own not in own:
            raise Unanswered(Silence.FOREIGN)
        return Type.ACK, own[request.own]
    if request.type != Type.REQUEST:
        raise Unanswered(Silence.NOTHING)
    server = request.address(Code.SERVER)
    if server is not None and server not in {client.server_of(lease) for lease in leases}:
        raise Unanswered(Silence.OTHER_SERVER)
    wanted = wanted or request.own
    if wanted == NOBODY4:
        raise Unanswered(Silence.MALFORMED)
    return (Type.ACK, own[wanted]) if wanted in own else (Type.NAK, leases[0])


def reply(request: Request, kind: Type, lease: Lease, client: Client) -> bytes:
    """The whole frame."""
    server = client.server_of(lease)
    tags = {"ipxe"} if IPXE in request.options or b"iPXE" in request.options.get(Code.USER_CLASS, b"") else set()
    own = chosen(client.options.get(4, ()), tags)
    needed = {Code.TYPE: bytes([kind]), Code.SERVER: server.packed}
    if Code.CLIENT in request.options:
        needed[Code.CLIENT] = request.options[Code.CLIENT]
    told: dict[int, bytes] = {}
    yours, boot, next_server = NOBODY4, b"", NOBODY4
    if kind != Type.NAK:
        told = parameters(client, lease) | {code: value for code, value in own.items() if code != NEXT_SERVER}
        boot = own.get(67, b"") if len(own.get(67, b"")) < 128 else b""
        next_server = next_server_of(own)
        if request.type == Type.INFORM:
            told = {code: value for code, value in told.items() if code not in {Code.LEASE, 58, 59}}
        else:
            assert isinstance(lease.address, ipaddress.IPv4Address)
            yours = lease.address
    asked = request.options.get(Code.ASKED, b"")
    if ROUTES_MICROSOFT not in asked and ROUTES_MICROSOFT not in own:
        told.pop(ROUTES_MICROSOFT, None)
    message = FIXED.pack(
        *(2, 1, 6, 0, request.transaction, 0, request.flags),
        *((NOBODY4 if kind in {Type.OFFER, Type.NAK} else request.own).packed, yours.packed, next_server.packed),
        *(NOBODY4.packed, request.hardware, b"", boot),
    )
    room = room_of(request, client) - FIXED.size - len(COOKIE)
    message = (message + COOKIE + write(needed, in_order(told, asked), room)).ljust(SHORTEST, b"\0")
    to = BROADCAST
    if kind != Type.NAK and request.own != NOBODY4:
        to = request.own
    elif kind != Type.NAK and not request.flags & BROADCAST_FLAG:
        to = yours
    ethertype, packet = frame.ip(server, to, 17, frame.udp(server, to, 67, 68, message))
    mac = frame.BROADCAST if to == BROADCAST else client.port.mac
    return frame.ethernet(source=client.server, destination=mac, ethertype=ethertype, payload=packet)


def parameters(client: Client, lease: Lease) -> dict[int, bytes]:
    """What a subnet's clients are told, as Neutron's DHCP agent tells it; first what they need most."""
    subnet, prefix = lease.subnet, lease.subnet.prefix
    assert isinstance(prefix, ipaddress.IPv4Network)
    told = {int(Code.LEASE): struct.pack("!I", client.lease), 1: prefix.netmask.packed}
    gateway, routes = subnet.gateway, []
    for host_route in subnet.host_routes:
        if ipaddress.ip_network(host_route.destination, strict=False).prefixlen == 0:
            gateway = gateway or host_route.nexthop
        else:
            routes.append((host_route.destination, host_route.nexthop))
    routes = [(near.cidr, "0.0.0.0") for near in client.links4 if near.prefix != prefix] + routes
    if gateway:
        told[3] = ipaddress.IPv4Address(gateway).packed
        routes += [("0.0.0.0/0", gateway)] if routes else []  # RFC 3442: who reads this option ignores the other
    servers = [server for server in subnet.dns_nameservers if server != str(NOBODY4)]
    if servers:
        told[6] = b"".join(ipaddress.ip_address(server).packed for server in servers)
    told[26] = struct.pack("!H", client.network.mtu)
    if routes:
        told[ROUTES] = told[ROUTES_MICROSOFT] = b"".join(route(*each) for each in routes)
    told[28] = prefix.broadcast_address.packed
    if client.network.dns_domain:
        told[15] = client.network.dns_domain.encode("idna")
    return told


def next_server_of(own: Mapping[int, bytes]) -> ipaddress.IPv4Address:
    """Where to boot from: ``server-ip-address``, or else the TFTP server where that is an address."""
    for code in (NEXT_SERVER, 150):
        if len(own.get(code, b"")) >= 4:
            return ipaddress.IPv4Address(own[code][:4])
    try:
        return ipaddress.IPv4Address(own.get(66, b"").decode())
    except ValueError:
        return NOBODY4


def room_of(request: Request, client: Client) -> int:
    """Octets that the UDP payload may have: what client and network take."""
    said = request.options.get(Code.LARGEST, b"")
    largest = int.from_bytes(said, "big") if len(said) == 2 else 0
    return min(max(largest, LARGEST), max(client.network.mtu, LARGEST), 1500) - 28


def in_order(told: Mapping[int, bytes], asked: bytes) -> dict[int, bytes]:
    """The lease and the mask first, then what the client asked for in its order, then the rest."""
    first = (Code.LEASE, 1, *asked)
    return {code: told[code] for code in (*first, *told) if code in told}


def write(needed: Mapping[Code, bytes], told: Mapping[int, bytes], room: int) -> bytes:
    """Options that fit, the needed ones in any case; those over 255 octets in pieces (RFC 3396)."""
    octets = b"".join(option(code, value) for code, value in needed.items())
    for code, value in told.items():
        more = option(code, value)
        if len(octets) + len(more) < room:
            octets += more
    return octets + bytes([END])


def option(code: int, value: bytes) -> bytes:
    """One option."""
    pieces = [value[start : start + 255] for start in range(0, len(value), 255)] or [b""]
    return b"".join(bytes([code, len(piece)]) + piece for piece in pieces)


def read(message: bytes) -> Request:
    """A client's message. Raises Unanswered."""
    if len(message) < FIXED.size + len(COOKIE):
        raise Unanswered(Silence.MALFORMED)
    operation, kind, length, _, transaction, _, flags, own, _, _, relay, hardware, server, file = FIXED.unpack_from(
        message
    )
    if operation != 1 or message[FIXED.size : FIXED.size + 4] != COOKIE:
        raise Unanswered(Silence.MALFORMED)
    if (kind, length) != (1, 6):
        raise Unanswered(Silence.FOREIGN)
    options = read_options(message[FIXED.size + 4 :])
    overload = options.get(Code.OVERLOAD, b"\0")[:1]
    for bit, part in ((1, file), (2, server)):  # RFC 2132 section 9.3
        if overload and overload[0] & bit:
            for code, value in read_options(part).items():
                options[code] = options.get(code, b"") + value
    if len(options.get(Code.TYPE, b"")) != 1:
        raise Unanswered(Silence.MALFORMED)
    return Request(
        type=options[Code.TYPE][0],
        transaction=transaction,
        flags=flags,
        own=ipaddress.IPv4Address(own),
        relay=ipaddress.IPv4Address(relay),
        hardware=hardware[:6],
        options=options,
    )


def read_options(octets: bytes) -> dict[int, bytes]:
    """Options by number, pieces of one put together (RFC 3396). Raises Unanswered."""
    options: dict[int, bytes] = {}
    place = 0
    while place < len(octets) and octets[place] != END:
        code = octets[place]
        if code == PAD:
            place += 1
            continue
        if place + 2 > len(octets) or place + 2 + octets[place + 1] > len(octets):
            raise Unanswered(Silence.MALFORMED)
        length = octets[place + 1]
        options[code] = options.get(code, b"") + octets[place + 2 : place + 2 + length]
        place += 2 + length
    return options
