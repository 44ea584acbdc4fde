"""acl, the other side's addresses: a set of selectors -> every prefix that one of them names, with all that cover it.

A longest-prefix table returns one entry, so an entry holds the union over the prefixes that cover it; single addresses
are in a hash table, which is asked first. A set's id is
made from its selectors: members come and go within it, one entry each, and policies that speak of the same share it.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from headrace import abi
from headrace.model import Port
from headrace.stages.memo import Table
from headrace.stages.view import View, address_octets, content_id, numbers_id, prefix_bits

Selector = tuple[str, str]
"""("any" | "cidr" | "group" | "addresses", what)."""

Prefix = tuple[int, int]
"""The 16 octets of a network as a number (IPv4 as ::ffff:a.b.c.d), and how many of its 128 bits count."""

Named = dict[str, tuple[Prefix, ...]]
"""The prefixes that each element of a selector (a member port, or the selector itself) stands for."""

WHOLE = 128
"""Bits of one address."""


class Set(NamedTuple):
    """What rules speak of: selectors of one IP version, and of those that are allowed every service the rule."""

    id: int
    family: int
    selectors: tuple[Selector, ...]
    whole: tuple[tuple[Selector, int], ...]


class Remotes(NamedTuple):
    """A set's tables, and how they came about: who names a prefix, what covers it, how many prefixes have a class."""

    named: tuple[Named, ...]
    owners: dict[Prefix, frozenset[tuple[Selector, str]]]
    covers: dict[Prefix, frozenset[Selector]]
    classes: dict[frozenset[Selector], int]
    table: Table
    addresses: Table


NOTHING = Remotes((), {}, {}, {}, {}, {})


def set_of(family: int, whole: Mapping[Selector, int], selectors: Iterable[Selector]) -> Set:
    """A set, named by its content."""
    ordered, allowed = tuple(sorted(selectors)), tuple(sorted(whole.items()))
    return Set(content_id("remotes", family, ordered, allowed), family, ordered, allowed)


@functools.lru_cache(1 << 16)
def selector_id(selector: Selector) -> int:
    """A selector as classes are made from it."""
    return content_id("selector", selector)


@functools.lru_cache(1 << 16)
def class_id(selectors: frozenset[Selector]) -> int:
    """The class of addresses that are in these selectors."""
    return numbers_id("remote", sorted(map(selector_id, selectors)))


def compile_set(view: View, wanted: Set) -> Remotes:
    """A set's entries, as things stand."""
    named = tuple(named_by(view, selector)[wanted.family] for selector in wanted.selectors)
    return view.memo.after(("remotes", wanted), lambda before, given: fill(before, wanted, given), named)


def fill(before: Remotes | None, wanted: Set, named: tuple[Named, ...]) -> Remotes:
    """A set's entries, from those before where only single addresses came or went: these cover no others."""
    begin = before or NOTHING
    changes = list(differences(wanted, begin.named, named))
    if any(bits != WHOLE for _, _, (_, bits) in changes):
        begin, changes = NOTHING, list(differences(wanted, (), named))
    owners, covers = dict(begin.owners), dict(begin.covers)
    classes, wide, single = dict(begin.classes), dict(begin.table), dict(begin.addresses)
    for came, owner, prefix in changes:
        held = owners.get(prefix, frozenset())
        owners[prefix] = held | {owner} if came else held - {owner}
    lengths = {bits for _, bits in owners if bits != WHOLE}
    rules = dict(wanted.whole)
    values: dict[frozenset[Selector], abi.AclRemote] = {}
    for prefix in {prefix: None for _, _, prefix in changes}:
        number, bits = prefix
        table, key = (single if bits == WHOLE else wide), key_of(wanted, number, bits)
        if prefix in covers:
            count(classes, covers.pop(prefix), -1)
            del table[key]
        if not owners[prefix]:
            del owners[prefix]
            continue
        covers[prefix] = selectors = covering(owners, prefix, lengths)
        count(classes, selectors, 1)
        if selectors not in values:
            rule = min((rules[selector] for selector in selectors if selector in rules), default=0)
            values[selectors] = abi.AclRemote(class_id=class_id(selectors), rule=rule)
        table[key] = values[selectors]
    return Remotes(named, owners, covers, classes, wide, single)


def key_of(wanted: Set, number: int, bits: int) -> abi.AclAddressKey | abi.AclRemoteKey:
    """The key of a prefix in the table that it is in."""
    octets = number.to_bytes(16, "big")
    if bits == WHOLE:
        return abi.AclAddressKey(remotes=wanted.id, addr=octets)
    return abi.AclRemoteKey(prefixlen=abi.REMOTE_PREFIX + bits, remotes=wanted.id, addr=octets)


def differences(
    wanted: Set, before: tuple[Named, ...], after: tuple[Named, ...]
) -> Iterator[tuple[bool, tuple[Selector, str], Prefix]]:
    """(came or went, who names it, prefix), what went first."""
    pairs = list(zip(wanted.selectors, before or [{}] * len(after), after, strict=True))
    for came in (False, True):
        for selector, old, new in pairs:
            if old is new:
                continue
            here, there = (new, old) if came else (old, new)
            for element, found in here.items():
                if there.get(element) != found:
                    for prefix in found:
                        yield came, (selector, element), prefix


def covering(
    owners: Mapping[Prefix, frozenset[tuple[Selector, str]]], prefix: Prefix, lengths: Iterable[int]
) -> frozenset[Selector]:
    """The selectors that name a prefix, or one that covers it."""
    number, bits = prefix
    found = [selector for selector, _ in owners[prefix]]
    for length in lengths:
        if length < bits:
            wider = number >> WHOLE - length << WHOLE - length, length
            if wider in owners:
                found += [selector for selector, _ in owners[wider]]
    return frozenset(found)


def count(classes: dict[frozenset[Selector], int], selectors: frozenset[Selector], step: int) -> None:
    """One prefix more or less of a class."""
    now = classes.get(selectors, 0) + step
    if now:
        classes[selectors] = now
    else:
        del classes[selectors]


def named_by(view: View, selector: Selector) -> Mapping[int, Named]:
    """What a selector stands for now, by IP version."""
    kind, what = selector
    if kind == "cidr":
        return view.memo.of(selector, by_version, {"": (what,)})
    if kind == "addresses":
        group = view.state.address_groups.get(what)
        return view.memo.of(selector, by_version, {"": group.addresses if group else ()})
    return view.memo.after(selector, members, tuple(view.members(what)))


class Members(dict[int, Named]):
    """A group's prefixes by IP version, and the ports that they are of."""

    ports: Mapping[str, Port]


def members(before: Members | None, ports: tuple[Port, ...]) -> Members:
    """The fixed addresses and address pairs of a group's ports; those parsed before are not parsed again."""
    old = before.ports if before else {}
    same = [port for port in ports if old.get(port.id) is port]
    fresh = by_version(
        {
            port.id: (*port.addresses, *(pair.address for pair in port.address_pairs))
            for port in ports
            if old.get(port.id) is not port
        }
    )
    made = Members(
        {
            version: {port.id: before[version][port.id] for port in same if port.id in before[version]} | fresh[version]
            for version in (4, 6)
        }
        if before
        else fresh
    )
    made.ports = {port.id: port for port in ports}
    return made


def by_version(texts: Mapping[str, tuple[str, ...]]) -> dict[int, Named]:
    """Addresses and CIDRs (host bits allowed) as prefixes."""
    found: dict[int, Named] = {4: {}, 6: {}}
    for element, listed in texts.items():
        for text in listed:
            network = ipaddress.ip_network(text, strict=False)
            number = int.from_bytes(address_octets(network.network_address), "big")
            held = found[network.version].get(element, ())
            found[network.version][element] = (*held, (number, prefix_bits(network)))
    return found
