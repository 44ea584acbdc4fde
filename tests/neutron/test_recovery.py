"""Whatever dies, is lost or comes back old: the controller ends up with what Neutron has."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from headrace.model import Record
from headrace.testing.wait import wait_until
from tests.neutron.lab import SOON, Controller, Host, Neutron, up


def test_api_works_while_the_controller_is_down_and_it_catches_up(
    cloud: Any, controller: Controller, equal: Any
) -> None:
    before = cloud.create_network(name="before")
    equal()
    controller.stop()
    try:
        net = cloud.create_network(name="meanwhile")
        cloud.create_subnet(network_id=net.id, ip_version=4, cidr="10.0.0.0/24")
        cloud.create_port(network_id=net.id)
        cloud.create_address_group(name="g", addresses=["10.0.0.0/8"])
        cloud.delete_network(before.id)
    finally:
        controller.start()
    equal()


def test_a_controller_that_lost_everything_is_filled_again(
    cloud: Any, admin: Any, controller: Controller, equal: Any, host: str
) -> None:
    """Agents report to the new life of the controller, and ports stay as they were."""
    net = cloud.create_network()
    with Host(controller, host) as played:
        wait_until(lambda: list(admin.agents(host=host)), SOON)
        port = admin.create_port(network_id=net.id, binding_host_id=host)
        played.report(up(port.id))
        wait_until(lambda: admin.get_port(port.id).status == "ACTIVE", SOON)
        epoch = controller.ask(lambda client: client.health()).epoch
        controller.lose_everything()
        assert controller.ask(lambda client: client.health()).epoch != epoch
        equal()
        assert admin.get_port(port.id).status == "ACTIVE"


def test_a_lost_mark_is_found_by_the_ledger(neutron: Neutron, cloud: Any, controller: Controller, equal: Any) -> None:
    """As when a process dies between committing an address group and marking it."""
    group = cloud.create_security_group(name="old")
    equal()
    # The row changes as the API would change it, but behind the back of every callback.
    neutron.execute("UPDATE securitygroups SET name = 'new' WHERE id = %s", group.id)
    neutron.execute(
        "UPDATE standardattributes SET revision_number = revision_number + 1 WHERE id = "
        "(SELECT standard_attr_id FROM securitygroups WHERE id = %s)",
        group.id,
    )
    wait_until(lambda: name_of(controller, group.id) == "new", SOON)
    equal()


def name_of(controller: Controller, group: str) -> Any:
    record = controller.record("security_group", group)
    return record and (record.body or {}).get("name")


def test_a_database_from_a_backup_begins_a_new_writer_epoch(
    neutron: Neutron, cloud: Any, controller: Controller, equal: Any
) -> None:
    """What the controller knows of the lost future does not stand against what Neutron says now."""
    net, lost = cloud.create_network(name="kept"), cloud.create_network(name="lost")
    equal()
    held = controller.record("network", net.id)
    assert held is not None
    assert held.body is not None
    future = Record(
        type="network",
        id=net.id,
        writer="neutron",
        writer_epoch=held.writer_epoch,
        revision=held.revision + 100,
        body=held.body | {"name": "from the future"},
    )
    tombstone = Record(type="network", id=lost.id, writer="neutron", writer_epoch=held.writer_epoch, revision=10**6)
    controller.ask(lambda client: client.batch([future, tombstone]))
    # A restore is done with Neutron stopped: the worker starts anew after it.
    neutron.kill_leader()
    equal()
    after = controller.record("network", net.id)
    assert after is not None
    assert after.writer_epoch != held.writer_epoch


def test_another_translation_is_pushed(neutron: Neutron, cloud: Any, controller: Controller, equal: Any) -> None:
    """As when a transport is configured anew: no revision changes, and what the controller has is wrong."""
    net = cloud.create_network(name="carried otherwise")
    equal()
    held = controller.record("network", net.id)
    assert held is not None
    assert held.body is not None
    wrong = msgspec.structs.replace(held, body=held.body | {"mtu": 1000})
    controller.ask(lambda client: client.batch([wrong]))
    neutron.execute("UPDATE headrace_leader SET translation = 'of yesterday'")
    neutron.kill_leader()
    equal()


def test_a_full_resync_deletes_what_is_ours_and_only_that(cloud: Any, controller: Controller, equal: Any) -> None:
    """An object that Neutron forgot goes, an operator's stays."""

    def network(identity: str, writer: str, epoch: str, vni: int) -> Record:
        body = {"id": identity, "segment": {"id": vni}}
        return Record(type="network", id=identity, writer=writer, writer_epoch=epoch, revision=1, body=body)

    controller.lose_everything()
    strangers = [network("theirs", "cli", "", 7), network("stray", "neutron", "before", 8)]
    controller.ask(lambda client: client.batch(strangers))
    cloud.create_network()
    equal()
    assert controller.record("network", "theirs") is not None
    assert controller.record("network", "stray") is None


@pytest.mark.slow
def test_another_worker_takes_over(
    neutron: Neutron, controller: Controller, equal: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A second server on the same database, its worker a thread as in the demo, stands by and then leads."""
    first = wait_until(neutron.leader, SOON)
    second = Neutron(tmp_path_factory.mktemp("second"), controller, worker="thread", database=neutron.database)
    try:
        second.wait()
        assert neutron.leader() == first
        # All of the first: its parent too, which would only start another.
        neutron.stop_worker()
        wait_until(lambda: neutron.leader() not in {"", first}, SOON)
        assert neutron.leader().split(":")[1] == str(second.process.pid)
        second.cloud("second").create_network(name="by the second server")
        equal()
    finally:
        assert second.stop() == 0
        neutron.start_worker()
    equal()
