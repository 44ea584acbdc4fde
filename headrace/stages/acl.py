"""acl: policies (sets of groups) as two classifications that meet.

A *selector* is what a rule says of the other side: any address, a CIDR, a group, an address group. For each policy,
direction and family, an address falls into a *remote class* (the set of selectors it is in) and a protocol and port
into a *service class* (the set of selectors they are allowed to). A packet is allowed if the sets meet. Both lookups
are longest-prefix, so an entry's set is the union over all prefixes that cover it; rules for any address, or for any
service, are decided by one lookup.
Class ids are made from their content: nothing is numbered, so a restart compiles the same entries.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

import msgspec

from headrace import abi
from headrace.model import Port, Rule
from headrace.stages.view import Prefix, Tables, View, address_octets, content_id, prefix_bits, rule_id

Selector = tuple[str, str]
"""("any" | "cidr" | "group" | "addresses", what)."""

Scope = tuple[int, int, int]
"""Policy id, direction, family."""

ANY: Selector = ("any", "")
PORT_BITS = 16
ICMP_TYPE_BITS = 8
WITH_PORTS = {6, 17, 132}
"""TCP, UDP, SCTP: the protocols whose ports the datapath reads."""


def policy_of(view: View, port: Port) -> int:
    """The id of a port's set of groups and their rules; 0 without port security.

    Rules changed are another policy: it is written beside the old one, and the port moves over by one write, so no
    packet ever meets half a change. Members come and go within a policy, an entry each.
    """
    return view.once(("policy", tuple(sorted(set(port.security_groups)))), policy_id) if port.port_security else 0


def policy_id(view: View, groups: tuple[str, ...]) -> int:
    """The id of these groups with the rules that they have."""
    return content_id("policy", groups, [msgspec.structs.astuple(rule) for rule in rules_of(view, groups)])


def rules_of(view: View, groups: Iterable[str]) -> list[Rule]:
    """The rules of groups, in an order of their own."""
    known = view.state.security_groups
    rules = (rule for group in sorted(set(groups)) if group in known for rule in known[group].rules)
    return sorted(rules, key=lambda rule: rule.id)


def compile_tables(view: View) -> Tables:
    """hr_acl_services, hr_acl_remotes, hr_acl_matches."""
    tables: Tables = {"hr_acl_services": {}, "hr_acl_remotes": {}, "hr_acl_matches": {}}
    policies = {policy_of(view, port): port.security_groups for port in view.local_ports if port.port_security}
    for policy, groups in sorted(policies.items()):
        rules = rules_of(view, groups)
        for direction, name in ((abi.Direction.FROM_PORT, "egress"), (abi.Direction.TO_PORT, "ingress")):
            for family in (4, 6):
                scoped = [
                    rule for rule in rules if rule.direction == name and rule.family == family and makes_sense(rule)
                ]
                if scoped:
                    compile_scope(view, (policy, direction, family), scoped, tables)
    return tables


def compile_scope(view: View, scope: Scope, rules: list[Rule], tables: Tables) -> None:
    """The entries of one policy, direction and family."""
    services = list(service_sets(rules))
    meeting: dict[Selector, list[tuple[int, int]]] = {}
    classes: dict[frozenset[tuple[Selector, int]], int] = {}
    for (proto, port, bits), allowed in services:
        with_remote = frozenset((selector, rule) for selector, rule in allowed.items() if selector != ANY)
        class_id = 0
        if with_remote:
            class_id = classes.get(with_remote, 0)
            if not class_id:
                class_id = classes[with_remote] = content_id("service", scope, sorted(with_remote))
                for selector, rule in with_remote:
                    meeting.setdefault(selector, []).append((class_id, rule))
        key = service_key(scope, proto, port, bits)
        tables["hr_acl_services"][key] = abi.AclService(class_id=class_id, rule=allowed.get(ANY, 0))
    whole = {selector_of(rule): rule_id(rule.id) for rule in reversed(rules) if is_whole(rule)}
    wanted = {selector_of(rule) for rule in rules} - {ANY}
    known: dict[frozenset[Selector], abi.AclRemote] = {}
    for prefix, selectors in remote_sets(view, scope[2], wanted):
        if selectors not in known:
            class_id = content_id("remote", scope, sorted(selectors))
            rule = min((whole[selector] for selector in selectors if selector in whole), default=0)
            known[selectors] = abi.AclRemote(class_id=class_id, rule=rule)
            matches: dict[int, int] = {}
            for selector in selectors:
                for service_class, allowing in meeting.get(selector, ()):
                    matches[service_class] = min(allowing, matches.get(service_class, allowing))
            for service_class, allowing in matches.items():
                pair = abi.AclMatchKey(remote_class=class_id, service_class=service_class)
                tables["hr_acl_matches"][pair] = abi.AclMatch(rule=allowing)
        tables["hr_acl_remotes"][remote_key(scope, prefix)] = known[selectors]


def selector_of(rule: Rule) -> Selector:
    """What a rule says of the other side."""
    if rule.remote_cidr is not None:
        prefix = ipaddress.ip_network(rule.remote_cidr, strict=False)
        return ANY if prefix.prefixlen == 0 else ("cidr", str(prefix))
    if rule.remote_group is not None:
        return ("group", rule.remote_group)
    if rule.remote_address_group is not None:
        return ("addresses", rule.remote_address_group)
    return ANY


def makes_sense(rule: Rule) -> bool:
    """Whether a rule can match at all: a range needs a protocol that carries it, an ICMP code its type."""
    if rule.is_icmp:
        return rule.port_min is not None or rule.port_max is None
    return rule.protocol in WITH_PORTS or (rule.port_min is None and rule.port_max is None)


def is_whole(rule: Rule) -> bool:
    """Whether a rule allows every service to its remote."""
    return rule.protocol is None


def port_range(rule: Rule) -> tuple[int, int]:
    """First and last value of the datapath's 16-bit service field that a rule with a protocol covers."""
    if rule.is_icmp:
        if rule.port_min is None:
            return 0, 0xFFFF
        if rule.port_max is None:
            return rule.port_min << ICMP_TYPE_BITS, rule.port_min << ICMP_TYPE_BITS | 0xFF
        return (rule.port_min << ICMP_TYPE_BITS | rule.port_max,) * 2
    return rule.port_min or 0, 0xFFFF if rule.port_max is None else rule.port_max


def service_sets(rules: list[Rule]) -> Iterator[tuple[tuple[int | None, int, int], dict[Selector, int]]]:
    """((protocol, port, bits of it that count), selector -> rule id) for each prefix that differs from what covers it.

    Rules with a remote that allow every service are left out: the remote's entry decides them alone.
    """
    whole = [rule for rule in rules if is_whole(rule) and selector_of(rule) == ANY]
    everywhere = {ANY: rule_id(whole[0].id)} if whole else {}
    if everywhere:
        yield (None, 0, 0), everywhere
    for proto in sorted({rule.protocol for rule in rules if rule.protocol is not None}):
        ranges = [(*port_range(rule), selector_of(rule), rule_id(rule.id)) for rule in rules if rule.protocol == proto]
        base = dict(everywhere)
        for first, last, selector, rule in ranges:
            if (first, last) == (0, 0xFFFF):
                base[selector] = min(rule, base.get(selector, rule))
        yield (proto, 0, 0), base
        for first, last, allowed in intervals([item for item in ranges if item[:2] != (0, 0xFFFF)], base):
            for port, bits in prefixes(first, last):
                yield (proto, port, bits), allowed


def intervals(
    ranges: list[tuple[int, int, Selector, int]], base: dict[Selector, int]
) -> Iterator[tuple[int, int, dict[Selector, int]]]:
    """Cut overlapping ranges into stretches; each one's set is the base and the ranges that cover it."""
    edges: dict[int, list[tuple[bool, Selector, int]]] = {}
    for first, last, selector, rule in ranges:
        edges.setdefault(first, []).append((True, selector, rule))
        edges.setdefault(last + 1, []).append((False, selector, rule))
    cover: dict[tuple[Selector, int], int] = {}
    start = 0
    for at in sorted(edges):
        if cover:
            allowed = dict(base)
            for selector, rule in cover:
                allowed[selector] = min(rule, allowed.get(selector, rule))
            yield start, at - 1, allowed
        start = at
        for opens, selector, rule in edges[at]:
            count = cover.get((selector, rule), 0) + (1 if opens else -1)
            if count:
                cover[selector, rule] = count
            else:
                del cover[selector, rule]


def prefixes(first: int, last: int) -> Iterator[tuple[int, int]]:
    """The fewest (value, bits) prefixes of 16-bit numbers that make up a range."""
    while first <= last:
        size = (first & -first) or 1 << PORT_BITS
        while size > last - first + 1:
            size >>= 1
        yield first, PORT_BITS - size.bit_length() + 1
        first += size


def remote_sets(view: View, family: int, wanted: set[Selector]) -> Iterator[tuple[Prefix, frozenset[Selector]]]:
    """Every prefix of the wanted selectors with all selectors that cover it."""
    own: dict[Prefix, set[Selector]] = {}
    for selector in wanted:
        for prefix in expand(view, selector):
            if prefix.version == family:
                own.setdefault(prefix, set()).add(selector)
    covering: list[tuple[Prefix, frozenset[Selector]]] = []
    for prefix in sorted(own, key=lambda prefix: (int(prefix.network_address), prefix.prefixlen)):
        while covering and not covers(covering[-1][0], prefix):
            covering.pop()
        selectors = frozenset(own[prefix]) | (covering[-1][1] if covering else frozenset())
        covering.append((prefix, selectors))
        yield prefix, selectors


def covers(outer: Prefix, inner: Prefix) -> bool:
    """Whether one prefix holds another of the same version."""
    shift = outer.max_prefixlen - outer.prefixlen
    return outer.prefixlen <= inner.prefixlen and (
        int(outer.network_address) >> shift == int(inner.network_address) >> shift
    )


def expand(view: View, selector: Selector) -> Iterable[Prefix]:
    """The prefixes that a selector stands for now."""
    kind, what = selector
    if kind == "cidr":
        return [ipaddress.ip_network(what)]
    if kind == "addresses":
        group = view.state.address_groups.get(what)
        return [ipaddress.ip_network(cidr, strict=False) for cidr in (group.addresses if group else ())]
    return [
        ipaddress.ip_network(address, strict=False)
        for port in view.members(what)
        for address in (*port.addresses, *(pair.address for pair in port.address_pairs))
    ]


def service_key(scope: Scope, proto: int | None, port: int, bits: int) -> abi.AclServiceKey:
    """Where a service is looked up; fields beyond the prefix stay zero."""
    policy, direction, family = scope
    return abi.AclServiceKey(
        prefixlen=abi.SERVICE_ANY if proto is None else abi.SERVICE_PROTO + bits,
        direction=direction,
        family=family,
        policy=policy,
        proto=proto or 0,
        port=port,
    )


def remote_key(scope: Scope, prefix: Prefix) -> abi.AclRemoteKey:
    """Where an address is looked up."""
    policy, direction, family = scope
    return abi.AclRemoteKey(
        prefixlen=abi.REMOTE_PREFIX + prefix_bits(prefix),
        direction=direction,
        family=family,
        policy=policy,
        addr=address_octets(prefix.network_address),
    )
