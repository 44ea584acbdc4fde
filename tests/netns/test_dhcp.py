"""Workloads are configured by the agent of their host: udhcpc, dhclient, the kernel's own SLAAC, and a real guest."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.model import DhcpOption, HostRoute, Subnet
from headrace.testing import kernel
from headrace.testing.client import ask4
from headrace.testing.cloud import Cloud, Workload
from headrace.testing.guest import Guest
from headrace.testing.scene import Scene
from headrace.testing.topology import Process
from headrace.testing.traffic import ping
from headrace.testing.wait import wait_until
from headrace.testing.world import ANY, subnet

pytestmark = pytest.mark.needs("program:busybox", "program:dhclient")

SCRIPT = kernel.ASSETS / "udhcpc-told"
GATEWAY = "10.0.0.254"
STATEFUL, STATELESS, SLAAC = "dhcpv6-stateful", "dhcpv6-stateless", "slaac"
EUI64 = "fd00::ff:fe00:1"
PATIENCE = 15.0


@pytest.fixture
def clients(scene: Scene) -> Iterator[Clients]:
    made = Clients(scene)
    yield made
    for process in made.running:
        process.stop()


class Clients:
    """DHCP clients of a scene's workloads; ended with the test."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.running: list[Process] = []

    def file(self, workload: Workload, name: str) -> Path:
        return self.scene.cloud.topology.directory / f"{workload.port.id}-{name}"

    def bare(self, workload: Workload) -> None:
        """As a workload boots: no address, no route."""
        workload.namespace.run("ip -4 address flush dev eth0")
        workload.namespace.run("ip -6 address flush dev eth0 scope global")

    def udhcpc(self, workload: Workload, *arguments: str, wait: bool = True) -> dict[str, str]:
        """What busybox's client was told."""
        self.bare(workload)
        told = self.file(workload, "told")
        command = [
            "env",
            f"TOLD={told}",
            "busybox",
            "udhcpc",
            "-f",
            "-i",
            "eth0",
            "-t",
            "20",
            "-T",
            "1",
            "-s",
            str(SCRIPT),
        ]
        self.running.append(workload.namespace.popen([*command, *arguments]))
        return self.told(workload) if wait else {}

    def told(self, workload: Workload, event: str = "bound") -> dict[str, str]:
        told = self.file(workload, "told")
        wait_until(lambda: told.exists() and f"event={event}" in told.read_text(), PATIENCE)
        lines = (line.partition("=") for line in told.read_text().splitlines())
        return {name: value.strip("'") for name, _, value in lines}

    def dhclient(self, workload: Workload, *arguments: str, config: str = "") -> str:
        """The lease that ISC's client wrote down."""
        self.bare(workload)
        lease, pid, settings = (self.file(workload, name) for name in ("lease", "pid", "conf"))
        settings.write_text(config)
        lease.touch()
        command = ["dhclient", "-1", "-d", "-sf", "/bin/true", "-lf", str(lease), "-pf", str(pid), "-cf", str(settings)]
        process = workload.namespace.popen([*command, *arguments, "eth0"])
        self.running.append(process)
        wait_until(lambda: "}" in lease.read_text() or process.poll() is not None, PATIENCE)
        assert "}" in lease.read_text(), process.output()
        return lease.read_text()

    def information(self, workload: Workload) -> dict[str, str]:
        """What ISC's client is told when it asks for no address; it writes no lease then."""
        self.bare(workload)
        told, pid = self.file(workload, "told"), self.file(workload, "pid")
        command = ["dhclient", "-6", "-S", "-1", "-d", "-sf", str(kernel.ASSETS / "dhclient-told"), "-pf", str(pid)]
        self.running.append(workload.namespace.popen([*command, "-e", f"TOLD={told}", "eth0"]))
        wait_until(lambda: told.exists() and "new_dhcp6" in told.read_text(), PATIENCE)
        lines = (line.partition("=") for line in told.read_text().splitlines())
        return {name: value.strip("'") for name, _, value in lines}


def addresses(workload: Workload, family: str = "inet") -> set[str]:
    """Addresses that can be used."""
    (facts,) = workload.namespace.ip("address show dev eth0 scope global")
    return {
        f"{found['local']}/{found['prefixlen']}"
        for found in facts["addr_info"]
        if found.get("family") == family and not found.get("tentative")
    }


def four(scene: Scene, **fields: Any) -> Subnet:
    return subnet(scene.id("four"), scene.network.id, **{"gateway": GATEWAY} | fields)


def six(scene: Scene, mode: str | None, **fields: Any) -> Subnet:
    modes: dict[str, Any] = {"ipv6_ra_mode": mode, "ipv6_address_mode": mode}
    return subnet(scene.id("six"), scene.network.id, "fd00::/64", **modes | fields)


def test_udhcpc_is_told_what_the_subnet_says(scene: Scene, clients: Clients) -> None:
    routes = (HostRoute(destination="192.168.7.0/24", nexthop="10.0.0.9"),)
    a, b = scene.pair(*ANY)
    scene.put(four(scene, dns_nameservers=("10.0.0.53", "10.0.0.54"), host_routes=routes))
    told = clients.udhcpc(a, "-O", "mtu", "-O", "staticroutes")
    assert (told["ip"], told["mask"], told["serverid"], told["lease"]) == ("10.0.0.1", "24", GATEWAY, "86400")
    assert (told["router"], told["dns"], told["mtu"]) == (GATEWAY, "10.0.0.53 10.0.0.54", "1450")
    assert told["staticroutes"] == "192.168.7.0/24 10.0.0.9 0.0.0.0/0 10.0.0.254"
    assert addresses(a) == {"10.0.0.1/24"}
    clients.udhcpc(b)
    assert ping(a, b.address())
    reasons = scene.cloud.hosts["h1"].reasons(scene.id("a"))
    assert reasons["PUNTED"] >= 2
    assert not scene.cloud.hosts["h2"].reasons(scene.id("b"))["ACL_TO_PORT"]


def test_a_lease_is_renewed_and_given_back(scene: Scene, clients: Clients) -> None:
    a, _ = scene.pair(*ANY)
    scene.put(four(scene))
    clients.udhcpc(a, "-R")
    clients.file(a, "told").unlink()
    clients.running[-1].send_signal(10)
    assert clients.told(a, "renew")["ip"] == "10.0.0.1"
    assert clients.running[-1].stop() == 0


def test_dhclient_boots_from_the_network(scene: Scene, clients: Clients) -> None:
    options = (
        DhcpOption(name="bootfile-name", value="pxelinux.0"),
        DhcpOption(name="tftp-server", value="192.0.2.8"),
        DhcpOption(name="server-ip-address", value="192.0.2.9"),
        DhcpOption(name="42", value="192.0.2.10,192.0.2.11"),
    )
    scene.put(scene.port("a", 1, dhcp_options=options), four(scene))
    asks = "request subnet-mask, routers, tftp-server-name, bootfile-name, ntp-servers, interface-mtu;\n"
    lease = clients.dhclient(scene["a"], "-4", config=asks)
    for line in (
        "fixed-address 10.0.0.1;",
        'filename "pxelinux.0";',
        "option subnet-mask 255.255.255.0;",
        f"option routers {GATEWAY};",
        'option tftp-server-name "192.0.2.8";',
        'option bootfile-name "pxelinux.0";',
        "option ntp-servers 192.0.2.10,192.0.2.11;",
        "option interface-mtu 1450;",
        f"option dhcp-server-identifier {GATEWAY};",
    ):
        assert line in lease


def test_dhclient_gets_its_ipv6_address(scene: Scene, clients: Clients) -> None:
    scene.put(scene.port("a", 1), six(scene, STATEFUL, dns_nameservers=("fd00::53",)))
    lease = clients.dhclient(scene["a"], "-6")
    assert "iaaddr fd00::1 {" in lease
    assert "preferred-life 86400;" in lease
    assert "option dhcp6.name-servers fd00::53;" in lease


def test_dhclient_asks_for_information_only(scene: Scene, clients: Clients) -> None:
    options = (DhcpOption(name="ntp-server", value="fd00::99", ip_version=6),)
    scene.put(
        scene.port("a", 1, addresses=(EUI64,), dhcp_options=options),
        six(scene, STATELESS, dns_nameservers=("fd00::53",)),
    )
    told = clients.information(scene["a"])
    assert (told["new_dhcp6_name_servers"], told["reason"]) == ("fd00::53", "RENEW6")


def test_the_kernel_configures_itself(scene: Scene) -> None:
    """SLAAC: an address, a route to the link, and no default route as long as there is no router."""
    scene.put(scene.group("g", *ANY), scene.port("b", 2, "g", host="h2"))
    scene.put(scene.port("a", 1, "g", addresses=(EUI64,)), six(scene, SLAAC))
    a = scene["a"]
    a.namespace.sysctl("net.ipv6.conf.eth0.accept_ra", 1)
    a.namespace.sysctl("net.ipv6.conf.eth0.router_solicitations", -1)
    a.namespace.run("ip -6 address flush dev eth0")
    a.namespace.run("ip link set eth0 down")
    a.namespace.run("ip link set eth0 up")
    wait_until(lambda: f"{EUI64}/64" in addresses(a, "inet6"), PATIENCE)
    routes = a.namespace.ip("-6 route show dev eth0")
    assert [route["dst"] for route in routes if route.get("protocol") == "kernel" or "expires" in route]
    assert not [route for route in routes if route["dst"] == "default"]
    assert scene.cloud.hosts["h1"].reasons(scene.id("a"))["PUNTED"] >= 1
    assert ping(a, scene["b"].address(6))


def test_news_comes_unasked(scene: Scene) -> None:
    """A second prefix is advertised at once, without a solicitation, and withdrawn when it is lost."""
    one = six(scene, SLAAC)
    two = subnet(scene.id("two"), scene.network.id, "fd02::/64", ipv6_ra_mode=SLAAC, ipv6_address_mode=SLAAC)
    scene.put(scene.port("a", 1, addresses=(EUI64,)), one)
    a = scene["a"]
    a.namespace.sysctl("net.ipv6.conf.eth0.accept_ra", 1)
    scene.put(two, scene.port("a", 1, addresses=(EUI64, "fd02::ff:fe00:1")))
    wait_until(lambda: "fd02::ff:fe00:1/64" in addresses(a, "inet6"), PATIENCE)
    assert "default" not in [route["dst"] for route in a.namespace.ip("-6 route show dev eth0")]
    assert not deprecated(a)
    scene.put(scene.port("a", 1, addresses=(EUI64,)))
    wait_until(lambda: deprecated(a) == {"fd02::ff:fe00:1"}, PATIENCE)


def deprecated(workload: Workload) -> set[str]:
    """Addresses that are not to be used for anything new."""
    (facts,) = workload.namespace.ip("address show dev eth0 scope global")
    return {found["local"] for found in facts["addr_info"] if found.get("deprecated")}


def test_a_network_with_a_dhcp_server_keeps_it(scene: Scene, clients: Clients) -> None:
    """The question reaches that server, and nobody else answers."""
    a, b = scene.pair(*ANY)
    scene.put(four(scene), scene.port("b", 2, "g", host="h2", device_owner="network:dhcp"))
    with b.namespace.enter():
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        server.bind(("", 67))
        server.settimeout(PATIENCE)
        clients.udhcpc(a, wait=False)
        assert server.recv(2048)[0] == 1
    assert not clients.file(a, "told").exists()
    assert not scene.cloud.hosts["h1"].reasons(scene.id("a"))["PUNTED"]


def test_who_asks_too_often_waits_alone(scene: Scene, clients: Clients) -> None:
    """A port that floods is answered a few times; another port of the same host is answered at once."""
    scene.put(scene.port("a", 1), scene.port("b", 2, host="h1"), four(scene))
    a, b = scene["a"], scene["b"]
    with a.namespace.enter(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0800) as line:
        line.bind(("eth0", 0x0800))
        line.settimeout(1)
        for _ in range(100):
            line.sendto(ask4(1), ("eth0", 0))
        asked = scene.cloud.hosts["h1"].reasons(scene.id("a"))
        answers = 0
        while True:
            try:
                answers += line.recv(2048)[:6] == bytes.fromhex("020000000001")
            except TimeoutError:
                break
    assert asked["PUNTED"] + asked["BUSY"] + asked["BUDGET"] >= 100
    assert 10 <= answers <= 45
    assert clients.udhcpc(b)["ip"] == "10.0.0.2"


def test_an_agent_that_returns_answers_again(cloud: Cloud, scene: Scene, clients: Clients) -> None:
    scene.put(scene.port("a", 1), four(scene))
    host = cloud.hosts["h1"]
    settings = host.config.read_text()
    host.kill()
    clients.udhcpc(scene["a"], wait=False)
    wait_until(lambda: host.reasons(scene.id("a"))["PUNTED"] >= 1, PATIENCE)
    host.config.write_text(f"dhcp_lease = 3600\n{settings}")
    host.start()
    told = clients.told(scene["a"])
    assert (told["ip"], told["lease"]) == ("10.0.0.1", "3600")
    assert host.stop() == 0
    host.config.write_text(settings)
    host.start()
    cloud.settle()


@pytest.mark.timeout(240)
@pytest.mark.needs("qemu", "tun", "program:gcc")
def test_a_real_guest_is_configured(scene: Scene, lab_kernel: kernel.Kernel) -> None:
    """Debian's kernel on virtio-net behind a tap: DHCPv4 by busybox, IPv6 by the kernel alone."""
    guest_port = scene.port("a", 1, "g", addresses=("10.0.0.1", EUI64), device=f"tap{scene.number}")
    host = scene.cloud.hosts["h1"].namespace
    host.run(f"ip tuntap add dev {guest_port.device_name} mode tap vnet_hdr")
    host.run(f"ip link set {guest_port.device_name} up")
    scene.cloud.plugged.add(guest_port.id)
    with Guest(host.name, guest_port.device_name, guest_port.mac, series=lab_kernel.series) as guest:
        others = (scene.group("g", *ANY), scene.port("b", 2, "g", host="h2"))
        scene.put(*others, guest_port, four(scene), six(scene, SLAAC))
        answer = guest.run("udhcpc -i eth0 -n -q -t 10 -T 1 -O mtu 2>&1 && ip addr show dev eth0")
        assert answer.returncode == 0, answer.output
        assert "inet 10.0.0.1/24" in answer.output, answer.output
        assert "mtu 1450" in answer.output
        wait_until(lambda: f"inet6 {EUI64}/64" in guest.run("ip -6 addr show dev eth0").output, PATIENCE)
        assert guest.run("ping -c 1 -W 5 10.0.0.2").returncode == 0
        assert guest.run("ping -6 -c 1 -W 5 fd00::2").returncode == 0
        assert "default" not in guest.run("ip -6 route").output
