"""Where a PacketHost stands: a network namespace with devices for ports, an uplink, and an underlay that resolves.

A test run redirects nothing, but copies of a flooded frame do leave by these devices, and are read at their other ends.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from headrace.testing.topology import Topology

DEVICES = tuple(f"port{number}" for number in range(9))
"""Devices for ports; STRANGER belongs to none."""
STRANGER, UPLINK = "stranger", "uplink"
WIRES = ("wire1", "wire2")
"""Devices that lead to physical networks."""
WIDE = 9216
"""MTU of the other devices: so that copies of what is too big come through."""
NETWORKS = ("192.0.2.254/24", "2001:db8::ffff/64")
"""Our addresses on the underlay."""
ETH_P_ALL = 3
SOL_PACKET, PACKET_AUXDATA, TP_STATUS_VLAN_VALID = 263, 8, 1 << 4
AUXDATA = struct.Struct("=I12xHH")
"""``struct tpacket_auxdata`` of ``linux/if_packet.h``: status, VLAN TCI and TPID."""
SENTINEL = b"\x02\xff\xff\xff\xff\xff" * 2 + b"\x88\xb5" + bytes(46)
PATIENCE = 5
"""Seconds until a sentinel must have come through."""


class Stand:
    """Owns the namespace. The thread that enters stays on one CPU, whose scratch, conclusions and backlog it reads."""

    mtu = 1500
    """Of the uplink."""
    wire_mtu = 1500
    """Of the devices that lead to physical networks."""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as guard:
            self._topology = guard.enter_context(Topology())
            self.directory: Path = self._topology.directory
            self._make_devices()
            allowed = os.sched_getaffinity(0)
            self.cpu = min(allowed)
            os.sched_setaffinity(0, {self.cpu})
            guard.callback(os.sched_setaffinity, 0, allowed)
            self._exit = guard.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._exit.close()

    def bpffs(self) -> Path:
        """A BPF file system of our own."""
        return self._topology.bpffs()

    def inside(self) -> contextlib.AbstractContextManager[object]:
        """Put the thread into the namespace: test runs look there for devices and routes."""
        return self._host.enter()

    def resolve(self, addresses: Iterable[str]) -> None:
        """Give what is on the underlay a neighbour entry."""
        near = [ipaddress.ip_interface(text).network for text in NETWORKS]
        for text in addresses:
            mac = underlay_mac(text)
            if self.macs.get(text) != mac and any(ipaddress.ip_address(text) in network for network in near):
                self.neighbour(text, mac)

    def neighbour(self, address: str, mac: str | None) -> None:
        """Resolve an address of the underlay, or with None forget it."""
        verb = f"replace {address} lladdr {mac} nud permanent" if mac else f"delete {address}"
        self._host.run(f"ip neighbour {verb} dev {UPLINK}")
        self.macs[address] = mac

    def narrow(self, mtu: int) -> None:
        """Give the uplink an MTU, at least 1280: a device below has no IPv6."""
        if mtu != self.mtu:
            self._host.run(f"ip link set {UPLINK} mtu {mtu}")
            self.mtu = mtu

    def copies(self) -> Iterator[tuple[str, bytes]]:
        """(device, frame) of what left since; a sentinel sent after them says when all have arrived."""
        for name, far in self._far.items():
            self._near.sendto(SENTINEL, (name, ETH_P_ALL))
            while (frame := hear(far)) != SENTINEL:
                yield name, frame

    def _make_devices(self) -> None:
        self.macs: dict[str, str | None] = {}
        host = self._host = self._topology.host("host")
        host.sysctl("net.ipv6.conf.default.disable_ipv6", 1)  # the kernel shall say nothing by itself
        names = (*DEVICES, STRANGER, UPLINK, *WIRES)
        wide = {name: "" if name in {UPLINK, *WIRES} else f"mtu {WIDE}" for name in names}
        lines = [f"link add {name} {wide[name]} type veth peer name far-{name} {wide[name]}" for name in names]
        lines += [f"link set {end}{name} up arp off addrgenmode none" for name in names for end in ("", "far-")]
        host.run("ip -batch -", stdin="\n".join(lines))
        host.sysctl(f"net.ipv6.conf.{UPLINK}.disable_ipv6", 0)
        host.run("ip -batch -", stdin="\n".join(f"address add {address} dev {UPLINK}" for address in NETWORKS))
        for family in ("ipv4", "ipv6"):  # the walk asks the FIB as for a packet of the host's own
            host.sysctl(f"net.{family}.conf.lo.forwarding", 1)
        with host.enter():
            self.own_mac = host.mac(UPLINK)
            self.wire_macs = {name: host.mac(name) for name in WIRES}
            self.index = {name: socket.if_nametoindex(name) for name in names}
            self._far = {name: self._socket(f"far-{name}") for name in names if name != STRANGER}
            self._near = self._socket()

    def _socket(self, device: str = "") -> socket.socket:
        """Hears what arrives at a device; without one it only speaks."""
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._topology.on_exit(opened.close)
        if device:
            opened.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
            opened.bind((device, ETH_P_ALL))
            opened.settimeout(PATIENCE)
        return opened


def hear(far: socket.socket) -> bytes:
    """A frame with the tag in it that the kernel has taken off."""
    frame, beside, *_ = far.recvmsg(1 << 16, socket.CMSG_SPACE(AUXDATA.size))
    for level, kind, data in beside:
        if (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
            status, tci, protocol = AUXDATA.unpack(data[: AUXDATA.size])
            if status & TP_STATUS_VLAN_VALID:
                return frame[:12] + struct.pack("!HH", protocol, tci) + frame[12:]
    return frame


def underlay_mac(address: str) -> str:
    """The MAC that an address of the underlay has here."""
    octets = ipaddress.ip_address(address).packed
    return (bytes([2, len(octets)]) + octets[-4:]).hex(":")
