"""The controller holds what Neutron holds, object by object, revision by revision."""

from __future__ import annotations

import random
import threading
import uuid
from typing import Any

import openstack.exceptions
import pytest

from headrace.testing.wait import wait_until
from tests.neutron.lab import SOON, Controller, Host, Neutron

SEED = 20160101


def test_everything_of_two_tenants_is_mirrored(neutron: Neutron, equal: Any) -> None:
    """Overlapping addresses, both IP versions, every form of rule."""
    for tenant in (neutron.cloud(uuid.uuid4().hex), neutron.cloud(uuid.uuid4().hex)):
        net = tenant.create_network(name="blue", mtu=1400)
        tenant.create_subnet(network_id=net.id, ip_version=4, cidr="10.0.0.0/24")
        tenant.create_subnet(network_id=net.id, ip_version=6, cidr="fd00::/64", gateway_ip=None)
        web = tenant.create_security_group(name="web")
        stateless = tenant.create_security_group(name="fast", stateful=False)
        friends = tenant.create_address_group(name="friends", addresses=["10.1.0.0/16", "fd01::/32"])
        for rule in (
            {"protocol": "tcp", "port_range_min": 80, "port_range_max": 443, "remote_ip_prefix": "0.0.0.0/0"},
            {"protocol": "17", "port_range_min": 53, "port_range_max": 53},
            {"protocol": "sctp", "remote_group_id": web.id},
            {"protocol": "icmp", "port_range_min": 8, "port_range_max": 0},
            {"protocol": "icmp", "ethertype": "IPv6", "port_range_min": 128},
            {"protocol": "icmpv6", "ethertype": "IPv6", "remote_ip_prefix": "fd00::/8"},
            {"protocol": "vrrp"},
            {"protocol": "200"},
            {"protocol": "0", "direction": "egress", "remote_address_group_id": friends.id},
            {"ethertype": "IPv6", "remote_group_id": stateless.id},
        ):
            tenant.create_security_group_rule(**{"security_group_id": web.id, "direction": "ingress", **rule})
        tenant.create_port(network_id=net.id, name="a", security_group_ids=[web.id])
        tenant.create_port(
            network_id=net.id,
            allowed_address_pairs=[
                {"ip_address": "10.0.0.128/25"},
                {"ip_address": "fd00::1:0/112", "mac_address": "02:00:00:00:00:09"},
            ],
        )
        tenant.create_port(network_id=net.id, port_security_enabled=False, security_group_ids=[], admin_state_up=False)
        tenant.create_port(network_id=net.id, fixed_ips=[], security_group_ids=[web.id, stateless.id][:1])
        tenant.create_port(network_id=net.id, security_group_ids=[stateless.id])
    equal()


def test_what_workloads_are_told_is_mirrored(cloud: Any, controller: Controller, equal: Any) -> None:
    """Subnets' options and ports' own, with every change. Of DNS servers and routes Neutron raises no revision."""
    net = cloud.create_network()
    four = cloud.create_subnet(
        network_id=net.id,
        ip_version=4,
        cidr="10.0.0.0/24",
        dns_nameservers=["10.0.0.53", "10.0.0.9"],
        host_routes=[{"destination": "10.9.0.0/16", "nexthop": "10.0.0.7"}],
    )
    six = {"network_id": net.id, "ip_version": 6, "ipv6_ra_mode": "slaac", "ipv6_address_mode": "slaac"}
    cloud.create_subnet(cidr="fd00::/64", **six)
    cloud.create_subnet(network_id=net.id, ip_version=4, cidr="10.1.0.0/24", is_dhcp_enabled=False)
    own = [
        {"opt_name": "bootfile-name", "opt_value": "pxelinux.0"},
        {"opt_name": "dns-server", "opt_value": "fd00::53", "ip_version": 6},
    ]
    port = cloud.create_port(network_id=net.id, extra_dhcp_opts=own)
    equal()
    changes: tuple[dict[str, Any], ...] = (
        {"dns_nameservers": ["10.0.0.9", "10.0.0.53"]},
        {"dns_nameservers": []},
        {"host_routes": []},
        {"is_dhcp_enabled": False},
    )
    for change in changes:
        cloud.update_subnet(four.id, **change)
        wait_until(lambda change=change: held(controller, "subnet", four.id, change), SOON)  # type: ignore[misc]
    for value in ("other.0", None):
        cloud.update_port(port.id, extra_dhcp_opts=[{"opt_name": "bootfile-name", "opt_value": value}])
        names = ["bootfile-name", "dns-server"] if value else ["dns-server"]
        wait_until(lambda names=names: options_held(controller, port.id) == names, SOON)  # type: ignore[misc]
    equal()


def held(controller: Controller, kind: str, identity: str, change: dict[str, Any]) -> bool:
    """Whether the controller has a change; what is empty or off is not in a body."""
    record = controller.record(kind, identity)
    body = (record and record.body) or {}
    names = {"is_dhcp_enabled": "enable_dhcp"}
    return all((body.get(names.get(name, name)) or None) == (value or None) for name, value in change.items())


def options_held(controller: Controller, port: str) -> list[str]:
    record = controller.record("port", port)
    return [option["name"] for option in ((record and record.body) or {}).get("dhcp_options", ())]


def test_a_change_arrives_at_once(cloud: Any, controller: Controller) -> None:
    """A mark leaves within two looks at the table of marks; the rest is the machine."""
    group = cloud.create_security_group(name="g")
    rule = cloud.create_security_group_rule(security_group_id=group.id, direction="ingress", protocol="tcp")
    wait_until(lambda: held_rules(controller, group.id) >= {rule.id}, 1.5)
    cloud.delete_security_group_rule(rule.id)
    wait_until(lambda: rule.id not in held_rules(controller, group.id), 1.5)


def held_rules(controller: Controller, group: str) -> set[str]:
    record = controller.record("security_group", group)
    return {rule["id"] for rule in (record.body or {}).get("rules", ())} if record else set()


def test_a_rule_raises_the_revision_of_its_group(cloud: Any, admin: Any) -> None:
    """The ledger rests on it: a group's body has its rules in it, and they have revisions of their own."""
    group = cloud.create_security_group(name="g")
    before = admin.get_security_group(group.id).revision_number
    rule = cloud.create_security_group_rule(security_group_id=group.id, direction="ingress", protocol="tcp")
    between = admin.get_security_group(group.id).revision_number
    cloud.delete_security_group_rule(rule.id)
    assert before < between < admin.get_security_group(group.id).revision_number


def test_a_group_loses_the_rules_that_named_a_deleted_group(cloud: Any, controller: Controller, equal: Any) -> None:
    """Neutron's foreign key takes them; nobody is told."""
    remote, group = cloud.create_security_group(name="remote"), cloud.create_security_group(name="g")
    rule = cloud.create_security_group_rule(security_group_id=group.id, direction="ingress", remote_group_id=remote.id)
    wait_until(lambda: rule.id in held_rules(controller, group.id), SOON)
    cloud.delete_security_group(remote.id)
    wait_until(lambda: rule.id not in held_rules(controller, group.id), SOON)
    equal()


def test_deletions_arrive(cloud: Any, controller: Controller, equal: Any) -> None:
    """A network with all that is on it, in Neutron's order; nothing of it comes back."""
    net = cloud.create_network()
    cloud.create_subnet(network_id=net.id, ip_version=4, cidr="10.0.0.0/24")
    ports = [cloud.create_port(network_id=net.id) for _ in range(3)]
    group = cloud.create_address_group(name="g", addresses=["10.0.0.0/8"])
    equal()
    for port in ports:
        cloud.delete_port(port.id)
    cloud.delete_network(net.id)
    cloud.delete_address_group(group.id)
    wait_until(lambda: controller.record("network", net.id) is None, SOON)
    equal()


class Burst:
    """One tenant's random work. Every refusal of the API must be one of its own making (4xx), never a 5xx."""

    def __init__(self, neutron: Neutron, seed: int, hosts: list[str]) -> None:
        self.random = random.Random(seed)
        self.cloud = neutron.cloud(uuid.uuid4().hex)
        self.admin = neutron.admin()
        self.hosts = hosts
        self.made: dict[str, list[str]] = {kind: [] for kind in ("net", "subnet", "port", "group", "rule", "set")}
        self.failures: list[Exception] = []

    def run(self, steps: int) -> None:
        try:
            self.cloud_step("make_net")
            self.cloud_step("make_group")
            steppers = [name for name in dir(self) if name.startswith(("make_", "change_", "drop_"))]
            for _ in range(steps):
                self.cloud_step(self.random.choice(steppers))
        except Exception as error:  # noqa: BLE001 - shown by the test, in its own thread
            self.failures.append(error)

    def cloud_step(self, name: str) -> None:
        try:
            getattr(self, name)()
        except openstack.exceptions.HttpException as error:
            if error.status_code is None or error.status_code >= 500:
                raise

    def pick(self, kind: str) -> str:
        return self.random.choice(self.made[kind]) if self.made[kind] else str(uuid.uuid4())

    def take(self, kind: str) -> str:
        identity = self.pick(kind)
        if identity in self.made[kind]:
            self.made[kind].remove(identity)
        return identity

    def make_net(self) -> None:
        net = self.cloud.create_network(name=f"net{self.random.randrange(99)}")
        self.made["net"].append(net.id)
        cidr = f"10.{self.random.randrange(4)}.0.0/24"
        self.made["subnet"].append(self.cloud.create_subnet(network_id=net.id, ip_version=4, cidr=cidr).id)

    def make_subnet(self) -> None:
        cidr = f"fd00:{self.random.randrange(9)}::/64"
        subnet = self.cloud.create_subnet(network_id=self.pick("net"), ip_version=6, cidr=cidr)
        self.made["subnet"].append(subnet.id)

    def make_port(self) -> None:
        groups = [self.pick("group")] if self.random.random() < 0.7 else []
        host = {"binding_host_id": self.random.choice(self.hosts)} if self.random.random() < 0.5 else {}
        maker = self.admin if host else self.cloud
        port = maker.create_port(network_id=self.pick("net"), security_group_ids=groups, **host)
        self.made["port"].append(port.id)

    make_port_again = make_port

    def make_group(self) -> None:
        group = self.cloud.create_security_group(name="g", stateful=self.random.random() < 0.8)
        self.made["group"].append(group.id)

    def make_set(self) -> None:
        group = self.cloud.create_address_group(name="s", addresses=[f"192.0.2.{self.random.randrange(256)}/32"])
        self.made["set"].append(group.id)

    def make_rule(self) -> None:
        low = self.random.randrange(1, 60000)
        remote: dict[str, str] = self.random.choice(
            [
                {},
                {"remote_ip_prefix": f"10.{self.random.randrange(256)}.0.0/16"},
                {"remote_group_id": self.pick("group")},
                {"remote_address_group_id": self.pick("set")},
            ]
        )
        rule = self.cloud.create_security_group_rule(
            security_group_id=self.pick("group"),
            direction=self.random.choice(["ingress", "egress"]),
            protocol=self.random.choice(["tcp", "udp", "sctp"]),
            port_range_min=low,
            port_range_max=low + 10,
            **remote,
        )
        self.made["rule"].append(rule.id)

    make_rule_again = make_rule

    def change_port(self) -> None:
        change: dict[str, Any] = self.random.choice(
            [
                {"name": f"p{self.random.randrange(99)}"},
                {"is_admin_state_up": self.random.random() < 0.5},
                {"security_group_ids": [self.pick("group")]},
                {"allowed_address_pairs": [{"ip_address": f"10.9.{self.random.randrange(256)}.0/24"}]},
                {"binding_host_id": self.random.choice([*self.hosts, ""])},
            ]
        )
        self.admin.update_port(self.pick("port"), **change)

    def change_set(self) -> None:
        identity = self.pick("set")
        self.cloud.add_addresses_to_address_group(identity, [f"198.51.100.{self.random.randrange(256)}/32"])

    def change_group(self) -> None:
        self.cloud.update_security_group(self.pick("group"), name=f"g{self.random.randrange(99)}")

    def change_net(self) -> None:
        self.cloud.update_network(self.pick("net"), name=f"net{self.random.randrange(99)}")

    def drop_port(self) -> None:
        self.cloud.delete_port(self.take("port"))

    def drop_rule(self) -> None:
        self.cloud.delete_security_group_rule(self.take("rule"))

    def drop_group(self) -> None:
        self.cloud.delete_security_group(self.pick("group"))

    def drop_net(self) -> None:
        if self.random.random() < 0.3:
            self.cloud.delete_network(self.pick("net"))


@pytest.mark.slow
def test_a_burst_of_two_tenants_ends_equal(neutron: Neutron, controller: Controller, equal: Any, host: str) -> None:
    """Concurrent random work, with a worker killed in the middle of it."""
    with Host(controller, host):
        wait_until(lambda: list(neutron.admin().agents(host=host)), SOON)
        bursts = [Burst(neutron, SEED + number, [host, "nowhere"]) for number in range(2)]
        threads = [threading.Thread(target=burst.run, args=(120,)) for burst in bursts]
        for thread in threads:
            thread.start()
        neutron.kill_leader()
        for thread in threads:
            thread.join()
        assert all(sum(map(len, burst.made.values())) > 10 for burst in bursts), "most of the burst was refused"
        assert [error for burst in bursts for error in burst.failures] == []
        equal()
