"""What the real programs of this host say of a trace's hop, beside the oracle: they must agree."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from headrace import abi
from headrace.abi import Reason
from headrace.agent.names import Names
from headrace.cli.local import Local
from headrace.datapath.connection import Connections
from headrace.datapath.decision import (
    RULE_ESTABLISHED,
    RULE_IMPLICIT,
    RULE_NONE,
    RULE_OPEN,
    RULE_REMOTE,
    Arrival,
    Decision,
)
from headrace.datapath.dry import SHORTEST, Dry, Outcome
from headrace.datapath.frame import octets, tunnel
from headrace.datapath.journey import Hop, Journey, follow
from headrace.datapath.oracle import Surroundings
from headrace.datapath.reader import Reader
from headrace.datapath.recall import Recalled
from headrace.datapath.wires import vlan
from headrace.errors import Denied, Unavailable
from headrace.model import State
from headrace.stages.view import address_octets, rule_id

WORDS = {
    abi.RULE_NONE: RULE_NONE,
    abi.RULE_ESTABLISHED: RULE_ESTABLISHED,
    abi.RULE_IMPLICIT: RULE_IMPLICIT,
    abi.RULE_OPEN: RULE_OPEN,
    abi.RULE_REMOTE: RULE_REMOTE,
}
WIDE = 65535
"""The MTU of a device that says none."""
OF_THE_HOST = {Reason.QUOTA, Reason.TABLE_FULL, Reason.BUDGET, Reason.NO_ROUTE, Reason.NO_NEIGHBOUR, Reason.BUSY}
"""Reasons that lie in the host's state and not in what is desired, which is all that the oracle knows."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the programs of a host concluded about a hop. ``unlike``: where they and the oracle differ, in words."""

    reason: Reason
    replayed: bool
    rule_from: str
    rule_to: str
    to: str | None = None
    copies: int = 0
    same_build: bool = True
    unlike: tuple[str, ...] = ()


class Live:
    """This host's datapath, to be asked about hops on it."""

    def __init__(self, reader: Reader, names: Names, state: State) -> None:
        self.host = names.host
        self._reader = reader
        self._names = names
        self._state = state
        self._ports = {int(index): port for index, port in names.ports.items()}
        self._physicals = {int(index): name for index, name in names.physicals.items()}
        self._rules = {rule_id(rule.id): rule.id for group in state.security_groups.values() for rule in group.rules}
        self._dry: Dry | None = None

    def memory(self) -> Connections:
        """What the host remembers, for the oracle."""
        attachments = {index: port.attachment for index, port in self._ports.items()}
        return Recalled(self._reader, attachments, self._physicals)

    def surroundings(self) -> Surroundings:
        """What the host has that desired state does not tell."""
        config, table = self._config(), self._reader.maps["hr_adjacencies"]
        paths = [abi.Adjacency.unpack(value) for _, value in table.items() if any(value)]
        wires = {path.ifindex: path.mtu for path in paths if path.flags & abi.AdjacencyFlag.WIRE}
        mtus = [path.mtu for path in paths if path.mtu and not path.flags & abi.AdjacencyFlag.WIRE]
        physical = ((name, self._device_to(name)) for name in self._physicals.values())
        uplinks = [abi.Uplink.unpack(value) for _, value in self._reader.maps["hr_uplinks"].items()]
        return Surroundings(
            underlay_mtu=min(mtus, default=None),
            mss_clamp=bool(config.flags & abi.ConfigFlag.CLAMP),
            any_vtep=bool(config.flags & abi.ConfigFlag.ANY_VTEP),
            physical={name: wires.get(device, 0) or WIDE for name, device in physical if device is not None},
            shared=frozenset(self._physicals[one.physical] for one in uplinks if one.tunnels and one.physical),
        )

    def now(self) -> int:
        """The time by which it remembers, ms."""
        return time.monotonic_ns() // 1_000_000

    def ask(self, hop: Hop) -> Answer | None:
        """What the programs would do; None where they cannot be asked."""
        arrival = hop.arrival
        if self._dry is None:
            self._dry = Dry(self._reader)
        if arrival.port is not None:
            index = next((index for index, port in self._ports.items() if port.id == arrival.port), None)
            ifindex = None if index is None else self._reader.port(index).ifindex
            frame, run = arrival.frame, self._dry.from_port
        else:
            ifindex = self._uplink() if arrival.physical is None else self._device_to(arrival.physical)
            frame, run = self._outer(hop, ifindex or 0), self._dry.from_uplink
        if not ifindex or not frame or is_tagged(frame):
            return None  # test runs have no tag beside a frame, where the kernel has it
        if len(frame) < SHORTEST and hop.decision.reason.name.startswith("MALFORMED"):
            return None  # padding would make it another frame
        return self._answer(hop, run(frame.ljust(SHORTEST, b"\0"), ifindex, arrival.gso_size))

    def close(self) -> None:
        """Unload the dry programs."""
        if self._dry is not None:
            self._dry.close()

    def _answer(self, hop: Hop, outcome: Outcome) -> Answer:
        assert self._dry is not None
        rule = self._kept_rule(outcome) if outcome.replayed else outcome.rule
        rule_from, rule_to = self._rule(rule.from_side), self._rule(rule.to_side)
        to = next((port.id for index, port in self._ports.items() if self._leaves_by(index, outcome)), None)
        answer = Answer(
            reason=outcome.reason,
            replayed=outcome.replayed,
            rule_from=rule_from,
            rule_to=rule_to,
            to=to or ("the underlay" if outcome.ifindex else None),
            copies=outcome.copies,
            same_build=self._dry.is_what_runs(),
        )
        return msgspec.structs.replace(answer, unlike=tuple(differences(hop.decision, answer)))

    def _leaves_by(self, index: int, outcome: Outcome) -> bool:
        return bool(outcome.ifindex) and self._reader.port(index).ifindex == outcome.ifindex

    def _kept_rule(self, outcome: Outcome) -> abi.ConnRule:
        """The rules that a flow entry was decided by."""
        entry = self._reader.flow(outcome.key)
        conn = self._reader.connection(entry.conn) if entry else None
        if entry is None or conn is None:
            return abi.ConnRule()
        return conn.rule[bool(entry.flags & abi.FlowFlag.REPLY)]

    def _rule(self, number: int) -> str:
        if number in WORDS:
            return WORDS[number]
        known = self._names.rules.get(str(number))
        return self._rules.get(number) or (known.id if known else f"{number:#x}, a rule that is gone by now")

    def _uplink(self) -> int | None:
        for device in sorted(self._reader.uplinks()):
            try:
                return socket.if_nametoindex(device)
            except OSError:
                continue
        return None

    def _device_to(self, physical: str) -> int | None:
        """The device that leads to a physical network."""
        rows = self._reader.maps["hr_uplinks"].items()
        found = ((abi.U32.unpack(key).value, abi.Uplink.unpack(value).physical) for key, value in rows)
        return next((device for device, number in found if self._physicals.get(number) == physical), None)

    def _config(self) -> abi.Config:
        return abi.Config.unpack(self._reader.maps["hr_configs"].lookup(bytes(4)) or b"")

    def _outer(self, hop: Hop, ifindex: int) -> bytes:
        """The frame as it comes over the underlay."""
        arrival = hop.arrival
        if arrival.vtep is None or arrival.segment is None:
            return arrival.frame
        config, macs = self._config(), bytes(12)
        if arrival.segment.wire == "nsh-ethernet":
            source = next_hop(self._reader, arrival.vtep)
            device = Path(f"/sys/class/net/{socket.if_indextoname(ifindex)}/address") if ifindex else None
            if source is None or device is None:
                return b""
            macs = octets(device.read_text().strip()) + source
        own = config.vtep6 if ":" in arrival.vtep else config.vtep4
        return tunnel(arrival.vtep, own, arrival.segment, arrival.frame, macs)


def is_tagged(frame: bytes) -> bool:
    return vlan.kind_of(frame) is not None


def next_hop(reader: Reader, vtep: str) -> bytes | None:
    """The MAC that NSH over Ethernet knows a VTEP by, as the tables have it."""
    rows = [(abi.VtepKey.unpack(key), abi.Vtep.unpack(value).vtep) for key, value in reader.maps["hr_vteps"].items()]
    wanted = address_octets(ipaddress.ip_address(vtep))
    number = next((number for key, number in rows if key.addr == wanted), None)
    return next((key.addr[10:] for key, same in rows if same == number and key.addr[0] == abi.VTEP_MAC), None)


def differences(decision: Decision, answer: Answer) -> Iterator[str]:
    """Where the oracle and the programs differ; nothing for what only the host's own state can tell."""
    if decision.reason != answer.reason:
        yield f"the oracle says {decision.reason.name}, the datapath {answer.reason.name}"
        return
    if decision.reason == Reason.FLOODED and len(decision.outputs) != answer.copies:
        yield f"the oracle makes {len(decision.outputs)} copies, the datapath {answer.copies}"
    if decision.reason == Reason.NONE and decision.outputs:
        to = decision.outputs[0].port or "the underlay"
        if to != answer.to:
            yield f"the oracle sends it to {to}, the datapath to {answer.to}"
        sides = (
            ("from", decision.rule_from, decision.allowed_from, answer.rule_from),
            ("to", decision.rule_to, decision.allowed_to, answer.rule_to),
        )
        for side, rule, allowed, named in sides:
            if named not in (allowed or (rule,)) and not (answer.replayed and rule == RULE_ESTABLISHED):
                yield f"on the {side} side the oracle names rule {rule}, the datapath {named}"


def ask_along(state: State, arrival: Arrival, asked: Live | None) -> tuple[Journey, dict[str, Answer]]:
    """A frame's way by the oracle, and what the programs of this host say of the hops that are here."""
    if asked is None:
        return follow(state, arrival), {}
    remembered: Mapping[str, Connections] = Remembered(asked)
    journey = follow(state, arrival, remembered, asked.now(), asked.surroundings())
    found = ((hop.host, asked.ask(hop)) for hop in journey.hops if hop.host == asked.host)
    return journey, {host: answer for host, answer in found if answer is not None}


class Remembered(defaultdict[str, Connections]):
    """Host -> what it remembers: of this host what its tables hold, of others nothing."""

    def __init__(self, asked: Live) -> None:
        super().__init__(Connections)
        self[asked.host] = asked.memory()


@contextmanager
def live(local: Local, state: State) -> Iterator[Live | None]:
    """This host's datapath; None where there is none, or where it is not ours to ask: then the oracle is alone."""
    with contextlib.ExitStack() as stack:
        try:
            reader, names = stack.enter_context(local.open())
        except (Denied, Unavailable):
            yield None
            return
        asked = Live(reader, names, state)
        stack.callback(asked.close)
        yield asked
