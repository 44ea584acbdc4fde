"""Bulk TCP between workloads, and what its sender's kernel says of it (``struct tcp_info`` of linux/tcp.h)."""

from __future__ import annotations

import socket
import struct
import threading
from typing import NamedTuple

from headrace.testing.cloud import CloudHost, Workload
from headrace.testing.traffic import PATIENCE, tcp_pair

AMOUNT = 8_000_000
ETHERNET = 14
IP_AND_TCP = {4: 20 + 32, 6: 40 + 32}
"""Headers of a segment with timestamps."""
SYN_OPTIONS = 8
"""How much longer a SYN's options are than those of other segments."""
RETRANSMITTED, SEGS_OUT, BYTES_SENT, IN_VAIN = 100, 136, 200, 216
"""Where struct tcp_info has them; SEGS_OUT and BYTES_SENT count what is sent twice. IN_VAIN: DSACKs."""


class Sent(NamedTuple):
    """What a TCP sent from a port, retransmissions included. ``lost``: of those, what had not just been overtaken."""

    port: int
    segments: int
    octets: int
    again: int
    lost: int

    def frames(self, family: int) -> int:
        """Octets of its segments' frames."""
        return self.octets + self.segments * (IP_AND_TCP[family] + ETHERNET) + SYN_OPTIONS


def frames_sent(host: CloudHost) -> int:
    """Frames, super or not, that left by the uplink."""
    (facts,) = host.namespace.ip("-statistics link show dev uplink")
    return int(facts["stats64"]["tx"]["packets"])


def move(here: socket.socket, there: socket.socket, patience: float) -> None:
    """Send the amount, and no more, until all of it arrived. ``there``: ``here`` itself of an echo."""

    def send() -> None:
        here.sendall(bytes(AMOUNT))
        here.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    here.settimeout(patience)
    sender.start()
    received = 0
    while part := there.recv(65536):
        received += len(part)
    sender.join()
    assert received == AMOUNT


def bulk(a: Workload, b: Workload, address: str) -> Sent:
    """Move the amount over one connection to an address of ``b``."""
    with tcp_pair(a, b, address, 80) as (here, there):
        source = int(here.getsockname()[1])
        move(here, there, PATIENCE * 5)
        there.close()
        assert here.recv(1) == b""
        info = here.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    again, segments, in_vain = (
        struct.unpack_from("=I", info, place)[0] for place in (RETRANSMITTED, SEGS_OUT, IN_VAIN)
    )
    (octets,) = struct.unpack_from("=Q", info, BYTES_SENT)
    return Sent(source, segments, octets, again, max(again - in_vain, 0))
