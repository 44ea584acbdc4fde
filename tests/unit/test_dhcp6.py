"""DHCPv6: what scapy asks is answered as RFC 8415 says, and what scapy reads is what the subnets say."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers import dhcp6 as d6
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from headrace.agent.client import Client, Silence, Unanswered, server_mac
from headrace.agent.punt import answer
from headrace.model import DhcpOption, Network, Segment
from headrace.testing.client import LEASE, LINK_LOCAL, MAC, answered, ask6, client
from headrace.testing.world import subnet

STATEFUL = "dhcpv6-stateful"
STATELESS = "dhcpv6-stateless"
SIX = subnet(
    "six", "blue", "fd00::/64", ipv6_ra_mode=STATEFUL, ipv6_address_mode=STATEFUL, dns_nameservers=("fd00::53",)
)
OTHERS = subnet("six", "blue", "fd00::/64", ipv6_ra_mode=STATELESS, ipv6_address_mode=STATELESS)
IDENTITY = d6.DUID_LL(lladdr=MAC)
SERVER = d6.DUID_LL(lladdr=server_mac("blue", []))
ME = d6.DHCP6OptClientId(duid=IDENTITY)
YOU = d6.DHCP6OptServerId(duid=SERVER)
BLUE = Network(id="blue", segment=Segment(id=100), dns_domain="a.org")


def wants(*addresses: str, iaid: int = 7) -> Packet:
    return d6.DHCP6OptIA_NA(iaid=iaid, ianaopts=[d6.DHCP6OptIAAddress(addr=address) for address in addresses])


def given(message: Packet) -> list[tuple[str, int, int]]:
    """Addresses with their lifetimes, of the first IA."""
    return [
        (each.addr, each.preflft, each.validlft)
        for each in message[d6.DHCP6OptIA_NA].ianaopts
        if isinstance(each, d6.DHCP6OptIAAddress)
    ]


def silent(question: bytes, to: Client) -> Silence:
    with pytest.raises(Unanswered) as caught:
        answer(question, to)
    return caught.value.silence


def test_solicit_and_request() -> None:
    to = client(SIX, BLUE)
    message = answered(ask6(d6.DHCP6_Solicit(trid=5) / ME / wants()), to)
    assert (message[Ether].src, message[Ether].dst, message[IPv6].dst) == (server_mac("blue", []), MAC, LINK_LOCAL)
    assert message[IPv6].src == str(to.link_local)
    advertise = message[d6.DHCP6_Advertise]
    assert advertise.trid == 5
    assert bytes(advertise[d6.DHCP6OptClientId].duid) == bytes(IDENTITY)
    assert bytes(advertise[d6.DHCP6OptServerId].duid) == bytes(SERVER)
    assert given(message) == [("fd00::1", LEASE, LEASE)]
    association = message[d6.DHCP6OptIA_NA]
    assert (association.iaid, association.T1, association.T2) == (7, LEASE // 2, LEASE * 4 // 5)
    assert message[d6.DHCP6OptDNSServers].dnsservers == ["fd00::53"]
    assert message[d6.DHCP6OptDNSDomains].dnsdomains == ["a.org."]
    reply = answered(ask6(d6.DHCP6_Request(trid=6) / ME / YOU / wants("fd00::1")), to)
    assert reply[d6.DHCP6_Reply].trid == 6
    assert given(reply) == [("fd00::1", LEASE, LEASE)]


def test_rapid_commit() -> None:
    message = answered(ask6(d6.DHCP6_Solicit() / ME / wants() / d6.DHCP6OptRapidCommit()), client(SIX))
    assert d6.DHCP6_Reply in message
    assert d6.DHCP6OptRapidCommit in message


MOST = 14 + 1280
"""Octets of a frame that every link takes."""


@pytest.mark.parametrize("message", [d6.DHCP6_Renew() / ME / YOU, d6.DHCP6_Rebind() / ME])
def test_as_many_are_taken_back_as_fit(message: Packet) -> None:
    lost = [f"fd00::bad:{number:x}" for number in range(1, 50)]
    reply = answered(ask6(message / wants(*lost)), client(SIX))
    assert MOST - 28 - 20 < len(bytes(reply)) <= MOST  # 20: the DNS server's option
    told = given(reply)
    assert told[0] == ("fd00::1", LEASE, LEASE)
    assert told[1:] == [(address, 0, 0) for address in lost[: len(told) - 1]]
    assert len(told) > 30


def test_many_associations_leave_room_for_the_port_s_addresses() -> None:
    message = d6.DHCP6_Renew() / d6.DHCP6OptClientId(duid=d6.DUID_EN(enterprisenum=1, id=bytes(120))) / YOU
    for number in range(59):
        message /= d6.DHCP6OptIA_PD(iaid=number)
    reply = answered(ask6(message / wants("fd00::1")), client(SIX))
    assert given(reply) == [("fd00::1", LEASE, LEASE)]
    assert d6.DHCP6OptIA_PD in reply
    assert len(bytes(reply)) <= MOST


@pytest.mark.parametrize("message", [d6.DHCP6_Renew() / ME / YOU, d6.DHCP6_Rebind() / ME])
def test_what_is_not_the_port_s_is_taken_back(message: Packet) -> None:
    reply = answered(ask6(message / wants("fd00::1", "fd00::bad")), client(SIX))
    assert given(reply) == [("fd00::1", LEASE, LEASE), ("fd00::bad", 0, 0)]


@pytest.mark.parametrize(("address", "status"), [("fd00::1", 0), ("fd00::bad", 0), ("fd99::1", 4)])
def test_confirm_says_whether_the_link_fits(address: str, status: int) -> None:
    reply = answered(ask6(d6.DHCP6_Confirm() / ME / wants(address)), client(SIX))
    assert reply[d6.DHCP6OptStatusCode].statuscode == status


@pytest.mark.parametrize("message", [d6.DHCP6_Release, d6.DHCP6_Decline])
def test_goodbyes_are_acknowledged(message: type[Packet]) -> None:
    reply = answered(ask6(message() / ME / YOU / wants("fd00::1")), client(SIX))
    assert reply[d6.DHCP6OptStatusCode].statuscode == 0


def test_two_addresses_come_in_the_first_association() -> None:
    to = client(SIX, addresses=("fd00::1", "fd00::2"))
    message = answered(ask6(d6.DHCP6_Solicit() / ME / wants() / wants(iaid=8)), to)
    first: Any = message.getlayer(d6.DHCP6OptIA_NA, 1)
    second: Any = message.getlayer(d6.DHCP6OptIA_NA, 2)
    assert [each.addr for each in first.ianaopts] == ["fd00::1", "fd00::2"]
    assert [each.statuscode for each in second.ianaopts] == [2]


def test_temporary_addresses_and_prefixes_are_not_given() -> None:
    asked = d6.DHCP6_Solicit() / ME / wants() / d6.DHCP6OptIA_TA(iaid=1) / d6.DHCP6OptIA_PD(iaid=2)
    message = answered(ask6(asked), client(SIX))
    assert [each.statuscode for each in message[d6.DHCP6OptIA_TA].iataopts] == [2]
    assert [each.statuscode for each in message[d6.DHCP6OptIA_PD].iapdopt] == [6]


def test_stateless() -> None:
    """Information is given, addresses are not."""
    to = client(OTHERS, dhcp_options=(DhcpOption(name="dns-server", value="fd00::54", ip_version=6),))
    message = answered(ask6(d6.DHCP6_InfoRequest(trid=9)), to)
    assert message[d6.DHCP6_Reply].trid == 9
    assert message[d6.DHCP6OptDNSServers].dnsservers == ["fd00::54"]
    assert d6.DHCP6OptClientId not in message
    assert d6.DHCP6OptClientId in answered(ask6(d6.DHCP6_InfoRequest() / ME), to)
    assert silent(ask6(d6.DHCP6_Solicit() / ME / wants()), to) == Silence.UNSERVED


def test_boot_from_the_network() -> None:
    """RFC 5970; another file for who runs iPXE already."""
    own = (
        DhcpOption(name="bootfile-url", value="tftp://[fd00::9]/a.efi", ip_version=6),
        DhcpOption(name="tag:ipxe6,59", value="http://[fd00::9]/b", ip_version=6),
        DhcpOption(name="67", value="four"),
    )
    to = client(SIX, dhcp_options=own)
    plain = answered(ask6(d6.DHCP6_Solicit() / ME / wants()), to)
    assert plain[d6.DHCP6OptBootFileUrl].optdata == b"tftp://[fd00::9]/a.efi"
    user_class = d6.DHCP6OptUserClass(userclassdata=[d6.USER_CLASS_DATA(data=b"iPXE")])
    chained = answered(ask6(d6.DHCP6_Solicit() / ME / wants() / user_class), to)
    assert chained[d6.DHCP6OptBootFileUrl].optdata == b"http://[fd00::9]/b"


@pytest.mark.parametrize(
    ("question", "why"),
    [
        (d6.DHCP6_Solicit() / wants(), Silence.MALFORMED),
        (d6.DHCP6_Solicit() / ME / YOU / wants(), Silence.MALFORMED),
        (d6.DHCP6_Request() / ME / wants(), Silence.MALFORMED),
        (
            d6.DHCP6_Request() / ME / d6.DHCP6OptServerId(duid=d6.DUID_LL(lladdr="02:00:00:00:00:99")) / wants(),
            Silence.OTHER_SERVER,
        ),
        (d6.DHCP6_Confirm() / ME / wants(), Silence.NOTHING),
        (d6.DHCP6_Advertise() / ME / YOU, Silence.NOTHING),
        (d6.DHCP6_Reply() / ME / YOU, Silence.NOTHING),
        (d6.DHCP6_RelayForward(linkaddr="::", peeraddr="::"), Silence.NOTHING),
    ],
)
def test_who_is_not_answered(question: Packet, why: Silence) -> None:
    assert silent(ask6(question), client(SIX)) == why


def test_only_the_link_is_answered() -> None:
    """RFC 8415 section 13.1: a client sends from its link-local address."""
    assert silent(ask6(d6.DHCP6_Solicit() / ME / wants(), src="fd00::1"), client(SIX)) == Silence.MALFORMED
