"""acl: policies (sets of groups) as two classifications that meet.

A *selector* is what a rule says of the other side: any address, a CIDR, a group, an address group. For each policy,
direction and family, a protocol and port fall into a *service class* (the set of selectors that they are allowed to),
and name the set of addresses (remote.py) in which an address falls into a *remote class* (the set of selectors it is
in). A packet is allowed if the classes meet. Both lookups are longest-prefix, so an entry's set is the union over all
prefixes that cover it; rules for any address, or for any service, are decided by one lookup.
Class ids are made from their content: nothing is numbered, so a restart compiles the same entries.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
from collections.abc import Hashable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from headrace import abi
from headrace.model import Port, Rule, SecurityGroup
from headrace.stages.memo import Table
from headrace.stages.remote import Remotes, Selector, Set, class_id, compile_set, selector_id, set_of
from headrace.stages.view import Parts, View, content_id, numbers_id, rule_id

ANY: Selector = ("any", "")
PORT_BITS = 16
ICMP_TYPE_BITS = 8
EVERY_PORT = 0, 0xFFFF
WITH_PORTS = {6, 17, 132}
"""TCP, UDP, SCTP: the protocols whose ports the datapath reads."""

DIRECTIONS = {"egress": abi.Direction.FROM_PORT, "ingress": abi.Direction.TO_PORT}


class Fact(NamedTuple):
    """A rule as it is compiled. ``ports``: first and last value of the datapath's 16-bit service field."""

    rule: Rule
    number: int
    digest: bytes
    selector: Selector
    ports: tuple[int, int]


class Scope(NamedTuple):
    """One direction and family of a policy. ``meeting``: selector -> the service classes with it, each with a rule."""

    services: Table
    remotes: Set | None
    meeting: Mapping[Selector, list[tuple[int, int]]]


class Policy(NamedTuple):
    """A set of groups with the rules that they have."""

    id: int
    scopes: tuple[Scope, ...]


def policy_of(view: View, port: Port) -> int:
    """The id of a port's set of groups and their rules; 0 without port security.

    Rules changed are another policy: it is written beside the old one, and the port moves over by one write, so no
    packet ever meets half a change. Members come and go within a policy's sets of addresses, an entry each.
    """
    return compile_policy(view, port).id if port.port_security else 0


def compile_policy(view: View, port: Port) -> Policy:
    """The policy of a port with port security."""
    groups = port.security_groups
    if groups not in view.policies:
        names = tuple(sorted(set(groups)))
        known = [view.state.security_groups[name] for name in names if name in view.state.security_groups]
        facts = tuple(view.memo.after(("rules", group.id), facts_of, group) for group in known)
        view.policies[groups] = view.memo.of(("policy", names), make_policy, names, facts)
    found: Policy = view.policies[groups]
    return found


def compile_parts(view: View) -> Parts:
    """hr_acl_services by policy, hr_acl_remotes and hr_acl_addresses by set of addresses, hr_acl_matches."""
    secured = [port for port in view.local_ports if port.port_security]
    policies = {policy.id: policy for policy in (compile_policy(view, port) for port in secured)}
    services: dict[Hashable, Table] = {}
    remotes: dict[Hashable, Remotes] = {}
    pairs: list[Table] = []
    for policy in policies.values():
        for place, scope in enumerate(policy.scopes):
            services[policy.id, place] = scope.services
            if scope.remotes:
                found = remotes[scope.remotes.id] = compile_set(view, scope.remotes)
                pairs.append(view.memo.of(("matches", policy.id, place), meet, scope, frozenset(found.classes)))
    return {
        "hr_acl_services": services,
        "hr_acl_remotes": {wanted: found.table for wanted, found in remotes.items()},
        "hr_acl_addresses": {wanted: found.addresses for wanted, found in remotes.items()},
        "hr_acl_matches": {"": view.memo.of("matches", together, tuple(pairs))},
    }


def facts_of(before: tuple[Fact, ...] | None, group: SecurityGroup) -> tuple[Fact, ...]:
    """A group's rules; what was known of an equal rule still holds."""
    known = {fact.rule.id: fact for fact in before or ()}
    return tuple(
        known[rule.id] if rule.id in known and known[rule.id].rule == rule else fact_of(rule) for rule in group.rules
    )


def fact_of(rule: Rule) -> Fact:
    """What compiling needs of a rule."""
    digest = hashlib.blake2b(repr(msgspec.structs.astuple(rule)).encode(), digest_size=16).digest()
    return Fact(rule, rule_id(rule.id), digest, selector_of(rule), EVERY_PORT if is_whole(rule) else port_range(rule))


def make_policy(names: tuple[str, ...], groups: tuple[tuple[Fact, ...], ...]) -> Policy:
    """These groups with the rules that they have."""
    facts = sorted((fact for group in groups for fact in group), key=lambda fact: fact.rule.id)
    policy = content_id("policy", names, b"".join(fact.digest for fact in facts))
    scopes = []
    for name, direction in DIRECTIONS.items():
        for family in (4, 6):
            scoped = [fact for fact in facts if fact.rule.direction == name and fact.rule.family == family]
            if scoped := [fact for fact in scoped if makes_sense(fact.rule)]:
                scopes.append(make_scope(policy, direction, family, scoped))
    return Policy(policy, tuple(scopes))


def make_scope(policy: int, direction: int, family: int, facts: list[Fact]) -> Scope:
    """The entries of one policy, direction and family that addresses have no part in."""
    whole = {fact.selector: fact.number for fact in reversed(facts) if is_whole(fact.rule) and fact.selector != ANY}
    selectors = {fact.selector for fact in facts} - {ANY}
    remotes = set_of(family, whole, selectors) if selectors else None
    services: Table = {}
    meeting: dict[Selector, list[tuple[int, int]]] = {}
    classes: set[frozenset[tuple[Selector, int]]] = set()
    for (proto, port, bits), allowed in service_sets(facts):
        with_remote = frozenset(pair for pair in allowed.items() if pair[0] != ANY)
        if with_remote and with_remote not in classes:
            classes.add(with_remote)
            for selector, rule in with_remote:
                meeting.setdefault(selector, []).append((service_class(with_remote), rule))
        key = abi.AclServiceKey(
            prefixlen=abi.SERVICE_ANY if proto is None else abi.SERVICE_PROTO + bits,
            direction=direction,
            family=family,
            policy=policy,
            proto=proto or 0,
            port=port,
        )
        services[key] = abi.AclService(
            class_id=service_class(with_remote) if with_remote else 0,
            rule=allowed.get(ANY, 0),
            remotes=remotes.id if remotes else 0,
        )
    return Scope(services, remotes, meeting)


@functools.lru_cache(1 << 16)
def service_class(allowed: frozenset[tuple[Selector, int]]) -> int:
    """The class of services that are allowed to these selectors, each by a rule."""
    numbers = sorted((selector_id(selector), rule) for selector, rule in allowed)
    return numbers_id("service", (each for pair in numbers for each in pair))


def meet(scope: Scope, classes: frozenset[frozenset[Selector]]) -> Table:
    """Which classes of addresses meet which of services, and by which rule."""
    table: Table = {}
    for selectors in classes:
        matches: dict[int, int] = {}
        for selector in selectors:
            for service, rule in scope.meeting.get(selector, ()):
                matches[service] = min(rule, matches.get(service, rule))
        remote = class_id(selectors)
        for service, rule in matches.items():
            table[abi.AclMatchKey(remote_class=remote, service_class=service)] = abi.AclMatch(rule=rule)
    return table


def together(tables: tuple[Table, ...]) -> Table:
    """Several policies' matches. A pair of classes has one answer, whoever asks: it is in their names."""
    table: Table = {}
    for each in tables:
        table.update(each)
    return table


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


def service_sets(facts: list[Fact]) -> Iterator[tuple[tuple[int | None, int, int], dict[Selector, int]]]:
    """((protocol, port, bits of it that count), selector -> rule) for each prefix that differs from what covers it.

    Rules with a remote that allow every service are left out: the remote's entry decides them alone. They are found by
    any service's entry, so there is one for every service.
    """
    whole = [fact for fact in facts if is_whole(fact.rule)]
    everywhere = {fact.selector: fact.number for fact in reversed(whole) if fact.selector == ANY}
    if whole:
        yield (None, 0, 0), everywhere
    by_protocol: dict[int, list[Fact]] = {}
    for fact in facts:
        if fact.rule.protocol is not None:
            by_protocol.setdefault(fact.rule.protocol, []).append(fact)
    for proto, found in sorted(by_protocol.items()):
        base = dict(everywhere)
        for fact in found:
            if fact.ports == EVERY_PORT:
                base[fact.selector] = min(fact.number, base.get(fact.selector, fact.number))
        yield (proto, 0, 0), base
        ranges = [(*fact.ports, fact.selector, fact.number) for fact in found if fact.ports != EVERY_PORT]
        for first, last, allowed in intervals(ranges, base):
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
