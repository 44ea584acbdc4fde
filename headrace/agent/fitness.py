"""May the datapath sit on XDP of a port's device? Only where the workload sends whole checksums and no super-packets.

XDP sees neither, so what it redirected would arrive broken. Where this cannot be told, the answer is no.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from pyroute2.netlink import rtnl
from pyroute2.netlink.rtnl.nsidmsg import nsidmsg

from headrace.datapath.netlink import Link, Netlink
from headrace.datapath.rtnetlink import RouteSocket
from headrace.errors import HeadraceError

CLONE_NEWNET = 0x40000000
IFF_VNET_HDR = 0x4000
"""linux/if_tun.h: frames on the tap come with a virtio header, so they may lack checksums or be super-packets."""

MERGES = "rx-gro"
"""A veth takes XDP frames only while its other end polls (drivers/net/veth.c), which this makes it do."""

UNFIT_FEATURES = ("tx-checksum-ip-generic", "tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-generic-segmentation")


def unfit(link: Link) -> str | None:
    """Why a port's device must stay on tc; None: XDP may have it."""
    if link.kind == "tun":
        return unfit_tap(link.name)
    if link.kind == "veth":
        return unfit_veth(link, UNFIT_FEATURES)
    return None  # a NIC's function or representor: the wire carries whole frames


def unfit_uplink(link: Link) -> str | None:
    """Why an uplink cannot take frames from XDP; None: it can, if its driver takes our program."""
    return unfit_veth(link, ()) if link.kind == "veth" else None


def unfit_tap(name: str) -> str | None:
    """A tap, by the flags that the driver shows in sysfs."""
    try:
        flags = int(Path(f"/sys/class/net/{name}/tun_flags").read_text(), 16)
    except (OSError, ValueError):
        return f"device {name}: its tun_flags cannot be read, so XDP might see frames without checksums"
    if flags & IFF_VNET_HDR:
        return f"device {name} has vnet_hdr, so the guest may send super-packets; make the tap without it for XDP"
    return None


def unfit_veth(link: Link, unwanted: Sequence[str]) -> str | None:
    """A veth, by the offloads of its peer, in whatever network namespace that is."""
    if link.peer_nsid is None:
        return faults(link, features_of(None, link.peer or 0), unwanted)
    for path in namespaces():
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if nsid(fd) == link.peer_nsid:
                return faults(link, features_of(fd, link.peer or 0), unwanted)
        except (OSError, HeadraceError) as error:
            return f"device {link.name}: the offloads of its peer cannot be read ({error}), so it stays on tc"
        finally:
            os.close(fd)
    return f"device {link.name}: the namespace of its peer is not found, so XDP might see frames without checksums"


def namespaces() -> Iterator[Path]:
    """Network namespaces that have a name or a process, each once."""
    seen: set[int] = set()
    for path in (*Path("/run/netns").glob("*"), *Path("/proc").glob("[0-9]*/ns/net")):
        try:
            inode = path.stat().st_ino
        except OSError:
            continue
        if inode not in seen:
            seen.add(inode)
            yield path


def nsid(fd: int) -> int | None:
    """The number under which this namespace knows another one (RTM_GETNSID); None: it has none."""
    ask = nsidmsg()
    ask["attrs"] = [("NETNSA_FD", fd)]
    with RouteSocket() as route:
        answer = route.get(rtnl.RTM_GETNSID, ask, "number of a network namespace")
    number = answer.get_attr("NETNSA_NSID")
    return None if number in {None, 0xFFFFFFFF} else int(number)


def faults(link: Link, features: dict[str, bool], unwanted: Sequence[str]) -> str | None:
    """What of a veth's peer is not as XDP wants it."""
    wrong = [f"{name} on" for name in unwanted if features.get(name)]
    if not features.get(MERGES):
        wrong.append(f"{MERGES} off")
    if not wrong:
        return None
    return f"device {link.name}: its peer has {', '.join(wrong)}; XDP wants the opposite (ethtool -K)"


def features_of(fd: int | None, ifindex: int) -> dict[str, bool]:
    """Offloads of a device in another namespace, or in this one."""
    found: dict[str, bool] = {}
    failed: list[Exception] = []

    def look() -> None:  # in a thread of its own, which alone changes namespace
        try:
            if fd is not None and ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            with Netlink() as netlink:
                device = netlink.link(ifindex)
                if device:
                    found.update(netlink.features(device.name))
        except Exception as error:  # noqa: BLE001 - raised again by the caller's thread
            failed.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found
