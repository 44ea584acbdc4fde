"""The seam: a veth of the host's own, on whose way the kernel cuts what it could not cut behind our outer headers.

The datapath redirects a super-packet, or a frame with a checksum left to the device, into the near end; for that has
every offload off, the kernel cuts it and completes its checksums. At the far end hr_from_seam takes each frame, puts
its outer headers on and sends it to the underlay. Neither end has an address, and no other traffic passes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from headrace.datapath.netlink import Link, Netlink
from headrace.errors import HeadraceError, NotSupported

log = logging.getLogger(__name__)

NEAR, FAR = "hr-seam0", "hr-seam1"
MTU = 65535
"""As long as a frame can be: no network's packets are longer."""
RECEIVES = "rx-gro"
"""It would make super-packets of what was cut."""
BACKLOG = 16384
"""Segments that a CPU must keep for the far end (``netdev_max_backlog``): more than a socket's window at one stroke.

Linux keeps 1,000 by default, some 20 super-packets; the agent gives it more, and never less.
"""
BACKLOG_FILE = Path("/proc/sys/net/core/netdev_max_backlog")
"""The host's, for all its devices; other network namespaces do not have it."""
OWN_STACK = "/proc/sys/net/ipv6/conf/{}/disable_ipv6"


class Ends(NamedTuple):
    """The devices."""

    near: Link
    far: Link


class Fault(NamedTuple):
    """What of a device is not as it should be."""

    device: str
    what: str
    found: str
    wanted: str


class Seam:
    """Makes the seam, and keeps it as it must be."""

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink
        self._sound: tuple[int, int] | None = None
        self._said = ""

    def forget(self) -> None:
        """Have the next pass look at everything again."""
        self._sound = None

    def ends(self, links: Mapping[str, Link]) -> Ends | None:
        """Both ends, made or mended where they have to be; None where the host cannot have them; it is logged once."""
        try:
            found = ends_of(links)
            if found is None:
                found = make(self._netlink, links)
                log.info("seam made near=%s ifindex=%d far=%s", NEAR, found.near.ifindex, FAR)
            if self._sound != (found.near.ifindex, found.far.ifindex):
                settle(self._netlink, found)
                make_room()
                self._sound = found.near.ifindex, found.far.ifindex
        except (HeadraceError, OSError) as error:
            if self._said != str(error):
                log.warning("no seam: %s; super-packets that only it could cut are dropped", error)
            self._said = str(error)
            return None
        self._said = ""
        return found


def ends_of(links: Mapping[str, Link]) -> Ends | None:
    """The seam among all devices, if it is there whole."""
    near, far = links.get(NEAR), links.get(FAR)
    if near is None or far is None or near.peer_nsid is not None or near.peer != far.ifindex or near.kind != "veth":
        return None
    return Ends(near, far)


def make(netlink: Netlink, links: Mapping[str, Link]) -> Ends:
    """A new pair, still down. Raises NotSupported where somebody else's device has its name."""
    for name in (NEAR, FAR):
        if name in links and links[name].kind != "veth":
            raise NotSupported(f"device {name} is not ours; give it another name")
        if (left := netlink.link(name)) is not None:
            netlink.delete_link(left.ifindex)
    netlink.make_pair(NEAR, FAR, mtu=MTU)
    near, far = netlink.link(NEAR), netlink.link(FAR)
    if near is None or far is None:
        raise NotSupported(f"device {NEAR} went as soon as it was made")
    return Ends(near, far)


def settle(netlink: Netlink, ends: Ends) -> None:
    """Every offload off, no protocol of the host's stack on it, and up."""
    for link in ends:
        own = Path(OWN_STACK.format(link.name))
        if own.exists():
            own.write_text("1\n")
        netlink.set_features(link.name, dict.fromkeys(offloads(netlink, link.name), False))
    for link in ends:
        netlink.set_link(link.ifindex, up=True, mtu=MTU, arp=False)


def make_room(file: Path = BACKLOG_FILE, least: int = BACKLOG) -> None:
    """See that CPUs keep enough segments; a host that does not let us goes on with what it keeps."""
    try:
        if (kept := int(file.read_text())) < least:
            file.write_text(f"{least}\n")
            log.info("a CPU keeps %d frames for a veth's other end, not %d (net.core.netdev_max_backlog)", least, kept)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        log.warning("net.core.netdev_max_backlog stays as it is: %s; long bursts may lose segments in the seam", error)


def offloads(netlink: Netlink, device: str) -> list[str]:
    """What a device has on that would leave cutting or checksums to whoever comes next, or undo them."""
    return [name for name, on in netlink.features(device).items() if on and _leaves_work(name)]


def faults(netlink: Netlink, ends: Ends) -> Iterator[Fault]:
    """What somebody has changed."""
    for link in ends:
        if not link.up:
            yield Fault(link.name, "link", "down", "up")
        if link.mtu != MTU:
            yield Fault(link.name, "mtu", str(link.mtu), str(MTU))
        for name in offloads(netlink, link.name):
            yield Fault(link.name, name, "on", "off")
        own = Path(OWN_STACK.format(link.name))
        if own.exists() and own.read_text().strip() != "1":
            yield Fault(link.name, "disable_ipv6", own.read_text().strip(), "1")


def remove(netlink: Netlink, links: Mapping[str, Link]) -> bool:
    """Take it away; false where there is none."""
    found = ends_of(links)
    if found is None:
        return False
    netlink.delete_link(found.near.ifindex)
    return True


def _leaves_work(feature: str) -> bool:
    sends = feature.startswith("tx-") and ("segmentation" in feature or "checksum" in feature)
    return sends or feature in {RECEIVES, "tx-gso-list"}
