"""The bench's arithmetic, rules and packets; what needs a kernel is tried by running it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from bench.__main__ import NAMES, chosen_dimensions
from bench.cpu import ProgramCost, Spinner, program_costs
from bench.dimension import DIMENSIONS, HEADRACE, quick_dimensions
from bench.flood import syn
from bench.harness import Plan
from bench.headrace_contender import desired
from bench.journal import Journal, Undo, read
from bench.linux import ruleset
from bench.linux_wire import far_device, kind
from bench.ovs import flows, match
from bench.ovs_wire import way
from bench.process import SetupError
from bench.report import _number
from bench.rules import OVERLAY_V4, SEGMENTS, Rule, Site, make_members, make_rules
from bench.statistic import ratio, summarise
from bench.traffic import checksum, make_packet
from bench.wire import OURS, WIRE_DIMENSIONS, outer, quick_wire_dimensions
from bench.wiring import Wiring
from headrace.model import Segment
from headrace.model.segment import OVERHEAD

if TYPE_CHECKING:
    from pathlib import Path


def test_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    # The machine slowed down threefold after round 1; the ratio of each round is untouched by it.
    found = ratio([300.0, 100.0, 110.0], [100.0, 50.0, 50.0])
    assert found is not None
    assert (found.ratio, found.min, found.max) == (2.2, 2.0, 3.0)
    assert not found.inside_spread


@pytest.mark.parametrize(
    ("mine", "other", "inside"),
    [
        ([1.1, 1.2, 1.3], [1.0, 1.0, 1.0], False),
        ([0.7, 0.8, 0.9], [1.0, 1.0, 1.0], False),
        ([0.9, 1.2, 1.3], [1.0, 1.0, 1.0], True),
        ([1.0, 1.2, 1.3], [1.0, 1.0, 1.0], True),  # a draw in one round is no victory in all
        ([5.0], [1.0], True),  # one round has no spread to be outside of
    ],
)
def test_inside_the_spread(mine: list[float | None], other: list[float | None], inside: bool) -> None:  # noqa: FBT001
    found = ratio(mine, other)
    assert found is not None
    assert found.inside_spread is inside


def test_ratio_leaves_out_rounds_that_failed_or_divide_by_nothing() -> None:
    found = ratio([None, 4.0, 6.0, 9.0], [1.0, 2.0, None, 0.0])
    assert found is not None
    assert (found.ratio, found.min, found.max) == (2.0, 2.0, 2.0)
    assert ratio([1.0], [None]) is None
    assert ratio([1.0], [0.0]) is None


def test_summary_names_everybody_and_compares_with_those_asked_for() -> None:
    rows = summarise(
        {"us": [3.0, 1.0, 2.0], "linux": [1.0, 1.0, 1.0], "bare": [4.0, 4.0, 4.0], "ovs": [None, None, None]},
        parameters={"rules": 100},
        unit="Mpps",
        against=("bare", "linux", "ovs"),
        reasons={"ovs": "not installed", "us": "one round failed"},
    )
    us, linux, _, ovs = rows
    assert (us.min, us.median, us.max) == (1.0, 2.0, 3.0)
    assert {name: each.ratio for name, each in us.ratios.items()} == {"bare": 0.5, "linux": 2.0}
    assert us.reason == ""  # it has values
    assert set(linux.ratios) == {"bare"}  # not to itself
    assert (ovs.median, ovs.ratios, ovs.reason) == (None, {}, "not installed")
    written = json.loads(msgspec.json.encode(rows))
    assert {"contender", "parameters", "unit", "min", "median", "max", "ratios"} <= written[0].keys()


def test_rules_end_with_the_one_that_allows() -> None:
    for count in (1, 100, 1000):
        rules = [rule for rule in make_rules(count) if rule.family == 4]
        assert len(rules) == count
        assert rules[-1] == Rule(family=4, remote=OVERLAY_V4)
        assert all(rule.remote.startswith("198.18.") for rule in rules[:-1])
    assert len({(rule.remote, rule.protocol, rule.port) for rule in make_rules(10_000)}) == 10_001


def test_nftables_judges_established_first_and_rules_in_order() -> None:
    text = ruleset(Wiring().a, Site(rules=3))
    forward = text[text.index("chain forward") :]
    assert forward.index("established") < forward.index("from_port")
    chain = text[text.index("chain from_port") : text.index("chain to_port")].splitlines()[1:]
    assert chain[0].strip() == "ip daddr 198.18.0.0/32 tcp dport 1024 accept"
    assert [line.strip() for line in chain[2:5]] == [
        "ip daddr 10.77.0.0/24 accept",
        "ip6 daddr fd77::/64 accept",
        "drop",
    ]


def test_openflow_says_the_same() -> None:
    assert match(Rule(family=4, remote="198.18.0.1/32", protocol="udp", port=1025), "src") == (
        "udp,nw_src=198.18.0.1/32,tp_dst=1025"
    )
    assert match(Rule(family=6, remote="fd77::/64"), "dst") == "ipv6,ipv6_dst=fd77::/64"
    wiring = Wiring()
    table = flows(wiring.b, make_rules(5), way(wiring.b, wiring.a, Site(rules=5)))
    for number in (10, 20):
        new = [flow for flow in table if flow.startswith(f"table={number},") and "+new" in flow]
        assert len(new) == 6
        assert all("ct(commit" in flow for flow in new)


@pytest.mark.parametrize("family", [4, 6])
def test_packet_is_64_octets_and_right(family: int) -> None:
    wiring = Wiring()
    sender, receiver = wiring.a.workload, wiring.b.workload
    octets, l4_offset = make_packet(sender, receiver, 4 if family == 4 else 6)
    assert len(octets) == 64
    frame = Ether(octets)
    assert (frame.src, frame.dst) == (sender.mac, receiver.mac)
    assert octets[l4_offset:][:4] == bytes(4)  # both ports are the load's to choose
    network = frame[IP] if family == 4 else frame[IPv6]
    assert (network.src, network.dst) == ((sender.ipv4, receiver.ipv4) if family == 4 else (sender.ipv6, receiver.ipv6))
    for layer in [IP, UDP] if family == 4 else [UDP]:
        again = network.copy()
        del again[layer].chksum
        assert type(network)(bytes(again))[layer].chksum == network[layer].chksum != 0


def test_checksum_of_rfc_1071() -> None:
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D  # section 3's sum is ddf2


def test_program_costs_are_differences_summed_by_name() -> None:
    def cost(name: str, runs: int, nanoseconds: int) -> ProgramCost:
        return ProgramCost(name=name, runs=runs, nanoseconds=nanoseconds)

    before = {1: cost("replay", 10, 1000), 2: cost("idle", 5, 50)}
    after = {1: cost("replay", 30, 3000), 2: cost("idle", 5, 50), 3: cost("replay", 20, 1000)}
    assert program_costs(before, after) == [cost("replay", 40, 3000)]


def test_spinner_loss_is_use() -> None:
    spinner = Spinner()
    spinner.rates = [1000.0, 2000.0]
    # Core 0 lost half of two seconds, core 1 nothing (and a bit more than calibrated, which is not negative use).
    assert spinner.used([1000, 4100], 2.0) == pytest.approx(1.0)


def test_every_cell_is_measured_once_and_setups_are_shared() -> None:
    plan = Plan(dimensions=DIMENSIONS, contenders=None, rounds=7, seconds=1.0, minutes=40)
    groups = plan.groups()
    assert len({(site, kind) for site, kind, _ in groups}) == len(groups)
    cells = [(dimension.name, str(point.labels())) for _, _, group in groups for dimension, point in group]
    assert sorted(cells) == sorted((each.name, str(point.labels())) for each in DIMENSIONS for point in each.points)
    assert all(point.site == site and point.kind == kind for site, kind, group in groups for _, point in group)
    assert plan.estimate() < 40 * 60


def test_a_group_is_a_set_that_has_the_overlay_and_so_many_more() -> None:
    text = ruleset(Wiring().a, Site(rules=2, members=3))
    assert "elements = { 10.77.0.0/24, 10.78.0.0, 10.78.0.1, 10.78.0.2 }" in text
    assert "ip daddr @members4 accept" in text
    assert "ip6 saddr @members6 accept" in text
    assert len(set(make_members(10_000))) == 10_000


def test_quick_is_the_headlines_for_four() -> None:
    quick = quick_dimensions()
    assert [each.name for each in quick] == ["packet-rate", "tcp-bulk", "latency", "connection-rate"]
    for each in quick:
        assert len(each.points) == 1
        assert each.points[0].rules == 100
        assert each.contenders == (*HEADRACE, "linux", each.limit)
    plan = Plan(dimensions=quick, contenders=None, rounds=3, seconds=1.0, minutes=40)
    assert plan.estimate() < 120


def test_what_a_killed_run_left_is_undone_by_the_next(tmp_path: Path) -> None:
    place, knob = tmp_path / "journal", tmp_path / "knob"
    knob.write_text("1")
    killed = Journal()
    with killed.open(place):
        killed.write(knob, "2")
        killed.write(knob, "3")
    assert knob.read_text() == "3"  # nothing was undone, as when the process is killed
    with Journal().open(place):
        assert knob.read_text() == "1"
    assert read(place) == []


def test_one_run_at_a_time(tmp_path: Path) -> None:
    first, second = Journal(), Journal()
    with first.open(tmp_path / "journal"):
        first.note(Undo("netns", "hrb-none"))
        with pytest.raises(SetupError, match="another bench"), second.open(tmp_path / "journal"):
            pass
        assert read(tmp_path / "journal") == [Undo("netns", "hrb-none")]


def test_a_broken_journal_is_none(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text('[{"kind": "wri')
    with Journal().open(tmp_path / "journal"):
        assert read(tmp_path / "journal") == []


def test_numbers_are_short() -> None:
    assert [_number(value) for value in (None, 0.0123, 0.5, 1.234, 12.34, 123.4, 12345.6)] == [
        "-", "0.012", "0.500", "1.23", "12.3", "123", "12346",
    ]  # fmt: skip


def test_the_flood_is_of_tcp_that_opens() -> None:
    frame = syn()
    parsed = Ether(frame)
    assert len(frame) == 64
    assert (parsed[IP].len, parsed[TCP].flags, parsed[TCP].dataofs) == (50, "S", 5)
    assert IP(bytes(parsed[IP])[:20] + bytes(30)).chksum == parsed[IP].chksum
    assert (frame[34:38], frame[40:42]) == (bytes(4), bytes(2)), "ports to fill in, and nothing where UDP's checksum is"


def test_every_wire_is_measured_in_both_dimensions() -> None:
    assert {segment.wire for segment in SEGMENTS.values()} == OVERHEAD.keys()
    rate, bulk = WIRE_DIMENSIONS
    assert [point.wire for point in bulk.points] == list(SEGMENTS)
    over = {(point.wire, point.underlay) for point in rate.points}
    assert over == {(wire, 4) for wire in SEGMENTS} | {(wire, 6) for wire in SEGMENTS if outer(wire)}
    assert [wire for wire in SEGMENTS if not outer(wire)] == ["nsh-ethernet", "flat", "vlan", "qinq"]


def test_a_wire_is_measured_beside_our_vxlan_on_the_same_underlay() -> None:
    plan = Plan(dimensions=WIRE_DIMENSIONS, contenders=None, rounds=3, seconds=1.0, minutes=40)
    cells = [(dimension, point) for _, _, group in plan.groups() for dimension, point in group]
    assert len(cells) == 26
    for dimension, point in cells:
        assert plan.names(dimension, point)[:4] == [*OURS, "linux", "ovs"]
        assert dimension.against()[0] == "headrace-vxlan"
    # Who has not got a wire takes no time, so this is more than it will take.
    assert plan.estimate() < 14 * 60


def test_wires_are_asked_for_by_name() -> None:
    assert chosen_dimensions(frozenset(), quick=False) == DIMENSIONS
    assert chosen_dimensions(frozenset({"wire"}), quick=False) == WIRE_DIMENSIONS
    assert [each.name for each in chosen_dimensions(frozenset({"wire"}), quick=True)] == ["wire-packet-rate"]
    assert chosen_dimensions(frozenset({"wire-tcp-bulk", "latency"}), quick=False)[1:] == WIRE_DIMENSIONS[1:]
    assert NAMES.count("wire") == 1
    quick = Plan(dimensions=quick_wire_dimensions(), contenders=None, rounds=3, seconds=1.0, minutes=40)
    assert quick.estimate() < 4 * 60


@pytest.mark.parametrize("wire", SEGMENTS)
def test_headrace_is_asked_for_the_wire(wire: str) -> None:
    document = desired(Wiring(), Site(rules=1, wire=wire), "tc")
    assert msgspec.convert(document["networks"][0]["segment"], Segment) == SEGMENTS[wire]


@pytest.mark.parametrize(("underlay", "address"), [(4, "192.168.77.2"), (6, "fd00::2")])
def test_linux_has_tunnels_that_are_bridge_ports(underlay: int, address: str) -> None:
    wiring = Wiring(underlay=4 if underlay == 4 else 6)

    def told(wire: str) -> str:
        return kind(wiring.a, wiring.b, Site(rules=1, wire=wire, underlay=wiring.underlay))

    assert told("vxlan").startswith(f"vxlan id 77 local {wiring.a.underlay} dev uplink dstport 4789 nolearning")
    assert ("udp6zerocsumtx" in told("vxlan")) is (underlay == 6)
    assert told("geneve") == f"geneve id 77 remote {address} dstport 6081"
    assert told("gre").startswith("ip6gretap key 77" if underlay == 6 else "gretap key 77")


@pytest.mark.parametrize("wire", ["mpls-udp", "mpls-gre", "nsh-gpe", "nsh-ethernet", "qinq"])
def test_linux_says_what_it_has_not(wire: str) -> None:
    wiring = Wiring()
    with pytest.raises(SetupError, match=f"linux: {wire}: "):
        far_device(wiring.a, wiring.b, Site(rules=1, wire=wire))


def test_linux_takes_the_uplink_itself_to_a_physical_network() -> None:
    wiring = Wiring()
    assert far_device(wiring.a, wiring.b, Site(rules=1, wire="flat")) == wiring.a.uplink
    assert far_device(wiring.a, wiring.b, Site(rules=1, wire="vlan")) == wiring.a.uplink


def test_nftables_tracks_no_outer_packets() -> None:
    told = {wire: ruleset(Wiring().a, Site(rules=1, wire=wire)).count("notrack") for wire in SEGMENTS}
    assert {wire for wire, count in told.items() if count == 2} == {"vxlan", "geneve", "gre"}
    assert sum(told.values()) == 6


@pytest.mark.parametrize("wire", [wire for wire in SEGMENTS if wire != "mpls-udp"])
def test_openflow_judges_the_inner_frame_of_every_wire(wire: str) -> None:
    wiring = Wiring()
    host, other, site = wiring.a, wiring.b, Site(rules=2, wire=wire)
    found = way(host, other, site)
    assert bool(found.tunnel) is outer(wire)
    table = flows(host, make_rules(2), found)
    last = len(found.take_off)
    for number in range(last):
        (step,) = (flow for flow in table if flow.startswith(f"table={number},priority=10,in_port=10,"))
        assert step.endswith(f"resubmit(,{number + 1})")
    judged = [flow for flow in table if flow.endswith("actions=ct(table=20,zone=1)")]
    assert len(judged) == 2
    for flow in judged:
        assert flow.startswith(f"table={last},priority=10,in_port=10,")
        assert f"dl_dst={host.workload.mac}" in flow
    sent = [flow for flow in table if flow.endswith("output:10")]
    assert len(sent) == 2 + 3  # established, related, and what the rules allow
    assert all(found.put_on in flow for flow in sent)


def test_openflow_takes_two_tags_off_in_two_steps() -> None:
    wiring = Wiring()
    found = way(wiring.a, wiring.b, Site(rules=1, wire="qinq"))
    assert found.take_off == (("dl_vlan=7", "pop_vlan"), ("dl_vlan=77", "pop_vlan"))
    inner, outer_tag = f"set_field:{0x1000 | 77}->vlan_vid", f"set_field:{0x1000 | 7}->vlan_vid"
    assert found.put_on.index(inner) < found.put_on.index("0x88a8") < found.put_on.index(outer_tag)


def test_openflow_has_no_mpls_over_udp() -> None:
    wiring = Wiring()
    with pytest.raises(SetupError, match="ovs: mpls-udp: "):
        way(wiring.a, wiring.b, Site(rules=1, wire="mpls-udp"))
