"""Every program passes this kernel's verifier, whatever its knobs; tests/netns/test_verifier.py asks the oldest's."""

from __future__ import annotations

from headrace import abi
from headrace.datapath.bpf import OBJECTS, Datapath, Sizes
from headrace.model import State
from headrace.stages import Device, View, compile_parts
from headrace.testing import packet
from headrace.testing.host import PacketHost
from headrace.testing.observation import TC_ACT_REDIRECT, skb_context
from headrace.testing.world import ANY, HOSTS, group, network, port
from verifier import knobs, measure_all


def test_every_program_loads_with_every_knob_toggled() -> None:
    figures = measure_all(OBJECTS)
    for path in OBJECTS.glob("*.bpf.o"):
        name = path.name.removesuffix(".bpf.o")
        mine = [row for row in figures if row.program.startswith(f"{name}/")]
        assert {row.knob for row in mine} == {"", *knobs(path)}
        assert len({row.program for row in mine}) * len({row.knob for row in mine}) == len(mine)


def test_nothing_is_observed_unless_asked_for(host: PacketHost) -> None:
    """hr_observe, both values: PacketHost has it on, agents have it off."""
    a, b = port("a", "blue", 1, "any"), port("b", "blue", 2, "any")
    state = State.of((*HOSTS, network("blue"), group("any", *ANY), a, b))
    devices = {
        name: Device(ifindex=host.stand.index[device], name=device) for name, device in (("a", "port0"), ("b", "port1"))
    }
    context, frame = skb_context(devices["a"].ifindex), packet.udp(a, b, 1, 2)
    for observe in (False, True):
        with Datapath(host.stand.bpffs() / "headrace", Sizes(connections=64), observe=observe) as datapath:
            datapath.apply(compile_parts(View(state, "h1", datapath.index, devices, HOSTS[0].vteps)))
            with host.stand.inside():
                result = datapath.programs["hr_from_port"].test_run(frame, ctx=context)
            values = datapath.maps["hr_conclusions"].lookup_cpus(bytes(4)) or []
            concluded = [value for value in values if value != abi.Conclusion().pack()]
            assert (result.retval, result.data_out, len(concluded)) == (TC_ACT_REDIRECT, frame, int(observe))
