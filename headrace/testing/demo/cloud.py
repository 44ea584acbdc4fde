"""The cloud that the demo runs: Neutron, the controller, and two hosts with an agent each.

::

    root namespace          Neutron API, its database, the controller
      |        |            management, one veth a host (198.18.N.1 -> .2, .3)
    compute-1  compute-2    namespaces; an agent in each
      up0 ====== up0        the underlay, 192.0.2.1 and .2
"""

from __future__ import annotations

import secrets
import shlex
import sys
from pathlib import Path
from typing import Any

from headrace.controller.identity import Authority
from headrace.errors import Unavailable
from headrace.testing.controller import STARTED
from headrace.testing.demo.sight import Sight
from headrace.testing.topology import Namespace, Process, Topology, run
from headrace.testing.wait import wait_until

HOSTS = ("compute-1", "compute-2")
UPLINK = "up0"
PROGRAMS = Path(sys.executable).parent
HEADRACE = PROGRAMS / "headrace"
READY = "READY "
"""What the development Neutron prints before its URL."""

REACHED = " reached"
"""What an agent logs of its controller."""

ADMIN = "admin,manager,member,reader,service"
AGENTS = 30.0
PATIENCE = 90.0
"""Seconds for Neutron to start on a busy machine; ten are usual."""


class Host:
    """One hypervisor: a namespace, its agent, and a look into its datapath."""

    def __init__(self, name: str, namespace: Namespace, config: Path, sight: Sight) -> None:
        self.name = name
        self.namespace = namespace
        self.config = config
        self.sight = sight
        self.agent: Process | None = None

    def start(self) -> None:
        """Start the agent."""
        self.agent = self.namespace.popen([str(HEADRACE), "agent", "--config", str(self.config)])

    def headrace(self, *words: str) -> str:
        """Run a command that looks at this host; returns what it printed."""
        return self.namespace.run([str(HEADRACE), *words, "--config", str(self.config)]).stdout

    def reached(self) -> bool:
        """Whether the agent has its controller. Raises with its last words if it has ended."""
        if self.agent is None or self.agent.poll() is not None:
            said = self.agent.output()[-2000:] if self.agent else "it was not started"
            raise Unavailable(f"the agent of {self.name} has ended: {said}")
        return REACHED in self.agent.output()


class Cloud:
    """Everything but the workloads. ``topology`` owns it all."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.directory = topology.directory
        self.pki = self.directory / "pki"
        self.controller_url = ""
        self.neutron_url = ""
        self.hosts: dict[str, Host] = {}
        self._authority: Authority | None = None
        self._controller: Process | None = None
        self._neutron: Process | None = None
        self._management = ""

    def start_controller(self) -> None:
        """Certificates for everyone, the management network, and the controller on it."""
        self._management = free_prefix()
        for number, name in enumerate(HOSTS, 2):
            self._manage(self.topology.host(name), number)
        address = f"{self._management}.1"
        self._authority = Authority.create(self.pki)
        self._authority.issue(self.pki, "controller", "controller", "controller", [address])
        self._authority.issue(self.pki, "client", "operator", "cli")
        self._authority.issue(self.pki, "neutron", "writer", "neutron")
        config = self.directory / "controller.toml"
        lines = [f'listen = "{address}:0"', f'store = "sqlite:{self.directory / "state.db"}"']
        config.write_text("\n".join([*lines, f'certificates = "{self.pki}"']) + "\n")
        command = [str(HEADRACE), "controller", "--config", str(config)]
        self._controller = self.topology.start(command, "controller")
        self.controller_url = said(self._controller, STARTED, "the controller", 30)

    def _manage(self, host: Namespace, number: int) -> None:
        """A veth between the root namespace and a host's; every root end has the same address."""
        device = f"{self.topology.prefix}m{number}"
        own, peer = f"{self._management}.1", f"{self._management}.{number}"
        run(["ip", "link", "add", device, "type", "veth", "peer", "name", "mgmt0", "netns", host.name])
        self.topology.on_exit(run, ["ip", "link", "delete", device])
        run(["ip", "address", "add", own, "peer", peer, "dev", device])
        run(["ip", "link", "set", device, "up"])
        run(["ip", "-n", host.name, "address", "add", peer, "peer", own, "dev", "mgmt0"])
        run(["ip", "-n", host.name, "link", "set", "mgmt0", "up"])

    def start_neutron(self, *settings: str, worker: str = "thread") -> None:
        """Start the real API server on a database of its own; `wait_for_neutron` waits until it answers.

        ``settings``: more of its configuration, as ``quotas.quota_port=-1``. ``worker``: as devserver has it.
        """
        command = [sys.executable, "-W", "ignore", "-m", "headrace.neutron.devserver", "--port", "0"]
        command += ["--dir", str(self.directory / "neutron"), "--controller", self.controller_url, "--worker", worker]
        names = {"ca": "ca.crt", "certificate": "neutron.crt", "key": "neutron.key"}
        for option, file in names.items():
            command += ["--set", f"headrace.{option}={self.pki / file}"]
        for setting in settings:
            command += ["--set", setting]
        self._neutron = self.topology.start(command, "neutron")

    def wait_for_neutron(self) -> None:
        """Return when the API answers."""
        assert self._neutron is not None
        self.neutron_url = said(self._neutron, READY, "Neutron", PATIENCE)

    def start_hosts(self) -> None:
        """Two hosts joined by an underlay, with an identity and an agent each."""
        one, two = (self.topology.host(name) for name in HOSTS)
        self.topology.link(one, UPLINK, two, UPLINK, a_addresses=["192.0.2.1/24"], b_addresses=["192.0.2.2/24"])
        for name in HOSTS:
            self.hosts[name] = self._host(name)
            self.hosts[name].start()
        for host in self.hosts.values():
            wait_until(host.reached, AGENTS, f"the agent of {host.name} to start")

    def _host(self, name: str) -> Host:
        assert self._authority is not None
        home = self.directory / name
        self._authority.issue(home / "pki", "host", "host", name)
        bpf = self.topology.bpffs(home / "bpf") / "headrace"
        config = home / "agent.toml"
        lines = {
            "host": name,
            "controller": self.controller_url,
            "certificates": home / "pki",
            "bpf": bpf,
            "run": home / "run",
            "cache": home / "cache",
        }
        text = [f'{key} = "{value}"' for key, value in lines.items()]
        config.write_text("\n".join([*text, f'uplinks = ["{UPLINK}"]', "connections = 65536"]) + "\n")
        return Host(name, self.topology.host(name), config, Sight(bpf, home / "run"))

    def project(self, name: str, roles: str = "member,reader") -> Any:
        """The network part of an openstacksdk connection, as a member of a project."""
        import openstack

        connection = openstack.connection.Connection(
            auth_type="none",
            auth={"endpoint": self.neutron_url},
            network_endpoint_override=self.neutron_url,
            region_name="demo",
        )
        connection.session.session.trust_env = False  # loopback is not reached by a proxy
        network = connection.network
        network.additional_headers = {"X-User-Id": name, "X-Project-Id": name, "X-Roles": roles}
        return network

    def admin(self) -> Any:
        """The same as whoever may bind ports to hosts: Nova, an operator."""
        return self.project("admin", ADMIN)

    def headrace(self, *words: str) -> str:
        """Run a command that asks the controller, as its operator; returns what it printed."""
        environment = {"HEADRACE_CONTROLLER": self.controller_url, "HEADRACE_CERTIFICATES": str(self.pki)}
        command = ["env", *(f"{name}={value}" for name, value in environment.items())]
        done = run([*command, str(HEADRACE), *words], check=False)
        return done.stdout + done.stderr


def said(process: Process, words: str, who: str, patience: float) -> str:
    """What a process prints after these words; raises with its last ones when it ends before."""
    wait_until(lambda: words in process.output() or process.poll() is not None, patience, f"{who} to start")
    if process.poll() is not None:
        raise Unavailable(f"{who} ended with status {process.returncode}: {process.output()[-2000:]}")
    return process.output().partition(words)[2].split()[0]


def free_prefix() -> str:
    """Three octets of a /24 in 198.18.0.0/15 (RFC 2544) to which this machine has no route of its own."""
    while True:
        prefix = f"198.{18 + secrets.randbelow(2)}.{secrets.randbelow(256)}"
        if not run(shlex.split(f"ip route show table all root {prefix}.0/24")).stdout:
            return prefix
