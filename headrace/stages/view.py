"""What the compilers compile from: desired state as one host sees it, with the devices and indices it has."""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import struct
from collections.abc import Hashable, Iterable, Mapping
from functools import cached_property
from typing import Any, Protocol

import msgspec

from headrace import abi
from headrace.model import Network, Port, Segment, State
from headrace.model.offer import Surroundings
from headrace.model.segment import Wire
from headrace.stages.memo import Memo, Table

Tables = dict[str, Table]
"""Table name (as in bpf/maps.h) -> its entries."""

Parts = dict[str, dict[Hashable, Table]]
"""The same in parts without a key in common. A part that did not change is the same object: nobody looks into it."""

ID = struct.Struct("<Q")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network


class Index(Protocol):
    """Gives every name one index that stays its own as long as anything names it (hr_names)."""

    def port(self, attachment: str) -> int:
        """Index of a local port, by its attachment to a network: 1 ... abi.PORTS - 1."""

    def endpoint(self, name: str) -> int:
        """Index of a remote port or VTEP: abi.PORTS ... abi.ENDPOINTS - 1."""

    def vtep(self, address: str) -> int:
        """Index of a VTEP: 1 ... abi.VTEPS - 1."""

    def physical(self, name: str) -> int:
        """Number of a physical network: 1 ... abi.PHYSICALS - 1."""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A network device of the host.

    ``peer``: a veth whose peer takes frames directly (bpf_redirect_peer). ``xdp``: the datapath is on its XDP hook too.
    ``mtu``: octets, of those that lead to a physical network.
    """

    ifindex: int
    name: str
    peer: bool = False
    xdp: bool = False
    mtu: int = 0


class View:
    """One host's part of desired state.

    ``devices``: port id -> its device, where it is there. ``vteps``: this host's own tunnel endpoints.
    ``whole``: the uplinks are veths, which hand super-packets to the other host as they are.
    ``memo``: what an earlier view's compilation found; it makes the next one quicker, and no different.
    ``mss_clamp``: TCP of workloads is told what the path takes.
    ``uplinks``: the devices that lead to other hosts, by ifindex.
    ``wires``: physical network -> the device that leads to it. ``next_hops``: VTEP -> its MAC, where it is on the link.
    ``seam``: ifindex of the veth that cuts super-packets; 0: none. ``any_vtep``: whoever sends tunnelled frames may.
    """

    def __init__(
        self,
        state: State,
        host: str,
        index: Index,
        devices: Mapping[str, Device],
        vteps: tuple[str, ...] = (),
        *,
        tunnel_port: int = 4789,
        quota: int = 0,
        whole: bool = False,
        memo: Memo | None = None,
        mss_clamp: bool = False,
        uplinks: Iterable[int] = (),
        wires: Mapping[str, Device] | None = None,
        next_hops: Mapping[str, str] | None = None,
        seam: int = 0,
        any_vtep: bool = False,
    ) -> None:
        self.state = state
        self.host = host
        self.index = index
        self.devices = devices
        self.vteps = tuple(ipaddress.ip_address(vtep) for vtep in vteps)
        self.tunnel_port = tunnel_port
        self.quota = quota
        self.whole = whole
        self.memo = memo or Memo()
        self.policies: dict[tuple[str, ...], Any] = {}
        """Compiled policies, by a port's groups as it lists them."""
        self._vteps: dict[str | None, Address | None] = {}
        self.mss_clamp = mss_clamp
        self.uplinks = frozenset(uplinks)
        self.wires = wires or {}
        self.next_hops = next_hops or {}
        self.seam = seam
        self.any_vtep = any_vtep

    @cached_property
    def clashes(self) -> dict[str, str]:
        """Networks on a segment that another one has already, by the one that keeps it (the first by id)."""
        owners: dict[tuple[object, ...], str] = {}
        clashes = {}
        for network in sorted(self.state.networks.values(), key=lambda network: network.id):
            owner = owners.setdefault(network.segment.place, network.id)
            if owner != network.id:
                clashes[network.id] = owner
        return clashes

    @cached_property
    def unwired(self) -> dict[str, str]:
        """Networks of physical networks that no device here leads to, with that physical network."""
        segments = {name: network.segment for name, network in self.state.networks.items()}
        return {
            name: segment.physical_network
            for name, segment in segments.items()
            if segment.physical_network is not None and segment.physical_network not in self.wires
        }

    @cached_property
    def local_ports(self) -> list[Port]:
        """The host's ports whose network is known, reached from here and alone on its segment, by id."""
        ports = self.state.ports_on(self.host).values()
        known = self.state.networks.keys() - self.clashes.keys() - self.unwired.keys()
        return sorted((port for port in ports if port.network in known), key=lambda port: port.id)

    @cached_property
    def misfits(self) -> dict[str, str]:
        """Sub-ports of this host that no trunk here can carry, with why: they are known, and down."""
        own = {port.id: port for port in self.local_ports}
        tags: dict[tuple[str, int | None], str] = {}
        found = {}
        for port in own.values():
            if port.parent is None:
                continue
            parent = own.get(port.parent)
            holder = tags.setdefault((port.parent, port.vlan), port.id)
            if parent is None:
                bound = self.state.ports.get(port.parent)
                here = bound is not None and bound.host == self.host
                why = "cannot be used here; see why" if here else "is not on this host; bind both to one"
                found[port.id] = f"its parent port {port.parent} {why}"
            elif parent.parent is not None:
                found[port.id] = f"its parent port {port.parent} is a sub-port itself; give it the trunk's own port"
            elif holder != port.id:
                found[port.id] = f"sub-port {holder} of port {port.parent} has VLAN {port.vlan}; give it another"
        return found

    def device_of(self, port: Port) -> Device | None:
        """The device that carries a local port; a sub-port's is its parent's, whose hook it does not share."""
        if port.parent is None:
            return self.devices.get(port.id)
        if port.id in self.misfits:
            return None
        device = self.devices.get(port.parent)
        return None if device is None else msgspec.structs.replace(device, xdp=False)

    @cached_property
    def segments(self) -> dict[str, int]:
        """How the datapath names the segments of networks that have a port here (bpf/abi.h: enum hr_where)."""
        return {name: self.segment_of(network.segment) for name, network in self.networks.items()}

    def segment_of(self, segment: Segment) -> int:
        """How the datapath names a segment on this host."""
        physical = segment.physical_network
        return segment_number(segment, 0 if physical is None else self.index.physical(physical))

    @cached_property
    def networks(self) -> dict[str, Network]:
        """Networks that have a port here."""
        return {port.network: self.state.networks[port.network] for port in self.local_ports}

    @cached_property
    def ports(self) -> list[Port]:
        """All ports of those networks, wherever they are, by id."""
        return sorted((port for port in self.state.ports.values() if port.network in self.networks), key=lambda p: p.id)

    @cached_property
    def surroundings(self) -> Surroundings:
        """What decides about the addresses that ports are configured with from here."""
        return Surroundings.of(self.state.subnets.values(), self.ports)

    @cached_property
    def remote_ports(self) -> list[tuple[Port, Address]]:
        """Ports of those networks on hosts that can be reached, each with the VTEP to reach it by."""
        reached = ((port, self.vtep_of(port.host)) for port in self.ports if port.host not in {None, self.host})
        return [(port, vtep) for port, vtep in reached if vtep is not None]

    @cached_property
    def names(self) -> dict[str, list[str]]:
        """All names that compilers ask the index for, by kind: what is asked for must not lose its index to another."""
        physical = sorted({network.segment.physical_network or "" for network in self.networks.values()} - {""})
        vteps = sorted({str(vtep) for _, vtep in self.remote_ports})
        wires = [f"wire {self.segments[name]:x}" for name, one in self.networks.items() if one.segment.is_physical]
        return {
            "port": [port.attachment for port in self.local_ports],
            "endpoint": [
                *(f"port {port.id}" for port, _ in self.remote_ports),
                *(f"vtep {one}" for one in vteps),
                *wires,
            ],
            "vtep": [*vteps, *(f"wire {name}" for name in physical)],
            "physical": physical,
        }

    def vtep_of(self, host: str | None) -> Address | None:
        """The first tunnel endpoint of another host whose IP version this host has too."""
        if host not in self._vteps:
            known = self.state.hosts.get(host or "")
            own = {vtep.version for vtep in self.vteps}
            addresses = map(ipaddress.ip_address, known.vteps if known else ())
            self._vteps[host] = next((address for address in addresses if address.version in own), None)
        return self._vteps[host]

    def members(self, group: str) -> list[Port]:
        """The ports, anywhere, that carry a security group."""
        return self._members.get(group, [])

    @cached_property
    def _members(self) -> dict[str, list[Port]]:
        members: dict[str, list[Port]] = {}
        for port in self.state.ports.values():
            for group in port.security_groups:
                members.setdefault(group, []).append(port)
        return members


def segment_number(segment: Segment, physical: int = 0) -> int:
    """How the datapath names a segment (bpf/abi.h: enum hr_where). ``physical``: its physical network's number here."""
    number = segment.number
    if segment.is_physical:
        number |= physical << abi.PHYSICAL_SHIFT | (segment.service_vlan or 0) << abi.SERVICE_SHIFT
    return abi.Where[segment.wire.replace("-", "_").upper()] << abi.WHERE_SHIFT | number


def segment_place(number: int, physicals: Mapping[int, str]) -> tuple[Wire, str, int, int]:
    """The segment that the datapath names by a number (Segment.place). ``physicals``: their names by number here."""
    wire: Wire = abi.Where(number >> abi.WHERE_SHIFT).name.lower().replace("_", "-")  # type: ignore[assignment]
    identity = number & abi.WHERE_ID
    if wire != "physical":
        return wire, "", 0, identity
    physical = identity >> abi.PHYSICAL_SHIFT
    name = physicals.get(physical, f"physical network {physical}")
    return wire, name, identity >> abi.SERVICE_SHIFT & abi.VID, identity & abi.VID


def segment_text(number: int, physicals: Mapping[int, str]) -> str:
    """The same in words, as Segment.text has them, also of a number that no segment has."""
    wire, name, service, identity = segment_place(number, physicals)
    return f"{wire} {identity}" if wire != "physical" else Segment.on(wire, identity, name, service).text


def address_octets(address: Address) -> bytes:
    """16 octets, IPv4 as ::ffff:a.b.c.d."""
    return b"\0" * 10 + b"\xff\xff" + address.packed if address.version == 4 else address.packed


def prefix_bits(prefix: Prefix) -> int:
    """Length of a prefix within the 16 octets of ``address_octets``."""
    return prefix.prefixlen + (96 if prefix.version == 4 else 0)


def mac_octets(mac: str) -> bytes:
    """Six octets."""
    return bytes.fromhex(mac.replace(":", ""))


def content_id(*parts: object) -> int:
    """A 64-bit id that is the same wherever the same content is compiled, and larger than abi.RULE_*."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") | 1 << 62


def numbers_id(kind: str, numbers: Iterable[int]) -> int:
    """The same of 64-bit ids."""
    data = b"".join(map(ID.pack, numbers))
    digest = hashlib.blake2b(data, digest_size=8, person=kind.encode()).digest()
    return int.from_bytes(digest, "little") | 1 << 62


@functools.lru_cache(1 << 17)
def rule_id(rule: str) -> int:
    """How the datapath names a rule."""
    return content_id("rule", rule)


def flat(parts: Parts) -> Tables:
    """Parts put together."""
    tables: Tables = {}
    for name, held in parts.items():
        table = tables[name] = {}
        for entries in held.values():
            table.update(entries)
    return tables
