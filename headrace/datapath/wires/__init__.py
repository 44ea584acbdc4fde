"""The wires as the oracle reads them and `headrace trace` writes them: one module each, listed here and nowhere else.

A module has ``put(id) -> octets`` of the headers behind the outer IP or Ethernet header, from UDP's or GRE's payload or
GRE's header on, and ``take(octets) -> (id, inner frame)``, which raises Dropped. docs/pipeline.md, "admit" and "encap".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from headrace.datapath.wires import geneve, gre, mpls, nsh, vxlan
from headrace.model.segment import Wire


class Tunnel(NamedTuple):
    """A wire with outer headers. ``number``: UDP destination port, GRE protocol type, or ethertype.

    ``sums``: a UDP header over IPv6 has a checksum, though what is inside has its own.
    """

    carrier: Literal["udp", "gre", "ethernet"]
    number: int
    put: Callable[[int], bytes]
    take: Callable[[bytes], tuple[int, bytes]]
    sums: bool = False


TUNNELS: dict[Wire, Tunnel] = {
    "vxlan": Tunnel("udp", vxlan.PORT, vxlan.put, vxlan.take),
    "geneve": Tunnel("udp", geneve.PORT, geneve.put, geneve.take, sums=True),
    "gre": Tunnel("gre", gre.PROTOCOL, gre.put, gre.take),
    "mpls-udp": Tunnel("udp", mpls.PORT, mpls.put, mpls.take, sums=True),
    "mpls-gre": Tunnel("gre", mpls.PROTOCOL, mpls.put_gre, mpls.take_gre),
    "nsh-gpe": Tunnel("udp", nsh.PORT, nsh.put_gpe, nsh.take_gpe),
    "nsh-ethernet": Tunnel("ethernet", nsh.ETHERTYPE, nsh.put, nsh.take),
}


def room(wire: Wire, version: int) -> int:
    """Octets around an inner IP packet, inner Ethernet among them, of an outer IP ``version`` (4 or 6)."""
    tunnel = TUNNELS[wire]
    outer = {"udp": 8, "gre": 0, "ethernet": 0}[tunnel.carrier]
    if tunnel.carrier != "ethernet":
        outer += 20 if version == 4 else 40
    return outer + len(tunnel.put(0)) + 14
