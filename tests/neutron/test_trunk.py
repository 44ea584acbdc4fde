"""Trunks: sub-ports follow their parent, on networks of any type, and the trunk says how far it got."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from headrace.model import PortStatus
from headrace.testing.wait import wait_until
from tests.neutron.lab import SOON, Controller, Host, Neutron, down, up
from tests.neutron.test_network_type import EVERY
from tests.neutron.test_port import agent, status

KINDS: dict[int, dict[str, Any]] = {
    100: {"provider_network_type": "vlan", "provider_physical_network": "physnet1"},
    200: {"provider_network_type": "mpls"},
    300: {"provider_network_type": "nsh"},
}
"""Networks of sub-ports, by the tag that the workload has them by."""


class Cloud:
    """A host that can do everything, a parent port, and ports that may become its sub-ports."""

    def __init__(self, admin: Any, controller: Controller, host: str) -> None:
        self.admin, self.controller, self.host = admin, controller, host
        self.nets = [admin.create_network(provider_network_type="flat", provider_physical_network="physnet1")]
        self.parent = admin.create_port(network_id=self.nets[0].id)
        self.ports: dict[int, Any] = {}
        for tag, kind in KINDS.items():
            self.nets.append(admin.create_network(**kind))
            admin.create_subnet(network_id=self.nets[-1].id, ip_version=4, cidr="10.0.0.0/24")
            self.ports[tag] = admin.create_port(network_id=self.nets[-1].id)

    def trunk(self, *tags: int) -> Any:
        return self.admin.create_trunk(port_id=self.parent.id, sub_ports=self.members(*tags))

    def members(self, *tags: int) -> list[dict[str, Any]]:
        return [{"port_id": self.ports[tag].id, "segmentation_type": "vlan", "segmentation_id": tag} for tag in tags]

    def bind(self, host: str | None = None) -> None:
        port = self.admin.update_port(self.parent.id, binding_host_id=self.host if host is None else host)
        assert port.binding_vif_type == ("tap" if host != "" else "unbound")

    def placed(self, *tags: int) -> bool:
        """Whether exactly these are sub-ports, in Neutron and as the controller has them."""
        return all(self.place(tag) == (self.expected(tag) if tag in tags else FREE) for tag in KINDS)

    def expected(self, tag: int) -> tuple[Any, ...]:
        name = self.parent.id
        return ("tap", self.host, "trunk:subport", {"parent_name": name, "tag": tag}, (name, tag, self.host))

    def place(self, tag: int) -> tuple[Any, ...]:
        port = self.admin.get_port(self.ports[tag].id)
        return (
            *(port.binding_vif_type, port.binding_host_id, port.device_owner, port.binding_profile),
            self.held(tag),
        )

    def held(self, tag: int) -> tuple[Any, ...]:
        record = self.controller.record("port", self.ports[tag].id)
        return tuple(((record and record.body) or {}).get(name) for name in ("parent", "vlan", "host"))

    def is_trunk(self, trunk: Any, wanted: str) -> None:
        wait_until(lambda: self.admin.get_trunk(trunk.id).status == wanted, SOON, f"the trunk is {wanted}")

    def end(self) -> None:
        for trunk in self.admin.trunks(port_id=self.parent.id):
            self.admin.delete_trunk(trunk.id)
        for port in (self.parent, *self.ports.values()):
            self.admin.delete_port(port.id)
        for net in self.nets:
            self.admin.delete_network(net.id)


FREE: tuple[Any, ...] = ("unbound", "", "", {}, (None, None, None))


@pytest.fixture
def made(admin: Any, controller: Controller, host: str) -> Iterator[Cloud]:
    made = Cloud(admin, controller, host)
    yield made
    made.end()


def test_from_boot_to_shelf(made: Cloud, admin: Any, controller: Controller, host: str, equal: Any) -> None:
    """Made before its server is, bound with it, active when all of it is, and unbound with it."""
    trunk = made.trunk(100, 200, 300)
    assert trunk.status == "DOWN"
    with Host(controller, host, **EVERY) as played:
        wait_until(lambda: agent(admin, host), SOON)
        made.bind()
        wait_until(lambda: made.placed(100, 200, 300), SOON)
        made.is_trunk(trunk, "BUILD")
        equal()
        played.report(up(made.parent.id), up(made.ports[100].id), up(made.ports[200].id))
        for tag in (100, 200):
            wait_until(lambda tag=tag: status(admin, made.ports[tag]) == "ACTIVE", SOON)  # type: ignore[misc]
        assert admin.get_trunk(trunk.id).status == "BUILD"
        played.report(up(made.ports[300].id))
        made.is_trunk(trunk, "ACTIVE")
        played.report(PortStatus(id=made.ports[200].id, state="error", reason="its segment is another network's"))
        made.is_trunk(trunk, "DEGRADED")
        played.report(up(made.ports[200].id))
        made.is_trunk(trunk, "ACTIVE")
        played.report(down(made.parent.id))
        made.is_trunk(trunk, "DOWN")
        played.report(up(made.parent.id))
        made.is_trunk(trunk, "ACTIVE")
        made.bind("")
        made.is_trunk(trunk, "DOWN")
        wait_until(lambda: all(made.place(tag)[:2] == ("unbound", "") for tag in KINDS), SOON)
        wait_until(lambda: all(made.held(tag) == (made.parent.id, tag, None) for tag in KINDS), SOON)
        equal()


def test_sub_ports_come_and_go_under_a_running_server(
    made: Cloud, admin: Any, controller: Controller, host: str, equal: Any
) -> None:
    """A bound port becomes a trunk, gets and loses sub-ports, changes a tag, and ceases to be one."""
    with Host(controller, host, **EVERY) as played:
        wait_until(lambda: agent(admin, host), SOON)
        made.bind()
        played.report(up(made.parent.id), *(up(port.id) for port in made.ports.values()))
        trunk = made.trunk()
        made.is_trunk(trunk, "ACTIVE")
        admin.add_trunk_subports(trunk.id, made.members(100, 200))
        wait_until(lambda: made.placed(100, 200), SOON)
        made.is_trunk(trunk, "ACTIVE")
        admin.delete_trunk_subports(trunk.id, [{"port_id": made.ports[100].id}])
        wait_until(lambda: made.placed(200), SOON)
        made.is_trunk(trunk, "ACTIVE")
        # The same port by another tag, at once: only its row among the sub-ports changes.
        admin.delete_trunk_subports(trunk.id, [{"port_id": made.ports[200].id}])
        admin.add_trunk_subports(trunk.id, [made.members(200)[0] | {"segmentation_id": 222}])
        wait_until(lambda: made.held(200) == (made.parent.id, 222, host), SOON)
        wait_until(lambda: admin.get_port(made.ports[200].id).binding_profile.get("tag") == 222, SOON)
        equal()
        admin.delete_trunk(trunk.id)
        wait_until(made.placed, SOON)
        assert admin.get_port(made.parent.id).binding_host_id == host
        equal()


def test_a_sub_port_that_the_host_cannot_carry_degrades_its_trunk(
    made: Cloud, admin: Any, controller: Controller, host: str
) -> None:
    """The others work; and the one that was refused does, as soon as the host can."""
    with Host(controller, host, **(EVERY | {"network_types": ("flat", "vlan", "nsh")})) as played:
        wait_until(lambda: agent(admin, host), SOON)
        trunk = made.trunk(100, 200)
        made.bind()
        played.report(up(made.parent.id), up(made.ports[100].id))
        made.is_trunk(trunk, "DEGRADED")
        reason = wait_until(lambda: controller.refusals().get(made.ports[200].id), SOON)
        assert "network type mpls is not available" in str(reason)
        assert made.held(200) == (made.parent.id, 200, None)
        assert made.held(100) == (made.parent.id, 100, host)
        played.report(up(made.ports[200].id), **EVERY)
        made.is_trunk(trunk, "ACTIVE")
        assert made.placed(100, 200)


def test_sub_ports_move_with_their_parent(made: Cloud, admin: Any, controller: Controller, host: str) -> None:
    other = f"{host}-b"
    with Host(controller, host, **EVERY), Host(controller, other, **EVERY):
        for name in (host, other):
            wait_until(lambda name=name: agent(admin, name), SOON)  # type: ignore[misc]
        made.trunk(100, 200)
        made.bind()
        wait_until(lambda: made.placed(100, 200), SOON)
        made.bind(other)
        made.host = other
        wait_until(lambda: made.placed(100, 200), SOON)


def test_what_no_mark_told_is_found(
    made: Cloud, neutron: Neutron, admin: Any, controller: Controller, host: str, equal: Any
) -> None:
    """A sub-port unbound by hand, one left behind, and what changed behind the back of every callback."""
    with Host(controller, host, **EVERY):
        wait_until(lambda: agent(admin, host), SOON)
        trunk = made.trunk(100)
        made.bind()
        wait_until(lambda: made.placed(100), SOON)
        admin.update_port(made.ports[100].id, binding_host_id="", binding_profile={})
        admin.update_port(made.ports[300].id, binding_host_id=host, device_owner="trunk:subport")
        wait_until(lambda: made.placed(100), SOON)
        made.is_trunk(trunk, "BUILD")
        neutron.execute("UPDATE trunks SET status = 'ACTIVE' WHERE id = %s", trunk.id)
        neutron.execute("INSERT INTO subports VALUES (%s, %s, 'vlan', 200)", made.ports[200].id, trunk.id)
        wait_until(lambda: made.placed(100, 200), SOON)
        made.is_trunk(trunk, "BUILD")
        equal()
