"""What one host makes of desired state: questions the oracle's stages ask, answered by walking the model.

Only repeated answers are kept; there is no table.
"""

from __future__ import annotations

import ipaddress
from functools import cached_property

from headrace.datapath.decision import IpAddress, IpNetwork
from headrace.model import Network, Port, State


class View:
    """One host's view of a state."""

    def __init__(self, state: State, host: str) -> None:
        self.state = state
        self.host = host
        self._ports: dict[str, list[Port]] = {}
        self._members: dict[str, list[IpNetwork]] = {}
        self._contains: dict[tuple[str, IpAddress], bool] = {}

    def port_here(self, port: str) -> Port | None:
        """A port of this host, on a network that exists."""
        found = self.state.ports.get(port)
        if found is None or found.host != self.host or found.network not in self.state.networks:
            return None
        return found

    def network_by_vni(self, vni: int) -> Network | None:
        """The network on a VNI, if a port bound to this host is on it."""
        here = {port.network for port in self.state.ports.values() if port.host == self.host}
        for network in self.state.networks.values():
            if network.segment.id == vni and network.id in here:
                return network
        return None

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
