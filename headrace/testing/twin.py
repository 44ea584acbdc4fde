"""The real programs and the oracle side by side: each packet is asked of both, and every difference is an error.

    twin = Twin(host, state, "h1")
    twin.run(sent("a", frame))          # first packet
    assert twin.run(sent("a", frame)).replayed

Compared are reason, verdict, places, octets, rules, keys, every counter of the host, and all that it remembers.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from headrace.abi import Reason
from headrace.datapath.connection import CUT_TIMEOUT, Connection, Connections
from headrace.datapath.decision import RULE_ESTABLISHED, Arrival, Decision, Key, Output
from headrace.datapath.dry import Outcome
from headrace.datapath.oracle import Surroundings, decide
from headrace.datapath.oracle_forward import reachable
from headrace.datapath.oracle_tcp import TcpSide
from headrace.datapath.oracle_view import View
from headrace.datapath.packet import TCP
from headrace.model import Segment
from headrace.model import State as Desired
from headrace.testing.host import SHORTEST, TAGGED, PacketHost
from headrace.testing.observation import Counts, Hook, Observed
from headrace.testing.outer import CUSTOMER, SERVICE, take_off, take_tags
from headrace.testing.pause import Pauser

LONGEST = 3500
"""Octets of a frame; a test run puts it into one page, with room around it."""
ADMITTING = {
    Reason.MALFORMED_ARP,
    Reason.MALFORMED_IPV4,
    Reason.MALFORMED_IPV6,
    Reason.MALFORMED_L4,
    Reason.MULTICAST_SOURCE,
    Reason.VLAN_TAGGED,
    Reason.FRAGMENT_TINY,
    Reason.TCP_INVALID,
    Reason.PORT_DOWN,
    Reason.ECN,
}
"""Reasons of admit, where the oracle does not weigh."""


class Twin:
    """One host, twice. ``options``: of PacketHost.start.

    ``decision``: the oracle's about the last packet. ``seen``: how often (reason, hook, replayed) came to pass.
    """

    def __init__(self, host: PacketHost, state: Desired, name: str, **options: Any) -> None:
        self.host = host
        self.name = name
        self.state = state
        self.memory = Connections()
        self.now = 0
        self.seen: Counter[tuple[Reason, Hook, bool]] = Counter()
        self.decision = Decision(reason=Reason.NONE)
        self.leaves = {"timeout"} if options.get("quota") else set()  # a port that presses its quota has shorter ones
        host.start(state, name, **options)
        self.surroundings = Surroundings(
            underlay_mtu=host.stand.mtu,
            mss_clamp=options.get("mss_clamp", False),
            any_vtep=options.get("any_vtep", False),
            mac=host.stand.own_mac,
            next_hops=host.next_hops(),
            physical=dict.fromkeys(host.physical, host.stand.wire_mtu),
            wire_macs={name: host.stand.wire_macs[device] for name, device in host.physical.items()},
            shared=frozenset(options.get("shared", ())),
        )

    def apply(self, state: Desired) -> None:
        """Change desired state; what the datapath then forgets is taken from the oracle too."""
        self.state = state
        self.host.apply(state)
        self.surroundings = replace(self.surroundings, next_hops=self.host.next_hops())
        view = View(state, self.name, self.surroundings)
        segments = {port.attachment: state.networks[port.network].segment.plain for port in view.here.values()}
        vteps = set(map(view.vtep_of, state.hosts.keys() - {self.name}))
        self.memory.learnt = {
            (segment, mac): (kind, name)
            for (segment, mac), (kind, name) in self.memory.learnt.items()
            if (segment == segments.get(name) if kind == "port" else segment in segments.values())
            and (kind != "vtep" or name in vteps)
            and not owned(view, segment, mac)
        }

    def narrow(self, mtu: int) -> None:
        """Give the underlay another MTU."""
        self.host.narrow(mtu)
        self.surroundings = replace(self.surroundings, underlay_mtu=mtu)

    def clamp(self, *, mss: bool) -> None:
        """Configure MSS clamping."""
        self.host.configure(mss_clamp=mss)
        self.surroundings = replace(self.surroundings, mss_clamp=mss)

    def takes(self, arrival: Arrival) -> bool:
        """Whether a test run can have it.

        Not what is longer than a page, ends inside its tag, came by an IP version that the host has no VTEP of, or is a
        super-packet that is flooded or leaves by tunnel: only devices make one that other devices take.
        """
        if arrival.vtep is None and arrival.frame[12:14] in {SERVICE, CUSTOMER} and len(arrival.frame) < TAGGED:
            return False
        version = 6 if ":" in (arrival.vtep or "") else 4
        own = self.state.hosts[self.name].vteps if self.name in self.state.hosts else ()
        if arrival.vtep is not None and not any((6 if ":" in text else 4) == version for text in own):
            return False
        if not arrival.gso_size:
            return len(arrival.frame) <= LONGEST
        if arrival.frame[0] & 1:
            return False
        memory = copy.deepcopy(self.memory)
        outputs = decide(self.state, self.name, memory, arrival, self.now, self.surroundings).outputs
        return len(arrival.frame) <= LONGEST and arrival.port is not None and all(one.port for one in outputs)

    def age(self, ms: int) -> None:
        """Let time pass."""
        self.now += ms
        self.host.memory.age(ms)

    def run(self, arrival: Arrival, hook: Hook = "tc") -> Observed:
        """Ask both; raises AssertionError with the oracle's steps where they differ."""
        foretold = self.host.ask(arrival)
        self.decision = decide(self.state, self.name, self.memory, arrival, self.now, self.surroundings)
        observed = self.host.run(arrival, hook)
        self.seen[observed.reason, observed.hook, observed.replayed] += 1
        differences = list(self._differences(arrival, observed))
        if foretold is not None and not self._padding_matters(arrival):
            differences += self._other_than_foretold(foretold, observed)
        if differences:
            raise AssertionError(
                "\n".join([*differences, "The oracle:", *steps_of(self.decision), f"The programs: {observed}"])
            )
        return observed

    def overtaken(self, pauser: Pauser, arrival: Arrival, stage: str, state: Desired) -> None:
        """Let the walk of a known or new flow be overtaken by a change of policy.

        It may be judged by the old rules, the new ones, or each side by others; what it then leaves behind is taken
        over. That no decision of it holds shows when the flow goes on.
        """
        self.host.datapath.raise_epochs(self.host.ports.values())  # so that it walks
        before, after = copy.deepcopy(self.memory), copy.deepcopy(self.memory)
        old = decide(self.state, self.name, before, arrival, self.now, self.surroundings)
        decide(state, self.name, after, arrival, self.now, self.surroundings)
        stopped = pauser.overtaken(arrival, stage, lambda: self.host.apply(state)) is not None
        self.host.forget_counts()
        for _ in self.host.stand.copies():
            pass
        self.state = state
        left = self.host.memory.facts()
        for memory in (before, after) if stopped else (before,):
            if self._remembered(memory) == left:
                self.memory = memory
                return
        assert stopped, "\n".join(["a walk that had ended left something else behind. The oracle:", *steps_of(old)])
        self._take_over(left, old.key)

    def _take_over(self, left: Mapping[Key, dict[str, Any]], key: Key | None) -> None:
        """Make the oracle remember what the programs do; only about connections of one packet may they differ."""
        known = self._remembered(self.memory)
        for original in [*known, *left]:
            if known.get(original) == left.get(original):
                continue
            reply = (left.get(original) or known[original])["reply"]
            ends = {key.source, key.destination} if key is not None else set()
            assert {original.source, original.destination} == ends, f"an overtaken packet of {key} changed {original}"
            if original in known:
                self.memory.remove(self.memory.flows[original])
            if original in left:
                self.memory.add(connection_of(original, reply, left[original], self.now))

    def thrice(self, arrival: Arrival) -> Observed:
        """Run as first packet, again, and by XDP: what leaves must be the same. Answers what the second run showed."""
        first, second, third = self.run(arrival), self.run(arrival), self.run(arrival, "xdp")
        for part in ("reason", "outputs", "refused", "passed", "rule_from", "rule_to", "outer"):
            was, now, by_xdp = (getattr(observed, part) for observed in (first, second, third))
            assert was == now == by_xdp, f"{part}: first {was}, then {now}, by XDP {by_xdp}"
        return second

    def _differences(self, arrival: Arrival, observed: Observed) -> list[str]:
        decision = self.decision
        checks: dict[str, tuple[Any, Any]] = {
            "reason": (decision.reason, observed.reason),
            "passed": (decision.passed, observed.passed),
            "outputs": (places(decision.outputs), places(observed.outputs)),
            "refused": (
                sorted((refusal.port, refusal.reason) for refusal in decision.refused),
                sorted((refusal.port, refusal.reason) for refusal in observed.refused),
            ),
            "concluded": (decision.walked, observed.concluded),
            "connection": (decision.connection, observed.connection),
            "counters": (shown(self._expected_counts(arrival, observed)), shown(observed.counts)),
            "remembered": (self._remembered(self.memory), self._compared(self.host.memory.facts())),
        }
        if decision.key is not None and observed.concluded:
            checks["key"] = (decision.key, observed.key)
        found: list[str] = [
            f"{what}: the oracle says {differing(expected, found)}, the programs {differing(found, expected)}"
            for what, (expected, found) in checks.items()
            if expected != found
        ]
        if observed.concluded and decision.reason == Reason.NONE:
            found += self._differing_rule("from", decision.rule_from, decision.allowed_from, observed)
            found += self._differing_rule("to", decision.rule_to, decision.allowed_to, observed)
        if observed.outer and observed.wires == (None,):
            outer = take_off(observed.outer)
            known = self.host.stand.macs.get(observed.outputs[0].vtep or "") or "00:00:00:00:00:00"
            if outer.mac != known:
                found.append(f"next hop towards {outer.destination}: it has {known}, the programs say {outer.mac}")
        return found + self.host.memory.inconsistencies()

    def _padding_matters(self, arrival: Arrival) -> bool:
        """Whether a frame too short to be asked about is another one when it is padded."""
        outer = arrival.port is None and arrival.vtep is None
        admitting = self.decision.reason in ADMITTING or self.decision.reason == Reason.MALFORMED_ETHERNET
        return len(self.host.outer(arrival)) < SHORTEST and (outer or admitting)

    def _other_than_foretold(self, foretold: Outcome, observed: Observed) -> list[str]:
        """What the dry programs said differently a moment ago."""
        frames = [self._without_tag(one) for one in observed.outputs]
        tunnelled = observed.wires == (None,) and not foretold.reason and foretold.ifindex != self.host.seam
        left = take_off(foretold.frame).inner if tunnelled else foretold.frame
        if observed.outer and not tunnelled:
            left = take_tags(foretold.frame, "")[1]  # but for the one beside it
        pairs: dict[str, tuple[Any, Any]] = {
            "reason": (foretold.reason, observed.reason),
            "passed": (foretold.passed, observed.passed),
            "copies": (foretold.copies, len(frames) if observed.reason == Reason.FLOODED else 0),
        }
        if observed.concluded:
            pairs["replayed"] = (foretold.replayed, observed.replayed)
            if not observed.replayed:
                rules = (self.host.rule_name(foretold.rule.from_side), self.host.rule_name(foretold.rule.to_side))
                pairs["rules"] = (rules, (observed.rule_from, observed.rule_to))
        if len(frames) == 1 and observed.reason != Reason.FLOODED:
            pairs["frame"] = (left[: len(frames[0])].hex(), frames[0].hex())  # it was padded if it is short
        return [f"{what}: foretold {told}, happened {got}" for what, (told, got) in pairs.items() if told != got]

    def _without_tag(self, output: Output) -> bytes:
        """The frame that left as test runs show it: its tag is beside it."""
        port = self.state.ports.get(output.port or "")
        return output.frame if port is None or port.parent is None else output.frame[:12] + output.frame[16:]

    def _expected_counts(self, arrival: Arrival, observed: Observed) -> Counts:
        """The value of every counter, from the decision alone."""
        decision = self.decision
        here = decision.port or ""
        weight = Counter({"packets": decision.packets, "octets": decision.octets})
        counts = Counts()

        def add(port: str, which: str) -> None:
            counts.traffic.update({(port, which, unit): number for unit, number in weight.items()})

        if decision.passed and decision.reason == Reason.NONE and not decision.outputs:
            return counts
        if decision.reason != Reason.NONE:
            counts.reasons[here, decision.reason] += 1
        for refusal in decision.refused:
            counts.reasons[refusal.port, refusal.reason] += 1
        if decision.walked and not observed.replayed:
            add(here, "walked")
            tagged = self.host.entering(arrival)[1] is not None  # so that it is not in the frame
            if (tagged or arrival.gso_size) and decision.reason in ADMITTING:  # weighed as far as it was read
                return replace(counts, traffic=observed.counts.traffic)
        if here and decision.reason in {Reason.NONE, Reason.FLOODED}:
            add(here, "from_port")
        if decision.reason not in {Reason.ANSWERED, Reason.TOO_BIG}:
            for output in decision.outputs:
                if output.port is not None:
                    add(output.port, "to_port")
        return counts

    def _differing_rule(self, side: str, rule: str, allowed: tuple[str, ...], observed: Observed) -> list[str]:
        """Several rules may allow a packet; the datapath names one of them.

        A reply that was decided by a rule of its own keeps that rule until its epochs change, though its side may have
        begun to track the connection since.
        """
        named = observed.rule_from if side == "from" else observed.rule_to
        rules = {one.id for group in self.state.security_groups.values() for one in group.rules}
        if named in (allowed or (rule,)) or (observed.replayed and rule == RULE_ESTABLISHED and named in rules):
            return []
        return [f"rule, {side} side: the oracle says {allowed or rule}, the programs {named}"]

    def _remembered(self, memory: Connections) -> dict[Key, dict[str, Any]]:
        """The oracle's connections that have not expired."""
        unique = {id(connection): connection for connection in memory.flows.values()}
        alive = [one for one in unique.values() if self.now - one.seen <= one.timeout]
        return self._compared({connection.original: facts(connection) for connection in alive})

    def _compared(self, known: dict[Key, dict[str, Any]]) -> dict[Key, dict[str, Any]]:
        return {
            key: {what: value for what, value in found.items() if what not in self.leaves}
            for key, found in known.items()
        }


def owned(view: View, segment: Segment, mac: str) -> bool:
    """Whether a port of a segment that this host can place has a MAC."""
    network = view.network_at(segment.place)
    ports = view.ports_of(network) if network is not None else []
    return any(port.mac == mac and reachable(view, port) for port in ports)


def sent(port: str, frame: bytes, **fields: Any) -> Arrival:
    """A frame from a port. ``fields``: ``gso_size``, ``vlan``."""
    return Arrival(port=port, frame=frame, **fields)


def tunnelled(
    frame: bytes, vtep: str = "192.0.2.2", vni: int = 100, *, segment: Segment | None = None, **fields: Any
) -> Arrival:
    """An inner frame by tunnel, on a VNI of VXLAN or another segment. ``fields``: ``tos``."""
    return Arrival(vtep=vtep, segment=segment or Segment(id=vni), frame=frame, **fields)


def places(outputs: tuple[Output, ...]) -> list[tuple[str, str, str, int, str]]:
    """Outputs in an order, without rules."""
    return sorted(
        (one.port or "", one.vtep or "", one.segment.text if one.segment else "", one.tos, one.frame.hex())
        for one in outputs
    )


def shown(counts: Counts) -> dict[Any, int]:
    """Counters that are not zero, by readable names."""
    names: dict[Any, int] = {(port, reason.name): number for (port, reason), number in counts.reasons.items() if number}
    return names | {what: number for what, number in counts.traffic.items() if number}


def differing(value: Any, other: Any) -> Any:
    """Of mappings only the items that the other has not."""
    if isinstance(value, dict) and isinstance(other, dict):
        return {key: item for key, item in value.items() if key not in other or other[key] != item}
    return value


def steps_of(decision: Decision) -> list[str]:
    return [f"  {step.stage}: {step.text}" for step in decision.steps]


def connection_of(original: Key, reply: Key | None, known: dict[str, Any], now: int) -> Connection:
    """The connection of which ``facts`` are known."""
    sides = [TcpSide(edge=edge, ack=ack) for edge, ack in known["tcp"]]
    return Connection(
        state=known["state"],
        original=original,
        receiver=original.where if reply is None else reply.where,
        reply=reply,
        tracks_from=known["tracks"][0],
        tracks_to=known["tracks"][1],
        fin_original=known["fins"][0],
        fin_reply=known["fins"][1],
        adopted=known["adopted"],
        is_cut=original.protocol == TCP and known["timeout"] == CUT_TIMEOUT,
        seen=now,
        packets=list(known["packets"]),
        octets=list(known["octets"]),
        tcp=(sides[0], sides[1]),
    )


def facts(connection: Connection) -> dict[str, Any]:
    return {
        "state": connection.state,
        "timeout": connection.timeout,
        "reply": connection.reply,
        "tracks": (connection.tracks_from, connection.tracks_to and connection.reply is not None),
        "fins": (connection.fin_original, connection.fin_reply),
        "adopted": connection.adopted,
        "packets": connection.packets,
        "octets": connection.octets,
        "tcp": [(side.edge, side.ack) for side in connection.tcp],
    }
