"""One host of Headrace beside parties not written here, on an underlay of jumbo frames.

    with Topology() as topology, Meeting(topology) as meeting, Scene(meeting) as scene:
        party = OvsParty(meeting)
        a = party.meet(scene, Segment(type="gre", id=17), 4)
        assert ping(a, party.address(4))

A party's workload has the MAC and the addresses of the scene's port 2, with no port security: what it asks for by ARP
and ND, and what is asked of it, goes over the wire.
"""

from __future__ import annotations

import socket
import struct
import threading

from msgspec.structs import replace

from headrace.model import Host, Segment
from headrace.testing.cloud import Cloud, Workload, unfiltered
from headrace.testing.scene import Scene
from headrace.testing.topology import Namespace, Topology, run
from headrace.testing.traffic import Place, ping, tcp_pair
from headrace.testing.wait import wait_until
from headrace.testing.world import ANY, port

MTU = 9000
OFFLOADS = "ethtool -K {} tx off tso off gso off"
"""Checksums are whole, and no super-packet leaves: so it is on a cable."""
UPLINK, PHYSICAL = "uplink", "physnet1"
AMOUNT = 500_000
RCV_MSS = 20
"""Where linux/tcp.h's struct tcp_info has the size of segments received."""
ICMP = {4: 20 + 8, 6: 40 + 8}
"""Headers of an echo."""
LOSSES = {"INTERNAL", "NESTED_SUPERPACKET"}
IP_AND_TCP = {4: 20 + 32, 6: 40 + 32}
"""Headers of a segment with timestamps."""


class Meeting(Cloud):
    """A cloud of one host, ``h1``, whose uplink leads to a physical network too.

    The uplink is a bridge over a veth without offloads, not a veth: to the agent it is a NIC, so super-packets leave
    with the marks by which the kernel cuts them for every wire, and the veth takes none whole.
    """

    def __init__(self, topology: Topology) -> None:
        settings = f'physical_networks = {{ {PHYSICAL} = "{UPLINK}" }}'
        super().__init__(topology, ("h1",), mtu=MTU, settings=settings)

    @property
    def h1(self) -> Namespace:
        """The host's namespace."""
        return self.hosts["h1"].namespace

    def join(self, namespace: Namespace, device: str, number: int) -> None:
        """Connect the host by its NIC."""
        unfiltered(namespace)
        self.attach(namespace, "nic")
        lines = [f"link add {device} mtu {self.mtu} type bridge mcast_snooping 0", f"link set nic master {device}"]
        lines += [f"address add {address} dev {device}" for address in self.underlay(number)]
        run(["ip", "-n", namespace.name, "-batch", "-"], stdin="\n".join([*lines, f"link set {device} up"]))

    def attach(self, namespace: Namespace, device: str) -> None:
        """Make a device without offloads that leads to the underlay."""
        super().attach(namespace, device)
        namespace.run(OFFLOADS.format(device))
        self.fabric.run(OFFLOADS.format(namespace.host))
        run(["ip", "-n", namespace.name, "link", "set", device, "up"])


class Party:
    """Somebody else's tunnel endpoints, and the workload behind them: ``far``, by its device ``eth0``."""

    def __init__(self, meeting: Meeting, name: str, number: int) -> None:
        self.meeting = meeting
        self.name = name
        self.namespace = meeting.topology.host(name)
        self.far = self.namespace
        self.vteps = {4: f"192.0.2.{number}", 6: f"2001:db8::{number:x}"}

    def host(self, version: int) -> Host:
        """The party as a host that is reached over an underlay of this IP version."""
        return Host(id=f"{self.name}{version}", vteps=(self.vteps[version],))

    def meet(self, scene: Scene, segment: Segment, version: int, *, spare: int = 0) -> Workload:
        """Our workload ``a`` on a network of this segment, which the party now carries too.

        ``spare``: octets of the underlay's MTU that the network leaves for what the party adds beyond us.
        """
        mtu = MTU - segment.overhead(version) - spare
        scene.network = replace(scene.network, segment=segment, mtu=mtu)
        host = self.host(version)
        scene.put(
            host,
            scene.group("g", *ANY),
            scene.port("a", 1, "g"),
            scene.port("b", 2, host=host.id, port_security=False),
        )
        self.carry(segment, version, mtu)
        return scene["a"]

    def address(self, family: int) -> str:
        """The workload's address."""
        return port("b", "", 2).addresses[0 if family == 4 else 1]

    def check_nothing_lost(self, a: Workload) -> None:
        """Raise where our workload sent what could not be cut or encapsulated (TCP would hide it)."""
        lost = {
            reason: count for reason, count in self.meeting.hosts["h1"].reasons(a.port.id).items() if reason in LOSSES
        }
        if lost:
            raise AssertionError(f"lost on their way out: {lost}")

    def carry(self, segment: Segment, version: int, mtu: int) -> None:
        """Connect the party's workload to a segment, and to no other."""
        raise NotImplementedError


def agree(a: Workload, party: Party, mtu: int) -> None:
    """Echoes and TCP segments of full size, opened from either end, in both families; raises when any is missing."""
    for family in (4, 6):
        here, there, size = a.address(family), party.address(family), mtu - ICMP[family]
        wait_until(lambda to=there, size=size: ping(a, to, size=size), what=f"{there} answers")  # type: ignore[misc]
        if not ping(party.far, here, size=size):
            raise AssertionError(f"{here} does not answer")
        full = mtu - IP_AND_TCP[family]
        for client, server, address in ((a, party.far, there), (party.far, a, here)):
            found = segment_sizes(client, server, address, 80)
            if found != (full, full):
                raise AssertionError(f"segments to {address} and back have {found} octets, not {full}")
    party.check_nothing_lost(a)


def segment_sizes(client: Place, server: Place, address: str, number: int) -> tuple[int, int]:
    """Move some over a TCP connection both ways: the size of segments that server and client received."""
    with tcp_pair(client, server, address, number) as (here, there):
        sizes = []
        for sender, receiver in ((here, there), (there, here)):
            thread = threading.Thread(target=sender.sendall, args=[bytes(AMOUNT)])
            thread.start()
            sizes.append(received(receiver))
            thread.join()
    return sizes[0], sizes[1]


def received(here: socket.socket) -> int:
    """Take the amount: the size of segments that it came in (tcp(7))."""
    left = AMOUNT
    while left:
        part = here.recv(min(left, 65536))
        if not part:
            raise ConnectionError(f"it ended {left} octets early")
        left -= len(part)
    info = here.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, RCV_MSS + 4)
    return int(struct.unpack_from("=I", info, RCV_MSS)[0])
