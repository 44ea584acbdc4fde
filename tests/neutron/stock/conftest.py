"""Which of Neutron's own tests run every time: those that meet a mechanism driver's duties most directly."""

from __future__ import annotations

import fnmatch
from pathlib import Path

import pytest

HERE = Path(__file__).parent

SHORT = (
    "TestNetworks::test_create_network",
    "TestNetworks::test_update_network",
    "TestNetworks::test_network_precommit_*",
    "TestNetworks::test_create_networks_bulk_native_plugin_failure",
    "TestNetworks::test__update_provider_network_attributes_*",
    "TestSubnets::test_create_subnet",
    "TestSubnets::test_update_subnet",
    "TestSubnets::test_delete_subnet",
    "TestSubnets::test_delete_network",
    "TestPorts::test_port_precommit_*",
    "TestPorts::test_port_after_*",
    "TestPorts::test_registry_publish_*",
    "TestPorts::test_*_tolerates_db_deadlock",
    "TestPorts::test__port_provisioned_with_blocks",
    "TestPorts::test_create_ports_bulk_native",
    "TestPorts::test_create_ports_bulk_with_portbinding_attrs",
    "TestPorts::test_update_port",
    "TestPorts::test_update_port_status_build",
    "TestPorts::test_delete_port",
    "TestBinding::*",
    "TestBindingExtended::test_activate_port_binding*",
    "TestPortBindingHost::*",
    "TestMultiSegment::test_create_network_provider",
    "TestAddressPairs::test_create_port_allowed_address_pairs",
    "TestAddressPairs::test_update_add_address_pairs",
    "TestSecurityGroups::test_create_security_group",
    "TestSecurityGroups::test_security_groups_created_outside_transaction",
    "TestSecurityGroups::test_security_group_rule_updated",
    "TestSecurityGroups::test_security_group_member_updated",
    "TestSecurityGroups::test_create_security_group_rule_bulk_native",
    "TestSecurityGroups::test_delete_security_group",
    "TestMpls::*",
    "TestMplsRanges::*",
    "TestNsh::test_reserve_provider_segment*",
    "TestNsh::test_validate_provider_segment",
    "Test*Mtu::test_get_mtu_ipv[46]",
    "TestNshMtu::test_over_ethernet",
    "TestSecondSegment::test_is_refused_*",
    "TestTrunk::test_every_change_*",
)

SKIPPED_BY_NEUTRON = {"TestBindingExtended::test_activate_port_binding_concurrency"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the rest ``stock``."""
    for item in items:
        if item.path.parent == HERE:
            name = "::".join(item.nodeid.split("::")[1:])
            if name in SKIPPED_BY_NEUTRON or not any(fnmatch.fnmatchcase(name, pattern) for pattern in SHORT):
                item.add_marker(pytest.mark.stock)
