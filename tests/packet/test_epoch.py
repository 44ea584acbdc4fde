"""A walk that is overtaken by a change stores a decision that is stale, never one that wrongly holds.

A stage is replaced by a program that stops, so that a walk ends half-way; its scratch stays on the CPU. Tables then
change, and epochs last, as the agent does it; the stages that remain are run, and their decision is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from headrace import abi
from headrace.abi import FlowFlag, Reason
from headrace.datapath.connection import Connections
from headrace.datapath.decision import Arrival
from headrace.datapath.oracle import decide
from headrace.model import AddressPair, Host
from headrace.model import Object as Desirable
from headrace.model import State as Desired
from headrace.testing import packet
from headrace.testing.host import PacketHost
from headrace.testing.observation import TC_ACT_REDIRECT, TC_ACT_SHOT
from headrace.testing.pause import Pauser
from headrace.testing.twin import Twin, sent, tunnelled
from headrace.testing.world import ANY, group, network, port, rule

MakeTwin = Callable[..., Twin]

FROM_PORT = ("anti_spoof", "respond", "track", "acl_from", "forward", "acl_to", "decide")
"""The stages of a walk from a port to one receiver, in order."""
FROM_TUNNEL = FROM_PORT[2:]

OUT, INTO = group("out", rule("o", "egress", 17)), group("into", rule("i", "ingress", 17))
PAIR = AddressPair(address="10.0.0.50")
A = port("a", "blue", 1, "out", address_pairs=(PAIR,))
B, C, FAR = port("b", "blue", 2, "into"), port("c", "blue", 3, "into"), port("far", "blue", 8, "into", host="h2")
STATE = (network("blue"), OUT, INTO, group("any", *ANY), A, B, C, FAR)

TO_B = sent("a", packet.udp(A, B, 1, 2, payload=bytes(400)))
PAIRED = sent("a", packet.udp(A, B, 1, 2, src="10.0.0.50"))
TO_FAR = sent("a", packet.udp(A, FAR, 1, 2))
BY_TUNNEL = tunnelled(packet.udp(FAR, B, 1, 2))

CHANGES: dict[str, tuple[Arrival, tuple[Desirable, ...]]] = {
    "the sender's rule goes": (TO_B, (group("out"),)),
    "the receiver's rule goes": (TO_B, (group("into"),)),
    "the sender's group goes": (TO_B, (port("a", "blue", 1),)),
    "the receiver's group goes": (TO_B, (port("b", "blue", 2),)),
    "the sender goes down": (TO_B, (port("a", "blue", 1, "out", admin_up=False),)),
    "the receiver goes down": (TO_B, (port("b", "blue", 2, "into", admin_up=False),)),
    "the receiver goes elsewhere": (TO_B, (port("b", "blue", 2, "into", host="h2"),)),
    "the receiver's MAC is another's": (TO_B, (port("b", "blue", 12, "into"), port("c", "blue", 2, "into"))),
    "the sender's address pair goes": (PAIRED, (port("a", "blue", 1, "out"),)),
    "the sender's port security is off": (TO_B, (port("a", "blue", 1, "out", port_security=False),)),
    "the receiver's port security comes": (TO_B, (port("b", "blue", 2, port_security=True),)),
    "the MTU shrinks": (TO_B, (network("blue", mtu=400),)),
    "the VNI is another": (TO_FAR, (network("blue", 200),)),
    "the receiver's VTEP is another": (TO_FAR, (Host(id="h2", vteps=("192.0.2.22",)),)),
    "the receiver comes here": (TO_FAR, (port("far", "blue", 8, "into"),)),
    "the receiver's rule goes, by tunnel": (BY_TUNNEL, (group("into"),)),
    "the receiver moves on, by tunnel": (BY_TUNNEL, (port("b", "blue", 2, "into", host="h3"),)),
    "the sender's VTEP is another": (BY_TUNNEL, (Host(id="h2", vteps=("192.0.2.22",)),)),
}


@pytest.fixture
def pauser(host: PacketHost) -> Iterator[Pauser]:
    with Pauser(host) as opened:
        yield opened


def cases(stages_of: Callable[[str], tuple[str, ...]]) -> list[tuple[str, str]]:
    return [(name, stage) for name in CHANGES for stage in stages_of(name)]


def stages_of(name: str) -> tuple[str, ...]:
    return FROM_PORT if CHANGES[name][0].port is not None else FROM_TUNNEL


def stale(host: PacketHost) -> list[bool]:
    """Of every decision that is stored, whether its epochs no longer hold."""
    epochs = host.datapath.maps["hr_epochs"]

    def epoch(index: int) -> int:
        return int.from_bytes(epochs.lookup(abi.U32(value=index).pack()) or b"", "little")

    decided = [flow for _, flow in host.datapath.flows() if flow.flags & FlowFlag.DECIDED]
    return [(epoch(flow.from_index), epoch(flow.to_index)) != (flow.from_epoch, flow.to_epoch) for flow in decided]


@pytest.mark.parametrize("known", [False, True], ids=["a new flow", "a known flow"])
@pytest.mark.parametrize(("name", "stage"), cases(stages_of))
def test_a_decision_that_was_overtaken_is_stale(
    twin: MakeTwin,
    pauser: Pauser,
    name: str,
    stage: str,
    known: bool,  # noqa: FBT001
) -> None:
    arrival, changes = CHANGES[name]
    asked = twin(*STATE)
    host = asked.host
    if known:
        assert asked.thrice(arrival).replayed
        host.datapath.raise_epochs(host.ports.values())  # so that it walks again
    after = Desired.of((*asked.state.all(), *changes))
    assert pauser.overtaken(arrival, stage, lambda: asked.apply(after)) is not None, f"the walk went past {stage}"
    assert all(stale(host)), "a decision that the change overtook would be replayed"
    expected = decide(after, "h1", Connections(), arrival)
    for hook in ("xdp", "tc"):
        observed = host.run(arrival, hook)
        assert {output.port or output.vtep for output in observed.outputs} == {
            output.port or output.vtep for output in expected.outputs
        }
        assert [output.segment for output in observed.outputs] == [output.segment for output in expected.outputs]
        assert observed.replayed is (hook == "tc" and expected.reason == Reason.NONE)


@pytest.mark.parametrize("arrival", [TO_B, TO_FAR, BY_TUNNEL], ids=["to a port", "to a tunnel", "by tunnel"])
@pytest.mark.parametrize("stage", FROM_TUNNEL)
def test_a_walk_that_nothing_overtakes_is_replayed(
    twin: MakeTwin, pauser: Pauser, arrival: Arrival, stage: str
) -> None:
    """Else the test above would prove nothing."""
    asked = twin(*STATE)
    assert pauser.overtaken(arrival, stage, lambda: None) == TC_ACT_REDIRECT
    assert stale(asked.host) == [False]
    assert asked.host.run(arrival).replayed


@pytest.mark.parametrize("stage", FROM_TUNNEL)
def test_tables_without_epochs_would_be_wrong(twin: MakeTwin, pauser: Pauser, stage: str) -> None:
    """What epochs are for: the same change, with nobody raising any, leaves a decision that holds where it must not."""
    asked = twin(*STATE)
    host, gone = asked.host, abi.Port().pack()

    def change() -> None:
        host.datapath.maps["hr_ports"].update(abi.U32(value=host.ports["c"]).pack(), gone)

    assert pauser.overtaken(TO_B, stage, change) == TC_ACT_REDIRECT
    assert stale(host) == [False]


def test_a_connection_that_ends_under_a_walk(twin: MakeTwin, pauser: Pauser) -> None:
    """Another CPU retires it between two stages: the packet is refused, and nothing is written for the dead."""
    asked = twin(*STATE)
    host = asked.host
    asked.thrice(TO_B)
    host.datapath.raise_epochs(host.ports.values())
    ((index, conn),) = host.memory.connections().items()

    def retire() -> None:
        for key in conn.key:
            host.datapath.maps["hr_flows"].delete(key.pack())
        host.datapath.maps["hr_conns"].update(abi.U32(value=index).pack(), bytes(len(conn.pack())))

    assert pauser.overtaken(TO_B, "decide", retire) == TC_ACT_SHOT
    assert host.conclusion().reason == Reason.BUSY
    assert list(host.datapath.flows()) == []


def test_a_connection_that_is_made_under_a_walk(twin: MakeTwin, pauser: Pauser) -> None:
    """Two walks of one new flow: the loser's packet goes on, and there is one connection."""
    asked = twin(*STATE)
    host = asked.host
    scratch = host.datapath.maps["hr_walks"]
    with pauser.before("decide"):
        pauser.run("hr_from_port", TO_B, TO_B.frame)
    kept = scratch.lookup(bytes(4))
    assert kept is not None
    assert host.run(TO_B).reason == Reason.NONE
    scratch.update(bytes(4), kept)
    verdict, frame = pauser.run("hr_stage_decide", TO_B, TO_B.frame)
    assert (verdict, frame) == (TC_ACT_REDIRECT, TO_B.frame)
    assert len(host.memory.connections()) == 1
    assert not host.memory.inconsistencies()
    assert host.run(TO_B).replayed


def test_the_answer_that_overtakes_its_question(twin: MakeTwin, pauser: Pauser) -> None:
    """Both ends open at once: each walk makes its connection of the other's tuple, one of them stays."""
    ports = (port("a", "blue", 1, "out", "into"), port("b", "blue", 2, "out", "into"))
    asked = twin(network("blue"), OUT, INTO, *ports)
    host = asked.host
    scratch, there = host.datapath.maps["hr_walks"], sent("a", packet.udp(A, B, 1, 2))
    back = sent("b", packet.udp(B, A, 2, 1))
    with pauser.before("decide"):
        pauser.run("hr_from_port", there, there.frame)
    kept = scratch.lookup(bytes(4))
    assert kept is not None
    assert host.run(back).reason == Reason.NONE
    scratch.update(bytes(4), kept)
    assert pauser.run("hr_stage_decide", there, there.frame)[0] == TC_ACT_REDIRECT
    assert len(host.memory.connections()) == 1
    assert not host.memory.inconsistencies()
    for arrival in (there, back, there, back):
        assert host.run(arrival).reason == Reason.NONE
    assert len(host.memory.connections()) == 1
