"""What is measured: each dimension names its points, its contenders, its limit, and how one value is taken."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal

from bench.ageing import ageing
from bench.clouded import CHANGES, changing
from bench.cpu import Spinner, bpf_stats, program_costs, program_counters
from bench.flood import syn_flood
from bench.process import CommandError
from bench.rules import CONNECTIONS, Site
from bench.tables import applying
from bench.traffic import Stand, blast, connection_rate, round_trip, tcp_bulk

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.wiring import Kind

Values = dict[str, float]
"""By the name of the quantity; a dimension of one quantity has one name, ""."""

HEADRACE = ("headrace-tc", "headrace-xdp")
RIVALS = ("linux", "ovs", "ovs-dpdk")
RULES = (1, 100, 1000)
MANY_RULES = 10_000
CLOUD_MEMBERS = 2000
BASE_RULES = 1000
QUICK_RULES = 100
BASE_FLOWS = 1024
FLOOD_QUOTA = 65536
"""A quarter of the table that an agent has unless configured."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One place on the axes. ``only``: measure just these contenders here. Those after it: as in ``Site``."""

    rules: int
    parameters: dict[str, int | str] = field(default_factory=dict)
    kind: Kind = "veth"
    only: tuple[str, ...] | None = None
    members: int = 0
    ports: int = 0
    quota: int = 0
    wire: str = "vxlan"
    underlay: Literal[4, 6] = 4
    connections: int = CONNECTIONS
    cut: bool = False

    @property
    def site(self) -> Site:
        return Site(**{each.name: getattr(self, each.name) for each in fields(Site)})

    def labels(self) -> dict[str, int | str]:
        ports: dict[str, int | str] = {"ports": self.kind} if self.kind != "veth" else {}
        more = {name: count for name, count in (("members", self.members), ("more", self.ports)) if count}
        underlay: dict[str, int | str] = {"underlay": "cut"} if self.cut else {}
        return {**self.parameters, "rules": self.rules, **more, **ports, **underlay}


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """``limit``: the contender that shows what can be had at most; None if there is no such thing.

    ``units``: of each quantity that ``measure`` gives. ``awake``: run a spinner meanwhile. ``rounds``: at most so many;
    ``takes``: seconds of one, where it takes its own time. ``group``: measured only when that is asked for.
    """

    name: str
    title: str
    units: dict[str, str]
    better: Literal["higher", "lower"]
    limit: str | None
    contenders: tuple[str, ...]
    points: tuple[Point, ...]
    measure: Callable[[Stand, Point, float, Spinner | None], Values]
    scale: float = 1.0
    awake: bool = False
    rounds: int | None = None
    takes: float | None = None
    group: str = ""

    def against(self) -> tuple[str, ...]:
        """Whom the others are compared to."""
        limit = (self.limit,) if self.limit else ()
        return (*limit, *(name for name in (*RIVALS, "linux-open") if name in self.contenders))


def packet_rate(stand: Stand, point: Point, seconds: float, spinner: Spinner | None) -> Values:
    del spinner
    family: Literal[4, 6] = 6 if point.parameters.get("family") == 6 else 4
    return {"": blast(stand, int(point.parameters["flows"]), seconds, family=family).rate}


def new_flows(stand: Stand, point: Point, seconds: float, spinner: Spinner | None) -> Values:
    del point, spinner
    stand.forget()
    return {"": blast(stand, 0, seconds).rate}


def efficiency(stand: Stand, point: Point, seconds: float, spinner: Spinner | None) -> Values:
    """At half of the contender's own rate, so that no CPU goes into packets that are lost.

    What is counted is all that the machine did for the packets: making and dropping them too.
    """
    if spinner is None:
        raise CommandError("efficiency is taken from a spinner")
    flows = int(point.parameters["flows"])
    if not stand.paced:
        stand.paced = blast(stand, flows, seconds / 2).rate / 2
    done = blast(stand, flows, seconds, pps=stand.paced, spinner=spinner)
    used = spinner.used(done.spun, done.seconds) - done.waited
    if used <= 0:
        raise CommandError(f"the spinner lost less than the load burnt ({used:.3f} s): others disturb this machine")
    return {"": done.arrived / used}


def program_cost(stand: Stand, point: Point, seconds: float, spinner: Spinner | None) -> Values:
    """Nanoseconds a run of each BPF program, with established flows, and of all together for a packet."""
    del spinner
    flows = int(point.parameters["flows"])
    blast(stand, flows, 0.1)
    with bpf_stats():
        before = program_counters()
        done = blast(stand, flows, seconds)
        costs = program_costs(before, program_counters())
    # The counters also saw the time before and after the window, so count packets by the busiest program.
    packets = max((cost.runs for cost in costs), default=0)
    if not packets or not done.arrived:
        raise CommandError("no BPF program ran")
    values = {cost.name: cost.nanoseconds / cost.runs for cost in costs if cost.runs > packets / 100}
    values["all, each packet"] = sum(cost.nanoseconds for cost in costs) / packets
    return values


def bulk(stand: Stand, point: Point, seconds: float, spinner: Spinner | None) -> Values:
    del point, spinner
    return {"": tcp_bulk(stand, seconds)}


def latency(stand: Stand, point: Point, seconds: float, spinner: Spinner | None) -> Values:
    del spinner
    p50, p99 = round_trip(stand, str(point.parameters["protocol"]), seconds)
    return {"p50": p50, "p99": p99}


def connections(stand: Stand, point: Point, seconds: float, spinner: Spinner | None) -> Values:
    del point, spinner
    return {"": connection_rate(stand, seconds)}


def scale(stand: Stand, point: Point, seconds: float, spinner: Spinner | None) -> Values:
    """Packets and connections a second while so much is there besides."""
    del spinner
    standing = int(point.parameters.get("standing", 0))
    if standing:
        blast(stand, standing, 0.1)
    packets = blast(stand, BASE_FLOWS, seconds).rate
    return {"packets": packets / 1e6, "connections": connection_rate(stand, seconds) / 1e3}


def memory(stand: Stand, point: Point, seconds: float, spinner: Spinner | None) -> Values:
    """What both hosts hold, MiB; and octets of the tables of connections for each direction they have room for."""
    del point, seconds, spinner
    return stand.contender.memory()


def _flows(flows: int, rules: int = BASE_RULES, family: int = 4) -> Point:
    return Point(rules=rules, parameters={"flows": flows, **({"family": 6} if family == 6 else {})})


PACKET_PATH = (*HEADRACE, *RIVALS, "bare")
TCP_PATH = (*HEADRACE, *RIVALS, "wire")

SITES = (
    Point(rules=BASE_RULES),
    Point(rules=MANY_RULES),
    Point(rules=BASE_RULES, members=MANY_RULES),
    Point(rules=BASE_RULES, ports=BASE_RULES, only=HEADRACE),
    Point(rules=BASE_RULES, parameters={"standing": 1 << 20}),
)
"""A thousand rules and ten times as many, ten thousand members of a group, a thousand ports, a million connections."""

DIMENSIONS: tuple[Dimension, ...] = (
    Dimension(
        name="packet-rate",
        title="UDP, 64-octet frames, one way over two hosts",
        units={"": "Mpps"},
        scale=1e-6,
        better="higher",
        limit="bare",
        contenders=PACKET_PATH,
        points=(
            *(_flows(flows) for flows in (1, BASE_FLOWS, 1 << 16, 1 << 20)),
            *(_flows(BASE_FLOWS, rules) for rules in RULES if rules != BASE_RULES),
            _flows(BASE_FLOWS, family=6),
        ),
        measure=packet_rate,
    ),
    Dimension(
        name="new-flows",
        title="UDP, every packet the first of a flow",
        units={"": "kpps"},
        scale=1e-3,
        better="higher",
        limit="bare",
        contenders=PACKET_PATH,
        points=(
            *(Point(rules=rules) for rules in RULES),
            Point(rules=MANY_RULES, only=(*HEADRACE, "linux")),
        ),
        measure=new_flows,
    ),
    Dimension(
        name="efficiency",
        title="packets for each second of CPU, load included, at half of the contender's own rate",
        units={"": "kpackets/CPU-s"},
        scale=1e-3,
        better="higher",
        limit="bare",
        contenders=PACKET_PATH,
        points=(_flows(BASE_FLOWS),),
        measure=efficiency,
        awake=True,
    ),
    Dimension(
        name="program-cost",
        title="time in BPF programs, established flows, both hosts together (bpf_stats adds some 20 ns a run)",
        units={"": "ns"},
        better="lower",
        limit=None,
        contenders=(*HEADRACE, "bare"),
        points=tuple(_flows(BASE_FLOWS, rules) for rules in (1, BASE_RULES, MANY_RULES)),
        measure=program_cost,
    ),
    Dimension(
        name="tcp-bulk",
        title="one TCP connection, as fast as it goes",
        units={"": "Gbit/s"},
        scale=1e-9,
        better="higher",
        limit="wire",
        contenders=(*TCP_PATH, "linux-open"),
        points=tuple(Point(rules=rules) for rules in RULES),
        measure=bulk,
    ),
    Dimension(
        name="tcp-merge",
        title="the same, where single frames arrive: ports are taps, or the underlay carries no super-packets",
        units={"": "Gbit/s"},
        scale=1e-9,
        better="higher",
        limit=None,
        contenders=("headrace-tc", "headrace-merging", "linux"),
        points=(
            Point(rules=BASE_RULES, kind="tap"),
            Point(rules=BASE_RULES, kind="tap", cut=True),
            Point(rules=BASE_RULES, cut=True),
        ),
        measure=bulk,
        rounds=3,
    ),
    Dimension(
        name="latency",
        title="one 64-octet request at a time until its answer, cores kept awake",
        units={"p50": "us", "p99": "us"},
        better="lower",
        limit="wire",
        contenders=TCP_PATH,
        points=(
            *(Point(rules=rules, parameters={"protocol": "tcp"}) for rules in RULES),
            Point(rules=BASE_RULES, parameters={"protocol": "udp"}),
        ),
        measure=latency,
        awake=True,
    ),
    Dimension(
        name="connection-rate",
        title="TCP connect, request, answer, close",
        units={"": "k/s"},
        scale=1e-3,
        better="higher",
        limit="wire",
        contenders=TCP_PATH,
        points=tuple(Point(rules=rules) for rules in RULES),
        measure=connections,
    ),
    Dimension(
        name="scale",
        title="1,024 flows of 64-octet UDP, and TCP connections, with much else there",
        units={"packets": "Mpps", "connections": "k/s"},
        better="higher",
        limit=None,
        contenders=(*HEADRACE, "linux"),
        points=SITES,
        measure=scale,
    ),
    Dimension(
        name="memory",
        title="of both hosts; tables: the kernel's, all that is pinned; direction: octets of connections' tables",
        units={"tables": "MiB", "agents": "MiB", "direction": "octets"},
        better="lower",
        limit=None,
        contenders=HEADRACE[:1],
        points=tuple(site for site in SITES if not site.parameters),
        measure=memory,
    ),
    Dimension(
        name="apply",
        title="from desired state to tables on one host: from nothing, and one rule, member or port less or more",
        units={"full": "ms", "change": "ms", "slowest": "ms", "written": "entries"},
        better="lower",
        limit=None,
        contenders=("headrace-tables",),
        points=tuple(Point(rules=site.rules, members=site.members, ports=site.ports) for site in SITES[:4]),
        measure=applying,
        rounds=3,
        takes=5.0,
    ),
    Dimension(
        name="rule-change",
        title=f"{CHANGES} times the last packet under the old rules, from the controller's request or Neutron's answer",
        units={"p50": "ms", "p99": "ms", "slowest": "ms"},
        better="lower",
        limit=None,
        contenders=("headrace-cloud",),
        points=tuple(
            Point(rules=BASE_RULES, members=CLOUD_MEMBERS, parameters={"less": less, "written to": to})
            for to in ("controller", "neutron")
            for less in ("a rule", "a member")
        ),
        measure=changing,
        rounds=1,
        takes=45.0,
    ),
    Dimension(
        name="syn-flood",
        title="what a port keeps beside another's SYN flood, of what it has beside the same generator alone",
        units={"tcp kept": "ratio", "udp kept": "ratio", "connections kept": "ratio", "flood": "kpps"},
        better="higher",
        limit=None,
        contenders=HEADRACE[:1],
        points=(Point(rules=BASE_RULES, ports=2, quota=FLOOD_QUOTA),),
        measure=syn_flood,
    ),
    Dimension(
        name="ageing",
        title="one host's sweeper with 1 M connections: its share of a core, and the connection rate kept beside it",
        units={"share": "%", "connections kept": "ratio"},
        better="lower",
        limit=None,
        contenders=HEADRACE[:1],
        points=(Point(rules=BASE_RULES, ports=1, parameters={"connections": 1 << 20}),),
        measure=ageing,
    ),
)


def quick_dimensions() -> tuple[Dimension, ...]:
    """The headline rows: one point each, and Headrace, Linux and the limit only."""
    headlines: dict[str, Point] = {
        "packet-rate": _flows(BASE_FLOWS, QUICK_RULES),
        "tcp-bulk": Point(rules=QUICK_RULES),
        "latency": Point(rules=QUICK_RULES, parameters={"protocol": "tcp"}),
        "connection-rate": Point(rules=QUICK_RULES),
    }
    return tuple(
        Dimension(
            **{
                **{name: getattr(full, name) for name in full.__dataclass_fields__},
                "contenders": (*HEADRACE, "linux", full.limit),
                "points": (headlines[full.name],),
            }
        )
        for full in DIMENSIONS
        if full.name in headlines
    )
