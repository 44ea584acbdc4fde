"""The limits. Neither does any work: they tell what this machine's devices and stacks allow at most."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.build import program
from bench.contender import Passive, Sink
from bench.process import run

if TYPE_CHECKING:
    from bench.rules import Site
    from bench.wiring import Wiring


class Bare(Passive):
    """XDP redirect over the same devices: the limit of packet rate."""

    name = "bare"
    sink: Sink = "xdp"
    super_packets = False

    def setup(self, wiring: Wiring, site: Site) -> None:
        del site
        wiring.offloads_off()
        for host in wiring.hosts:
            for device, out in ((host.port, host.uplink), (host.uplink, host.port)):
                run(program("hop"), device, out, namespace=host.namespace)
        wiring.check()


class Wire(Passive):
    """One veth pair, no host between: the limit of what two TCP stacks on these cores can do."""

    name = "wire"

    def setup(self, wiring: Wiring, site: Site) -> None:
        del site
        wiring.join_directly()
        wiring.check()
