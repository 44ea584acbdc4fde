"""The scenarios that judges are compared by, and what must hold of the oracle in every one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from hypothesis import HealthCheck, given, settings

from headrace.abi import Reason
from headrace.abi import State as ConnectionState
from headrace.datapath.connection import Connections
from headrace.datapath.decision import RULE_NONE, Arrival, Decision
from headrace.datapath.oracle import decide
from headrace.datapath.wires import vlan
from headrace.model import Segment, State
from headrace.testing.choice import Seeded, some, weighted
from headrace.testing.play import shortened
from headrace.testing.strategy import Overtaken, Pause, Scenario, Stale, judge, scenario_of, scenarios, states, tell
from headrace.testing.strategy_file import decode, encode

FORWARDED = {Reason.NONE, Reason.FLOODED, Reason.ANSWERED}

QUICK = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def test_a_seed_is_a_scenario() -> None:
    assert scenario_of(7) == scenario_of(7)
    assert scenario_of(7) != scenario_of(8)
    assert tell(scenario_of(7)) == tell(scenario_of(7))


def test_kept_scenarios_come_back() -> None:
    for seed in range(6):
        scenario = scenario_of(seed, both=seed % 2 == 0)
        assert decode(encode(scenario)) == scenario


def test_the_seeds_are_varied() -> None:
    decisions = [decision for seed in range(90) for decision in judge(scenario_of(seed))]
    reasons = Counter(decision.reason for decision in decisions)
    common = FORWARDED | {
        *(Reason.ACL_TO_PORT, Reason.ACL_FROM_PORT, Reason.FRAGMENT_ORPHAN, Reason.ICMP_UNRELATED, Reason.TCP_INVALID),
        *(Reason.SPOOFED_ADDRESS, Reason.SPOOFED_MAC, Reason.VLAN_TAGGED, Reason.MALFORMED_IPV4, Reason.MALFORMED_IPV6),
        *(Reason.TCP_WINDOW, Reason.TOO_BIG, Reason.PUNTED),
        *(Reason.FRAGMENT_OVERLAP, Reason.FRAGMENT_TINY, Reason.CONNECTION_CUT, Reason.UNKNOWN_MAC, Reason.ETHERTYPE),
    }
    assert common - reasons.keys() == set()
    assert reasons[Reason.NONE] > len(decisions) // 4
    states = Counter(decision.connection for decision in decisions)
    assert set(ConnectionState) - states.keys() - {ConnectionState.TIME_WAIT} == set()
    assert sum("ESTABLISHED" in (decision.rule_from, decision.rule_to) for decision in decisions) > 50


def test_the_events_are_varied() -> None:
    scenarios = [scenario_of(seed, both=both) for seed in range(40) for both in (False, True)]
    kinds = {type(event) for scenario in scenarios for event in scenario.events}
    assert kinds == {Arrival, State, Pause, Stale, Overtaken}
    assert {scenario.mss_clamp for scenario in scenarios} == {False, True}
    senders = {
        state.ports[event.port].host
        for scenario in scenarios
        if scenario.both
        for state, event in situations(scenario)
        if event.port is not None
    }
    assert senders == {"h1", "h2"}
    gso = sum(event.gso_size > 0 for scenario in scenarios for _, event in situations(scenario))
    assert gso > 5


def situations(scenario: Scenario) -> Iterator[tuple[State, Arrival]]:
    """Each arrival and the state that it meets."""
    state = scenario.state
    for event in scenario.events:
        if isinstance(event, State):
            state = event
        elif isinstance(event, Arrival):
            yield state, event


def test_a_scenario_is_shortened_to_what_it_takes() -> None:
    events = tuple(Pause(ms=ms) for ms in range(1, 30))
    scenario = Scenario(state=State(), events=events)

    def fails(one: Scenario) -> str:
        return "so" if {Pause(ms=3), Pause(ms=17), Pause(ms=18)} <= set(one.events) else ""

    assert shortened(scenario, fails).events == (Pause(ms=3), Pause(ms=17), Pause(ms=18))
    assert shortened(scenario, lambda _: "always").events == ()


def test_choices_of_a_seed() -> None:
    choose = Seeded(1)
    counts = Counter(weighted(choose, [(9, "often"), (1, "seldom")]) for _ in range(1000))
    assert 850 < counts["often"] < 950
    assert all(some(choose, "abc", 100) == ("a", "b", "c") for _ in range(5))
    assert some(choose, "abc", 0) == ()
    assert {choose.number(1, 3) for _ in range(100)} == {1, 2, 3}


@QUICK
@given(states())
def test_states_are_sound(state: State) -> None:
    for port in state.ports.values():
        assert port.network in state.networks
        assert set(port.security_groups) <= state.security_groups.keys()
        assert port.host in {None, *state.hosts}
        stateful = {state.security_groups[group].stateful for group in port.security_groups}
        assert len(stateful) <= 1, "Neutron refuses a mixture"
    macs = [(port.network, port.mac) for port in state.ports.values()]
    assert len(macs) == len(set(macs))


def check(state: State, host: str, arrival: Arrival, decision: Decision) -> None:
    """What holds of every decision."""
    assert (decision.reason in FORWARDED) or not decision.outputs
    assert decision.steps
    segment = segment_of(state, arrival, decision)
    for output in decision.outputs:
        frame = output.frame
        if output.port is not None:
            receiver = state.ports[output.port]
            assert receiver.host == host
            assert receiver.admin_up
            assert decision.reason == Reason.ANSWERED or receiver.id != decision.port, "nothing is echoed"
            assert segment in {None, state.networks[receiver.network].segment}, "tenants never meet"
            assert decision.reason == Reason.ANSWERED or output.rule != RULE_NONE
            if receiver.parent is not None:
                assert vlan.tag_of(frame) == (vlan.CUSTOMER, receiver.vlan)
                frame = vlan.without(frame)
        else:
            assert arrival.port is not None, "nothing goes from tunnel to tunnel"
            assert output.segment == segment
        marked = arrival.tos & 3 or (arrival.vtep is None and arrival.port is None)
        assert decision.reason == Reason.ANSWERED or frame[0:12] == arrival.frame[0:12] or marked
        assert decision.reason == Reason.ANSWERED or arrival.frame.endswith(frame[26 if marked else 12 :])
    sender = state.ports.get(decision.port or "")
    if sender is not None and sender.port_security and decision.reason == Reason.NONE:
        assert decision.rule_from not in {RULE_NONE, "OPEN", "REMOTE"}


def segment_of(state: State, arrival: Arrival, decision: Decision) -> Segment | None:
    """Where a frame entered, as far as that is plain to see."""
    if decision.port is not None:
        return state.networks[state.ports[decision.port].network].segment
    tags = vlan.take(arrival.frame)
    if tags is None or arrival.physical is None or "from the wire" not in decision.steps[0].text:
        return arrival.segment
    return Segment.on("physical", tags[1], arrival.physical, tags[0])


@QUICK
@given(scenarios())
def test_what_holds_in_every_scenario(scenario: Scenario) -> None:
    memory, state, now = Connections(), scenario.state, 0
    for event in scenario.events:
        if isinstance(event, State):
            state = event
            continue
        if isinstance(event, Pause):
            now += event.ms
            continue
        if isinstance(event, Stale):
            continue
        if isinstance(event, Overtaken):
            state = event.state
            continue
        decision = decide(state, scenario.host, memory, event, now)
        check(state, scenario.host, event, decision)
        for key, connection in memory.flows.items():
            assert key in connection.keys
            assert all(memory.flows[own] is connection for own in connection.keys)
            assert bool(connection.tracks_from or connection.tracks_to) == (
                connection.state != ConnectionState.STATELESS
            )


@QUICK
@given(scenarios(changes=False))
def test_a_packet_sent_again_is_decided_alike(scenario: Scenario) -> None:
    """What a replay of a flow entry stands on: the same key, state and policy give the same verdict."""
    memory = Connections()
    for event in scenario.events:
        assert isinstance(event, Arrival)
        first = decide(scenario.state, scenario.host, memory, event)
        again = decide(scenario.state, scenario.host, memory, event)
        assert (again.reason, again.outputs) == (first.reason, first.outputs)
