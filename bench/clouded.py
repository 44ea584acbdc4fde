"""How soon a change of rules acts: a whole cloud - Neutron, controller, two hosts with agents - and a stream of UDP.

The group of workload b lets workload a in by a remote group of many members, and by one rule of many. Either is taken
away and given back, by writing to the controller or by Neutron's API; what counts is the last datagram that arrives.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from bench.contender import Passive, Sink
from bench.process import CommandError, SetupError
from headrace.controller.client import Client
from headrace.controller.desired import CLI, encode
from headrace.controller.identity import Files
from headrace.model import Port, Record
from headrace.testing.demo.cloud import Cloud
from headrace.testing.demo.workload import Box
from headrace.testing.topology import Topology
from headrace.testing.wait import wait_until

if TYPE_CHECKING:
    from bench.cpu import Spinner
    from bench.dimension import Point, Values
    from bench.rules import Site
    from bench.traffic import Stand
    from bench.wiring import Wiring

CHANGES = 50
PACE_S = 0.0005
"""Between datagrams: how exactly the last one is known."""
QUIET_S = 0.06
"""Without any, there will be none."""
PATIENCE_S = 30.0
SERVICE = 9000
SO_TIMESTAMPNS = 35
PAUSE_S = 0.1
"""Between changes, so that each is one by itself."""
PEOPLE, RULED = "crowd", "ruled"
ALLOWING = {"ethertype": "IPv4", "protocol": "udp", "port_range_min": SERVICE, "port_range_max": SERVICE}

Answer = TypeVar("Answer")


class Stream:
    """Datagrams from one box to another, and when the last arrived, by the kernel's clock (seconds since 1970)."""

    def __init__(self, sender: Box, receiver: Box) -> None:
        with sender.namespace.enter():
            self._here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with receiver.namespace.enter():
            self._there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._there.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._there.bind((receiver.ipv4, SERVICE))
        self._there.settimeout(0.2)
        self._here.connect((receiver.ipv4, SERVICE))
        self._end = threading.Event()
        self.last = 0.0
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(2)
        self._here.close()
        self._there.close()

    def _send(self) -> None:
        while not self._end.wait(PACE_S):
            with contextlib.suppress(OSError):
                self._here.send(b"x" * 22)

    def _receive(self) -> None:
        while not self._end.is_set():
            with contextlib.suppress(TimeoutError):
                _, about, *_ = self._there.recvmsg(100, 64)
                seconds, nanoseconds = struct.unpack("qq", about[0][2][:16])
                self.last = seconds + nanoseconds * 1e-9

    def flows(self) -> None:
        """Return when datagrams arrive."""
        since = time.time()
        wait_until(lambda: self.last > since, PATIENCE_S, "datagrams to arrive")

    def ended(self) -> float:
        """When the last one arrived, once they have ceased."""
        wait_until(lambda: time.time() - self.last > QUIET_S, PATIENCE_S, "datagrams to cease")
        return self.last


class HeadraceCloud(Passive):
    """A cloud of its own; the wiring that everybody gets is left alone. Certificates as in production."""

    name = "headrace-cloud"
    sink: Sink = "tc"

    def __init__(self) -> None:
        self._exit = contextlib.ExitStack()

    def setup(self, wiring: Wiring, site: Site) -> None:
        del wiring
        with contextlib.ExitStack() as guard:
            cloud = self._cloud = Cloud(guard.enter_context(Topology()))
            cloud.start_controller()
            cloud.start_neutron("quotas.quota_security_group_rule=-1", worker="process")
            cloud.start_hosts()
            cloud.wait_for_neutron()
            self._nova = cloud.admin()
            self._make(site)
            self._stream = Stream(*self._boxes)
            guard.callback(self._stream.close)
            self._exit = guard.pop_all()

    def teardown(self) -> None:
        self._exit.close()

    def _make(self, site: Site) -> None:
        """A network, its groups, and two ports; and beside Neutron's the objects that go to the controller directly."""
        api = self._api = self._cloud.project("bench", "admin,manager,member,reader,service")
        network = api.create_network(name="bench")
        for version, cidr in ((4, "10.77.0.0/16"), (6, "fd77::/64")):
            api.create_subnet(network_id=network.id, ip_version=version, cidr=cidr, enable_dhcp=False)
        self.groups = {name: api.create_security_group(name=name).id for name in ("out", PEOPLE, RULED)}
        ports = [
            api.create_port(
                network_id=network.id,
                security_group_ids=[self.groups[name] for name in names],
                fixed_ips=[{"ip_address": f"10.77.0.{number}"}, {"ip_address": f"fd77::{number}"}],
            )
            for number, names in ((1, ("out",)), (2, (RULED,)))
        ]
        hosts = list(self._cloud.hosts.values())
        self._boxes = [
            Box(self._cloud, f"box{number}", host, port, network.mtu)
            for number, (host, port) in enumerate(zip(hosts, ports, strict=True))
        ]
        self.sender = ports[0].id
        for box in self._boxes:
            self._nova.update_port(box.port_id, binding_host_id=box.host.name)
            box.plug()
        wait_until(lambda: all(port.status == "ACTIVE" for port in self._nova.ports()), PATIENCE_S, "ports up")
        decoys = [
            {
                "security_group_id": self.groups[RULED],
                "direction": "ingress",
                "ethertype": "IPv4",
                "protocol": "tcp",
                "port_range_min": 1024 + number,
                "port_range_max": 1024 + number,
                "remote_ip_prefix": f"198.18.{number >> 8}.{number & 255}/32",
            }
            for number in range(site.rules - 1)
        ]
        for start in range(0, len(decoys), 200):
            list(api.create_security_group_rules(decoys[start : start + 200]))
        api.create_security_group_rule(
            security_group_id=self.groups[RULED],
            direction="ingress",
            ethertype="IPv4",
            remote_group_id=self.groups[PEOPLE],
        )
        crowd = [
            Port(
                id=f"member-{number}",
                network=network.id,
                mac=f"fa:16:3e:79:{number >> 8:02x}:{number & 255:02x}",
                addresses=(f"10.77.{1 + (number >> 8)}.{number & 255}",),
                security_groups=(self.groups[PEOPLE],),
            )
            for number in range(site.members - 1)
        ]
        records = [Record(type=port.type, id=port.id, writer=CLI, body=encode(port)) for port in crowd]
        self._ask(lambda client: client.batch(records))

    def _ask(self, question: Callable[[Client], Awaitable[Answer]]) -> Answer:
        async def talk() -> Answer:
            async with Client(self._cloud.controller_url, tls=Files.at(self._cloud.pki, "client")) as client:
                return await question(client)

        return asyncio.run(talk())

    # What lets the stream in, given and taken; each answers when its time begins to count

    def rule_by_neutron(self, *, give: bool) -> float:
        if give:
            self._rule = self._api.create_security_group_rule(
                security_group_id=self.groups[RULED], direction="ingress", **ALLOWING
            ).id
        else:
            self._api.delete_security_group_rule(self._rule)
        return time.time()

    def member_by_neutron(self, *, give: bool) -> float:
        names = ("out", PEOPLE) if give else ("out",)
        self._api.update_port(self.sender, security_group_ids=[self.groups[name] for name in names])
        return time.time()

    def rule_by_controller(self, *, give: bool) -> float:
        rule = {"id": "bench-allow", "direction": "ingress", "protocol": 17, "port_min": SERVICE, "port_max": SERVICE}

        def changed(body: dict[str, Any]) -> dict[str, Any]:
            rules = [known for known in body["rules"] if known["id"] != rule["id"]]
            return {**body, "rules": [*rules, rule] if give else rules}

        return self._rewrite("security_group", self.groups[RULED], changed)

    def member_by_controller(self, *, give: bool) -> float:
        groups = [self.groups[name] for name in (("out", PEOPLE) if give else ("out",))]
        return self._rewrite("port", self.sender, lambda body: {**body, "security_groups": groups})

    def _rewrite(self, kind: str, name: str, changed: Callable[[dict[str, Any]], dict[str, Any]]) -> float:
        """Write an object in Neutron's place, with what its worker would say of it."""

        async def put(client: Client) -> float:
            record = await client.get(kind, name)
            if record is None or record.body is None:
                raise CommandError(f"{kind} {name} is not at the controller")
            sent = time.time()
            await client.put(msgspec.structs.replace(record, body=changed(record.body), stored=0))
            return sent

        return self._ask(put)

    def act(self, less: str, to: str, *, give: bool) -> float:
        """Give or take what a point is about."""
        ways: dict[tuple[str, str], Callable[..., float]] = {
            ("a rule", "neutron"): self.rule_by_neutron,
            ("a member", "neutron"): self.member_by_neutron,
            ("a rule", "controller"): self.rule_by_controller,
            ("a member", "controller"): self.member_by_controller,
        }
        return ways[less, to](give=give)

    @property
    def stream(self) -> Stream:
        return self._stream


def changing(stand: Stand, point: Point, seconds: float, spinner: Spinner | None) -> Values:
    """Milliseconds from the writer's request, or from Neutron's answer, to the last datagram that arrived."""
    del seconds, spinner
    cloud = stand.contender
    if not isinstance(cloud, HeadraceCloud):
        raise SetupError(f"{cloud.name} has no controller")
    less, to = str(point.parameters["less"]), str(point.parameters["written to"])
    took = []
    for _ in range(CHANGES):
        cloud.act(less, to, give=True)
        cloud.stream.flows()
        time.sleep(PAUSE_S)
        begun = cloud.act(less, to, give=False)
        took.append((cloud.stream.ended() - begun) * 1e3)
    took.sort()
    return {"p50": took[len(took) // 2], "p99": took[int(len(took) * 0.99)], "slowest": took[-1]}
