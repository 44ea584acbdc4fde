"""Two hosts with a workload each, before any contender connects them: the same for everyone.

::

    workload a            host a                          host b            workload b
    eth0 10.77.0.1 ====== tapbench-a    uplink ====== uplink    tapbench-b ====== eth0 10.77.0.2
         fd77::1                   192.168.77.1        192.168.77.2                    fd77::2
                                     or fd00::1        or fd00::2

Each box is a network namespace. ``====`` is a veth pair or, with ``kind="tap"`` and for the ports only, a tap on each
side with a relay between (as a VM without vhost has it).
Neighbours are set statically on both workloads, so that no contender is judged by its ARP.
"""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self

from bench.build import program
from bench.journal import JOURNAL, Undo
from bench.process import CommandError, Daemon, SetupError, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

WORKLOAD_MTU = 1450
"""Octets of the largest IP packet; what Neutron gives a VXLAN network on a 1500-octet underlay."""

UNDERLAY_MTU = 1550
"""Room for every wire's headers, so that all carry the same packets."""

WHOLE = ("tso", "gso", "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation", "tx-gre-segmentation",
         "tx-gre-csum-segmentation")  # fmt: skip
"""By which a veth's super-packets reach its other end as they are."""

Kind = Literal["veth", "tap"]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What plays the VM or container."""

    namespace: str
    mac: str
    ipv4: str
    ipv6: str
    device: str = "eth0"


@dataclass(frozen=True, kw_only=True)
class Host:
    """A hypervisor: a port towards its workload, an uplink towards the other host."""

    name: str
    namespace: str
    uplink_mac: str
    underlay: str
    underlay_length: int
    workload: Workload
    uplink: str = "uplink"

    @property
    def port_id(self) -> str:
        return f"bench-{self.name}"

    @property
    def port(self) -> str:
        """Neutron's name for the device of this port: tap<port id[:11]>."""
        return f"tap{self.port_id[:11]}"


@dataclass
class Wiring:
    """Owns and removes exactly what it made; names carry a random prefix."""

    kind: Kind = "veth"
    underlay: Literal[4, 6] = 4
    cut: bool = False
    prefix: str = field(default_factory=lambda: f"hrb{secrets.token_hex(2)}")

    def __post_init__(self) -> None:
        self.a = self._host("a", 1)
        self.b = self._host("b", 2)
        self._merging = True
        self._relays: list[Daemon] = []
        self._namespaces: list[Undo] = []

    def _host(self, name: str, number: int) -> Host:
        return Host(
            name=name,
            namespace=f"{self.prefix}-{name}",
            uplink_mac=f"02:00:00:77:00:{number:02x}",
            underlay=f"192.168.77.{number}" if self.underlay == 4 else f"fd00::{number}",
            underlay_length=24 if self.underlay == 4 else 64,
            workload=Workload(
                namespace=f"{self.prefix}-w{name}",
                mac=f"fa:16:3e:77:00:{number:02x}",
                ipv4=f"10.77.0.{number}",
                ipv6=f"fd77::{number}",
            ),
        )

    @property
    def hosts(self) -> tuple[Host, Host]:
        return self.a, self.b

    def other(self, host: Host) -> Host:
        return self.b if host is self.a else self.a

    def __enter__(self) -> Self:
        try:
            self.build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def build(self) -> None:
        for host in self.hosts:
            for namespace in (host.namespace, host.workload.namespace):
                # First, so that close() removes what an interrupt leaves half made.
                self._namespaces.append(JOURNAL.note(Undo("netns", namespace)))
                run("ip", "netns", "add", namespace)
                quiet(namespace)
        one, two = self.hosts
        ends = [f"{host.uplink} mtu {UNDERLAY_MTU} address {host.uplink_mac}" for host in self.hosts]
        ip(one, f"link add {ends[0]} type veth peer name {ends[1]} netns {two.namespace}")
        for host in self.hosts:
            ip(host, f"addr add {host.underlay}/{host.underlay_length} dev {host.uplink}")
            ip(host, f"link set {host.uplink} up")
            self._plug(host)
            self._address(host.workload, self.other(host).workload)
        for host in self.hosts:
            if self.cut:
                off = (word for feature in WHOLE for word in (feature, "off"))
                run("ethtool", "-K", host.uplink, *off, namespace=host.namespace)
            self.merge(host, on=True)
            if self.kind == "veth":
                gro(host.workload.namespace, host.workload.device, on=True)

    def _plug(self, host: Host) -> None:
        work = host.workload
        if self.kind == "tap":
            relay = Daemon(program("relay"), f"/run/netns/{host.namespace}", host.port,
                           f"/run/netns/{work.namespace}", work.device, talks=True)  # fmt: skip
            self._relays.append(relay)
            if relay.ask("ready") != "ready\n":
                raise SetupError(f"relay of {host.port}: {relay.last_words()}")
            ip(work, f"link set {work.device} address {work.mac}")
        else:
            ip(host, f"link add {host.port} type veth"
                     f" peer name {work.device} address {work.mac} netns {work.namespace}")  # fmt: skip
        ip(host, f"link set {host.port} mtu {WORKLOAD_MTU} up")

    def _address(self, mine: Workload, other: Workload) -> None:
        ip(mine, f"link set {mine.device} mtu {WORKLOAD_MTU} up")
        ip(mine, f"addr add {mine.ipv4}/24 dev {mine.device}")
        ip(mine, f"addr add {mine.ipv6}/64 dev {mine.device} nodad")
        for address in (other.ipv4, other.ipv6):
            ip(mine, f"neigh replace {address} lladdr {other.mac} dev {mine.device} nud permanent")

    def offloads_off(self) -> None:
        """For datapaths that see frames without their metadata: complete checksums, no super-packets."""
        for host in self.hosts:
            run("ethtool", "-K", host.workload.device, "tx", "off", "tso", "off", "gso", "off",
                namespace=host.workload.namespace)  # fmt: skip

    def merge(self, host: Host, *, on: bool) -> None:
        """Whether a host's devices rebuild super-packets from what they receive."""
        gro(host.namespace, host.uplink, on=on)
        if self.kind == "veth":
            gro(host.namespace, host.port, on=on)

    def never_merge(self) -> None:
        """For datapaths that read a host's devices by sockets and cannot take super-packets."""
        self._merging = False
        for host in self.hosts:
            self.merge(host, on=False)

    @contextlib.contextmanager
    def accepting_frames(self) -> Iterator[None]:
        """Within, the ports take XDP frames from the load."""
        if self._merging:
            yield
            return
        try:
            for host in self.hosts:
                gro(host.namespace, host.port, on=True)
            yield
        finally:
            for host in self.hosts:
                gro(host.namespace, host.port, on=False)

    def join_directly(self) -> None:
        """Take the hosts out: one veth pair from workload to workload."""
        for host in self.hosts:
            ip(host, f"link del {host.port}")
        one, two = self.a.workload, self.b.workload
        ip(one, f"link add {one.device} address {one.mac} type veth"
                f" peer name {two.device} address {two.mac} netns {two.namespace}")  # fmt: skip
        for mine, other in ((one, two), (two, one)):
            self._address(mine, other)
        for work in (one, two):
            gro(work.namespace, work.device, on=True)

    def check(self) -> None:
        """Raise unless each workload reaches the other."""
        for version, address in (("-4", self.b.workload.ipv4), ("-6", self.b.workload.ipv6)):
            try:
                run("busybox", "ping", version, "-c", "3", "-i", "0.2", "-W", "1", "-q", address,
                    namespace=self.a.workload.namespace)  # fmt: skip
            except CommandError as error:
                raise SetupError(f"workload b ({address}) does not answer workload a: {error}") from error

    def close(self) -> None:
        """Also after a half-done ``build``."""
        for relay in self._relays:
            relay.stop()
        self._relays.clear()
        while self._namespaces:
            JOURNAL.undo(self._namespaces.pop())


def ip(where: Host | Workload, command: str) -> str:
    return run("ip", "-n", where.namespace, *command.split())


def gro(namespace: str, device: str, *, on: bool) -> None:
    """Let XDP frames (our load, a redirect) enter this end of a veth: it must run NAPI, which GRO makes it do.

    The other end's XDP features follow only if this one is up already (seen on Linux 6.18).
    """
    run("ethtool", "-K", device, "gro", "on" if on else "off", namespace=namespace)


def quiet(namespace: str) -> None:
    """No chatter of the kernel's own, room for many connections, and lo up."""
    run("ip", "-n", namespace, "link", "set", "lo", "up")
    settings = {
        "net.ipv6.conf.all.accept_dad": "0",
        "net.ipv6.conf.default.accept_dad": "0",
        "net.ipv6.conf.default.accept_ra": "0",
        "net.ipv6.conf.default.router_solicitations": "0",
        "net.ipv4.ip_local_port_range": "1024 65535",
        "net.core.somaxconn": "4096",
    }
    run("sysctl", "-q", *(f"{name}={value}" for name, value in settings.items()), namespace=namespace)
