"""The firewall that every contender gets: the rule that allows is the last one, the worst case for a list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from headrace.model import Segment

if TYPE_CHECKING:
    from collections.abc import Mapping

OVERLAY_V4 = "10.77.0.0/24"
OVERLAY_V6 = "fd77::/64"
MEMBERS = "members"
"""As a rule's remote: the members of the group that both workloads carry."""

CONNECTIONS = 2_097_152
"""Room for 1 M flows, both ways."""

NUMBER, SERVICE_VLAN = 77, 7
PHYSICAL_NETWORK = "physnet1"
SEGMENTS: Mapping[str, Segment] = {
    "vxlan": Segment(type="vxlan", id=NUMBER),
    "geneve": Segment(type="geneve", id=NUMBER),
    "gre": Segment(type="gre", id=NUMBER),
    "mpls-udp": Segment(type="mpls", id=NUMBER, transport="udp"),
    "mpls-gre": Segment(type="mpls", id=NUMBER, transport="gre"),
    "nsh-gpe": Segment(type="nsh", id=NUMBER, transport="gpe"),
    "nsh-ethernet": Segment(type="nsh", id=NUMBER, transport="ethernet"),
    "flat": Segment(type="flat", physical_network=PHYSICAL_NETWORK),
    "vlan": Segment(type="vlan", id=NUMBER, physical_network=PHYSICAL_NETWORK),
    "qinq": Segment(type="vlan", id=NUMBER, service_vlan=SERVICE_VLAN, physical_network=PHYSICAL_NETWORK),
}
"""Of the network that joins the workloads, by what the bench calls it."""


@dataclass(frozen=True, kw_only=True, order=True)
class Site:
    """What a contender is set up with.

    ``rules``: on either workload's port. ``members``: if not 0, the rule that allows the load names a remote group of
    so many addresses, not a CIDR. ``ports``: so many more on each host, idle, with a few rules each. ``quota``:
    connections that a port may have; 0: any number. ``wire``: what joins the hosts, one of ``SEGMENTS``; ``underlay``:
    the IP version there. ``connections``: that a host has room for at least. ``cut``: every
    frame crosses the underlay by itself, as between NICs; veths hand each other super-packets whole.
    """

    rules: int
    members: int = 0
    ports: int = 0
    quota: int = 0
    wire: str = "vxlan"
    underlay: Literal[4, 6] = 4
    connections: int = CONNECTIONS
    cut: bool = False

    def __str__(self) -> str:
        more = (f"{count} {what}" for count, what in ((self.members, "members"), (self.ports, "more ports")) if count)
        return ", ".join([f"{self.rules} rules", *more, f"{self.wire} over IPv{self.underlay}"] + ["cut"] * self.cut)

    @property
    def segment(self) -> Segment:
        return SEGMENTS[self.wire]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Allow what matches. ``remote`` is the other end: destination on the way out of a port, source on the way in."""

    family: Literal[4, 6]
    remote: str
    protocol: Literal["tcp", "udp"] | None = None
    port: int | None = None


def make_rules(count: int, *, group: bool = False) -> list[Rule]:
    """``count`` IPv4 rules of which the last allows the overlay, and one rule that allows the overlay's IPv6.

    With ``group`` the two that allow do so by remote group.

    The others allow one TCP or UDP port each of an address in 198.18.0.0/15 (RFC 2544: benchmarks), as a group of
    unlike services has it; none matches the load.
    """
    decoys = [
        Rule(
            family=4,
            remote=f"198.{18 + (i >> 16)}.{i >> 8 & 255}.{i & 255}/32",
            protocol="udp" if i % 2 else "tcp",
            port=1024 + i % 60000,
        )
        for i in range(count - 1)
    ]
    remotes = (MEMBERS, MEMBERS) if group else (OVERLAY_V4, OVERLAY_V6)
    return [*decoys, Rule(family=4, remote=remotes[0]), Rule(family=6, remote=remotes[1])]


def make_members(count: int) -> list[str]:
    """IPv4 addresses of a group's members besides the workloads."""
    return [f"10.{78 + (i >> 16)}.{i >> 8 & 255}.{i & 255}" for i in range(count)]
