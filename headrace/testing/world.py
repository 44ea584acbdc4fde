"""Small desired states in few words, and hosts that remember: the oracle as a network of plain Python hosts.

world = World(network("blue"), group("any", *ANY), port("a", "blue", 1, host="h1"), port("b", "blue", 2, host="h2"))
assert world.send("a", tcp(world.port("a"), world.port("b"), 1000, 80)).receivers == ["b"]
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from headrace.datapath.connection import Connections
from headrace.datapath.decision import Arrival, Decision
from headrace.datapath.journey import Journey, follow
from headrace.datapath.oracle import Surroundings, decide
from headrace.model import Host, Network, Object, Port, Rule, SecurityGroup, Segment, State, Subnet

HOSTS = (
    Host(id="h1", vteps=("192.0.2.1", "2001:db8::1")),
    Host(id="h2", vteps=("192.0.2.2", "2001:db8::2")),
)

ANY = (
    Rule(id="out4", direction="egress", ethertype="IPv4"),
    Rule(id="out6", direction="egress", ethertype="IPv6"),
    Rule(id="in4", direction="ingress", ethertype="IPv4"),
    Rule(id="in6", direction="ingress", ethertype="IPv6"),
)
"""Rules that allow everything."""

OUT = ANY[:2]
"""Rules that allow everything a port sends."""


def network(name: str, vni: int = 100, mtu: int = 1450, *, segment: Segment | None = None) -> Network:
    """A network on a VNI of VXLAN, or on another segment."""
    return Network(id=name, segment=segment or Segment(id=vni), mtu=mtu)


def subnet(name: str, on: str, cidr: str = "10.0.0.0/24", **fields: Any) -> Subnet:
    """A subnet whose workloads are configured from here."""
    return Subnet(id=name, network=on, cidr=cidr, **{"enable_dhcp": True} | fields)


def group(name: str, *rules: Rule, stateful: bool = True) -> SecurityGroup:
    return SecurityGroup(id=name, rules=rules, stateful=stateful)


def rule(name: str, direction: str, protocol: int | None = None, *ports: int | None, **fields: Any) -> Rule:
    """``rule("r1", "ingress", 6, 80)``: one port, or a range of two; for ICMP type, or type and code."""
    low = ports[0] if ports else None
    last = ports[-1] if ports and (len(ports) == 2 or protocol not in {1, 58}) else None
    return Rule(id=name, direction=direction, protocol=protocol, port_min=low, port_max=last, **fields)  # type: ignore[arg-type]


def port(name: str, on: str, number: int, *groups: str, host: str | None = "h1", **fields: Any) -> Port:
    """Port ``number`` of a network: MAC 02::number, addresses 10.0.0.number and fd00::number."""
    given: dict[str, Any] = {
        "mac": f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}",
        "addresses": (f"10.0.{number >> 8}.{number & 255}", f"fd00::{number:x}"),
    }
    return Port(id=name, network=on, host=host, security_groups=groups, **given | fields)


class World:
    """A state and what each host remembers. ``now``: the clock, in milliseconds; ``surroundings``: of every host."""

    def __init__(self, *objects: Object, hosts: tuple[Host, ...] = HOSTS) -> None:
        self.state = State.of((*hosts, *objects))
        self.memory: defaultdict[str, Connections] = defaultdict(Connections)
        self.now = 0
        self.surroundings = Surroundings()

    def port(self, name: str) -> Port:
        return self.state.ports[name]

    def put(self, *objects: Object) -> None:
        """Change desired state; connections stay."""
        self.state = State.of((*self.state.all(), *objects))

    def send(self, name: str, frame: bytes, **fields: Any) -> Journey:
        """Send a frame from a port and follow it over the hosts. ``fields``: of Arrival."""
        return follow(self.state, Arrival(port=name, frame=frame, **fields), self.memory, self.now, self.surroundings)

    def arrive(self, host: str, arrival: Arrival) -> Decision:
        """Let something arrive at one host."""
        return decide(self.state, host, self.memory[host], arrival, self.now, self.surroundings)
