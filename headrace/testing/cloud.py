"""A small cloud of namespaces: hosts with real agents on one underlay, a controller, and workloads on real devices.

    with Topology() as topology, Cloud(topology) as cloud:
        cloud.put(network("blue"), group("g", *ANY), port("a", "blue", 1, "g"), port("b", "blue", 2, "g", host="h2"))
        assert ping(cloud["a"], cloud["b"].address(4))

What is put is in the datapath of every host when ``put`` returns: the agents have acknowledged it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, cast

from headrace import abi
from headrace.agent.names import Names, read_names
from headrace.controller.api import PORT
from headrace.controller.client import Client
from headrace.controller.config import ControllerConfig
from headrace.controller.desired import CLI, encode
from headrace.controller.identity import Authority, Files
from headrace.datapath.reader import Reader
from headrace.model import Network, Object, Port, PortStatus, Record
from headrace.testing.build import Build
from headrace.testing.controller import STARTED, controller_thread
from headrace.testing.topology import CommandFailed, Namespace, Process, Topology, run
from headrace.testing.wait import async_wait_until, wait_until

UNDERLAY = {4: "192.0.2.{}/24", 6: "2001:db8::{:x}/64"}
CONTROLLER = 254
"""The last part of the fabric's addresses."""
HEARTBEAT = 0.1
"""Of the controller, seconds: hosts that a change does not concern acknowledge it with this delay."""
PATIENCE = 40.0
"""Seconds that a machine with much to do may take to start an agent, or to apply a change."""
QUIET = ("router_solicitations", "accept_ra")
PREFIX = {4: 24, 6: 64}
HEADRACE = (sys.executable, "-m", "headrace")

Answer = TypeVar("Answer")


class Workload:
    """A namespace behind a port: ``eth0`` there, the port's device on its host."""

    def __init__(self, topology: Topology, host: Namespace, port: Port, mtu: int) -> None:
        self.port = port
        self.host = host
        self.namespace = topology.host(f"w-{port.id}")
        self.mtu = mtu
        for name in QUIET:
            self.namespace.sysctl(f"net.ipv6.conf.default.{name}", 0)
        if not any(":" in address for address in port.addresses):
            self.namespace.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
        self.plug()

    def plug(self) -> None:
        """Make the device (anew), and give it the port's addresses."""
        ns, port = self.namespace, self.port
        pair = f"name {port.device_name} mtu {self.mtu} netns {self.host.name} type veth"
        pair += f" peer name eth0 mtu {self.mtu} address {port.mac} netns {ns.name}"
        run(["ip", "link", "add", *pair.split()])
        lines = []
        for address in port.addresses:
            family = ipaddress.ip_address(address).version
            lines.append(f"address add {address}/{PREFIX[family]} dev eth0" + (" nodad" if family == 6 else ""))
        if (
            port.hook == "xdp"
        ):  # what XDP asks of a workload: whole checksums, no super-packets, frames taken by polling
            ns.run("ethtool -K eth0 tx off tso off gso off gro on")
        run(["ip", "-n", ns.name, "-batch", "-"], stdin="\n".join([*lines, "link set eth0 up"]))

    def unplug(self) -> None:
        """Remove the device."""
        run(["ip", "-n", self.host.name, "link", "delete", self.port.device_name])

    def address(self, family: int = 4) -> str:
        """The port's first address of an IP version."""
        return next(text for text in self.port.addresses if ipaddress.ip_address(text).version == family)


class CloudHost:
    """A host of the cloud: its namespace, its agent, and its datapath to look into."""

    def __init__(self, topology: Topology, name: str, config: str) -> None:
        self.name = name
        self.namespace = topology.host(name)
        self.bpf = topology.bpffs() / "headrace"
        self.directory = topology.directory / name
        self.directory.mkdir()
        self.config = self.directory / "agent.toml"
        places = {"bpf": self.bpf, "run": self.directory / "run", "cache": self.directory / "cache"}
        lines = [f'host = "{name}"', *(f'{key} = "{path}"' for key, path in places.items()), 'uplinks = ["uplink"]']
        self.config.write_text("\n".join([*lines, config]) + "\n")
        self.agent: Process | None = None
        self.started = 0.0
        self._reader: Reader | None = None

    def start(self, build: Build | None = None, *, env: Mapping[str, str] | None = None) -> None:
        """Start the agent, of another build if one is given; it may run already elsewhere only by mistake."""
        self.started = time.time()
        command = [*HEADRACE, "agent", "--config", str(self.config)]
        self.agent = self.namespace.popen(command, env={**(build.environment if build else {}), **(env or {})})
        self.close()  # its tables may be others

    def kill(self) -> None:
        """End the agent by SIGKILL: it tidies nothing up."""
        if self.agent:
            self.agent.kill()
            self.agent.wait()
            self.agent = None

    def stop(self) -> int:
        """End the agent as systemd does; its exit status."""
        process, self.agent = self.agent, None
        return process.stop() if process else 0

    @property
    def names(self) -> Names:
        """What the agent says the datapath's numbers mean."""
        return read_names(self.directory / "run")

    @property
    def datapath(self) -> Reader:
        """The host's tables."""
        if self._reader is None:
            self._reader = Reader(self.bpf).open()
        return self._reader

    def close(self) -> None:
        """Let go of the tables."""
        if self._reader:
            self._reader.close()
            self._reader = None

    def index(self, port: str) -> int:
        """A port's index in the tables."""
        return next(int(index) for index, known in self.names.ports.items() if known.id == port)

    def reasons(self, port: str | None = None) -> Counter[str]:
        """Packets by reason: a port's, or those on the uplink that had no port yet."""
        counts = self.datapath.port_reasons(self.index(port) if port else 0)
        return Counter({reason.name: count for reason, count in counts.items()})

    def counters(self, port: str) -> abi.PortCounters:
        """A port's packets and octets."""
        return self.datapath.port_counters(self.index(port))

    def connections(self) -> list[abi.Conn]:
        """What the host remembers."""
        return [conn for _, conn in self.datapath.connections()]

    def show(self, *words: str, build: Build | None = None) -> list[dict[str, Any]]:
        """Answer of a ``headrace`` command on this host, by its JSON; of another build's if one is given."""
        variables = [f"{name}={value}" for name, value in build.environment.items()] if build else []
        command = ["env", *variables, *HEADRACE, *words, "--run", str(self.directory / "run"), "-o", "json"]
        answer: list[dict[str, Any]] = json.loads(self.namespace.run(command).stdout)
        return answer


class Cloud:
    """Hosts on one underlay, each with an agent that follows the controller in the fabric's namespace.

    ``families``: IP versions of the underlay; ``settings``: more lines of every agent's configuration; ``secure``: the
    controller is a process of its own with mutual TLS, as in production, instead of a thread of the test;
    ``store``: where its database is.
    """

    def __init__(
        self,
        topology: Topology,
        hosts: Sequence[str] = ("h1", "h2"),
        *,
        families: Sequence[int] = (4, 6),
        mtu: int = 1500,
        settings: str = "",
        secure: bool = False,
        store: Path | None = None,
    ) -> None:
        self.topology = topology
        self.families = families
        self.mtu = mtu
        self.fabric = topology.host("fabric")
        self.objects: dict[tuple[str, str], Object] = {}
        self.workloads: dict[str, Workload] = {}
        self.plugged: set[str] = set()
        """Ports whose devices the test makes itself."""
        self.hosts: dict[str, CloudHost] = {}
        self.controller: Process | None = None
        self.tls: Files | None = None
        self._names = hosts
        self._settings = settings
        self._secure = secure
        self.store = (store or topology.directory) / "store.db"
        self._exit = contextlib.ExitStack()
        self._pki = topology.directory / "pki"
        self._address = self.underlay(CONTROLLER)[0].partition("/")[0]
        self._listen = f"[{self._address}]:{PORT}" if ":" in self._address else f"{self._address}:{PORT}"
        self.url = f"{'https' if secure else 'http'}://{self._listen}"

    def __enter__(self) -> Self:
        unfiltered(self.fabric)
        run(["ip", "-n", self.fabric.name, "link", "add", "fabric", "mtu", str(self.mtu), "type", "bridge"])
        run(["ip", "-n", self.fabric.name, "link", "set", "fabric", "up"])
        for address in self.underlay(CONTROLLER):
            nodad = ["nodad"] if ":" in address else []
            run(["ip", "-n", self.fabric.name, "address", "add", address, "dev", "fabric", *nodad])
        if self._secure:
            self._certify()
            self.start_controller()
        else:
            config = ControllerConfig(listen=self._listen, store=f"sqlite:{self.store}", tls=False)
            with self.fabric.enter():  # the thread is born there
                self._exit.enter_context(controller_thread(config, heartbeat=HEARTBEAT))
        for number, name in enumerate(self._names, 1):
            self.hosts[name] = self._host(name, number)
            self.hosts[name].start()
        self.settle()  # from here on every host is known with its tunnel endpoints
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts.values():
            host.close()
            host.stop()
        self._exit.close()

    def __getitem__(self, port: str) -> Workload:
        return self.workloads[port]

    def underlay(self, number: int) -> list[str]:
        """Addresses of a machine on the underlay, with their prefix lengths."""
        return [UNDERLAY[family].format(number) for family in self.families]

    def _host(self, name: str, number: int) -> CloudHost:
        lines = [f'controller = "{self.url}"', self._settings]
        if self._secure:
            identity = self.topology.directory / f"identity-{name}"
            self.headrace("host", "enroll", name, "--directory", str(identity))
            lines.append(f'certificates = "{identity}"')
        host = CloudHost(self.topology, name, "\n".join(lines))
        self.join(host.namespace, "uplink", number)
        if 'uplink_hook = "xdp"' in self._settings:
            host.namespace.run("ethtool -K uplink rxvlan off rx-vlan-stag-hw-parse off")
        return host

    # The controller's process

    def _certify(self) -> None:
        authority = Authority.create(self._pki)
        authority.issue(self._pki, "controller", "controller", "localhost", [self._address])
        authority.issue(self._pki, "client", "operator", "cli")
        self.tls = Files.at(self._pki, "client")
        config = f'listen = "{self._listen}"\nstore = "sqlite:{self.store}"\n'
        (self.topology.directory / "controller.toml").write_text(config + f'certificates = "{self._pki}"\n')

    def start_controller(self, *, env: Mapping[str, str] | None = None) -> None:
        """Start it, where it is a process."""
        config = str(self.topology.directory / "controller.toml")
        self.controller = process = self.fabric.popen([*HEADRACE, "controller", "--config", config], env=env)
        wait_until(lambda: STARTED in process.output() or process.poll() is not None, PATIENCE, "the controller serves")
        assert process.poll() is None, process.output()

    def kill_controller(self) -> None:
        """End it by SIGKILL."""
        assert self.controller
        self.controller.kill()
        self.controller.wait()

    def headrace(self, *words: str) -> str:
        """What an operator's ``headrace`` command prints, run beside the controller."""
        command = [*HEADRACE, *words, "--controller", self.url, "--certificates", str(self._pki)]
        return self.fabric.run(command).stdout

    def join(self, namespace: Namespace, device: str, number: int) -> None:
        """Connect any machine to the underlay."""
        run(["ip", "-n", namespace.name, "link", "set", "lo", "up"])
        self.attach(namespace, device)
        lines = [f"address add {address} dev {device}" for address in self.underlay(number)]
        run(["ip", "-n", namespace.name, "-batch", "-"], stdin="\n".join([*lines, f"link set {device} up"]))

    def attach(self, namespace: Namespace, device: str) -> None:
        """Make a device that leads to the underlay, without addresses."""
        pair = f"name {device} mtu {self.mtu} netns {namespace.name} type veth"
        pair += f" peer name {namespace.host} mtu {self.mtu} netns {self.fabric.name}"
        run(["ip", "link", "add", *pair.split()])
        run(["ip", "-n", self.fabric.name, "link", "set", namespace.host, "master", "fabric", "up"])

    # Desired state

    def put(self, *objects: Object) -> None:
        """Add or change objects; returns when every running agent has them in its datapath."""
        records = [Record(type=item.type, id=item.id, writer=CLI, body=encode(item)) for item in objects]
        self.objects |= {(item.type, item.id): item for item in objects}
        for item in objects:
            known = self.plugged | self.workloads.keys()
            own = isinstance(item, Port) and item.parent is None  # a sub-port's device is its parent's
            if isinstance(item, Port) and own and item.host in self.hosts and item.id not in known:
                network = self.objects["network", item.network]
                assert isinstance(network, Network)
                host = self.hosts[item.host].namespace
                self.workloads[item.id] = Workload(self.topology, host, item, network.mtu)
        self.send(records)

    def delete(self, *objects: Object) -> None:
        """Remove objects, and ports' devices; returns when every running agent has."""
        for item in objects:
            del self.objects[item.type, item.id]
        self.send([Record(type=item.type, id=item.id, writer=CLI) for item in reversed(objects)])
        self._unplug(objects)

    def forget(self, *objects: Object) -> None:
        """Remove objects without waiting."""
        records = [Record(type=item.type, id=item.id, writer=CLI) for item in reversed(objects)]
        self.ask(lambda client: client.batch(records))
        for item in objects:
            self.objects.pop((item.type, item.id), None)
        self._unplug(objects)

    def _unplug(self, objects: Sequence[Object]) -> None:
        for item in objects:
            if isinstance(item, Port) and (workload := self.workloads.pop(item.id, None)):
                with contextlib.suppress(CommandFailed):  # the test may have
                    workload.unplug()

    def send(self, records: Sequence[Record]) -> None:
        """Write to the controller and wait for the agents."""

        async def question(client: Client) -> None:
            answer = await client.batch(records)
            await self._applied(client, answer.epoch, answer.revision)

        self.ask(question)

    def says(self, port: str, state: str) -> PortStatus:
        """Wait until a port's host says that it is in a state; what it says."""

        def told() -> PortStatus | None:
            statuses = self.ask(lambda client: client.statuses())
            known = (one for status in statuses for one in status.ports)
            return next((one for one in known if (one.id, one.state) == (port, state)), None)

        return cast("PortStatus", wait_until(told, 10, f"port {port} is {state}"))

    def settle(self) -> None:
        """Wait until every running agent has the controller's latest."""

        async def question(client: Client) -> None:
            health = await client.health()
            await self._applied(client, health.epoch, health.revision)

        self.ask(question)

    def ask(self, question: Callable[[Client], Awaitable[Answer]]) -> Answer:
        """Put a question to the controller, from the fabric."""

        async def answer() -> Answer:
            async with Client(self.url, tls=self.tls) as client:
                return await question(client)

        with self.fabric.enter():
            return asyncio.run(answer())

    async def _applied(self, client: Client, epoch: str, revision: int) -> None:
        missing: list[str] = []

        async def complete() -> bool:
            missing[:] = [text async for text in self._missing(client, epoch, revision)]
            return not missing

        try:
            await async_wait_until(complete, PATIENCE)
        except TimeoutError:
            logs = (f"{host.name}: {host.agent.output()[-3000:]}" for host in self.hosts.values() if host.agent)
            raise TimeoutError("\n".join([*missing, *logs])) from None

    async def _missing(self, client: Client, epoch: str, revision: int):  # type: ignore[no-untyped-def] # noqa: ANN202
        statuses = {status.id: status for status in await client.statuses()}
        running = [host for host in self.hosts.values() if host.agent]
        for host in running:
            status = statuses.get(host.name)
            if status is None or status.time < host.started:  # the word of an agent that is gone
                yield f"the agent of host {host.name} has said nothing yet"
                continue
            if status.epoch != epoch or status.applied < revision:
                yield f"host {host.name} has not applied revision {revision} of {epoch}: {status}"
                continue
            said = {port.id: port for port in status.ports}
            for item in self.objects.values():
                if isinstance(item, Port) and item.host == host.name and item.admin_up:
                    told = said.get(item.id)
                    if told is None or told.state != "up":
                        yield f"port {item.id} on {host.name}: {told}"


def unfiltered(namespace: Namespace) -> None:
    """Keep netfilter (br_netfilter) from judging what passes the bridges of a namespace."""
    for name in ("iptables", "ip6tables", "arptables"):
        with contextlib.suppress(FileNotFoundError):
            namespace.sysctl(f"net.bridge.bridge-nf-call-{name}", 0)


@contextlib.contextmanager
def cloud(hosts: Sequence[str] = ("h1", "h2"), **options: object) -> Iterator[Cloud]:
    """A cloud with a topology of its own."""
    with Topology() as topology, Cloud(topology, hosts, **options) as made:  # type: ignore[arg-type]
        yield made
