"""DHCPv4: what scapy asks is answered as RFC 2131 says, and what scapy reads is what the subnet says."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from headrace.agent.client import Client, Silence, Unanswered, server_mac
from headrace.agent.punt import answer
from headrace.model import DhcpOption, HostRoute, Network, Segment
from headrace.testing.client import LEASE, MAC, answered, ask4, client
from headrace.testing.packet import BROADCAST
from headrace.testing.world import port, subnet

DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)
GATEWAY = "10.0.0.254"
FOUR = subnet("four", "blue", gateway=GATEWAY)


def options(message: Packet) -> dict[str, Any]:
    """scapy's options by name; of several values a tuple."""
    found = [each for each in message[DHCP].options if isinstance(each, tuple)]
    return {each[0]: each[1] if len(each) == 2 else each[1:] for each in found}


def kind(question: bytes, to: Client) -> tuple[int, str]:
    message = answered(question, to)
    return options(message)["message-type"], message[BOOTP].yiaddr


def silent(question: bytes, to: Client) -> Silence:
    with pytest.raises(Unanswered) as caught:
        answer(question, to)
    return caught.value.silence


def test_an_offer() -> None:
    blue = Network(id="blue", segment=Segment(id=100), mtu=1442, dns_domain="a.org")
    four = subnet("four", "blue", gateway=GATEWAY, dns_nameservers=("10.0.0.53", "192.0.2.53"))
    to = client(blue, four)
    message = answered(ask4(DISCOVER), to)
    assert (message[Ether].src, message[Ether].dst) == (server_mac("blue", []), MAC)
    assert (message[IP].src, message[IP].dst) == (GATEWAY, "10.0.0.1")
    assert (message[UDP].sport, message[UDP].dport) == (67, 68)
    bootp = message[BOOTP]
    assert (bootp.op, bootp.xid, bootp.yiaddr, bootp.siaddr, bootp.ciaddr) == (
        *(2, 0x1234, "10.0.0.1", "0.0.0.0"),
        "0.0.0.0",
    )
    assert bootp.chaddr[:6].hex(":") == MAC
    assert len(bytes(bootp)) >= 300
    assert options(message) == {
        "message-type": OFFER,
        "server_id": GATEWAY,
        "lease_time": LEASE,
        "subnet_mask": "255.255.255.0",
        "router": GATEWAY,
        "name_server": ("10.0.0.53", "192.0.2.53"),
        "interface-mtu": 1442,
        "broadcast_address": "10.0.0.255",
        "domain": b"a.org",
    }


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        (ask4(DISCOVER), (OFFER, "10.0.0.1")),
        (ask4(DISCOVER, ("requested_addr", "10.0.0.9")), (OFFER, "10.0.0.1")),
        (ask4(REQUEST, ("requested_addr", "10.0.0.1"), ("server_id", GATEWAY)), (ACK, "10.0.0.1")),
        (ask4(REQUEST, ("requested_addr", "10.0.0.1")), (ACK, "10.0.0.1")),
        (ask4(REQUEST, ("requested_addr", "10.0.0.9"), ("server_id", GATEWAY)), (NAK, "0.0.0.0")),
        (ask4(REQUEST, ("requested_addr", "192.168.0.9")), (NAK, "0.0.0.0")),
        (ask4(REQUEST, ciaddr="10.0.0.1", src="10.0.0.1", dst=GATEWAY), (ACK, "10.0.0.1")),
        (ask4(REQUEST, ciaddr="10.0.0.1", src="10.0.0.1"), (ACK, "10.0.0.1")),
        (ask4(REQUEST, ciaddr="10.0.0.7"), (NAK, "0.0.0.0")),
        (ask4(INFORM, ciaddr="10.0.0.1", src="10.0.0.1"), (ACK, "0.0.0.0")),
    ],
)
def test_messages(question: bytes, expected: tuple[int, str]) -> None:
    assert kind(question, client(FOUR)) == expected


@pytest.mark.parametrize(
    ("question", "why"),
    [
        (ask4(REQUEST, ("requested_addr", "10.0.0.1"), ("server_id", "10.0.0.3")), Silence.OTHER_SERVER),
        (ask4(REQUEST), Silence.MALFORMED),
        (ask4(REQUEST, raw=b"\x32\x01\x0a"), Silence.MALFORMED),
        (ask4(RELEASE, ciaddr="10.0.0.1"), Silence.NOTHING),
        (ask4(DECLINE, ("requested_addr", "10.0.0.1")), Silence.NOTHING),
        (ask4(OFFER), Silence.NOTHING),
        (ask4(77), Silence.NOTHING),
        (ask4(INFORM, ciaddr="10.0.0.9"), Silence.FOREIGN),
        (ask4(DISCOVER, chaddr=bytes.fromhex("020000000002")), Silence.FOREIGN),
        (ask4(DISCOVER, htype=6), Silence.FOREIGN),
        (ask4(DISCOVER, hlen=16), Silence.FOREIGN),
        (ask4(DISCOVER, giaddr="10.0.0.2"), Silence.RELAYED),
        (ask4(DISCOVER, op=2), Silence.MALFORMED),
    ],
)
def test_who_is_not_answered(question: bytes, why: Silence) -> None:
    assert silent(question, client(FOUR)) == why


def test_another_port_s_mac_is_foreign() -> None:
    assert silent(ask4(DISCOVER, port=port("b", "blue", 2)), client(FOUR)) == Silence.FOREIGN


def test_a_subnet_without_dhcp_is_not_served() -> None:
    six = subnet("six", "blue", "fd00::/64")
    assert silent(ask4(DISCOVER), client(six)) == Silence.UNSERVED


@pytest.mark.parametrize(
    ("question", "to", "mac"),
    [
        (ask4(DISCOVER), "10.0.0.1", MAC),
        (ask4(DISCOVER, flags=0x8000), "255.255.255.255", BROADCAST),
        (ask4(REQUEST, ciaddr="10.0.0.1", src="10.0.0.1", flags=0x8000), "10.0.0.1", MAC),
        (ask4(REQUEST, ("requested_addr", "10.9.9.9")), "255.255.255.255", BROADCAST),
        (ask4(INFORM, ciaddr="10.0.0.1"), "10.0.0.1", MAC),
    ],
)
def test_where_answers_go(question: bytes, to: str, mac: str) -> None:
    """RFC 2131 section 4.1."""
    message = answered(question, client(FOUR))
    assert (message[IP].dst, message[Ether].dst) == (to, mac)


def test_the_client_s_identifier_comes_back() -> None:
    """RFC 6842."""
    assert options(answered(ask4(DISCOVER, ("client_id", b"\x01abc")), client(FOUR)))["client_id"] == b"\x01abc"


def test_inform_has_no_lease() -> None:
    told = options(answered(ask4(INFORM, ciaddr="10.0.0.1"), client(FOUR)))
    assert "lease_time" not in told
    assert told["router"] == GATEWAY


def test_without_a_gateway() -> None:
    to = client(subnet("four", "blue", dns_nameservers=("0.0.0.0",)))
    told = options(answered(ask4(DISCOVER), to))
    assert told["server_id"] == "169.254.169.254"
    assert not {"router", "name_server"} & told.keys()


def test_an_address_of_the_second_subnet_can_be_asked_for() -> None:
    other = subnet("other", "blue", "10.1.0.0/16", gateway="10.1.0.1")
    to = client(FOUR, other, addresses=("10.0.0.1", "10.1.2.3"))
    assert kind(ask4(DISCOVER), to) == (OFFER, "10.0.0.1")
    message = answered(ask4(DISCOVER, ("requested_addr", "10.1.2.3")), to)
    assert (message[BOOTP].yiaddr, options(message)["server_id"]) == ("10.1.2.3", "10.1.0.1")
    assert options(message)["subnet_mask"] == "255.255.0.0"


def routes(message: Packet, code: int) -> bytes | None:
    """An option as octets, found by hand: scapy reads some of them as lists."""
    octets = bytes(message[DHCP])[4 if bytes(message[DHCP])[:4] == b"c\x82Sc" else 0 :]
    place = 0
    while octets[place] != 255:
        if octets[place] == code:
            return octets[place + 2 : place + 2 + octets[place + 1]]
        place += 2 + octets[place + 1]
    return None


def test_host_routes_bring_the_default_route_along() -> None:
    """RFC 3442: a client that reads option 121 ignores option 3."""
    host_routes = (HostRoute(destination="192.168.5.0/25", nexthop="10.0.0.7"),)
    near = subnet("near", "blue", "10.2.0.0/20", enable_dhcp=False)
    to = client(subnet("four", "blue", gateway=GATEWAY, host_routes=host_routes), near)
    expected = bytes([*(20, 10, 2, 0, 0, 0, 0, 0), *(25, 192, 168, 5, 0, 10, 0, 0, 7), *(0, 10, 0, 0, 254)])
    assert routes(answered(ask4(DISCOVER), to), 121) == expected
    assert routes(answered(ask4(DISCOVER), to), 249) is None
    assert routes(answered(ask4(DISCOVER, ("param_req_list", [249])), to), 249) == expected


def test_a_default_host_route_is_a_gateway_where_there_is_none() -> None:
    host_routes = (HostRoute(destination="0.0.0.0/0", nexthop="10.0.0.9"),)
    told = answered(ask4(DISCOVER), client(subnet("four", "blue", host_routes=host_routes)))
    assert options(told)["router"] == "10.0.0.9"
    assert routes(told, 121) is None


def extra(**values: str) -> dict[str, Any]:
    return {
        "dhcp_options": tuple(DhcpOption(name=name.replace("_", "-"), value=value) for name, value in values.items())
    }


def test_pxe() -> None:
    """As Ironic sets it: by number and by name, with another file for who runs iPXE already."""
    own = [
        ("67", "undionly.kpxe"), ("tag:ipxe,67", "http://192.0.2.9/boot.ipxe"), ("66", "192.0.2.8"),
        ("server-ip-address", "192.0.2.9"), ("150", "192.0.2.7"),
    ]  # fmt: skip
    to = client(FOUR, dhcp_options=tuple(DhcpOption(name=name, value=value) for name, value in own))
    message = answered(ask4(DISCOVER), to)
    assert message[BOOTP].siaddr == "192.0.2.9"
    assert message[BOOTP].file.rstrip(b"\0") == b"undionly.kpxe"
    told = options(message)
    assert (told["boot-file-name"], told["tftp_server_name"]) == (b"undionly.kpxe", b"192.0.2.8")
    assert routes(message, 150) == bytes([192, 0, 2, 7])
    by_ipxe = answered(ask4(DISCOVER, raw=b"\xaf\x02\x01\x02"), to)
    assert by_ipxe[BOOTP].file.rstrip(b"\0") == b"http://192.0.2.9/boot.ipxe"
    by_class = answered(ask4(DISCOVER, raw=b"\x4d\x04iPXE"), to)
    assert by_class[BOOTP].file.rstrip(b"\0") == b"http://192.0.2.9/boot.ipxe"


def test_a_tftp_server_s_address_is_the_next_server() -> None:
    assert answered(ask4(DISCOVER), client(FOUR, **extra(tftp_server="192.0.2.8")))[BOOTP].siaddr == "192.0.2.8"
    assert answered(ask4(DISCOVER), client(FOUR, **extra(tftp_server="boot.org")))[BOOTP].siaddr == "0.0.0.0"


def test_a_port_s_own_option_beats_its_subnet_s() -> None:
    told = options(answered(ask4(DISCOVER), client(FOUR, **extra(mtu="1400", router="10.0.0.8", lease_time="60"))))
    assert (told["interface-mtu"], told["router"], told["lease_time"]) == (1400, "10.0.0.8", 60)


def test_options_that_do_not_fit_are_left_out_from_the_end() -> None:
    long = {f"{number}": "x" * 100 for number in (17, 18, 40, 47, 64, 100, 101)}
    to = client(FOUR, **extra(**long))
    small = answered(ask4(DISCOVER), to)
    assert len(small[IP]) <= 576
    assert options(small)["subnet_mask"] == "255.255.255.0"
    large = answered(ask4(DISCOVER, ("max_dhcp_size", 1400)), to)
    assert len(options(large)) == len(options(small)) + 5
    asked = answered(ask4(DISCOVER, ("param_req_list", [101])), to)
    assert routes(asked, 101) == b"x" * 100
    assert len(asked[IP]) <= 576


def test_long_options_come_in_pieces() -> None:
    """RFC 3396."""
    host_routes = tuple(HostRoute(destination=f"10.9.{number}.0/24", nexthop="10.0.0.7") for number in range(40))
    to = client(subnet("four", "blue", gateway=GATEWAY, host_routes=host_routes))
    octets = answer(ask4(DISCOVER, ("max_dhcp_size", 1400)), to)
    start = octets.index(bytes([121, 255]))
    assert octets[start + 257 : start + 259] == bytes([121, 40 * 8 + 5 - 255])


def test_what_stands_in_file_and_sname_is_read_too() -> None:
    """RFC 2132 section 9.3."""
    hidden = bytes([50, 4, 10, 0, 0, 1, 255])
    question = ask4(REQUEST, raw=b"\x34\x01\x01", file=hidden)
    assert kind(question, client(FOUR)) == (ACK, "10.0.0.1")


def test_the_servers_mac_is_nobody_s() -> None:
    first = server_mac("blue", [])
    second = server_mac("blue", [first])
    assert first != second
    assert first.startswith("0a:48:72:")
    assert server_mac("red", []) != first
    assert client(FOUR, port("evil", "blue", 5, mac=first)).server == second
