"""Neutron's dictionaries into objects of ``headrace.model``. Pure: no database, no clock.

What Headrace cannot carry raises NotCarried with the reason; it is never translated into something weaker.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar, get_args

import msgspec
from neutron_lib import constants

from headrace.errors import InvalidInput, NotSupported
from headrace.model import (
    AddressGroup,
    AddressPair,
    DhcpOption,
    HostRoute,
    Network,
    Object,
    Port,
    Rule,
    SecurityGroup,
    Segment,
    Subnet,
)
from headrace.model.object import DOMAIN
from headrace.model.segment import NetworkType

Attributes = Mapping[str, Any]
"""A Neutron API object, as its plug-in returns it."""

WRITER = "neutron"
"""Who we are among the controller's writers."""

CARRIED_TYPES: tuple[str, ...] = get_args(NetworkType)
"""Neutron network types that ``headrace.model.Segment`` can express."""

TAGS_OF_TENANTS = ("vlan_transparent", "qinq")
"""Attributes of networks that promise to carry any VLAN tag of their workloads."""

VERSION = "1"
"""Of what this module makes of Neutron's objects: another one has everything pushed again."""

ANY_PROTOCOL = {None, "", "any"}
ICMP, ICMP6 = 1, 58


class NotCarried(NotSupported):
    """Neutron has an object that Headrace cannot express."""


class Place(NamedTuple):
    """Where a sub-port is: on which port, and by which tag."""

    parent: str
    segmentation_type: str
    segmentation_id: int


def segment(source: Attributes, segments: Iterable[Attributes], transports: Mapping[str, str]) -> Segment:
    """Translate the one segment of a network. ``segments``: its static ones. ``transports``: by type, what carries it.

    A network of several segments is one only where something bridges between them, which nothing here does: carrying
    one of them would be half a network.
    """
    found = list(segments)
    if len(found) != 1:
        raise NotCarried(
            f"network {source['id']} has {len(found)} segments; Headrace carries networks of exactly one: "
            "make a network for each segment"
        )
    for attribute in TAGS_OF_TENANTS:
        if source.get(attribute):
            raise NotCarried(
                f"network {source['id']} is {attribute}; VLAN tags of workloads are carried by trunk ports, each as a "
                "network: make a network without it"
            )
    kind = found[0]["network_type"]
    if kind not in CARRIED_TYPES:
        raise NotCarried(
            f"network {source['id']}: network type {kind} is not one that Headrace carries ({', '.join(CARRIED_TYPES)})"
        )
    try:
        return Segment(
            type=kind,
            id=None if kind == "flat" else found[0]["segmentation_id"],
            transport=transports.get(kind),  # type: ignore[arg-type]
            physical_network=found[0].get("physical_network") or None,
        )
    except ValueError as error:
        raise NotCarried(f"network {source['id']}: segment: {error}") from None


def network(
    source: Attributes, segments: Iterable[Attributes], transports: Mapping[str, str], dns_domain: str = ""
) -> Network:
    """Translate a network with its segments. ``dns_domain``: for networks without their own.

    A domain that is none is left out: it is no reason to refuse the network.
    """
    domain = (source.get("dns_domain") or dns_domain).rstrip(".")
    return build(
        Network,
        **identity(source),
        segment=segment(source, segments, transports),
        mtu=source["mtu"],
        dns_domain=domain if len(domain) < 254 and re.fullmatch(DOMAIN, domain) else "",
    )


def subnet(source: Attributes) -> Subnet:
    """Translate a subnet."""
    return build(
        Subnet,
        **identity(source),
        network=source["network_id"],
        cidr=source["cidr"],
        gateway=source["gateway_ip"],
        enable_dhcp=source["enable_dhcp"],
        dns_nameservers=tuple(source["dns_nameservers"]),
        host_routes=tuple(
            HostRoute(destination=destination, nexthop=nexthop)
            for destination, nexthop in sorted(
                (route["destination"], route["nexthop"]) for route in source["host_routes"]
            )
        ),
        ipv6_ra_mode=source["ipv6_ra_mode"],
        ipv6_address_mode=source["ipv6_address_mode"],
    )


def port(source: Attributes, *, ours: bool, place: Place | None = None) -> Port:
    """Translate a port. ``ours``: this driver bound it, so that the binding's host is where it is wanted.

    ``place``: of a trunk's sub-port.
    """
    if place is not None and place.segmentation_type != "vlan":
        raise NotCarried(f"port {source['id']}: sub-ports are told apart by vlan, not by {place.segmentation_type}")
    return build(
        Port,
        **identity(source),
        network=source["network_id"],
        mac=source["mac_address"].lower(),
        addresses=tuple(sorted(fixed["ip_address"] for fixed in source["fixed_ips"])),
        address_pairs=tuple(
            AddressPair(address=address, mac=mac)
            for address, mac in sorted(
                (pair["ip_address"], pair["mac_address"].lower()) for pair in source.get("allowed_address_pairs") or ()
            )
        ),
        security_groups=tuple(sorted(source.get("security_groups") or ())),
        port_security=source.get("port_security_enabled", True),
        admin_up=source["admin_state_up"],
        host=source["binding:host_id"] if ours else None,
        device_owner=source["device_owner"] or "",
        dhcp_options=tuple(
            DhcpOption(name=name, value=value, ip_version=6 if version == 6 else 4)
            for version, name, value in sorted(
                (int(option["ip_version"]), option["opt_name"], option["opt_value"])
                for option in source.get("extra_dhcp_opts") or ()
            )
        ),
        parent=place.parent if place else None,
        vlan=place.segmentation_id if place else None,
    )


def security_group(source: Attributes) -> SecurityGroup:
    """Translate a security group with the rules in it."""
    rules = sorted(source["security_group_rules"], key=lambda each: each["id"])
    return build(
        SecurityGroup,
        **identity(source),
        stateful=source.get("stateful", True),
        rules=tuple(rule(each) for each in rules),
    )


def rule(source: Attributes) -> Rule:
    """Translate one security group rule."""
    return build(
        Rule,
        id=source["id"],
        direction=source["direction"],
        ethertype=source["ethertype"],
        protocol=protocol(source["protocol"], source["ethertype"]),
        port_min=source["port_range_min"],
        port_max=source["port_range_max"],
        remote_cidr=text(source["remote_ip_prefix"]),
        remote_group=source["remote_group_id"],
        remote_address_group=source["remote_address_group_id"],
    )


def address_group(source: Attributes) -> AddressGroup:
    """Translate an address group."""
    return build(AddressGroup, **identity(source), addresses=tuple(sorted(source["addresses"])))


def protocol(value: str | int | None, ethertype: str) -> int | None:
    """A rule's protocol as an IANA number; None is any.

    The API takes names, numbers, and 0 for any (Networking API, security group rules: "The string value any
    (or integer value 0) means all IP protocols"). ICMP in an IPv6 rule is ICMPv6, whichever name it goes by.
    """
    if value in ANY_PROTOCOL:
        return None
    name = str(value).lower()
    name = constants.IP_PROTOCOL_NAME_ALIASES.get(name, name)
    try:
        number = int(constants.IP_PROTOCOL_MAP.get(name, name))
    except ValueError:
        raise NotCarried(f"protocol {value!r} has no number known to Neutron") from None
    if number == ICMP and ethertype == constants.IPv6:
        return ICMP6
    return number or None


def identity(source: Attributes) -> dict[str, str]:
    """What every object has."""
    return {"id": source["id"], "name": source["name"] or "", "project": source["project_id"] or ""}


def text(value: object) -> str | None:
    """A CIDR that may come as an address object."""
    return None if value is None else str(value)


Built = TypeVar("Built", Network, Subnet, Port, SecurityGroup, Rule, AddressGroup)


def build(cls: type[Built], **fields: Any) -> Built:
    """Make an object and check it whole: a constructor checks only what types cannot say, ``convert`` the rest."""
    try:
        return msgspec.convert(msgspec.to_builtins(cls(**fields)), cls)
    except (InvalidInput, msgspec.ValidationError) as error:
        raise NotCarried(f"{cls.__name__} {fields['id']}: {error}") from None


def body(item: Object) -> dict[str, Any]:
    """An object as the controller takes it."""
    made: dict[str, Any] = msgspec.to_builtins(item)
    return made
