"""What the datapath hands to the agent, and what the agent says by itself: the ring buffer in, ports' devices out.

Answers pass the guard on a port's egress by their mark. Nothing here waits for anything: what cannot be answered at
once is dropped and counted, as the client will ask again.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import math
import socket
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Self

from headrace import abi
from headrace.agent import advert, dhcp4, dhcp6
from headrace.agent.client import Client, Silence, Unanswered
from headrace.datapath.bpfmap import Map
from headrace.datapath.decision import Dropped
from headrace.datapath.packet import ETHERNET, ICMPV6, UDP, Ip, parse
from headrace.datapath.ringbuf import RingBuffer

log = logging.getLogger(__name__)

SO_MARK = 36
"""asm-generic/socket.h; Python's socket module has no name for it."""

RATE, BURST = 10.0, 20.0
"""Questions a port may ask, a second and at once: a boot asks some six, over both IP versions."""

TURN = 64
"""Punts taken before the event loop's other tasks have their turn: what asks without end stops nothing else."""

HEAD = struct.Struct("<II")
"""How a punt begins: port, ifindex (struct hr_punt). Whoever asks too often costs no more than reading this."""

COMPLAINT = 60.0
"""Seconds between two warnings of what one port's device did not take."""

UDP_HEADER = 8
ETH_P_8021Q = 0x8100
ROUTER_SOLICITATION = 133


def answer(frame: bytes, client: Client) -> bytes:
    """The frame that answers a punted one. Raises Unanswered, and nothing else, whatever the frame."""
    try:
        packet = parse(frame.ljust(ETHERNET, b"\0"))
    except Dropped:  # cut, or malformed
        raise Unanswered(Silence.MALFORMED) from None
    ip = packet.ip
    if ip is None or ip.transport is None or ip.extended or packet.source != client.port.mac:
        raise Unanswered(Silence.MALFORMED if ip is None or packet.source == client.port.mac else Silence.FOREIGN)
    return answer_ip(frame, ip, client)


def answer_ip(frame: bytes, ip: Ip, client: Client) -> bytes:
    """By protocol."""
    assert ip.transport is not None
    ports = (ip.transport.sport, ip.transport.dport)
    source = ip.source if isinstance(ip.source, ipaddress.IPv6Address) else None
    if source is not None and ip.protocol == ICMPV6 and frame[ip.payload] == ROUTER_SOLICITATION:
        return advert.answer(frame[ip.payload : ip.end], source, ip.hop_limit, client)
    if ip.protocol == UDP:
        length = int.from_bytes(frame[ip.payload + 4 : ip.payload + 6], "big")
        message = frame[ip.payload + UDP_HEADER : min(ip.end, ip.payload + length)]
        if source is None and ports == (68, 67):
            return dhcp4.answer(message, client)
        if source is not None and ports == (546, 547):
            return dhcp6.answer(message, source, client)
    raise Unanswered(Silence.UNSERVED)


def tagged(frame: bytes, vlan: int | None) -> bytes:
    """A frame as it goes to a sub-port's parent device: with its tag (IEEE 802.1Q), priority 0."""
    return frame if vlan is None else frame[:12] + struct.pack("!HH", ETH_P_8021Q, vlan) + frame[12:]


class Budget:
    """Token buckets, one a port. Times are a caller's, in seconds."""

    def __init__(self) -> None:
        self._left: dict[int, tuple[float, float]] = {}

    def keep(self, indices: Mapping[int, object]) -> None:
        """Forget ports that are gone."""
        self._left = {index: left for index, left in self._left.items() if index in indices}

    def take(self, index: int, now: float) -> bool:
        """Whether a port may ask now."""
        left, since = self._left.get(index, (BURST, now))
        left = min(BURST, left + (now - since) * RATE)
        self._left[index] = (left - 1 if left >= 1 else left, now)
        return left >= 1


class Punts:
    """Answers a host's ports. Used from one event loop; ``counts``: answers, adverts, and silences by their cause."""

    def __init__(self, table: Map, clock: Callable[[], float] | None = None) -> None:
        """Read a host's ``hr_punts``; raises OSError where frames cannot be sent (it takes CAP_NET_RAW)."""
        self._clock = clock or asyncio.get_running_loop().time
        self._clients: Mapping[int, Client] = {}
        self._budget = Budget()
        self._complained: dict[str, float] = {}
        self._schedule = advert.Schedule()
        self._wake = asyncio.Event()
        self.counts: Counter[str] = Counter()
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_MARK, abi.MARK)
            self._ring = RingBuffer(table, self.receive)
        except BaseException:
            self._socket.close()
            raise

    def serve(self, clients: Mapping[int, Client]) -> None:
        """These are the ports to answer, by index."""
        self._clients = clients
        self._budget.keep(clients)
        served = {client.port.id for client in clients.values()}
        self._complained = {port: when for port, when in self._complained.items() if port in served}
        self._schedule.serve(clients, self._clock())
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._ring.fileno(), self._ring.consume, TURN)
        try:
            while True:
                self._wake.clear()
                for index, frame in self._schedule.take(self._clock()):
                    self._send(self._clients[index], frame, "advertised")
                due = self._schedule.next()
                try:
                    async with asyncio.timeout(None if due is None else max(0.0, due - self._clock())):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        finally:
            loop.remove_reader(self._ring.fileno())

    def receive(self, octets: bytes) -> None:
        """One record of the ring buffer."""
        port, ifindex = HEAD.unpack_from(octets)
        client = self._clients.get(port)
        try:
            if client is None or client.ifindex != ifindex:
                raise Unanswered(Silence.UNKNOWN)
            if not self._budget.take(port, self._clock()):
                raise Unanswered(Silence.LIMITED)
            punt = abi.Punt.unpack(octets)
            self._send(client, answer(punt.octets[: punt.length], client), "answered")
        except Unanswered as error:
            self.counts[error.silence.name] += 1
            where = client.port.id if client else f"index {port}"
            log.debug("port=%s is not answered: %s", where, error)

    def _send(self, client: Client, frame: bytes, what: str) -> None:
        try:
            self._socket.sendto(tagged(frame, client.port.vlan), (client.device, 0))
            self.counts[what] += 1
            log.debug("port=%s device=%s %s octets=%d", client.port.id, client.device, what, len(frame))
        except OSError as error:  # the device went, is down or full; the client asks again
            if error.errno not in {errno.ENODEV, errno.ENXIO, errno.ENETDOWN, errno.ENOBUFS, errno.EAGAIN}:
                self._complain(client, error)
            self.counts[Silence.UNSENT.name] += 1

    def _complain(self, client: Client, error: OSError) -> None:
        """Once a minute a port: what a workload asks must not fill the log."""
        now = self._clock()
        loud = now - self._complained.get(client.port.id, -math.inf) >= COMPLAINT
        if loud:
            self._complained[client.port.id] = now
        level = logging.WARNING if loud else logging.DEBUG
        log.log(level, "port=%s device=%s takes no answer: %s", client.port.id, client.device, error)

    def close(self) -> None:
        """Give the ring buffer and the socket back; what is not read stays for the next agent."""
        self._ring.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
