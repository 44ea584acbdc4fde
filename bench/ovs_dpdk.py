"""Open vSwitch's userspace datapath with DPDK ports over AF_XDP: no NIC of ours has a DPDK driver, every veth has this.

Takes hugepages for as long as it stands, and gives them back whatever happens.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.journal import JOURNAL, Undo
from bench.ovs import Ovs, Vswitch
from bench.process import CommandError, SetupError, run

if TYPE_CHECKING:
    from bench.rules import Site
    from bench.wiring import Wiring

PAGES = Path("/proc/sys/vm/nr_hugepages")
PAGE_MIB = 2
SOCKET_MIB = 512
"""For each host: OVS halves its packet pool until it fits."""

SLACK_PAGES = 32
POLLING_CORES = {"a": 0, "b": 1}
"""One each. On core 1 together they wait for each other: 8 ms for an answer."""

DRIVERS = ("librte_net_af_xdp.so", "librte_mempool_ring.so")


class Hugepages:
    """So many more than there were, on a file system of ours; both go again."""

    def __init__(self) -> None:
        self._undos: list[Undo] = []
        self.mount = Path()

    def take(self, pages: int) -> None:
        if not PAGES.exists():
            raise SetupError("ovs-dpdk: this kernel has no hugepages")
        wanted = int(PAGES.read_text()) + pages
        self._undos.append(JOURNAL.write(PAGES, str(wanted)))
        if int(PAGES.read_text()) < wanted:
            raise SetupError(f"ovs-dpdk: no {pages} free hugepages of {PAGE_MIB} MiB in this machine's memory")
        self.mount, gone = JOURNAL.directory("hrb-huge-")
        self._undos += [gone, JOURNAL.note(Undo("umount", str(self.mount)))]
        try:
            run("mount", "-t", "hugetlbfs", "-o", f"pagesize={PAGE_MIB}M", "none", str(self.mount))
        except CommandError as error:
            raise SetupError(f"ovs-dpdk: hugetlbfs: {error}") from error

    def give_back(self) -> None:
        while self._undos:
            JOURNAL.undo(self._undos.pop())


class OvsDpdk(Ovs):
    """As ``Ovs``, with polling threads; these burn their core also when nothing comes."""

    name = "ovs-dpdk"
    daemon = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"

    def __init__(self) -> None:
        super().__init__()
        self._hugepages = Hugepages()

    def setup(self, wiring: Wiring, site: Site) -> None:
        self.require(self.daemon, "openvswitch-switch-dpdk")
        for driver in DRIVERS:
            if not any(Path("/usr/lib").glob(f"*/dpdk/pmds-*/{driver}*")):
                raise SetupError(f"ovs-dpdk: {driver} is missing: install librte-net-af-xdp23 librte-mempool-ring23")
        self._hugepages.take(2 * SOCKET_MIB // PAGE_MIB + SLACK_PAGES)
        super().setup(wiring, site)

    def start(self, switch: Vswitch) -> None:
        extra = " ".join((
            "--no-pci", "--iova-mode=va", "--single-file-segments",
            f"--file-prefix={switch.directory.name}", f"--huge-dir={self._hugepages.mount}",
        ))  # fmt: skip
        switch.start(
            "dpdk-init=true",
            f"dpdk-socket-mem={SOCKET_MIB}",
            f"dpdk-socket-limit={SOCKET_MIB}",
            f"pmd-cpu-mask={1 << POLLING_CORES[switch.host.name]:#x}",
            f'dpdk-extra="{extra}"',
        )

    def attach(self, switch: Vswitch, bridge: str, device: str, number: int) -> list[str]:
        name = f"dpdk-{device}"[:15]
        instance = f"net_af_xdp_{switch.host.name}{number}{bridge[3:]}"
        return [
            "--", "add-port", bridge, name, "--", "set", "interface", name, "type=dpdk",
            f"options:dpdk-devargs={instance},iface={device},start_queue=0,queue_count=1", f"ofport_request={number}",
        ]  # fmt: skip

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self._hugepages.give_back()
