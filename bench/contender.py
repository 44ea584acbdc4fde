"""What the harness asks of a contender, and who there is.

A contender connects the two hosts of a ``Wiring``, firewall ON, so that workload a reaches workload b. All contenders
of a run are set up side by side and measured in turns; the others are paused meanwhile, hence an idle contender that
burns no CPU need not do anything in ``pause``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from bench.process import SetupError

if TYPE_CHECKING:
    from bench.rules import Site
    from bench.wiring import Wiring

Sink = Literal["xdp", "tc"]


class Contender(Protocol):
    """One way to carry packets from workload a to workload b.

    ``sink``: where arrivals are counted and dropped on workload b's device, before its stack: by tc or, where the path
    delivers XDP frames or is faster so, by XDP. Behind that there is tc as well: ``bpf_redirect_peer`` bypasses XDP.

    ``idle_timeout``: seconds that an established UDP flow surely outlives without packets. Make it 300 or more: else
    the 1 M flows are warmed up again in every round, which takes time.

    ``super_packets``: False when workloads must send complete checksums and no GSO; ``setup`` then calls
    ``wiring.offloads_off()``. Only told to the reader.
    """

    name: str
    sink: Sink
    idle_timeout: float
    super_packets: bool

    def setup(self, wiring: Wiring, site: Site) -> None:
        """Connect, with ``bench.rules.make_rules(site.rules)`` on the way out of a and on the way into b; stateful;
        the members of ``site`` are a group that both workloads are in, and its wire joins the hosts.

        Return when traffic flows. Raise ``SetupError`` if this machine cannot; ``teardown`` is called in any case.
        """

    def teardown(self) -> None:
        """End what ``setup`` started; also after half a ``setup``. Namespaces and devices are the wiring's."""

    def pause(self) -> None:
        """Use no CPU until ``resume``; state stays."""

    def resume(self) -> None:
        """Go on."""

    def forget(self) -> None:
        """Drop all flow state, so that the next packet of every flow is a first one."""

    def memory(self) -> dict[str, float]:
        """MiB of both hosts by what holds it; nothing where that cannot be told."""


class Passive:
    """Defaults for what costs nothing when idle and keeps no flows."""

    sink: Sink = "tc"
    idle_timeout: float = float("inf")
    super_packets: bool = True

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def forget(self) -> None:
        pass

    def memory(self) -> dict[str, float]:
        return {}

    def teardown(self) -> None:
        pass


class Registry:
    """Names to where their class is; a class is imported when it is asked for, so that one may be missing."""

    PLACES: ClassVar[dict[str, str]] = {
        "headrace-tc": "bench.headrace_contender:HeadraceTc",
        "headrace-xdp": "bench.headrace_contender:HeadraceXdp",
        "headrace-merging": "bench.headrace_contender:HeadraceMerging",
        "headrace-vxlan": "bench.headrace_contender:HeadraceVxlan",
        "linux": "bench.linux:Linux",
        "linux-open": "bench.linux:LinuxOpen",
        "ovs": "bench.ovs:Ovs",
        "ovs-dpdk": "bench.ovs_dpdk:OvsDpdk",
        "headrace-tables": "bench.tables:HeadraceTables",
        "headrace-cloud": "bench.clouded:HeadraceCloud",
        "bare": "bench.bare:Bare",
        "wire": "bench.bare:Wire",
    }

    def make(self, name: str) -> Contender:
        place, _, attribute = self.PLACES[name].partition(":")
        try:
            made: Contender = getattr(importlib.import_module(place), attribute)()
        except ModuleNotFoundError as error:
            if error.name != place:
                raise
            raise SetupError(f"{name}: {place} does not exist") from error
        return made
