"""too_big: who is told how long packets may be, in which octets; and MSS clamping. docs/pipeline.md, "too_big"."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop, PadN
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from headrace.abi import Reason, State
from headrace.datapath.decision import Output
from headrace.model import AddressPair, Host
from headrace.testing import packet
from headrace.testing.observation import TC_ACT_REDIRECT, TC_ACT_SHOT, Hook
from headrace.testing.packet import BROADCAST
from headrace.testing.twin import Twin, sent, tunnelled
from headrace.testing.world import ANY, group, network, port

MakeTwin = Callable[..., Twin]

# Devices are given in the order of port ids: those of a and b are on XDP.
A, B = port("a", "blue", 1, "any"), port("b", "blue", 2, "any")
FAR = port("far", "blue", 8, "any", host="h2")
MTU = 1450
STATE = (network("blue", mtu=MTU), group("any", *ANY), A, B, FAR)
UNDERLAYS = {
    "ipv4": (Host(id="h1", vteps=("192.0.2.1",)), Host(id="h2", vteps=("192.0.2.2",))),
    "ipv6": (Host(id="h1", vteps=("2001:db8::1",)), Host(id="h2", vteps=("2001:db8::2",))),
}
OUTER = {"ipv4": 50, "ipv6": 70}
PATTERN = bytes(range(256)) * 16
PARTS = {"whole": 0, "first": 0x2000, "later": 0x2000 | 100}


def long(length: int, to: Any = B, *, family: int = 4, **fields: Any) -> bytes:
    """A UDP packet of so many octets from its IP header on, with DF, whatever the header holds."""
    given = ({"flags": "DF"} if family == 4 else {}) | fields
    bare = len(packet.udp(A, to, 1000, 53, family=family, **given)) - 14
    return packet.udp(A, to, 1000, 53, payload=PATTERN[: length - bare], family=family, **given)


def answer(frame: bytes, mtu: int) -> bytes:
    """What scapy makes of the answer."""
    asked = Ether(frame)
    ip = asked.payload
    ether = Ether(src=asked.dst, dst=asked.src)
    if isinstance(ip, IP):
        header = IP(src=ip.dst, dst=ip.src, ttl=64, id=0, flags="DF", tos=0) / ICMP(type=3, code=4, nexthopmtu=mtu)
        return bytes(ether / header / Raw(frame[14 : 14 + ip.len][:548]))
    told = ICMPv6PacketTooBig(mtu=max(mtu, 1280)) / Raw(frame[14 : 14 + 40 + ip.plen][:1232])
    return bytes(ether / IPv6(src=ip.dst, dst=ip.src, hlim=64) / told)


def hooks() -> Iterator[Hook]:
    """First packet, again, and by XDP."""
    yield from ("tc", "tc", "xdp")


def told(asked: Twin, frame: bytes, mtu: int, **fields: Any) -> None:
    """The frame goes nowhere, and its sender is told; every time, and nothing is remembered of it."""
    before = len(asked.memory.flows)
    for hook in hooks():
        observed = asked.run(sent("a", frame, **fields), hook)
        assert (observed.reason, observed.verdict) == (Reason.TOO_BIG, TC_ACT_REDIRECT)
        assert observed.outputs == (Output(port="a", frame=answer(frame, mtu)),)
        assert observed.marked, "an answer passes the guard by its mark"
        assert observed.counts.reasons == {("a", Reason.TOO_BIG): 1}
        assert not observed.replayed
    assert len(asked.memory.flows) == before


def untold(asked: Twin, frame: bytes, **fields: Any) -> None:
    """The frame goes nowhere, and nobody hears of it."""
    for hook in hooks():
        observed = asked.run(sent("a", frame, **fields), hook)
        assert (observed.reason, observed.verdict, observed.outputs) == (Reason.TOO_BIG, TC_ACT_SHOT, ())
        assert observed.counts.reasons == {("a", Reason.TOO_BIG): 1}


def passes(asked: Twin, frame: bytes, **fields: Any) -> None:
    assert asked.thrice(sent("a", frame, **fields)).reason == Reason.NONE


# The network's MTU


@pytest.mark.parametrize("to", [B, FAR], ids=lambda one: one.id)
@pytest.mark.parametrize("family", [4, 6])
def test_one_octet_decides(twin: MakeTwin, family: int, to: Any) -> None:
    asked = twin(*STATE, underlay_mtu=9000)
    told(asked, long(MTU + 1, to, family=family), MTU)
    passes(asked, long(MTU, to, family=family))
    told(asked, long(MTU + 1, to, family=family), MTU)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("mtu", [68, 80, 540, 547, 548, 549, 1231, 1232, 1279, 1280, 1281, 3000])
def test_the_quote_is_no_longer_than_the_packet_nor_the_answer_than_it_may_be(
    twin: MakeTwin, mtu: int, family: int
) -> None:
    asked = twin(*STATE, network("blue", mtu=mtu))
    for more in (1, 2, 3, 4, 200):
        told(asked, long(mtu + more, family=family), mtu)


@pytest.mark.parametrize("family", [4, 6])
def test_what_pads_the_frame_is_neither_judged_nor_quoted(twin: MakeTwin, family: int) -> None:
    asked = twin(*STATE, network("blue", mtu=300))
    passes(asked, long(300, family=family) + bytes(50))
    told(asked, long(301, family=family) + bytes(50), 300)


def test_the_answers_header_is_its_own(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    told(asked, long(MTU + 1, tos=0xBB, id=77, ttl=3), MTU)
    told(asked, long(MTU + 1, family=6, tc=0xBB, fl=0x12345, hlim=3), MTU)


@pytest.mark.parametrize("mtu", [100, MTU])
@pytest.mark.parametrize("options", [1, 4, 40])
def test_ip_options_are_quoted_and_not_repeated(twin: MakeTwin, options: int, mtu: int) -> None:
    frame = long(mtu + 4, options=[IPOption_NOP() for _ in range(options)])
    told(twin(*STATE, network("blue", mtu=mtu)), frame, mtu)


@pytest.mark.parametrize("room", [0, 100, 1200])
def test_extension_headers_are_quoted(twin: MakeTwin, room: int) -> None:
    asked = twin(*STATE)
    whole = long(MTU, family=6)
    options = [PadN(optdata=bytes(200)) for _ in range(room // 200)]
    told(asked, packet.extended(whole, [IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(options=options)]), MTU)


@pytest.mark.parametrize("flags", ["", "DF"])
@pytest.mark.parametrize("to", [B, FAR], ids=lambda one: one.id)
def test_only_df_wants_an_answer(twin: MakeTwin, to: Any, flags: str) -> None:
    asked = twin(*STATE, underlay_mtu=1400)
    for length, mtu in ((MTU + 1, MTU), *([(1351, 1350)] if to == FAR else [])):
        if flags:
            told(asked, long(length, to), mtu)
        else:
            untold(asked, long(length, to, flags=0))


@pytest.mark.parametrize("protocol", ["tcp", "sctp", "other", "echo"])
@pytest.mark.parametrize("family", [4, 6])
def test_every_protocol(twin: MakeTwin, family: int, protocol: str) -> None:
    asked = twin(*STATE)
    fields: dict[str, Any] = {"family": family} | ({"flags": "DF"} if family == 4 else {})
    frames = {
        "tcp": bytes(packet.over_ip(A, B, TCP(sport=1, dport=2, flags="A") / Raw(PATTERN[:1500]), **fields)),
        "sctp": packet.sctp(A, B, 1, 2, **fields) + PATTERN[:1500],
        "other": packet.other(A, B, 99, payload=PATTERN[:1500], **fields),
        "echo": packet.icmp(A, B, 8 if family == 4 else 128, **fields) + PATTERN[:1500],
    }
    told(asked, lengthened(frames[protocol]), MTU)


def lengthened(frame: bytes) -> bytes:
    """The same frame, its IP length what the frame holds."""
    ether = Ether(frame)
    if isinstance(ether.payload, IP):
        ether.payload.len, ether.payload.chksum = len(frame) - 14, None
    else:
        ether.payload.plen = len(frame) - 54
    return bytes(ether)


# Who hears nothing


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("mac", [BROADCAST, "01:00:5e:00:00:09", "33:33:00:00:00:09"])
def test_none_to_many(twin: MakeTwin, mac: str, family: int) -> None:
    untold(twin(*STATE), long(MTU + 1, family=family, dmac=mac))


@pytest.mark.parametrize(
    "address", ["224.0.0.9", "239.1.2.3", "240.0.0.1", "255.255.255.255", "0.0.0.0", "ff02::9", "::"]
)
def test_none_to_such_addresses(twin: MakeTwin, address: str) -> None:
    untold(twin(*STATE), long(MTU + 1, family=6 if ":" in address else 4, dst=address))


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_none_to_who_has_no_address(twin: MakeTwin, address: str) -> None:
    asked = twin(*STATE, port("a", "blue", 1, port_security=False))
    untold(asked, long(MTU + 1, family=6 if ":" in address else 4, src=address))


@pytest.mark.parametrize("part", PARTS)
def test_fragments(twin: MakeTwin, part: str) -> None:
    """A first one shows what a transport needs to find its socket; a later one does not."""
    asked = twin(*STATE)
    frame = Ether(long(MTU + 1))
    frame.payload.flags, frame.payload.frag = PARTS[part] >> 13 | 2, PARTS[part] & 0x1FFF
    frame.payload.chksum = None
    (untold if part == "later" else told)(asked, bytes(frame), *([] if part == "later" else [MTU]))


def test_ipv6_fragments(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    first, later, _ = packet.fragments(long(4000, family=6), 1600)
    told(asked, first, MTU)
    untold(asked, later)


@pytest.mark.parametrize("kind", range(20))
def test_icmp_errors_are_not_answered(twin: MakeTwin, kind: int) -> None:
    frame = packet.icmp_error(A, B, long(MTU), kind, 0, room=MTU, flags="DF")
    if kind in {3, 4, 5, 11, 12}:
        untold(twin(*STATE), frame)
    else:
        told(twin(*STATE), frame, MTU)


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 4, 100, 127, 128, 129, 138, 143, 255])
def test_icmpv6_errors_are_not_answered(twin: MakeTwin, kind: int) -> None:
    frame = packet.icmp_error(A, B, long(MTU, family=6), kind, 0, room=MTU, family=6)
    if kind < 128:
        untold(twin(*STATE), frame)
    else:
        told(twin(*STATE), lengthened(frame), MTU)


def test_a_redirect_is_not_answered(twin: MakeTwin) -> None:
    asked = twin(*STATE, port("a", "blue", 1, port_security=False))
    untold(asked, packet.icmp_error(A, B, long(MTU, family=6), 137, 0, room=MTU, family=6))


@pytest.mark.parametrize("family", [4, 6])
def test_only_the_owner_of_an_address_hears(twin: MakeTwin, family: int) -> None:
    asked = twin(*STATE)
    victim = B.addresses[0 if family == 4 else 1]
    for frame, reason in (
        (long(MTU + 1, family=family, src=victim), Reason.SPOOFED_ADDRESS),
        (long(MTU + 1, family=family, smac=B.mac), Reason.SPOOFED_MAC),
    ):
        observed = asked.thrice(sent("a", frame))
        assert (observed.reason, observed.outputs) == (reason, ())


def test_an_address_pair_hears(twin: MakeTwin) -> None:
    pair = AddressPair(address="10.9.0.0/16", mac="02:00:00:00:00:77")
    asked = twin(*STATE, port("a", "blue", 1, "any", address_pairs=(pair,)))
    told(asked, long(MTU + 1, smac="02:00:00:00:00:77", src="10.9.1.2"), MTU)


def test_what_is_denied_on_its_way_is_denied_only_there(twin: MakeTwin) -> None:
    """The network's MTU is everybody's to know; the path's only who may use the path."""
    asked = twin(*STATE, group("any"), underlay_mtu=1400)
    told(asked, long(MTU + 1, FAR), MTU)
    assert asked.thrice(sent("a", long(MTU, FAR))).reason == Reason.ACL_FROM_PORT


def test_what_comes_by_tunnel_is_delivered(twin: MakeTwin) -> None:
    asked = twin(*STATE, network("blue", mtu=1000))
    frame = packet.udp(FAR, A, 1, 2, payload=bytes(1400), flags="DF")
    observed = asked.thrice(tunnelled(frame))
    assert (observed.reason, observed.outputs[0].frame) == (Reason.NONE, frame)


def test_other_ethertypes_are_nobodys_business(twin: MakeTwin) -> None:
    asked = twin(
        *STATE, port("a", "blue", 1, port_security=False), port("far", "blue", 8, port_security=False, host="h2")
    )
    assert asked.thrice(sent("a", packet.raw(A, 0x88CC, bytes(1480), dmac=FAR.mac))).reason == Reason.NONE


# The path's MTU


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("underlay", UNDERLAYS)
def test_the_path_to_a_vtep(twin: MakeTwin, underlay: str, family: int) -> None:
    asked = twin(*STATE, hosts=UNDERLAYS[underlay], underlay_mtu=1460)
    room = 1460 - OUTER[underlay]
    told(asked, long(room + 1, FAR, family=family), room)
    assert not asked.host.memory.connections(), "what goes nowhere makes no connection"
    passes(asked, long(room, FAR, family=family))
    told(asked, long(room + 1, FAR, family=family), room)
    passes(asked, long(room + 1, B, family=family))
    told(asked, long(MTU + 1, FAR, family=family), MTU)


def test_less_than_ipv6_needs_is_told_as_what_it_needs(twin: MakeTwin) -> None:
    asked = twin(*STATE, underlay_mtu=1300)
    told(asked, long(1251, FAR, family=6), 1280)
    told(asked, long(1251, FAR), 1250)


def test_a_packet_that_is_too_big_changes_no_connection(twin: MakeTwin) -> None:
    asked = twin(*STATE, underlay_mtu=1400)
    for flags, length in (("S", 0), ("FA", 1400), ("R", 1400)):
        segment = TCP(sport=1000, dport=80, flags=flags, seq=1) / Raw(bytes(length))
        asked.run(sent("a", bytes(packet.over_ip(A, FAR, segment, flags="DF"))))
        ((_, conn),) = asked.host.memory.connections().items()
        assert (State(conn.state), conn.counter[0].packets) == (State.SYN_SENT, 1)


@pytest.mark.parametrize("hook", ["tc", "xdp"])
def test_a_path_that_becomes_narrower_and_wider(twin: MakeTwin, hook: Hook) -> None:
    """The agent raises the epochs; whichever hook replays, it does not replay what the path no longer takes."""
    asked = twin(*STATE)
    frame = long(1400, FAR)
    assert asked.thrice(sent("a", frame)).replayed
    asked.narrow(1449)
    assert asked.run(sent("a", frame), hook).outputs == (Output(port="a", frame=answer(frame, 1399)),)
    asked.narrow(1450)
    assert asked.run(sent("a", frame), hook).reason == Reason.NONE
    assert asked.run(sent("a", frame), hook).replayed


def test_wider_is_seen_without_new_decisions(twin: MakeTwin) -> None:
    """A longer packet is a miss anyhow."""
    asked = twin(*STATE, underlay_mtu=1400)
    passes(asked, long(1350, FAR))
    asked.narrow(1500)
    passes(asked, long(1450, FAR))


@pytest.mark.parametrize("underlay", UNDERLAYS)
def test_the_next_hop_has_not_answered_yet(twin: MakeTwin, underlay: str) -> None:
    """The device is known, and so is its MTU."""
    asked = twin(*STATE, hosts=UNDERLAYS[underlay], underlay_mtu=1400)
    (vtep,) = UNDERLAYS[underlay][1].vteps
    stand = asked.host.stand
    mac = stand.macs[vtep]
    stand.neighbour(vtep, None)
    room = 1400 - OUTER[underlay]
    told(asked, long(room + 1, FAR), room)
    assert asked.run(sent("a", long(room, FAR))).reason == Reason.NONE
    stand.neighbour(vtep, mac)


def test_a_flood_reaches_whom_it_can(twin: MakeTwin) -> None:
    """Whoever is here, and other hosts where the path is wide enough; nobody is told."""
    asked = twin(*STATE, underlay_mtu=1400)
    for length, reasons in ((1350, {}), (1351, {("a", Reason.TOO_BIG): 1})):
        frame = long(length, dmac=BROADCAST)
        observed = asked.thrice(sent("a", frame))
        assert observed.reason == Reason.FLOODED
        assert {output.port or output.vtep for output in observed.outputs} == {"b", *([] if reasons else ["192.0.2.2"])}
        assert observed.counts.reasons == {("a", Reason.FLOODED): 1, **reasons}


# Super-packets


def bulk(octets: int, to: Any = B, *, family: int = 4) -> bytes:
    """A guest's super-packet."""
    fields = {"flags": "DF"} if family == 4 else {}
    return bytes(
        packet.over_ip(A, to, TCP(sport=1, dport=2, flags="A") / Raw((PATTERN * 4)[:octets]), family=family, **fields)
    )


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("octets", [1500, 3400])
def test_a_super_packet_is_as_long_as_its_segments(twin: MakeTwin, octets: int, family: int) -> None:
    """The answer is a plain packet: no mark of a super-packet is left on it."""
    asked = twin(*STATE)
    most = MTU - (40 if family == 4 else 60)
    told(asked, bulk(octets, family=family), MTU, gso_size=most + 1)
    passes(asked, bulk(octets, family=family), gso_size=most)


def test_a_super_packet_towards_a_vtep(twin: MakeTwin) -> None:
    told(twin(*STATE, underlay_mtu=1400), bulk(3000, FAR), 1350, gso_size=1311)


# MSS clamping


def syn(
    options: list[Any], flags: str = "S", to: Any = B, *, family: int = 4, payload: bytes = b"", **fields: Any
) -> bytes:
    header = TCP(sport=1000, dport=80, flags=flags, options=options, seq=7, ack=9)
    return bytes(packet.over_ip(A, to, header / Raw(payload), family=family, **fields))


def clamped(asked: Twin, frame: bytes) -> bytes:
    """What leaves, each time; a SYN is never replayed."""
    outputs = []
    for hook in hooks():
        observed = asked.run(sent("a", frame), hook)
        assert (observed.reason, observed.replayed) == (Reason.NONE, False)
        outputs += [output.frame for output in observed.outputs]
    assert outputs == [outputs[0]] * 3
    return outputs[0]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("before", range(5))
def test_mss_is_lowered_at_every_place(twin: MakeTwin, before: int, family: int) -> None:
    least = MTU - (40 if family == 4 else 60)
    nops = [("NOP", None)] * before
    for size in (9000, 65535, least + 1):
        frame = syn([*nops, ("MSS", size), ("WScale", 7)], family=family)
        assert clamped(twin(*STATE, mss_clamp=True), frame) == syn(
            [*nops, ("MSS", least), ("WScale", 7)], family=family
        )
        assert clamped(twin(*STATE), frame) == frame, "off by default"


@pytest.mark.parametrize("size", [0, 536, 1409, 1410])
def test_a_small_mss_stays(twin: MakeTwin, size: int) -> None:
    frame = syn([("MSS", size)])
    assert clamped(twin(*STATE, mss_clamp=True), frame) == frame


@pytest.mark.parametrize("underlay", UNDERLAYS)
def test_mss_follows_the_path(twin: MakeTwin, underlay: str) -> None:
    asked = twin(*STATE, hosts=UNDERLAYS[underlay], mss_clamp=True, underlay_mtu=1400)
    room = 1400 - OUTER[underlay]
    assert clamped(asked, syn([("MSS", 1460)], to=FAR)) == syn([("MSS", room - 40)], to=FAR)
    assert clamped(asked, syn([("MSS", 1460)], to=FAR, family=6)) == syn([("MSS", room - 60)], to=FAR, family=6)
    assert clamped(asked, syn([("MSS", 1460)])) == syn([("MSS", MTU - 40)])


def test_a_path_without_room_for_a_segment(twin: MakeTwin) -> None:
    asked = twin(*STATE, network("blue", mtu=68), mss_clamp=True)
    assert clamped(asked, syn([("MSS", 1460)])) == syn([("MSS", 28)])
    assert clamped(asked, syn([("MSS", 1460)], family=6)) == syn([("MSS", 8)], family=6)


UNTOUCHED: dict[str, list[Any]] = {
    "none": [],
    "others": [("WScale", 7), ("SAckOK", b""), ("Timestamp", (1, 2))],
    "behind the end": [("EOL", None), ("MSS", 1460)],
    "of another length": [(2, b"\x05"), ("NOP", None)],
    "behind one of no length": [("NOP", None)],
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_options_that_stay(twin: MakeTwin, name: str) -> None:
    frame = syn(UNTOUCHED[name])
    if name == "behind one of no length":
        frame = resized(frame, b"\xfe\x00\x02\x04\x05\xb4\x00\x00")
    assert clamped(twin(*STATE, mss_clamp=True), frame) == frame


def resized(frame: bytes, options: bytes) -> bytes:
    """The frame's TCP header with other options."""
    ether = Ether(frame)
    header = bytearray(bytes(ether[TCP])[:20])
    header[12] = (20 + len(options)) // 4 << 4
    ether.payload.remove_payload()
    ether.payload.len, ether.payload.chksum = None, None
    return bytes(ether / Raw(bytes(header) + options))


def test_options_to_the_last_octet(twin: MakeTwin) -> None:
    asked = twin(*STATE, mss_clamp=True)
    nops = [("NOP", None)]
    assert clamped(asked, syn([*nops * 36, ("MSS", 1460)])) == syn([*nops * 36, ("MSS", 1410)])
    frame = resized(syn([]), b"\x01" * 38 + b"\x02\x04")
    assert clamped(asked, frame) == frame, "its value lies behind the header"


def test_only_the_first_mss_counts(twin: MakeTwin) -> None:
    asked = twin(*STATE, mss_clamp=True)
    assert clamped(asked, syn([("MSS", 9000), ("MSS", 8000)])) == syn([("MSS", 1410), ("MSS", 8000)])


def test_the_answer_to_a_syn_and_data_in_one(twin: MakeTwin) -> None:
    asked = twin(*STATE, mss_clamp=True)
    for payload in (b"x", b"xy", b"x" * 301):
        frame, lower = (syn([("MSS", size)], payload=payload) for size in (1460, 1410))
        assert clamped(asked, frame) == lower
    asked = twin(*STATE, mss_clamp=True)
    assert asked.run(sent("b", packet.tcp(B, A, 80, 1000, "S"))).reason == Reason.NONE
    assert clamped(asked, syn([("MSS", 1460)], "SA")) == syn([("MSS", 1410)], "SA")


def test_other_segments_keep_what_looks_like_an_option(twin: MakeTwin) -> None:
    asked = twin(*STATE, mss_clamp=True)
    frame = syn([("MSS", 9000)], "A")
    assert asked.thrice(sent("a", frame)).outputs[0].frame == frame


def test_what_comes_by_tunnel_was_clamped_where_it_came_from(twin: MakeTwin) -> None:
    asked = twin(*STATE, mss_clamp=True)
    header = TCP(sport=1, dport=2, flags="S", options=[("MSS", 9000)])
    frame = bytes(packet.over_ip(FAR, A, header))
    assert asked.run(tunnelled(frame)).outputs[0].frame == frame


def test_the_first_fragment_of_a_syn(twin: MakeTwin) -> None:
    asked = twin(*STATE, mss_clamp=True)
    for size in (1460, 1410):
        first = packet.fragments(syn([("MSS", size)], payload=bytes(80)), 24)[0]
        outputs = asked.run(sent("a", first)).outputs
        assert Ether(outputs[0].frame)[TCP].options == [("MSS", 1410)]


def test_switching_it_acts_at_once(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    frame = syn([("MSS", 1460)])
    assert clamped(asked, frame) == frame
    asked.clamp(mss=True)
    assert clamped(asked, frame) == syn([("MSS", 1410)])
