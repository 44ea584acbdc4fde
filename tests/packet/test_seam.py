"""encap, the seam: outer checksums over IPv6 of every kind of packet, and what comes out at the seam's far end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace
from scapy.layers.inet import IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, in6_chksum

from headrace import abi
from headrace.abi import Reason
from headrace.model import Host, Segment, State
from headrace.testing import packet
from headrace.testing.observation import TC_ACT_REDIRECT, TC_ACT_SHOT
from headrace.testing.outer import take_off
from headrace.testing.twin import Twin, sent
from headrace.testing.world import ANY, group, network, port

MakeTwin = Callable[..., Twin]

A, C = port("a", "blue", 1, "any"), port("c", "blue", 3, "any", host="h2")
OPEN, FAR = port("open", "blue", 5, port_security=False), port("far", "blue", 6, port_security=False, host="h2")
SIX = (Host(id="h1", vteps=("2001:db8::1",)), Host(id="h2", vteps=("2001:db8::2",)))
FOUR = (Host(id="h1", vteps=("192.0.2.1",)), Host(id="h2", vteps=("192.0.2.2",)))
SEGMENTS = {"geneve": Segment(type="geneve", id=77), "mpls": Segment(type="mpls", id=77, transport="udp")}
NSH = Segment(type="nsh", id=77, transport="ethernet")
UDP = 17
LONG = bytes(range(256)) * 8
UDP_CHECK = 14 + 20 + 6
"""Where the inner checksum of a datagram over IPv4 is."""


def without_checksum(frame: bytes) -> bytes:
    """A datagram over IPv4 that has none."""
    return frame[:UDP_CHECK] + bytes(2) + frame[UDP_CHECK + 2 :]


def datagram_within(frame: bytes, more: int) -> bytes:
    """A datagram over IPv6 that ends before its packet does."""
    length = int.from_bytes(frame[18:20], "big") + more
    return frame[:18] + length.to_bytes(2, "big") + frame[20:] + b"z" * more


CHEAP = {
    "tcp": ("a", packet.tcp(A, C, 1000, 80, "A", payload=b"abc")),
    "tcp over IPv6": ("a", packet.tcp(A, C, 1000, 80, "A", payload=b"abcd", family=6)),
    "udp": ("a", packet.udp(A, C, 1000, 53, payload=LONG[:1001])),
    "udp over IPv6": ("a", packet.udp(A, C, 1000, 53, payload=b"x", family=6)),
    "an echo": ("a", packet.icmp(A, C)),
    "an echo over IPv6": ("a", packet.icmp(A, C, 128, family=6)),
}
WHOLE = {
    "no checksum": ("a", without_checksum(packet.udp(A, C, 1000, 53, payload=LONG[:513]))),
    "a datagram within": ("a", datagram_within(packet.udp(A, C, 1000, 53, payload=b"abc", family=6), 5)),
    "octets behind": ("a", packet.tcp(A, C, 1000, 80, "A") + b"\1\2\3"),
    "sctp": ("a", packet.sctp(A, C, 1000, 80)),
    "another protocol": ("a", packet.other(A, C, 47, payload=LONG[:511])),
    "another protocol over IPv6": ("a", packet.other(A, C, 47, payload=LONG[:1024], family=6)),
    "options": ("a", packet.udp(A, C, 1000, 53, payload=b"abc", options=[IPOption_NOP()] * 4)),
    "extensions": ("a", packet.extended(packet.udp(A, C, 1000, 53, payload=b"ab", family=6), [IPv6ExtHdrDestOpt()])),
    "atomic": ("a", packet.extended(packet.udp(A, C, 1000, 53, payload=b"ab", family=6), [IPv6ExtHdrFragment(id=7)])),
    "a first fragment": ("a", packet.fragments(packet.udp(A, C, 1000, 53, payload=bytes(64)), 32)[0]),
    "arp": ("open", packet.arp(OPEN, "10.0.0.99", dmac=FAR.mac)),
    "an ethertype": ("open", packet.raw(OPEN, 0x88CC, LONG[:700], dmac=FAR.mac)),
    "an Ethernet header alone": ("open", packet.raw(OPEN, 0x88CC, dmac=FAR.mac)),
}
FRAMES = CHEAP | WHOLE


def state(segment: Segment) -> tuple[object, ...]:
    return (network("blue", segment=segment, mtu=1400), group("any", *ANY), A, C, OPEN, FAR)


def checksums(outer: bytes) -> tuple[int, int]:
    """The outer UDP checksum as it is, and as scapy makes it."""
    datagram = outer[54:60] + bytes(2) + outer[62:]
    made = in6_chksum(UDP, IPv6(outer[14:54]), datagram)  # type: ignore[no-untyped-call]
    return int.from_bytes(outer[60:62], "big"), int(made) or 0xFFFF


@pytest.mark.parametrize("seam", [False, True], ids=["without a seam", "with a seam"])
@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("wire", SEGMENTS)
def test_the_outer_checksum_is_right(twin: MakeTwin, wire: str, name: str, seam: bool) -> None:  # noqa: FBT001
    asked = twin(*state(SEGMENTS[wire]), hosts=SIX, seam=seam)
    port_of, frame = FRAMES[name]
    seen = [asked.run(sent(port_of, frame), hook) for hook in ("tc", "tc", "xdp")]
    for observed in seen:
        assert (observed.reason, take_off(observed.outer).inner) == (Reason.NONE, frame)
        found, expected = checksums(observed.outer)
        assert found == expected
        assert observed.seamed == (seam and name in WHOLE)
    replayed = name in FRAMES and port_of == "a" and "fragment" not in name
    assert [observed.replayed for observed in seen] == [False, replayed, replayed]
    assert seen[2].hook == ("xdp" if name in CHEAP else "tc")


def test_a_sum_of_zero_is_sent_as_all_ones(twin: MakeTwin) -> None:
    """RFC 768; found by trying what an octet more or less makes of the sum."""
    asked = twin(*state(SEGMENTS["geneve"]), hosts=SIX)
    first = asked.run(sent("open", packet.raw(OPEN, 0x88CC, bytes(46), dmac=FAR.mac)))
    (check,) = {checksums(first.outer)[0]}
    frame = packet.raw(OPEN, 0x88CC, bytes(44) + check.to_bytes(2, "big"), dmac=FAR.mac)
    assert checksums(asked.run(sent("open", frame)).outer) == (0xFFFF, 0xFFFF)


def test_over_ipv4_there_is_none(twin: MakeTwin) -> None:
    for segment in SEGMENTS.values():
        asked = twin(*state(segment), hosts=FOUR, seam=True)
        for name in ("tcp", "no checksum", "arp"):
            assert not asked.run(sent(*FRAMES[name])).seamed


# The far end


def mark(asked: Twin, name: str = "a", path: int = 0) -> int:
    """What the near end writes beside a frame of a port, for the first path to the only other host."""
    host = asked.host
    vtep = host.datapath.index.vtep(asked.state.hosts["h2"].vteps[0])
    return abi.SEAM_MARK << abi.SEAM_MARK_SHIFT | host.ports[name] << abi.SEAM_SHIFT | vtep * abi.PATHS + path


@pytest.mark.parametrize("hosts", [FOUR, SIX], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("segment", [*SEGMENTS.values(), Segment(id=77), NSH], ids=lambda one: one.wire)
def test_what_comes_out_has_outer_headers_and_is_not_counted_again(
    twin: MakeTwin, segment: Segment, name: str, hosts: tuple[Host, ...]
) -> None:
    asked = twin(*state(segment), hosts=hosts, seam=True)
    frame = FRAMES[name][1]
    host, before = asked.host, asked.host.counts()
    with host.stand.inside():
        observed = host.come_out(frame, mark(asked, path=3))
    left = take_off(observed.outer)
    assert (left.inner, left.segment.place) == (frame, segment.place)
    assert observed.outputs[0].vtep == hosts[1].vteps[0]
    assert host.counts() == before


def test_what_no_port_sent_goes_nowhere(twin: MakeTwin) -> None:
    asked = twin(*state(SEGMENTS["geneve"]), hosts=SIX, seam=True)
    right, frame = mark(asked), FRAMES["tcp"][1]
    cases = {
        Reason.FROM_HOST: (0, abi.MARK, right ^ 1 << 28, right ^ 1 << 31),
        Reason.NO_PORT: (right | (abi.PORTS - 1) << abi.SEAM_SHIFT,),
    }
    for reason, marks in cases.items():
        for wrong in marks:
            asked.host.forget_counts()
            before = asked.host.counts().reasons["", reason]
            with asked.host.stand.inside():
                assert asked.host.come_out(frame, wrong).verdict == TC_ACT_SHOT
            assert asked.host.counts().reasons["", reason] == before + 1


def test_what_is_in_it_while_its_port_moves_to_another_network_goes_nowhere(twin: MakeTwin) -> None:
    asked = twin(*state(SEGMENTS["geneve"]), hosts=SIX, seam=True)
    before, frame = mark(asked), FRAMES["tcp"][1]
    moved = replace(A, network="red")
    asked.apply(State.of((*asked.state.all(), network("red", segment=Segment(type="geneve", id=200)), moved)))
    asked.host.forget_counts()
    dropped = asked.host.counts().reasons["", Reason.NO_PORT]
    with asked.host.stand.inside():
        late, new = asked.host.come_out(frame, before), asked.host.come_out(frame, mark(asked))
    assert (late.verdict, new.verdict) == (TC_ACT_SHOT, TC_ACT_REDIRECT)
    assert asked.host.counts().reasons["", Reason.NO_PORT] == dropped + 1
    assert take_off(new.outer).segment.number == 200
    asked.apply(State.of((*asked.state.all(), A)))
    assert mark(asked) == before


def test_what_has_no_way_any_more_is_dropped_on_its_port(twin: MakeTwin) -> None:
    asked = twin(*state(NSH), hosts=SIX, seam=True)
    host, right = asked.host, mark(asked)
    nowhere = right & ~0xFFFF | 0xFFFF
    cases = {
        Reason.NO_ROUTE: (FRAMES["tcp"][1], nowhere, 0),
        Reason.NESTED_SUPERPACKET: (packet.tcp(A, C, 1, 2, payload=LONG), right, 100),
    }
    for reason, (frame, wrong, size) in cases.items():
        host.forget_counts()
        before = host.counts().reasons["a", reason]
        with host.stand.inside():
            observed = host.come_out(frame, wrong, gso_size=size)
        assert (observed.verdict, observed.reason) == (TC_ACT_SHOT, reason)
        assert host.counts().reasons["a", reason] == before + 1


def test_a_next_hop_that_is_not_known_yet_is_asked_for(twin: MakeTwin) -> None:
    asked = twin(*state(SEGMENTS["geneve"]), hosts=SIX, seam=True)
    stand, (vtep,) = asked.host.stand, SIX[1].vteps
    known = stand.macs[vtep]
    stand.neighbour(vtep, None)
    asked.host.datapath.forget_next_hops()
    observed = asked.host.run(sent(*FRAMES["no checksum"]))
    assert (observed.seamed, observed.verdict) == (True, TC_ACT_REDIRECT)
    stand.neighbour(vtep, known)


# The near end


@pytest.mark.parametrize("seam", [False, True], ids=["without a seam", "with a seam"])
def test_a_super_packet_that_cannot_be_cut_later(twin: MakeTwin, seam: bool) -> None:  # noqa: FBT001
    """It goes by the seam as it is, walked and replayed, and counts as its segments; with none it is dropped."""
    frame = packet.tcp(A, C, 1000, 80, "A", payload=LONG)
    for segment in (NSH, *SEGMENTS.values()):
        asked = twin(*state(segment), hosts=SIX, seam=seam)
        host = asked.host
        for _ in range(2):
            host.forget_counts()
            with host.stand.inside():
                host.datapath.maps["hr_conclusions"].update(bytes(4), abi.Conclusion(reason=0xFFFFFFFF).pack())
            before = host.counts()
            verdict, left, after = run_super(asked, frame, 500)
            counted = host.counts()
            assert counted.traffic["a", "from_port", "packets"] - before.traffic["a", "from_port", "packets"] == 5
            refused = counted.reasons["a", Reason.NESTED_SUPERPACKET] - before.reasons["a", Reason.NESTED_SUPERPACKET]
            assert refused == (not seam)
            assert verdict == (TC_ACT_REDIRECT if seam else TC_ACT_SHOT)
            if seam:
                assert left == frame
                assert after & ~7 == mark(asked)


def run_super(asked: Twin, frame: bytes, size: int) -> tuple[int, bytes, int]:
    """Verdict, frame and mark of a super-packet's run at the near end."""
    from headrace.testing import observation as seen

    host = asked.host
    context = seen.skb_context(host.entrance(sent("a", frame)), gso_size=size)
    with host.stand.inside():
        result = host.datapath.programs["hr_from_port"].test_run(frame, ctx=context)
    return result.retval, result.data_out, seen.SKB.unpack(result.ctx_out)[0]
