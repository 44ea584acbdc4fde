"""Ports to be configured, and their questions as scapy writes them: for tests of the agent's answers."""

from __future__ import annotations

from typing import Any

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from headrace.agent.client import Client, clients_of
from headrace.agent.punt import answer
from headrace.model import Object, Port, State
from headrace.stages import Device, View
from headrace.testing import world
from headrace.testing.index import Counting
from headrace.testing.packet import BROADCAST

LEASE = 7200
MAC = "02:00:00:00:00:01"
LINK_LOCAL = "fe80::ff:fe00:1"
MULTICAST = "33:33:00:01:00:02"


def client(*objects: Object, **fields: Any) -> Client:
    """Port ``a``, number 1 of network ``blue`` on host h1, as the agent knows it. ``fields``: of the port."""
    networks = () if any(item.type == "network" for item in objects) else (world.network("blue"),)
    port = world.port("a", "blue", 1, **fields)
    state = State.of((*world.HOSTS, *networks, *objects, port))
    view = View(state, "h1", Counting(), {"a": Device(ifindex=7, name="tapa")})
    clients, _ = clients_of(view, LEASE)
    return next(one for one in clients.values() if one.port.id == "a")


def ask4(kind: int, *options: Any, port: Port | None = None, raw: bytes = b"", **fields: Any) -> bytes:
    """A DHCPv4 message of port ``a``. ``raw``: more options as octets; ``fields``: of BOOTP, or ``src``, ``dst``."""
    mac = port.mac if port else MAC
    ip = IP(src=fields.pop("src", "0.0.0.0"), dst=fields.pop("dst", "255.255.255.255"))
    given: dict[str, Any] = {"chaddr": bytes.fromhex(mac.replace(":", "")), "xid": 0x1234}
    bootp = BOOTP(**given | fields)
    dhcp = DHCP(options=[("message-type", kind), *options]) / Raw(raw + b"\xff")
    return bytes(Ether(src=mac, dst=BROADCAST) / ip / UDP(sport=68, dport=67) / bootp / dhcp)


def ask6(message: Packet, src: str = LINK_LOCAL) -> bytes:
    """A DHCPv6 message of port ``a``."""
    udp = UDP(sport=546, dport=547)
    return bytes(Ether(src=MAC, dst=MULTICAST) / IPv6(src=src, dst="ff02::1:2") / udp / message)


def answered(question: bytes, to: Client) -> Packet:
    """Our answer as scapy reads it; its checksums are right."""
    octets = answer(question, to)
    read = Ether(octets)
    for layer in (IP, UDP):
        if layer in read:
            del read[layer].chksum
    if bytes(Ether(bytes(read))) != octets:
        raise AssertionError(f"another sender would write {bytes(read).hex()}, not {octets.hex()}")
    return Ether(octets)
