"""Open vSwitch with its userspace datapath in a network namespace: a party not written here that speaks every wire.

    with Topology() as topology:
        switch = Ovs(topology.host("switch"), topology)
        switch.configure("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
        switch.flows("br0", ["priority=1,actions=NORMAL"])

Database, sockets and logs are in the topology's folder, and its daemons end with the topology: what the machine has of
Open vSwitch itself is not touched.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from headrace.errors import NotSupported
from headrace.testing.topology import Namespace, Process, Topology, run
from headrace.testing.wait import wait_until

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
DAEMON = "/usr/lib/openvswitch-switch/ovs-vswitchd"
"""Debian's without DPDK, whichever of the two is the machine's own."""
PATIENCE = 20.0


class Ovs:
    """ovsdb-server and ovs-vswitchd of one namespace, and the way to talk to them.

    Raises NotSupported where Open vSwitch is not installed.
    """

    def __init__(self, namespace: Namespace, topology: Topology) -> None:
        if not Path(DAEMON).exists():
            raise NotSupported(f"{DAEMON} is missing: install openvswitch-switch")
        self.namespace = namespace
        self.directory = topology.directory / f"ovs-{namespace.host}"
        self.directory.mkdir()
        self._environment = {f"OVS_{name}": str(self.directory) for name in ("RUNDIR", "LOGDIR", "DBDIR")}
        self._socket = self.directory / "db.sock"
        self._control = self.directory / "switch.ctl"
        self._daemons: list[Process] = []
        database = str(self.directory / "conf.db")
        run(["ovsdb-tool", "create", database, SCHEMA])
        self._start(["ovsdb-server", database, f"--remote=punix:{self._socket}"], self._socket)
        self.configure("--no-wait", "init")
        self._start([DAEMON, f"unix:{self._socket}", f"--unixctl={self._control}"], self._control)

    def configure(self, *words: str) -> str:
        """What ``ovs-vsctl`` answers; it has waited until the switch does so."""
        return self._ask("ovs-vsctl", f"--db=unix:{self._socket}", "--timeout=20", *words)

    def ask(self, *words: str) -> str:
        """What ``ovs-appctl`` answers."""
        return self._ask("ovs-appctl", "-t", str(self._control), *words)

    def flows(self, bridge: str, flows: Iterable[str]) -> None:
        """Make these the flows of a bridge, instead of those that it has."""
        text = "\n".join(flows)
        self._ask("ovs-ofctl", "-OOpenFlow15", "replace-flows", self._management(bridge), "-", stdin=f"{text}\n")

    def options(self, bridge: str, mapped: Iterable[str]) -> None:
        """Make these the options of Geneve that the flows of a bridge may name, instead of those that it knows."""
        self._ask("ovs-ofctl", "del-tlv-map", self._management(bridge))
        for text in mapped:
            self._ask("ovs-ofctl", "add-tlv-map", self._management(bridge), text)

    def show(self, bridge: str) -> str:
        """Flows and their counters, for a developer."""
        return self._ask("ovs-ofctl", "-OOpenFlow15", "dump-flows", self._management(bridge))

    def log(self) -> str:
        """What the daemons said."""
        return "".join(daemon.output() for daemon in self._daemons)

    def _management(self, bridge: str) -> str:
        return f"unix:{self.directory}/{bridge}.mgmt"

    def _ask(self, *words: str, stdin: str | None = None) -> str:
        variables = (f"{name}={value}" for name, value in self._environment.items())
        return self.namespace.run(["env", *variables, *words], stdin=stdin).stdout

    def _start(self, command: list[str], made: Path) -> None:
        process = self.namespace.popen(command, env=self._environment)
        self._daemons.append(process)
        wait_until(lambda: made.exists() or process.poll() is not None, PATIENCE, f"{command[0]} runs")
        if process.poll() is not None:
            raise NotSupported(f"{command[0]} ended at once: {process.output()[-1000:]}")
