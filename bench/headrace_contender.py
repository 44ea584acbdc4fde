"""Headrace itself: a real agent on each host, desired state from YAML, replay on the tc hook or on XDP."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from bench.contender import Passive, Sink
from bench.journal import JOURNAL, Undo
from bench.process import Daemon, SetupError, run
from bench.rules import MEMBERS, PHYSICAL_NETWORK, Site, make_members, make_rules
from bench.wiring import WORKLOAD_MTU
from headrace import abi
from headrace.datapath.bpfmap import Map

if TYPE_CHECKING:
    from bench.wiring import Host, Wiring

PROTOCOLS = {"tcp": 6, "udp": 17}
WAIT_S = 30.0
ELSEWHERE, ELSEWHERE_VTEP = "elsewhere", "192.168.77.9"
"""Where a group's members are that no workload plays."""

MORE_RULES = [
    {"id": f"more-{direction}-{family}", "direction": direction, "ethertype": family}
    for direction in ("egress", "ingress")
    for family in ("IPv4", "IPv6")
]
"""A group of so few rules as OpenStack's default group has."""

UNANSWERED_S = 29
"""A one-way UDP flow is expired after 30 s of silence (docs/pipeline.md, track)."""

STATE_MAPS = ("hr_flows", "hr_conns", "hr_conn_free")
"""What a connection takes: a record, an entry for each direction, and its index when it is free."""

COMMAND = Path(sys.executable).with_name("headrace")


class HeadraceTc(Passive):
    """Everything on the tc hook: what a port gets by default."""

    name = "headrace-tc"
    sink: Sink = "tc"
    idle_timeout = UNANSWERED_S
    hook = "tc"
    uplink_hook = "tc"

    def __init__(self) -> None:
        self._agents: list[Daemon] = []
        self._bpf: dict[str, Path] = {}
        self._undos: list[Undo] = []
        self._connections = 0

    def setup(self, wiring: Wiring, site: Site) -> None:
        self._connections = site.connections
        place, gone = JOURNAL.directory("hrb-")
        self._undos.append(gone)
        # JSON is YAML, and is read a hundred times faster where there are ten thousand objects.
        (place / "state.yaml").write_bytes(msgspec.json.encode(desired(wiring, site, self.hook)))
        for host in wiring.hosts:
            plug_more(host, site.ports)
            self._start(host, place, site)
        self._wait(wiring, WAIT_S + (site.rules + site.members + 10 * site.ports) / 200)

    def _start(self, host: Host, place: Path, site: Site) -> None:
        bpf = place / f"bpf-{host.name}"
        bpf.mkdir()
        self._undos.append(JOURNAL.note(Undo("umount", str(bpf))))
        run("mount", "-t", "bpf", "bpf", str(bpf))
        self._bpf[host.name] = bpf
        config = place / f"{host.name}.toml"
        lines = [f'host = "{host.name}"', f'state = "{place}/state.yaml"', f'uplinks = ["{host.uplink}"]']
        lines += [f'bpf = "{bpf}/headrace"', f'run = "{place}/run-{host.name}"', f"connections = {site.connections}"]
        # Mostly one port sends everything here, so it may have every connection; Linux and OVS know no quota either.
        lines += [f'uplink_hook = "{self.uplink_hook}"', 'log = "warning"', f"quota = {site.quota}"]
        if site.segment.is_physical:
            lines += [f'physical_networks = {{ {PHYSICAL_NETWORK} = "{host.uplink}" }}']
        config.write_text("\n".join(lines) + "\n")
        if self.uplink_hook == "xdp":  # which may not hide tags; a veth's hides nothing
            run("ethtool", "-K", host.uplink, "rxvlan", "off", "rx-vlan-stag-hw-parse", "off", namespace=host.namespace)
        self._agents.append(Daemon(str(COMMAND), "agent", "--config", str(config), namespace=host.namespace))

    def _wait(self, wiring: Wiring, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            for agent in self._agents:
                if not agent.alive():
                    raise SetupError(f"{self.name}: {agent.last_words()}")
            with contextlib.suppress(SetupError):
                wiring.check()
                return
            if time.monotonic() > deadline:
                raise SetupError(f"{self.name}: no traffic after {seconds:.0f} s: {self._agents[0].last_words()}")

    def teardown(self) -> None:
        for agent in self._agents:
            agent.stop()
        self._agents.clear()
        self._bpf.clear()
        while self._undos:
            JOURNAL.undo(self._undos.pop())

    def forget(self) -> None:
        """No traffic may run meanwhile."""
        for pins in self.pins():
            forget_connections(pins)

    def pins(self) -> list[Path]:
        """Where each host's tables are pinned."""
        return [bpf / "headrace" / abi.ABI_HASH for bpf in self._bpf.values()]

    def memory(self) -> dict[str, float]:
        maps = [kernel_octets(pins) for pins in self.pins()]
        states = sum(table[name] for table in maps for name in STATE_MAPS)
        return {
            "tables": sum(sum(table.values()) for table in maps) / 2**20,
            "agents": sum(agent.resident() for agent in self._agents) / 2**20,
            "direction": states / (2 * self._connections * len(maps)),
        }


class HeadraceXdp(HeadraceTc):
    """Replay in XDP on port and uplink; workloads with complete checksums and no super-packets."""

    name = "headrace-xdp"
    sink: Sink = "xdp"
    super_packets = False
    hook = uplink_hook = "xdp"

    def setup(self, wiring: Wiring, site: Site) -> None:
        wiring.offloads_off()
        super().setup(wiring, site)


class HeadraceMerging(HeadraceTc):
    """Ports on the tc hook; on uplinks XDP takes the outer headers off, so that GRO can merge what was inside."""

    name = "headrace-merging"
    uplink_hook = "xdp"


class HeadraceVxlan(HeadraceTc):
    """``HeadraceTc`` with VXLAN, whatever the site's wire is: what our other wires are measured by."""

    name = "headrace-vxlan"

    def setup(self, wiring: Wiring, site: Site) -> None:
        super().setup(wiring, dataclasses.replace(site, wire="vxlan"))


def plug_more(host: Host, count: int) -> None:
    """Devices for more ports: veth pairs, both ends on the host, nothing behind them."""
    if count:
        lines = [f"link add {more_device(i)} mtu {WORKLOAD_MTU} up type veth peer name w{i}" for i in range(count)]
        run("ip", "-n", host.namespace, "-batch", "-", stdin="\n".join(lines) + "\n", timeout=300)


def more_device(number: int) -> str:
    return f"tapmore{number}"


def desired(wiring: Wiring, site: Site, hook: str) -> dict[str, Any]:
    """Desired state for the wiring: one network, one group with the bench's rules both ways; and the site's more."""
    listed = [
        {
            "id": f"{direction}-{number}",
            "direction": direction,
            "ethertype": f"IPv{rule.family}",
            **({"remote_group": "bench"} if rule.remote == MEMBERS else {"remote_cidr": rule.remote}),
            **({"protocol": PROTOCOLS[rule.protocol]} if rule.protocol else {}),
            **({"port_min": rule.port, "port_max": rule.port} if rule.port is not None else {}),
        }
        for direction in ("egress", "ingress")
        for number, rule in enumerate(make_rules(site.rules, group=bool(site.members)))
    ]
    return {
        "networks": [{"id": "bench", "segment": msgspec.to_builtins(site.segment), "mtu": WORKLOAD_MTU}],
        "hosts": [
            *({"id": host.name, "vteps": [host.underlay]} for host in wiring.hosts),
            {"id": ELSEWHERE, "vteps": [ELSEWHERE_VTEP]},
        ],
        "security_groups": [{"id": "bench", "rules": listed}, {"id": "more", "rules": MORE_RULES}],
        "ports": [
            {
                "id": host.port_id,
                "network": "bench",
                "mac": host.workload.mac,
                "addresses": [host.workload.ipv4, host.workload.ipv6],
                "security_groups": ["bench"],
                "host": host.name,
                "device": host.port,
                "hook": hook,
            }
            for host in wiring.hosts
        ]
        + [
            {
                "id": f"member-{number}",
                "network": "bench",
                "mac": f"fa:16:3e:78:{number >> 8:02x}:{number & 255:02x}",
                "addresses": [address],
                "security_groups": ["bench"],
                "host": ELSEWHERE,
            }
            for number, address in enumerate(make_members(site.members))
        ]
        + [
            {
                "id": f"more-{host.name}-{number}",
                "network": "bench",
                "mac": f"fa:16:3e:{0x80 + place:02x}:{number >> 8:02x}:{number & 255:02x}",
                "addresses": [f"10.{90 + place}.{number >> 8}.{number & 255}"],
                "security_groups": ["more"],
                "host": host.name,
                "device": more_device(number),
            }
            for place, host in enumerate(wiring.hosts)
            for number in range(site.ports)
        ],
    }


def kernel_octets(pins: Path) -> dict[str, int]:
    """What the kernel holds for each map pinned in a directory (bpf_map_show_fdinfo, kernel/bpf/syscall.c)."""
    held = {}
    for spec in abi.MAPS:
        if (pins / spec).exists():
            with Map.from_pin(pins / spec) as table:
                told = Path(f"/proc/self/fdinfo/{table.fd}").read_text()
            held[spec] = sum(int(line.split()[1]) for line in told.splitlines() if line.startswith("memlock:"))
    return held


def forget_connections(pins: Path) -> None:
    """Empty flows and connections as a fresh start has them."""
    with contextlib.ExitStack() as stack:
        names = ("hr_flows", "hr_conns", "hr_conn_free", "hr_conn_counts", "hr_cursors")
        flows, conns, free, counts, cursors = (stack.enter_context(Map.from_pin(pins / name)) for name in names)
        flows.delete_many([key for _, keys, _ in flows.chunks() for key in split(keys, flows.key_size)])
        fresh = abi.U32(value=abi.Cursor.FRESH).pack()
        used = int.from_bytes(cursors.lookup(fresh) or b"", "little")
        conns.update_many([(abi.U32(value=index).pack(), bytes(conns.value_size)) for index in range(used)])
        while free.pop() is not None:
            pass
        for cursor in abi.Cursor:
            cursors.update(abi.U32(value=cursor).pack(), bytes(8))
        counts.update_many([(abi.U32(value=index).pack(), bytes(counts.value_size)) for index in range(abi.PORTS)])


def split(octets: bytes, size: int) -> list[bytes]:
    """Equal parts."""
    return [octets[at : at + size] for at in range(0, len(octets), size)]
