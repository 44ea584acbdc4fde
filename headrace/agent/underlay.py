"""The underlay: own tunnel endpoints, next hops kept resolved, and adjacencies forgotten when a next hop changes.

Routing stays the kernel's: the walk asks its FIB. The agent only sees to it that the answer is a resolved one, and that
replays notice when it changes.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable
from pathlib import Path

from headrace import abi
from headrace.datapath.bpf import Datapath
from headrace.datapath.netlink import Link, Neighbour, Netlink
from headrace.errors import HeadraceError

log = logging.getLogger(__name__)

BY_MAC = bytes([abi.VTEP_MAC, *bytes(9)])
"""How a key of hr_vteps begins that is a MAC, not an address."""

Hop = tuple[int, str]
"""Egress device and address of a next hop."""


class Underlay:
    """What the host needs of its underlay, made so, and watched."""

    def __init__(self, netlink: Netlink, datapath: Datapath) -> None:
        self._netlink = netlink
        self._datapath = datapath
        self._hops: dict[Hop, str | None] = {}
        self._routes: dict[str, Hop] = {}
        self._refused: set[Hop] = set()
        self._mtus: dict[str, int] | None = None
        self._macs: dict[Hop, str] = {}
        """The last known MAC of each next hop: one that does not answer for a moment is nobody else's."""

    def prepare(self) -> None:
        """Let the datapath ask the FIB as the host: bpf_fib_lookup wants forwarding on the device it asks for."""
        for family in ("ipv4", "ipv6"):
            path = Path(f"/proc/sys/net/{family}/conf/lo/forwarding")
            if path.exists():
                path.write_text("1\n")

    def vteps(self, uplinks: Iterable[str], configured: tuple[str, ...]) -> tuple[str, ...]:
        """Own tunnel endpoints."""
        return own_vteps(self._netlink, uplinks, configured)

    def follow(self, remotes: Iterable[str], links: Iterable[Link] = (), uplinks: Iterable[str] = ()) -> None:
        """Keep next hops towards other hosts' tunnel endpoints resolved; forget adjacencies whose next hop changed.

        ``links``: all devices. Where an egress device has another MTU, flows are decided again.
        """
        routes: dict[str, Hop] = {}
        for remote in sorted(set(remotes)):
            route = self._netlink.route(remote)
            if route is not None and not route.local:
                routes[remote] = (route.ifindex, route.gateway or remote)
        hops = set(routes.values())
        known = {(entry.ifindex, entry.address): entry for entry in self._netlink.neighbours()}
        for hop in hops:
            self._ensure(hop, known.get(hop))
        for hop in set(self._hops) - hops:
            if hop in known and known[hop].managed:
                self._netlink.release_neighbour(*hop)
        current = {hop: known[hop].mac if hop in known else None for hop in hops}
        changed = {hop for hop, mac in self._hops.items() if mac and hop in current and current[hop] != mac}
        rerouted = any(self._routes.get(remote, hop) != hop for remote, hop in routes.items())
        resized = self._resized(routes, links, uplinks)
        if changed or rerouted or resized:
            self.forget(redecide=resized)
        self._hops, self._routes = current, routes
        self._macs = {hop: mac or self._macs[hop] for hop, mac in current.items() if mac or hop in self._macs}

    def _ensure(self, hop: Hop, known: Neighbour | None) -> None:
        """Have the kernel keep a next hop resolved, again when it forgot (a link that flapped, a MAC that changed)."""
        if known and (known.managed or known.fixed):
            return
        try:
            self._netlink.ensure_managed_neighbour(*hop)
            self._refused.discard(hop)
        except HeadraceError as error:
            if hop not in self._refused:
                log.warning("underlay next_hop=%s: %s", hop[1], error)
            self._refused.add(hop)

    def _resized(self, routes: dict[str, Hop], links: Iterable[Link], uplinks: Iterable[str]) -> bool:
        """Whether a device that leads to other hosts has another MTU than flows were decided by."""
        devices = {link.ifindex: link for link in links}
        mtus = {link.name: link.mtu for link in devices.values() if link.name in uplinks}
        mtus |= {remote: devices[ifindex].mtu for remote, (ifindex, _) in routes.items() if ifindex in devices}
        if self._mtus is None:  # an agent before this one may have seen another
            found = self._datapath.path_mtus()
            resized = any(ifindex in devices and devices[ifindex].mtu != mtu for ifindex, mtu in found)
        else:
            resized = any(mtus.get(way, mtu) != mtu for way, mtu in self._mtus.items())
        self._mtus = (self._mtus or {}) | mtus
        return resized

    def forget(self, *, redecide: bool) -> None:
        """Have each path's next packet ask the FIB again; ``redecide``: and every flow be decided by its answer."""
        number = self._datapath.forget_next_hops(redecide=redecide)
        log.info("underlay next hops changed adjacencies=%d redecide=%s", number, redecide)

    @property
    def next_hops(self) -> dict[str, str]:
        """The MACs of those tunnel endpoints that are on the link, behind no gateway."""
        own = ((remote, hop) for remote, hop in self._routes.items() if hop[1] == remote)
        return {remote: self._macs[hop] for remote, hop in own if hop in self._macs}

    @property
    def unresolved(self) -> list[str]:
        """Next hops that do not answer."""
        return sorted(address for (_, address), mac in self._hops.items() if mac is None)


def own_vteps(netlink: Netlink, uplinks: Iterable[str], configured: tuple[str, ...]) -> tuple[str, ...]:
    """A host's tunnel endpoints: as configured, else the first global address of each IP version on the uplinks."""
    if configured:
        return configured
    found: dict[int, str] = {}
    for uplink in uplinks:
        link = netlink.link(uplink)
        for entry in netlink.addresses(link.ifindex) if link else ():
            address = ipaddress.ip_address(entry.address)
            if not address.is_link_local:
                found.setdefault(address.version, entry.address)
    return tuple(found[version] for version in sorted(found))


def remote_vteps(datapath: Datapath) -> set[str]:
    """Addresses of the tunnel endpoints that the tables name."""
    found = set()
    for key in datapath.actual.get("hr_vteps", {}):
        if isinstance(key, abi.VtepKey) and key.addr[:10] != BY_MAC:
            address = ipaddress.IPv6Address(key.addr)
            found.add(str(address.ipv4_mapped or address))
    return found
