"""One host's datapath without traffic: the real programs by BPF_PROG_TEST_RUN, frame in, verdict and frame out.

    with PacketHost() as host:
        host.start(state, "h1")
        observed = host.run(Arrival(port="a", frame=frame))

A test run redirects nothing: the frame that would leave is in its answer. stand.py reads the copies of a flooded one.
Needs root; the prelude needs clang. twin.py judges.
"""

from __future__ import annotations

import contextlib
import ipaddress
import struct
from typing import Any, Self

from msgspec.structs import replace

from headrace import abi
from headrace.abi import Reason, State
from headrace.datapath.bpf import Datapath, Sizes
from headrace.datapath.decision import RULE_NONE, Arrival, Output, Refusal
from headrace.datapath.dry import Dry, Outcome
from headrace.datapath.libbpf import Object, Program
from headrace.datapath.ringbuf import RingBuffer
from headrace.model import State as Desired
from headrace.stages import Device, Memo, Tables, View, compile_parts
from headrace.stages.view import flat, rule_id
from headrace.testing import observation as seen
from headrace.testing.clang import compile_bpf
from headrace.testing.memory import Memory, span
from headrace.testing.observation import Counts, Hook, Observed
from headrace.testing.stand import DEVICES, STRANGER, UPLINK, Stand

CONNECTIONS = 1024
NOTHING = abi.Conclusion(reason=0xFFFFFFFF)
SHORTEST = 54
"""Test runs of Linux 6.18 refuse frames that end in their IP header: longer ones are given, and cut by the prelude."""

PRELUDE = """
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u32);
} entries SEC(".maps");

/* cb[0]: a VLAN tag to take off, beside the frame; cb[1]: the length to cut it to. */
static __always_inline int enter(struct __sk_buff *skb, __u32 which)
{
	__u32 vlan = skb->cb[0], length = skb->cb[1];

	skb->cb[0] = skb->cb[1] = 0;
	if (length && bpf_skb_change_tail(skb, length, 0))
		return 98;
	if (vlan && bpf_skb_vlan_push(skb, __builtin_bswap16(0x8100), vlan & 0xfff))
		return 99;
	bpf_tail_call(skb, &entries, which);
	return 100;
}

SEC("tc") int from_port(struct __sk_buff *skb)
{
	return enter(skb, 0);
}

SEC("tc") int from_uplink(struct __sk_buff *skb)
{
	return enter(skb, 1);
}
"""


class PacketHost:
    """The programs and tables of one host, in a network namespace of their own."""

    def __init__(self) -> None:
        self._exit = contextlib.ExitStack()
        self.ports: dict[str, int] = {}
        self._before: Counts | None = None
        self._memo = Memo()
        self.state = Desired()
        self.desired: Tables = {}
        self.host = ""
        self._options: dict[str, Any] = {}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as guard:
            self.stand = guard.enter_context(Stand())
            self.datapath = guard.enter_context(
                Datapath(self.stand.bpffs() / "headrace", Sizes(connections=CONNECTIONS), observe=True)
            )
            self.memory = Memory(self.datapath, self.ports)
            self._dry = guard.enter_context(Dry(self.datapath))
            prelude = compile_bpf(PRELUDE, self.stand.directory, "prelude")
            self._prelude = guard.enter_context(Object.open(prelude).load())
            for which, name in enumerate(("hr_from_port", "hr_from_uplink")):
                fd = self.datapath.programs[name].fd
                self._prelude.maps["entries"].update(which.to_bytes(4, "little"), fd.to_bytes(4, "little"))
            self.punts: list[abi.Punt] = []
            receive = lambda octets: self.punts.append(abi.Punt.unpack(octets))  # noqa: E731
            self._punts = guard.enter_context(RingBuffer(self.datapath.maps["hr_punts"], receive))
            self._exit = guard.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._exit.close()

    # Desired state

    def start(
        self,
        state: Desired,
        host: str,
        *,
        quota: int = 0,
        whole: bool = False,
        mss_clamp: bool = False,
        underlay_mtu: int = 1500,
    ) -> None:
        """Be ``host`` with nothing remembered. ``quota``, ``whole``, ``mss_clamp``: as View has them."""
        self.memory.clear()
        self.stand.narrow(underlay_mtu)
        self.host = host
        self.state = state
        self.configure(quota=quota, whole=whole, mss_clamp=mss_clamp)

    def configure(self, **options: Any) -> None:
        """Change options of ``start``, as an agent with another configuration does."""
        self._options |= options
        self.apply(self.state)

    def apply(self, state: Desired) -> int:
        """Make ``state`` the desired one, as the agent does; answers how many entries were written."""
        self.state, self._before = state, None
        devices = self._devices(state)
        own = state.hosts[self.host].vteps if self.host in state.hosts else ()
        view = View(state, self.host, self.datapath.index, devices, own, memo=self._memo, **self._options)
        self.ports.clear()
        self.ports.update({port.id: self.datapath.index.port(port.id) for port in view.local_ports})
        self.memory.names.update({index: port for port, index in self.ports.items()})
        self._rules = {rule_id(rule.id): rule.id for group in state.security_groups.values() for rule in group.rules}
        self.stand.resolve(vtep for host in state.hosts.values() for vtep in host.vteps)
        parts = compile_parts(view)
        self.desired = flat(parts)
        return self.datapath.apply(parts)

    def narrow(self, mtu: int) -> None:
        """Give the uplink another MTU, and do what the agent does then."""
        self.stand.narrow(mtu)
        self.datapath.forget_next_hops(redecide=True)

    def unlike(self) -> list[str]:
        """Names of the tables that are not what is desired, read back from the kernel."""
        return [name for name, entries in self.desired.items() if dict(self.datapath.read(name)) != entries]

    def _devices(self, state: Desired) -> dict[str, Device]:
        """In the order of port ids: every other one is said to be a veth, the first two of four to be on XDP."""
        ports = sorted(state.ports_on(self.host))
        if len(ports) > len(DEVICES):
            raise ValueError(f"{len(ports)} ports on host {self.host}; a PacketHost has {len(DEVICES)} devices")
        self._device = dict(zip(ports, DEVICES, strict=False))
        return {
            port: Device(ifindex=self.stand.index[name], name=name, peer=number % 2 == 0, xdp=number % 4 < 2)
            for number, (port, name) in enumerate(self._device.items())
        }

    # Packets

    def run(self, arrival: Arrival, hook: Hook = "tc") -> Observed:
        """Let a frame in by tc; with ``xdp`` by XDP first, as on a device that has both. What it punts: ``punts``."""
        before = self._before or self.counts()
        self.punts.clear()
        with self.stand.inside():
            self.datapath.maps["hr_conclusions"].update(bytes(4), NOTHING.pack())
            if hook == "xdp" and arrival.gso_size == 0 and arrival.vlan is None:
                found = self._run_xdp(arrival) or self._run_tc(arrival)
            else:
                found = self._run_tc(arrival)
        observed, conclusion = found
        self._punts.consume()
        after = self._before = self.counts()
        counts = Counts(reasons=after.reasons - before.reasons, traffic=after.traffic - before.traffic)
        return self._explain(observed, conclusion, counts, arrival)

    def ask(self, arrival: Arrival) -> Outcome | None:
        """What the dry programs say would happen; None of what they cannot be asked. Short frames are padded."""
        frame = self.outer(arrival).ljust(SHORTEST, b"\0")
        if arrival.vlan is not None:
            return None
        run = self._dry.from_uplink if arrival.port is None else self._dry.from_port
        with self.stand.inside():
            return run(frame, self.entrance(arrival), arrival.gso_size)

    def outer(self, arrival: Arrival) -> bytes:
        """The frame as it enters: by tunnel with outer headers to the VTEP of ours that has the sender's family."""
        if arrival.vtep is None or arrival.vni is None:
            return arrival.frame
        version = ipaddress.ip_address(arrival.vtep).version
        own = [text for text in self.state.hosts[self.host].vteps if ipaddress.ip_address(text).version == version]
        if not own:
            raise ValueError(f"host {self.host} has no VTEP that {arrival.vtep} could send to")
        return seen.put_on(arrival.vtep, own[0], arrival.vni, arrival.frame)

    def entrance(self, arrival: Arrival) -> int:
        """Index of the device by which it enters."""
        return self.stand.index[UPLINK if arrival.port is None else self._device.get(arrival.port, STRANGER)]

    def _run_tc(self, arrival: Arrival) -> tuple[Observed, abi.Conclusion]:
        which = "from_uplink" if arrival.port is None else "from_port"
        frame, cut = self.outer(arrival), 0
        program: Program = self.datapath.programs[f"hr_{which}"]
        if arrival.vlan is not None or len(frame) < SHORTEST:
            program = self._prelude.programs[which]
            cut = len(frame) if len(frame) < SHORTEST else 0
        context = seen.skb_context(self.entrance(arrival), gso_size=arrival.gso_size, vlan=arrival.vlan, length=cut)
        result = program.test_run(frame.ljust(SHORTEST, b"\0") if cut else frame, ctx=context)
        conclusion = self.conclusion()
        mark = seen.SKB.unpack(result.ctx_out)[0]
        if result.retval == seen.TC_ACT_UNSPEC:
            assert result.data_out == frame, "a frame that is the kernel's goes on untouched"
            observed = Observed(reason=Reason.NONE, verdict=result.retval, passed=True)
        elif result.retval == seen.TC_ACT_REDIRECT:
            observed = self._left(result.data_out, conclusion.ifindex, result.retval, marked=mark == seen.MARK)
        elif result.retval == seen.TC_ACT_SHOT and conclusion.reason == Reason.FLOODED:
            observed = self._flooded()
        else:
            assert result.retval == seen.TC_ACT_SHOT, f"retval {result.retval:#x}"
            observed = Observed(reason=Reason.NONE, verdict=result.retval)
        return observed, conclusion

    def _run_xdp(self, arrival: Arrival) -> tuple[Observed, abi.Conclusion] | None:
        """None: XDP left it to tc, untouched or with nothing but its outer headers taken off."""
        which = "hr_xdp_from_uplink" if arrival.port is None else "hr_xdp_from_port"
        frame = self.outer(arrival)
        context = seen.xdp_context(self.entrance(arrival), len(frame))
        result = self.datapath.programs[which].test_run(frame, ctx=context)
        conclusion = self.conclusion()
        if result.retval == seen.XDP_PASS:
            assert conclusion == NOTHING, "XDP concludes only what it carries out"
            start, end, meta, *_ = seen.XDP.unpack(result.ctx_out)
            if meta == start:
                assert result.data_out == frame, "XDP leaves to tc what it did not touch"
            else:
                inner = result.data_out[start - meta :] if len(result.data_out) == end - meta else result.data_out
                assert (inner, len(frame) - len(inner)) in {(frame[50:], 50), (frame[70:], 70)}, "only outer headers go"
            return None
        assert result.retval == seen.XDP_REDIRECT, f"retval {result.retval}"
        return self._left(result.data_out, conclusion.ifindex, result.retval, hook="xdp"), conclusion

    def _left(self, frame: bytes, ifindex: int, verdict: int, *, hook: Hook = "tc", marked: bool = False) -> Observed:
        name = next((name for name, index in self.stand.index.items() if index == ifindex), "")
        assert name, f"redirected to device {ifindex}, which is none of ours"
        output = self._output(name, frame)
        outer = frame if name == UPLINK else b""
        return Observed(reason=Reason.NONE, verdict=verdict, hook=hook, outputs=(output,), marked=marked, outer=outer)

    def _output(self, device: str, frame: bytes) -> Output:
        if device == UPLINK:
            outer = seen.take_off(frame)
            return Output(frame=outer.inner, vtep=outer.destination, vni=outer.vni, tos=outer.tos)
        return Output(frame=frame, port=next(port for port, name in self._device.items() if name == device))

    def _flooded(self) -> Observed:
        left = list(self.stand.copies())
        outputs = tuple(self._output(name, frame) for name, frame in left)
        copies = tuple(frame for name, frame in left if name == UPLINK)
        return Observed(reason=Reason.FLOODED, verdict=seen.TC_ACT_SHOT, outputs=outputs, copies=copies)

    def conclusion(self) -> abi.Conclusion:
        """What the last program on this CPU concluded."""
        values = self.datapath.maps["hr_conclusions"].lookup_cpus(bytes(4))
        assert values is not None
        return abi.Conclusion.unpack(values[self.stand.cpu])

    def _explain(self, observed: Observed, conclusion: abi.Conclusion, counts: Counts, arrival: Arrival) -> Observed:
        """Complete what was seen by what the tables say of it."""
        entered = "" if arrival.port is None else arrival.port
        refused = tuple(
            Refusal(port=port, reason=reason)
            for (port, reason), count in sorted(counts.reasons.items())
            if observed.reason == Reason.FLOODED and (port != entered or reason == Reason.TOO_BIG)
            for _ in range(count)
        )
        if conclusion == NOTHING:
            reason = next((reason for _, reason in counts.reasons), Reason.NONE)
            return replace(observed, reason=reason, concluded=False, counts=counts)
        assert conclusion.verdict == observed.verdict, f"{conclusion} but the verdict was {observed.verdict}"
        rule, state = conclusion.rule, None
        if conclusion.reason == Reason.NONE:
            found = self.memory.find(conclusion.key)
            state = State(found[0].state) if found else None
            if conclusion.replayed:
                assert found is not None, "a replay without a connection"
                rule = found[0].rule[found[1]]
        return replace(
            observed,
            reason=Reason(conclusion.reason),
            refused=refused,
            replayed=bool(conclusion.replayed),
            rule_from=self.rule_name(rule.from_side),
            rule_to=self.rule_name(rule.to_side),
            key=seen.key_of(conclusion.key, self.memory.place(conclusion.key.where)),
            connection=state,
            counts=counts,
        )

    def forget_counts(self) -> None:
        """Count anew from here: something ran that ``run`` did not."""
        self._before = None

    def rule_name(self, rule: int) -> str:
        """The model's id of a rule."""
        return seen.RULE_NAMES.get(rule) or self._rules.get(rule, f"{RULE_NONE} that is desired: {rule:#x}")

    def counts(self) -> Counts:
        """Every counter of the host's ports and uplink."""
        counts = Counts()
        for name, index in {"": 0, **self.ports}.items():
            rows = span(self.datapath.maps["hr_reasons"], index * abi.REASONS, len(Reason))
            for reason, row in zip(Reason, rows, strict=True):
                if any(row):
                    counts.reasons[name, reason] = sum(struct.unpack(f"<{len(row) // 8}Q", row))
            counters = self.datapath.port_counters(index)
            for which in ("from_port", "to_port", "walked"):
                pair = getattr(counters, which)
                counts.traffic.update({(name, which, "packets"): pair.packets, (name, which, "octets"): pair.octets})
        return counts
