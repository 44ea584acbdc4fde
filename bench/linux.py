"""Linux bridge + kernel tunnel, with nftables and conntrack as Neutron's hybrid firewall has them, and without."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.contender import Passive, Sink
from bench.journal import JOURNAL, Undo
from bench.linux_wire import OUTER, bridge
from bench.process import CommandError, SetupError, run
from bench.rules import MEMBERS, OVERLAY_V4, OVERLAY_V6, Rule, Site, make_members, make_rules

if TYPE_CHECKING:
    from typing import ClassVar

    from bench.wiring import Host, Wiring

IDLE_TIMEOUT_S = 900
CONNECTIONS = 4_000_000
BUCKETS = 1_048_576


class LinuxOpen(Passive):
    """No firewall. Forwarding entries are static on both bridge and tunnel: no learning, no flooding."""

    name = "linux-open"
    sink: Sink = "xdp"

    def setup(self, wiring: Wiring, site: Site) -> None:
        for host in wiring.hosts:
            bridge(host, wiring.other(host), site)
        wiring.check()


class Linux(LinuxOpen):
    """With the firewall: conntrack first, then the rules one after another."""

    name = "linux"
    idle_timeout = IDLE_TIMEOUT_S

    def __init__(self) -> None:
        self._hosts: tuple[Host, ...] = ()
        self._limits = ConntrackLimits()

    def setup(self, wiring: Wiring, site: Site) -> None:
        self._limits.raise_()
        self._hosts = wiring.hosts
        for host in wiring.hosts:
            bridge(host, wiring.other(host), site)
            # This kernel has no nf_conntrack_bridge, so bridged packets are handed to the IP hooks instead.
            settings = {
                "net.bridge.bridge-nf-call-iptables": 1,
                "net.bridge.bridge-nf-call-ip6tables": 1,
                "net.bridge.bridge-nf-filter-vlan-tagged": 1,
                "net.netfilter.nf_conntrack_udp_timeout": IDLE_TIMEOUT_S,
                "net.netfilter.nf_conntrack_udp_timeout_stream": IDLE_TIMEOUT_S,
            }
            run("nft", "-f", "-", stdin=ruleset(host, site), namespace=host.namespace)
            try:
                run("sysctl", "-q", *(f"{k}={v}" for k, v in settings.items()), namespace=host.namespace)
            except CommandError as error:
                raise SetupError(f"linux: bridge netfilter is not there: {error}") from error
        wiring.check()

    def forget(self) -> None:
        for host in self._hosts:
            run("conntrack", "-F", namespace=host.namespace)

    def teardown(self) -> None:
        self._limits.restore()


class ConntrackLimits:
    """Room for 1 M flows on each host. The limits are the whole machine's: put back what was there."""

    PATHS: ClassVar[dict[str, int]] = {
        "/proc/sys/net/netfilter/nf_conntrack_buckets": BUCKETS,
        "/proc/sys/net/netfilter/nf_conntrack_max": CONNECTIONS,
    }

    def __init__(self) -> None:
        self._undos: list[Undo] = []

    def raise_(self) -> None:
        for name, wanted in self.PATHS.items():
            path = Path(name)
            if not path.exists():
                raise SetupError(f"linux: this kernel has no conntrack ({name})")
            if int(path.read_text()) < wanted:
                self._undos.append(JOURNAL.write(path, str(wanted)))

    def restore(self) -> None:
        while self._undos:
            JOURNAL.undo(self._undos.pop())


def ruleset(host: Host, site: Site) -> str:
    """The table of one host: established first, then the chain of the port's direction."""
    work = host.workload
    rules = make_rules(site.rules, group=bool(site.members))
    lines = ["table inet bench {"]
    untracked = [f"    {OUTER[site.wire]} notrack"] if site.wire in OUTER else []
    if site.members:
        four, six = ", ".join([OVERLAY_V4, *make_members(site.members)]), OVERLAY_V6
        lines += [f"  set {MEMBERS}4 {{ type ipv4_addr; flags interval; elements = {{ {four} }} }}"]
        lines += [f"  set {MEMBERS}6 {{ type ipv6_addr; flags interval; elements = {{ {six} }} }}"]
    for chain, side in (("from_port", "daddr"), ("to_port", "saddr")):
        lines += [f"  chain {chain} {{", *(f"    {sentence(rule, side)}" for rule in rules), "    drop", "  }"]
    lines += [
        # Outer packets are not to be tracked: one lookup a packet less, as a good operator has it.
        "  chain underlay_in { type filter hook prerouting priority raw;",
        *untracked,
        "  }",
        "  chain underlay_out { type filter hook output priority raw;",
        *untracked,
        "  }",
        "  chain forward { type filter hook forward priority 0; policy drop;",
        "    ct state established,related accept",
        "    ct state invalid drop",
        f"    ip saddr {work.ipv4} goto from_port",
        f"    ip6 saddr {work.ipv6} goto from_port",
        f"    ip daddr {work.ipv4} goto to_port",
        f"    ip6 daddr {work.ipv6} goto to_port",
        "  }",
        "}",
    ]
    return "\n".join(lines) + "\n"


def sentence(rule: Rule, side: str) -> str:
    """The rule in nftables' words."""
    remote = f"@{MEMBERS}{rule.family}" if rule.remote == MEMBERS else rule.remote
    match = [f"{'ip' if rule.family == 4 else 'ip6'} {side} {remote}"]
    if rule.protocol is not None:
        match.append(f"{rule.protocol} dport {rule.port}" if rule.port else f"meta l4proto {rule.protocol}")
    return " ".join([*match, "accept"])
