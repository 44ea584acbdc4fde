"""One pass from desired state to a datapath that has it, and what to say of every port. Twice changes nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from headrace import __version__
from headrace.agent.client import Client, clients_of
from headrace.agent.config import AgentConfig
from headrace.agent.desired import Desired
from headrace.agent.fitness import UNFIT_FEATURES, unfit, unfit_uplink
from headrace.agent.names import write_names
from headrace.agent.physical import Physical, blind
from headrace.agent.seam import FAR, Ends, Seam, ends_of
from headrace.agent.trouble import outward, trouble
from headrace.agent.underlay import Underlay, remote_vteps
from headrace.datapath.bpf import Datapath
from headrace.datapath.netlink import Event, Link, Netlink
from headrace.errors import HeadraceError, NotSupported
from headrace.model import HostStatus, Port, PortStatus, WireStatus
from headrace.stages import Device, Memo, View, compile_parts

log = logging.getLogger(__name__)

TUNNEL_SEGMENTATION = (
    *("tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"),
    *("tx-gre-segmentation", "tx-gre-csum-segmentation"),
)
"""What a veth says it does, and leaves to whoever is behind it: off, so that guests' super-packets are cut before.

Where hosts have their uplinks on XDP, the other end takes whole frames alone: all that is off then.
"""

TUNNEL_TYPES = ("vxlan", "geneve", "gre", "mpls", "nsh")
PHYSICAL_TYPES = ("flat", "vlan")
"""Network types that a host offers; the latter where a physical network is mapped to a device that is there."""

ATTACHING = 0.25
"""Seconds of a pass for attaching: each program costs the kernel a grace period, and rules must not wait for all."""


class Reconciler:
    """Holds what has been attached, what netlink said until it says something else, and what compiling found before.

    ``clients``: by port index, the ports that the agent configures, as of the last pass.
    """

    def __init__(self, config: AgentConfig, datapath: Datapath, netlink: Netlink) -> None:
        self._config = config
        self._datapath = datapath
        self._netlink = netlink
        self.underlay = Underlay(netlink, datapath)
        self.physical = Physical(config, netlink)
        self._outward = tuple(outward(config))
        self._seam = Seam(netlink)
        self._memo = Memo()
        self._heard: set[str] = set()
        self._links: dict[str, Link] | None = None
        self._vteps: tuple[str, ...] | None = None
        self._remotes: set[str] | None = None
        self._attached: dict[str, tuple[int, str]] = {}
        self._linked: set[str] | None = None
        """Devices with programs of ours, of an earlier life too."""
        self.unfinished = False
        """Whether there are devices left for the next pass: nothing is said of ports until all had their turn."""
        self._stale = True
        """Whether an earlier load may still be pinned."""
        self._refused: dict[str, str] = {}
        self._blind: dict[str, str] = {}
        """Devices to the outside that XDP may not have, and why."""
        self._judged: Mapping[str, Link] = {}
        self._fit: dict[str, tuple[int, str | None]] = {}
        self._said: dict[str, str] = {}
        self._faults: list[str] = []
        self.clients: dict[int, Client] = {}

    def status(self, desired: Desired | None = None, ports: tuple[PortStatus, ...] = ()) -> HostStatus:
        """What the host says of itself."""
        devices = self.physical.wires(self.links)
        wires = {name: WireStatus(device=device.name, mtu=device.mtu) for name, device in devices.items()}
        return HostStatus(
            id=self._config.host,
            vteps=self._own_vteps(),
            network_types=(*(PHYSICAL_TYPES if wires else ()), *TUNNEL_TYPES),
            physical_networks=tuple(sorted(wires)),
            wires=wires,
            mtu=min((self.links[name].mtu for name in self._config.uplinks if name in self.links), default=0),
            version=__version__,
            epoch=desired.epoch if desired else "",
            applied=desired.revision if desired else 0,
            ports=ports,
        )

    def notice(self, event: Event) -> None:
        """Have the next pass ask netlink again: about devices only if they changed, for neighbours speak often."""
        self._heard.add(event.kind)

    def _listen(self) -> None:
        """Forget what netlink contradicted. One pass may hear what another has asked about already."""
        while self._heard:
            kind = self._heard.pop()
            self._remotes = None
            if kind != "neighbour":
                self._vteps = None
            if kind in {"link", "lost"}:
                self._links = None

    @property
    def links(self) -> dict[str, Link]:
        """All devices, by name."""
        if self._links is None:
            self._links = {link.name: link for link in self._netlink.links()}
        return self._links

    def _own_vteps(self) -> tuple[str, ...]:
        if self._vteps is None:
            self._vteps = self.underlay.vteps(self._config.uplinks, self._config.vteps)
        return self._vteps

    def reconcile(self, desired: Desired) -> HostStatus:
        """Make the datapath what is desired. What one port cannot have is that port's error, and nobody else's."""
        self._listen()
        ends, links = self._ends()
        self._judge(links)
        ports = desired.state.ports_on(self._config.host)
        devices = {
            port.id: self._device(port, links[port.device_name], links)
            for port in ports.values()
            if port.parent is None and port.device_name in links and port.device_name not in self._outward
        }
        hops = self._next_hops(desired)
        view = View(
            desired.state,
            self._config.host,
            self._datapath.index,
            devices,
            self._own_vteps(),
            uplinks=(links[name].ifindex for name in self._config.uplinks if name in links),
            memo=self._memo,
            tunnel_port=self._config.tunnel_port,
            quota=self._config.connections // 4 if self._config.quota is None else self._config.quota,
            mss_clamp=self._config.mss_clamp,
            whole=self._config.uplink_hook == "tc"
            and all(links[uplink].kind == "veth" for uplink in self._config.uplinks if uplink in links),
            wires=self.physical.wires(links),
            next_hops=hops,
            any_vtep=self._config.any_vtep,
            seam=ends.near.ifindex if ends and self._datapath.is_seam(ends.far.ifindex, FAR) else 0,
        )
        self._datapath.index.begin(view.names)
        written = self._datapath.apply(compile_parts(view))
        try:
            write_names(Path(self._config.run), view, self._config.bpf)
        except OSError as error:
            log.warning("names for the command line cannot be written (%s)", error)
        if written:
            log.info("applied revision=%d entries=%d ports=%d", desired.revision, written, len(view.local_ports))
        if self._attach(view, links, ends):
            self._fit.clear()
            return self.reconcile(desired)
        if ends and not view.seam and FAR in self._attached:  # nothing goes in before something waits at its far end
            return self.reconcile(desired)
        if self.physical.listen(links):
            self._links = None
        remotes = remote_vteps(self._datapath)
        if remotes != self._remotes:
            self._remotes = remotes  # before looking: what changes meanwhile is asked about again
            self.underlay.follow(remotes, links.values(), self._config.uplinks)
            if self._next_hops(desired) != hops:
                return self.reconcile(desired)
        self._configure(view)
        if self.unfinished:
            return self.status(desired)
        statuses = tuple(self._say(port, desired, view) for port in ports.values())
        return self.status(desired, statuses)

    def _next_hops(self, desired: Desired) -> dict[str, str]:
        """MACs of VTEPs on the link, where frames come by them: a network of NSH over Ethernet has a port here."""
        networks = desired.state.networks
        used = (
            networks[port.network]
            for port in desired.state.ports_on(self._config.host).values()
            if port.network in networks
        )
        return self.underlay.next_hops if any(one.segment.wire == "nsh-ethernet" for one in used) else {}

    def age(self) -> int:
        """Forget MACs that were not seen on a physical network for long; answers how many."""
        if not self._datapath.actual.get("hr_wires"):
            return 0
        return self._datapath.learnt.age(int(time.monotonic()))

    def _ends(self) -> tuple[Ends | None, dict[str, Link]]:
        """The seam, and all devices with it."""
        ends = self._seam.ends(self.links)
        if ends and ends != ends_of(self.links):
            self._links = None
        return ends, self.links

    def _configure(self, view: View) -> None:
        """Whom to answer, and what is wrong with what they are to be told."""
        self.clients, faults = clients_of(view, self._config.dhcp_lease)
        for fault in faults:
            if fault not in self._faults:
                log.warning("%s; it is left out", fault)
        self._faults = faults

    @property
    def hooks(self) -> dict[str, tuple[int, str]]:
        """Device -> its ifindex and where programs were attached to it; of one that refused XDP, its tc hook alone."""
        return {
            name: (ifindex, hook.replace("xdp", "tc") if name in self._refused else hook)
            for name, (ifindex, hook) in self._attached.items()
        }

    def mend(self, devices: Iterable[str]) -> None:
        """Write again what somebody changed; the next pass attaches to these devices again."""
        self._datapath.mend()
        self._links = None
        self._seam.forget()
        for name in devices:
            self._attached.pop(name, None)

    def _judge(self, links: dict[str, Link]) -> None:
        """Find out, whenever devices changed, which ones XDP may not have, whatever is configured."""
        if links is self._judged or self._config.uplink_hook == "tc":
            return
        self._judged, before = links, self._blind
        seen = {name: blind(links[name], links, self._netlink) for name in self._outward if name in links}
        self._blind = {name: why for name, why in seen.items() if why is not None}
        if self._blind != before:
            self._fit.clear()
        for name in self._blind.keys() - before.keys():
            log.warning("%s", self._blind[name])

    def _uplinks_unfit(self, links: dict[str, Link]) -> str | None:
        """Why ports cannot be on XDP: what they send by tunnel leaves by an uplink, which must take XDP frames."""
        if self._config.uplink_hook == "tc":
            return "uplink_hook is tc; ports replay in XDP where uplinks do"
        for name in self._outward:
            found = (
                self._blind.get(name)
                or self._refused.get(name)
                or (unfit_uplink(links[name]) if name in links else None)
            )
            if found:
                return found
        return None

    def _device(self, port: Port, link: Link, links: dict[str, Link]) -> Device:
        """A port's device, with the hook it can have; why not the one asked for is remembered."""
        known = self._fit.get(link.name)
        if port.hook == "tc":
            known = None
        elif known is None or known[0] != link.ifindex:
            known = link.ifindex, self._uplinks_unfit(links) or unfit(link)
        if known is None:
            self._fit.pop(link.name, None)
        else:
            self._fit[link.name] = known
        return Device(
            ifindex=link.ifindex,
            name=link.name,
            peer=link.kind == "veth" and link.peer_nsid is not None,
            xdp=known is not None and known[1] is None,
        )

    def _attach(self, view: View, links: dict[str, Link], ends: Ends | None) -> bool:
        """Run the datapath where it should. True: an uplink has just refused XDP, so its ports must do without."""
        refused = [name for name in self._outward if name in self._refused]
        wanted: dict[str, tuple[int, str]] = {FAR: (ends.far.ifindex, "seam tc")} if ends else {}
        late = {}  # what XDP leaves, its ports leave first: they send to it
        for uplink in self._outward:
            if uplink in self._blind:
                late[uplink] = (links[uplink].ifindex, "uplink tc")
            elif uplink in links:
                wanted[uplink] = (links[uplink].ifindex, f"uplink {self._config.uplink_hook}")
        for port in view.local_ports:
            if port.id in view.devices:
                device = view.devices[port.id]
                wanted[device.name] = (device.ifindex, "xdp" if device.xdp else "tc")
        wanted |= late
        if self._linked is None:
            self._linked = self._datapath.devices()
            self._stale = True
        for name in self._linked - set(wanted):
            if name in links and name != FAR and not self._datapath.is_uplink(name):
                # No port has it now, but a workload may still run behind it: our programs drop what it says.
                wanted[name] = (links[name].ifindex, "tc")
        deadline = time.monotonic() + ATTACHING
        self.unfinished = False
        for name, (ifindex, hook) in wanted.items():
            if self._attached.get(name) != (ifindex, hook):
                if time.monotonic() > deadline:
                    self.unfinished = True
                    break
                self._refused.pop(name, None)
                self._attach_one(name, ifindex, hook, links)
        for name in (self._linked | set(self._attached)) - set(wanted):
            self._datapath.detach(name)
            self._linked.discard(name)
            self._attached.pop(name, None)
            self._refused.pop(name, None)
        if self._stale and set(wanted) <= set(self._attached):  # else a device may still run an earlier load
            self._datapath.retire_loads()
            self._stale = False
        return refused != [name for name in self._outward if name in self._refused]

    def _attach_one(self, name: str, ifindex: int, hook: str, links: dict[str, Link]) -> None:
        kind, _, place = hook.rpartition(" ")
        link, datapath = links[name], self._datapath
        attach = datapath.attach_uplink if kind == "uplink" else datapath.attach_port
        if kind == "seam":
            attach = datapath.attach_seam
        try:
            try:
                attach(ifindex, name, "xdp" if place == "xdp" else "tc")
            except NotSupported as error:  # the slower hook does the same
                log.warning("device=%s stays on tc: %s", name, error)
                self._refused[name], place = str(error), "tc"
                attach(ifindex, name, "tc")
            if kind == "uplink" and link.kind == "veth":
                xdp = UNFIT_FEATURES if place == "xdp" else ()
                tunnels = TUNNEL_SEGMENTATION if name in self._config.uplinks else ()
                self._netlink.set_features(name, dict.fromkeys((*tunnels, *xdp), False))
            if not link.up and not kind:  # not before: nothing passes without our programs
                self._netlink.set_link(ifindex, up=True)
            self._attached[name] = (ifindex, hook)
            if self._linked is not None:
                self._linked.add(name)
            log.info("attached device=%s ifindex=%d hook=%s", name, ifindex, place)
        except HeadraceError as error:  # the device may have gone meanwhile; netlink will tell
            self._attached.pop(name, None)
            self._refused[name] = str(error)
            log.warning("device=%s cannot be attached: %s", name, error)

    def _say(self, port: Port, desired: Desired, view: View) -> PortStatus:
        carrier = desired.state.ports.get(port.parent or port.id, port)
        device = carrier.device_name
        state, reason = "up", self._refused.get(device) or ""
        if port.parent is None:
            reason = reason or self._fit.get(device, (0, None))[1] or ""
        if why := trouble(port, view, self._config):
            state, reason = "error", why
        elif view.device_of(port) is None:
            state, reason = "down", f"device {device} is not there"
        elif device not in self._attached:
            state = "error"
        elif not port.admin_up:
            state, reason = "down", "administratively down"
        if self._said.get(port.id) != state:
            self._said[port.id] = state
            log.info("port=%s device=%s state=%s %s", port.id, device, state, reason)
        return PortStatus(
            id=port.id,
            state=state,  # type: ignore[arg-type]
            reason=reason,
            revision=desired.stored.get(port.id, desired.revision),
            device=device,
        )
