"""Every wire beside our VXLAN, and beside what Linux and Open vSwitch have of it.

In the cell of a wire, ``headrace-tc`` joins the workloads by it, ``headrace-vxlan`` by VXLAN over the same underlay,
and each party by its own of that wire; who has none says so. In VXLAN's own cell the first two are one and the same:
what they differ by is this machine's noise.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from bench.dimension import BASE_FLOWS, BASE_RULES, QUICK_RULES, Dimension, Point, bulk, packet_rate
from bench.rules import SEGMENTS

if TYPE_CHECKING:
    from typing import Literal

REFERENCE = "headrace-vxlan"
OURS = ("headrace-tc", REFERENCE)
PARTIES = ("linux", "ovs")
POLLING = "ovs-dpdk"
CONNECTIONS = 1 << 16
"""There are few here, and a host is set up for each wire: smaller tables are made sooner."""


def outer(wire: str) -> bool:
    """Whether it has an outer IP header, and so underlays of two versions."""
    return not SEGMENTS[wire].is_physical and wire != "nsh-ethernet"


def cell(wire: str, underlay: Literal[4, 6] = 4, *, only: tuple[str, ...] | None = None, **more: int) -> Point:
    """A wire over an underlay; one without outer IP is over none."""
    labels: dict[str, int | str] = {"wire": wire, "underlay": f"IPv{underlay}" if outer(wire) else "-"}
    return Point(
        rules=BASE_RULES,
        parameters={**labels, **more},
        only=only,
        wire=wire,
        underlay=underlay,
        connections=CONNECTIONS,
    )


WIRE_DIMENSIONS: tuple[Dimension, ...] = (
    Dimension(
        name="wire-packet-rate",
        title="UDP, 64-octet frames, one way over two hosts, by every wire",
        units={"": "Mpps"},
        scale=1e-6,
        better="higher",
        limit=REFERENCE,
        contenders=(*OURS, *PARTIES, POLLING),
        points=(
            *(cell(wire, flows=BASE_FLOWS) for wire in SEGMENTS),
            *(cell(wire, 6, only=(*OURS, *PARTIES), flows=BASE_FLOWS) for wire in SEGMENTS if outer(wire)),
        ),
        measure=packet_rate,
        group="wire",
    ),
    Dimension(
        name="wire-tcp-bulk",
        title="one TCP connection, as fast as it goes, by every wire",
        units={"": "Gbit/s"},
        scale=1e-9,
        better="higher",
        limit=REFERENCE,
        contenders=(*OURS, *PARTIES),
        points=tuple(cell(wire) for wire in SEGMENTS),
        measure=bulk,
        group="wire",
    ),
)
"""``POLLING`` is in the first rows alone: it is the slowest to be set up, and its tunnels are those of ``ovs``."""


def quick_wire_dimensions() -> tuple[Dimension, ...]:
    """Packet rate over IPv4 of ours and Linux alone, with fewer rules."""
    full = WIRE_DIMENSIONS[0]
    points = tuple(dataclasses.replace(point, rules=QUICK_RULES) for point in full.points if point.underlay == 4)
    return (dataclasses.replace(full, contenders=(*OURS, "linux"), points=points),)
