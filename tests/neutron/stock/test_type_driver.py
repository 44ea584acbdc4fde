"""Neutron's own tests of tunnel type drivers with ours, and what is said of ours beside them."""

from typing import Any
from unittest import mock

import pytest
from neutron.api.api_common import convert_exception_to_http_exc
from neutron.tests.unit import testlib_api
from neutron.tests.unit.plugins.ml2 import test_plugin
from neutron.tests.unit.plugins.ml2.drivers import base_type_tunnel
from neutron_lib import context
from neutron_lib.api import faults
from neutron_lib.api.definitions import portbindings
from neutron_lib.callbacks.exceptions import CallbackFailure
from neutron_lib.exceptions import InvalidInput
from neutron_lib.plugins import directory
from neutron_lib.plugins.ml2 import api
from oslo_config import cfg

from headrace.neutron import config
from headrace.neutron.binding import AGENT_TYPE, DRIVER_NAME
from headrace.neutron.type_driver import MplsTypeDriver, NshTypeDriver
from tests.neutron.stock.test_ml2 import Alone


class WithoutEndpoints(base_type_tunnel.TunnelTypeTestMixin):
    """Agents speak no RPC here: there are no endpoints to add, and asking for them does no harm."""

    first = 1

    def test_validate_provider_segment(self) -> None:
        segment: dict[str, Any] = {api.NETWORK_TYPE: self.TYPE, api.PHYSICAL_NETWORK: "physnet"}
        with pytest.raises(InvalidInput):
            self.driver.validate_provider_segment(segment)
        segment = {api.NETWORK_TYPE: self.TYPE, api.SEGMENTATION_ID: None}
        self.driver.validate_provider_segment(segment)
        self.driver.validate_provider_segment(segment | {api.SEGMENTATION_ID: self.first})
        with pytest.raises(InvalidInput):
            self.driver.validate_provider_segment(segment | {api.SEGMENTATION_ID: self.first - 1})

    def test_no_endpoints(self) -> None:
        self.driver.add_endpoint("192.0.2.1", "h1")
        assert self.driver.get_endpoints() == []
        assert self.driver.get_endpoint_by_host("h1") is None
        assert self.driver.get_endpoint_by_ip("192.0.2.1") is None

    test_add_endpoint = test_add_endpoint_for_existing_tunnel_ip = test_no_endpoints
    test_get_endpoint_by_host = test_get_endpoint_by_ip = test_no_endpoints

    def test_with_network_segment_range(self) -> None:
        """That service plug-in knows nothing of this type, and does not take its ranges away."""
        directory.add_plugin("NETWORK_SEGMENT_RANGE", mock.Mock())
        low, high = base_type_tunnel.TUNNEL_RANGES[0]
        assert low <= self.driver.allocate_tenant_segment(self.context)[api.SEGMENTATION_ID] <= high


class TestMpls(WithoutEndpoints, testlib_api.SqlTestCase):
    """Labels."""

    DRIVER_CLASS, TYPE, first = MplsTypeDriver, "mpls", 16


class TestNsh(WithoutEndpoints, testlib_api.SqlTestCase):
    """Service paths."""

    DRIVER_CLASS, TYPE = NshTypeDriver, "nsh"


class TestMplsRanges(base_type_tunnel.TunnelTypeMultiRangeTestMixin, testlib_api.SqlTestCase):
    """Several ranges of labels."""

    DRIVER_CLASS = MplsTypeDriver

    def test_a_range_that_is_none_ends_neutron(self) -> None:
        for given, wrong in (
            ("3:20", "3 is no label; give 16 to 1048575"),
            ("16:1048576", "1048576 is no label"),
            ("30:20", "End of tunnel range is less"),
            ("many", "not enough values"),
        ):
            cfg.CONF.set_override("label_ranges", [given], group=config.MPLS_GROUP)
            with pytest.raises(SystemExit, match=rf"\[ml2_type_mpls\] label_ranges: .*{wrong}"):
                self.driver.initialize()
        cfg.CONF.set_override("label_ranges", ["16:17", "1048575:1048575"], group=config.MPLS_GROUP)
        self.driver.initialize()
        assert self.driver.get_network_segment_ranges() == [(16, 17), (1048575, 1048575)]


class TestMplsMtu(base_type_tunnel.TunnelTypeMTUTestMixin, testlib_api.SqlTestCase):
    """UDP, one label, inner Ethernet (docs/pipeline.md, "encap")."""

    DRIVER_CLASS, TYPE, ENCAP_OVERHEAD = MplsTypeDriver, "mpls", 26


class TestMplsGreMtu(TestMplsMtu):
    """GRE instead."""

    ENCAP_OVERHEAD = 22

    def setUp(self) -> None:
        super().setUp()
        cfg.CONF.set_override("transport", "gre", group=config.MPLS_GROUP)


class TestNshMtu(base_type_tunnel.TunnelTypeMTUTestMixin, testlib_api.SqlTestCase):
    """UDP, VXLAN-GPE, NSH without metadata, inner Ethernet."""

    DRIVER_CLASS, TYPE, ENCAP_OVERHEAD = NshTypeDriver, "nsh", 38

    def test_over_ethernet(self) -> None:
        """No outer IP, whatever its version would be."""
        cfg.CONF.set_override("transport", "ethernet", group=config.NSH_GROUP)
        for version in (4, 6):
            cfg.CONF.set_override("overlay_ip_version", version, group="ml2")
            assert self.driver.get_mtu() == 1478


class TestSecondSegment(Alone, test_plugin.Ml2PluginV2TestCase):
    """A network with ports bound by us stays one of one segment."""

    def get_additional_service_plugins(self) -> dict[str, str]:
        return super().get_additional_service_plugins() | {"segments": "segments"}  # type: ignore[no-any-return]

    def test_is_refused_while_ports_are_bound(self) -> None:
        admin, plugin = context.get_admin_context(), directory.get_plugin()
        segments = directory.get_plugin("segments")
        agent = {"agent_type": AGENT_TYPE, "binary": "headrace-agent", "host": "h1", "topic": "N/A"}
        able = {"network_types": ["vlan"], "physical_networks": ["physnet1"]}
        plugin.create_or_update_agent(admin, agent | {"configurations": able, "resource_versions": {}}, None)
        provider = {
            "provider:network_type": "vlan", "provider:physical_network": "physnet1", "provider:segmentation_id": 76,
        }  # fmt: skip
        named = {"arg_list": tuple(provider)} | provider
        net = self.deserialize(self.fmt, self._create_network(self.fmt, "n", True, as_admin=True, **named))["network"]
        port = self.deserialize(self.fmt, self._create_port(self.fmt, net["id"]))["port"]
        bound = plugin.update_port(admin, port["id"], {"port": {portbindings.HOST_ID: "h1"}})
        assert bound[portbindings.VIF_DETAILS]["bound_drivers"] == {"0": DRIVER_NAME}
        second = {
            "network_id": net["id"], "network_type": "vlan", "physical_network": "physnet1", "segmentation_id": 77,
            "name": None, "description": None,
        }  # fmt: skip
        with pytest.raises(CallbackFailure) as failed:
            segments.create_segment(admin, {"segment": second})
        told = convert_exception_to_http_exc(failed.value, faults.FAULT_MAP, None)
        assert told.code == 400
        assert b"has 1 ports bound by headrace, which carries networks of exactly one segment" in told.body
        plugin.update_port(admin, port["id"], {"port": {portbindings.HOST_ID: ""}})
        segments.create_segment(admin, {"segment": second})
        assert len(segments.get_segments(admin)) == 2
