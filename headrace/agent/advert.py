"""Router advertisements for one port: RFC 4861, RFC 4862, RFC 8106 (DNS).

There is no router yet, so the router lifetime is 0: workloads configure addresses and make no default route.
"""

from __future__ import annotations

import ipaddress
import random
import struct
from collections.abc import Iterable, Iterator, Mapping

from headrace.agent.client import NOBODY6, Client, Silence, Unanswered
from headrace.agent.dhcp_option import name
from headrace.datapath import frame
from headrace.model import Subnet

ALL_NODES = ipaddress.IPv6Address("ff02::1")
HOP_LIMIT = 64
ND_HOP_LIMIT = 255
MANAGED, OTHER = 0x80, 0x40
ON_LINK, AUTONOMOUS = 0x80, 0x40

VALID, PREFERRED = 2592000, 604800
"""Seconds: AdvValidLifetime and AdvPreferredLifetime (RFC 4861 section 6.2.1), which outlast an agent's absence."""

DNS = 86400
"""Seconds that DNS servers stay valid: far above three intervals (RFC 8106 section 5.1), for the same reason."""

INTERVAL = (200.0, 600.0)
"""Seconds between unsolicited advertisements (RFC 4861 section 6.2.1: MinRtrAdvInterval, MaxRtrAdvInterval)."""

FIRST, FIRST_INTERVAL = 3, 16.0
"""So many come that much closer (RFC 4861 section 10: MAX_INITIAL_RTR_ADVERTISEMENTS, ..._INTERVAL)."""

SHORTEST_MTU = 1280


def answer(message: bytes, source: ipaddress.IPv6Address, hop_limit: int, client: Client) -> bytes:
    """The frame that answers a router solicitation, from its ICMPv6 header on. Raises Unanswered."""
    check(message, source, hop_limit)
    if not client.offer.advert:
        raise Unanswered(Silence.UNSERVED)
    return advertisement(client, None if source == NOBODY6 else source)


def check(message: bytes, source: ipaddress.IPv6Address, hop_limit: int) -> None:
    """RFC 4861 section 6.1.1; the checksum is left to the kernel's offloads, which may not have made it yet."""
    if hop_limit != ND_HOP_LIMIT or len(message) < 8 or message[1] != 0:
        raise Unanswered(Silence.MALFORMED)
    place = 8
    while place < len(message):
        length = message[place + 1] * 8 if place + 2 <= len(message) else 0
        if length == 0 or place + length > len(message) or (message[place] == 1 and source == NOBODY6):
            raise Unanswered(Silence.MALFORMED)
        place += length


def advertisement(client: Client, to: ipaddress.IPv6Address | None = None, withdrawn: Iterable[Subnet] = ()) -> bytes:
    """The frame: to one address, or to all of the port's. ``withdrawn``: subnets that it has no address of any more."""
    subnets = list({lease.subnet.id: lease.subnet for lease in client.offer.advert}.values())
    modes = {subnet.ipv6_ra_mode for subnet in subnets}
    flags = MANAGED if "dhcpv6-stateful" in modes else 0
    flags |= OTHER if modes & {"dhcpv6-stateful", "dhcpv6-stateless"} else 0
    body = struct.pack("!BBHII", HOP_LIMIT, flags, 0, 0, 0) + b"".join(options(client, subnets))
    body += b"".join(prefix_option(subnet, 0, 0) for subnet in withdrawn)
    target = ALL_NODES if to is None else to
    ethertype, packet = frame.ip(
        client.link_local,
        target,
        58,
        frame.icmp(client.link_local, target, 134, 0, body),
        hop_limit=ND_HOP_LIMIT,
    )
    mac = frame.multicast_mac(target) if to is None else client.port.mac
    return frame.ethernet(source=client.server, destination=mac, ethertype=ethertype, payload=packet)


def options(client: Client, subnets: list[Subnet]) -> Iterator[bytes]:
    """Link-layer address, MTU, prefixes, DNS."""
    yield b"\x01\x01" + frame.octets(client.server)
    if client.network.mtu >= SHORTEST_MTU:
        yield struct.pack("!BBHI", 5, 1, 0, client.network.mtu)
    for subnet in subnets:
        yield prefix_option(subnet, VALID, PREFERRED)
    servers = dict.fromkeys(ipaddress.ip_address(server) for subnet in subnets for server in subnet.dns_nameservers)
    found = [server.packed for server in servers if not server.is_unspecified][:8]
    if found:
        yield struct.pack("!BBHI", 25, 1 + 2 * len(found), 0, DNS) + b"".join(found)
    if client.network.dns_domain:
        search = name(client.network.dns_domain)
        search += bytes(-len(search) % 8)
        yield struct.pack("!BBHI", 31, 1 + len(search) // 8, 0, DNS) + search


def prefix_option(subnet: Subnet, valid: int, preferred: int) -> bytes:
    """A prefix with its lifetimes, seconds (RFC 4861 section 4.6.2)."""
    flags = ON_LINK | (0 if subnet.ipv6_ra_mode == "dhcpv6-stateful" else AUTONOMOUS)
    head = struct.pack("!BBBBIII", 3, 4, subnet.prefix.prefixlen, flags, valid, preferred, 0)
    return head + subnet.prefix.network_address.packed


def lost(before: Client, after: Client) -> list[Subnet]:
    """Subnets that were advertised to a port, and are not any more."""
    kept = {lease.subnet.prefix for lease in after.offer.advert}
    gone = {lease.subnet.id: lease.subnet for lease in before.offer.advert if lease.subnet.prefix not in kept}
    return list(gone.values())


class Schedule:
    """When which port is to get an unsolicited advertisement. Times are a caller's, in seconds."""

    def __init__(self) -> None:
        self._told: dict[int, tuple[Client, bytes]] = {}
        self._due: dict[int, tuple[float, int]] = {}
        self._first: dict[int, bytes] = {}
        self._chance = random.SystemRandom()

    def serve(self, clients: Mapping[int, Client], now: float) -> None:
        """These are the ports from now on; one that is new, on another device or told something new is due at once."""
        before, self._told = self._told, {}
        for index, client in clients.items():
            if not client.offer.advert:
                continue
            known, octets = before.get(index, (None, b""))
            if known is not client:
                news = advertisement(client)
                if known is None or (known.ifindex, octets) != (client.ifindex, news):
                    self._due[index] = (now, FIRST)
                    self._first[index] = advertisement(client, None, lost(known, client)) if known else news
                octets = news
            self._told[index] = (client, octets)
        for index in self._due.keys() - self._told.keys():
            del self._due[index]
            self._first.pop(index, None)

    def next(self) -> float | None:
        """When there is something to do."""
        return min((when for when, _ in self._due.values()), default=None)

    def take(self, now: float) -> list[tuple[int, bytes]]:
        """What is due: port index and frame; each comes again later."""
        found = []
        for index, (when, left) in self._due.items():
            if when <= now:
                found.append((index, self._first[index] if left > 0 else self._told[index][1]))
                again = self._chance.uniform(*INTERVAL)
                self._due[index] = (now + (min(again, FIRST_INTERVAL) if left > 1 else again), left - 1)
        return found
