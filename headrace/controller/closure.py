"""What a host may read: the closure of references from its ports, and nothing else.

From each port on the host: its network with that network's subnets, all its ports, and the hosts that
carry them; its security groups; the groups and address groups that their rules name as remotes; and
the ports that are members of those remote groups, on whatever network. A remote group's own rules are
not followed. Its parent and its sub-ports, if it is of a trunk. And the host itself.

`closure` says it in full and is the definition. `Sight` keeps the same up to date change by change.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Generic, TypeVar

from headrace.model import AddressGroup, Host, Network, Object, Port, SecurityGroup, State, Subnet

Key = tuple[str, str]
"""An object's type and id."""

Left = TypeVar("Left")
Right = TypeVar("Right")


def closure(state: State, host: str) -> State:
    """The part of a state that a host may read."""
    mine = state.ports_on(host)
    own = mine.values()
    networks = {port.network for port in own}
    groups = {group for port in own for group in port.security_groups}
    rules = [rule for group in groups if group in state.security_groups for rule in state.security_groups[group].rules]
    remotes = {rule.remote_group for rule in rules}
    addresses = {rule.remote_address_group for rule in rules}
    near = [port for port in state.ports.values() if port.network in networks]
    members = [port for port in state.ports.values() if not remotes.isdisjoint(port.security_groups)]
    parents = {port.parent for port in own}
    trunks = [port for port in state.ports.values() if port.id in parents or (port.parent and port.parent in mine)]
    hosts = {host} | {port.host for port in near}
    return State(
        networks={key: item for key, item in state.networks.items() if key in networks},
        subnets={key: item for key, item in state.subnets.items() if item.network in networks},
        security_groups={key: item for key, item in state.security_groups.items() if key in groups | remotes},
        address_groups={key: item for key, item in state.address_groups.items() if key in addresses},
        hosts={key: item for key, item in state.hosts.items() if key in hosts},
        ports={port.id: port for port in (*near, *members, *trunks)},
    )


class Relation(Generic[Left, Right]):
    """Pairs with a count, found from either side. A pair is there while its count is above zero."""

    def __init__(self, on_flip: Callable[[Left, Right], None] = lambda _left, _right: None) -> None:
        self._right: defaultdict[Left, Counter[Right]] = defaultdict(Counter)
        self._left: defaultdict[Right, set[Left]] = defaultdict(set)
        self._on_flip = on_flip

    def add(self, left: Left, right: Right, amount: int) -> None:
        """Change a pair's count; tells of a pair that came or went."""
        counts = self._right[left]
        before = counts[right]
        counts[right] = after = before + amount
        if after and not before:
            self._left[right].add(left)
            self._on_flip(left, right)
        elif before and not after:
            del counts[right]
            if not counts:
                del self._right[left]
            self._left[right].discard(left)
            if not self._left[right]:
                del self._left[right]
            self._on_flip(left, right)

    def count(self, left: Left, right: Right) -> int:
        """How often the pair was added."""
        return self._right[left][right] if left in self._right else 0

    def has(self, left: Left, right: Right) -> bool:
        """Whether the pair is there."""
        return left in self._right and right in self._right[left]

    def right(self, left: Left) -> Collection[Right]:
        """All that is paired with a left side."""
        return self._right[left].keys() if left in self._right else ()

    def left(self, right: Right) -> Collection[Left]:
        """All that is paired with a right side."""
        return self._left.get(right, ())


class Sight:
    """Who sees what, kept by counting references: a change costs what it touches, not what there is.

    `replace` returns the pairs (host, key) whose sight a change touched, with what was and is.
    """

    def __init__(self) -> None:
        self._objects: dict[Key, Object] = {}
        self._flips: set[tuple[str, str, str]] = set()
        # Of hosts, by the ports they carry; each tells when a host gains or loses its last reference.
        self._network: Relation[str, str] = Relation(partial(self._flip, "network"))
        self._group: Relation[str, str] = Relation(self._flip_group)
        self._remote: Relation[str, str] = Relation(partial(self._flip, "remote"))
        self._address: Relation[str, str] = Relation(partial(self._flip, "address"))
        self._parent: Relation[str, str] = Relation(partial(self._flip, "parent"))
        self._own: Relation[str, str] = Relation(partial(self._flip, "own"))
        # Of groups, by their rules.
        self._group_remote: Relation[str, str] = Relation()
        self._group_address: Relation[str, str] = Relation()
        # Of ports and subnets.
        self._port_network: Relation[str, str] = Relation()
        self._port_group: Relation[str, str] = Relation()
        self._port_parent: Relation[str, str] = Relation()
        self._subnet_network: Relation[str, str] = Relation()

    def sees(self, host: str, key: Key) -> bool:
        """Whether a host may read an object."""
        item = self._objects.get(key)
        match item:
            case Network():
                return self._network.has(host, item.id)
            case Subnet():
                return self._network.has(host, item.network)
            case SecurityGroup():
                return self._group.has(host, item.id) or self._remote.has(host, item.id)
            case AddressGroup():
                return self._address.has(host, item.id)
            case Host():
                return item.id == host or any(self._network.has(host, net) for net in self._network.right(item.id))
            case Port():
                return (
                    self._network.has(host, item.network)
                    or any(self._remote.has(host, group) for group in item.security_groups)
                    or self._parent.has(host, item.id)
                    or (item.parent is not None and self._own.has(host, item.parent))
                )
        return False

    def seen(self, host: str) -> set[Key]:
        """Everything a host may read."""
        networks = self._network.right(host)
        remotes = self._remote.right(host)
        keys: set[Key] = {("host", host)}
        for network in networks:
            keys.update(self._around(network))
        keys.update(("security_group", group) for group in (*self._group.right(host), *remotes))
        keys.update(("address_group", group) for group in self._address.right(host))
        keys.update(("port", port) for group in remotes for port in self._port_group.left(group))
        keys.update(("port", port) for port in self._parent.right(host))
        keys.update(("port", port) for own in self._own.right(host) for port in self._port_parent.left(own))
        return keys & self._objects.keys()

    def replace(
        self, key: Key, new: Object | None, watched: Collection[str | None] | None = None
    ) -> dict[tuple[str, Key], tuple[bool, bool]]:
        """Put or (None) remove an object; the pairs touched, each with whether it was and is seen.

        ``watched``: the hosts that matter; None for all.
        """
        if watched is not None and not watched:
            self._set(key, new)
            return {}
        old = self._objects.get(key)
        # The pairs are looked for on both sides of the change, and the past is asked of the past itself:
        # doing, undoing and doing again is a few dictionary steps, and leaves no third place for a mistake.
        self._flips.clear()
        self._set(key, new)
        flips = set(self._flips)
        after = set(self._touched(key, new, flips, watched))
        self._set(key, old)
        pairs = after.union(self._touched(key, old, flips, watched))
        before = {pair for pair in pairs if self.sees(*pair)}
        self._set(key, new)
        return {pair: (pair in before, self.sees(*pair)) for pair in pairs}

    def _around(self, network: str) -> Iterator[Key]:
        yield ("network", network)
        yield from (("subnet", subnet) for subnet in self._subnet_network.left(network))
        yield from (("port", port) for port in self._port_network.left(network))
        yield from (("host", host) for host in self._network.left(network))

    def _touched(
        self, key: Key, item: Object | None, flips: set[tuple[str, str, str]], watched: Collection[str | None] | None
    ) -> Iterator[tuple[str, Key]]:
        """The pairs that an object, and the references gained or lost with it, can concern."""
        for host in self._audience(item):
            if watched is None or host in watched:
                yield host, key
        for kind, host, target in flips:
            if kind == "network":
                for other in self._network.left(target):
                    if watched is None or other in watched:
                        yield other, ("host", host)
            if watched is not None and host not in watched:
                continue
            if kind == "network":
                for near in self._around(target):
                    yield host, near
            elif kind == "address":
                yield host, ("address_group", target)
            elif kind == "parent":
                yield host, ("port", target)
            elif kind == "own":
                for port in self._port_parent.left(target):
                    yield host, ("port", port)
            else:
                yield host, ("security_group", target)
                if kind == "remote":
                    for port in self._port_group.left(target):
                        yield host, ("port", port)

    def _audience(self, item: Object | None) -> Iterator[str]:
        """The hosts that see an object, as things stand."""
        match item:
            case Network():
                yield from self._network.left(item.id)
            case Subnet():
                yield from self._network.left(item.network)
            case SecurityGroup():
                yield from self._group.left(item.id)
                yield from self._remote.left(item.id)
            case AddressGroup():
                yield from self._address.left(item.id)
            case Host():
                yield item.id
                for network in self._network.right(item.id):
                    yield from self._network.left(network)
            case Port():
                yield from self._network.left(item.network)
                for group in item.security_groups:
                    yield from self._remote.left(group)
                yield from self._parent.left(item.id)
                if item.parent is not None:
                    yield from self._own.left(item.parent)

    def _flip(self, kind: str, host: str, target: str) -> None:
        """A reference came or went; both within one change is neither."""
        self._flips ^= {(kind, host, target)}

    def _flip_group(self, host: str, group: str) -> None:
        self._flip("group", host, group)
        sign = 1 if self._group.has(host, group) else -1
        for remote in self._group_remote.right(group):
            self._remote.add(host, remote, sign * self._group_remote.count(group, remote))
        for remote in self._group_address.right(group):
            self._address.add(host, remote, sign * self._group_address.count(group, remote))

    def _set(self, key: Key, new: Object | None) -> None:
        if old := self._objects.pop(key, None):
            self._count(old, -1)
        if new:
            self._objects[key] = new
            self._count(new, 1)

    def _count(self, item: Object, amount: int) -> None:
        match item:
            case Port():
                self._port_network.add(item.id, item.network, amount)
                for group in set(item.security_groups):
                    self._port_group.add(item.id, group, amount)
                if item.parent is not None:
                    self._port_parent.add(item.id, item.parent, amount)
                if item.host is not None:
                    self._own.add(item.host, item.id, amount)
                    if item.parent is not None:
                        self._parent.add(item.host, item.parent, amount)
                    self._network.add(item.host, item.network, amount)
                    for group in set(item.security_groups):
                        self._group.add(item.host, group, amount)
            case SecurityGroup():
                remotes = Counter(rule.remote_group for rule in item.rules if rule.remote_group is not None)
                addresses = Counter(
                    rule.remote_address_group for rule in item.rules if rule.remote_address_group is not None
                )
                for named, by_rules, by_hosts in (
                    (remotes, self._group_remote, self._remote),
                    (addresses, self._group_address, self._address),
                ):
                    for name, times in named.items():
                        by_rules.add(item.id, name, amount * times)
                        for host in self._group.left(item.id):
                            by_hosts.add(host, name, amount * times)
            case Subnet():
                self._subnet_network.add(item.id, item.network, amount)
