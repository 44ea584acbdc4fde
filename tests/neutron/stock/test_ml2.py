"""Neutron's own ML2 tests with our driver alone, or in front of the test drivers that they need for binding.

They use SQLite in memory and one thread; no worker and no controller run. The fast choice that ``make test`` runs
is listed in conftest.py; everything else here is marked ``stock``.
"""

from unittest import mock

from neutron.tests.unit.plugins.ml2 import test_plugin, test_port_binding, test_security_group
from oslo_config import cfg

import headrace.neutron.models  # noqa: F401 - the schema is made of what is imported


class Alone:
    """Load our mechanism driver and no other, whatever the stock class would load."""

    drivers: tuple[str, ...] = ("headrace",)
    _mechanism_drivers: tuple[str, ...] = ("headrace",)

    def setUp(self, *args: object, **kwargs: object) -> None:
        original = cfg.CONF.set_override

        def set_override(name: str, override: object, *rest: object, **named: object) -> None:
            original(name, list(self.drivers) if name == "mechanism_drivers" else override, *rest, **named)

        set_override("mechanism_drivers", None, "ml2")
        with mock.patch.object(cfg.CONF, "set_override", set_override):
            super().setUp(*args, **kwargs)  # type: ignore[misc]


class InFront(Alone):
    """Load our driver in front of Neutron's test drivers: ours sees every call and declines their hosts."""

    drivers = ("headrace", "logger", "test")


class TestNetworks(Alone, test_plugin.TestMl2NetworksV2):
    """Networks, with bulk and provider attributes."""


class TestSubnets(Alone, test_plugin.TestMl2SubnetsV2):
    """Subnets of both IP versions."""


class TestPorts(InFront, test_plugin.TestMl2PortsV2):
    """Ports, with status, bulk and deletion races."""


class TestPortBinding(InFront, test_plugin.TestMl2PortBinding):
    """Binding attributes of the ports API."""


class TestPortBindingHost(InFront, test_plugin.TestMl2PortBindingHost):
    """Hosts of bindings."""


class TestPortBindingVnicType(InFront, test_plugin.TestMl2PortBindingVnicType):
    """Vnic types of bindings."""


class TestBinding(InFront, test_port_binding.PortBindingTestCase):
    """The binding procedure itself."""


class TestBindingExtended(InFront, test_port_binding.ExtendedPortBindingTestCase):
    """Several bindings of one port, as live migration makes them."""


class TestMultiSegment(InFront, test_plugin.TestMultiSegmentNetworks):
    """Networks of several segments."""


class TestAddressPairs(Alone, test_plugin.TestMl2AllowedAddressPairs):
    """Allowed address pairs."""


class TestSecurityGroups(Alone, test_security_group.TestMl2SecurityGroups):
    """Security groups and their rules."""
