"""The judge: what happens to one packet on one host, decided from the model alone, stage by stage.

``decide`` is plain, slow and obvious on purpose. It shares nothing with the compilers and their tables, so that
agreeing with it means something. docs/pipeline.md is its specification; each stage is in ``oracle_<stage>.py``.
"""

from __future__ import annotations

from headrace.abi import Reason
from headrace.datapath.connection import Connection, Connections
from headrace.datapath.decision import (
    RULE_IMPLICIT,
    RULE_NONE,
    Arrival,
    Decision,
    Dropped,
    Output,
    Refusal,
    Side,
    Step,
)
from headrace.datapath.notation import describe
from headrace.datapath.oracle_acl import REMOTE, Verdict, judge
from headrace.datapath.oracle_admit import Entry, admit
from headrace.datapath.oracle_forward import Receiver, flood, forward, learn, locate, outer_tos, tagged
from headrace.datapath.oracle_outer import approach
from headrace.datapath.oracle_respond import punt, respond
from headrace.datapath.oracle_spoof import anti_spoof
from headrace.datapath.oracle_too_big import answer, clamp, longest, path_mtu
from headrace.datapath.oracle_track import Bond, bind, key_of, remember, settle
from headrace.datapath.oracle_view import Surroundings, View
from headrace.datapath.packet import Packet
from headrace.model import State

__all__ = ["Arrival", "Connection", "Connections", "Decision", "Output", "Refusal", "Step", "Surroundings", "decide"]


class TooBig(Dropped):
    """A packet is longer than ``mtu``, and its sender may have to hear of it."""

    def __init__(self, length: int, mtu: int, of: str) -> None:
        super().__init__(Reason.TOO_BIG, f"{length} octets are more than the MTU {mtu} of {of}")
        self.mtu = mtu


def decide(
    state: State,
    host: str,
    connections: Connections,
    arrival: Arrival,
    now_ms: int = 0,
    surroundings: Surroundings | None = None,
) -> Decision:
    """Decide about a packet that arrives at a host; ``connections`` is what the host remembers, and is kept up."""
    return Walk(View(state, host, surroundings), connections, now_ms).decide(arrival)


class Walk:
    """One packet's way through the stages, and what is known of it so far."""

    def __init__(self, view: View, connections: Connections, now: int) -> None:
        self.view = view
        self.connections = connections
        self.now = now
        self.surroundings = view.surroundings
        self.port: str | None = None
        self.shared = False
        self.walked = False
        self.steps: list[Step] = []
        self.bond = Bond()
        self.stage = "admit"
        self.judging: str | None = None
        self.verdicts: dict[Side, Verdict] = {}
        self.packets = 1
        self.octets = 0
        self.longest = 0

    def decide(self, arrival: Arrival) -> Decision:
        self.octets = len(arrival.frame)
        self.connections.age(self.now)
        try:
            found = approach(self.view, self.connections, arrival)
            if found is None:
                self.note("not ours: the kernel's")
                return self.conclude(Reason.NONE, passed=True)
            self.octets, self.shared, self.walked = len(found.frame), found.shared, True
            self.port = found.port.id if found.port is not None else None
            return self.walk(admit(self.view, found), arrival.gso_size)
        except Dropped as dropped:
            self.note(f"dropped, {dropped.reason.name}: {dropped.text}")
            if dropped.reason == Reason.CONNECTION_CUT and self.bond.connection is not None:
                self.connections.cut(self.bond.connection, self.now)
            return self.conclude(dropped.reason)

    def walk(self, entry: Entry, gso_size: int) -> Decision:
        packet = entry.packet
        self.packets, self.octets = weigh(packet, gso_size)
        self.longest = longest(packet, gso_size) if packet.ip is not None and entry.port is not None else 0
        self.note(f"{came_from(entry)} on {entry.network.label()}: {describe(packet)}")
        self.stage = "anti_spoof"
        self.note(anti_spoof(entry))
        self.stage = "respond"
        answered = respond(self.view, entry)
        if answered is not None:
            assert entry.port is not None
            self.note(f"answered: {answered[1]}")
            back = Output(frame=tagged(entry.port, answered[0]), port=entry.port.id)
            return self.conclude(Reason.ANSWERED, outputs=[back])
        asked = punt(self.view, entry)
        if asked is not None:
            self.note(f"punted: the agent is asked for {asked}")
            return self.conclude(Reason.PUNTED)
        try:
            return self.pass_on(entry)
        except TooBig as dropped:
            assert entry.port is not None
            self.note(f"dropped, {dropped.reason.name}: {dropped.text}")
            told = answer(packet, dropped.mtu)
            outputs = [Output(frame=tagged(entry.port, told), port=entry.port.id)] if told is not None else []
            return self.conclude(dropped.reason, outputs=outputs)

    def pass_on(self, entry: Entry) -> Decision:
        """Judge a packet that nobody here answers, and send it on. Raises Dropped, TooBig among it."""
        packet = entry.packet
        self.stage = "too_big"
        if self.longest > entry.network.mtu:
            raise TooBig(self.longest, entry.network.mtu, entry.network.label())
        receiver = None if packet.is_multicast else locate(self.view, self.connections, entry, packet.destination)
        self.stage = "track"
        self.track(entry, receiver)
        self.stage = "acl, from side"
        self.judge(entry, "from", Receiver(place=entry.place, port=entry.port))
        self.stage = "forward"
        learn(self.view, self.connections, entry, self.now)
        if packet.is_multicast:
            return self.flood(entry)
        receiver = forward(self.view, entry, locate(self.view, self.connections, entry, packet.destination))
        self.note(receiver.text)
        self.stage = "acl, to side"
        verdict = self.judge(entry, "to", receiver)
        self.stage = "too_big"
        mtu = path_mtu(entry, receiver, self.surroundings)
        if self.longest > mtu:
            raise TooBig(self.longest, mtu, f"the way to {elsewhere(receiver)}")
        connection = self.settle(receiver)
        remember(self.connections, entry, self.now)
        frame = clamp(packet, mtu) if self.surroundings.mss_clamp and entry.port is not None else packet.frame
        return self.conclude(Reason.NONE, outputs=[self.send(entry, receiver, verdict, frame)], connection=connection)

    def track(self, entry: Entry, receiver: Receiver | None) -> None:
        """Find the packet's connection."""
        ip = entry.packet.ip
        if ip is None:
            return
        key = key_of(self.connections, entry, ip, self.now)
        self.bond = Bond(key=key)
        ports = [entry.port, receiver.port if receiver else None]
        stateful = any(self.view.stateful(port) for port in ports if port is not None)
        place = receiver.place if receiver else None
        self.bond = bind(self.connections, entry, key, place, self.now, stateful=stateful)
        connection = self.bond.connection
        if connection is not None:
            about = "an error about" if self.bond.error else f"{self.bond.course} packet of"
            self.note(f"{about} a connection, {connection.state.name}")
        elif self.bond.tracked:
            self.note("no connection yet")

    def judge(self, entry: Entry, side: Side, end: Receiver) -> Verdict:
        """Judge one side, if its port is here."""
        verdict = REMOTE
        if end.port is not None:
            self.judging = end.port.id
            verdict = judge(self.view, entry, self.bond, end.port, side, end.place)
            self.judging = None
        self.verdicts[side] = verdict
        self.note(verdict.text, verdict.rule)
        return verdict

    def flood(self, entry: Entry) -> Decision:
        """Send to everybody on the segment whose side allows it."""
        self.note("flooded")
        outputs, refused = [], []
        self.stage = "acl, to side"
        for receiver in flood(self.view, entry):
            try:
                verdict = self.judge(entry, "to", forward(self.view, entry, receiver))
                if self.longest > path_mtu(entry, receiver, self.surroundings):
                    assert entry.port is not None
                    self.note(f"not to {elsewhere(receiver)}, TOO_BIG: {self.longest} octets")
                    refused.append(Refusal(port=entry.port.id, reason=Reason.TOO_BIG))
                    continue
                outputs.append(self.send(entry, receiver, verdict, entry.packet.frame))
            except Dropped as dropped:
                assert receiver.port is not None
                self.note(f"not to {receiver.port.label()}, {dropped.reason.name}: {dropped.text}")
                refused.append(Refusal(port=receiver.port.id, reason=dropped.reason))
                self.judging = None
        self.verdicts.pop("to", None)
        if outputs:
            remember(self.connections, entry, self.now)
        return self.conclude(Reason.FLOODED, outputs=outputs, refused=refused)

    def settle(self, receiver: Receiver) -> Connection | None:
        """Make or change the packet's connection, now that it is forwarded."""
        if any(verdict.rule == RULE_IMPLICIT for verdict in self.verdicts.values()):
            return None
        tracks: dict[Side, bool] = {side: verdict.tracks for side, verdict in self.verdicts.items()}
        return settle(
            self.connections, self.bond, receiver.place, self.now, tracks=tracks, weight=(self.packets, self.octets)
        )

    def send(self, entry: Entry, receiver: Receiver, verdict: Verdict, frame: bytes) -> Output:
        if receiver.port is not None:
            return Output(frame=tagged(receiver.port, frame), port=receiver.port.id, rule=verdict.rule)
        segment, tos = entry.network.segment.plain, outer_tos(entry, receiver)
        return Output(frame=frame, vtep=receiver.vtep, segment=segment, tos=tos, rule=verdict.rule)

    def note(self, text: str, rule: str | None = None) -> None:
        self.steps.append(Step(stage=self.stage, text=text, rule=rule))

    def conclude(
        self,
        reason: Reason,
        *,
        outputs: list[Output] | None = None,
        refused: list[Refusal] | None = None,
        connection: Connection | None = None,
        passed: bool = False,
    ) -> Decision:
        nothing = Verdict(rule=RULE_NONE)
        sender, receiver = self.verdicts.get("from", nothing), self.verdicts.get("to", nothing)
        return Decision(
            reason=reason,
            outputs=tuple(outputs or ()),
            refused=tuple(refused or ()),
            passed=passed or self.shared,
            rule_from=sender.rule,
            rule_to=receiver.rule,
            allowed_from=sender.allowed,
            allowed_to=receiver.allowed,
            denied_by=self.judging,
            port=self.port,
            walked=self.walked,
            key=self.bond.key,
            course=self.bond.course,
            connection=connection.state if connection else None,
            packets=self.packets,
            octets=self.octets,
            steps=tuple(self.steps),
        )


def weigh(packet: Packet, gso_size: int) -> tuple[int, int]:
    """How a frame counts, packets and octets: a super-packet as its segments (docs/pipeline.md, "account")."""
    length = len(packet.frame)
    if not gso_size or packet.ip is None:
        return 1, length
    payload = length - packet.ip.header
    packets = max(1, -(-payload // gso_size))
    return packets, length + (packets - 1) * packet.ip.header


def came_from(entry: Entry) -> str:
    if entry.port is not None:
        return f"from {entry.port.label()}"
    if entry.by_wire:
        return "from the wire"
    return f"by tunnel from host {entry.host}" if entry.host is not None else "by tunnel from nobody known"


def elsewhere(receiver: Receiver) -> str:
    return f"VTEP {receiver.vtep}" if receiver.vtep is not None else "the wire"
