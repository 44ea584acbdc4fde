"""What must never meet does not: tenants, strangers on the underlay, a workload and its host. The uplink is shared."""

from __future__ import annotations

import ipaddress
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.datapath import frame
from headrace.testing.cloud import Cloud, CloudHost, Workload
from headrace.testing.scene import Scene
from headrace.testing.topology import Namespace, Topology
from headrace.testing.traffic import (
    IMPATIENCE,
    Stream,
    Tap,
    connect,
    listen,
    opens,
    ping,
    reaches,
    talks,
    tcp_pair,
    udp,
)
from headrace.testing.wait import wait_until
from headrace.testing.world import ANY

VXLAN = 4789
STRANGER = 66
GATEWAY = "10.0.0.254"
ALL_ONES = "ff:ff:ff:ff:ff:ff"


def inner(sender: Workload, receiver: Workload, mark: bytes) -> bytes:
    """A UDP frame between two workloads, as octets."""
    source, target = ipaddress.ip_address(sender.address()), ipaddress.ip_address(receiver.address())
    ethertype, packet = frame.ip(source, target, 17, frame.udp(source, target, 9000, 9000, mark))
    return frame.ethernet(source=sender.port.mac, destination=receiver.port.mac, ethertype=ethertype, payload=packet)


def drops(host: CloudHost, port: str | None = None) -> Counter[str]:
    """Reasons of a port, or of the uplink, without what workloads ask and say of their own accord."""
    return Counter({name: count for name, count in host.reasons(port).items() if name not in {"FLOODED", "ANSWERED"}})


def tunnelled(vni: int, content: bytes, *, flags: int = 8) -> bytes:
    """A VXLAN payload."""
    return bytes([flags, 0, 0, 0]) + vni.to_bytes(3, "big") + b"\0" + content


@pytest.fixture
def stranger(cloud: Cloud) -> Namespace:
    """A machine on the underlay that is no host of the cloud."""
    namespace = cloud.topology.host("stranger")
    if not any(link["ifname"] == "uplink" for link in namespace.ip("link show")):
        cloud.join(namespace, "uplink", STRANGER)
    return namespace


def test_tenants_with_the_same_addresses_never_meet(cloud: Cloud) -> None:
    with Scene(cloud) as red, Scene(cloud) as blue:
        for scene in (red, blue):
            scene.pair()
        assert red["b"].port.mac == blue["b"].port.mac
        with udp(red["b"], "10.0.0.2", 53) as in_red, udp(blue["b"], "10.0.0.2", 53) as in_blue:
            for scene, theirs, others in ((red, in_red, in_blue), (blue, in_blue, in_red)):
                with udp(scene["a"], "10.0.0.1", 1053) as asker:  # the same five-tuple in both
                    assert reaches(asker, theirs)
                    others.settimeout(IMPATIENCE)
                    with pytest.raises(TimeoutError):
                        others.recv(100)
        assert opens(red["a"], red["b"], "10.0.0.2", 80)
        with listen(red["b"], "10.0.0.2", 80), pytest.raises(ConnectionRefusedError):
            connect(blue["a"], "10.0.0.2", 80)


@pytest.mark.parametrize("family", [4, 6])
def test_a_stranger_on_the_underlay_reaches_no_port(scene: Scene, stranger: Namespace, family: int) -> None:
    a, b = scene.pair()
    host = scene.cloud.hosts["h2"]
    target = scene.cloud.underlay(2)[0 if family == 4 else 1].partition("/")[0]
    before = drops(host)
    with Tap(b.namespace, "eth0") as ear, udp(stranger, "0.0.0.0" if family == 4 else "::") as mouth:
        mouth.sendto(tunnelled(scene.network.segment.number, inner(a, b, b"injected")), (target, VXLAN))
        assert ear.heard(b"injected", timeout=IMPATIENCE) is None
    assert drops(host) - before == {"UNKNOWN_VTEP": 1}


def test_what_a_known_host_sends_is_still_judged(scene: Scene) -> None:
    """Segments that nobody here is on, tunnel headers that are none, and frames that are malformed inside."""
    a, b = scene.pair()
    host, sender = scene.cloud.hosts["h2"], scene.cloud.hosts["h1"].namespace
    target = scene.cloud.underlay(2)[0].partition("/")[0]
    good, vni = inner(a, b, b"hand-made"), scene.network.segment.number
    cases = {
        "UNKNOWN_SEGMENT": tunnelled(vni + 500_000, good),
        "MALFORMED_TUNNEL": tunnelled(vni, good, flags=0),
        "MALFORMED_IPV4": tunnelled(vni, good[:14] + b"\x44" + good[15:]),
        "MALFORMED_L4": tunnelled(vni, good[:38] + b"\0\x04" + good[40:]),
        "MULTICAST_SOURCE": tunnelled(vni, good[:6] + b"\x01" + good[7:]),
        "VLAN_TAGGED": tunnelled(vni, good[:12] + b"\x81\0\0\x05" + good[12:]),
        "UNKNOWN_MAC": tunnelled(vni, b"\x02\x99" + good[2:]),
        "ACL_TO_PORT": tunnelled(vni, good),
    }
    scene.put(scene.group("g", *ANY[:2]))
    with Tap(b.namespace, "eth0") as ear, udp(sender, "0.0.0.0") as mouth:
        for reason, payload in cases.items():
            before = drops(host)
            mouth.sendto(payload, (target, VXLAN))
            assert drops(host) - before == {reason: 1}
        assert ear.heard(b"hand-made", timeout=IMPATIENCE) is None


def test_bad_frames_of_a_workload_are_dropped_with_their_reason(scene: Scene) -> None:
    a, b = scene.pair()
    scene.cloud.hosts["h1"].namespace.run(f"ip link set {a.port.device_name} mtu 9000")
    a.namespace.run("ip link set eth0 mtu 9000")
    good, host = inner(a, b, b"hand-made"), scene.cloud.hosts["h1"]
    long = ipaddress.ip_address(a.address()), ipaddress.ip_address(b.address())
    too_long = frame.ip(*long, 17, frame.udp(*long, 9000, 9000, bytes(1500)))[1]
    arp = frame.arp(operation=1, sender_mac=a.port.mac, sender=long[1], target_mac=ALL_ONES, target=long[1])[1]
    cases = {
        "VLAN_TAGGED": good[:12] + b"\x81\0\0\x05" + good[12:],
        "TOO_BIG": good[:14] + too_long,
        "MALFORMED_IPV4": good[:14] + b"\x44" + good[15:],
        "MALFORMED_L4": good[:38] + b"\0\x04" + good[40:],
        "MALFORMED_ARP": good[:12] + b"\x08\x06" + arp[:20],
        "MALFORMED_IPV6": good[:12] + b"\x86\xdd\x60" + bytes(20),
        "MULTICAST_SOURCE": good[:6] + b"\x03" + good[7:],
        "SPOOFED_MAC": good[:6] + b"\x02\x77" + good[8:],
        "SPOOFED_ADDRESS": good[:29] + b"\x09" + good[30:],
        "SPOOFED_ARP": good[:12] + b"\x08\x06" + arp,
        "ETHERTYPE": good[:12] + b"\x88\xcc" + bytes(46),
        "UNKNOWN_MAC": b"\x02\x99" + good[2:],
        "HAIRPIN": good[6:12] + good[6:],
    }
    with Tap(b.namespace, "eth0") as ear, Tap(a.namespace, "eth0") as mouth:
        for reason, octets in cases.items():
            before = drops(host, a.port.id)
            mouth.send(octets)
            assert drops(host, a.port.id) - before == {reason: 1}
        assert ear.heard(b"hand-made", timeout=IMPATIENCE) is None
        mouth.send(good)
        assert ear.heard(b"hand-made") is not None


def host_address(host: Namespace, workload: Workload) -> None:
    """Give the host's end of a workload's device addresses in the workload's subnets, which no host should."""
    for address in (f"{GATEWAY}/24", "fd00::fe/64"):
        nodad = ["nodad"] if ":" in address else []
        host.run(["ip", "address", "add", address, "dev", workload.port.device_name, *nodad])
    host.run(f"ip link set {workload.port.device_name} up")


def link_local(host: Namespace, device: str) -> str:
    """A device's own IPv6 address."""
    (facts,) = host.ip(f"address show dev {device}")
    return next(str(entry["local"]) for entry in facts["addr_info"] if entry["local"].startswith("fe80:"))


def check_apart(host: Namespace, workload: Workload) -> None:
    """Neither finds the other, in either family, by address or by the link's own."""
    device = workload.port.device_name
    with Tap(workload.namespace, "eth0") as ear:
        assert not ping(workload, GATEWAY, patience=IMPATIENCE)
        assert not ping(workload, "fd00::fe", patience=IMPATIENCE)
        assert not ping(workload, f"{link_local(host, device)}%eth0", patience=IMPATIENCE)
        host.run(f"ping -c 1 -W {IMPATIENCE} -p 686f7374 -I {device} {workload.address()}", check=False)
        host.run(f"ping -c 1 -W {IMPATIENCE} -p 686f7374 ff02::1%{device}", check=False)
        assert ear.heard(b"hosthosthost", timeout=0.05) is None


def test_a_workload_and_its_host_do_not_meet(scene: Scene) -> None:
    a, _ = scene.pair()
    host = scene.cloud.hosts["h1"].namespace
    host_address(host, a)
    check_apart(host, a)
    host.run(f"ip neighbour replace {a.address()} lladdr {a.port.mac} dev {a.port.device_name}")
    check_apart(host, a)


def test_nor_do_they_where_only_the_programs_stand_guard(scene: Scene) -> None:
    scene.put(scene.group("g", *ANY), scene.port("a", 1, "g", device=f"nic{scene.number}"))
    a, host = scene["a"], scene.cloud.hosts["h1"]
    host_address(host.namespace, a)
    check_apart(host.namespace, a)
    assert drops(host, a.port.id)["FROM_HOST"] >= 2


@pytest.fixture
def lone() -> Iterator[Cloud]:
    """A cloud whose agents a test may kill."""
    with Topology() as topology, Cloud(topology) as made:
        yield made


def test_the_guard_holds_without_agent_and_program(lone: Cloud) -> None:
    """A hard reboot while the agent is down: the tap is made anew, and nothing of ours runs on it."""
    scene, host = Scene(lone), lone.hosts["h1"]
    a, b = scene.pair()
    scene.put(scene.port("c", 3, "g"))
    c = scene["c"]
    with Stream(c, b, b.address(), 80) as stream:
        host.kill()
        a.unplug()
        a.plug()
        host_address(host.namespace, a)
        check_apart(host.namespace, a)
        host.namespace.run(f"ip neighbour replace {a.address()} lladdr {a.port.mac} dev {a.port.device_name}")
        check_apart(host.namespace, a)
        assert not ping(a, b.address(), patience=IMPATIENCE)
        stream.advance()
        assert ping(c, b.address())
        host.start()
        lone.settle()
        wait_until(lambda: ping(a, b.address(), patience=IMPATIENCE), what="the tap is found again")
        stream.advance()


def snmp(host: Namespace, name: str) -> int:
    """A counter of a host's IPv4 stack (proc(5), /proc/net/snmp)."""
    with host.enter():
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    keys, values = (line.split() for line in lines if line.startswith("Ip: "))
    return int(values[keys.index(name)])


@pytest.mark.parametrize("family", [4, 6])
def test_the_uplink_is_shared_with_what_is_not_ours(scene: Scene, family: int) -> None:
    scene.pair()
    h1, h2 = (scene.cloud.hosts[name] for name in ("h1", "h2"))
    own, target = (scene.cloud.underlay(number)[0 if family == 4 else 1].partition("/")[0] for number in (1, 2))
    before = drops(h2)
    with tcp_pair(h1.namespace, h2.namespace, target, 22) as ssh:
        assert talks(*ssh)
    with udp(h1.namespace, own, 49152) as bfd, udp(h2.namespace, target, 3784) as peer:
        option = (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS) if family == 6 else (socket.IPPROTO_IP, socket.IP_TTL)
        bfd.setsockopt(*option, 255)
        assert reaches(bfd, peer)
    with udp(h1.namespace, own) as mouth, udp(h2.namespace, target, 4790) as ear:  # VXLAN-GPE is not ours
        assert reaches(mouth, ear)
    assert ping(h1.namespace, target, size=1400)
    assert drops(h2) == before


def test_malformed_packets_on_the_uplink_are_the_kernels_to_judge(scene: Scene, stranger: Namespace) -> None:
    host = scene.cloud.hosts["h2"]
    source, target = (ipaddress.ip_address(scene.cloud.underlay(n)[0].partition("/")[0]) for n in (STRANGER, 2))
    ours, other = (frame.ip(source, target, 17, frame.udp(source, target, 9, port))[1] for port in (VXLAN, 22))
    ends = {"source": stranger.mac("uplink"), "destination": host.namespace.mac("uplink"), "ethertype": 0x0800}
    before, errors = drops(host), snmp(host.namespace, "InHdrErrors")
    with Tap(stranger, "uplink") as mouth:
        for bad in (b"\x44" + ours[1:], b"\x65" + ours[1:], other[:3] + b"\x13" + other[4:]):
            mouth.send(frame.ethernet(payload=bad, **ends))  # type: ignore[arg-type]
    wait_until(lambda: snmp(host.namespace, "InHdrErrors") >= errors + 3, what="the kernel has seen them all")
    assert drops(host) == before
