"""respond: what is handed to the agent, whole and to nobody else, and what is not. docs/pipeline.md, "respond"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dhcp6 import DHCP6_Solicit
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6ND_RS, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from headrace import abi
from headrace.abi import PUNT_OCTETS, Reason
from headrace.model import DhcpOption, Port
from headrace.testing import observation as seen
from headrace.testing.observation import TC_ACT_SHOT
from headrace.testing.packet import BROADCAST
from headrace.testing.twin import Twin, sent, tunnelled
from headrace.testing.world import ANY, group, network, port, subnet

MakeTwin = Callable[..., Twin]

A = port("a", "blue", 1, "any")
B = port("b", "blue", 2, "any", host="h2")
FOUR = subnet("four", "blue", gateway="10.0.0.254")
SIX = subnet("six", "blue", "fd00::/64", ipv6_ra_mode="dhcpv6-stateful", ipv6_address_mode="dhcpv6-stateful")
STATE = (network("blue"), group("any", *ANY), A, B, FOUR, SIX)


def discover(source: Port = A, payload: bytes = b"", **fields: Any) -> bytes:
    ether = Ether(src=fields.pop("smac", source.mac), dst=fields.pop("dmac", BROADCAST))
    ip = IP(**{"src": "0.0.0.0", "dst": "255.255.255.255"} | fields)
    bootp = BOOTP(chaddr=bytes.fromhex(source.mac.replace(":", "")), xid=1)
    return bytes(ether / ip / UDP(sport=68, dport=67) / bootp / DHCP(options=[("message-type", 1), "end"]) / payload)


def six(message: Packet, to: str = "ff02::1:2", mac: str = "33:33:00:01:00:02", source: Port = A) -> bytes:
    return bytes(Ether(src=source.mac, dst=mac) / IPv6(src="fe80::ff:fe00:1", dst=to, hlim=255) / message)


SOLICIT = six(UDP(sport=546, dport=547) / DHCP6_Solicit(trid=1))
RS = six(ICMPv6ND_RS(), "ff02::2", "33:33:00:00:00:02")
QUESTIONS = {"DHCPv4": discover(), "DHCPv6": SOLICIT, "RS": RS}


def punted(asked: Twin, frame: bytes) -> None:
    """Every time, by either hook, the agent gets it and nobody else does."""
    for hook in ("tc", "tc", "xdp"):
        observed = asked.run(sent("a", frame), hook)
        assert (observed.reason, observed.verdict, observed.outputs) == (Reason.PUNTED, TC_ACT_SHOT, ())
        (punt,) = asked.host.punts
        assert punt.octets[: punt.length] == frame[:PUNT_OCTETS]
        assert punt.port == asked.host.ports["a"]
        assert punt.ifindex == asked.host.entrance(sent("a", frame))
        assert not asked.memory.flows


def goes_on(asked: Twin, frame: bytes, at: str = "a") -> None:
    for hook in ("tc", "xdp"):
        assert asked.run(sent(at, frame), hook).reason in {Reason.FLOODED, Reason.NONE}
        assert not asked.host.punts


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_agent_is_asked(twin: MakeTwin, question: str) -> None:
    punted(twin(*STATE), QUESTIONS[question])


@pytest.mark.parametrize("question", QUESTIONS)
def test_rules_are_not_asked(twin: MakeTwin, question: str) -> None:
    punted(twin(*STATE, port("a", "blue", 1)), QUESTIONS[question])


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_port_without_port_security_is_configured_too(twin: MakeTwin, question: str) -> None:
    punted(twin(*STATE, port("a", "blue", 1, port_security=False)), QUESTIONS[question])


@pytest.mark.parametrize("length", [PUNT_OCTETS - 1, PUNT_OCTETS, PUNT_OCTETS + 1])
def test_a_long_frame_is_cut(twin: MakeTwin, length: int) -> None:
    frame = discover(payload=bytes(length - len(discover())))
    assert len(frame) == length
    punted(twin(*STATE, network("blue", mtu=9000)), frame)


def test_a_renewal_is_for_the_agent(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    punted(asked, discover(src="10.0.0.1", dst="10.0.0.254", dmac="0a:48:72:00:00:01"))
    punted(asked, discover(src="10.0.0.1"))


NOT_FOR_US = {
    "a later fragment": discover(frag=1),
    "a first fragment": discover(flags="MF"),
    "an IPv6 fragment": six(IPv6ExtHdrFragment(m=1) / UDP(sport=546, dport=547) / Raw(bytes(40))),
    "DHCPv6 to one host": six(UDP(sport=546, dport=547) / DHCP6_Solicit(trid=1), "fe80::ff:fe00:2", B.mac),
    "DHCPv6 from another port": six(UDP(sport=547, dport=547) / DHCP6_Solicit(trid=1)),
}


@pytest.mark.parametrize("name", NOT_FOR_US)
def test_all_else_is_not(twin: MakeTwin, name: str) -> None:
    asked = twin(*STATE)
    asked.run(sent("a", NOT_FOR_US[name]))
    assert not asked.host.punts


UNSERVED = {
    "no subnet": (network("blue"), group("any", *ANY), A, B),
    "no DHCP": (
        *STATE,
        subnet("four", "blue", enable_dhcp=False),
        subnet("six", "blue", "fd00::/64", enable_dhcp=False),
    ),
    "addresses elsewhere": (*STATE, subnet("four", "blue", "10.1.0.0/24"), subnet("six", "blue", "fd01::/64")),
    "another network's": (*STATE, network("red", 200), subnet("four", "red"), subnet("six", "red", "fd00::/64")),
    "a router's own": (*STATE, port("a", "blue", 1, "any", device_owner="network:router_interface")),
    "a DHCP server's own": (*STATE, port("a", "blue", 1, "any", device_owner="network:dhcp")),
}


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("why", UNSERVED)
def test_ports_that_others_configure(twin: MakeTwin, why: str, question: str) -> None:
    goes_on(twin(*UNSERVED[why]), QUESTIONS[question])


def test_a_network_with_a_dhcp_server_keeps_it(twin: MakeTwin) -> None:
    asked = twin(*STATE, port("server", "blue", 9, host=None, device_owner="network:dhcp"))
    goes_on(asked, QUESTIONS["DHCPv4"])
    goes_on(asked, QUESTIONS["DHCPv6"])
    punted(asked, RS)


@pytest.mark.parametrize("where", [None, "h2"])
def test_a_network_with_a_router_keeps_it(twin: MakeTwin, where: str | None) -> None:
    asked = twin(*STATE, port("router", "blue", 9, host=where, device_owner="network:router_interface"))
    punted(asked, QUESTIONS["DHCPv4"])
    punted(asked, SOLICIT)
    (goes_on if where else punted)(asked, RS)


@pytest.mark.parametrize("version", [4, 6])
def test_a_port_may_be_left_alone(twin: MakeTwin, version: Literal[4, 6]) -> None:
    off = DhcpOption(name="dhcp_disabled", value="True", ip_version=version)
    asked = twin(*STATE, port("a", "blue", 1, "any", dhcp_options=(off,)))
    (goes_on if version == 4 else punted)(asked, QUESTIONS["DHCPv4"])
    (goes_on if version == 6 else punted)(asked, SOLICIT)


MODES = {
    (None, None): (True, False),
    ("slaac", "slaac"): (False, True),
    (None, "slaac"): (False, False),
    ("slaac", None): (False, True),
    ("dhcpv6-stateful", "dhcpv6-stateful"): (True, True),
    ("dhcpv6-stateless", "dhcpv6-stateless"): (True, True),
    (None, "dhcpv6-stateful"): (True, False),
    ("dhcpv6-stateful", None): (False, True),
}
"""(ipv6_ra_mode, ipv6_address_mode) -> DHCPv6 and RA from here."""


@pytest.mark.parametrize("modes", MODES)
def test_ipv6_by_its_modes(twin: MakeTwin, modes: tuple[Any, Any]) -> None:
    asked = twin(*STATE, subnet("six", "blue", "fd00::/64", ipv6_ra_mode=modes[0], ipv6_address_mode=modes[1]))
    for question, ours in zip((SOLICIT, RS), MODES[modes], strict=True):
        (punted if ours else goes_on)(asked, question)


def test_who_is_behind_a_port_asks_others(twin: MakeTwin) -> None:
    """A bridge behind a port without port security: its guests are none of ours."""
    asked = twin(*STATE, port("a", "blue", 1, port_security=False))
    goes_on(asked, discover(smac="02:00:00:00:00:77"))


def test_what_comes_by_tunnel_is_not_answered(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    for frame in (discover(B), RS.replace(bytes.fromhex("020000000001"), bytes.fromhex("020000000002"))):
        assert asked.run(tunnelled(frame)).reason == Reason.FLOODED
        assert not asked.host.punts


def test_a_subnet_that_gets_dhcp_ends_a_flow(twin: MakeTwin) -> None:
    """Unicast to a server of the tenant's own is replayed, until the subnet has DHCP."""
    server = port("server", "blue", 3, "any")
    asked = twin(network("blue"), group("any", *ANY), A, server)
    question = discover(src="10.0.0.1", dst="10.0.0.3", dmac=server.mac)
    goes_on(asked, question)
    asked.apply(type(asked.state).of((*asked.state.all(), FOUR)))
    assert asked.run(sent("a", question)).reason == Reason.PUNTED


def test_fifty_questions_a_second_reach_the_agent(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    for _ in range(50):
        assert asked.host.run(sent("a", RS)).reason == Reason.PUNTED
    later = [asked.host.run(sent("a", RS)).reason for _ in range(10)]
    assert Reason.BUDGET in later, "unless this took seconds"


def test_a_full_buffer_drops(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    program = asked.host.datapath.programs["hr_from_port"]
    context = seen.skb_context(asked.host.entrance(sent("a", RS)), gso_size=0, vlan=None, length=0)
    purse = abi.U32(value=asked.host.ports["a"]).pack()
    asked.host.punts.clear()
    before = asked.host.counts()
    with asked.host.stand.inside():
        for _ in range(200):
            asked.host.datapath.maps["hr_budgets"].update(purse, bytes(8))
            assert program.test_run(RS, ctx=context).retval == TC_ACT_SHOT
    counts = asked.host.counts().reasons - before.reasons
    asked.host._punts.consume()
    taken = len(asked.host.punts)
    assert counts == {("a", Reason.PUNTED): taken, ("a", Reason.BUSY): 200 - taken}
    assert 100 < taken < 200
    asked.host._before = None
    punted(asked, RS)
