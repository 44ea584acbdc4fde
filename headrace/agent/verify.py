"""Drift: whether what the agent wrote, pinned and attached is still there as it was. Reads only.

Somebody's bpftool, nft flush ruleset, rm in the BPF file system or ip link leaves a datapath that is not what the agent
believes it to be; nothing tells the agent, so it looks from time to time.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from headrace import abi
from headrace.agent import guard, seam
from headrace.agent.config import AgentConfig
from headrace.agent.names import Names, read_names
from headrace.agent.reconcile import Reconciler
from headrace.datapath.attach import attached, foreign
from headrace.datapath.bpf import ARRAYS, Datapath
from headrace.datapath.netlink import Netlink
from headrace.errors import HeadraceError
from headrace.stages.compile import ORDER
from headrace.stages.memo import Table

log = logging.getLogger(__name__)

Hooks = Mapping[str, tuple[int, str]]
"""Device -> its ifindex, and where programs should run: ``tc``, ``xdp``, ``uplink tc``, ``uplink xdp``."""

SHOWN = 20
"""Differences that the log names one by one."""


class Difference(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that is not as it should be. ``place``: the table, device or file; ``key``: of what in it, in words."""

    kind: Literal["table", "name", "pin", "stage", "program", "guard", "device", "seam"]
    place: str
    state: Literal["missing", "stray", "changed"]
    key: str = ""
    found: str = ""
    wanted: str = ""

    def text(self) -> str:
        """As the log has it."""
        parts = [f"{self.kind} {self.place}", self.key, self.state]
        parts += [f"{what}={value}" for what, value in (("found", self.found), ("wanted", self.wanted)) if value]
        return " ".join(part for part in parts if part)


class Drift:
    """Looks at a running agent's datapath, and mends it. ``repairs``: how many differences it has mended."""

    def __init__(self, config: AgentConfig, datapath: Datapath, netlink: Netlink, reconciler: Reconciler) -> None:
        self._config = config
        self._datapath = datapath
        self._netlink = netlink
        self._reconciler = reconciler
        self.repairs = 0

    def look(self) -> list[Difference]:
        """Everything that differs from what the agent has written."""
        names = Names(host=self._config.host)
        with contextlib.suppress(HeadraceError, OSError):
            names = read_names(Path(self._config.run))
        datapath, hooks = self._datapath, self._reconciler.hooks
        found = [*pins(datapath), *indices(datapath)]
        for name in ORDER:
            found += tables(name, datapath.actual.get(name, {}), dict(datapath.read(name)), names)
        found += stages(datapath)
        found += programs(datapath, hooks)
        found += devices(hooks, self._netlink, set(self._config.physical_networks.values()))
        found += seams(hooks, self._netlink)
        return [*found, *guards(self._config.guard)]

    def mend(self, found: list[Difference]) -> None:
        """Make it as it was; what needs devices is left to the next pass of the reconciler."""
        self._reconciler.mend(
            {difference.place for difference in found if difference.kind in {"program", "device", "seam"}}
        )
        if any(difference.kind == "guard" for difference in found):
            guard.install(self._config.guard)
        self.repairs += len(found)


def tables(name: str, wanted: Table, real: Table, names: Names) -> Iterator[Difference]:
    """Entries of one table."""
    for key in [*wanted, *(key for key in real if key not in wanted)]:
        before, after = wanted.get(key), real.get(key)
        if before == after:
            continue
        yield Difference(
            kind="table",
            place=name,
            key=f"segment={word('segment', key.value, names)}"
            if name == "hr_wires" and isinstance(key, abi.U32)
            else words(key, names, index=name in ARRAYS - {"hr_adjacencies"}),
            state="missing" if after is None else "stray" if before is None else "changed",
            found=words(after, names) if after is not None else "",
            wanted=words(before, names) if before is not None else "",
        )


def indices(datapath: Datapath) -> Iterator[Difference]:
    """Which index means what: an entry that is gone may be given to another after a restart."""
    for key, wanted, found in datapath.index.drift():
        state: Literal["missing", "changed"] = "missing" if found is None else "changed"
        yield Difference(kind="name", place="hr_names", key=key.hex(), state=state, wanted=str(wanted))


def pins(datapath: Datapath) -> Iterator[Difference]:
    """Tables that a restart would not find."""
    for name in datapath.unpinned():
        yield Difference(kind="pin", place=str(datapath.pins / name), state="missing")


def stages(datapath: Datapath) -> Iterator[Difference]:
    """The array by which programs call each other."""
    for slot, wanted, found in datapath.stage_drift():
        yield Difference(
            kind="stage",
            place="hr_stages",
            key=str(slot),
            state="missing" if found is None else "changed",
            found="" if found is None else f"program {found}",
            wanted=f"program {wanted}",
        )


def programs(datapath: Datapath, hooks: Hooks) -> Iterator[Difference]:
    """Entry programs: each attached where it should be, the right one, and nobody before it on a port."""
    for device, (ifindex, hook) in sorted(hooks.items()):
        for place, wanted in datapath.wanted_programs(device, hook).items():
            here = attached(place)
            if here is None or here.ifindex != ifindex:
                yield Difference(kind="program", place=device, key=place.name, state="missing", wanted=wanted.name)
            elif not datapath.is_program(here.program_id, wanted):
                found = f"program {here.program_id}"
                yield Difference(
                    kind="program", place=device, key=place.name, state="changed", found=found, wanted=wanted.name
                )
            elif here.kind == "tcx" and not hook.startswith("uplink"):
                for other in foreign(here):
                    yield Difference(kind="program", place=device, key="runs before ours", state="stray", found=other)


def devices(hooks: Hooks, netlink: Netlink, physical: Collection[str] = ()) -> Iterator[Difference]:
    """Devices that are not there, or down; those of physical networks that hear only what is the host's."""
    for device, (ifindex, _) in sorted(hooks.items()):
        link = netlink.link(device)
        if link is None or link.ifindex != ifindex:
            found = f"ifindex {link.ifindex}" if link else ""
            state: Literal["missing", "changed"] = "changed" if link else "missing"
            yield Difference(kind="device", place=device, state=state, found=found, wanted=f"ifindex {ifindex}")
        elif not link.up:
            yield Difference(kind="device", place=device, state="changed", found="down", wanted="up")
        if link and device in physical and not link.promiscuous:
            yield Difference(kind="device", place=device, key="promiscuous", state="changed", found="off", wanted="on")


def seams(hooks: Hooks, netlink: Netlink) -> Iterator[Difference]:
    """What of the seam is not as it cuts best; whether its far end is there, ``devices`` says."""
    if seam.FAR not in hooks:
        return
    links = {link.name: link for link in netlink.links()}
    ends = seam.ends_of(links)
    if ends is None:
        if seam.FAR in links:
            yield Difference(kind="seam", place=seam.NEAR, state="missing")
        return
    for fault in seam.faults(netlink, ends):
        if (fault.device, fault.what) != (seam.FAR, "link"):
            yield Difference(
                kind="seam",
                place=fault.device,
                key=fault.what,
                state="changed",
                found=fault.found,
                wanted=fault.wanted,
            )


def guards(guarded: Iterable[str]) -> Iterator[Difference]:
    """What nftables should drop."""
    for chain in guard.missing(tuple(guarded)):
        yield Difference(kind="guard", place=chain, state="missing")


def words(packed: abi.Packed, names: Names, *, index: bool = False) -> str:
    """An entry's key or value as people read it; what is zero is left out. ``index``: it is a port's index."""
    if isinstance(packed, abi.U32):
        return f"port {port_word(names, packed.value)}" if index and packed.value else str(packed.value)
    fields = {field: getattr(packed, field) for field in packed.__struct_fields__}
    return " ".join(f"{field}={word(field, value, names)}" for field, value in fields.items() if any_of(value))


def any_of(value: object) -> bool:
    """Whether a value is not all zero."""
    return any(value) if isinstance(value, bytes) else bool(value)


def word(field: str, value: object, names: Names) -> str:
    """One field's value."""
    if isinstance(value, bytes):
        if len(value) == 6:
            return value.hex(":")
        if len(value) == 16:
            address = ipaddress.IPv6Address(value)
            return str(address.ipv4_mapped or address)
        return value.hex()
    if isinstance(value, int):
        if field == "port" and str(value) in names.ports:
            return port_word(names, value)
        if field == "segment":
            return names.segments.get(str(value), hex(value))
        if field == "physical":
            return names.physicals.get(str(value), str(value))
        if field == "vtep" and str(value) in {**names.vteps, **names.wires}:
            return {**names.vteps, **names.wires}[str(value)]
        if field in {"policy", "class_id", "rule", "remote_class", "service_class"}:
            known = names.rules.get(str(value))
            return known.id if known else hex(value)
    return str(value)


def port_word(names: Names, index: int) -> str:
    """A port by its index."""
    known = names.ports.get(str(index))
    return (known.name or known.id) if known else str(index)


def say(differences: list[Difference]) -> None:
    """Log what was found."""
    for difference in differences[:SHOWN]:
        log.warning("drift: %s", difference.text())
    if len(differences) > SHOWN:
        log.warning("drift: and %d more; `headrace host verify` lists all", len(differences) - SHOWN)
