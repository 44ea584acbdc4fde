"""replay: what is carried out again by one lookup, in tc and in XDP, and what takes the walk instead (bpf/replay.h)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from headrace import abi
from headrace.abi import FlowFlag, Reason, State
from headrace.datapath.decision import Arrival
from headrace.model import Host, Object
from headrace.model import State as Desired
from headrace.testing import packet
from headrace.testing.observation import XDP, XDP_PASS, XDP_REDIRECT, Hook, xdp_context
from headrace.testing.outer import put_on
from headrace.testing.packet import Somewhere
from headrace.testing.twin import Twin, sent, tunnelled
from headrace.testing.wait import wait_until
from headrace.testing.world import ANY, HOSTS, group, network, port

MakeTwin = Callable[..., Twin]

# Devices are given in the order of port ids: those of a and b are on XDP, those of c and d are not.
A, B, C, D = (port(name, "blue", number, "any") for number, name in enumerate("abcd", 1))
FAR, FARTHER = port("far", "blue", 8, "any", host="h2"), port("farther", "blue", 9, "any", host="h3")
THREE = (*HOSTS, Host(id="h3", vteps=("192.0.2.3", "2001:db8::3")))
STATE = (network("blue"), group("any", *ANY), A, B, C, D, FAR, FARTHER)
TCP = packet.tcp(A, B, 1000, 80, "A")
TICK_NS = 10_000_000
"""The longest that a kernel has (CONFIG_HZ=100)."""


def change(asked: Twin, *objects: Object) -> None:
    asked.apply(Desired.of((*asked.state.all(), *objects)))


def entries(asked: Twin) -> list[tuple[abi.FlowKey, abi.Flow]]:
    return list(asked.host.datapath.flows())


def rewrite(asked: Twin, **fields: Any) -> None:
    """Other fields in every flow entry that holds a decision."""
    table = asked.host.datapath.maps["hr_flows"]
    for key, flow in entries(asked):
        if flow.flags & FlowFlag.DECIDED:
            table.update(key.pack(), replace(flow, **fields).pack())


WAYS = {
    "from port to port": ("a", packet.udp(A, B, 1, 2), None),
    "from port to port, IPv6": ("a", packet.udp(A, B, 1, 2, family=6), None),
    "from port to tunnel": ("a", packet.udp(A, FAR, 1, 2), None),
    "from port to tunnel, IPv6": ("a", packet.udp(A, FAR, 1, 2, family=6), None),
    "from tunnel to port": (None, packet.udp(FAR, A, 1, 2), "192.0.2.2"),
    "from tunnel to port, IPv6": (None, packet.udp(FAR, A, 1, 2, family=6), "2001:db8::2"),
}


@pytest.mark.parametrize("hook", ["tc", "xdp"])
@pytest.mark.parametrize("name", WAYS)
def test_the_second_packet_is_replayed(twin: MakeTwin, name: str, hook: Hook) -> None:
    sender, frame, vtep = WAYS[name]
    asked = twin(*STATE, hosts=THREE)
    arrival = sent(sender, frame) if sender else tunnelled(frame, vtep or "")
    first = asked.run(arrival, hook)
    assert (first.replayed, first.hook) == (False, "tc"), "XDP has no walk"
    second = asked.run(arrival, hook)
    assert (second.replayed, second.hook) == (True, hook)
    assert (second.outputs, second.rule_from, second.rule_to) == (first.outputs, first.rule_from, first.rule_to)
    assert len(entries(asked)) == 2


def test_the_reply_is_decided_by_itself_and_then_replayed(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    asked.run(sent("a", packet.udp(A, B, 1, 2)))
    assert [bool(flow.flags & FlowFlag.DECIDED) for _, flow in entries(asked)].count(False) == 1
    assert not asked.run(sent("b", packet.udp(B, A, 2, 1))).replayed
    assert asked.thrice(sent("b", packet.udp(B, A, 2, 1))).replayed
    assert all(flow.flags & FlowFlag.DECIDED for _, flow in entries(asked))


# What takes the walk


def test_another_destination_mac(twin: MakeTwin) -> None:
    asked = twin(*STATE, hosts=THREE)
    for receiver in (B, C, FAR, B):
        frame = packet.udp(A, B, 1, 2, dmac=receiver.mac)
        observed = asked.run(sent("a", frame))
        assert not observed.replayed
        assert asked.thrice(sent("a", frame)).replayed
    assert asked.run(sent("a", packet.udp(A, B, 1, 2, dmac="02:00:00:00:00:99"))).reason == Reason.UNKNOWN_MAC
    assert asked.run(sent("a", packet.udp(A, B, 1, 2))).replayed


def test_another_source_mac(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    assert asked.thrice(sent("a", packet.udp(A, B, 1, 2))).replayed
    assert asked.thrice(sent("a", packet.udp(A, B, 1, 2, smac=C.mac))).reason == Reason.SPOOFED_MAC
    assert asked.run(sent("a", packet.udp(A, B, 1, 2))).replayed


def test_another_vtep(twin: MakeTwin) -> None:
    asked = twin(*STATE, hosts=THREE)
    frame = packet.udp(FAR, A, 1, 2)
    for vtep in ("192.0.2.2", "192.0.2.3", "2001:db8::3", "192.0.2.2"):
        assert not asked.run(tunnelled(frame, vtep)).replayed
        assert asked.thrice(tunnelled(frame, vtep)).replayed
    assert asked.thrice(tunnelled(frame, "192.0.2.99")).reason == Reason.UNKNOWN_VTEP
    assert asked.thrice(tunnelled(frame, "192.0.2.2")).replayed


@pytest.mark.parametrize("to_mtu", [0, 1])
def test_a_longer_packet(twin: MakeTwin, to_mtu: int) -> None:
    asked = twin(*STATE, network("blue", mtu=1000))
    assert asked.thrice(sent("a", packet.udp(A, B, 1, 2))).replayed
    observed = asked.thrice(sent("a", packet.udp(A, B, 1, 2, payload=bytes(972 + to_mtu))))
    assert (observed.reason, observed.replayed) == ((Reason.TOO_BIG, False) if to_mtu else (Reason.NONE, True))


def test_a_fragment(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    whole = packet.udp(A, B, 1, 2, payload=bytes(32))
    assert asked.thrice(sent("a", whole)).replayed
    for part in packet.fragments(whole, 16):
        assert not asked.thrice(sent("a", part)).replayed
    assert asked.run(sent("a", whole)).replayed


@pytest.mark.parametrize("side", ["a", "b"])
def test_an_epoch_that_was_raised(twin: MakeTwin, side: str) -> None:
    asked = twin(*STATE)
    assert asked.thrice(sent("a", TCP)).replayed
    asked.host.datapath.raise_epochs([asked.host.ports[side]])
    assert not asked.run(sent("a", TCP)).replayed
    assert asked.thrice(sent("a", TCP)).replayed


def test_epochs_of_others(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    assert asked.thrice(sent("a", TCP)).replayed
    asked.host.datapath.raise_epochs([asked.host.ports["c"], asked.host.ports["d"], 0, 5000])
    assert asked.thrice(sent("a", TCP)).replayed


@pytest.mark.parametrize("flags", ["S", "SA", "R", "RA"])
def test_a_syn_and_a_reset(twin: MakeTwin, flags: str) -> None:
    """They are judged before anything changes, whatever is known."""
    asked = twin(*STATE)
    for hook in ("tc", "xdp"):
        assert asked.thrice(sent("a", TCP)).connection is not None
        assert asked.run(sent("b", packet.tcp(B, A, 80, 1000, "A"))).connection is not None
        assert asked.thrice(sent("a", TCP)).replayed
        observed = asked.run(sent("a", packet.tcp(A, B, 1000, 80, flags)), hook)
        assert (observed.reason, observed.replayed) == (Reason.NONE, False)


def test_a_syn_on_a_finished_connection(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    for flags in ("S", "R"):
        asked.run(sent("a", packet.tcp(A, B, 1000, 80, flags)))
    (before,) = asked.host.memory.connections().values()
    for hook in ("xdp", "tc"):
        observed = asked.run(sent("a", packet.tcp(A, B, 1000, 80, "S")), hook)
        assert (observed.connection, observed.replayed) == (State.SYN_SENT, False)
    (after,) = asked.host.memory.connections().values()
    assert (before.id != after.id, after.counter[0].packets) == (True, 2)


def test_an_expired_connection(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    for hook in ("tc", "xdp"):
        assert not asked.run(sent("a", packet.udp(A, B, 1, 2)), hook).replayed
        asked.age(30_001)


def test_an_entry_without_a_decision(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    asked.thrice(sent("a", TCP))
    rewrite(asked, flags=0)
    assert not asked.run(sent("a", TCP)).replayed
    assert asked.thrice(sent("a", TCP)).replayed


def test_an_entry_that_is_being_written(twin: MakeTwin) -> None:
    """Torn for good: nobody ever finishes it. The packet is walked or refused, but not replayed."""
    asked = twin(*STATE)
    asked.thrice(sent("a", TCP))
    rewrite(asked, last=0xDEAD)
    for hook in ("tc", "xdp"):
        observed = asked.host.run(sent("a", TCP), hook)
        assert not observed.replayed
        assert observed.reason in {Reason.NONE, Reason.BUSY}


def test_an_entry_of_another_connection(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    asked.thrice(sent("a", TCP))
    rewrite(asked, conn_id=0xDEAD)
    observed = asked.host.run(sent("a", TCP))
    assert (observed.reason, observed.replayed) == (Reason.NONE, False)


def test_one_mac_and_one_tuple_on_two_ports(twin: MakeTwin) -> None:
    """The entry says where it entered: another port's frame is another flow, spoofed or not."""
    asked = twin(*STATE)
    assert asked.thrice(sent("a", packet.udp(A, B, 1, 2))).replayed
    assert asked.thrice(sent("c", packet.udp(A, B, 1, 2))).reason == Reason.SPOOFED_MAC
    assert asked.thrice(tunnelled(packet.udp(A, B, 1, 2))).reason == Reason.NONE
    assert len(asked.host.memory.connections()) == 1, "and a new one that holds a key of the old one ends it"


# XDP


def test_xdp_delivers_only_to_ports_on_xdp(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    for receiver, hook in ((B, "xdp"), (C, "tc"), (D, "tc")):
        frame = packet.udp(A, receiver, 1, 2)
        for _ in range(2):
            asked.run(sent("a", frame))
        observed = asked.run(sent("a", frame), "xdp")
        assert (observed.replayed, observed.hook) == (True, hook)


def test_xdp_takes_the_outer_headers_off_for_ports_that_are_not(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    host, program = asked.host, asked.host.datapath.programs["hr_xdp_from_uplink"]
    for vtep, own in (("192.0.2.2", "192.0.2.1"), ("2001:db8::2", "2001:db8::1")):
        frame = packet.udp(FAR, C, 1, 2)
        outer = put_on(vtep, own, 100, frame)
        asked.run(tunnelled(frame, vtep))
        with host.stand.inside():
            result = program.test_run(outer, ctx=xdp_context(host.entrance(tunnelled(frame)), len(outer)))
        assert result.retval == XDP_PASS
        start, _, meta, *_ = XDP.unpack(result.ctx_out)
        assert (start - meta) % 4 == 0
        assert start > meta
        beside, inner = result.data_out[: start - meta], result.data_out[start - meta :]
        address = b"\0" * 10 + b"\xff\xff\xc0\0\2\2" if "." in vtep else b"\x20\x01\x0d\xb8" + bytes(11) + b"\2"
        assert inner == frame
        assert (
            beside == b"\x1e\xa1\x52\x48" + (abi.Where.VXLAN << abi.WHERE_SHIFT | 100).to_bytes(4, "little") + address
        )


def test_xdp_passes_what_it_does_not_know(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    asked.thrice(sent("a", TCP))
    asked.thrice(tunnelled(packet.udp(FAR, A, 1, 2)))
    host = asked.host
    unknown = {
        "another flow": sent("a", packet.udp(A, B, 7, 8)),
        "no port": sent("nobody", TCP),
        "ARP": sent("a", packet.arp(A, "10.0.0.2")),
        "malformed": sent("a", TCP[:40]),
        "an Ethernet header": sent("a", TCP[:14]),
        "a tag": sent("a", packet.tagged(TCP)),
        "a fragment": sent("a", packet.fragments(packet.udp(A, B, 1, 2, payload=bytes(32)), 16)[0]),
        "foreign": Arrival(frame=TCP),
        "an outer fragment": Arrival(frame=packet.with_octet(put_on("192.0.2.2", "192.0.2.1", 100, TCP), 20, 0x20)),
        "no VXLAN": Arrival(frame=packet.with_octet(put_on("192.0.2.2", "192.0.2.1", 100, TCP), 42, 0)),
        "a malformed inner frame": tunnelled(TCP[:40]),
        "another VTEP": tunnelled(packet.udp(FAR, A, 1, 2), "2001:db8::2"),
    }
    for name, arrival in unknown.items():
        which = "hr_xdp_from_uplink" if arrival.port is None else "hr_xdp_from_port"
        frame = host.outer(arrival)
        before = host.counts()
        with host.stand.inside():
            result = host.datapath.programs[which].test_run(frame, ctx=xdp_context(host.entrance(arrival), len(frame)))
        assert (result.retval, result.data_out) == (XDP_PASS, frame), name
        assert host.counts() == before, name


def test_xdp_and_tc_take_turns(twin: MakeTwin) -> None:
    """The same flow in both hooks: counters, states and outputs are one."""
    asked = twin(*STATE)
    story = [(">", "S"), ("<", "SA"), (">", "A"), ("<", "A"), (">", "FA"), ("<", "FA"), (">", "A")]
    for number, (way, flags) in enumerate(story):
        for hook in ("xdp", "tc", "xdp") if number % 2 else ("tc", "xdp", "tc"):
            arrival = sent("a", packet.tcp(A, FAR, 1000, 80, flags))
            if way == "<":
                arrival = tunnelled(packet.tcp(FAR, A, 80, 1000, flags))
            asked.run(arrival, hook)
    ((_, conn),) = asked.host.memory.connections().items()
    assert State(conn.state) == State.TIME_WAIT
    assert [counter.packets for counter in conn.counter] == [12, 9]
    assert asked.run(sent("a", packet.tcp(A, FAR, 1000, 80, "A")), "xdp").verdict == XDP_REDIRECT


def test_xdp_leaves_an_unresolved_adjacency_to_tc(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    arrival = sent("a", packet.udp(A, FAR, 1, 2))
    assert asked.thrice(arrival).replayed
    table = asked.host.datapath.maps["hr_adjacencies"]
    for key, value in list(table.items()):
        if any(value):
            table.update(key, b"\1" + value[1:])
    observed = asked.run(arrival, "xdp")
    assert (observed.hook, observed.replayed) == ("tc", False)
    assert asked.run(arrival, "xdp").hook == "xdp"


def test_a_change_is_seen_by_xdp_at_once(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    arrival = sent("a", packet.udp(A, FAR, 1, 2))
    assert asked.thrice(arrival).replayed
    change(asked, group("any"))
    assert asked.run(arrival, "xdp").reason == Reason.CONNECTION_CUT
    change(asked, group("any", *ANY))
    assert asked.thrice(arrival).replayed
    change(asked, port("a", "blue", 1, "any", admin_up=False))
    assert asked.run(arrival, "xdp").reason == Reason.PORT_DOWN


def test_a_guest_that_xdp_has_not_seen_is_learnt_from_tc(twin: MakeTwin) -> None:
    guest = Somewhere("02:00:00:00:00:77", ("10.0.0.77",))
    asked = twin(*STATE)
    for _ in range(2):
        asked.run(tunnelled(packet.udp(guest, A, 1, 2)), "xdp")
    assert asked.run(sent("a", packet.udp(A, guest, 2, 1)), "xdp").outputs[0].vtep == "192.0.2.2"


@pytest.mark.parametrize("hook", ["tc", "xdp"])
def test_the_programs_clock_is_monotonic_time(twin: MakeTwin, hook: Hook) -> None:
    asked = twin(*STATE)
    arrival = sent("a", packet.udp(A, B, 1, 2))
    asked.run(arrival, hook)
    before = time.monotonic_ns()
    wait_until(lambda: time.monotonic_ns() > before + 3 * TICK_NS)
    asked.run(arrival, hook)
    ((_, connection),) = asked.host.datapath.connections()
    assert before < connection.counter[0].seen <= time.monotonic_ns() + TICK_NS
