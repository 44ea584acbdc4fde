"""forward: where frames go, what is learnt, and who gets copies. docs/pipeline.md, "forward"."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from headrace import abi
from headrace.abi import Reason
from headrace.model import Host, Object, Segment
from headrace.model import State as Desired
from headrace.stages.view import segment_number
from headrace.testing import packet
from headrace.testing.observation import MARK, SKB, TC_ACT_SHOT, TC_ACT_UNSPEC, Observed, skb_context
from headrace.testing.packet import BROADCAST, Somewhere
from headrace.testing.twin import Twin, sent, tunnelled
from headrace.testing.world import ANY, HOSTS, OUT, group, network, port, rule

MakeTwin = Callable[..., Twin]

BLUE = network("blue")
A, B, C = port("a", "blue", 1, "any"), port("b", "blue", 2, "any"), port("c", "blue", 3, "any", host="h2")
D = port("d", "blue", 4, "any", host="h3")
OPEN = port("open", "blue", 5, port_security=False)
STATE = (BLUE, group("any", *ANY), A, B, C, OPEN)
THREE = (*HOSTS, Host(id="h3", vteps=("192.0.2.3",)))
GUEST = Somewhere("02:00:00:00:00:77", ("10.0.0.77", "fd00::77"))
"""Somebody behind an open port."""


def change(asked: Twin, *objects: Object) -> None:
    asked.apply(Desired.of((*asked.state.all(), *objects)))


def remove(asked: Twin, name: str) -> None:
    asked.apply(Desired.of(item for item in asked.state.all() if item.id != name))


def where(observed: Observed) -> set[str | None]:
    """Ports and VTEPs that got it."""
    return {output.port or output.vtep for output in observed.outputs}


# Unicast


def test_to_a_port_here_and_to_one_elsewhere(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    assert where(asked.thrice(sent("a", packet.udp(A, B, 1, 2)))) == {"b"}
    assert where(asked.thrice(sent("a", packet.udp(A, C, 1, 2)))) == {"192.0.2.2"}
    assert where(asked.thrice(tunnelled(packet.udp(C, A, 1, 2)))) == {"a"}


def test_straight_into_a_veths_peer_or_by_the_device_with_a_mark(twin: MakeTwin) -> None:
    """Devices are given out in the order of port ids; every other one is said to be a veth."""
    asked = twin(*STATE)
    for receiver, marked in ((A, False), (B, True)):
        for by_tunnel in (False, True):
            sender = C if by_tunnel else OPEN
            frame = packet.udp(sender, receiver, 1, 2)
            arrival = tunnelled(frame) if by_tunnel else sent("open", frame)
            for observed in (asked.run(arrival), asked.run(arrival)):
                assert (where(observed), observed.marked) == ({receiver.id}, marked)


@pytest.mark.parametrize(
    ("receiver", "reason"),
    [
        (Somewhere("02:00:00:00:00:99", ("10.0.0.99",)), Reason.UNKNOWN_MAC),
        (A, Reason.HAIRPIN),
        (port("down", "blue", 9, "any", admin_up=False), Reason.PORT_DOWN),
        (port("unbound", "blue", 9, "any", host=None), Reason.UNKNOWN_MAC),
        (port("lost", "blue", 9, "any", host="h9"), Reason.UNKNOWN_MAC),
        (port("other", "red", 9, "any"), Reason.UNKNOWN_MAC),
        (port("far", "red", 9, "any", host="h2"), Reason.UNKNOWN_MAC),
    ],
)
def test_to_nowhere(twin: MakeTwin, receiver: packet.End, reason: Reason) -> None:
    more = (receiver,) if not isinstance(receiver, Somewhere) else ()
    asked = twin(*STATE, network("red", 200), *more)
    assert asked.thrice(sent("a", packet.udp(A, receiver, 1, 2))).reason == reason
    assert not asked.memory.flows


def test_a_remote_port_that_is_down_is_its_hosts_business(twin: MakeTwin) -> None:
    asked = twin(*STATE, port("c", "blue", 3, "any", host="h2", admin_up=False))
    assert where(asked.thrice(sent("a", packet.udp(A, C, 1, 2)))) == {"192.0.2.2"}


def test_by_tunnel_to_a_port_that_is_down(twin: MakeTwin) -> None:
    asked = twin(*STATE, port("a", "blue", 1, "any", admin_up=False))
    observed = asked.thrice(tunnelled(packet.udp(C, A, 1, 2)))
    assert (observed.reason, observed.counts.reasons) == (Reason.PORT_DOWN, {("", Reason.PORT_DOWN): 1})


def test_from_tunnel_to_tunnel(twin: MakeTwin) -> None:
    asked = twin(*STATE, D, hosts=THREE)
    assert asked.thrice(tunnelled(packet.udp(C, D, 1, 2))).reason == Reason.TUNNEL_LOOP
    assert asked.thrice(tunnelled(packet.udp(C, C, 1, 2))).reason == Reason.TUNNEL_LOOP


def test_a_host_is_reached_by_its_first_address_of_our_families(twin: MakeTwin) -> None:
    both, four, six = ("192.0.2.1", "2001:db8::1"), ("192.0.2.1",), ("2001:db8::1",)
    for own, theirs, expected in (
        (both, ("192.0.2.2", "2001:db8::2"), "192.0.2.2"),
        (both, ("2001:db8::2", "192.0.2.2"), "2001:db8::2"),
        (four, ("2001:db8::2", "192.0.2.2"), "192.0.2.2"),
        (six, ("192.0.2.2", "2001:db8::2"), "2001:db8::2"),
        (six, ("192.0.2.2",), None),
        ((), ("192.0.2.2",), None),
        (both, (), None),
    ):
        asked = twin(*STATE, hosts=(Host(id="h1", vteps=own), Host(id="h2", vteps=theirs)))
        observed = asked.thrice(sent("a", packet.udp(A, C, 1, 2)))
        assert where(observed) == ({expected} if expected else set())
        assert observed.reason == (Reason.NONE if expected else Reason.UNKNOWN_MAC)
        observed = asked.thrice(sent("a", packet.udp(A, A, 1, 2, dmac=BROADCAST)))
        assert where(observed) == {"b", "open"} | ({expected} if expected else set())


# Moves


def test_a_port_that_moves_is_found_where_it_is(twin: MakeTwin) -> None:
    asked = twin(*STATE, D, hosts=THREE)
    arrival = sent("a", packet.udp(A, C, 1, 2))
    assert where(asked.thrice(arrival)) == {"192.0.2.2"}
    change(asked, port("c", "blue", 3, "any", host="h3"))
    assert where(asked.thrice(arrival)) == {"192.0.2.3"}
    change(asked, port("c", "blue", 3, "any", host="h1"))
    assert where(asked.thrice(arrival)) == {"c"}
    change(asked, port("c", "blue", 3, "any", host=None))
    assert asked.thrice(arrival).reason == Reason.UNKNOWN_MAC
    change(asked, C)
    assert where(asked.thrice(arrival)) == {"192.0.2.2"}


def test_a_port_that_goes_is_unknown_at_once(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    for name, arrival in (("b", sent("a", packet.udp(A, B, 1, 2))), ("c", sent("a", packet.udp(A, C, 1, 2)))):
        assert asked.thrice(arrival).replayed
        remove(asked, name)
        assert asked.thrice(arrival).reason == Reason.UNKNOWN_MAC


def test_a_port_that_goes_down_gets_nothing_more(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    there, back = sent("a", packet.udp(A, B, 1, 2)), sent("b", packet.udp(B, A, 2, 1))
    assert asked.thrice(there).replayed
    assert asked.thrice(back).replayed
    change(asked, port("b", "blue", 2, "any", admin_up=False))
    assert asked.thrice(there).reason == Reason.PORT_DOWN
    assert asked.thrice(back).reason == Reason.PORT_DOWN
    change(asked, B)
    assert asked.thrice(there).replayed
    assert asked.thrice(back).replayed


def test_a_vtep_that_changes_takes_its_flows_along(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    arrival = sent("a", packet.udp(A, C, 1, 2))
    assert where(asked.thrice(arrival)) == {"192.0.2.2"}
    change(asked, Host(id="h2", vteps=("192.0.2.22",)))
    assert where(asked.thrice(arrival)) == {"192.0.2.22"}
    assert asked.thrice(tunnelled(packet.udp(C, A, 1, 2))).reason == Reason.UNKNOWN_VTEP


def test_our_own_vtep_may_change(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    arrival = sent("a", packet.udp(A, C, 1, 2))
    asked.thrice(arrival)
    change(asked, Host(id="h1", vteps=("192.0.2.11",)))
    assert b"\xc0\x00\x02\x0b" in asked.thrice(arrival).outer[:34]


def test_the_vni_of_a_network_may_change(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    arrival = sent("a", packet.udp(A, C, 1, 2))
    assert asked.thrice(arrival).outputs[0].segment == Segment(id=100)
    change(asked, network("blue", 300))
    assert asked.thrice(arrival).outputs[0].segment == Segment(id=300)
    assert asked.thrice(tunnelled(packet.udp(C, A, 1, 2))).reason == Reason.UNKNOWN_SEGMENT


def test_a_mac_that_passes_to_another_port(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    arrival = sent("a", packet.udp(A, B, 1, 2))
    assert where(asked.thrice(arrival)) == {"b"}
    change(asked, port("b", "blue", 12, "any"), port("e", "blue", 2, "any"))
    assert where(asked.thrice(arrival)) == {"e"}


# Learning


def test_a_guest_behind_an_open_port_is_learnt_from_what_it_sends(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    to_guest = sent("a", packet.udp(A, GUEST, 1, 2))
    assert asked.thrice(to_guest).reason == Reason.UNKNOWN_MAC
    asked.run(sent("open", packet.arp(GUEST, "10.0.0.77")))
    assert where(asked.thrice(to_guest)) == {"open"}


def test_a_guest_elsewhere_is_learnt_behind_its_vtep(twin: MakeTwin) -> None:
    asked = twin(*STATE, D, hosts=THREE)
    to_guest = sent("a", packet.udp(A, GUEST, 1, 2))
    asked.run(tunnelled(packet.udp(GUEST, A, 2, 1)))
    assert where(asked.thrice(to_guest)) == {"192.0.2.2"}
    asked.run(tunnelled(packet.arp(GUEST, "10.0.0.77"), vtep="192.0.2.3"))
    assert where(asked.thrice(to_guest)) == {"192.0.2.3"}, "a move re-decides what went to the old place"
    asked.run(sent("open", packet.udp(GUEST, A, 2, 1)))
    assert where(asked.thrice(to_guest)) == {"open"}
    asked.run(tunnelled(packet.udp(GUEST, A, 2, 1)))
    assert where(asked.thrice(to_guest)) == {"192.0.2.2"}


def test_a_guest_that_comes_by_a_hosts_second_address_is_behind_the_first(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    asked.run(tunnelled(packet.udp(GUEST, A, 2, 1), vtep="2001:db8::2"))
    assert where(asked.thrice(sent("a", packet.udp(A, GUEST, 1, 2)))) == {"192.0.2.2"}


def test_nothing_is_learnt_of_what_the_from_side_drops(twin: MakeTwin) -> None:
    asked = twin(*STATE, port("silent", "blue", 8), network("red", 200))
    asked.run(sent("a", packet.udp(GUEST, B, 1, 2)))
    asked.run(tunnelled(packet.udp(GUEST, A, 1, 2), vni=200))
    asked.run(tunnelled(packet.udp(GUEST, A, 1, 2), vtep="192.0.2.99"))
    assert asked.thrice(sent("a", packet.udp(A, GUEST, 1, 2))).reason == Reason.UNKNOWN_MAC


def test_what_the_to_side_drops_is_learnt_from(twin: MakeTwin) -> None:
    asked = twin(*STATE, port("silent", "blue", 8))
    assert asked.run(sent("open", packet.udp(GUEST, port("silent", "blue", 8), 1, 2))).reason == Reason.ACL_TO_PORT
    assert where(asked.thrice(sent("a", packet.udp(A, GUEST, 1, 2)))) == {"open"}


def test_a_ports_own_mac_is_never_learnt_over(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    for arrival in (sent("open", packet.udp(B, A, 1, 2)), tunnelled(packet.udp(B, A, 1, 2))):
        asked.run(arrival)
        assert where(asked.thrice(sent("a", packet.udp(A, B, 1, 2)))) == {"b"}


def test_a_mac_that_becomes_a_ports_own_is_no_longer_where_it_was_learnt(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    asked.run(sent("open", packet.udp(GUEST, A, 2, 1)))
    to_guest = sent("a", packet.udp(A, GUEST, 1, 2))
    assert where(asked.thrice(to_guest)) == {"open"}
    change(asked, port("g", "blue", 0x77, "any"))
    assert where(asked.thrice(to_guest)) == {"g"}
    remove(asked, "g")
    asked.memory.learnt.clear()  # where it was learnt before it was a port's nobody asks any more
    assert asked.thrice(to_guest).reason == Reason.UNKNOWN_MAC


def test_what_was_learnt_behind_a_port_goes_with_it(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    asked.run(sent("open", packet.udp(GUEST, A, 2, 1)))
    to_guest = sent("a", packet.udp(A, GUEST, 1, 2))
    assert asked.thrice(to_guest).replayed
    change(asked, port("open", "blue", 5, port_security=False, admin_up=False))
    assert asked.thrice(to_guest).reason == Reason.PORT_DOWN


def test_one_mac_in_two_networks_is_learnt_twice(twin: MakeTwin) -> None:
    red = (port("ra", "red", 1, "any"), port("ropen", "red", 5, port_security=False))
    asked = twin(*STATE, network("red", 200), *red)
    asked.run(sent("open", packet.udp(GUEST, A, 2, 1)))
    assert asked.thrice(sent("ra", packet.udp(A, GUEST, 1, 2))).reason == Reason.UNKNOWN_MAC
    asked.run(sent("ropen", packet.udp(GUEST, A, 2, 1)))
    assert where(asked.thrice(sent("ra", packet.udp(A, GUEST, 1, 2)))) == {"ropen"}
    assert where(asked.thrice(sent("a", packet.udp(A, GUEST, 1, 2)))) == {"open"}


def test_what_was_learnt_behind_a_vtep_that_is_no_more(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    asked.run(tunnelled(packet.udp(GUEST, A, 2, 1)))
    to_guest = sent("a", packet.udp(A, GUEST, 1, 2))
    assert asked.thrice(to_guest).replayed
    change(asked, Host(id="h2", vteps=("192.0.2.22",)))
    assert asked.thrice(to_guest).reason == Reason.UNKNOWN_MAC
    asked.run(tunnelled(packet.udp(GUEST, A, 2, 1), vtep="192.0.2.22"))
    assert where(asked.thrice(to_guest)) == {"192.0.2.22"}
    change(asked, *HOSTS)
    change(asked, Host(id="h2", vteps=("192.0.2.22",)))
    assert asked.thrice(to_guest).reason == Reason.UNKNOWN_MAC, "nor when the VTEP is back"
    assert not asked.host.memory.inconsistencies()


def test_what_was_learnt_in_a_network_goes_with_its_last_port_here(twin: MakeTwin) -> None:
    asked = twin(*STATE, network("red", 200), port("ra", "red", 1, "any"), port("rc", "red", 3, "any", host="h2"))
    asked.run(tunnelled(packet.udp(GUEST, A, 2, 1)))
    asked.run(tunnelled(packet.udp(GUEST, A, 2, 1), vni=200))
    remove(asked, "ra")
    assert where(asked.thrice(sent("a", packet.udp(A, GUEST, 1, 2)))) == {"192.0.2.2"}
    change(asked, port("ra", "red", 1, "any"))
    assert asked.thrice(sent("ra", packet.udp(A, GUEST, 1, 2))).reason == Reason.UNKNOWN_MAC
    assert not asked.host.memory.inconsistencies()


def test_a_port_that_was_away_has_nothing_learnt_behind_it(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    asked.run(sent("open", packet.udp(GUEST, A, 2, 1)))
    to_guest = sent("a", packet.udp(A, GUEST, 1, 2))
    assert asked.thrice(to_guest).replayed
    for away in (port("open", "blue", 5, port_security=False, host="h2"), OPEN):
        change(asked, away)
        assert asked.thrice(to_guest).reason == Reason.UNKNOWN_MAC


def test_one_port_has_its_share_of_what_can_be_learnt(twin: MakeTwin) -> None:
    asked = twin(*STATE, port("open2", "blue", 6, port_security=False))
    guests = [Somewhere(f"02:00:00:01:{n >> 8:02x}:{n & 255:02x}", ("10.0.0.77",)) for n in range(257)]
    for guest in guests:
        asked.host.run(sent("open", packet.arp(guest, "10.0.0.77")))
    reasons = [asked.host.run(sent("a", packet.udp(A, guest, 1, 2))).reason for guest in (guests[255], guests[256])]
    assert reasons == [Reason.NONE, Reason.UNKNOWN_MAC]
    asked.host.run(sent("open2", packet.arp(guests[256], "10.0.0.77")))
    assert where(asked.host.run(sent("a", packet.udp(A, guests[256], 1, 2)))) == {"open2"}, "others have theirs"
    asked.host.run(sent("open2", packet.arp(guests[0], "10.0.0.77")))
    asked.host.run(sent("open", packet.arp(guests[256], "10.0.0.77")))
    assert where(asked.host.run(sent("a", packet.udp(A, guests[256], 1, 2)))) == {"open"}, "a place that is free again"


def test_one_network_has_its_share_of_what_can_be_learnt_behind_vteps(twin: MakeTwin) -> None:
    red = (network("red", 200), port("ra", "red", 1, "any"))
    asked = twin(*STATE, D, *red, hosts=THREE)
    guests = [Somewhere(f"02:00:00:01:{n >> 8:02x}:{n & 255:02x}", ("10.0.0.77",)) for n in range(1025)]
    last, late = guests[-2:]
    for guest in guests[:-1]:
        teach(asked, packet.arp(guest, "10.0.0.77"))
    assert where(asked.thrice(sent("a", packet.udp(A, last, 1, 2)))) == {"192.0.2.2"}
    to_late = sent("a", packet.udp(A, late, 1, 2))
    asked.run(tunnelled(packet.arp(late, "10.0.0.77")))
    assert asked.thrice(to_late).reason == Reason.UNKNOWN_MAC
    asked.run(tunnelled(packet.arp(last, "10.0.0.77"), vtep="192.0.2.3"))
    assert where(asked.thrice(sent("a", packet.udp(A, last, 1, 2)))) == {"192.0.2.3"}, "who moves takes no more room"
    asked.run(tunnelled(packet.arp(late, "10.0.0.77"), vni=200))
    assert where(asked.thrice(sent("ra", packet.udp(A, late, 1, 2)))) == {"192.0.2.2"}, "other networks have theirs"
    asked.run(sent("open", packet.arp(guests[0], "10.0.0.77")))
    asked.run(tunnelled(packet.arp(late, "10.0.0.77")))
    assert where(asked.thrice(to_late)) == {"192.0.2.2"}, "a place that is free again"
    assert not asked.host.memory.inconsistencies()
    remove(asked, "d")
    remove(asked, "h3")
    asked.run(tunnelled(packet.arp(last, "10.0.0.77")))
    assert where(asked.thrice(sent("a", packet.udp(A, last, 1, 2)))) == {"192.0.2.2"}, "of a VTEP that went, too"
    assert not asked.host.memory.inconsistencies()


def teach(asked: Twin, frame: bytes) -> None:
    """Ask the programs alone, and of them nothing; the oracle learns the same."""
    arrival = tunnelled(frame)
    with asked.host.stand.inside():
        context = skb_context(asked.host.entrance(arrival))
        asked.host.datapath.programs["hr_from_uplink"].test_run(asked.host.outer(arrival), ctx=context)
    mac = ":".join(f"{octet:02x}" for octet in frame[6:12])
    asked.memory.learnt[Segment(id=100), mac] = ("vtep", "192.0.2.2")
    for _ in asked.host.stand.copies():
        pass
    asked.host.forget_counts()


def test_counts_of_what_is_learnt_are_exact_whoever_comes_first(twin: MakeTwin) -> None:
    """CPUs see the same new and moving MACs behind two ports and a VTEP, while the agent forgets them."""
    asked = twin(*STATE, port("open2", "blue", 6, port_security=False))
    host = asked.host
    frames = [packet.raw(Somewhere(f"02:00:00:00:02:{n:02x}", ()), 0x88CC, bytes(46), dmac=A.mac) for n in range(16)]

    together = threading.Barrier(2, timeout=60)

    def send(cpu: int, name: str) -> None:
        os.sched_setaffinity(0, {cpu % (os.cpu_count() or 1)})
        with host.stand.inside():
            for frame in frames:
                context = skb_context(host.entrance(sent(name, frame)))
                by_tunnel = tunnelled(frame)
                together.wait()
                host.datapath.programs["hr_from_port"].test_run(frame, ctx=context, repeat=1000)
                context = skb_context(host.entrance(by_tunnel))
                host.datapath.programs["hr_from_uplink"].test_run(host.outer(by_tunnel), ctx=context)

    def forget() -> None:
        for frame in frames * 16:
            host.datapath.learnt.forget([abi.FdbKey(segment=segment_number(BLUE.segment), mac=frame[6:12]).pack()])

    with ThreadPoolExecutor() as threads:
        works = [threads.submit(send, cpu, name) for cpu, name in enumerate(("open", "open2"))]
        works.append(threads.submit(forget))
    for work in works:
        work.result()
    host.forget_counts()
    places = [abi.Learnt.unpack(value) for value in dict(host.datapath.maps["hr_learnt"].items()).values()]
    assert all(place.endpoint for place in places), "none is left half forgotten"
    assert not host.memory.inconsistencies()


def test_a_hairpin_to_a_guest_of_the_same_port(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    asked.run(sent("open", packet.udp(GUEST, A, 2, 1)))
    assert asked.thrice(sent("open", packet.udp(OPEN, GUEST, 1, 2))).reason == Reason.HAIRPIN


def test_a_frame_to_its_own_mac_that_nobody_knows_yet(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    assert asked.run(sent("open", packet.udp(GUEST, GUEST, 1, 2))).reason == Reason.HAIRPIN
    asked = twin(*STATE)
    assert asked.run(tunnelled(packet.udp(GUEST, GUEST, 1, 2))).reason == Reason.TUNNEL_LOOP


# Floods

VTEPS = ("2001:db8::3", "192.0.2.4", "2001:db8::5", "2001:db8::6", "192.0.2.7")

MULTICAST = (BROADCAST, "01:00:5e:00:00:fb", "33:33:00:00:00:01")


@pytest.mark.parametrize("mac", MULTICAST)
def test_a_flood_reaches_everybody_else_of_the_segment_once(twin: MakeTwin, mac: str) -> None:
    more = (D, port("e", "blue", 14, "any", host="h3"), port("ra", "red", 1, "any"), network("red", 200))
    asked = twin(*STATE, *more, port("rc", "red", 9, host="h2"), hosts=THREE)
    frame = packet.udp(A, A, 1, 2, dmac=mac)
    observed = asked.thrice(sent("a", frame))
    assert observed.reason == Reason.FLOODED
    assert sorted(output.port or output.vtep or "" for output in observed.outputs) == [
        "192.0.2.2",
        "192.0.2.3",
        "b",
        "open",
    ]
    assert {output.frame for output in observed.outputs} == {frame}


@pytest.mark.parametrize("mac", MULTICAST)
def test_what_came_by_tunnel_never_leaves_by_tunnel(twin: MakeTwin, mac: str) -> None:
    asked = twin(*STATE, D, hosts=THREE)
    assert where(asked.thrice(tunnelled(packet.udp(C, C, 1, 2, dmac=mac)))) == {"a", "b", "open"}


def test_who_may_not_get_it_is_left_out_and_counted_there(twin: MakeTwin) -> None:
    more = (
        port("down", "blue", 8, "any", admin_up=False),
        port("deaf", "blue", 9, "out"),
        port("picky", "blue", 10, "dns"),
        group("out", *OUT),
        group("dns", rule("d", "ingress", 17, 53)),
    )
    asked = twin(*STATE, *more)
    observed = asked.thrice(sent("a", packet.udp(A, A, 1, 2, dmac=BROADCAST)))
    assert where(observed) == {"b", "open", "192.0.2.2"}
    assert {(one.port, one.reason) for one in observed.refused} == {
        ("down", Reason.PORT_DOWN),
        ("deaf", Reason.ACL_TO_PORT),
        ("picky", Reason.ACL_TO_PORT),
    }
    assert where(asked.thrice(sent("a", packet.udp(A, A, 1, 53, dmac=BROADCAST)))) == {
        "b",
        "open",
        "192.0.2.2",
        "picky",
    }
    observed = asked.thrice(sent("a", packet.arp(A, "10.0.0.99")))
    assert where(observed) == {"b", "open", "192.0.2.2", "picky", "deaf"}


def test_a_frame_without_ip_is_flooded_to_open_ports(twin: MakeTwin) -> None:
    asked = twin(*STATE, port("open2", "blue", 6, port_security=False))
    observed = asked.thrice(sent("open", packet.raw(OPEN, 0x88CC, bytes(46))))
    assert where(observed) == {"open2", "192.0.2.2"}
    assert {one.reason for one in observed.refused} == {Reason.ETHERTYPE}


def test_nobody_to_flood_to(twin: MakeTwin) -> None:
    asked = twin(BLUE, group("any", *ANY), A)
    observed = asked.thrice(sent("a", packet.udp(A, A, 1, 2, dmac=BROADCAST)))
    assert (observed.reason, observed.outputs) == (Reason.FLOODED, ())
    assert asked.thrice(tunnelled(packet.udp(A, A, 1, 2, dmac=BROADCAST))).outputs != ()


def test_members_come_and_go(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    arrival = sent("a", packet.arp(A, "10.0.0.99"))
    everybody = {"b", "open", "192.0.2.2"}
    assert where(asked.thrice(arrival)) == everybody
    remove(asked, "b")
    assert where(asked.thrice(arrival)) == everybody - {"b"}
    remove(asked, "c")
    assert where(asked.thrice(arrival)) == {"open"}
    change(asked, B, D, Host(id="h3", vteps=("192.0.2.3",)))
    assert where(asked.thrice(arrival)) == {"open", "b", "192.0.2.3"}


def test_a_flood_of_ipv6_over_both_families_of_the_underlay(twin: MakeTwin) -> None:
    others = [Host(id=f"h{number}", vteps=(vtep,)) for number, vtep in enumerate(VTEPS, 3)]
    ports = [port(f"p{number}", "blue", number, "any", host=f"h{number}") for number in range(3, 3 + len(VTEPS))]
    asked = twin(*STATE, *ports, hosts=(HOSTS[0], HOSTS[1], *others))
    for frame in (packet.ns(A, "fd00::99", tc=0xBA), packet.arp(A, "10.0.0.99")):
        observed = asked.thrice(sent("a", frame))
        tunnels = {output.vtep: (output.frame, output.tos) for output in observed.outputs if output.vtep}
        tos = 0xBA if frame[12:14] == b"\x86\xdd" else 0
        assert tunnels == dict.fromkeys(("192.0.2.2", *VTEPS), (frame, tos))


# The guard on a port's egress


def test_only_the_datapath_sends_to_a_workload(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    host = asked.host
    guard = host.datapath.programs["hr_guard"]
    frame = packet.udp(B, A, 1, 2)
    for mark, verdict in ((MARK, TC_ACT_UNSPEC), (0, TC_ACT_SHOT), (MARK + 1, TC_ACT_SHOT)):
        before = host.counts().reasons["a", Reason.FROM_HOST]
        context = bytearray(skb_context(host.entrance(sent("a", frame))))
        context[8:12] = mark.to_bytes(4, "little")
        with host.stand.inside():
            result = guard.test_run(frame, ctx=bytes(context))
        assert (result.retval, result.data_out) == (verdict, frame)
        assert host.counts().reasons["a", Reason.FROM_HOST] - before == (verdict == TC_ACT_SHOT)
        if verdict == TC_ACT_UNSPEC:
            assert SKB.unpack(result.ctx_out)[0] == 0, "the mark is ours and goes no further"
    with host.stand.inside():
        result = guard.test_run(frame, ctx=skb_context(host.entrance(sent("nobody", frame))))
    assert result.retval == TC_ACT_SHOT
    assert abi.Reason.FROM_HOST in {reason for (port_, reason) in host.counts().reasons if port_ == ""}
