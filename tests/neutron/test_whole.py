"""Neutron, controller, two real agents and their datapaths: trunks, with a sub-port on a network of each type."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from headrace.testing.demo.cloud import HOSTS, Cloud, Host
from headrace.testing.topology import Namespace, Topology, run
from headrace.testing.vlan import Vlan, vlan_device
from headrace.testing.wait import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.needs("root", "bpf", "netns", "mariadb"),
]

PHYSICAL = {"provider_physical_network": "physnet1"}
KINDS: dict[int, dict[str, Any]] = {
    0: {"provider_network_type": "flat"} | PHYSICAL,
    10: {"provider_network_type": "vlan"} | PHYSICAL,
    11: {"provider_network_type": "vxlan"},
    12: {"provider_network_type": "geneve"},
    13: {"provider_network_type": "gre"},
    14: {"provider_network_type": "mpls"},
    15: {"provider_network_type": "nsh"},
}
"""Networks by the tag that servers have them by; 0: the parents'."""

PATIENCE = 60.0


class Wired(Cloud):
    """The demo's cloud, with a physical network beside the underlay."""

    def start_hosts(self) -> None:
        one, two = (self.topology.host(name) for name in HOSTS)
        self.topology.link(one, "phys0", two, "phys0")
        super().start_hosts()

    def _host(self, name: str) -> Host:
        host = super()._host(name)
        with host.config.open("a") as file:
            file.write('physical_networks = { physnet1 = "phys0" }\n')
        return host


class Server:
    """A namespace behind the tap of a trunk's parent, with a VLAN device for each sub-port."""

    def __init__(self, cloud: Cloud, admin: Any, nets: dict[int, Any], host: str, number: int) -> None:
        self.admin, self.cloud, self.host = admin, cloud, cloud.hosts[host].namespace
        self.ports = {
            tag: admin.create_port(network_id=net.id, fixed_ips=[fixed(net, number)]) for tag, net in nets.items()
        }
        self.inside: Namespace = cloud.topology.host(f"server{number}")
        self.trunk = admin.create_trunk(port_id=self.ports[0].id)
        bound = admin.update_port(self.ports[0].id, binding_host_id=host)
        assert bound.binding_vif_type == "tap", cloud.headrace("port", "show", bound.id)

    def plug(self) -> None:
        """Make the tap, as Nova does."""
        parent = self.ports[0]
        pair = f"name tap{parent.id[:11]} netns {self.host.name} mtu 1500 type veth"
        pair += f" peer name eth0 address {parent.mac_address} netns {self.inside.name} mtu 1500"
        run(["ip", "link", "add", *pair.split()])
        lines = f"address add {self.address(0)}/24 dev eth0\nlink set eth0 up"
        run(["ip", "-n", self.inside.name, "-batch", "-"], stdin=lines)

    def join(self, tag: int, mtu: int) -> None:
        """Get a sub-port."""
        port = {"port_id": self.ports[tag].id, "segmentation_type": "vlan", "segmentation_id": tag}
        self.admin.add_trunk_subports(self.trunk.id, [port])
        mac, addresses = self.ports[tag].mac_address, [f"{self.address(tag)}/24"]
        vlan_device(
            self.cloud.topology, self.inside, "eth0", f"v{tag}", Vlan(tag), mac=mac, addresses=addresses, mtu=mtu
        )

    def address(self, tag: int) -> str:
        return str(self.ports[tag].fixed_ips[0]["ip_address"])

    def reaches(self, address: str, mtu: int) -> bool:
        """Whether a packet as large as the network takes comes back."""
        command = f"ping -c 1 -W 1 -M do -s {mtu - 28} {address}"
        return self.inside.run(command, check=False).returncode == 0

    def is_active(self) -> bool:
        return bool(self.admin.get_trunk(self.trunk.id).status == "ACTIVE")

    def becomes_active(self) -> None:
        """Wait for it; where it does not, say how far it and its ports got."""
        try:
            wait_until(self.is_active, PATIENCE)
        except TimeoutError:
            told = [self.cloud.headrace("port", "show", port.id) for port in self.ports.values()]
            pytest.fail("\n".join([str(self.admin.get_trunk(self.trunk.id)), *told]))


def fixed(net: Any, number: int) -> dict[str, str]:
    return {"ip_address": f"10.0.{net.tag}.{number}"}


@pytest.fixture
def cloud() -> Iterator[Wired]:
    with Topology() as topology:
        made = Wired(topology)
        made.start_controller()
        made.start_neutron()
        made.start_hosts()
        made.wait_for_neutron()
        yield made


def test_servers_talk_on_networks_of_every_type_through_their_trunks(cloud: Wired) -> None:
    admin = cloud.admin()
    wait_until(lambda: len([each for each in admin.agents() if each.is_alive]) == len(HOSTS), PATIENCE)
    nets = {tag: admin.create_network(**kind) for tag, kind in KINDS.items()}
    for tag, net in nets.items():
        net.tag = tag
        admin.create_subnet(
            network_id=net.id, ip_version=4, cidr=f"10.0.{tag}.0/24", enable_dhcp=False, gateway_ip=None
        )
    servers = [Server(cloud, admin, nets, host, number) for number, host in enumerate(HOSTS, 1)]
    one, two = servers
    for server in servers:
        assert not server.is_active()
        server.plug()
        server.becomes_active()
    wait_until(lambda: one.reaches(two.address(0), 1500), PATIENCE, "an answer on the parents' network")
    for tag in sorted(KINDS)[1:]:
        mtu = nets[tag].mtu
        for server in servers:
            server.join(tag, mtu)
        for server in servers:
            server.becomes_active()
        assert one.reaches(two.address(tag), mtu), f"{KINDS[tag]}: {cloud.hosts[HOSTS[0]].headrace('reason', 'list')}"
        assert two.reaches(one.address(tag), mtu)
    admin.delete_trunk_subports(one.trunk.id, [{"port_id": one.ports[14].id}])
    wait_until(lambda: not one.reaches(two.address(14), 1000), PATIENCE, "the sub-port that left to be cut off")
    assert one.reaches(two.address(15), 1000)
