"""A real Neutron server, a real controller, and hosts that are played: no datapath runs in these tests.

A played host speaks to the controller as the agent does (HostStatus through its client); the demo has the real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import openstack
import pymysql

from headrace.controller.client import Client
from headrace.controller.config import ControllerConfig
from headrace.controller.identity import Authority
from headrace.controller.serve import running
from headrace.errors import HeadraceError
from headrace.model import TYPES, HostStatus, PortStatus, Record
from headrace.testing.wait import wait_until

T = TypeVar("T")

SETTINGS = {
    "headrace.ledger_interval": "3",
    "headrace.lease": "2",
    "DEFAULT.agent_down_time": "6",
    "DEFAULT.debug": "false",
    "quotas.quota_port": "-1",
    "quotas.quota_network": "-1",
    "quotas.quota_subnet": "-1",
    "quotas.quota_security_group": "-1",
    "quotas.quota_security_group_rule": "-1",
}
"""Short intervals, so that what they bound is seen to happen."""

SOON = 15.0
"""Seconds for what takes a fraction of one on a quiet machine."""

START = 60.0
"""Seconds for a process of Neutron to start; it takes ten when nothing else runs."""


class Controller:
    """The real controller in a thread, with mutual TLS, on a TCP port that it keeps when started again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        authority = Authority.create(directory)
        authority.issue(directory, "controller", "controller", "controller", ["127.0.0.1"])
        self.operator = authority.issue(directory, "client", "operator", "tester")
        self.neutron = authority.issue(directory, "neutron", "writer", "neutron")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), name="controller")
        self._thread.start()
        if not ready.wait(10):
            raise TimeoutError("the controller did not start")

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        config = ControllerConfig(
            listen=f"127.0.0.1:{self.port}",
            store=f"sqlite:{self.directory / 'state.db'}",
            certificates=str(self.directory),
        )
        async with running(config, heartbeat=1.0):
            ready.set()
            await self._stop.wait()

    def stop(self) -> None:
        if self._thread is None or self._loop is None or self._stop is None:
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._thread = None

    def lose_everything(self) -> None:
        """As after a disk failure: the store begins a new epoch."""
        self.stop()
        for path in self.directory.glob("state.db*"):
            path.unlink()
        self.start()

    def ask(self, question: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        """Run one conversation with the controller."""

        async def talk() -> T:
            async with Client(self.url, tls=self.operator) as client:
                return await question(client)

        return asyncio.run(talk())

    def records(self) -> dict[tuple[str, str], Record]:
        """Everything that Neutron wrote."""

        async def gather(client: Client) -> dict[tuple[str, str], Record]:
            listings = [await client.list(name) for name in TYPES]
            return {(item.type, item.id): item for listing in listings for item in listing.items}

        return {key: item for key, item in self.ask(gather).items() if item.writer == "neutron"}

    def record(self, type_name: str, identity: str) -> Record | None:
        return self.ask(lambda client: client.get(type_name, identity))

    def refusals(self) -> dict[str, str]:
        """What the plug-in says of ports that are not bound: what ``headrace port show`` reads."""
        statuses = self.ask(lambda client: client.statuses())
        return {port.id: port.reason for status in statuses if status.id == "neutron" for port in status.ports}


class Host:
    """A played host: reports like an agent, every second while alive, and at once when something changes."""

    def __init__(self, controller: Controller, name: str, **abilities: Any) -> None:
        self.name = name
        self._controller = controller
        self._abilities = abilities
        self._ports: dict[str, PortStatus] = {}
        self.behind: int | None = None
        """The revision that the host has applied, when it is not the newest."""
        self._dead = threading.Event()
        self._thread = threading.Thread(target=self._heartbeat, name=f"host {name}")

    def __enter__(self) -> Self:
        self.report()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()

    def die(self) -> None:
        """Stop reporting."""
        self._dead.set()
        if self._thread.is_alive():
            self._thread.join()

    def report(self, *ports: PortStatus, **abilities: Any) -> None:
        """Say something new: ports by state, or abilities; it stands until said otherwise."""
        self._ports.update({port.id: port for port in ports})
        self._abilities.update(abilities)
        self._controller.ask(self._put)

    def forget(self, *ports: str) -> None:
        """Stop mentioning ports: the host has none such any more."""
        for port in ports:
            self._ports.pop(port, None)
        self._controller.ask(self._put)

    async def _put(self, client: Client) -> None:
        # What an agent says after applying everything that there is.
        health = await client.health()
        await client.put_status(
            HostStatus(
                id=self.name,
                epoch=health.epoch,
                applied=health.revision if self.behind is None else self.behind,
                ports=tuple(self._ports.values()),
                **self._abilities,
            )
        )

    def _heartbeat(self) -> None:
        while not self._dead.wait(1):
            with contextlib.suppress(HeadraceError):
                self._controller.ask(self._put)


def up(port: str) -> PortStatus:
    return PortStatus(id=port, state="up")


def down(port: str) -> PortStatus:
    return PortStatus(id=port, state="down", reason="device is gone")


class Neutron:
    """``headrace.neutron.devserver`` in a process of its own, with the worker under neutron-periodic-workers."""

    def __init__(self, directory: Path, controller: Controller, *, worker: str = "process", database: str = "") -> None:
        self.directory = directory
        self._database = database
        directory.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-W", "ignore", "-m", "headrace.neutron.devserver", "--port", "0"]
        command += ["--dir", str(directory), "--controller", controller.url, "--worker", worker]
        if database:
            command += ["--database", database]
        files = controller.neutron
        names = {"ca": files.authority, "certificate": files.certificate, "key": files.key}
        for name, value in SETTINGS.items() | {(f"headrace.{name}", path) for name, path in names.items()}:
            command += ["--set", f"{name}={value}"]
        self._log = (directory / "devserver.log").open("ab")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, text=True)
        self.url = ""
        self._worker: subprocess.Popen[bytes] | None = None

    def wait(self) -> None:
        """Return when it is ready."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("READY "):
                self.url = line.split()[1]
                return
        raise RuntimeError(f"the server did not start:\n{(self.directory / 'devserver.log').read_text()[-3000:]}")

    def stop(self) -> int:
        """End it as an operator does; returns its exit status."""
        if self._worker is not None:
            self._worker.terminate()
            self._worker.wait(20)
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(40)
        finally:
            self.process.kill()
            self.process.wait()
            self._log.close()

    def cloud(self, project: str, *, roles: str = "member,reader") -> Any:
        """A connection of openstacksdk as a member of a project."""
        connection = openstack.connection.Connection(
            auth_type="none",
            auth={"endpoint": self.url},
            network_endpoint_override=self.url,
            region_name="test",
        )
        network = connection.network
        network.additional_headers = {"X-User-Id": "tester", "X-Project-Id": project, "X-Roles": roles}
        network.retriable_status_codes = None
        return network

    def admin(self) -> Any:
        """A connection that may do everything, as Nova and operators."""
        return self.cloud("admin", roles="admin,manager,member,reader,service")

    @property
    def database(self) -> str:
        """Its database's URL."""
        return self._database or f"mysql+pymysql://root@localhost/neutron?unix_socket={self.socket}&charset=utf8"

    @property
    def socket(self) -> Path:
        return self.directory / "mariadb/my.sock"

    def execute(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run SQL behind Neutron's back."""
        connection = pymysql.connect(unix_socket=str(self.socket), user="root", database="neutron", autocommit=True)
        with connection, connection.cursor() as cursor:
            cursor.execute(statement, values)
            return list(cursor.fetchall())

    def leader(self) -> str:
        """The holder of a lease that runs, or nothing."""
        rows = self.execute("SELECT holder FROM headrace_leader WHERE until >= unix_timestamp()")
        return str(rows[0][0]) if rows else ""

    def stop_worker(self) -> None:
        """Kill neutron-periodic-workers and its children, all at once."""
        parent = int((self.directory / "periodic-workers.pid").read_text())
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        for pid in (parent, *map(int, children)):
            os.kill(pid, signal.SIGKILL)

    def start_worker(self) -> None:
        """Start another, which ends with this session like the first."""
        program = Path(sys.executable).with_name("neutron-periodic-workers")
        log = self.directory / "periodic-workers.log"
        command: list[str | Path] = [program, "--config-file", self.directory / "etc/neutron.conf", "--log-file", log]
        self._worker = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        (self.directory / "periodic-workers.pid").write_text(f"{self._worker.pid}\n")
        wait_until(self.leader, START, "a worker leads")

    def kill_leader(self) -> None:
        """End the leading worker's process (its name is in the lease) without giving it a chance."""
        holder = wait_until(self.leader, SOON, "a worker leads")
        os.kill(int(holder.split(":")[1]), signal.SIGKILL)


@contextlib.contextmanager
def stack(directory: Path) -> Iterator[tuple[Controller, Neutron]]:
    """Controller and Neutron, ended in every case."""
    controller = Controller(directory / "controller")
    controller.start()
    try:
        neutron = Neutron(directory / "neutron", controller)
        try:
            neutron.wait()
            wait_until(neutron.leader, START, "a worker leads")
            yield controller, neutron
        finally:
            neutron.stop()
    finally:
        controller.stop()
