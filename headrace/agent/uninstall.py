"""Take everything of Headrace off a host; its devices stay, and work for whatever comes next."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from headrace.agent import guard, seam
from headrace.agent.config import AgentConfig
from headrace.agent.control import SOCKET
from headrace.agent.drained import DRAINED
from headrace.agent.names import FILE
from headrace.agent.physical import give_back
from headrace.agent.reconcile import TUNNEL_SEGMENTATION
from headrace.datapath.attach import detach
from headrace.datapath.bpf import lock
from headrace.datapath.netlink import Netlink
from headrace.datapath.reader import Reader
from headrace.errors import HeadraceError


def uninstall(config: AgentConfig) -> Iterator[str]:
    """Undo what the agent did here, and say what. Raises DatapathError while an agent runs."""
    root = Path(config.bpf)
    if root.exists():
        held = lock(root)
        try:
            yield from let_go(root)
        finally:
            os.close(held)
        with contextlib.suppress(OSError):  # a mount point stays
            root.rmdir()
    with contextlib.suppress(HeadraceError):  # no nftables, so no guard
        guard.install(())
        yield "the guard is gone"
    with Netlink() as netlink:
        yield from underlay(config, netlink)
        yield from give_back(Path(config.cache), netlink)
        if seam.remove(netlink, {link.name: link for link in netlink.links()}):
            yield "the seam is gone"
    for path in (Path(config.run) / FILE, Path(config.run) / SOCKET):
        path.unlink(missing_ok=True)
    for name in ("desired.json", DRAINED):
        (Path(config.cache) / name).unlink(missing_ok=True)


def let_go(root: Path) -> Iterator[str]:
    """Detach every program, then unpin every table: connections are forgotten."""
    reader = Reader(root)
    devices = reader.devices() if reader.links.exists() else set()
    for device in sorted(devices):
        if sum(detach(place) for place in reader.places(device)) and device != seam.FAR:
            yield f"device {device} is as it was"
    for path in root.iterdir():
        shutil.rmtree(path)
    yield "tables are gone"


def underlay(config: AgentConfig, netlink: Netlink) -> Iterator[str]:
    """Next hops that the agent had the kernel keep resolved, and offloads that it turned off on veths."""
    links = {link.name: link for link in netlink.links()}
    for name in config.uplinks:
        link = links.get(name)
        if link is None:
            continue
        if link.kind == "veth":
            netlink.set_features(name, dict.fromkeys(TUNNEL_SEGMENTATION, True))
        for entry in netlink.neighbours():
            if entry.managed and entry.ifindex == link.ifindex:
                netlink.release_neighbour(entry.ifindex, entry.address)
                yield f"next hop {entry.address} is the kernel's again"
