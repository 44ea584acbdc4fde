"""Headrace itself: a real agent on each host, desired state from YAML, replay on the tc hook or on XDP."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from bench.contender import Passive, Sink
from bench.journal import JOURNAL, Undo
from bench.process import Daemon, SetupError, run
from bench.rules import make_rules
from bench.wiring import VNI, WORKLOAD_MTU
from headrace import abi
from headrace.datapath.bpfmap import Map

if TYPE_CHECKING:
    from bench.wiring import Host, Wiring

PROTOCOLS = {"tcp": 6, "udp": 17}
CONNECTIONS = 2_097_152
UNANSWERED_S = 29
"""A one-way UDP flow is expired after 30 s of silence (docs/pipeline.md, track)."""

COMMAND = Path(sys.executable).with_name("headrace")


class HeadraceTc(Passive):
    """Everything on the tc hook: what a port gets by default."""

    name = "headrace-tc"
    sink: Sink = "tc"
    idle_timeout = UNANSWERED_S
    hook = "tc"

    def __init__(self) -> None:
        self._agents: list[Daemon] = []
        self._bpf: dict[str, Path] = {}
        self._undos: list[Undo] = []

    def setup(self, wiring: Wiring, rules: int) -> None:
        place, gone = JOURNAL.directory("hrb-")
        self._undos.append(gone)
        (place / "state.yaml").write_text(yaml.safe_dump(desired(wiring, rules, self.hook)))
        for host in wiring.hosts:
            self._start(host, place)
        self._wait(wiring)

    def _start(self, host: Host, place: Path) -> None:
        bpf = place / f"bpf-{host.name}"
        bpf.mkdir()
        self._undos.append(JOURNAL.note(Undo("umount", str(bpf))))
        run("mount", "-t", "bpf", "bpf", str(bpf))
        self._bpf[host.name] = bpf
        config = place / f"{host.name}.toml"
        lines = [f'host = "{host.name}"', f'state = "{place}/state.yaml"', f'uplinks = ["{host.uplink}"]']
        lines += [f'bpf = "{bpf}/headrace"', f'run = "{place}/run-{host.name}"', f"connections = {CONNECTIONS}"]
        # One port sends everything here, so it may have every connection; Linux and OVS know no quota either.
        lines += [f'uplink_hook = "{self.hook}"', 'log = "warning"', "quota = 0"]
        config.write_text("\n".join(lines) + "\n")
        self._agents.append(Daemon(str(COMMAND), "agent", "--config", str(config), namespace=host.namespace))

    def _wait(self, wiring: Wiring) -> None:
        deadline = time.monotonic() + 30
        while True:
            for agent in self._agents:
                if not agent.alive():
                    raise SetupError(f"{self.name}: {agent.last_words()}")
            with contextlib.suppress(SetupError):
                wiring.check()
                return
            if time.monotonic() > deadline:
                raise SetupError(f"{self.name}: no traffic after 30 s: {self._agents[0].last_words()}")

    def teardown(self) -> None:
        for agent in self._agents:
            agent.stop()
        self._agents.clear()
        self._bpf.clear()
        while self._undos:
            JOURNAL.undo(self._undos.pop())

    def forget(self) -> None:
        """No traffic may run meanwhile."""
        for bpf in self._bpf.values():
            forget_connections(bpf / "headrace" / abi.ABI_HASH)


class HeadraceXdp(HeadraceTc):
    """Replay in XDP on port and uplink; workloads with complete checksums and no super-packets."""

    name = "headrace-xdp"
    sink: Sink = "xdp"
    super_packets = False
    hook = "xdp"

    def setup(self, wiring: Wiring, rules: int) -> None:
        wiring.offloads_off()
        super().setup(wiring, rules)


def desired(wiring: Wiring, rules: int, hook: str) -> dict[str, Any]:
    """Desired state for the wiring: one network, one group with the bench's rules both ways."""
    listed = [
        {
            "id": f"{direction}-{number}",
            "direction": direction,
            "ethertype": f"IPv{rule.family}",
            "remote_cidr": rule.remote,
            **({"protocol": PROTOCOLS[rule.protocol]} if rule.protocol else {}),
            **({"port_min": rule.port, "port_max": rule.port} if rule.port is not None else {}),
        }
        for direction in ("egress", "ingress")
        for number, rule in enumerate(make_rules(rules))
    ]
    return {
        "networks": [{"id": "bench", "segment": {"id": VNI}, "mtu": WORKLOAD_MTU}],
        "hosts": [{"id": host.name, "vteps": [host.underlay]} for host in wiring.hosts],
        "security_groups": [{"id": "bench", "rules": listed}],
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
        ],
    }


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
        cursors.update(fresh, bytes(8))
        counts.update_many([(abi.U32(value=index).pack(), bytes(8)) for index in range(abi.PORTS)])


def split(octets: bytes, size: int) -> list[bytes]:
    """Equal parts."""
    return [octets[at : at + size] for at in range(0, len(octets), size)]
