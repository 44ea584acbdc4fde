"""What the agent does with what it is handed: never an exception, never an answer to another's question."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from typing import cast

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scapy.layers import dhcp6 as d6
from scapy.layers.inet6 import ICMPv6ND_RS, IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Ether

from headrace.abi import Punt
from headrace.agent import punt
from headrace.agent.client import Client, Silence, Unanswered, clients_of
from headrace.agent.punt import BURST, COMPLAINT, HEAD, RATE, Budget, Punts, answer
from headrace.datapath.bpfmap import Map
from headrace.datapath.packet import parse
from headrace.model import DhcpOption, State
from headrace.stages import Device, View
from headrace.testing import world
from headrace.testing.client import LINK_LOCAL, MAC, ask4, ask6, client
from headrace.testing.index import Counting

FOUR = world.subnet("four", "blue", gateway="10.0.0.254", dns_nameservers=("10.0.0.53",))
SIX = world.subnet("six", "blue", "fd00::/64", ipv6_ra_mode="dhcpv6-stateful", ipv6_address_mode="dhcpv6-stateful")
OWN = (DhcpOption(name="67", value="boot"), DhcpOption(name="tag:ipxe,67", value="chain"))
CLIENT = client(FOUR, SIX, dhcp_options=OWN)
IDENTITY = d6.DHCP6OptClientId(duid=d6.DUID_LL(lladdr=MAC))
ADDRESS = d6.DHCP6OptIA_NA(iaid=1, ianaopts=[d6.DHCP6OptIAAddress(addr="fd00::1")])
RS = bytes(Ether(src=MAC, dst="33:33:00:00:00:02") / IPv6(src=LINK_LOCAL, dst="ff02::2", hlim=255) / ICMPv6ND_RS())
QUESTIONS = (
    ask4(1, ("requested_addr", "10.0.0.1"), ("max_dhcp_size", 1400), ("param_req_list", [1, 3, 6, 121, 67])),
    ask4(3, ("requested_addr", "10.0.0.1"), ("server_id", "10.0.0.254"), ("client_id", b"\x01abcdef")),
    ask4(3, ciaddr="10.0.0.1", raw=b"\x34\x01\x03"),
    ask6(d6.DHCP6_Solicit() / IDENTITY / ADDRESS),
    ask6(d6.DHCP6_Rebind() / IDENTITY / ADDRESS / d6.DHCP6OptIA_PD(iaid=2)),
    ask6(d6.DHCP6_InfoRequest()),
    RS,
)


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """A question with octets changed, cut out, put in or cut off."""
    frame = bytearray(draw(st.sampled_from(QUESTIONS)))
    for _ in range(draw(st.integers(0, 5))):
        place = draw(st.integers(12, max(12, len(frame) - 1)))
        piece = draw(st.binary(max_size=6))
        frame[place : place + draw(st.integers(0, 6))] = piece
    return bytes(frame[: draw(st.integers(0, len(frame)))] if draw(st.booleans()) else frame)


@settings(max_examples=400)
@given(frames())
@example(b"")
@example(bytes(13))
@example(bytes(1500))
@example(b"\xff" * 1500)
def test_no_frame_breaks_it(frame: bytes) -> None:
    """It answers with a sound frame to the port, or says why not."""
    try:
        octets = answer(frame, CLIENT)
    except Unanswered:
        return
    packet = parse(octets)
    assert packet.source == CLIENT.server
    assert packet.destination in {MAC, "ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01"}
    assert packet.ip is not None
    assert len(octets) <= 1514


@settings(max_examples=200)
@given(st.binary(max_size=600), st.integers(0, len(QUESTIONS) - 1), st.integers(14, 300))
def test_no_tail_breaks_it(tail: bytes, which: int, keep: int) -> None:
    with contextlib.suppress(Unanswered):
        answer(QUESTIONS[which][:keep] + tail, CLIENT)


@pytest.mark.parametrize("question", QUESTIONS)
def test_questions_are_answered(question: bytes) -> None:
    assert answer(question, CLIENT)


@pytest.mark.parametrize("question", QUESTIONS)
def test_another_s_frame_is_not(question: bytes) -> None:
    with pytest.raises(Unanswered) as caught:
        answer(question[:6] + bytes.fromhex("020000000002") + question[12:], CLIENT)
    assert caught.value.silence == Silence.FOREIGN


def test_extension_headers_are_not_read() -> None:
    frame = Ether(src=MAC, dst="33:33:00:00:00:02") / IPv6(src=LINK_LOCAL, dst="ff02::2", hlim=255)
    with pytest.raises(Unanswered) as caught:
        answer(bytes(frame / IPv6ExtHdrDestOpt() / ICMPv6ND_RS()), CLIENT)
    assert caught.value.silence == Silence.MALFORMED


def test_a_port_asks_so_often_and_no_more() -> None:
    budget = Budget()
    assert [budget.take(1, 0.0) for _ in range(int(BURST) + 1)] == [True] * int(BURST) + [False]
    assert budget.take(2, 0.0)
    assert [budget.take(1, 1.0) for _ in range(int(RATE) + 1)] == [True] * int(RATE) + [False]
    assert sum(budget.take(1, 1000.0) for _ in range(1000)) == BURST
    budget.keep({})
    assert budget.take(1, 1000.0)


def test_clients_are_the_ports_that_are_there_and_up() -> None:
    ports = [
        world.port("a", "blue", 1),
        world.port("b", "blue", 2, admin_up=False),
        world.port("c", "blue", 3),
        world.port("d", "blue", 4, host="h2"),
        world.port("e", "blue", 5, addresses=()),
        world.port("f", "blue", 6, dhcp_options=(DhcpOption(name="nonsense", value="1"), *OWN)),
    ]
    devices = {name: Device(ifindex=number, name=f"tap{name}") for number, name in enumerate("abdef", 10)}
    view = View(State.of((*world.HOSTS, world.network("blue"), FOUR, *ports)), "h1", Counting(), devices)
    clients, faults = clients_of(view, 3600)
    assert [one.port.id for one in clients.values()] == ["a", "f"]
    assert (clients[view.index.port("a on blue")].ifindex, clients[view.index.port("a on blue")].lease) == (10, 3600)
    assert faults == ["port f: DHCPv4 option nonsense has a name that is not known; give its number"]


class Full:
    """A socket whose devices take nothing that long."""

    def __init__(self, *_: object) -> None:
        pass

    def setsockopt(self, *_: object) -> None:
        pass

    def sendto(self, *_: object) -> None:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))


class Asked:
    """Punts with a clock of the test's, without a kernel."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(socket, "socket", Full)
        monkeypatch.setattr(punt, "RingBuffer", lambda *_: None)
        self.punts = Punts(cast("Map", None), lambda: self.now)
        other = msgspec.structs.replace(CLIENT.port, id="other")
        self.clients = {4: CLIENT, 5: msgspec.structs.replace(CLIENT, port=other, ifindex=9)}
        self.punts.serve(self.clients)

    def ask(self, index: int, frame: bytes) -> None:
        client: Client = self.clients[index]
        padded = frame.ljust(len(Punt().octets), b"\0")
        self.punts.receive(Punt(port=index, ifindex=client.ifindex, length=len(frame), octets=padded).pack())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


def test_what_no_device_takes_is_a_line_a_minute(asked: Asked, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(int(BURST)):
        asked.ask(4, QUESTIONS[0])
    asked.ask(5, QUESTIONS[0])
    warned = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line.split()[0] for line in warned] == [f"port={CLIENT.port.id}", "port=other"]
    assert asked.punts.counts == {"UNSENT": int(BURST) + 1}
    asked.now += COMPLAINT
    asked.ask(4, QUESTIONS[0])
    asked.ask(4, QUESTIONS[0])
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 3


def test_who_asks_too_often_is_read_no_further(asked: Asked) -> None:
    for _ in range(int(BURST)):
        asked.ask(4, QUESTIONS[0])
    asked.punts.receive(HEAD.pack(4, CLIENT.ifindex))  # the rest would be missed
    asked.punts.receive(HEAD.pack(4, CLIENT.ifindex + 1))
    assert asked.punts.counts == {"UNSENT": int(BURST), "LIMITED": 1, "UNKNOWN": 1}


def test_the_head_is_the_record_s() -> None:
    assert HEAD.unpack_from(Punt(port=7, ifindex=8).pack()) == (7, 8)


@pytest.mark.parametrize(("vlan", "tag"), [(None, ""), (10, "8100000a")])
def test_an_answer_to_a_sub_port_bears_its_tag(vlan: int | None, tag: str) -> None:
    frame = bytes(range(14)) + b"rest"
    assert punt.tagged(frame, vlan) == frame[:12] + bytes.fromhex(tag) + frame[12:]
