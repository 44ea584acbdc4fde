"""The load programs as functions of a contender that stands."""

from __future__ import annotations

import ipaddress
import json
import struct
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from bench.build import program
from bench.process import CommandError, Daemon, SetupError, run

if TYPE_CHECKING:
    from bench.contender import Contender
    from bench.cpu import Spinner
    from bench.wiring import Wiring, Workload

FRAME = 64
"""Octets without the frame check sequence, which no veth has."""

LOAD_CORE, SERVER_CORE = 0, 1
WARM_S = 0.2
WARM_LIMIT_S = 10.0
SLOWEST_SET_UP = 15_000
"""Flows a second at which warming up is given up as too slow."""

COVERED_ENOUGH = 0.98


@dataclass
class Stand:
    """A contender that is set up, and what the load knows about it."""

    contender: Contender
    wiring: Wiring
    server: Daemon
    next_flow: int = 0
    warm_flows: dict[int, int] = field(default_factory=dict)
    warm_until: float = 0.0
    paced: float = 0.0
    remarks: list[str] = field(default_factory=list)

    def ready(self, family: int, flows: int) -> bool:
        """Whether the contender still holds these flows from before."""
        return self.warm_flows.get(family, 0) >= flows and time.monotonic() < self.warm_until

    def forget(self) -> None:
        self.contender.forget()
        self.warm_flows.clear()


def start_server(wiring: Wiring) -> Daemon:
    """The receiving workload's side of everything but the packet rate."""
    server = Daemon(program("server"), str(SERVER_CORE), namespace=wiring.b.workload.namespace, talks=True)
    if server.ask("") != "ready\n":
        raise SetupError(f"the load's server does not start: {server.last_words()}")
    return server


@dataclass(frozen=True, kw_only=True)
class Blast:
    """What one burst of UDP did."""

    rate: float
    sent: int
    arrived: int
    seconds: float
    waited: float
    spun: list[int]


def blast(
    stand: Stand,
    flows: int,
    seconds: float,
    *,
    family: Literal[4, 6] = 4,
    pps: float = 0.0,
    spinner: Spinner | None = None,
    core: int = LOAD_CORE,
) -> Blast:
    """64-octet UDP frames from workload a; ``flows`` 0: every packet is a new flow. Rates are arrivals a second."""
    wiring, contender = stand.wiring, stand.contender
    sender, receiver = wiring.a.workload, wiring.b.workload
    packet, l4_offset = make_packet(sender, receiver, family)
    warm, cover = WARM_S, False
    if flows and not stand.ready(family, flows):
        warm, cover = WARM_LIMIT_S + flows / SLOWEST_SET_UP, True
    options: dict[str, object] = {
        "tx-namespace": f"/run/netns/{sender.namespace}",
        "tx-device": sender.device,
        "rx-namespace": f"/run/netns/{receiver.namespace}",
        "rx-device": receiver.device,
        "packet": packet.hex(),
        "l4-offset": l4_offset,
        "flows": flows,
        "first": stand.next_flow,
        "core": core,
        "xdp-sink": int(contender.sink == "xdp"),
        "cover": int(cover),
        "warm": warm,
        "seconds": seconds,
        "pps": pps,
        **({"spin": spinner.path} if spinner else {}),
    }
    argv = [program("blast"), *(f"{name}={value}" for name, value in options.items())]
    with wiring.accepting_frames():
        told = _told(run(*argv, timeout=warm + seconds + 30))
    stand.next_flow = told["next"] % (1 << 29)
    coverage = told["covered"] / flows if cover else 1.0
    if not told["arrived"] or not coverage:
        raise CommandError(f"{contender.name}: of {told['sent']} packets {told['arrived']} arrived, none was answered")
    if cover:  # if need be incomplete: another try would take as long
        stand.warm_flows[family] = flows
        stand.warm_until = time.monotonic() + contender.idle_timeout / 2
        if coverage < COVERED_ENOUGH:
            found = f"only {coverage:.0%} of {flows} flows were answered in {warm:.0f} s"
            stand.remarks.append(f"{contender.name}: {found}")
    return Blast(
        rate=told["arrived"] / told["seconds"],
        sent=told["sent"],
        arrived=told["arrived"],
        seconds=told["seconds"],
        waited=told["waited"],
        spun=told.get("spun", []),
    )


def make_packet(sender: Workload, receiver: Workload, family: Literal[4, 6]) -> tuple[bytes, int]:
    """A 64-octet Ethernet frame with both UDP ports 0, and where its UDP header begins."""
    ethernet = bytes.fromhex(receiver.mac.replace(":", "") + sender.mac.replace(":", ""))
    if family == 4:
        # RFC 791, 768. With a UDP checksum, as kernels send.
        length = FRAME - 34
        addresses = ipaddress.IPv4Address(sender.ipv4).packed + ipaddress.IPv4Address(receiver.ipv4).packed
        head = struct.pack("!BBHHHBBH", 0x45, 0, FRAME - 14, 0, 0x4000, 64, 17, 0) + addresses
        head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
        return ethernet + b"\x08\x00" + head + datagram(addresses + struct.pack("!xBH", 17, length), length), 34
    # RFC 8200: UDP over IPv6 needs its checksum, over the pseudo-header too.
    addresses = ipaddress.IPv6Address(sender.ipv6).packed + ipaddress.IPv6Address(receiver.ipv6).packed
    length = FRAME - 54
    head = struct.pack("!IHBB", 6 << 28, length, 17, 64) + addresses
    return ethernet + b"\x86\xdd" + head + datagram(addresses + struct.pack("!IxxxB", length, 17), length), 54


def datagram(pseudo_header: bytes, length: int) -> bytes:
    """UDP between two ports 0, payload zeros."""
    udp = struct.pack("!HHHH", 0, 0, length, 0).ljust(length, b"\0")
    value = checksum(pseudo_header + udp)
    return udp[:6] + struct.pack("!H", value or 0xFFFF) + udp[8:]


def checksum(octets: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def tcp_bulk(stand: Stand, seconds: float, *, core: int = LOAD_CORE) -> float:
    """Bits a second of one TCP connection, as acknowledged."""
    told = _client(stand, "stream", stand.wiring.b.workload.ipv4, str(seconds), seconds=seconds, core=core)
    return float(told["octets"] * 8 / told["seconds"])


def round_trip(stand: Stand, protocol: str, seconds: float) -> tuple[float, float]:
    """Median and 99th percentile, in microseconds, of one 64-octet request and its answer at a time."""
    told = _client(stand, "echo", stand.wiring.b.workload.ipv4, protocol, str(seconds), seconds=seconds)
    return float(told["p50_us"]), float(told["p99_us"])


def connection_rate(stand: Stand, seconds: float, *, core: int = LOAD_CORE) -> float:
    """Completed TCP connections a second: connect, 64-octet request and answer, close."""
    told = _client(stand, "connect", stand.wiring.b.workload.ipv4, str(seconds), seconds=seconds, core=core)
    return float(told["completed"] / told["seconds"])


def _client(stand: Stand, name: str, *argv: str, seconds: float, core: int = LOAD_CORE) -> dict[str, Any]:
    return _told(
        run(program(name), *argv, str(core), namespace=stand.wiring.a.workload.namespace, timeout=seconds + 15)
    )


def _told(output: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(output)
    return told
