"""The objects an operator or a cloud desires: immutable, complete, and silent about how they are made true.

Names follow the OpenStack Networking API where it has them, so that a Neutron object translates
field by field. Directions of rules are Neutron's: *ingress* is what the port receives.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, ClassVar, Literal

import msgspec

from headrace.errors import InvalidInput
from headrace.model.segment import Segment, Vid

Identity = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]*$")]
"""An object's id: a UUID when Neutron writes it, any short name when a person does."""

Mac = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")]
"""A MAC address, lower case with colons."""

DEVICE_OWNER_ROUTER = "network:router"
"""Prefix of ``device_owner`` of a router's own ports (Neutron: network:router_interface, ...)."""

DEVICE_OWNER_DHCP = "network:dhcp"
"""``device_owner`` of a DHCP server's port: the network keeps that server."""

LABEL = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
DOMAIN = rf"^({LABEL}(\.{LABEL})*)?$"
"""A domain name (RFC 1035 section 2.3.1, but digits and underscores go anywhere) without a dot at its end; or none."""

Ipv6Mode = Literal["slaac", "dhcpv6-stateful", "dhcpv6-stateless"]
"""How workloads get IPv6 addresses (Neutron's IPV6_MODES)."""


class Object(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What every desired object has."""

    type: ClassVar[str]
    id: Identity
    name: str = ""
    project: str = ""

    def label(self) -> str:
        """``port web-1 (8f0c...)``: how messages name this object."""
        kind = self.type.replace("_", " ")
        return f"{kind} {self.name} ({self.id})" if self.name and self.name != self.id else f"{kind} {self.id}"


class Network(Object, frozen=True, kw_only=True):
    """A virtual L2 network on one segment. ``mtu`` is the largest IP packet a workload may send, in octets.

    ``dns_domain``: what DHCP tells workloads to append to names.
    """

    type: ClassVar[str] = "network"
    segment: Segment
    mtu: Annotated[int, msgspec.Meta(ge=68, le=65535)] = 1450
    dns_domain: Annotated[str, msgspec.Meta(max_length=253, pattern=DOMAIN)] = ""


class HostRoute(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A route that DHCP gives to workloads (RFC 3442). ``nexthop`` 0.0.0.0: on the link."""

    destination: str
    nexthop: str

    def __post_init__(self) -> None:
        cidr = check_cidr(self.destination, "host route: destination")
        if check_address(self.nexthop, "host route: nexthop").version != cidr.version:
            raise InvalidInput(f"host route: {self.destination} and {self.nexthop} are of two IP versions")


class Subnet(Object, frozen=True, kw_only=True):
    """An address range on a network, and what workloads are told of it by DHCP and router advertisements.

    ``enable_dhcp`` off, as an earlier writer leaves it: nothing is told. ``ipv6_ra_mode``: router advertisements come
    from here, and say this; ``ipv6_address_mode``: how workloads configure their addresses.
    """

    type: ClassVar[str] = "subnet"
    network: Identity
    cidr: str
    gateway: str | None = None
    enable_dhcp: bool = False
    dns_nameservers: tuple[str, ...] = ()
    host_routes: tuple[HostRoute, ...] = ()
    ipv6_ra_mode: Ipv6Mode | None = None
    ipv6_address_mode: Ipv6Mode | None = None

    def __post_init__(self) -> None:
        version = check_cidr(self.cidr, f"subnet {self.id}: cidr").version
        named = [("gateway", self.gateway)] if self.gateway is not None else []
        named += [("dns_nameservers", address) for address in self.dns_nameservers]
        named += [("host_routes", each.nexthop) for each in self.host_routes]
        for field, address in named:
            if check_address(address, f"subnet {self.id}: {field}").version != version:
                raise InvalidInput(f"subnet {self.id}: {field}: {address} and {self.cidr} are of two IP versions")
        if version == 4 and (self.ipv6_ra_mode or self.ipv6_address_mode):
            raise InvalidInput(f"subnet {self.id}: {self.cidr} is IPv4; leave out ipv6_ra_mode and ipv6_address_mode")

    @property
    def prefix(self) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
        """The range."""
        return ipaddress.ip_network(self.cidr, strict=False)


class AddressPair(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One more address (or CIDR) a port may send from; ``mac`` None means the port's own."""

    address: str
    mac: Mac | None = None

    def __post_init__(self) -> None:
        check_cidr(self.address, "address pair")


class DhcpOption(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One of a port's own DHCP options (Neutron: extra_dhcp_opts). ``name``: as dnsmasq has it, or the number."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    value: Annotated[str, msgspec.Meta(max_length=255)] = ""
    ip_version: Literal[4, 6] = 4


class Port(Object, frozen=True, kw_only=True):
    """The attachment of one workload to one network.

    ``host`` None: not bound. ``device`` None: the tap that Nova makes, ``tap`` + the first 11 characters of the id.
    ``hook`` is where the datapath sits on the device (docs/decisions/0001-walk-in-tc-replay-in-xdp.md).
    ``parent``: of a trunk's sub-port, the port whose device carries its frames, tagged ``vlan``.
    """

    type: ClassVar[str] = "port"
    network: Identity
    mac: Mac
    addresses: tuple[str, ...] = ()
    address_pairs: tuple[AddressPair, ...] = ()
    security_groups: tuple[Identity, ...] = ()
    port_security: bool = True
    admin_up: bool = True
    host: Identity | None = None
    device: Annotated[str, msgspec.Meta(min_length=1, max_length=15)] | None = None
    device_owner: str = ""
    hook: Literal["tc", "xdp"] = "tc"
    dhcp_options: tuple[DhcpOption, ...] = ()
    parent: Identity | None = None
    vlan: Vid | None = None

    def __post_init__(self) -> None:
        for address in self.addresses:
            check_address(address, f"port {self.id}: addresses")
        if (self.parent is None) != (self.vlan is None):
            raise InvalidInput(f"port {self.id}: a sub-port has both a parent and a vlan, other ports neither")
        if self.parent == self.id:
            raise InvalidInput(f"port {self.id}: it is its own parent")
        if int(self.mac[:2], 16) & 1:
            raise InvalidInput(f"port {self.id}: mac {self.mac} is a multicast address; give a unicast one")

    @property
    def device_name(self) -> str:
        """The network device on the host that carries this port."""
        return self.device or f"tap{self.id[:11]}"

    @property
    def attachment(self) -> str:
        """Who it is to the datapath: a port that is moved to another network is another one there."""
        return attachment(self.id, self.network)

    @property
    def is_router(self) -> bool:
        """Whether this is a router's own port, which may advertise itself (RA) and forward for others."""
        return self.device_owner.startswith(DEVICE_OWNER_ROUTER)


def attachment(port: str, network: str) -> str:
    """A port on a network, by their ids, neither of which has a space in it."""
    return f"{port} on {network}"


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One security group rule: it allows, never denies (Neutron ``SecurityGroupRule``).

    ``protocol``: IANA number, None for any. ``port_min``/``port_max``: port range for protocols with ports;
    type and code for ICMP and ICMPv6 (None: any). At most one remote; none means any address.
    """

    id: Identity
    direction: Literal["ingress", "egress"]
    ethertype: Literal["IPv4", "IPv6"] = "IPv4"
    protocol: Annotated[int, msgspec.Meta(ge=0, le=255)] | None = None
    port_min: Annotated[int, msgspec.Meta(ge=0, le=65535)] | None = None
    port_max: Annotated[int, msgspec.Meta(ge=0, le=65535)] | None = None
    remote_cidr: str | None = None
    remote_group: Identity | None = None
    remote_address_group: Identity | None = None

    def __post_init__(self) -> None:
        if sum(remote is not None for remote in (self.remote_cidr, self.remote_group, self.remote_address_group)) > 1:
            raise InvalidInput(f"rule {self.id}: give one of remote_cidr, remote_group, remote_address_group")
        if self.remote_cidr is not None:
            version = check_cidr(self.remote_cidr, f"rule {self.id}: remote_cidr").version
            if version != self.family:
                raise InvalidInput(f"rule {self.id}: remote_cidr {self.remote_cidr} is not {self.ethertype}")
        if not self.is_icmp and None not in (self.port_min, self.port_max) and self.port_min > self.port_max:  # type: ignore[operator]
            raise InvalidInput(f"rule {self.id}: port_min {self.port_min} is above port_max {self.port_max}")

    @property
    def family(self) -> Literal[4, 6]:
        """IP version."""
        return 4 if self.ethertype == "IPv4" else 6

    @property
    def is_icmp(self) -> bool:
        """Whether ``port_min``/``port_max`` mean ICMP type and code."""
        return self.protocol in {1, 58}


class SecurityGroup(Object, frozen=True, kw_only=True):
    """A set of rules, and the set of ports that carry it."""

    type: ClassVar[str] = "security_group"
    stateful: bool = True
    rules: tuple[Rule, ...] = ()


class AddressGroup(Object, frozen=True, kw_only=True):
    """A named set of CIDRs."""

    type: ClassVar[str] = "address_group"
    addresses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for cidr in self.addresses:
            check_cidr(cidr, f"address group {self.id}: addresses")


class Host(Object, frozen=True, kw_only=True):
    """A machine that carries ports. ``vteps``: its tunnel endpoint addresses, at most one per IP version."""

    type: ClassVar[str] = "host"
    vteps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for address in self.vteps:
            check_address(address, f"host {self.id}: vteps")


TYPES: dict[str, type[Object]] = {cls.type: cls for cls in (Network, Subnet, SecurityGroup, AddressGroup, Host, Port)}
"""Every object type by name, in an order in which references point backwards."""


def check_address(text: str, what: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Parse an IP address; raises InvalidInput naming ``what``."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise InvalidInput(f"{what}: {text!r} is not an IP address") from None


def check_cidr(text: str, what: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Parse an address or CIDR (host bits allowed, as Neutron allows them); raises InvalidInput naming ``what``."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise InvalidInput(f"{what}: {text!r} is not an IP address or CIDR") from None
