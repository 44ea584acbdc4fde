"""Where a port may be bound, and why not; no server."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.model import PortStatus, Record
from headrace.neutron.binding import Refused, choose
from headrace.neutron.feedback import Wanted, decide
from headrace.neutron.ledger import Entry
from headrace.neutron.push import contradiction
from tests.neutron.test_translate import NET, VLAN, VXLAN, port


def agent(*, alive: bool = True, **configurations: Any) -> dict[str, Any]:
    return {
        "alive": alive,
        "heartbeat_timestamp": "2026-01-01 00:00:00",
        "configurations": {"network_types": ["vxlan"], "physical_networks": [], "mtu": 0, "vteps": []} | configurations,
    }


def bind(source: Any = None, network: Any = None, segments: Any = (VXLAN,), agents: Any = None) -> Any:
    agents = [agent()] if agents is None else agents
    return choose(source or port(), network or NET, segments, segments, agents)


def test_a_live_agent_that_can_carry_the_segment_is_enough() -> None:
    assert bind()["id"] == "s1"
    assert bind(segments=(VLAN, VXLAN))["id"] == "s1"
    assert bind(agents=[agent(mtu=1500)])["id"] == "s1"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"agents": []}, "no Headrace agent has reported from host h1; start headrace-agent there"),
        ({"agents": [agent(alive=False)]}, "the Headrace agent on host h1 is dead"),
        ({"source": port(**{"binding:vnic_type": "macvtap"})}, "vnic type macvtap is not supported on host h1"),
        ({"source": port(qos_policy_id="q1")}, "a QoS policy"),
        ({"source": port(qos_network_policy_id="q1")}, "its network's QoS policy"),
        ({"network": NET | {"vlan_transparent": True}}, "vlan_transparent"),
        ({"source": port(mac_address="ff:ff:ff:ff:ff:ff")}, "multicast"),
        ({"segments": (VLAN,)}, "network type vlan is not available on host h1"),
        ({"segments": (VLAN,), "agents": [agent(network_types=["vlan"])]}, "physical network p is not connected"),
        (
            {"segments": (VLAN,), "agents": [agent(network_types=["vlan"], physical_networks=["p"])]},
            "network type vlan is not one Headrace carries here",
        ),
        ({"agents": [agent(drained=True)]}, "host h1 is drained; `headrace host drain --undo` there"),
        ({"agents": [agent(mtu=1499)]}, "network mtu 1450 needs 1500 on the uplink, which has 1499"),
        ({"segments": ()}, "network n1 has no segment to bind"),
    ],
)
def test_every_refusal_says_why(arguments: Any, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        bind(**arguments)


UP = PortStatus(id="p", state="up")
DOWN = PortStatus(id="p", state="down")
ERROR = PortStatus(id="p", state="error")


@pytest.mark.parametrize(
    ("stored", "said", "applied", "verdict"),
    [
        (7, UP, 7, "ACTIVE"),
        (7, UP, 6, None),
        (7, PortStatus(id="p", state="up", revision=7), 6, "ACTIVE"),
        (None, UP, 99, None),
        (7, DOWN, 0, "DOWN"),
        (None, DOWN, 0, "DOWN"),
        (7, ERROR, 0, "ERROR"),
        (7, None, 7, "DOWN"),
        (7, None, 6, None),
    ],
)
def test_a_host_is_believed_when_it_speaks_of_the_present(
    stored: int | None, said: PortStatus | None, applied: int, verdict: str | None
) -> None:
    assert decide(Wanted(id="p", status="BUILD", admin_up=True, stored=stored), said, applied) == verdict


KEY = ("port", "p")


def record(revision: int, epoch: str = "e") -> Record:
    return Record(type="port", id="p", writer="neutron", writer_epoch=epoch, revision=revision, body={})


@pytest.mark.parametrize(
    ("held", "ours", "known", "wrong"),
    [
        ({KEY: record(3)}, {KEY: 3}, {KEY: Entry(key=KEY, revision=3, stored=1)}, ""),
        # Pushed, and the worker died before writing that down.
        ({KEY: record(4)}, {KEY: 5}, {KEY: Entry(key=KEY, revision=3, stored=1)}, ""),
        # Deleted here, not yet there.
        ({KEY: record(4)}, {}, {KEY: Entry(key=KEY, revision=4, stored=1)}, ""),
        # Refused there, or not carried: not expected there either.
        ({}, {KEY: 5}, {KEY: Entry(key=KEY, revision=5)}, ""),
        ({KEY: record(6)}, {KEY: 5}, {}, "revision 6 there and 5 here"),
        ({KEY: record(3, "other")}, {KEY: 3}, {}, "writer epoch other"),
        ({}, {KEY: 5}, {KEY: Entry(key=KEY, revision=5, stored=1)}, "is not there"),
        ({KEY: record(2)}, {KEY: 5}, {KEY: Entry(key=KEY, revision=3, stored=1)}, "is not there"),
    ],
)
def test_a_restored_database_is_noticed(held: Any, ours: Any, known: Any, wrong: str) -> None:
    found = contradiction("e", held, ours, known)
    assert (wrong in found) if wrong and found else (found is None and not wrong)
