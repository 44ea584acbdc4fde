"""The kernel's own devices as a party (party.py), in a namespace or in the lab VM; its modules say which wires it has.

Ethernet in MPLS has no device of its own: a veth's frames get their label from act_mpls (``mac_push``) and go out by a
tunnel of layer 3, and the way back takes it off (tc-mpls(8)). MPLS over UDP is such a tunnel in fou (ip-fou(8)).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from headrace.model import Segment
from headrace.testing.cloud import Workload
from headrace.testing.party import Meeting, Party
from headrace.testing.scene import Scene
from headrace.testing.world import port

DEVICE = "wire"
"""What carries the workload's addresses."""
CORE, BACK, OUTER = "core", "back", "outer"
"""The tunnel below MPLS; the other end of the workload's veth; the 802.1ad device below QinQ's."""
MPLS_UDP, IPPROTO_MPLS = 6635, 137
ROOM, PAD = "room", "pad"
HEADROOM = (
    f"ip link add {ROOM} type bridge",
    f"ip link add {PAD} type vxlan id 1 dstport 1",
    f"ip link set {PAD} master {ROOM}",
    f"ip link set {BACK} master {ROOM}",
)
"""A bridge asks the other end of each member for the headroom that any of them needs. fou_build_udp (net/ipv4/fou.c)
takes 8 octets unasked: Linux 6.1 panics where what act_mirred redirects to such a tunnel has less."""
HEADER = 14 + 4
"""What a frame below MPLS has beyond the workload's MTU: Ethernet, and the label."""

MODULES = (
    *("vxlan", "geneve", "ip_gre", "ip6_gre", "ipip", "ip6_tunnel", "fou", "fou6", "8021q", "veth"),
    *("sch_ingress", "cls_flower", "cls_matchall", "act_mpls", "act_mirred"),
)
"""What all wires take together."""


class Recipe(NamedTuple):
    """Commands that make the device of a segment, and those that remove it."""

    make: list[str]
    undo: list[str]


class Ends(NamedTuple):
    """Tunnel endpoints, the device that leads from one to the other, and MAC and MTU of the workload's device."""

    local: str
    remote: str
    underlay: str
    mac: str
    mtu: int

    @property
    def six(self) -> bool:
        """Whether the underlay is IPv6."""
        return ":" in self.local


def recipe(segment: Segment, ends: Ends, *, fragments: bool = False) -> Recipe:
    """How the kernel's device of a segment is made. ``fragments``: outer packets may be cut (of VXLAN, GRE).

    ``encaplimit none``: else ip6_tunnel and ip6_gre put a destination option behind the outer header (RFC 2473 section
    5.1). ``udp6zerocsumrx``: our VXLAN has no UDP checksum over IPv6 (RFC 6935).
    """
    path, six = f"local {ends.local} remote {ends.remote}", "ip6" if ends.six else ""
    make = f"ip link add {DEVICE} address {ends.mac} type"
    limit = " encaplimit none" if ends.six else ""
    undo = [f"ip link delete {DEVICE}"]
    match segment.wire:
        case "vxlan":
            zero = " udp6zerocsumtx udp6zerocsumrx" if ends.six else " df unset" if fragments else " df set"
            return Recipe([f"{make} vxlan id {segment.id} {path} dstport 4789{zero}"], undo)
        case "geneve":
            return Recipe([f"{make} geneve id {segment.id} remote {ends.remote}"], undo)
        case "gre":
            cut = " nopmtudisc ignore-df" if fragments else ""
            return Recipe([f"{make} {six}gretap key {segment.id} {path}{limit}{cut}"], undo)
        case "mpls-gre":
            return _mpls(segment, ends, f"type {six}gre {path} ttl 64{limit}")
        case "mpls-udp":
            family, mode = ("-6", "ip6tnl mode any") if ends.six else ("-4", "ipip mode mplsip")
            checksum = "encap-csum" if ends.six else "noencap-csum"
            fou = f"encap fou encap-sport auto encap-dport {MPLS_UDP} {checksum}"
            mpls = _mpls(segment, ends, f"type {mode} {path} ttl 64{limit} {fou}")
            opened = f"ip {family} fou add port {MPLS_UDP} ipproto {IPPROTO_MPLS}"
            undo = [
                *mpls.undo,
                f"ip link delete {ROOM}",
                f"ip link delete {PAD}",
                f"ip {family} fou del port {MPLS_UDP}",
            ]
            return Recipe([opened, *mpls.make, *HEADROOM], undo)
        case "physical":
            return _tagged(segment, ends)
    raise ValueError(f"the kernel has no device for {segment.text}")


def _mpls(segment: Segment, ends: Ends, core: str) -> Recipe:
    push = f"action mpls mac_push protocol mpls_uc label {segment.id} ttl 64"
    pop = f"flower mpls_label {segment.id} action mpls pop protocol teb"
    return Recipe(
        [
            f"ip link add {DEVICE} address {ends.mac} type veth peer name {BACK}",
            f"ethtool -K {DEVICE} tx off tso off gso off",
            f"ip link add {CORE} {core}",
            *(f"ip link set {device} mtu {ends.mtu + HEADER} up" for device in (BACK, CORE)),
            *(f"tc qdisc add dev {device} ingress" for device in (BACK, CORE)),
            f"tc filter add dev {BACK} ingress matchall {push} pipe action mirred egress redirect dev {CORE}",
            f"tc filter add dev {CORE} ingress protocol mpls_uc {pop} pipe action mirred egress redirect dev {BACK}",
        ],
        [f"ip link delete {DEVICE}", f"ip link delete {CORE}"],
    )


def _tagged(segment: Segment, ends: Ends) -> Recipe:
    if segment.id is None:
        make = f"ip link add link {ends.underlay} name {DEVICE} address {ends.mac} type macvlan mode bridge"
        return Recipe([make], [f"ip link delete {DEVICE}"])
    make = f"name {DEVICE} address {ends.mac} type vlan id {segment.id}"
    if segment.service_vlan is None:
        return Recipe([f"ip link add link {ends.underlay} {make}"], [f"ip link delete {DEVICE}"])
    outer = f"ip link add link {ends.underlay} name {OUTER} type vlan proto 802.1ad id {segment.service_vlan}"
    return Recipe(
        [outer, f"ip link set {OUTER} up", f"ip link add link {OUTER} {make}"],
        [f"ip link delete {DEVICE}", f"ip link delete {OUTER}"],
    )


class KernelParty(Party):
    """``shell`` runs a script of bash where the party's kernel devices are made, and raises when it fails."""

    def __init__(self, meeting: Meeting, name: str, number: int, underlay: str, shell: Callable[[str], str]) -> None:
        super().__init__(meeting, name, number)
        self.shell = shell
        self.underlay = underlay
        self._fragments = False
        self._undo: list[str] = []

    def meet(
        self, scene: Scene, segment: Segment, version: int, *, spare: int = 0, fragments: bool = False
    ) -> Workload:
        """As Party has it. ``fragments``: outer packets may be cut."""
        self._fragments = fragments
        return super().meet(scene, segment, version, spare=spare)

    def carry(self, segment: Segment, version: int, mtu: int) -> None:
        """Have the device of this segment, and no other."""
        workload = port("b", "", 2)
        remote = self.meeting.underlay(1)[0 if version == 4 else 1].partition("/")[0]
        ends = Ends(self.vteps[version], remote, self.underlay, workload.mac, mtu)
        made = recipe(segment, ends, fragments=self._fragments)
        four, six = workload.addresses
        lines = [
            *self._undo,
            "set -e",
            *made.make,
            f"ip link set {DEVICE} mtu {mtu}",
            f"ip address add {four}/24 dev {DEVICE}",
            f"ip address add {six}/64 dev {DEVICE} nodad",
            f"ip link set {DEVICE} up",
        ]
        self._undo = made.undo
        self.shell("\n".join(lines))
