"""What a host may read: the definition by example, and the incremental form against it."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.controller.closure import Key, Sight, closure
from headrace.model import AddressGroup, Host, Network, Object, Port, Rule, SecurityGroup, Segment, State, Subnet


def port(
    id_: str, network: str, host: str | None = None, groups: tuple[str, ...] = (), parent: str | None = None
) -> Port:
    parent = None if parent == id_ else parent
    vlan = None if parent is None else 7
    return Port(
        id=id_, network=network, host=host, security_groups=groups, mac="02:00:00:00:00:01", parent=parent, vlan=vlan
    )


def rule(id_: str, *, group: str | None = None, addresses: str | None = None) -> Rule:
    return Rule(id=id_, direction="ingress", remote_group=group, remote_address_group=addresses)


def network(id_: str) -> Network:
    return Network(id=id_, segment=Segment(id=1))


STATE = State.of(
    [
        network("n1"),
        network("n2"),
        network("n3"),
        Subnet(id="s1", network="n1", cidr="10.0.0.0/24"),
        Subnet(id="s2", network="n2", cidr="10.0.0.0/24"),
        SecurityGroup(id="web", rules=(rule("r1", group="db"), rule("r2", addresses="office"))),
        SecurityGroup(id="db", rules=(rule("r3", group="secret"),)),
        SecurityGroup(id="secret"),
        AddressGroup(id="office", addresses=("192.0.2.0/24",)),
        AddressGroup(id="other", addresses=("198.51.100.0/24",)),
        Host(id="h1"),
        Host(id="h2"),
        Host(id="h3"),
        port("p1", "n1", "h1", ("web",)),
        port("p2", "n1", "h2"),
        port("p3", "n2", "h3", ("db",)),
        port("p4", "n2", "h3", ("secret",)),
        port("p5", "n1"),
    ]
)


def keys(state: State) -> set[Key]:
    return {(item.type, item.id) for item in state.all()}


def test_a_host_reads_what_its_ports_refer_to() -> None:
    assert keys(closure(STATE, "h1")) == {
        ("network", "n1"),
        ("subnet", "s1"),
        ("security_group", "web"),
        ("security_group", "db"),
        ("address_group", "office"),
        ("host", "h1"),
        ("host", "h2"),
        ("port", "p1"),
        ("port", "p2"),
        ("port", "p3"),
        ("port", "p5"),
    }


def test_a_host_without_ports_reads_itself() -> None:
    assert keys(closure(STATE, "h9")) == set()
    assert keys(closure(State.of([*STATE.all(), Host(id="h9")]), "h9")) == {("host", "h9")}


def test_a_host_reads_the_trunks_that_its_ports_are_of() -> None:
    """Its sub-ports' parents and its parents' sub-ports, bound or not; not their networks, nor a parent's others."""
    state = State.of(
        [
            network("n1"),
            network("n2"),
            network("n3"),
            port("trunk", "n1", "h1"),
            port("bound", "n2", "h1", parent="trunk"),
            port("unbound", "n3", parent="trunk"),
            port("elsewhere", "n3", "h2"),
            port("early", "n2", "h1", parent="elsewhere"),
            port("late", "n3", "h2", parent="elsewhere"),
        ]
    )
    seen = keys(closure(state, "h1"))
    assert {id_ for kind, id_ in seen if kind == "port"} == {"trunk", "bound", "unbound", "elsewhere", "early"}
    assert {id_ for kind, id_ in seen if kind == "network"} == {"n1", "n2"}


NAMES = st.sampled_from(["a", "b", "c"])
HOSTS = st.sampled_from(["h1", "h2", "h3"])
RULES = st.lists(st.tuples(st.none() | NAMES, st.none() | NAMES), max_size=3).map(
    lambda pairs: tuple(
        rule(f"r{number}", group=group) if group else rule(f"r{number}", addresses=addresses)
        for number, (group, addresses) in enumerate(pairs)
    )
)
OBJECTS: st.SearchStrategy[Object] = st.one_of(
    st.builds(network, NAMES),
    st.builds(Subnet, id=NAMES, network=NAMES, cidr=st.just("10.0.0.0/8")),
    st.builds(SecurityGroup, id=NAMES, rules=RULES),
    st.builds(AddressGroup, id=NAMES),
    st.builds(Host, id=HOSTS, vteps=st.sampled_from([(), ("192.0.2.1",)])),
    st.builds(
        port,
        st.sampled_from(["p1", "p2", "p3", "p4"]),
        NAMES,
        st.none() | HOSTS,
        st.lists(NAMES, max_size=3).map(tuple),  # with repetitions: a list from outside may have them
        st.none() | st.sampled_from(["p1", "p2"]),
    ),
)
KEYS = OBJECTS.map(lambda item: (item.type, item.id))
STEPS = st.lists(
    OBJECTS.map(lambda item: ((item.type, item.id), item)) | KEYS.map(lambda key: (key, None)), max_size=40
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_incremental_sight_equals_the_closure(steps: list[tuple[Key, Object | None]]) -> None:
    sight = Sight()
    objects: dict[Key, Object] = {}
    known: dict[str, set[Key]] = {host: set() for host in ("h1", "h2", "h3")}
    for key, item in steps:
        objects.pop(key, None)
        if item:
            objects[key] = item
        pairs = sight.replace(key, item)
        state = State.of(objects.values())
        for host, seen in known.items():
            wanted = keys(closure(state, host))
            for (whose, thing), (was, now) in pairs.items():
                if whose == host:
                    assert was == (thing in seen)
                    (seen.add if now else seen.discard)(thing)
            assert seen == wanted
            assert sight.seen(host) == wanted
            assert {thing for thing in objects if sight.sees(host, thing)} == wanted


@settings(max_examples=50, deadline=None)
@given(STEPS)
def test_only_watched_hosts_are_told_and_fully(steps: list[tuple[Key, Object | None]]) -> None:
    all_, some = Sight(), Sight()
    for key, item in steps:
        told = {pair: sight for pair, sight in all_.replace(key, item).items() if pair[0] == "h1"}
        assert some.replace(key, item, {"h1"}) == told


def test_a_member_more_costs_what_sees_it_not_what_there_is() -> None:
    """10,000 members on 500 hosts: one member more touches each host once, and nothing is quadratic."""
    sight = Sight()
    sight.replace(("security_group", "g"), SecurityGroup(id="g", rules=(rule("r", group="g"),)), ())
    for number in range(10_000):
        item = port(f"p{number}", f"n{number % 100}", f"h{number % 500}", ("g",))
        sight.replace(("port", item.id), item, ())
    start = time.process_time()
    # On a host that has the network and the group already.
    pairs = sight.replace(("port", "new"), port("new", "n0", "h0", ("g",)), None)
    taken = time.process_time() - start
    assert len(pairs) == 500
    assert all(now and not was for was, now in pairs.values())
    assert taken < 0.25, "a member more must not walk over all members"
