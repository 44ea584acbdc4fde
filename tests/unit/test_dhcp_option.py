"""Ports' own DHCP options: names, numbers, and how values are written."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.agent.dhcp_option import TABLES, chosen, encode, encode_all
from headrace.errors import InvalidInput
from headrace.model import DhcpOption


def octets(name: str, value: str, version: Any = 4) -> tuple[int, bytes]:
    found = encode(DhcpOption(name=name, value=value, ip_version=version))
    assert found is not None
    return found.code, found.value


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("router", "10.0.0.1", (3, b"\x0a\x00\x00\x01")),
        ("3", "10.0.0.1,10.0.0.2", (3, b"\x0a\x00\x00\x01\x0a\x00\x00\x02")),
        ("ntp-server", "10.0.0.1, 10.0.0.2", (42, b"\x0a\x00\x00\x01\x0a\x00\x00\x02")),
        ("mtu", "1400", (26, b"\x05\x78")),
        ("26", "0x578", (26, b"\x05\x78")),
        ("default-ttl", "64", (23, b"\x40")),
        ("ip-forward-enable", "true", (19, b"\x01")),
        ("time-offset", "-3600", (2, b"\xff\xff\xf1\xf0")),
        ("lease-time", "3600", (51, b"\x00\x00\x0e\x10")),
        ("domain-name", "example.org", (15, b"example.org")),
        ("domain-search", "a.b,c.", (119, b"\x01a\x01b\x00\x01c\x00")),
        ("bootfile-name", "pxelinux.0", (67, b"pxelinux.0")),
        ("classless-static-route", "10.1.0.0/16,10.0.0.1", (121, b"\x10\x0a\x01\x0a\x00\x00\x01")),
        ("249", "{0.0.0.0/0,10.0.0.1}", (249, b"\x00\x0a\x00\x00\x01")),
        ("255", "10.0.0.1", (255, b"\x0a\x00\x00\x01")),
        ("211", "5", (211, b"\x05")),
        ("211", "500", (211, b"\x01\xf4")),
        ("211", "70000", (211, b"\x00\x01\x11\x70")),
        ("212", "10.0.0.1", (212, b"\x0a\x00\x00\x01")),
        ("125", "0:1:ff", (125, b"\x00\x01\xff")),
        ("224", "words", (224, b"words")),
    ],
)
def test_values_of_dhcp4(name: str, value: str, expected: tuple[int, bytes]) -> None:
    assert octets(name, value) == expected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("dns-server", "[fd00::1],fd00::2", (23, bytes.fromhex("fd00" + "00" * 13 + "01" + "fd00" + "00" * 13 + "02"))),
        ("24", "a.b", (24, b"\x01a\x01b\x00")),
        ("bootfile-url", "tftp://x/y", (59, b"tftp://x/y")),
        ("bootfile-name", "tftp://x/y", (59, b"tftp://x/y")),
        ("bootfile-param", "a,bc", (60, b"\x00\x01a\x00\x02bc")),
        ("ntp-server", "fd00::1", (56, b"\x00\x01\x00\x10" + bytes.fromhex("fd00" + "00" * 13 + "01"))),
        ("ntp-server", "n.org", (56, b"\x00\x03\x00\x07\x01n\x03org\x00")),
        ("300", "7", (300, b"\x07")),
    ],
)
def test_values_of_dhcp6(name: str, value: str, expected: tuple[int, bytes]) -> None:
    assert octets(name, value, 6) == expected


@pytest.mark.parametrize(
    ("name", "value", "version", "fault"),
    [
        ("nonsense", "1", 4, "not known"),
        ("router", "here", 4, "does not fit"),
        ("mtu", "70000", 4, "does not fit"),
        ("mtu", "", 4, "does not fit"),
        ("default-ttl", "256", 4, "does not fit"),
        ("dns-server", "10.0.0.1", 6, "does not fit"),
        ("domain-search", "a..b", 4, "does not fit"),
        ("classless-static-route", "10.0.0.0/8", 4, "does not fit"),
        ("53", "5", 4, "the protocol's own"),
        ("54", "10.0.0.1", 4, "the protocol's own"),
        ("256", "x", 4, "no option"),
        ("2", "x", 6, "the protocol's own"),
        ("70000", "x", 6, "no option"),
        ("set:x,67", "y", 4, "tag:NAME"),
    ],
)
def test_what_cannot_be_sent_is_named(name: str, value: str, version: Any, fault: str) -> None:
    with pytest.raises(InvalidInput, match=fault):
        octets(name, value, version)
    assert encode_all([DhcpOption(name=name, value=value, ip_version=version)], version)[1]


@pytest.mark.parametrize("name", ["client-id", "61", "dhcp_disabled"])
def test_what_is_not_for_clients_is_not_sent(name: str) -> None:
    assert encode_all([DhcpOption(name=name, value="x")], 4) == ((), ())


def test_tags_choose() -> None:
    own = [
        DhcpOption(name="tag:ipxe,67", value="chain"),
        DhcpOption(name="67", value="first"),
        DhcpOption(name="tag:!ipxe,66", value="plain"),
        DhcpOption(name="tag:other,26", value="1400"),
        DhcpOption(name="dns-server", value="fd00::1", ip_version=6),
    ]
    found, faults = encode_all(own, 4)
    assert not faults
    assert chosen(found, []) == {67: b"first", 66: b"plain"}
    assert chosen(found, ["ipxe"]) == {67: b"chain"}


@given(st.sampled_from([(4, entry) for entry in TABLES[4]] + [(6, entry) for entry in TABLES[6]]), st.text(max_size=40))
def test_no_value_breaks_it(which: Any, value: str) -> None:
    version, (_, name, _) = which
    encode_all([DhcpOption(name=name, value=value, ip_version=version)], version)
