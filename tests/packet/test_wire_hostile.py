"""admit, what comes over the underlay and should not: each with its reason. docs/pipeline.md, "admit"."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from headrace.abi import Reason
from headrace.datapath.decision import Arrival
from headrace.model import Host, Segment
from headrace.testing import packet
from headrace.testing.outer import IPV4, IPV6, ones_complement, put_on
from headrace.testing.stand import underlay_mac
from headrace.testing.twin import Twin, tunnelled
from headrace.testing.world import ANY, group, network, port

MakeTwin = Callable[..., Twin]

A, C = port("a", "blue", 1, "any"), port("c", "blue", 3, "any", host="h2")
ELSEWHERE = port("e", "red", 1, "any", host="h2")
HOSTS = (
    Host(id="h1", vteps=("192.0.2.1", "2001:db8::1")),
    Host(id="h2", vteps=("192.0.2.2", "2001:db8::2")),
)
ENDS = {"ipv4": ("192.0.2.2", "192.0.2.1"), "ipv6": ("2001:db8::2", "2001:db8::1")}
INNER = packet.udp(C, A, 5, 53, payload=b"inside")
ID = 0x1234
SEGMENTS: dict[str, Segment] = {
    segment.wire: segment
    for segment in (
        Segment(id=ID),
        Segment(type="geneve", id=ID),
        Segment(type="gre", id=ID),
        Segment(type="mpls", id=ID),
        Segment(type="mpls", id=ID, transport="gre"),
        Segment(type="nsh", id=ID),
        Segment(type="nsh", id=ID, transport="ethernet"),
    )
}
GOOD, PASSED = "good", "passed"
MALFORMED = Reason.MALFORMED_TUNNEL
GPE = b"\x0c\0\0\x04\0\x12\x34\0"
LABEL = (ID << 12 | 0x140).to_bytes(4, "big")

Outcome = Reason | str

HEADERS: dict[str, dict[str, tuple[bytes, Outcome]]] = {
    "vxlan": {
        "all flags but I, and what is reserved": (b"\xff\xff\xff\xff\0\x12\x34\xff", GOOD),
        "no flag I": (b"\xf7\0\0\0\0\x12\x34\0", MALFORMED),
        "another VNI": (b"\x08\0\0\0\0\x12\x35\0", Reason.UNKNOWN_SEGMENT),
        "VNI 0": (bytes([8, 0, 0, 0, 0, 0, 0, 0]), Reason.UNKNOWN_SEGMENT),
        "the VNI of a network that is elsewhere": (b"\x08\0\0\0\0\x43\x21\0", Reason.UNKNOWN_SEGMENT),
    },
    "geneve": {
        "what is reserved": (b"\0\x3f\x65\x58\0\x12\x34\xff", GOOD),
        "version 1": (b"\x40\0\x65\x58\0\x12\x34\0", MALFORMED),
        "control": (b"\0\x80\x65\x58\0\x12\x34\0", MALFORMED),
        "control with critical options": (b"\0\xc0\x65\x58\0\x12\x34\0", MALFORMED),
        "IPv4 inside": (b"\0\0\x08\0\0\x12\x34\0", MALFORMED),
        "an option": (b"\x02\0\x65\x58\0\x12\x34\0" + b"\x01\x02\x03\x01abcd", GOOD),
        "the longest options": (b"\x3f\0\x65\x58\0\x12\x34\0" + bytes(252), GOOD),
        "critical options": (b"\x01\x40\x65\x58\0\x12\x34\0" + b"\x01\x02\x83\0", Reason.GENEVE_OPTION),
        "critical, and no option": (b"\0\x40\x65\x58\0\x12\x34\0", Reason.GENEVE_OPTION),
        "another VNI": (b"\0\0\x65\x58\0\x12\x35\0", Reason.UNKNOWN_SEGMENT),
    },
    "gre": {
        "a sequence number": (b"\x30\0\x65\x58\0\0\x12\x34abcd", GOOD),
        "no key": (b"\0\0\x65\x58", MALFORMED),
        "a sequence number and no key": (b"\x10\0\x65\x58abcd", MALFORMED),
        "a checksum": (b"\xa0\0\x65\x58\0\0\0\0\0\0\x12\x34", PASSED),
        "routing": (b"\x60\0\x65\x58\0\0\0\0\0\0\x12\x34", PASSED),
        "version 1": (b"\x20\x01\x65\x58\0\0\x12\x34", PASSED),
        "a reserved flag": (b"\x28\0\x65\x58\0\0\x12\x34", MALFORMED),
        "the last reserved flag": (b"\x20\x08\x65\x58\0\0\x12\x34", MALFORMED),
        "IPv4 inside": (b"\x20\0\x08\0\0\0\x12\x34", PASSED),
        "another key": (b"\x20\0\x65\x58\0\0\x12\x35", Reason.UNKNOWN_SEGMENT),
        "a key above all segments": (b"\x20\0\x65\x58\x10\0\x12\x34", Reason.UNKNOWN_SEGMENT),
        "the largest key": (b"\x20\0\x65\x58\xff\xff\xff\xff", Reason.UNKNOWN_SEGMENT),
    },
    "mpls-udp": {
        "another TTL and traffic class": ((ID << 12 | 0xF00).to_bytes(4, "big"), GOOD),
        "not the bottom of the stack": ((ID << 12 | 0x40).to_bytes(4, "big") + LABEL, MALFORMED),
        "explicit null": ((0x140).to_bytes(4, "big"), MALFORMED),
        "the last reserved label": ((15 << 12 | 0x140).to_bytes(4, "big"), MALFORMED),
        "another label": (((ID + 1) << 12 | 0x140).to_bytes(4, "big"), Reason.UNKNOWN_SEGMENT),
    },
    "mpls-gre": {
        "another TTL and traffic class": (b"\0\0\x88\x47" + (ID << 12 | 0xF00).to_bytes(4, "big"), GOOD),
        "a key": (b"\x20\0\x88\x47\0\0\0\1" + LABEL, MALFORMED),
        "a sequence number": (b"\x10\0\x88\x47\0\0\0\1" + LABEL, MALFORMED),
        "a reserved flag": (b"\0\x08\x88\x47" + LABEL, MALFORMED),
        "a checksum": (b"\x80\0\x88\x47\0\0\0\0" + LABEL, PASSED),
        "version 1": (b"\0\x01\x88\x47" + LABEL, PASSED),
        "multicast": (b"\0\0\x88\x48" + LABEL, PASSED),
        "not the bottom of the stack": (b"\0\0\x88\x47" + (ID << 12 | 0x40).to_bytes(4, "big") + LABEL, MALFORMED),
        "a reserved label": (b"\0\0\x88\x47" + (3 << 12 | 0x140).to_bytes(4, "big"), MALFORMED),
        "another label": (b"\0\0\x88\x47" + ((ID + 1) << 12 | 0x140).to_bytes(4, "big"), Reason.UNKNOWN_SEGMENT),
    },
}
NSH: dict[str, tuple[bytes, Outcome]] = {
    "another TTL and service index": (b"\0\x02\x02\x03\0\x12\x34\x01", GOOD),
    "metadata type 1": (b"\x0f\xc6\x01\x03\0\x12\x34\xff" + bytes(16), GOOD),
    "metadata type 2 with metadata": (b"\x0f\xc5\x02\x03\0\x12\x34\xff" + bytes(12), GOOD),
    "the longest metadata": (b"\x0f\xff\x02\x03\0\x12\x34\xff" + bytes(244), GOOD),
    "metadata type 1 of another length": (b"\x0f\xc5\x01\x03\0\x12\x34\xff" + bytes(12), MALFORMED),
    "metadata type 0": (b"\x0f\xc2\0\x03\0\x12\x34\xff", MALFORMED),
    "metadata type 3": (b"\x0f\xc2\x03\x03\0\x12\x34\xff", MALFORMED),
    "length 1": (b"\x0f\xc1\x02\x03\0\x12\x34\xff", MALFORMED),
    "length 0": (b"\x0f\xc0\x02\x03\0\x12\x34\xff", MALFORMED),
    "version 1": (b"\x4f\xc2\x02\x03\0\x12\x34\xff", MALFORMED),
    "version 2": (b"\x8f\xc2\x02\x03\0\x12\x34\xff", MALFORMED),
    "OAM": (b"\x2f\xc2\x02\x03\0\x12\x34\xff", MALFORMED),
    "IPv4 inside": (b"\x0f\xc2\x02\x01\0\x12\x34\xff", MALFORMED),
    "a loop": (b"\x0f\xc2\x02\x03\0\x12\x34\0", Reason.NSH_EXHAUSTED),
    "a loop on another path": (b"\x0f\xc2\x02\x03\0\x12\x35\0", Reason.NSH_EXHAUSTED),
    "a loop, and OAM": (b"\x2f\xc2\x02\x03\0\x12\x34\0", MALFORMED),
    "another path": (b"\x0f\xc2\x02\x03\0\x12\x35\xff", Reason.UNKNOWN_SEGMENT),
}
HEADERS["nsh-ethernet"] = NSH
HEADERS["nsh-gpe"] = {
    name: (b"\x0c\0\0\x04\0" + header[5:7] + b"\0" + header, outcome) for name, (header, outcome) in NSH.items()
} | {
    "flags that are not looked at": (b"\xce\xff\xff\x04\0\x12\x34\xff\x0f\xc2\x02\x03\0\x12\x34\xff", GOOD),
    "no VNI": (b"\x04\0\0\x04\0\x12\x34\0\x0f\xc2\x02\x03\0\x12\x34\xff", MALFORMED),
    "no next protocol": (b"\x08\0\0\x04\0\x12\x34\0\x0f\xc2\x02\x03\0\x12\x34\xff", MALFORMED),
    "GPE version 1": (b"\x1c\0\0\x04\0\x12\x34\0\x0f\xc2\x02\x03\0\x12\x34\xff", MALFORMED),
    "GPE OAM": (b"\x0d\0\0\x04\0\x12\x34\0\x0f\xc2\x02\x03\0\x12\x34\xff", MALFORMED),
    "Ethernet behind GPE": (b"\x0c\0\0\x03\0\x12\x34\0", MALFORMED),
    "VNI and path differ": (b"\x0c\0\0\x04\0\x12\x35\0\x0f\xc2\x02\x03\0\x12\x34\xff", MALFORMED),
    "VNI and path differ, and a loop": (b"\x0c\0\0\x04\0\x12\x35\0\x0f\xc2\x02\x03\0\x12\x34\0", MALFORMED),
}
CASES = [(wire, name) for wire, cases in HEADERS.items() for name in cases]
OVER_IP = sorted(SEGMENTS.keys() - {"nsh-ethernet"})


@pytest.fixture
def asked(twin: MakeTwin) -> Callable[..., Twin]:
    """A host with a port on a segment, and with nothing but VXLAN's of a network that is elsewhere."""

    def make(wire: str, **options: bool) -> Twin:
        red = network("red", 0x4321)
        return twin(network("blue", segment=SEGMENTS[wire]), red, group("any", *ANY), A, C, ELSEWHERE, **options)

    return make


def whole(asked: Twin, wire: str, underlay: str = "ipv4", inner: bytes = INNER, source: str | None = None) -> bytes:
    """A frame of the underlay as the other host sends it."""
    theirs, own = ENDS["ipv4" if wire == "nsh-ethernet" else underlay]  # the VTEP that our host knows the other by
    macs = bytes.fromhex((asked.host.stand.own_mac + underlay_mac(source or theirs)).replace(":", ""))
    return put_on(source or theirs, own, SEGMENTS[wire], inner, macs=macs)


def with_header(frame: bytes, wire: str, header: bytes) -> bytes:
    """The frame with other octets between outer UDP, IP or Ethernet header and what is inside; lengths fit."""
    start = len(frame) - len(INNER) - len(GOOD_HEADERS[wire])
    cut = frame[:start] + header + INNER
    grown = len(cut) - len(frame)
    if frame[12:14] == IPV4:
        ip = cut[14:16] + struct.pack("!H", len(cut) - 14) + cut[18:24] + b"\0\0" + cut[26:34]
        cut = cut[:14] + ip[:10] + struct.pack("!H", ones_complement(ip)) + ip[12:] + cut[34:]
        udp = 34
    elif frame[12:14] == IPV6:
        cut = cut[:18] + struct.pack("!H", len(cut) - 54) + cut[20:]
        udp = 54
    else:
        return cut
    if wire in {"gre", "mpls-gre"}:
        return cut
    length = int.from_bytes(frame[udp + 4 : udp + 6], "big") + grown
    return cut[: udp + 4] + struct.pack("!H", length) + cut[udp + 6 :]


GOOD_HEADERS = {
    "vxlan": b"\x08\0\0\0\0\x12\x34\0",
    "geneve": b"\0\0\x65\x58\0\x12\x34\0",
    "gre": b"\x20\0\x65\x58\0\0\x12\x34",
    "mpls-udp": LABEL,
    "mpls-gre": b"\0\0\x88\x47" + LABEL,
    "nsh-gpe": GPE + b"\x0f\xc2\x02\x03\0\x12\x34\xff",
    "nsh-ethernet": b"\x0f\xc2\x02\x03\0\x12\x34\xff",
}


@pytest.mark.parametrize("underlay", ENDS)
@pytest.mark.parametrize(("wire", "name"), CASES)
def test_outer_headers(asked: Callable[..., Twin], wire: str, name: str, underlay: str) -> None:
    host = asked(wire)
    good = whole(host, wire, underlay)
    assert good.endswith(GOOD_HEADERS[wire] + INNER)
    header, outcome = HEADERS[wire][name]
    observed = host.thrice(Arrival(frame=with_header(good, wire, header)))
    if outcome == PASSED:
        assert observed.passed
    elif outcome == GOOD:
        assert [(output.port, output.frame) for output in observed.outputs] == [("a", INNER)]
    else:
        assert (observed.reason, observed.outputs, observed.passed) == (outcome, (), False)
        assert sum(observed.counts.reasons.values()) == 1


@pytest.mark.parametrize("underlay", ENDS)
@pytest.mark.parametrize("wire", SEGMENTS)
def test_cut_short_anywhere(asked: Callable[..., Twin], wire: str, underlay: str) -> None:
    """Before the tunnel's header it is the kernel's, within it malformed; behind it what is inside is."""
    host = asked(wire)
    good = whole(host, wire, underlay)
    around = len(good) - len(INNER)
    header = around - len(GOOD_HEADERS[wire])
    ours = header + (4 if wire in {"gre", "mpls-gre"} else 0)
    for length in range(14, len(good)):
        observed = host.run(Arrival(frame=good[:length]))
        if length < ours:
            assert observed.passed, f"{length} octets"
        elif length < around:
            assert observed.reason == Reason.MALFORMED_TUNNEL, f"{length} octets"
        else:
            assert observed.reason in {
                Reason.MALFORMED_ETHERNET,
                Reason.MALFORMED_IPV4,
            }, f"{length} octets"


@pytest.mark.parametrize("underlay", ENDS)
@pytest.mark.parametrize("wire", ["geneve", "nsh-gpe", "nsh-ethernet"])
def test_options_cut_short_anywhere(asked: Callable[..., Twin], wire: str, underlay: str) -> None:
    host = asked(wire)
    name = {"geneve": "an option"}.get(wire, "metadata type 1")
    header, _ = HEADERS[wire][name]
    frame = with_header(whole(host, wire, underlay), wire, header)
    around = len(frame) - len(INNER)
    for length in range(around - len(header) + len(GOOD_HEADERS[wire]), around):
        assert host.run(Arrival(frame=frame[:length])).reason == Reason.MALFORMED_TUNNEL, f"{length} octets"


@pytest.mark.parametrize("wire", OVER_IP)
def test_outer_fragments(asked: Callable[..., Twin], wire: str) -> None:
    """The first says what it was and is dropped; later ones do not, and are the kernel's."""
    host = asked(wire)
    good = whole(host, wire)
    for place, reason in ((0x2000, Reason.OUTER_FRAGMENT), (0x2001, None), (0x0003, None), (0x4000, Reason.NONE)):
        header = good[14:20] + struct.pack("!H", place) + good[22:24] + b"\0\0" + good[26:34]
        header = header[:10] + struct.pack("!H", ones_complement(header)) + header[12:]
        observed = host.thrice(Arrival(frame=good[:14] + header + good[34:]))
        assert observed.passed if reason is None else observed.reason == reason


@pytest.mark.parametrize("underlay", ENDS)
@pytest.mark.parametrize("wire", SEGMENTS)
def test_nobody_else_may_send(asked: Callable[..., Twin], wire: str, underlay: str) -> None:
    """A stranger, and this host itself; the segment is not even looked at."""
    host = asked(wire)
    strangers = {"ipv4": ("192.0.2.99", "192.0.2.1"), "ipv6": ("2001:db8::99", "2001:db8::1")}
    for source in strangers[underlay]:
        for frame in (INNER, packet.arp(C, "10.0.0.99"), b"x" * 20):
            observed = host.thrice(Arrival(frame=whole(host, wire, underlay, frame, source)))
            assert (observed.reason, observed.outputs) == (Reason.UNKNOWN_VTEP, ())
    other = (
        GOOD_HEADERS[wire].replace(b"\x12\x34", b"\x12\x35").replace(LABEL, ((ID + 1) << 12 | 0x140).to_bytes(4, "big"))
    )
    stranger = with_header(whole(host, wire, underlay, source=strangers[underlay][0]), wire, other)
    assert host.thrice(Arrival(frame=stranger)).reason == Reason.UNKNOWN_VTEP


@pytest.mark.parametrize("wire", SEGMENTS)
def test_anybody_may_send_where_that_is_configured(asked: Callable[..., Twin], wire: str) -> None:
    """Nothing is learnt behind one who has no name; what is inside is judged as ever."""
    host = asked(wire, any_vtep=True)
    assert host.thrice(Arrival(frame=whole(host, wire, source="192.0.2.99"))).outputs[0].frame == INNER
    guest = packet.Somewhere("02:00:00:00:99:99", ("10.0.0.99",))
    inner = packet.udp(guest, A, 1, 2)
    assert host.thrice(Arrival(frame=whole(host, wire, inner=inner, source="192.0.2.99"))).outputs[0].port == "a"
    assert host.run(Arrival(port="a", frame=packet.udp(A, guest, 2, 3))).reason == Reason.UNKNOWN_MAC
    assert host.thrice(tunnelled(inner, segment=SEGMENTS[wire])).outputs[0].port == "a"
    assert host.run(Arrival(port="a", frame=packet.udp(A, guest, 2, 3))).outputs[0].vtep == "192.0.2.2"


@pytest.mark.parametrize("underlay", ENDS)
@pytest.mark.parametrize("wire", SEGMENTS)
def test_what_is_inside_is_judged_as_ever(asked: Callable[..., Twin], wire: str, underlay: str) -> None:
    host, vtep = asked(wire), ENDS["ipv4" if wire == "nsh-ethernet" else underlay][0]
    for inner, reason in (
        (packet.with_octet(INNER, 14, 0x44), Reason.MALFORMED_IPV4),
        (packet.with_octet(INNER, 6, 1), Reason.MULTICAST_SOURCE),
        (packet.tagged(INNER), Reason.VLAN_TAGGED),
        (packet.with_octet(INNER, 1, 0x99), Reason.UNKNOWN_MAC),
        (packet.udp(A, C, 1, 2), Reason.TUNNEL_LOOP),
        (packet.raw(C, 0x88CC, bytes(46), dmac=A.mac), Reason.ETHERTYPE),
        (INNER[:13], Reason.MALFORMED_ETHERNET),
        (b"", Reason.MALFORMED_ETHERNET),
    ):
        assert host.thrice(tunnelled(inner, vtep, segment=SEGMENTS[wire])).reason == reason


@pytest.mark.parametrize("wire", OVER_IP)
def test_what_is_not_addressed_to_us_is_the_kernels(asked: Callable[..., Twin], wire: str) -> None:
    """Another address, IP options and extension headers, a tag, another host's MAC over Ethernet."""
    host = asked(wire)
    segment = SEGMENTS[wire]
    for frame in (
        put_on("192.0.2.2", "192.0.2.7", segment, INNER),
        put_on("2001:db8::2", "2001:db8::7", segment, INNER),
        packet.tagged(whole(host, wire)),
        packet.with_octet(whole(host, wire), 14, 0x46),
        packet.padded(whole(host, wire, "ipv6")),
    ):
        assert host.thrice(Arrival(frame=frame)).passed


def test_nsh_for_another_mac_is_the_kernels(asked: Callable[..., Twin]) -> None:
    host = asked("nsh-ethernet")
    good = whole(host, "nsh-ethernet")
    assert host.thrice(Arrival(frame=b"\x02\xaa" + good[2:])).passed
    assert host.thrice(Arrival(frame=b"\xff" * 6 + good[6:])).passed
    assert host.thrice(Arrival(frame=packet.tagged(good))).passed
    assert host.thrice(Arrival(frame=good)).outputs[0].port == "a"
