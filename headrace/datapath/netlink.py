"""Devices, addresses, neighbours and routes of this network namespace, typed.

``Netlink`` asks and sets at once, from any thread or event loop; ``Netlink.watch()`` announces
changes to a loop. Sources: rtnetlink(7), ``linux/rtnetlink.h``, ``linux/neighbour.h``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
from pyroute2.ethtool.ioctl import EthtoolError, IoctlEthtool
from pyroute2.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, rtnl
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from headrace.datapath.binding import Refused
from headrace.datapath.rtnetlink import LARGEST_DATAGRAM, RouteSocket
from headrace.errors import NotFound, NotSupported

IFF_UP = 0x1
IFF_NOARP = 0x80
IFF_PROMISC = 0x100
IFF_LOWER_UP = 0x10000
IFA_F_UNUSABLE = 0x08 | 0x40  # failed duplicate address detection, or still in it
NUD_NOARP, NUD_PERMANENT = 0x40, 0x80
NUD_VALID = 0x02 | 0x04 | 0x08 | 0x10 | NUD_NOARP | NUD_PERMANENT
NTF_EXT_MANAGED = 0x1
RTN_LOCAL = 2
RTEXT_FILTER_SKIP_STATS = 1 << 3
PAIRED = {"veth", "netkit"}
BOND_MODES = (
    *("balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad", "balance-tlb", "balance-alb"),
    "unknown",
)
"""By number (``linux/if_bonding.h``)."""
WATCHED = (
    rtnl.RTMGRP_LINK
    | rtnl.RTMGRP_NEIGH
    | rtnl.RTMGRP_IPV4_IFADDR
    | rtnl.RTMGRP_IPV4_ROUTE
    | rtnl.RTMGRP_IPV6_IFADDR
    | rtnl.RTMGRP_IPV6_ROUTE
)


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """Something the kernel says."""

    ifindex: int


class Link(Fact, frozen=True, kw_only=True):
    """A device. ``kind`` is empty for hardware; ``peer`` may be in the namespace ``peer_nsid``; ``queues`` receive.

    ``promiscuous``: somebody had it set so (as opposed to those who listen for a while).
    """

    name: str
    kind: str
    mac: str
    mtu: int
    up: bool
    carrier: bool
    master: int | None
    lower: int | None
    peer: int | None
    peer_nsid: int | None
    queues: int = 1
    bond_mode: str = ""
    vlan: int | None = None
    promiscuous: bool = False


class Address(Fact, frozen=True, kw_only=True):
    """An IP address of a device; not ``usable`` during or after failed duplicate address detection."""

    address: str
    prefix: int
    usable: bool


class Neighbour(Fact, frozen=True, kw_only=True):
    """What the kernel knows of an IP neighbour; ``mac`` only while it is valid; ``fixed``: an operator said so."""

    address: str
    mac: str | None
    managed: bool
    fixed: bool = False


class Route(Fact, frozen=True, kw_only=True):
    """How the kernel would send to an address."""

    gateway: str | None
    source: str | None
    mtu: int | None
    local: bool


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """``fact`` is new, changed or ``gone``. Kind "lost": announcements were missed, read everything again."""

    kind: Literal["link", "address", "neighbour", "route", "lost"]
    gone: bool = False
    fact: Fact | None = None


class Netlink:
    """Bound to the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._socket = RouteSocket()
        self._ethtool: Any = IoctlEthtool()

    def close(self) -> None:
        """Close the sockets."""
        self._socket.close()
        self._ethtool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def links(self) -> list[Link]:
        """All devices."""
        return [_link(found) for found in self._socket.dump(rtnl.RTM_GETLINK, _ask_link(), "list devices")]

    def link(self, device: str | int) -> Link | None:
        """The device of that name or index."""
        ask = _ask_link()
        if isinstance(device, int):
            ask["index"] = device
        else:
            ask["attrs"].append(("IFLA_IFNAME", device))
        found = _or_none(errno.ENODEV, self._socket.get, rtnl.RTM_GETLINK, ask, f"device {device}")
        return None if found is None else _link(found)

    def set_link(
        self,
        ifindex: int,
        *,
        up: bool | None = None,
        mtu: int | None = None,
        promiscuous: bool | None = None,
        arp: bool | None = None,
    ) -> None:
        """Change a device."""
        ask: Any = ifinfmsg()
        ask["index"] = ifindex
        bits = [(IFF_UP, up), (IFF_PROMISC, promiscuous), (IFF_NOARP, None if arp is None else not arp)]
        ask["change"] = sum(bit for bit, on in bits if on is not None)
        ask["flags"] = sum(bit for bit, on in bits if on)
        if mtu is not None:
            ask["attrs"] = [("IFLA_MTU", mtu)]
        what = f"set device {ifindex} up={up} mtu={mtu} promiscuous={promiscuous} arp={arp}"
        self._socket.change(rtnl.RTM_NEWLINK, ask, 0, what)

    def make_pair(self, name: str, peer: str, *, mtu: int) -> None:
        """Make a veth with both ends here, down. Raises Refused where a device has one of these names."""
        other = [("IFLA_IFNAME", peer), ("IFLA_MTU", mtu)]
        pair = {"attrs": [("VETH_INFO_PEER", {"attrs": other})]}
        kind = {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", pair)]}
        ask: Any = ifinfmsg()
        ask["attrs"] = [("IFLA_IFNAME", name), ("IFLA_MTU", mtu), ("IFLA_LINKINFO", kind)]
        self._socket.change(rtnl.RTM_NEWLINK, ask, NLM_F_CREATE | NLM_F_EXCL, f"make devices {name} and {peer}")

    def delete_link(self, ifindex: int) -> None:
        """Remove a device, of a veth both ends; nothing where it has gone."""
        ask: Any = ifinfmsg()
        ask["index"] = ifindex
        what = f"remove device {ifindex}"
        _or_none(errno.ENODEV, self._socket.change, rtnl.RTM_DELLINK, ask, 0, what)

    def addresses(self, ifindex: int | None = None) -> list[Address]:
        """Addresses of a device, or all."""
        ask: Any = ifaddrmsg()
        ask["index"] = ifindex or 0
        found = _or_none(errno.ENODEV, self._socket.dump, rtnl.RTM_GETADDR, ask, f"addresses of device {ifindex}")
        return [_address(each) for each in found or []]

    def neighbours(self, ifindex: int | None = None) -> list[Neighbour]:
        """IP neighbours of a device, or all."""
        ask: Any = ndmsg()
        if ifindex is not None:
            ask["attrs"] = [("NDA_IFINDEX", ifindex)]
        found = _or_none(errno.ENODEV, self._socket.dump, rtnl.RTM_GETNEIGH, ask, f"neighbours of device {ifindex}")
        return [_neighbour(each) for each in found or [] if each["family"] in {socket.AF_INET, socket.AF_INET6}]

    def ensure_managed_neighbour(self, ifindex: int, address: str) -> None:
        """Have the kernel resolve a neighbour now and keep it fresh, until released (Linux 5.16)."""
        ask = _ask_neighbour(ifindex, address)
        ask["attrs"].append(("NDA_FLAGS_EXT", NTF_EXT_MANAGED))
        what = f"keep neighbour {address} of device {ifindex} fresh"
        self._socket.change(rtnl.RTM_NEWNEIGH, ask, NLM_F_CREATE | NLM_F_REPLACE, what)

    def release_neighbour(self, ifindex: int, address: str) -> None:
        """Forget a neighbour."""
        ask, what = _ask_neighbour(ifindex, address), f"forget neighbour {address} of device {ifindex}"
        _or_none(errno.ENOENT, self._socket.change, rtnl.RTM_DELNEIGH, ask, 0, what)

    def route(self, address: str, *, mark: int = 0) -> Route | None:
        """How a packet to ``address`` leaves; nothing when it is unreachable."""
        target = ipaddress.ip_address(address)
        ask: Any = rtmsg()
        ask["family"] = _family(address)
        ask["dst_len"] = target.max_prefixlen
        ask["attrs"] = [("RTA_DST", address)]
        if mark:
            ask["attrs"].append(("RTA_MARK", mark))
        try:
            found = self._socket.get(rtnl.RTM_GETROUTE, ask, f"route to {address}")
        except Refused as error:
            if error.errno in {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL}:
                return None
            raise
        return _route(found)

    def features(self, device: str) -> dict[str, bool]:
        """Offloads of a device as the kernel names them (``ethtool -k``): ``tx-tcp-segmentation``, ``rx-gro`` ..."""
        return {name: bool(on) for name, on, *_ in self._features(device) if name}

    def set_features(self, device: str, wanted: Mapping[str, bool]) -> None:
        """Switch offloads; raises when the device keeps one as it was."""
        known = self._features(device)
        names = {name for name, *_ in known}
        if strange := sorted(set(wanted) - names):
            message = f"device {device} has no feature {', '.join(strange)}; see ethtool -k {device}"
            raise NotSupported(message)
        for name, on in wanted.items():
            known[name] = on
        with contextlib.suppress(EthtoolError):  # "not all of it": we look ourselves which
            self._ethtool.set_features(known)
        now = self.features(device)
        if refused := sorted(name for name, on in wanted.items() if now[name] != on):
            message = f"device {device} does not let us change {', '.join(refused)}"
            raise NotSupported(message)

    def _features(self, device: str) -> Any:
        try:
            self._ethtool.change_ifname(device)
            return self._ethtool.get_features()
        except (EthtoolError, OSError) as error:
            message = f"device {device} does not tell its features: {error!r}"
            raise NotFound(message) from error

    @staticmethod
    def sysctl(name: str) -> str:
        """Value of e.g. ``net.ipv4.fib_multipath_hash_policy`` in the calling thread's namespace."""
        path = Path("/proc/sys", name if "/" in name else name.replace(".", "/"))
        try:
            return path.read_text().strip()
        except FileNotFoundError as error:
            message = f"this kernel has no sysctl {name}"
            raise NotSupported(message) from error

    @staticmethod
    def watch() -> Watch:
        """Listen from now on; read the state after this call and nothing is missed."""
        return Watch()


class Watch:
    """Announcements, as an asynchronous iterator without end."""

    def __init__(self) -> None:
        self._socket = RouteSocket(WATCHED)
        self._ready: deque[Event] = deque()

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._ready:
            try:
                datagram = await asyncio.get_running_loop().sock_recv(self._socket.socket, LARGEST_DATAGRAM)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                return Event(kind="lost")
            self._ready.extend(event for message in self._socket.parse(datagram) if (event := _event(message)))
        return self._ready.popleft()


def _event(message: Any) -> Event | None:
    match message["header"]["type"]:
        case rtnl.RTM_NEWLINK | rtnl.RTM_DELLINK as kind:
            if message["family"] != socket.AF_UNSPEC:  # a bridge's word on its port, not the device's own
                return None
            return Event(kind="link", gone=kind == rtnl.RTM_DELLINK, fact=_link(message))
        case rtnl.RTM_NEWADDR | rtnl.RTM_DELADDR as kind:
            return Event(kind="address", gone=kind == rtnl.RTM_DELADDR, fact=_address(message))
        case rtnl.RTM_NEWNEIGH | rtnl.RTM_DELNEIGH as kind:
            if message["family"] not in {socket.AF_INET, socket.AF_INET6}:
                return None
            return Event(kind="neighbour", gone=kind == rtnl.RTM_DELNEIGH, fact=_neighbour(message))
        case rtnl.RTM_NEWROUTE | rtnl.RTM_DELROUTE as kind:
            return Event(kind="route", gone=kind == rtnl.RTM_DELROUTE, fact=_route(message))
        case _:
            return None


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    kind = str(info.get_attr("IFLA_INFO_KIND") or "") if info else ""
    facts: Any = info.get_attr("IFLA_INFO_DATA") if info else None
    other = message.get_attr("IFLA_LINK") or None
    return Link(
        ifindex=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        kind=kind,
        mac=message.get_attr("IFLA_ADDRESS") or "",
        mtu=message.get_attr("IFLA_MTU") or 0,
        up=bool(message["flags"] & IFF_UP),
        carrier=bool(message["flags"] & IFF_LOWER_UP),
        master=message.get_attr("IFLA_MASTER") or None,
        lower=None if kind in PAIRED else other,
        peer=other if kind in PAIRED else None,
        peer_nsid=message.get_attr("IFLA_LINK_NETNSID") if kind in PAIRED else None,
        queues=message.get_attr("IFLA_NUM_RX_QUEUES") or 1,
        bond_mode=BOND_MODES[facts.get_attr("IFLA_BOND_MODE")] if kind == "bond" else "",
        vlan=facts.get_attr("IFLA_VLAN_ID") if kind == "vlan" else None,
        promiscuous=bool(message["flags"] & IFF_PROMISC),
    )


def _address(message: Any) -> Address:
    flags = message.get_attr("IFA_FLAGS") or message["flags"]
    return Address(
        ifindex=message["index"],
        address=message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"),
        prefix=message["prefixlen"],
        usable=not flags & IFA_F_UNUSABLE,
    )


def _neighbour(message: Any) -> Neighbour:
    return Neighbour(
        ifindex=message["ifindex"],
        address=message.get_attr("NDA_DST"),
        mac=message.get_attr("NDA_LLADDR") if message["state"] & NUD_VALID else None,
        managed=bool((message.get_attr("NDA_FLAGS_EXT") or 0) & NTF_EXT_MANAGED),
        fixed=bool(message["state"] & (NUD_NOARP | NUD_PERMANENT)),
    )


def _route(message: Any) -> Route:
    via = message.get_attr("RTA_VIA")
    metrics = message.get_attr("RTA_METRICS")
    return Route(
        ifindex=message.get_attr("RTA_OIF") or 0,
        gateway=message.get_attr("RTA_GATEWAY") or (via["addr"] if via else None),
        source=message.get_attr("RTA_PREFSRC"),
        mtu=metrics.get_attr("RTAX_MTU") if metrics else None,
        local=message["type"] == RTN_LOCAL,
    )


def _ask_link() -> Any:
    ask: Any = ifinfmsg()
    ask["attrs"] = [("IFLA_EXT_MASK", RTEXT_FILTER_SKIP_STATS)]
    return ask


def _ask_neighbour(ifindex: int, address: str) -> Any:
    ask: Any = ndmsg()
    ask["family"] = _family(address)
    ask["ifindex"] = ifindex
    ask["attrs"] = [("NDA_DST", address)]
    return ask


def _family(address: str) -> int:
    return socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET


def _or_none(number: int, call: Any, *arguments: Any) -> Any:
    """Answer of ``call``, or nothing when the kernel refuses it with that error number."""
    try:
        return call(*arguments)
    except Refused as error:
        if error.errno == number:
            return None
        raise
