"""Physical networks: ports, other hosts' ports and machines that know nothing of us on one wire."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from headrace.agent.config import AgentConfig
from headrace.agent.physical import Physical, blind, give_back
from headrace.datapath.netlink import Netlink
from headrace.model import Segment
from headrace.testing import packet
from headrace.testing.cloud import Cloud
from headrace.testing.packet import BROADCAST, Somewhere
from headrace.testing.scene import Scene
from headrace.testing.topology import Namespace, Topology
from headrace.testing.traffic import IMPATIENCE, Place, Stream, Tap, opens, ping
from headrace.testing.vlan import Vlan, vlan_device
from headrace.testing.wait import wait_until
from headrace.testing.world import ANY, OUT, rule

WIRE, DEVICE = "physnet1", "phys"
WEB = rule("web", "ingress", 6, 80)
STRANGER = Somewhere("02:00:00:00:99:99", ("10.0.0.99", "fd00::99"))
FOREIGN, FOREIGN6 = "10.0.0.200", "fd00::200"


class Kind(NamedTuple):
    """A segment, and how a machine outside is on it."""

    segment: Segment
    vlan: Vlan | None
    mtu: int


KINDS = {
    "flat": Kind(Segment(type="flat", physical_network=WIRE), None, 1500),
    "vlan": Kind(Segment(type="vlan", id=12, physical_network=WIRE), Vlan(12), 1500),
    "qinq": Kind(Segment(type="vlan", id=12, service_vlan=7, physical_network=WIRE), Vlan(12, 7), 1496),
}


class Lab(NamedTuple):
    """A cloud of which every host has a device on one switch, with a machine outside for each kind of segment."""

    cloud: Cloud
    outside: dict[str, Namespace]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Topology() as topology:
        switch = topology.host("switch")
        switch.run("ip link add switch type bridge")
        switch.run("ip link set switch up")
        for number, name in enumerate(("h1", "h2"), 101):
            addresses = [f"10.0.0.{number}/24"]
            topology.link(topology.host(name), DEVICE, switch, name, a_addresses=addresses)
            switch.run(f"ip link set {name} master switch")
        outside = {}
        for name, kind in KINDS.items():
            outside[name] = machine = topology.host(name)
            machine.sysctl("net.ipv4.conf.all.arp_ignore", 1)  # an address is that of its device only
            own = [f"{FOREIGN}/24", f"{FOREIGN6}/64"]
            topology.link(machine, "eth0", switch, name, a_addresses=[] if kind.vlan else own)
            switch.run(f"ip link set {name} master switch")
            if kind.vlan:
                vlan_device(topology, machine, "eth0", "tagged", kind.vlan, addresses=own, mtu=kind.mtu)
        with Cloud(topology, settings=f'physical_networks = {{{WIRE} = "{DEVICE}"}}') as cloud:
            yield Lab(cloud, outside)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextlib.contextmanager
def on(lab: Lab, kind: str) -> Iterator[Scene]:
    with Scene(lab.cloud, segment=KINDS[kind].segment, mtu=KINDS[kind].mtu) as scene:
        yield scene


def place(lab: Lab, host: str, mac: str) -> tuple[int, bool]:
    """Where a MAC was learnt: the index there, and whether it is a wire's."""
    found = {key.mac.hex(":"): value for key, value in lab.cloud.hosts[host].datapath.learnt_macs()}
    return (found[mac].endpoint, found[mac].vtep > 0) if mac in found else (0, False)


def promiscuous(namespace: Namespace, device: str) -> bool:
    return "PROMISC" in namespace.ip(f"link show dev {device}")[0]["flags"]


def test_ports_and_machines_outside_reach_each_other(lab: Lab, kind: str) -> None:
    foreign = lab.outside[kind]
    with on(lab, kind) as scene:
        spoofed = lab.cloud.hosts["h1"].reasons()["SPOOFED_MAC"]
        a, b = scene.pair()
        for one, address in ((a, b.address()), (a, b.address(6)), (a, FOREIGN), (a, FOREIGN6), (foreign, b.address(6))):
            assert ping(one, address), address
        assert ping(a, b.address(), size=KINDS[kind].mtu - 28)
        assert ping(a, FOREIGN, size=KINDS[kind].mtu - 28, count=3)
        assert opens(a, foreign, FOREIGN, 80)
        assert opens(foreign, a, a.address(), 80)
        assert opens(foreign, a, a.address(6), 80)
        ways: tuple[tuple[Place, Place, str], ...] = (
            *((a, foreign, FOREIGN), (foreign, b, b.address())),
            (a, b, b.address()),
        )
        for client, server, address in ways:
            with Stream(client, server, address, 81) as stream:
                stream.advance()
        assert place(lab, "h1", foreign.mac("tagged" if KINDS[kind].vlan else "eth0"))[1]
        assert lab.cloud.hosts["h1"].reasons()["SPOOFED_MAC"] == spoofed


def test_no_segment_hears_another(lab: Lab) -> None:
    """The same addresses on all three; a frame of one is for nobody on the others."""
    with contextlib.ExitStack() as stack:
        scenes = {name: stack.enter_context(on(lab, name)) for name in KINDS}
        for scene in scenes.values():
            scene.put(scene.group("g", *ANY), scene.port("a", 1, "g"))
        for name, scene in scenes.items():
            assert ping(lab.outside[name], scene["a"].address())
            for other in KINDS.keys() - {name}:
                (count,) = (lab.cloud.hosts["h1"].counters(scenes[other].id("a")),)
                before = count.to_port.packets
                assert ping(lab.outside[name], scene["a"].address())
                assert lab.cloud.hosts["h1"].counters(scenes[other].id("a")).to_port.packets == before


def test_groups_hold_against_the_wire(lab: Lab, kind: str) -> None:
    foreign = lab.outside[kind]
    with on(lab, kind) as scene:
        scene.put(scene.group("g", *OUT, WEB), scene.port("a", 1, "g"))
        assert opens(foreign, scene["a"], scene["a"].address(), 80)
        assert not opens(foreign, scene["a"], scene["a"].address(), 81, timeout=IMPATIENCE)
        assert lab.cloud.hosts["h1"].reasons()["ACL_TO_PORT"]


def test_the_host_keeps_its_own_address(lab: Lab) -> None:
    """TCP to the host on the device that ports share, also where a workload sends from the device's MAC."""
    foreign, host = lab.outside["flat"], lab.cloud.hosts["h1"]
    with on(lab, "flat") as scene:
        scene.put(scene.group("g", *ANY), scene.port("a", 1, "g"), scene.port("o", 2, port_security=False))
        foreign.run("ip neigh flush dev eth0")
        with Stream(foreign, host.namespace, "10.0.0.101", 22) as stream:
            assert ping(foreign, scene["a"].address())
            thief = Somewhere(host.namespace.mac(DEVICE), ("10.0.0.77",))
            with Tap(scene["o"].namespace, "eth0") as tap:
                tap.send(packet.udp(thief, scene["a"].port, 1, 2))
            wait_until(lambda: host.counters(scene.id("o")).from_port.packets)
            stream.advance()
        assert opens(host.namespace, foreign, FOREIGN, 22)
        assert not ping(host.namespace, scene["a"].address(), patience=IMPATIENCE)


def test_tunnels_do_not_end_on_a_physical_network(lab: Lab) -> None:
    """A machine there that writes a host's addresses into an outer header reaches nobody; on the uplink, it would."""
    host = lab.cloud.hosts["h1"].namespace
    with Scene(lab.cloud) as scene, on(lab, "flat") as shared:
        shared.put(shared.group("g", *ANY), shared.port("a", 1, "g"))
        a, b = scene.pair()
        inner = packet.udp(b.port, a.port, 1, 2)
        frame = packet.vxlan("192.0.2.2", "192.0.2.1", scene.network.segment.number, inner)
        with Tap(a.namespace, "eth0") as inside, Tap(lab.outside["flat"], "eth0") as tap:
            for mac in (host.mac(DEVICE), "02:00:00:00:00:01", BROADCAST):
                tap.send(bytes.fromhex(mac.replace(":", "")) + frame[6:])
            assert not inside.heard(inner, timeout=IMPATIENCE)
        with Tap(a.namespace, "eth0") as inside, Tap(lab.cloud.fabric, "fabric") as tap:
            tap.send(bytes.fromhex(host.mac("uplink").replace(":", "")) + frame[6:])
            assert inside.heard(inner)


def test_our_own_mac_from_the_wire_is_refused(lab: Lab) -> None:
    with on(lab, "flat") as scene, Tap(lab.outside["flat"], "eth0") as tap:
        a, b = scene.pair(hosts=("h1", "h1"))
        host = lab.cloud.hosts["h1"]
        before, spoofed = host.reasons()["SPOOFED_MAC"], packet.udp(a.port, b.port, 1, 2)
        with Tap(b.namespace, "eth0") as inside:
            tap.send(spoofed)
            wait_until(lambda: host.reasons()["SPOOFED_MAC"] == before + 1)
            assert not inside.heard(spoofed, timeout=0.05)


def test_who_is_unknown_is_on_the_wire_and_who_moves_there_too(lab: Lab) -> None:
    with on(lab, "flat") as scene, Tap(lab.outside["flat"], "eth0") as tap:
        scene.put(scene.group("g", *ANY), scene.port("a", 1, "g"), scene.port("o", 2, port_security=False))
        a, o, host = scene["a"], scene["o"], lab.cloud.hosts["h1"]
        with Tap(a.namespace, "eth0") as inside, Tap(o.namespace, "eth0") as guest:
            inside.send(packet.udp(a.port, STRANGER, 1, 2))
            assert tap.heard(packet.udp(a.port, STRANGER, 1, 2)[:12])
            guest.send(packet.udp(STRANGER, a.port, 3, 4))
            assert inside.heard(packet.udp(STRANGER, a.port, 3, 4)[:12])
            assert place(lab, "h1", STRANGER.mac) == (host.index(o.port.id), False)
            inside.send(packet.udp(a.port, STRANGER, 5, 6))
            assert guest.heard(packet.udp(a.port, STRANGER, 5, 6)[:12])
            tap.send(packet.arp(STRANGER, STRANGER.addresses[0]))
            wait_until(lambda: place(lab, "h1", STRANGER.mac)[1])
            inside.send(packet.udp(a.port, STRANGER, 5, 6))
            assert tap.heard(packet.udp(a.port, STRANGER, 5, 6))
        (row,) = (row for row in host.show("network", "learnt", scene.network.id) if row["mac"] == STRANGER.mac)
        assert row["place"] == f"wire of {WIRE}"
        assert row["age"] < 60


def test_a_device_that_goes_and_comes_back(lab: Lab) -> None:
    """The port says why; nothing else of the host is concerned. A smaller MTU is told to workloads."""
    cloud = lab.cloud
    host = cloud.hosts["h1"].namespace
    with on(lab, "flat") as scene:
        scene.put(scene.group("g", *ANY), scene.port("a", 1, "g"))
        a = scene["a"]
        assert ping(a, FOREIGN, size=1472)
        host.run(f"ip link set {DEVICE} mtu 1400")
        wait_until(lambda: not ping(a, FOREIGN, size=1472, patience=IMPATIENCE))
        assert ping(a, FOREIGN, size=1372)
        host.run(f"ip link delete {DEVICE}")
        said = cloud.says(a.port.id, "error")
        assert (
            said.reason
            == f"network {scene.network.id} is on physical network {WIRE}, whose device {DEVICE} is not there"
        )
        cloud.topology.link(host, DEVICE, cloud.topology.host("switch"), "h1", a_addresses=["10.0.0.101/24"])
        cloud.topology.host("switch").run("ip link set h1 master switch")
        cloud.says(a.port.id, "up")
        a.namespace.run("ip route flush cache")
        assert ping(a, FOREIGN, size=1472)


def test_another_agent_and_another_device(lab: Lab) -> None:
    """A stream outlives the agent and the move; the device that leads there no more is as it was."""
    cloud, foreign, host = lab.cloud, lab.outside["flat"], lab.cloud.hosts["h2"]
    switch = cloud.topology.host("switch")
    cloud.topology.link(host.namespace, "other", switch, "other")
    switch.run("ip link set other master switch")
    with on(lab, "flat") as scene:
        scene.put(scene.group("g", *ANY), scene.port("a", 1, "g", host="h2"))
        assert promiscuous(host.namespace, DEVICE)
        with Stream(scene["a"], foreign, FOREIGN, 80, pause=0.002) as stream:
            host.kill()
            stream.advance()
            host.config.write_text(host.config.read_text().replace(f'"{DEVICE}"', '"other"'))
            host.start()
            cloud.settle()
            stream.advance()
        assert promiscuous(host.namespace, "other")
        assert not promiscuous(host.namespace, DEVICE)


def test_a_network_that_no_device_leads_to(lab: Lab) -> None:
    elsewhere = Segment(type="vlan", id=5, physical_network="physnet9")
    with Scene(lab.cloud, segment=elsewhere) as scene:
        lab.cloud.plugged.add(scene.id("a"))
        scene.write(scene.network, scene.port("a", 1))
        said = lab.cloud.says(scene.id("a"), "error")
        assert said.reason == (
            f"network {scene.network.id} is on physical network physnet9, which no device of this host leads to;"
            ' set physical_networks = {physnet9 = "DEVICE"} in agent.toml, or bind the port elsewhere'
        )


def test_what_somebody_changes_is_mended(lab: Lab) -> None:
    host = lab.cloud.hosts["h1"].namespace
    host.run(f"ip link set {DEVICE} promisc off")
    wait_until(lambda: promiscuous(host, DEVICE))


def test_a_device_is_given_back_as_it_was(lab: Lab) -> None:
    """Made promiscuous by us, not by an operator before us."""
    namespace = lab.cloud.topology.host("given")
    for name in ("ours", "theirs"):
        namespace.run(f"ip link add {name} type veth peer name {name}-peer")
    namespace.run("ip link set theirs promisc on")
    config = AgentConfig(
        host="h", physical_networks={"one": "ours", "two": "theirs"}, cache=str(lab.cloud.topology.directory / "given")
    )
    with namespace.enter(), Netlink() as netlink:
        assert "ethtool -K ours rxvlan off" in (blind(netlink.link("ours"), {}, netlink) or "")  # type: ignore[arg-type]
        namespace.run("ethtool -K ours rxvlan off rx-vlan-stag-hw-parse off")
        assert blind(netlink.link("ours"), {}, netlink) is None  # type: ignore[arg-type]
        links = {link.name: link for link in netlink.links()}
        assert Physical(config, netlink).listen(links)
        assert promiscuous(namespace, "ours")
        assert list(give_back(Path(config.cache), netlink)) == ["device ours is promiscuous no more"]
        assert not promiscuous(namespace, "ours")
        assert promiscuous(namespace, "theirs")
