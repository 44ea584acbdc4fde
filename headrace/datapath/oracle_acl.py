"""acl: do a port's groups allow the packet, and by which rule. Called per side. docs/pipeline.md, "acl".

Rules are walked one by one, groups in the port's order, and remotes are asked for the address itself.
"""

from __future__ import annotations

import ipaddress

import msgspec

from headrace.abi import Reason
from headrace.datapath.decision import (
    RULE_ESTABLISHED,
    RULE_IMPLICIT,
    RULE_OPEN,
    RULE_REMOTE,
    Dropped,
    IpAddress,
    Key,
    Place,
    Side,
)
from headrace.datapath.oracle_admit import Entry
from headrace.datapath.oracle_track import Bond
from headrace.datapath.oracle_view import View
from headrace.datapath.packet import ICMPV6, UDP, carries_ports, is_icmp
from headrace.model import Port, Rule

IMPLICIT_ICMPV6: dict[Side, tuple[int, ...]] = {
    "from": (130, 131, 132, 133, 135, 136, 143),
    "to": (130, 131, 132, 134, 135, 136, 143),
}
IMPLICIT_UDP: dict[Side, dict[int, tuple[int, int]]] = {
    "from": {4: (68, 67), 6: (546, 547)},
    "to": {4: (67, 68), 6: (547, 546)},
}
"""Source and destination port of DHCP as a port sends and receives it, by IP version."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Why a side lets a packet pass. ``allowed``: every rule that does; ``tracks``: replies to it may come back."""

    rule: str
    allowed: tuple[str, ...] = ()
    tracks: bool = False
    text: str = ""


REMOTE = Verdict(rule=RULE_REMOTE, text="judged by the other host")


def judge(view: View, entry: Entry, bond: Bond, port: Port, side: Side, place: Place) -> Verdict:
    """Judge one side. ``place``: where packets of the side's port enter. Raises Dropped."""
    key = bond.key
    if not port.port_security:
        return Verdict(rule=RULE_OPEN, text=f"{port.label()} has no port security")
    if entry.packet.arp is not None:
        return Verdict(rule=RULE_IMPLICIT, text="ARP passes")
    if key is None:
        raise Dropped(Reason.ETHERTYPE, f"ethertype {entry.packet.ethertype:#06x} is neither ARP nor IP")
    if is_implicit(key, side):
        return Verdict(rule=RULE_IMPLICIT, text="DHCP, neighbour discovery and multicast listeners pass")
    connection, role = bond.connection, bond.role(side)
    if connection is not None and connection.tracks(role) and connection.place(role) == place:
        rules = allowing(view, port, role, connection.original)
        if not rules:
            raise Dropped(Reason.CONNECTION_CUT, f"no {noun(role)} rule of {port.label()} allows it any more")
        if bond.error or bond.course == "reply":
            text = f"a reply to what {port.label()} allowed"
            return Verdict(rule=RULE_ESTABLISHED, allowed=(RULE_ESTABLISHED,), text=text)
        return Verdict(rule=rules[0], allowed=rules, tracks=view.stateful(port), text=f"{port.label()} allows it")
    if view.stateful(port) and bond.error:
        raise Dropped(Reason.ICMP_UNRELATED, f"the error is about no connection of {port.label()}")
    if view.stateful(port) and bond.is_new_answer:
        raise Dropped(Reason.TCP_INVALID, f"a SYN+ACK without a SYN known to {port.label()}")
    rules = allowing(view, port, side, key)
    if not rules:
        reason = Reason.ACL_FROM_PORT if side == "from" else Reason.ACL_TO_PORT
        raise Dropped(reason, f"no {noun(side)} rule of {port.label()} allows it")
    return Verdict(rule=rules[0], allowed=rules, tracks=view.stateful(port), text=f"{port.label()} allows it")


def is_implicit(key: Key, side: Side) -> bool:
    """What Neutron's firewall drivers let pass whatever the groups say."""
    version = key.source.version
    if version == 6 and key.protocol == ICMPV6:
        return key.dport >> 8 in IMPLICIT_ICMPV6[side]
    return key.protocol == UDP and (key.sport, key.dport) == IMPLICIT_UDP[side][version]


def allowing(view: View, port: Port, side: Side, key: Key) -> tuple[str, ...]:
    """The ids of every rule of the port's groups that allows a key, in the groups' order."""
    groups = view.state.security_groups
    rules = [rule for group in port.security_groups if group in groups for rule in groups[group].rules]
    return tuple(rule.id for rule in rules if allows(view, rule, side, key))


def allows(view: View, rule: Rule, side: Side, key: Key) -> bool:
    """Whether one rule allows a key, asked of the port that sends it (``from``) or receives it (``to``)."""
    direction = "egress" if side == "from" else "ingress"
    if rule.direction != direction or rule.family != key.source.version:
        return False
    if rule.protocol is not None and rule.protocol != key.protocol:
        return False
    return in_range(rule, key) and is_remote(view, rule, key.destination if side == "from" else key.source)


def in_range(rule: Rule, key: Key) -> bool:
    if rule.port_min is None and rule.port_max is None:
        return True
    if rule.protocol is None or not carries_ports(rule.family, rule.protocol):
        return False
    if is_icmp(rule.family, rule.protocol):
        if rule.port_min is None:
            return False
        return key.dport >> 8 == rule.port_min and rule.port_max in {None, key.dport & 0xFF}
    low = 0 if rule.port_min is None else rule.port_min
    high = 65535 if rule.port_max is None else rule.port_max
    return low <= key.dport <= high


def is_remote(view: View, rule: Rule, address: IpAddress) -> bool:
    """Whether the other side's address is one that the rule is about."""
    if rule.remote_cidr is not None:
        return address in ipaddress.ip_network(rule.remote_cidr, strict=False)
    if rule.remote_group is not None:
        return view.group_has(rule.remote_group, address)
    if rule.remote_address_group is not None:
        return view.address_group_has(rule.remote_address_group, address)
    return True


def noun(side: Side) -> str:
    """Neutron's word for a side's rules."""
    return "egress" if side == "from" else "ingress"
