"""Where a port may be bound, and why not; no server."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.model import PortStatus, Record
from headrace.neutron.binding import Refused, choose
from headrace.neutron.feedback import Wanted, decide
from headrace.neutron.ledger import Entry
from headrace.neutron.push import contradiction
from tests.neutron.test_translate import CARRIERS, NET, VLAN, VXLAN, of, port


def agent(*, alive: bool = True, **configurations: Any) -> dict[str, Any]:
    return {
        "alive": alive,
        "heartbeat_timestamp": "2026-01-01 00:00:00",
        "configurations": {"network_types": ["vxlan"], "physical_networks": [], "mtu": 0, "vteps": []} | configurations,
    }


def bind(
    source: Any = None, network: Any = None, segments: Any = (VXLAN,), agents: Any = None, to_bind: Any = None
) -> Any:
    agents = [agent()] if agents is None else agents
    return choose(source or port(), network or NET, segments, to_bind or segments, agents, CARRIERS)


EVERY = ["flat", "vlan", "vxlan", "geneve", "gre", "mpls", "nsh"]


def able(**configurations: Any) -> list[dict[str, Any]]:
    return [agent(network_types=EVERY, physical_networks=["p"], **configurations)]


def test_a_live_agent_that_can_carry_the_segment_is_enough() -> None:
    assert bind()["id"] == "s1"
    assert bind(agents=[agent(mtu=1500)])["id"] == "s1"
    assert bind(to_bind=(VLAN, VXLAN))["id"] == "s1", "a dynamic segment beside it is another driver's"


@pytest.mark.parametrize(
    ("given", "of_ip4", "of_ip6"),
    [
        (VXLAN, 50, 70),
        (of("geneve", 5), 50, 70),
        (of("gre", 5), 42, 62),
        (of("mpls", 17), 46, 66),
        (of("nsh", 5), 58, 78),
    ],
)
def test_a_tunnel_needs_room_for_its_headers(given: Any, of_ip4: int, of_ip6: int) -> None:
    """docs/pipeline.md, "encap"."""
    for vteps, needed in ((["192.0.2.1", "2001:db8::1"], 1450 + of_ip4), (["2001:db8::1"], 1450 + of_ip6)):
        assert bind(segments=(given,), agents=able(mtu=needed, vteps=vteps))
        with pytest.raises(Refused, match=f"its mtu 1450 needs {needed} on the uplinks of host h1, .* to 1449"):
            bind(segments=(given,), agents=able(mtu=needed - 1, vteps=vteps))


@pytest.mark.parametrize("given", [VLAN, of("flat", None, "p")])
def test_a_physical_network_needs_its_own_device_s_mtu(given: Any) -> None:
    assert bind(segments=(given,), agents=able(mtu=1000, physical_mtus={"p": 1450}))
    with pytest.raises(Refused, match="needs 1450 on the device of physical network p of host h1, which has 1449"):
        bind(segments=(given,), agents=able(mtu=9000, physical_mtus={"p": 1449}))


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
        ({"network": NET | {"qinq": True}}, "qinq"),
        (
            {"segments": (of("mpls", 17),)},
            r"network type mpls is not available on host h1 \(vxlan\); upgrade its agent",
        ),
        ({"segments": (VLAN,)}, 'physical network p is not connected on host h1; there, set .*p = "DEVICE"'),
        ({"segments": (VLAN,), "agents": [agent(physical_networks=["p"])]}, "network type vlan is not available"),
        ({"segments": (VLAN, VXLAN), "agents": able()}, "network n1 has 2 segments"),
        ({"to_bind": (VLAN,), "agents": able()}, "its segment is not offered to headrace"),
        ({"agents": [agent(drained=True)]}, "host h1 is drained; `headrace host drain --undo` there"),
        ({"segments": ()}, "network n1 has 0 segments"),
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
