"""Whether a device may lead out of the host: supported, or refused by name with the cure. No I/O."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Literal

import msgspec

from headrace.datapath.netlink import Link
from headrace.model import Network, Segment

USUAL = Segment(id=1)
"""What room is judged by where no network says otherwise: VXLAN."""

STRIPS_TAGS = {"rx-vlan-hw-parse": "rxvlan", "rx-vlan-stag-hw-parse": "rx-vlan-stag-hw-parse"}
"""The kernel's names for taking 802.1Q and 802.1ad tags off, by which ethtool sets them."""

TRIED = {"": "a NIC", "bond": "a bond", "vlan": "a VLAN", "bridge": "a bridge", "veth": "a veth"}
MEMBERS = {"bond": "a member of bond", "team": "a member of team", "bridge": "a port of bridge"}
XDP_BOND_MODES = {"balance-rr", "active-backup", "balance-xor", "802.3ad"}
"""Those that let XDP in (drivers/net/bonding/bond_main.c, bond_xdp_check)."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What was looked at, what it is, and what to do where it will not do."""

    check: str
    state: Literal["ok", "warn", "fail"]
    found: str
    cure: str = ""


def judge(
    name: str,
    links: Mapping[str, Link],
    *,
    hook: str = "tc",
    features: Mapping[str, Mapping[str, bool]] | None = None,
    versions: Iterable[int] = (4,),
    networks: Sequence[Network] = (),
    physical: str = "",
) -> Iterator[Finding]:
    """Everything about one device. ``features``: offloads by device; ``versions``: IP versions of the own VTEPs.

    ``networks``: those whose packets leave by it. ``physical``: the physical network that it leads to; else it is an
    uplink.
    """
    link = links.get(name)
    check = f"physical network {physical} on {name}" if physical else f"uplink {name}"
    if link is None:
        key = "physical_networks" if physical else "uplinks"
        yield Finding(check=check, state="fail", found="not there", cure=f"name a device that is, in {key}")
        return
    yield place(check, link, {other.ifindex: other for other in links.values()})
    yield state(check, link)
    yield from hooks(check, link, links, hook, features or {})
    taken = {one.id: overhead(one.segment, versions) for one in networks}
    usual = 0 if physical else overhead(USUAL, versions)
    yield room(check, link, max(taken.values(), default=usual), [(one, taken[one.id]) for one in networks])


def overhead(segment: Segment, versions: Iterable[int]) -> int:
    """Octets that a segment's frames take of the MTU, at most."""
    return max((segment.overhead(version) for version in versions), default=segment.overhead(4))


def place(check: str, link: Link, others: Mapping[int, Link]) -> Finding:
    """What the device is, and whether it is the one to name."""
    master = others.get(link.master or 0)
    if not link.mac.strip("0:"):  # the loopback device has all zeros
        cure = "name an Ethernet device"
        return Finding(check=check, state="fail", found=f"{link.kind or 'a device'} without Ethernet frames", cure=cure)
    if master and master.kind == "vrf":
        cure = f"take it out of {master.name}: routes to tunnel endpoints are looked up in the main table"
        return Finding(check=check, state="fail", found=f"in VRF {master.name}", cure=cure)
    if master:
        found = f"{MEMBERS.get(master.kind, f'enslaved to {master.kind}')} {master.name}"
        return Finding(
            check=check, state="fail", found=found, cure=f"name {master.name} instead, which has the traffic"
        )
    told = TRIED.get(link.kind, f"a device of kind {link.kind}")
    if link.kind == "bond":
        below = members(link, others.values())
        told += f", mode {link.bond_mode}, of {', '.join(below) or 'no members'}"
        if not below:
            return Finding(check=check, state="fail", found=told, cure=f"give {link.name} members")
    elif link.kind == "vlan":
        lower = others.get(link.lower or 0)
        told += (
            f" {link.vlan}"
            + (f" on {lower.name}" if lower else "")
            + "; the kernel takes its tags off and puts them on"
        )
    if link.kind not in TRIED:
        return Finding(
            check=check, state="warn", found=told, cure="nobody has tried this kind; NICs, bonds and VLANs work"
        )
    queues = f", {link.queues} receive queues" if link.queues > 1 and link.kind in {"", "veth"} else ""
    return Finding(check=check, state="ok", found=told + queues)


def state(check: str, link: Link) -> Finding:
    """Whether it can carry anything now."""
    check = f"{check}: link"
    if not link.up:
        return Finding(check=check, state="fail", found="down", cure=f"ip link set {link.name} up")
    if not link.carrier:
        return Finding(check=check, state="warn", found="no carrier", cure="look at cable and switch")
    return Finding(check=check, state="ok", found="up")


def hooks(
    check: str,
    link: Link,
    links: Mapping[str, Link],
    hook: str,
    features: Mapping[str, Mapping[str, bool]],
) -> Iterator[Finding]:
    """Whether the datapath may sit where it is configured to, and sees VLAN tags there."""
    cures = {name: leave_tags(name, features.get(name, {})) for name in (link.name, *members(link, links.values()))}
    stripping = [name for name, cure in cures.items() if cure]
    told = f"on for {', '.join(stripping)}" if stripping else "off"
    if hook == "tc":
        yield Finding(check=f"{check}: hook", state="ok", found="tc")
        yield Finding(check=f"{check}: rx-vlan-offload", state="ok", found=f"{told}; tc sees the tag either way")
        return
    why = ""
    if link.kind in {"vlan", "bridge", "team"}:
        why = f"{TRIED.get(link.kind, 'a team')} has no native XDP"
    elif link.kind == "bond" and link.bond_mode not in XDP_BOND_MODES:
        why = f"a bond in mode {link.bond_mode} takes no XDP"
    cure = 'set uplink_hook = "tc"; it does the same'
    if why:
        yield Finding(check=f"{check}: hook", state="warn", found=f"XDP: {why}; the agent takes tc", cure=cure)
        return
    if stripping:
        off = "; ".join(cures[name] for name in stripping)
        why = f"{told}: XDP cannot see the tags that the NIC takes off; the agent takes tc"
        cure = f"{off}; or {cure}"
        yield Finding(check=f"{check}: rx-vlan-offload", state="warn", found=why, cure=cure)
        return
    yield Finding(check=f"{check}: hook", state="ok", found="XDP, with tc behind it")
    yield Finding(check=f"{check}: rx-vlan-offload", state="ok", found="off; XDP sees the tag in the frame")


def members(link: Link, others: Iterable[Link]) -> list[str]:
    """The devices of a bond, team or bridge."""
    return sorted(other.name for other in others if other.master == link.ifindex)


def leave_tags(name: str, features: Mapping[str, bool]) -> str:
    """The command that has a device leave VLAN tags in the frame; empty: it does."""
    words = [f"{word} off" for feature, word in STRIPS_TAGS.items() if features.get(feature)]
    return f"ethtool -K {name} {' '.join(words)}" if words else ""


def room(check: str, link: Link, most: int, networks: list[tuple[Network, int]]) -> Finding:
    """Whether the networks' packets fit with their outer headers or tags, which take octets of each, at ``most``."""
    found = f"{link.mtu}, room for networks of {link.mtu - most}"
    needed, short, taken = max(
        ((one.mtu + taken, one, taken) for one, taken in networks), default=(0, None, 0), key=itemgetter(0)
    )
    if short and needed > link.mtu:
        largest = link.mtu - taken
        cure = f"ip link set {link.name} mtu {needed} (here and in the fabric), or networks of mtu {largest}"
        found = f"{link.mtu}, {needed} needed: {short.label()} has mtu {short.mtu}"
        return Finding(check=f"{check}: mtu", state="fail", found=found, cure=cure)
    return Finding(check=f"{check}: mtu", state="ok", found=found)


def ip_versions(addresses: Iterable[str]) -> list[int]:
    """Of tunnel endpoints."""
    return sorted({ipaddress.ip_address(address).version for address in addresses})
