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
from headrace.datapath.netlink import Neighbour, Netlink
from headrace.errors import HeadraceError

log = logging.getLogger(__name__)

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

    def prepare(self) -> None:
        """Let the datapath ask the FIB as the host: bpf_fib_lookup wants forwarding on the device it asks for."""
        for family in ("ipv4", "ipv6"):
            path = Path(f"/proc/sys/net/{family}/conf/lo/forwarding")
            if path.exists():
                path.write_text("1\n")

    def vteps(self, uplinks: Iterable[str], configured: tuple[str, ...]) -> tuple[str, ...]:
        """Own tunnel endpoints."""
        return own_vteps(self._netlink, uplinks, configured)

    def follow(self, remotes: Iterable[str]) -> None:
        """Keep next hops towards other hosts' tunnel endpoints resolved; forget adjacencies whose next hop changed."""
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
        if changed or any(self._routes.get(remote, hop) != hop for remote, hop in routes.items()):
            self.forget()
        self._hops, self._routes = current, routes

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

    def forget(self) -> None:
        """Have the next packet of each path ask the FIB again."""
        table = self._datapath.maps["hr_adjacencies"]
        for key, entry in self._datapath.actual["hr_adjacencies"].items():
            table.update(key.pack(), entry.pack())
        log.info("underlay next hops changed adjacencies=%d", len(self._datapath.actual["hr_adjacencies"]))

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
        if isinstance(key, abi.VtepKey):
            address = ipaddress.IPv6Address(key.addr)
            found.add(str(address.ipv4_mapped or address))
    return found
