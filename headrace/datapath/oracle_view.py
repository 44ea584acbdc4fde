"""What one host makes of desired state: questions the oracle's stages ask, answered by walking the model.

Only repeated answers are kept; there is no table.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from functools import cached_property

import msgspec

from headrace.datapath.decision import IpAddress, IpNetwork
from headrace.model import Network, Port, State
from headrace.model.segment import Wire


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What desired state does not tell of a host.

    ``underlay_mtu``: of the egress device towards other hosts, None: wide enough for all. ``mss_clamp``, ``any_vtep``:
    as configured. ``mac``: of the uplink, None: not known, and so every frame is addressed to it. ``next_hops``:
    VTEP -> MAC of those on the link; None: each VTEP is, and known. ``physical``: physical network -> MTU of the device
    that leads to it; None: to each one does a device that is wide enough. ``wire_macs``: physical network -> MAC of
    that device, where it matters. ``shared``: physical networks whose device leads to other hosts too.
    """

    underlay_mtu: int | None = None
    mss_clamp: bool = False
    any_vtep: bool = False
    mac: str | None = None
    next_hops: Mapping[str, str] | None = None
    physical: Mapping[str, int] | None = None
    wire_macs: Mapping[str, str] = {}
    shared: frozenset[str] = frozenset()


class View:
    """One host's view of a state."""

    def __init__(self, state: State, host: str, surroundings: Surroundings | None = None) -> None:
        self.state = state
        self.host = host
        self.surroundings = surroundings or Surroundings()
        self._ports: dict[str, list[Port]] = {}
        self._members: dict[str, list[IpNetwork]] = {}
        self._contains: dict[tuple[str, IpAddress], bool] = {}

    def port_here(self, port: str) -> Port | None:
        """A port of this host, on a network that exists and is reached from here."""
        return self.here.get(port)

    @cached_property
    def here(self) -> dict[str, Port]:
        """The ports of this host by id, in that order."""
        found = sorted(self.state.ports_on(self.host).items())
        return {name: port for name, port in found if self.reaches(self.state.networks.get(port.network))}

    @cached_property
    def attached(self) -> dict[str, Port]:
        """The same by attachment."""
        return {port.attachment: port for port in self.here.values()}

    def reaches(self, network: Network | None) -> bool:
        """Whether a network exists, and has a device here if it is a physical network's."""
        if network is None:
            return False
        devices = self.surroundings.physical
        return not network.segment.is_physical or devices is None or network.segment.physical_network in devices

    def network_at(self, place: tuple[Wire, str, int, int]) -> Network | None:
        """The network on a segment (Segment.place), if a port bound to this host is on it."""
        names = sorted({port.network for port in self.here.values()})
        found = (self.state.networks[name] for name in names)
        return next((network for network in found if network.segment.place == place), None)

    def learnt_here(self, learnt: tuple[str, str], network: Network) -> Port | None:
        """The local port of a network behind which a MAC was learnt; None: it was learnt elsewhere."""
        kind, name = learnt
        port = self.attached.get(name) if kind == "port" else None
        return port if port is not None and port.network == network.id else None

    @cached_property
    def wires(self) -> set[Wire]:
        """The wires that networks with ports here travel on, and VXLAN's."""
        return {"vxlan", *(self.state.networks[port.network].segment.wire for port in self.here.values())}

    def sub_port(self, trunk: Port, vid: int) -> Port | None:
        """The sub-port whose frames carry a VID on a trunk's device; of several, the first by id."""
        return next((port for port in self.here.values() if port.parent == trunk.id and port.vlan == vid), None)

    def is_up(self, port: Port) -> bool:
        """Whether a port here is administratively up and has a device, its own or its trunk's."""
        trunk = self.here.get(port.parent) if port.parent is not None else port
        if not port.admin_up or trunk is None or trunk.parent is not None:
            return False
        return port.vlan is None or self.sub_port(trunk, port.vlan) == port

    def ports_of(self, network: Network) -> list[Port]:
        """The network's ports that are bound to some host."""
        if network.id not in self._ports:
            ports = self.state.ports.values()
            self._ports[network.id] = [port for port in ports if port.network == network.id and port.host is not None]
        return self._ports[network.id]

    @cached_property
    def families(self) -> set[int]:
        """The IP versions of this host's own VTEP addresses."""
        return {ipaddress.ip_address(address).version for address in self.vteps(self.host)}

    def vteps(self, host: str) -> tuple[str, ...]:
        """A host's VTEP addresses; none if the host is unknown."""
        return self.state.hosts[host].vteps if host in self.state.hosts else ()

    def vtep_of(self, host: str) -> str | None:
        """Where another host is reached: its first address of a family that this host has."""
        for address in self.vteps(host):
            if ipaddress.ip_address(address).version in self.families:
                return address
        return None

    def host_of_vtep(self, vtep: str) -> str | None:
        """The other host that sends from a VTEP address, if this host has that family too."""
        wanted = ipaddress.ip_address(vtep)
        if wanted.version not in self.families:
            return None
        for host in self.state.hosts.values():
            if host.id != self.host and wanted in [ipaddress.ip_address(address) for address in host.vteps]:
                return host.id
        return None

    def sender(self, source: str, wire: Wire) -> str | None:
        """The other host that a tunnelled frame came from; None: nobody's VTEP.

        ``source``: a VTEP, or, of NSH over Ethernet, the MAC of one's next hop.
        """
        if wire != "nsh-ethernet":
            return self.host_of_vtep(source)
        for host in self.state.hosts:
            vtep = None if host == self.host else self.vtep_of(host)
            mac = self.next_hop(vtep) if vtep is not None else None
            if mac is not None and source in {mac, vtep}:
                return host
        return None

    def next_hop(self, vtep: str) -> str | None:
        """The MAC of a VTEP's next hop; "" if nothing is known of any."""
        known = self.surroundings.next_hops
        return "" if known is None else known.get(str(ipaddress.ip_address(vtep)))

    def stateful(self, port: Port) -> bool:
        """Whether a port tracks connections."""
        groups = self.state.security_groups
        stateless = [group for group in port.security_groups if group in groups and not groups[group].stateful]
        return port.port_security and not stateless

    def group_has(self, group: str, address: IpAddress) -> bool:
        """Whether a member of a security group has the address, fixed or by address pair."""
        if group not in self._members:
            members = self.state.members(group)
            texts = [address for port in members for address in port.addresses]
            texts += [pair.address for port in members for pair in port.address_pairs]
            self._members[group] = [ipaddress.ip_network(text, strict=False) for text in texts]
        if (group, address) not in self._contains:
            self._contains[group, address] = any(address in cidr for cidr in self._members[group])
        return self._contains[group, address]

    def address_group_has(self, group: str, address: IpAddress) -> bool:
        """Whether one of an address group's CIDRs holds the address."""
        found = self.state.address_groups.get(group)
        cidrs = found.addresses if found else ()
        return any(address in ipaddress.ip_network(cidr, strict=False) for cidr in cidrs)
