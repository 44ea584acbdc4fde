"""NSH straight over Ethernet shows no address: its sender is known by the MAC of a neighbour, which may change."""

from __future__ import annotations

from headrace.agent.underlay import BY_MAC
from headrace.model import Segment
from headrace.testing.cloud import Cloud
from headrace.testing.scene import Scene
from headrace.testing.traffic import ping
from headrace.testing.wait import wait_until


def known(cloud: Cloud) -> set[str]:
    """MACs by which h1 knows other hosts."""
    keys = (octets for octets, _ in cloud.hosts["h1"].datapath.maps["hr_vteps"].items())
    return {octets[10:].hex(":") for octets in keys if octets[:10] == BY_MAC}


def test_a_neighbour_with_another_mac_is_known_again(cloud: Cloud) -> None:
    segment = Segment(type="nsh", id=77, transport="ethernet")
    other = cloud.hosts["h2"].namespace
    with Scene(cloud, segment=segment, mtu=1478) as scene:
        a, b = scene.pair()
        wait_until(lambda: ping(a, b.address(), patience=0.2))
        assert ping(a, b.address(), size=1450)
        before, mac = other.mac("uplink"), "02:00:00:00:aa:bb"
        try:
            other.run(f"ip link set uplink address {mac}")
            wait_until(lambda: ping(a, b.address(), patience=0.2), 15)
            assert {mac, before} & known(cloud) == {mac}
        finally:
            other.run(f"ip link set uplink address {before}")
        wait_until(lambda: ping(b, a.address(), patience=0.2), 15)
