"""anti_spoof: the sources of every local port."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from headrace import abi
from headrace.model import Port
from headrace.stages.memo import Entry
from headrace.stages.view import Parts, Prefix, View, address_octets, mac_octets, prefix_bits

UNSPECIFIED = (ipaddress.ip_network("0.0.0.0/32"), ipaddress.ip_network("::/128"))
ANYWHERE = ipaddress.ip_network("::/0")
MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
"""Where the tables have IPv4: no IPv6 prefix may reach into it."""
NOT_ALLOWED = 0


def compile_parts(view: View) -> Parts:
    """hr_sources."""
    ports = {port.id: (port, view.index.port(port.attachment)) for port in view.local_ports if port.port_security}
    return {"hr_sources": {"": view.memo.spread("hr_sources", ports, compile_port)}}


def compile_port(own: tuple[Port, int]) -> Iterator[Entry]:
    """Every source of a port."""
    port, index = own
    for mac, prefix, kind in sources(port):
        key = abi.SourceKey(
            prefixlen=abi.SOURCE_PREFIX + (0 if prefix == ANYWHERE else prefix_bits(prefix)),
            port=index,
            mac=mac_octets(mac),
            addr=address_octets(prefix.network_address),
        )
        yield key, abi.U32(value=kind)


def sources(port: Port) -> Iterator[tuple[str, Prefix, int]]:
    """MAC, prefix and what the port may do from there; later ones override equal earlier ones.

    The unspecified addresses stand in for their MAC: the datapath asks for 0.0.0.0 to learn whether a MAC is allowed.
    """
    for mac in sorted({port.mac, *(pair.mac or port.mac for pair in port.address_pairs)}):
        for prefix in UNSPECIFIED:
            yield mac, prefix, abi.Source.UNSPECIFIED
        yield mac, ipaddress.ip_network(link_local(mac)), abi.Source.ADDRESS
    if not port.addresses and not port.address_pairs:
        yield port.mac, ANYWHERE, abi.Source.ADDRESS
    for address in port.addresses:
        yield port.mac, ipaddress.ip_network(address), abi.Source.ADDRESS
    pairs = [(pair.mac or port.mac, ipaddress.ip_network(pair.address, strict=False)) for pair in port.address_pairs]
    for mac, prefix in pairs:
        if isinstance(prefix, ipaddress.IPv6Network) and prefix.supernet_of(MAPPED):
            yield mac, MAPPED, NOT_ALLOWED
    for mac, prefix in pairs:
        mapped = isinstance(prefix, ipaddress.IPv6Network) and prefix.subnet_of(MAPPED)
        if prefix not in UNSPECIFIED and not mapped:
            yield mac, prefix, abi.Source.ADDRESS


def link_local(mac: str) -> ipaddress.IPv6Address:
    """The address that a MAC gives itself (RFC 4291 appendix A)."""
    octets = mac_octets(mac)
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + identifier)
