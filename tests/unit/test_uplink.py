"""Uplinks are judged by name: what people have is supported, what cannot work is refused with the cure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from headrace.agent.physical import blind
from headrace.agent.readiness import bpffs, kernel
from headrace.agent.uplink import STRIPS_TAGS, Finding, judge, leave_tags
from headrace.cli.main import root
from headrace.datapath.netlink import Link
from headrace.errors import NotFound
from headrace.model import Network, Segment

MAC = "02:00:00:00:00:01"


def link(name: str, ifindex: int, **fields: Any) -> Link:
    given: dict[str, Any] = {"kind": "", "mac": MAC, "mtu": 1600, "up": True, "carrier": True, "master": None}
    given |= {"lower": None, "peer": None, "peer_nsid": None}
    return Link(name=name, ifindex=ifindex, **given | fields)


BOND = (
    link("eth0", 2, master=4),
    link("eth1", 3, master=4),
    link("bond0", 4, kind="bond", bond_mode="802.3ad"),
    link("bond0.100", 5, kind="vlan", vlan=100, lower=4),
)


def found(name: str, *links: Link, **options: Any) -> dict[str, Finding]:
    """Findings by what was looked at, without the uplink's name."""
    findings = judge(name, {one.name: one for one in links}, **options)
    return {finding.check.removeprefix(f"uplink {name}").removeprefix(": "): finding for finding in findings}


def network(mtu: int) -> Network:
    return Network(id="n", segment=Segment(id=1), mtu=mtu)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("bond0", "a bond, mode 802.3ad, of eth0, eth1"),
        ("bond0.100", "a VLAN 100 on bond0; the kernel takes its tags off and puts them on"),
    ],
)
def test_bonds_and_vlans_on_them_are_supported(name: str, says: str) -> None:
    findings = found(name, *BOND)
    assert findings[""].found == says
    assert {finding.state for finding in findings.values()} == {"ok"}


def test_several_queues_are_supported() -> None:
    assert found("eth0", link("eth0", 2, queues=8))[""].found == "a NIC, 8 receive queues"


@pytest.mark.parametrize(
    ("name", "links", "says", "cure"),
    [
        ("eth0", BOND, "a member of bond bond0", "name bond0 instead"),
        ("eth0", (link("eth0", 2, master=3), link("br0", 3, kind="bridge")), "a port of bridge br0", "name br0"),
        ("eth0", (link("eth0", 2, master=3), link("red", 3, kind="vrf")), "in VRF red", "take it out of red"),
        ("eth0", (link("eth0", 2, master=3), link("o", 3, kind="openvswitch")), "enslaved to openvswitch o", "name o"),
        ("wg0", (link("wg0", 2, kind="wireguard", mac=""),), "wireguard without Ethernet frames", "Ethernet device"),
        ("lo", (link("lo", 1, mac="00:00:00:00:00:00"),), "without Ethernet frames", "Ethernet device"),
        ("bond0", (link("bond0", 4, kind="bond", bond_mode="802.3ad"),), "of no members", "give bond0 members"),
        ("eth9", BOND, "not there", "in uplinks"),
    ],
)
def test_what_cannot_work_is_refused_by_name(name: str, links: tuple[Link, ...], says: str, cure: str) -> None:
    finding = found(name, *links)[""]
    assert finding.state == "fail"
    assert says in finding.found
    assert cure in finding.cure


def test_a_kind_that_nobody_tried_is_a_warning() -> None:
    assert found("m0", link("m0", 2, kind="macvlan"))[""].state == "warn"


@pytest.mark.parametrize(
    ("mtu", "versions", "largest", "state"),
    [(1500, (4,), 1450, "ok"), (1500, (4,), 1451, "fail"), (1500, (4, 6), 1430, "ok"), (1500, (4, 6), 1450, "fail"),
     (9000, (6,), 8930, "ok"), (1500, (), 1450, "ok")],
)  # fmt: skip
def test_the_networks_packets_must_fit(mtu: int, versions: tuple[int, ...], largest: int, state: str) -> None:
    finding = found("eth0", link("eth0", 2, mtu=mtu), versions=versions, networks=[network(largest)])["mtu"]
    assert finding.state == state
    assert state == "ok" or f"ip link set eth0 mtu {largest + (70 if 6 in versions else 50)}" in finding.cure


@pytest.mark.parametrize(
    ("segment", "room"),
    [
        (Segment(type="mpls", id=16), 1500 - 46),
        (Segment(type="gre", id=1), 1500 - 42),
        (Segment(type="nsh", id=1, transport="ethernet"), 1500 - 22),
    ],
)
def test_every_wire_takes_its_own(segment: Segment, room: int) -> None:
    for mtu, state in ((room, "ok"), (room + 1, "fail")):
        asked = [Network(id="n", segment=segment, mtu=mtu)]
        assert found("eth0", link("eth0", 2, mtu=1500), networks=asked)["mtu"].state == state


@pytest.mark.parametrize(("service", "room"), [(None, 1500), (7, 1496)])
def test_a_physical_network_has_room_for_its_tags(service: int | None, room: int) -> None:
    segment = Segment(type="vlan", id=12, service_vlan=service, physical_network="one")
    asked = [Network(id="n", segment=segment, mtu=1500)]
    (*_, finding) = judge("eth0", {"eth0": link("eth0", 2, mtu=1500)}, networks=asked, physical="one")
    assert finding.check == "physical network one on eth0: mtu"
    assert finding.state == ("ok" if room == 1500 else "fail")
    assert room == 1500 or finding.cure == (
        "ip link set eth0 mtu 1504 (here and in the fabric), or networks of mtu 1496"
    )


def test_a_physical_network_whose_device_is_missing() -> None:
    (finding,) = judge("eth9", {}, physical="one")
    assert (finding.check, finding.found) == ("physical network one on eth9", "not there")
    assert finding.cure == "name a device that is, in physical_networks"


def test_a_device_that_is_down_or_unplugged() -> None:
    assert found("eth0", link("eth0", 2, up=False))["link"].cure == "ip link set eth0 up"
    assert found("eth0", link("eth0", 2, carrier=False))["link"].state == "warn"


def test_tc_sees_tags_whether_the_nic_takes_them_off_or_not() -> None:
    for on in (True, False):
        findings = found("bond0", *BOND, features={"eth0": dict.fromkeys(STRIPS_TAGS, on)})
        assert findings["rx-vlan-offload"].state == "ok"


@pytest.mark.parametrize("physical", ["", "one"])
@pytest.mark.parametrize("feature", STRIPS_TAGS)
def test_xdp_wants_tags_left_in_the_frame(feature: str, physical: str) -> None:
    links = {one.name: one for one in BOND}
    findings = list(judge("bond0", links, hook="xdp", features={"eth1": {feature: True}}, physical=physical))
    (finding,) = (one for one in findings if one.check.endswith("rx-vlan-offload"))
    assert finding.state == "warn"
    assert finding.found.startswith("on for eth1: ")
    assert finding.found.endswith("; the agent takes tc")
    assert f"ethtool -K eth1 {STRIPS_TAGS[feature]} off" in finding.cure
    assert found("bond0", *BOND, hook="xdp", features={"eth1": {feature: False}})["rx-vlan-offload"].state == "ok"


@pytest.mark.parametrize(
    ("name", "links", "says"),
    [
        ("bond0.100", BOND, "a VLAN has no native XDP"),
        ("b", (link("b", 4, kind="bond", bond_mode="balance-alb"), link("e", 2, master=4)), "mode balance-alb"),
    ],
)
def test_what_takes_no_xdp_says_that_it_is_tc(name: str, links: tuple[Link, ...], says: str) -> None:
    finding = found(name, *links, hook="xdp")["hook"]
    assert finding.state == "warn"
    assert says in finding.found
    assert "the agent takes tc" in finding.found


@pytest.mark.parametrize(
    ("release", "state"),
    [("6.1.0-18-amd64", "ok"), ("6.18.44", "ok"), ("7.0", "ok"), ("5.15.0-100-generic", "fail"), ("6.0.9", "fail")],
)
def test_kernels(release: str, state: str) -> None:
    assert kernel(release).state == state


MOUNTS = """\
22 1 254:0 / / rw - ext4 /dev/vda rw
25 22 0:22 / /sys rw - sysfs sysfs rw
31 25 0:30 / /sys/fs/bpf rw shared:9 - bpf bpf rw
"""


def test_pins_must_be_on_a_bpf_file_system() -> None:
    assert bpffs(Path("/sys/fs/bpf/headrace"), MOUNTS).state == "ok"
    refused = bpffs(Path("/run/headrace/bpf"), MOUNTS)
    assert refused.state == "fail"
    assert refused.cure == "mount -t bpf bpf /run/headrace"


def test_a_missing_configuration_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("headrace.cli.check.CONFIG", str(tmp_path / "agent.toml"))
    monkeypatch.setattr("headrace.cli.local.CONFIG", str(tmp_path / "agent.toml"))
    monkeypatch.setattr("headrace.agent.readiness.look", lambda _: iter(()))
    row, *_ = json.loads(CliRunner().invoke(root, ["host", "check", "-o", "json"]).output)
    assert (row["check"], row["state"]) == ("configuration", "warn")
    assert row["found"] == f"no {tmp_path}/agent.toml: defaults are judged"


def test_one_command_leaves_all_tags() -> None:
    assert (
        leave_tags("eth0", dict.fromkeys(STRIPS_TAGS, True)) == "ethtool -K eth0 rxvlan off rx-vlan-stag-hw-parse off"
    )
    assert not leave_tags("eth0", {"rx-gro": True})


class Features:
    """Offloads as a kernel tells them, of devices that tell."""

    def __init__(self, **known: dict[str, bool]) -> None:
        self.known = known

    def features(self, device: str) -> dict[str, bool]:
        if device not in self.known:
            raise NotFound(f"device {device}")
        return self.known[device]


def test_a_device_that_does_not_tell_stays_on_tc() -> None:
    links = {one.name: one for one in BOND}
    told: Any = Features(bond0={}, eth0={})
    assert blind(links["bond0"], links, told) == (
        "device bond0: eth1 does not say whether it takes VLAN tags off, so it stays on tc"
    )
    told = Features(bond0={}, eth0={}, eth1={})
    assert blind(links["bond0"], links, told) is None
