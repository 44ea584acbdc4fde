"""The compiled policy, looked up as the datapath does, allows what the rules allow, and nothing else."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import abi
from headrace.model import AddressGroup, Network, Port, Rule, SecurityGroup, Segment, State
from headrace.stages import Table, Tables, View, compile_tables
from headrace.stages.acl import intervals, makes_sense, policy_of, port_range, prefixes
from headrace.stages.view import address_octets, rule_id
from headrace.testing.index import Counting

CIDRS = ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "172.16.0.0/12"]
CIDRS6 = ["::/0", "fd00::/8", "fd00:1::/32", "fd00:1::5/128"]
ADDRESSES = ["10.1.2.3", "10.1.2.4", "10.1.9.9", "10.9.9.9", "172.16.0.1", "192.0.2.1"]
ADDRESSES6 = ["fd00:1::5", "fd00:1::6", "fd00:2::1", "2001:db8::1"]
PORTS = [0, 1, 79, 80, 81, 443, 1023, 1024, 32768, 65534, 65535]


def lookup(table: Table, wanted: bytes, bits: int, offset: int = 4) -> Any:
    """Longest prefix match over packed keys, as BPF_MAP_TYPE_LPM_TRIE has it."""
    best: Any = None
    longest = -1
    whole = int.from_bytes(wanted[offset : offset + bits // 8])
    for key, value in table.items():
        octets = key.pack()
        length = key.prefixlen  # type: ignore[attr-defined]
        here = int.from_bytes(octets[offset : offset + bits // 8])
        if length > longest and here >> (bits - length) == whole >> (bits - length):
            best, longest = value, length
    return best


def decide(tables: Tables, policy: int, direction: int, remote: str, proto: int, service: int) -> int:
    """bpf/stages/acl.h, hr_acl_rule."""
    address = ipaddress.ip_address(remote)
    service_key = abi.AclServiceKey(
        prefixlen=128, direction=direction, family=address.version, policy=policy, proto=proto, port=service
    )
    by_service = lookup(tables["hr_acl_services"], service_key.pack(), 128)
    if not by_service or by_service.rule:
        return int(by_service.rule) if by_service else 0
    remote_key = abi.AclRemoteKey(prefixlen=224, remotes=by_service.remotes, addr=address_octets(address))
    address_key = abi.AclAddressKey(remotes=by_service.remotes, addr=address_octets(address))
    by_remote: Any = tables["hr_acl_addresses"].get(address_key)
    if not by_remote and by_service.remotes:
        by_remote = lookup(tables["hr_acl_remotes"], remote_key.pack(), 224)
    if not by_remote:
        return 0
    if by_remote.rule:
        return int(by_remote.rule)
    if not by_service.class_id:
        return 0
    pair = abi.AclMatchKey(remote_class=by_remote.class_id, service_class=by_service.class_id)
    match: Any = tables["hr_acl_matches"].get(pair)
    return int(match.rule) if match else 0


def allows(state: State, rule: Rule, remote: str, proto: int, service: int) -> bool:
    """The rule, read plainly."""
    address = ipaddress.ip_address(remote)
    if rule.family != address.version or not makes_sense(rule):
        return False
    if rule.protocol is not None:
        first, last = port_range(rule)
        if rule.protocol != proto or not first <= service <= last:
            return False
    if rule.remote_cidr is not None:
        return address in ipaddress.ip_network(rule.remote_cidr, strict=False)
    if rule.remote_address_group is not None:
        group = state.address_groups[rule.remote_address_group]
        return any(address in ipaddress.ip_network(cidr, strict=False) for cidr in group.addresses)
    if rule.remote_group is not None:
        return any(remote in port.addresses for port in state.members(rule.remote_group))
    return True


@st.composite
def rules(draw: st.DrawFn) -> tuple[Rule, ...]:
    """Rules of every kind, in number small enough to meet each other."""
    made = []
    for number in range(draw(st.integers(0, 8))):
        six = draw(st.booleans())
        protocol = draw(st.sampled_from([None, 6, 17, 58 if six else 1, 50]))
        low, high = sorted((draw(st.sampled_from(PORTS)), draw(st.sampled_from(PORTS))))
        icmp = protocol in {1, 58}
        ranged = protocol is not None and draw(st.booleans())
        kinds: list[dict[str, str]] = [{}, {"remote_group": "peers"}, {"remote_address_group": "list"}]
        remote = draw(st.sampled_from([*kinds, *({"remote_cidr": cidr} for cidr in (CIDRS6 if six else CIDRS))]))
        made.append(
            Rule(
                id=f"r{number}",
                direction=draw(st.sampled_from(["ingress", "egress"])),
                ethertype="IPv6" if six else "IPv4",
                protocol=protocol,
                port_min=(low & 255 if icmp else low) if ranged else None,
                port_max=(high & 255 if icmp else high) if ranged and draw(st.booleans()) else None,
                **remote,
            )
        )
    return tuple(made)


def state_of(made: tuple[Rule, ...]) -> State:
    return State.of(
        [
            Network(id="n", segment=Segment(id=7)),
            SecurityGroup(id="g", rules=made),
            SecurityGroup(id="peers"),
            AddressGroup(id="list", addresses=("10.1.0.0/16", "fd00:1::/32", "192.0.2.1/32")),
            Port(id="p", network="n", mac="02:00:00:00:00:01", security_groups=("g",), host="h"),
            Port(
                id="q",
                network="n",
                mac="02:00:00:00:00:02",
                addresses=("10.1.2.3", "fd00:1::5"),
                security_groups=("peers",),
                host="other",
            ),
        ]
    )


@settings(max_examples=300, deadline=None)
@given(
    rules(),
    st.sampled_from(["ingress", "egress"]),
    st.sampled_from(ADDRESSES + ADDRESSES6),
    st.sampled_from([6, 17, 1, 58, 50, 47]),
    st.sampled_from([*PORTS, 0x0800, 0x0301]),
)
def test_tables_allow_what_rules_allow(
    made: tuple[Rule, ...], name: str, remote: str, proto: int, service: int
) -> None:
    state = state_of(made)
    view = View(state, "h", Counting(), {})
    direction = abi.Direction.FROM_PORT if name == "egress" else abi.Direction.TO_PORT
    found = decide(compile_tables(view), policy_of(view, state.ports["p"]), direction, remote, proto, service)
    expected = {
        rule_id(rule.id) for rule in made if rule.direction == name and allows(state, rule, remote, proto, service)
    }
    assert found in expected if expected else found == 0


@given(st.integers(0, 65535), st.integers(0, 65535))
def test_prefixes_make_up_the_range(one: int, two: int) -> None:
    first, last = sorted((one, two))
    covered = [value for value, bits in prefixes(first, last) for value in (value, value + (1 << (16 - bits)) - 1)]
    assert covered[0] == first
    assert covered[-1] == last
    assert all(covered[at] + 1 == covered[at + 1] for at in range(1, len(covered) - 1, 2))


def test_overlapping_ranges_are_cut() -> None:
    selector, other = ("cidr", "10.0.0.0/8"), ("cidr", "172.16.0.0/12")
    cut = list(intervals([(10, 20, selector, 1), (15, 30, other, 2)], {}))
    assert cut == [(10, 14, {selector: 1}), (15, 20, {selector: 1, other: 2}), (21, 30, {other: 2})]


@pytest.mark.parametrize("count", [10, 1000])
def test_one_member_more_is_few_entries(count: int) -> None:
    def tables(members: int) -> set[tuple[str, Any]]:
        state = state_of(
            (Rule(id="r", direction="ingress", remote_group="peers", protocol=6, port_min=80, port_max=80),)
        )
        more = [
            Port(
                id=f"m{number}",
                network="n",
                mac=f"02:00:00:01:{number >> 8:02x}:{number & 255:02x}",
                addresses=(f"10.5.{number >> 8}.{number & 255}",),
                security_groups=("peers",),
            )
            for number in range(members)
        ]
        compiled = compile_tables(View(State.of([*state.all(), *more]), "h", Counting(), {}))
        return {(name, entry) for name, table in compiled.items() for entry in table.items()}

    assert len(tables(count) ^ tables(count + 1)) == 1


def test_compilation_is_the_same_each_time_and_in_any_order() -> None:
    made = (Rule(id="a", direction="ingress", protocol=6), Rule(id="b", direction="ingress", remote_group="peers"))
    one = compile_tables(View(state_of(made), "h", Counting(), {}))
    other = compile_tables(View(state_of(made[::-1]), "h", Counting(), {}))
    assert one == other
