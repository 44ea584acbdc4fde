"""DHCPv6 for one port: its question in, our answer out. RFC 8415; RFC 3646 (DNS), RFC 5970 (boot).

A port has its addresses already, by desired state: nothing is allocated, and no binding is remembered.
"""

from __future__ import annotations

import enum
import ipaddress
import struct
from collections.abc import Iterator

import msgspec

from headrace.agent.client import Client, Silence, Unanswered
from headrace.agent.dhcp_option import chosen, name
from headrace.datapath import frame

STATELESS = "dhcpv6-stateless"
DUID_LINK_LAYER = b"\x00\x03\x00\x01"
"""RFC 8415 section 11.4, on Ethernet; the MAC follows."""

DUID_LONGEST = 130
"""Octets (RFC 8415 section 11.1)."""

OPTIONS_MOST = 64
"""More options than this in one message are nobody's honest question."""

LARGEST = 1232
"""Octets of an answer: an IPv6 packet that crosses every link (RFC 8200 section 5), less its headers."""

IA_HEAD = 16
"""Octets of an IA_NA before its addresses (RFC 8415 section 21.4)."""


class Type(enum.IntEnum):
    """Messages (RFC 8415 section 7.3)."""

    SOLICIT = 1
    ADVERTISE = 2
    REQUEST = 3
    CONFIRM = 4
    RENEW = 5
    REBIND = 6
    REPLY = 7
    RELEASE = 8
    DECLINE = 9
    INFORMATION = 11


class Code(enum.IntEnum):
    """Options that the protocol itself reads and writes (RFC 8415 section 21)."""

    CLIENT = 1
    SERVER = 2
    IA_NA = 3
    IA_TA = 4
    ADDRESS = 5
    STATUS = 13
    RAPID = 14
    USER_CLASS = 15
    DNS = 23
    SEARCH = 24
    IA_PD = 25


class Status(enum.IntEnum):
    """RFC 8415 section 21.13."""

    SUCCESS = 0
    NO_ADDRESSES = 2
    NO_BINDING = 3
    NOT_ON_LINK = 4
    NO_PREFIX = 6


WITH_SERVER = {Type.REQUEST, Type.RENEW, Type.RELEASE, Type.DECLINE}
"""Messages that name their server; the others must not, but for INFORMATION, which may (section 16)."""


class Association(msgspec.Struct, frozen=True, kw_only=True):
    """An IA_NA, IA_TA or IA_PD of a client; ``addresses``: those that it has or would like."""

    code: int
    identity: bytes
    addresses: tuple[ipaddress.IPv6Address, ...] = ()


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A client's message."""

    type: Type
    transaction: bytes
    client: bytes
    server: bytes
    rapid: bool
    tags: frozenset[str]
    associations: tuple[Association, ...]


def answer(message: bytes, source: ipaddress.IPv6Address, client: Client) -> bytes:
    """The frame that answers a client's UDP payload. Raises Unanswered."""
    request = read(message)
    if not source.is_link_local:  # section 13.1: how a server knows the link
        raise Unanswered(Silence.MALFORMED)
    if not client.offer.dhcp6:
        raise Unanswered(Silence.UNSERVED)
    own = [lease.address for lease in client.offer.dhcp6 if lease.subnet.ipv6_address_mode != STATELESS]
    leases = [address for address in own if isinstance(address, ipaddress.IPv6Address)]
    identity = DUID_LINK_LAYER + frame.octets(client.server)
    if request.server and request.server != identity:
        raise Unanswered(Silence.OTHER_SERVER)
    head = option(Code.SERVER, identity) + (option(Code.CLIENT, request.client) if request.client else b"")
    kind, options = decide(request, leases, client, LARGEST - 4 - len(head))
    octets = bytes([kind]) + request.transaction + head + options
    for code, value in parameters(request, client).items():
        more = option(code, value)
        octets += more if len(octets) + len(more) <= LARGEST else b""
    ethertype, packet = frame.ip(client.link_local, source, 17, frame.udp(client.link_local, source, 547, 546, octets))
    return frame.ethernet(source=client.server, destination=client.port.mac, ethertype=ethertype, payload=packet)


def decide(request: Request, leases: list[ipaddress.IPv6Address], client: Client, room: int) -> tuple[Type, bytes]:
    """What to say, and of which addresses (section 18.3), in so many octets."""
    if request.type == Type.INFORMATION:
        return Type.REPLY, b""
    if request.type == Type.CONFIRM:
        return Type.REPLY, confirm(request, client)
    if not leases:
        raise Unanswered(Silence.UNSERVED)
    if request.type in {Type.RELEASE, Type.DECLINE}:
        return Type.REPLY, status(Status.SUCCESS)
    rapid = option(Code.RAPID, b"")
    told = b""
    for association in associations(request, leases, client, room - len(rapid)):
        told += association if len(told) + len(association) <= room - len(rapid) else b""
    if request.type == Type.SOLICIT:
        return (Type.REPLY, told + rapid) if request.rapid else (Type.ADVERTISE, told)
    return Type.REPLY, told


def confirm(request: Request, client: Client) -> bytes:
    """Whether a client's addresses fit the link it is on now (section 18.3.3)."""
    asked = [address for each in request.associations for address in each.addresses]
    if not asked:
        raise Unanswered(Silence.NOTHING)
    near = [lease.subnet.prefix for lease in client.offer.dhcp6]
    fits = all(any(address in prefix for prefix in near) for address in asked)
    return status(Status.SUCCESS if fits else Status.NOT_ON_LINK)


def associations(request: Request, leases: list[ipaddress.IPv6Address], client: Client, room: int) -> Iterator[bytes]:
    """Each IA as it shall be: the first IA_NA has the port's addresses, and nothing else has any.

    That one comes first: of addresses as many as ``room`` takes, the port's own before those that it lost.
    """
    first = next((each for each in request.associations if each.code == Code.IA_NA), None)
    for each in sorted(request.associations, key=lambda each: each is not first):
        if each.code == Code.IA_PD:
            yield option(each.code, each.identity + bytes(8) + status(Status.NO_PREFIX))
        elif each.code == Code.IA_TA:
            yield option(each.code, each.identity + status(Status.NO_ADDRESSES))
        elif each is first:
            times = struct.pack("!II", client.lease // 2, client.lease * 4 // 5)
            lost = [address for address in each.addresses if address not in leases] if is_renewal(request) else []
            given = [*(entry(address, client.lease) for address in leases), *(entry(address, 0) for address in lost)]
            fitting = max(0, room - IA_HEAD) // len(given[0])
            yield option(each.code, each.identity + times + b"".join(given[:fitting]))
        else:
            yield option(each.code, each.identity + bytes(8) + status(Status.NO_ADDRESSES))


def is_renewal(request: Request) -> bool:
    """Whether addresses that are not the port's are taken back, with lifetimes of 0 (sections 18.3.4, 18.3.5)."""
    return request.type in {Type.RENEW, Type.REBIND}


def entry(address: ipaddress.IPv6Address, lifetime: int) -> bytes:
    """An address with its preferred and valid lifetimes (section 21.6)."""
    return option(Code.ADDRESS, address.packed + struct.pack("!II", lifetime, lifetime))


def status(code: Status) -> bytes:
    """A status without words."""
    return option(Code.STATUS, struct.pack("!H", code))


def parameters(request: Request, client: Client) -> dict[int, bytes]:
    """What a port is told besides its addresses: its subnets' DNS servers, the domain, its own options."""
    servers = [
        ipaddress.ip_address(server)
        for subnet in {lease.subnet.id: lease.subnet for lease in client.offer.dhcp6}.values()
        for server in subnet.dns_nameservers
    ]
    told: dict[int, bytes] = {}
    found = [server.packed for server in dict.fromkeys(servers) if not server.is_unspecified]
    if found:
        told[Code.DNS] = b"".join(found)
    if client.network.dns_domain:
        told[Code.SEARCH] = name(client.network.dns_domain)
    return told | chosen(client.options.get(6, ()), request.tags)


def option(code: int, value: bytes) -> bytes:
    """One option (section 21.1)."""
    return struct.pack("!HH", code, len(value)) + value


def read(message: bytes) -> Request:
    """A client's message. Raises Unanswered."""
    if len(message) < 4:
        raise Unanswered(Silence.MALFORMED)
    try:
        kind = Type(message[0])
    except ValueError:
        raise Unanswered(Silence.NOTHING) from None
    if kind in {Type.ADVERTISE, Type.REPLY}:
        raise Unanswered(Silence.NOTHING)
    options = list(read_options(message[4:]))
    single = dict(reversed(options))
    client, server = single.get(Code.CLIENT, b""), single.get(Code.SERVER, b"")
    if max(len(client), len(server)) > DUID_LONGEST or not (client or kind == Type.INFORMATION):
        raise Unanswered(Silence.MALFORMED)
    if kind != Type.INFORMATION and bool(server) != (kind in WITH_SERVER):
        raise Unanswered(Silence.MALFORMED)
    return Request(
        type=kind,
        transaction=message[1:4],
        client=client,
        server=server,
        rapid=Code.RAPID in single,
        tags=frozenset({"ipxe", "ipxe6"} if b"iPXE" in single.get(Code.USER_CLASS, b"") else ()),
        associations=tuple(read_associations(options)),
    )


def read_associations(options: list[tuple[int, bytes]]) -> Iterator[Association]:
    """The IAs of a message."""
    for code, value in options:
        if code in {Code.IA_NA, Code.IA_TA, Code.IA_PD}:
            head = 4 if code == Code.IA_TA else 12
            if len(value) < head:
                raise Unanswered(Silence.MALFORMED)
            inner = list(read_options(value[head:]))
            if any(within == Code.ADDRESS and len(held) < 24 for within, held in inner):
                raise Unanswered(Silence.MALFORMED)
            found = [ipaddress.IPv6Address(held[:16]) for within, held in inner if within == Code.ADDRESS]
            yield Association(code=code, identity=value[:4], addresses=tuple(found))


def read_options(octets: bytes) -> Iterator[tuple[int, bytes]]:
    """Options in their order. Raises Unanswered."""
    place = count = 0
    while place < len(octets):
        count += 1
        if len(octets) - place < 4 or count > OPTIONS_MOST:
            raise Unanswered(Silence.MALFORMED)
        code, length = struct.unpack_from("!HH", octets, place)
        place += 4
        if place + length > len(octets):
            raise Unanswered(Silence.MALFORMED)
        yield code, octets[place : place + length]
        place += length
