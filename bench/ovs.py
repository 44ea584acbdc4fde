"""Open vSwitch's userspace datapath: its wires, and conntrack rules as Neutron's openvswitch firewall has them.

One daemon per host, in the host's namespace, with its own directory. The tunnel's underlay address is on the bridge
that holds the uplink, as the userspace datapath wants it; for wires that are Ethernet alone the uplink is on the
workload's bridge.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.journal import JOURNAL
from bench.ovs_wire import Way, way
from bench.process import CommandError, Daemon, SetupError, run
from bench.rules import Rule, Site, make_rules
from bench.wiring import Host, Wiring, ip

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.contender import Sink

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
PATIENCE_S = 20.0
IDLE_TIMEOUT_S = 900
CONNECTIONS = 4_000_000
PORT, TUNNEL = 1, 10
TABLE_OUT, TABLE_INTO = 10, 20
ZONE = 1


class Vswitch:
    """ovsdb-server and ovs-vswitchd of one host, and the way to talk to them."""

    def __init__(self, host: Host, daemon: str) -> None:
        self.host = host
        self.directory, self._gone = JOURNAL.directory("hrb-ovs-")
        self.environment = {f"OVS_{name}": str(self.directory) for name in ("RUNDIR", "LOGDIR", "DBDIR")}
        self.database = f"unix:{self.directory}/db.sock"
        self.control = self.directory / "switch.ctl"
        self._binary = daemon
        self._daemons: list[Daemon] = []

    def start(self, *other_config: str) -> None:
        """``other_config``: keys and values of the Open_vSwitch row, there before the switch starts."""
        place = str(self.directory / "conf.db")
        run("ovsdb-tool", "create", place, SCHEMA)
        self._spawn("ovsdb-server", place, f"--remote=p{self.database}", "--log-file")
        self._until(lambda: Path(self.database.removeprefix("unix:")).exists(), "ovsdb-server's socket")
        run("ovs-vsctl", f"--db={self.database}", "--no-wait", "init")
        if other_config:
            settings = (f"other_config:{item}" for item in other_config)
            run("ovs-vsctl", f"--db={self.database}", "--no-wait", "set", "Open_vSwitch", ".", *settings)
        self.switch = self._spawn(self._binary, self.database, "--log-file", f"--unixctl={self.control}")
        self._until(self.control.exists, "ovs-vswitchd's socket")

    def _spawn(self, *argv: str) -> Daemon:
        name = argv[0].rpartition("/")[2]
        daemon = Daemon(*argv, "-vconsole:off", namespace=self.host.namespace, log=self.directory / f"{name}.out",
                        environment=self.environment)  # fmt: skip
        self._daemons.append(daemon)
        return daemon

    def _until(self, holds: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not holds():
            if not all(daemon.alive() for daemon in self._daemons) or time.monotonic() > end:
                raise SetupError(f"ovs on {self.host.name}: no {what}: {self.log()}")
            time.sleep(0.02)

    def log(self) -> str:
        """The last of what the switch said."""
        texts = [path.read_text(errors="replace") for path in self.directory.glob("ovs-vswitchd*.[lo][ou][gt]")]
        return " ".join(texts).strip()[-600:]

    def configure(self, *words: str) -> None:
        try:
            run("ovs-vsctl", f"--db={self.database}", "-t", "20", *words, environment=self.environment)
        except CommandError as error:
            raise SetupError(f"{error}: {self.log()}") from error

    def ask(self, *words: str) -> str:
        return run("ovs-appctl", "-t", str(self.control), *words, environment=self.environment)

    def add_flows(self, bridge: str, flows: list[str]) -> None:
        run("ovs-ofctl", "-OOpenFlow15", "--bundle", "add-flows", bridge, "-",
            stdin="\n".join(flows) + "\n", environment=self.environment)  # fmt: skip

    def signal(self, number: int) -> None:
        self.switch.signal(number)

    def stop(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.signal(signal.SIGCONT)
            daemon.stop()
        self._daemons.clear()
        JOURNAL.undo(self._gone)


class Ovs:
    """The userspace datapath over AF_PACKET."""

    name = "ovs"
    sink: Sink = "xdp"
    idle_timeout: float = IDLE_TIMEOUT_S
    super_packets = False
    daemon = "/usr/lib/openvswitch-switch/ovs-vswitchd"

    def __init__(self) -> None:
        self.switches: list[Vswitch] = []

    def setup(self, wiring: Wiring, site: Site) -> None:
        self.require(self.daemon, "openvswitch-switch")
        wiring.offloads_off()
        wiring.never_merge()
        for host in wiring.hosts:
            switch = Vswitch(host, self.daemon)
            self.switches.append(switch)
            self.start(switch)
            self.connect(switch, wiring.other(host), site)
        wiring.check()

    @staticmethod
    def require(path: str, package: str) -> None:
        if not Path(path).exists():
            raise SetupError(f"{path} is missing: install {package}")

    def start(self, switch: Vswitch) -> None:
        switch.start()

    def attach(self, switch: Vswitch, bridge: str, device: str, number: int) -> list[str]:
        """The words that put a device on a bridge."""
        del switch
        return ["--", "add-port", bridge, device, "--", "set", "interface", device, f"ofport_request={number}"]

    def connect(self, switch: Vswitch, other: Host, site: Site) -> None:
        """Bridges, ports, wire and flows of one host."""
        host = switch.host
        wire = way(host, other, site)
        ip(host, f"addr flush dev {host.uplink} scope global")
        switch.configure(
            "set", "Open_vSwitch", ".", "other_config:vlan-limit=2",
            "--", "add-br", "br-int", "--", "set", "bridge", "br-int", "datapath_type=netdev", "fail-mode=secure",
            *self.attach(switch, "br-int", host.port, PORT),
        )  # fmt: skip
        if wire.tunnel:
            self.tunnel(switch, other, wire)
        else:
            switch.configure(*self.attach(switch, "br-int", host.uplink, TUNNEL))
        # Longer than a run, and room for 1 M flows.
        switch.configure("--", "--id=@d", "create", "Datapath", "datapath_version=0",
                         "--", "set", "Open_vSwitch", ".", "datapaths:netdev=@d")  # fmt: skip
        switch.configure("add-zone-tp", "netdev", f"zone={ZONE}",
                         *(f"udp_{kind}={IDLE_TIMEOUT_S}" for kind in ("first", "single", "multiple")))  # fmt: skip
        switch.ask("dpctl/ct-set-maxconns", str(CONNECTIONS))
        switch.add_flows("br-int", flows(host, make_rules(site.rules), wire))

    def tunnel(self, switch: Vswitch, other: Host, wire: Way) -> None:
        """The tunnel's port, and a bridge with uplink and underlay address behind it."""
        host = switch.host
        switch.configure(
            "add-br", "br-phy", "--", "set", "bridge", "br-phy", "datapath_type=netdev",
            f"other-config:hwaddr={host.uplink_mac}",
            *self.attach(switch, "br-phy", host.uplink, PORT),
            "--", "add-port", "br-int", "tunnel", "--", "set", "interface", "tunnel", *wire.tunnel,
            f"ofport_request={TUNNEL}",
        )  # fmt: skip
        ip(host, f"addr add {host.underlay}/{host.underlay_length} dev br-phy")
        ip(host, "link set br-phy up")
        ip(host, f"neigh replace {other.underlay} lladdr {other.uplink_mac} dev br-phy nud permanent")
        switch.ask("tnl/neigh/set", "br-phy", other.underlay, other.uplink_mac)

    def forget(self) -> None:
        for switch in self.switches:
            switch.ask("dpctl/flush-conntrack")

    def pause(self) -> None:
        """Polling threads never sleep by themselves; a stopped process does."""
        for switch in self.switches:
            switch.signal(signal.SIGSTOP)

    def resume(self) -> None:
        for switch in self.switches:
            switch.signal(signal.SIGCONT)

    def teardown(self) -> None:
        while self.switches:
            self.switches.pop().stop()

    def explain(self) -> str:
        """The datapaths' own view, for a developer."""
        words: list[str] = []
        for switch in self.switches:
            for question in (["dpctl/show", "-s"], ["dpif-netdev/pmd-stats-show"], ["dpctl/dump-flows", "-m"]):
                try:
                    words.append(switch.ask(*question)[:2000])
                except CommandError as error:
                    words.append(str(error))
        return "\n".join(words)


def flows(host: Host, rules: list[Rule], wire: Way) -> list[str]:
    """The first tables send what may be tracked to conntrack; one judges what leaves the port, one what goes to it."""
    work = host.workload
    out = ",".join(filter(None, (wire.put_on, f"output:{TUNNEL}")))
    into = f"output:{PORT}"
    inner = len(wire.take_off)
    table = [f"table={number},priority=0,actions=drop" for number in range(inner + 1)]
    table += [
        f"table={number},priority=10,in_port={TUNNEL},{comes},actions={done},resubmit(,{number + 1})"
        for number, (comes, done) in enumerate(wire.take_off)
    ]
    comes = ",".join(filter(None, (f"in_port={TUNNEL}", wire.match)))
    for family, address in (("ip", f"nw_src={work.ipv4}"), ("ipv6", f"ipv6_src={work.ipv6}")):
        leaves = f"in_port={PORT},dl_src={work.mac},{family},{address}"
        arrives = f"{comes},dl_dst={work.mac},{family}"
        table += [f"table=0,priority=10,{leaves},actions=ct(table={TABLE_OUT},zone={ZONE})"]
        table += [f"table={inner},priority=10,{arrives},actions=ct(table={TABLE_INTO},zone={ZONE})"]
    for number, action, side in ((TABLE_OUT, out, "dst"), (TABLE_INTO, into, "src")):
        table += [
            f"table={number},priority=100,ct_state=+trk+est-inv,actions={action}",
            f"table={number},priority=100,ct_state=+trk+rel-inv,actions={action}",
            f"table={number},priority=0,actions=drop",
        ]
        table += [
            f"table={number},priority=50,ct_state=+trk+new-inv,{match(rule, side)},"
            f"actions=ct(commit,zone={ZONE}),{action}"
            for rule in rules
        ]
    return table


def match(rule: Rule, side: str) -> str:
    """The rule in OpenFlow's words."""
    family = "" if rule.family == 4 else "6"
    words = [f"{rule.protocol}{family}" if rule.protocol else f"ip{'v6' if family else ''}"]
    words.append(f"ipv6_{side}={rule.remote}" if family else f"nw_{side}={rule.remote}")
    if rule.port:
        words.append(f"tp_dst={rule.port}")
    return ",".join(words)
