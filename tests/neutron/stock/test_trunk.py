"""What a trunk's change leaves in Neutron's database, where no worker runs to act on it."""

from neutron.tests.unit.plugins.ml2 import test_plugin
from neutron_lib import context
from neutron_lib.plugins import directory

from headrace.neutron.models import Dirty
from headrace.neutron.trunk import MARK
from tests.neutron.stock.test_ml2 import Alone


class TestTrunk(Alone, test_plugin.Ml2PluginV2TestCase):
    """Marks for the worker, and revisions for the ledger, which finds what a lost mark would have told."""

    def get_additional_service_plugins(self) -> dict[str, str]:
        more = {"trunk": "trunk", "revisions": "revisions"}
        return super().get_additional_service_plugins() | more  # type: ignore[no-any-return]

    def setUp(self, *args: object, **kwargs: object) -> None:
        super().setUp(*args, **kwargs)
        self.context, self.core = context.get_admin_context(), directory.get_plugin()
        self.trunks = directory.get_plugin("trunk")
        net = self.deserialize(self.fmt, self._create_network(self.fmt, "n", True))["network"]
        self.ports = [
            self.deserialize(self.fmt, self._create_port(self.fmt, net["id"]))["port"]["id"] for _ in range(3)
        ]

    def member(self, number: int) -> dict[str, object]:
        return {"port_id": self.ports[number], "segmentation_type": "vlan", "segmentation_id": number}

    def revision(self, number: int) -> int:
        return int(self.core.get_port(context.get_admin_context(), self.ports[number])["revision_number"])

    def marked(self) -> dict[str, set[int]]:
        """By kind, the ports marked since the last look."""
        session = context.get_admin_context().session
        with session.begin():
            rows = session.query(Dirty).all()
            found = {(row.type, row.object_id) for row in rows}
            for row in rows:
                session.delete(row)
        return {
            kind: {self.ports.index(name) for each, name in found if each == kind and name in self.ports}
            for kind in ("port", MARK)
        }

    def test_every_change_is_marked_and_raises_revisions(self) -> None:
        self.marked()
        before = [self.revision(number) for number in range(3)]
        given = {"port_id": self.ports[0], "project_id": "t", "sub_ports": [self.member(1)]}
        trunk = self.trunks.create_trunk(self.context, {"trunk": given})["id"]
        assert self.marked() == {"port": {1}, MARK: {0, 1}}
        assert [self.revision(number) - before[number] for number in range(3)] == [0, 1, 0]
        self.trunks.add_subports(self.context, trunk, {"sub_ports": [self.member(2)]})
        assert self.marked() == {"port": {2}, MARK: {0, 2}}
        assert [self.revision(number) - before[number] for number in range(3)] == [0, 1, 1]
        self.trunks.remove_subports(self.context, trunk, {"sub_ports": [{"port_id": self.ports[1]}]})
        assert self.marked() == {"port": {1}, MARK: {0, 1}}
        assert [self.revision(number) - before[number] for number in range(3)] == [0, 2, 1]
        self.trunks.delete_trunk(self.context, trunk)
        assert self.marked() == {"port": {2}, MARK: {0, 2}}
        assert [self.revision(number) - before[number] for number in range(3)] == [0, 2, 2]
