"""One port floods with SYNs at all that a core can, while another port goes about its business on the other core.

The same generator sends into the datapath, and into an XDP program that drops, right behind the port's device: what the
other port keeps of its throughput is the ratio of both.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import signal
import struct
import time
from typing import TYPE_CHECKING

from bench.build import program
from bench.headrace_contender import more_device
from bench.process import CommandError, Daemon, run
from bench.traffic import FRAME, SERVER_CORE, blast, checksum, connection_rate, tcp_bulk
from bench.wiring import gro

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.cpu import Spinner
    from bench.dimension import Point
    from bench.traffic import Stand

FLOOD_CORE = 0
FLOODER, TARGET = 0, 1
"""Numbers of the site's more ports on host a; behind them are the devices w0 and w1."""
FLOWS = 1024
STARTED_S = 1.0
"""Until the flood runs, and has filled its quota."""
LONGEST_S = 60.0
L4 = 34
SYN = 2


def syn_flood(stand: Stand, point: Point, seconds: float, spinner: Spinner | None) -> dict[str, float]:
    """What workload a keeps beside the flood, of what it has beside the generator alone."""
    del point, spinner
    beside: list[dict[str, float]] = []
    sent = 0.0
    for drop in (True, False):
        with flooding(stand, drop=drop) as told:
            beside.append(
                {
                    "tcp kept": tcp_bulk(stand, seconds, core=SERVER_CORE),
                    "udp kept": blast(stand, FLOWS, seconds, core=SERVER_CORE).rate,
                    "connections kept": connection_rate(stand, seconds, core=SERVER_CORE),
                }
            )
        sent = told["sent"] / told["seconds"]
    alone, flooded = beside
    return {**{name: flooded[name] / alone[name] for name in alone}, "flood": sent / 1000}


@contextlib.contextmanager
def flooding(stand: Stand, *, drop: bool) -> Iterator[dict[str, float]]:
    """Within, the flood runs; afterwards what was yielded tells how much it sent."""
    host = stand.wiring.a
    for number in (FLOODER, TARGET):
        run("ip", "-n", host.namespace, "link", "set", f"w{number}", "up")
        gro(host.namespace, more_device(number), on=True)
    options = {
        "tx-namespace": f"/run/netns/{host.namespace}",
        "tx-device": f"w{FLOODER}",
        "rx-namespace": f"/run/netns/{host.namespace}",
        "rx-device": more_device(FLOODER) if drop else f"w{TARGET}",
        "packet": syn().hex(),
        "l4-offset": L4,
        "flows": 0,
        "core": FLOOD_CORE,
        "xdp-sink": int(drop),
        "warm": STARTED_S / 2,
        "seconds": LONGEST_S,
    }
    flood = Daemon(program("blast"), *(f"{name}={value}" for name, value in options.items()))
    told: dict[str, float] = {}
    try:
        time.sleep(STARTED_S)
        if not flood.alive():
            raise CommandError(f"the flood does not start: {flood.last_words()}")
        yield told
        flood.signal(signal.SIGUSR1)  # it ends its measurement, takes its programs off and tells
        deadline = time.monotonic() + 5
        while flood.alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        told |= json.loads(flood.last_words())
    finally:
        flood.stop()


def syn() -> bytes:
    """A SYN between the two more ports, both TCP ports 0; its checksum is nobody's business."""
    addresses = b"".join(ipaddress.IPv4Address(f"10.90.0.{number}").packed for number in (FLOODER, TARGET))
    ethernet = bytes.fromhex(f"fa163e8000{TARGET:02x}fa163e8000{FLOODER:02x}") + b"\x08\x00"
    head = struct.pack("!BBHHHBBH", 0x45, 0, FRAME - 14, 0, 0x4000, 64, 6, 0) + addresses
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    tcp = struct.pack("!HHIIBBHHH", 0, 0, 0, 0, 5 << 4, SYN, 65535, 0, 0)  # RFC 9293 section 3.1
    return (ethernet + head + tcp).ljust(FRAME, b"\0")
