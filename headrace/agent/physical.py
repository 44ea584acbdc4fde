"""Physical networks: the devices that lead to them, made to let through what is for workloads, and given back."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from headrace.agent.config import AgentConfig
from headrace.agent.desired import replace
from headrace.agent.uplink import leave_tags, members
from headrace.datapath.netlink import Link, Netlink
from headrace.errors import HeadraceError, NotFound
from headrace.stages import Device

log = logging.getLogger(__name__)

LISTENING = "promiscuous.json"
"""In the agent's cache: devices that it made promiscuous, and nobody else."""


class Physical:
    """The devices of `physical_networks`.

    A NIC drops unicast to MACs that are not its own, as workloads' are, and multicast that the host did not join:
    so each of them is promiscuous (IFF_PROMISC) as long as it is mapped, also while no agent runs.
    """

    def __init__(self, config: AgentConfig, netlink: Netlink) -> None:
        self._mapped = config.physical_networks
        self._file = Path(config.cache) / LISTENING
        self._netlink = netlink
        self._ours = read(self._file)
        self._refused: set[str] = set()

    def wires(self, links: Mapping[str, Link]) -> dict[str, Device]:
        """Physical network -> its device, where it is there."""
        found = {name: links[device] for name, device in self._mapped.items() if device in links}
        return {name: Device(ifindex=link.ifindex, name=link.name, mtu=link.mtu) for name, link in found.items()}

    def listen(self, links: Mapping[str, Link]) -> bool:
        """Make the devices promiscuous, and those no longer that we made so before. True: something was changed."""
        mapped = set(self._mapped.values())
        deaf = [links[name] for name in sorted(mapped) if name in links and not links[name].promiscuous]
        left = [links[name] for name in sorted(self._ours - mapped) if name in links and links[name].promiscuous]
        ours = (self._ours & mapped) | {link.name for link in deaf}
        if ours != self._ours:
            self._remember(ours)
        done = [self._set(link, on=True) for link in deaf] + [self._set(link, on=False) for link in left]
        return any(done)

    def _set(self, link: Link, *, on: bool) -> bool:
        try:
            self._netlink.set_link(link.ifindex, promiscuous=on)
        except HeadraceError as error:
            if link.name not in self._refused:
                log.warning("device=%s promiscuous=%s: %s", link.name, on, error)
            self._refused.add(link.name)
            return False
        self._refused.discard(link.name)
        log.info("device=%s promiscuous=%s", link.name, on)
        return True

    def _remember(self, ours: set[str]) -> None:
        self._ours = ours
        try:
            replace(self._file, msgspec.json.encode(sorted(ours)))
        except OSError as error:
            log.warning(
                "%s cannot be written (%s): promiscuous devices will stay so after an uninstall", self._file, error
            )


def read(path: Path) -> set[str]:
    """Devices that an agent made promiscuous."""
    try:
        return set(msgspec.json.decode(path.read_bytes(), type=list[str]))
    except (OSError, msgspec.MsgspecError):
        return set()


def give_back(cache: Path, netlink: Netlink) -> Iterable[str]:
    """Make them as they were, and say which."""
    path = cache / LISTENING
    for name in sorted(read(path)):
        link = netlink.link(name)
        if link is not None and link.promiscuous:
            netlink.set_link(link.ifindex, promiscuous=False)
            yield f"device {name} is promiscuous no more"
    path.unlink(missing_ok=True)


def blind(link: Link, links: Mapping[str, Link], netlink: Netlink) -> str | None:
    """Why XDP may not sit on a device to the outside: it would take a frame of a VLAN for an untagged one."""
    for name in (link.name, *members(link, links.values())):
        try:
            cure = leave_tags(name, netlink.features(name))
        except NotFound:
            return f"device {link.name}: {name} does not say whether it takes VLAN tags off, so it stays on tc"
        if cure:
            return f"device {link.name}: {name} takes VLAN tags off before XDP sees them, so it stays on tc; {cure}"
    return None
