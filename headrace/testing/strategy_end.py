"""Who sends and where it arrives: ports of a drawn state, and how their frames reach the host under test."""

from __future__ import annotations

import ipaddress

from headrace.datapath.decision import Arrival
from headrace.model import AddressPair, Port, Segment, State
from headrace.testing import outer, packet
from headrace.testing.choice import Chooser
from headrace.testing.packet import Somewhere
from headrace.testing.strategy_state import HOST, PEER

FOREIGN = ("192.0.2.99", "192.0.2.1", "2001:db8::99", "192.0.2.2")
"""Whence another may send what looks like a known flow: VTEPs of nobody, of the host itself, of either family."""

MARKS = (0x03, 0x01, 0x02, 0xB8, 0xFF)
"""DSCP and ECN of outer headers."""


class Ends:
    """Chooses ports, and addresses that they send from. ``both``: frames enter at their ports' own hosts."""

    def __init__(self, choose: Chooser, state: State, *, both: bool = False) -> None:
        self.choose = choose
        self.state = state
        self.both = both

    def ports(self) -> list[Port]:
        return sorted(self.state.ports.values(), key=lambda port: port.id)

    def port(self) -> Port:
        """A port that is bound, the first ones most often."""
        bound = [port for port in self.ports() if port.host is not None] or self.ports()
        return bound[min(self.choose.number(0, len(bound) - 1), self.choose.number(0, len(bound) - 1))]

    def ends(self) -> tuple[Port, Port]:
        """Two ports of one network, at least one of them on the host."""
        one = self.choose.pick([port for port in self.ports() if port.host == HOST] or self.ports())
        others = [port for port in self.ports() if port.network == one.network and port.id != one.id] or [one]
        other = self.choose.pick(others)
        return (other, one) if other.host is not None and self.choose.chance(40) else (one, other)

    def end(self, port: Port, family: int) -> Somewhere:
        """A port's MAC with one of its addresses of a family; one of nobody's if it has none."""
        found = [text for text in port.addresses if ipaddress.ip_address(text).version == family]
        if port.address_pairs and self.choose.chance(10):
            pairs = [
                pair
                for pair in port.address_pairs
                if ipaddress.ip_network(pair.address, strict=False).version == family
            ]
            if pairs:
                return self.pair_end(port, self.choose.pick(pairs))
        number = int(port.mac[-2:], 16) + 200
        return Somewhere(port.mac, (found[0] if found else f"10.0.0.{number}" if family == 4 else f"fd00::{number:x}",))

    def pair_end(self, port: Port, pair: AddressPair) -> Somewhere:
        network = ipaddress.ip_network(pair.address, strict=False)
        fallback = "10.0.0.7" if network.version == 4 else "fd00::7"
        address = fallback if network.prefixlen == 0 else str(network[min(1, network.num_addresses - 1)])
        return Somewhere(pair.mac or port.mac, (address,))

    def sent(self, port: Port, frame: bytes, gso_size: int = 0) -> list[Arrival]:
        """The frame's arrival at the host, by its port or by tunnel."""
        if self.both and self.state.ports[port.id].host is None:
            return []
        if self.both or port.host == HOST:
            if port.parent is None:
                return [Arrival(port=port.id, frame=frame, gso_size=gso_size)]
            return [Arrival(port=port.parent, frame=packet.tagged(frame, port.vlan or 0), gso_size=gso_size)]
        return self.came(self.segment(port), frame, gso_size)

    def came(self, segment: Segment, frame: bytes, gso_size: int = 0) -> list[Arrival]:
        """The frame's arrival from elsewhere, by tunnel or wire."""
        if segment.physical_network is not None:
            return [Arrival(physical=segment.physical_network, frame=outer.put_tags(frame, segment), gso_size=gso_size)]
        vtep = self.choose.pick(FOREIGN) if self.choose.chance(4) else self.vtep(PEER)
        tos = self.choose.pick(MARKS) if segment.wire != "nsh-ethernet" and self.choose.chance(15) else 0
        return [Arrival(vtep=vtep, segment=segment, tos=tos, frame=frame, gso_size=gso_size)]

    def segment(self, port: Port) -> Segment:
        return self.state.networks[port.network].segment

    def vtep(self, host: str) -> str:
        """An address the host would send from to the other."""
        versions = {
            ipaddress.ip_address(text).version for text in self.state.hosts[PEER if host == HOST else HOST].vteps
        }
        return next(text for text in self.state.hosts[host].vteps if ipaddress.ip_address(text).version in versions)


def has(port: Port, family: int) -> bool:
    """Whether a port has a fixed address of a family."""
    return any(ipaddress.ip_address(text).version == family for text in port.addresses)
