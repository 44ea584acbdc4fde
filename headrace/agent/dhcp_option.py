"""Ports' own DHCP options, by name or number, as octets: dnsmasq's names (its ``--help dhcp``) and ML2/OVN's.

Formats: RFC 2132, RFC 3442 (routes), RFC 3397 (search lists), RFC 3646, RFC 5908 and RFC 5970 (DHCPv6).
"""

from __future__ import annotations

import ipaddress
import re
import struct
from collections.abc import Callable, Iterable

import msgspec

from headrace.errors import InvalidInput
from headrace.model import DhcpOption
from headrace.model.offer import DISABLED

NEXT_SERVER = 255
"""dnsmasq's number for ``server-ip-address``, which is no option but a field of the message; Ironic uses it too."""

CLIENT_ID = {4: 61, 6: 1}
"""Which Neutron's DHCP agent uses to find the host, and never sends."""

Encoder = Callable[[str], bytes]


def addresses4(text: str) -> bytes:
    """Any number of IPv4 addresses, comma separated."""
    return b"".join(ipaddress.IPv4Address(part).packed for part in parts(text))


def addresses6(text: str) -> bytes:
    """Any number of IPv6 addresses, comma separated, in brackets or not."""
    return b"".join(ipaddress.IPv6Address(part.strip("[]")).packed for part in parts(text))


def plain(text: str) -> bytes:
    """Text as it is."""
    return text.encode()


def octet(text: str) -> bytes:
    """One octet; true and false are 1 and 0."""
    return struct.pack("!B", int({"true": "1", "false": "0"}.get(text.lower(), text), 0))


def short(text: str) -> bytes:
    """16 bits."""
    return struct.pack("!H", int(text, 0))


def word(text: str) -> bytes:
    """32 bits; negative ones too, as RFC 2132's time offset has them."""
    return struct.pack("!i" if int(text, 0) < 0 else "!I", int(text, 0))


def names(text: str) -> bytes:
    """Domain names, comma separated, without compression (RFC 1035 section 3.1)."""
    return b"".join(map(name, parts(text)))


def name(text: str) -> bytes:
    """One domain name."""
    labels = text.rstrip(".").encode("idna").split(b".")
    if not all(0 < len(label) < 64 for label in labels):
        raise ValueError("a label has 1 to 63 characters")
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def routes(text: str) -> bytes:
    """``destination,nexthop,...`` by RFC 3442; dnsmasq and Neutron have commas, ML2/OVN braces around."""
    words = parts(text.strip("{}"))
    if len(words) % 2:
        raise ValueError("give pairs of a destination and a next hop")
    return b"".join(map(route, words[::2], words[1::2]))


def route(destination: str, nexthop: str) -> bytes:
    """One route: length of the prefix, its significant octets, next hop."""
    prefix = ipaddress.IPv4Network(destination, strict=False)
    significant = prefix.network_address.packed[: (prefix.prefixlen + 7) // 8]
    return bytes([prefix.prefixlen]) + significant + ipaddress.IPv4Address(nexthop).packed


def servers_ntp6(text: str) -> bytes:
    """NTP servers by address (RFC 5908 section 4.1) or by name (section 4.3)."""
    found = b""
    for part in parts(text):
        try:
            kind, value = 1, ipaddress.IPv6Address(part.strip("[]")).packed
        except ValueError:
            kind, value = 3, name(part)
        found += struct.pack("!HH", kind, len(value)) + value
    return found


def strings(text: str) -> bytes:
    """Text in pieces, each with its length (RFC 5970 section 3.2)."""
    return b"".join(struct.pack("!H", len(part.encode())) + part.encode() for part in parts(text))


def guess(text: str) -> bytes:
    """What a number without a name holds, as dnsmasq takes it: hex with colons, addresses, a number, else text."""
    if re.fullmatch(r"[0-9a-fA-F]{1,2}(:[0-9a-fA-F]{1,2})+", text):
        return bytes(int(part, 16) for part in text.split(":"))
    for encoder in (addresses4, addresses6):
        try:
            return encoder(text)
        except ValueError:
            continue
    if text.isdecimal() and int(text) < 1 << 32:
        number = int(text)
        return number.to_bytes(1 if number < 1 << 8 else 2 if number < 1 << 16 else 4, "big")
    return text.encode()


def parts(text: str) -> list[str]:
    """What stands between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


OPTIONS4: tuple[tuple[int, str, Encoder], ...] = (
    (1, "netmask", addresses4), (2, "time-offset", word), (3, "router", addresses4), (6, "dns-server", addresses4),
    (7, "log-server", addresses4), (9, "lpr-server", addresses4), (12, "hostname", plain),
    (13, "boot-file-size", short), (15, "domain-name", plain), (16, "swap-server", addresses4),
    (17, "root-path", plain), (18, "extension-path", plain), (19, "ip-forward-enable", octet),
    (20, "non-local-source-routing", octet), (21, "policy-filter", addresses4),
    (22, "max-datagram-reassembly", short), (23, "default-ttl", octet), (26, "mtu", short),
    (27, "all-subnets-local", octet), (28, "broadcast", addresses4), (31, "router-discovery", octet),
    (32, "router-solicitation", addresses4), (33, "static-route", addresses4), (34, "trailer-encapsulation", octet),
    (35, "arp-timeout", word), (36, "ethernet-encap", octet), (37, "tcp-ttl", octet), (38, "tcp-keepalive", word),
    (40, "nis-domain", plain), (41, "nis-server", addresses4), (42, "ntp-server", addresses4),
    (43, "vendor-encap", guess), (44, "netbios-ns", addresses4), (45, "netbios-dd", addresses4),
    (46, "netbios-nodetype", octet), (47, "netbios-scope", plain), (48, "x-windows-fs", addresses4),
    (49, "x-windows-dm", addresses4), (51, "lease-time", word),
    (56, "message", plain), (58, "T1", word), (59, "T2", word), (60, "vendor-class", plain),
    (64, "nis+-domain", plain), (65, "nis+-server", addresses4), (66, "tftp-server", plain),
    (67, "bootfile-name", plain), (68, "mobile-ip-home", addresses4), (69, "smtp-server", addresses4),
    (70, "pop3-server", addresses4), (71, "nntp-server", addresses4), (74, "irc-server", addresses4),
    (100, "posix-timezone", plain), (101, "tzdb-timezone", plain), (119, "domain-search", names),
    (121, "classless-static-route", routes), (150, "tftp-server-address", addresses4), (210, "path-prefix", plain),
    (249, "ms-classless-static-route", routes), (252, "wpad", plain), (NEXT_SERVER, "server-ip-address", addresses4),
)  # fmt: skip
"""Number, name, and how its value is written, for DHCPv4."""

OPTIONS6: tuple[tuple[int, str, Encoder], ...] = (
    (7, "preference", octet), (15, "user-class", strings), (16, "vendor-class", guess), (17, "vendor-opts", guess),
    (21, "sip-server-domain", names), (22, "sip-server", addresses6), (23, "dns-server", addresses6),
    (24, "domain-search", names), (27, "nis-server", addresses6), (28, "nis+-server", addresses6),
    (29, "nis-domain", names), (30, "nis+-domain", names), (31, "sntp-server", addresses6),
    (32, "information-refresh-time", word), (41, "posix-timezone", plain), (42, "tzdb-timezone", plain),
    (56, "ntp-server", servers_ntp6), (59, "bootfile-url", plain), (59, "bootfile-name", plain),
    (60, "bootfile-param", strings),
)  # fmt: skip
"""The same for DHCPv6."""

RESERVED = {4: {0, 50, 52, 53, 54, 55, 57, 61, 82}, 6: {0, 1, 2, 3, 4, 5, 6, 8, 9, 11, 13, 14, 18, 19, 25, 26}}
"""What belongs to the protocol itself; a port cannot set it."""

TABLES = {4: OPTIONS4, 6: OPTIONS6}
BY_NAME = {version: {name: (code, how) for code, name, how in table} for version, table in TABLES.items()}
BY_CODE = {version: {code: how for code, _, how in reversed(table)} for version, table in TABLES.items()}


class Encoded(msgspec.Struct, frozen=True, kw_only=True):
    """One option ready to be sent to clients of whom all ``tags`` are true (``!ipxe``: are not)."""

    code: int
    value: bytes
    tags: tuple[str, ...] = ()

    def applies(self, known: Iterable[str]) -> bool:
        """Whether it is for a client with these tags."""
        return all((tag.removeprefix("!") in known) != tag.startswith("!") for tag in self.tags)


def encode(option: DhcpOption) -> Encoded | None:
    """An option as octets; None: it is not for clients. Raises InvalidInput naming it."""
    *tags, text = (part.strip() for part in option.name.split(","))
    if text == DISABLED:
        return None
    what = f"DHCPv{option.ip_version} option {option.name}"
    if not all(tag.startswith("tag:") for tag in tags):
        raise InvalidInput(f"{what}: what stands before the name is tag:NAME")
    if text.isdecimal():
        code = int(text)
        how = BY_CODE[option.ip_version].get(code, guess)
    elif text == "client-id":
        return None
    elif text in BY_NAME[option.ip_version]:
        code, how = BY_NAME[option.ip_version][text]
    else:
        raise InvalidInput(f"{what} has a name that is not known; give its number")
    if code == CLIENT_ID[option.ip_version]:
        return None
    if code in RESERVED[option.ip_version] or code > (NEXT_SERVER if option.ip_version == 4 else 65535):
        raise InvalidInput(f"{what} is the protocol's own, or no option")
    try:
        value = how(option.value)
    except (ValueError, struct.error, UnicodeError) as error:
        raise InvalidInput(f"{what}: {option.value!r} does not fit: {error}") from None
    return Encoded(code=code, value=value, tags=tuple(tag.removeprefix("tag:") for tag in tags))


def encode_all(options: Iterable[DhcpOption], version: int) -> tuple[tuple[Encoded, ...], tuple[str, ...]]:
    """A port's options of one IP version, those with tags last; and what is wrong with those that cannot be sent."""
    found: list[Encoded] = []
    faults: list[str] = []
    for option in options:
        if option.ip_version == version:
            try:
                encoded = encode(option)
            except InvalidInput as error:
                faults.append(str(error))
            else:
                found += [encoded] if encoded else []
    return tuple(sorted(found, key=lambda option: len(option.tags))), tuple(faults)


def chosen(options: Iterable[Encoded], tags: Iterable[str]) -> dict[int, bytes]:
    """What a client with these tags gets: of one number the option with most tags."""
    known = set(tags)
    return {option.code: option.value for option in options if option.applies(known)}
