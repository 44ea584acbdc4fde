"""Router advertisements: what scapy reads is what the subnets say; and when they are sent."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from scapy.layers import inet6 as i6
from scapy.layers.l2 import Ether

from headrace.agent.advert import FIRST_INTERVAL, INTERVAL, Schedule, advertisement
from headrace.agent.client import Client, Silence, Unanswered, server_mac
from headrace.agent.punt import answer
from headrace.model import Network, Segment, Subnet
from headrace.testing.client import LINK_LOCAL, MAC, answered, client
from headrace.testing.world import subnet

ROUTERS = "33:33:00:00:00:02"


def six(mode: str, **fields: Any) -> Subnet:
    return subnet("six", "blue", "fd00::/64", ipv6_ra_mode=mode, ipv6_address_mode=mode, **fields)


def solicit(src: str = LINK_LOCAL, *options: Any, **fields: Any) -> bytes:
    message = i6.ICMPv6ND_RS()
    for option in options:
        message /= option
    given: dict[str, Any] = {"src": src, "dst": "ff02::2", "hlim": 255}
    ip = i6.IPv6(**given | fields)
    return bytes(Ether(src=MAC, dst=ROUTERS) / ip / message)


@pytest.mark.parametrize(
    ("mode", "managed", "other", "autonomous"),
    [("slaac", 0, 0, 1), ("dhcpv6-stateful", 1, 1, 0), ("dhcpv6-stateless", 0, 1, 1)],
)
def test_the_flags_follow_the_mode(mode: str, managed: int, other: int, autonomous: int) -> None:
    blue = Network(id="blue", segment=Segment(id=100), mtu=1442, dns_domain="a.org")
    message = answered(solicit(), client(six(mode, dns_nameservers=("fd00::53", "fd00::54")), blue))
    server = server_mac("blue", [])
    assert (message[Ether].src, message[Ether].dst, message[i6.IPv6].dst) == (server, MAC, LINK_LOCAL)
    assert (message[i6.IPv6].hlim, message[i6.IPv6].src[:6]) == (255, "fe80::")
    advert = message[i6.ICMPv6ND_RA]
    assert (advert.M, advert.O, advert.routerlifetime, advert.prf) == (managed, other, 0, 0)
    prefix = message[i6.ICMPv6NDOptPrefixInfo]
    assert (prefix.prefix, prefix.prefixlen, prefix.L, prefix.A) == ("fd00::", 64, 1, autonomous)
    assert prefix.validlifetime > prefix.preferredlifetime > INTERVAL[1]
    assert message[i6.ICMPv6NDOptMTU].mtu == 1442
    assert message[i6.ICMPv6NDOptSrcLLAddr].lladdr == server
    assert message[i6.ICMPv6NDOptRDNSS].dns == ["fd00::53", "fd00::54"]
    assert message[i6.ICMPv6NDOptDNSSL].searchlist == ["a.org."]


def test_only_prefixes_that_the_port_has_addresses_of() -> None:
    other = subnet("other", "blue", "fd01::/64", ipv6_ra_mode="slaac", ipv6_address_mode="slaac")
    silent = subnet("silent", "blue", "fd02::/64", ipv6_address_mode="slaac")
    message = answered(solicit(), client(six("slaac"), other, silent, addresses=("fd00::1", "fd00::2", "fd02::1")))
    assert message[i6.ICMPv6NDOptPrefixInfo].prefix == "fd00::"
    assert message.getlayer(i6.ICMPv6NDOptPrefixInfo, 2) is None
    assert i6.ICMPv6NDOptRDNSS not in message


def test_modes_of_several_subnets_add_up() -> None:
    other = subnet("other", "blue", "fd01::/64", ipv6_ra_mode="dhcpv6-stateful", ipv6_address_mode="dhcpv6-stateful")
    message = answered(solicit(), client(six("slaac"), other, addresses=("fd00::1", "fd01::1")))
    assert (message[i6.ICMPv6ND_RA].M, message[i6.ICMPv6ND_RA].O) == (1, 1)
    first: Any = message.getlayer(i6.ICMPv6NDOptPrefixInfo, 1)
    second: Any = message.getlayer(i6.ICMPv6NDOptPrefixInfo, 2)
    flags = {layer.prefix: layer.A for layer in (first, second)}
    assert flags == {"fd00::": 1, "fd01::": 0}


def test_who_has_no_address_yet_is_answered_with_everyone() -> None:
    message = answered(solicit("::"), client(six("slaac")))
    assert (message[Ether].dst, message[i6.IPv6].dst) == ("33:33:00:00:00:01", "ff02::1")


SOURCE = i6.ICMPv6NDOptSrcLLAddr(lladdr=MAC)


@pytest.mark.parametrize(
    ("question", "why"),
    [
        (solicit(hlim=64), Silence.MALFORMED),
        (solicit("::", SOURCE), Silence.MALFORMED),
        (solicit(LINK_LOCAL, i6.ICMPv6NDOptUnknown(type=14, len=0)), Silence.MALFORMED),
    ],
)
def test_who_is_not_answered(question: bytes, why: Silence) -> None:
    """RFC 4861 section 6.1.1."""
    with pytest.raises(Unanswered) as caught:
        answer(question, client(six("slaac")))
    assert caught.value.silence == why


def test_solicitations_with_options_are() -> None:
    assert i6.ICMPv6ND_RA in answered(solicit(LINK_LOCAL, SOURCE), client(six("slaac")))


def due(schedule: Schedule) -> float:
    found = schedule.next()
    assert found is not None
    return found


def test_a_new_port_hears_three_soon_and_then_some_every_few_minutes() -> None:
    schedule, told = Schedule(), client(six("slaac"))
    schedule.serve({5: told}, 100.0)
    times = []
    for _ in range(6):
        now = due(schedule)
        assert schedule.take(now) == [(5, advertisement(told))]
        assert schedule.take(now) == []
        times.append(now)
    assert times[:3] == [100.0, 100.0 + FIRST_INTERVAL, 100.0 + 2 * FIRST_INTERVAL]
    later = [after - before for before, after in itertools.pairwise(times)][2:]
    assert all(INTERVAL[0] <= pause <= INTERVAL[1] for pause in later)


def test_news_is_told_at_once_and_old_news_is_not() -> None:
    schedule, told = Schedule(), client(six("slaac"))
    schedule.serve({5: told}, 0.0)
    schedule.take(0.0)
    schedule.serve({5: told}, 1.0)
    assert schedule.take(1.0) == []
    news = client(six("slaac", dns_nameservers=("fd00::53",)))
    schedule.serve({5: news}, 2.0)
    assert schedule.take(2.0) == [(5, advertisement(news))]


def test_a_prefix_that_is_lost_is_withdrawn() -> None:
    """RFC 4862 section 5.5.3: a preferred lifetime of 0 deprecates what was configured."""
    second = subnet("second", "blue", "fd01::/64", ipv6_ra_mode="slaac", ipv6_address_mode="slaac")
    schedule = Schedule()
    schedule.serve({5: client(six("slaac"), second, addresses=("fd00::1", "fd01::1"))}, 0.0)
    schedule.take(0.0)
    left = client(six("slaac"), second)
    schedule.serve({5: left}, 1.0)
    frames = [schedule.take(due(schedule))[0][1] for _ in range(4)]
    assert frames[0] == frames[1] == frames[2] != frames[3] == advertisement(left)
    told: Any = Ether(frames[0])
    lifetimes = {
        layer.prefix: (layer.validlifetime > 0, layer.preferredlifetime > 0, layer.A)
        for layer in (told.getlayer(i6.ICMPv6NDOptPrefixInfo, number) for number in (1, 2))
    }
    assert lifetimes == {"fd00::": (True, True, 1), "fd01::": (False, False, 1)}


def test_ports_without_advertisements_hear_none() -> None:
    schedule, told = Schedule(), client(six("slaac"))
    schedule.serve({5: told, 6: other()}, 0.0)
    assert [index for index, _ in schedule.take(0.0)] == [5]
    schedule.serve({}, 1.0)
    assert schedule.next() is None


def other() -> Client:
    return client(subnet("four", "blue"))
