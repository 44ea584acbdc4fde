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
from headrace.model import Segment
from headrace.model import State as Desired
from headrace.stages import Device, Memo, Tables, View, compile_parts
from headrace.stages.view import flat, rule_id
from headrace.testing import observation as seen
from headrace.testing import outer
from headrace.testing.clang import compile_bpf
from headrace.testing.memory import Memory, span
from headrace.testing.observation import Counts, Hook, Observed
from headrace.testing.stand import DEVICES, STRANGER, UPLINK, WIRES, Stand, underlay_mac

CONNECTIONS = 1024
PHYSICAL = ("physnet1", "physnet2")
"""Physical networks that a host has devices to, unless told otherwise."""
TAGGED = 18
"""Octets of the shortest frame with a tag: the kernel lets no shorter one through."""
ECN_AND_CHECKSUM = 26
"""Octets of an inner frame among which there is what changes when it comes out (RFC 6040)."""
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

/* The tag beside the frame as it leaves, protocol << 16 | TCI; 0: none. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} beside SEC(".maps");

/* What it answers is the called program's verdict; the compiler must not take it for what is written here. */
static __noinline int go(struct __sk_buff *skb, __u32 which)
{
	volatile int verdict = 100;

	bpf_tail_call(skb, &entries, which);
	return verdict;
}

/* cb[0]: a VLAN tag to take off, beside the frame; cb[1]: the length to cut it to. */
static __always_inline int enter(struct __sk_buff *skb, __u32 which)
{
	__u32 vlan = skb->cb[0], length = skb->cb[1], zero = 0, *tag;
	int verdict;

	skb->cb[0] = skb->cb[1] = 0;
	if (length && bpf_skb_change_tail(skb, length, 0))
		return 98;
	if (vlan && bpf_skb_vlan_push(skb, __builtin_bswap16(vlan >> 16), vlan & 0xffff))
		return 99;
	verdict = go(skb, which);
	tag = bpf_map_lookup_elem(&beside, &zero);
	if (tag)
		*tag = skb->vlan_present ? (__u32)__builtin_bswap16(skb->vlan_proto) << 16 | (skb->vlan_tci & 0xffff) : 0;
	return verdict;
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
        self._uplinks: list[int] = []
        self.seam = 0
        """A device that stands for the seam's near end; what goes there comes out at its far end at once."""
        self.physical: dict[str, str] = {}
        """Physical network -> the device that leads to it."""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as guard:
            self.stand = guard.enter_context(Stand())
            self.datapath = guard.enter_context(
                Datapath(self.stand.bpffs() / "headrace", Sizes(connections=CONNECTIONS), observe=True)
            )
            self.memory = Memory(self.datapath)
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
        any_vtep: bool = False,
        underlay_mtu: int = 1500,
        physical: tuple[str, ...] = PHYSICAL,
        shared: tuple[str, ...] = (),
        seam: bool = False,
    ) -> None:
        """Be ``host`` with nothing remembered, and with devices to some physical networks. Others as View has them.

        ``shared``: physical networks whose devices lead to other hosts too. ``seam``: there is one; a test run cuts
        nothing on its way.
        """
        self.memory.clear()
        self.stand.narrow(underlay_mtu)
        self.host = host
        self.state = state
        self.physical = dict(zip(physical, WIRES, strict=False))
        self._uplinks = [self.stand.index[name] for name in (UPLINK, *map(self.physical.__getitem__, shared))]
        self.seam = self.stand.index[STRANGER] if seam else 0
        self.configure(quota=quota, whole=whole, mss_clamp=mss_clamp, any_vtep=any_vtep, seam=self.seam)

    def configure(self, **options: Any) -> None:
        """Change options of ``start``, as an agent with another configuration does."""
        self._options |= options
        self.apply(self.state)

    def apply(self, state: Desired) -> int:
        """Make ``state`` the desired one, as the agent does; answers how many entries were written."""
        self.state, self._before = state, None
        devices = self._devices(state)
        own = state.hosts[self.host].vteps if self.host in state.hosts else ()
        self.stand.resolve(vtep for host in state.hosts.values() for vtep in host.vteps)
        wires = {name: self._wire(device) for name, device in self.physical.items()}
        around: dict[str, Any] = {
            "uplinks": self._uplinks,
            "wires": wires,
            "next_hops": self.next_hops(),
            "memo": self._memo,
            **self._options,
        }
        view = View(state, self.host, self.datapath.index, devices, own, **around)
        self.ports.clear()
        self.ports.update({port.id: self.datapath.index.port(port.attachment) for port in view.local_ports})
        self.memory.names.update({self.ports[port.id]: port.attachment for port in view.local_ports})
        self.memory.physicals.update({self.datapath.index.physical(name): name for name in view.names["physical"]})
        self._rules = {rule_id(rule.id): rule.id for group in state.security_groups.values() for rule in group.rules}
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
        ports = sorted(name for name, port in state.ports_on(self.host).items() if port.parent is None)
        if len(ports) > len(DEVICES):
            raise ValueError(f"{len(ports)} ports on host {self.host}; a PacketHost has {len(DEVICES)} devices")
        self._device = dict(zip(ports, DEVICES, strict=False))
        return {
            port: Device(ifindex=self.stand.index[name], name=name, peer=number % 2 == 0, xdp=number % 4 < 2)
            for number, (port, name) in enumerate(self._device.items())
        }

    def next_hops(self) -> dict[str, str]:
        """VTEP -> MAC of those on the underlay's link."""
        return {address: mac for address, mac in self.stand.macs.items() if mac is not None}

    def _wire(self, device: str) -> Device:
        return Device(ifindex=self.stand.index[device], name=device, mtu=self.stand.wire_mtu)

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
        frame, vlan = self.entering(arrival)
        if vlan is not None:
            return None
        run = self._dry.from_uplink if arrival.port is None else self._dry.from_port
        with self.stand.inside():
            return run(frame.ljust(SHORTEST, b"\0"), self.entrance(arrival), arrival.gso_size)

    def outer(self, arrival: Arrival) -> bytes:
        """The frame as it enters, outer headers and all."""
        return self.entering(arrival)[0]

    def entering(self, arrival: Arrival) -> tuple[bytes, int | None]:
        """The frame as it enters, and the tag that is beside it then, type << 16 | TCI.

        By tunnel it has outer headers to the VTEP of ours that has the sender's family. The kernel takes the outer tag
        off before tc sees a frame; where there can be no tag, one that is in the frame is left there all the same.
        """
        if arrival.vtep is not None and arrival.segment is not None:
            return self._by_tunnel(arrival, arrival.vtep, arrival.segment), None
        if arrival.vlan is not None:
            return arrival.frame, arrival.vlan_type << 16 | arrival.vlan
        tagged = arrival.frame[12:14] in {outer.SERVICE, outer.CUSTOMER} and len(arrival.frame) >= TAGGED
        if tagged and (arrival.physical is not None or arrival.port in self._trunks()):
            return arrival.frame[:12] + arrival.frame[16:], int.from_bytes(arrival.frame[12:16], "big")
        return arrival.frame, None

    def _trunks(self) -> set[str | None]:
        return {port.parent for port in self.state.ports_on(self.host).values()} - {None}

    def _by_tunnel(self, arrival: Arrival, vtep: str, segment: Segment) -> bytes:
        version = ipaddress.ip_address(vtep).version
        own = [text for text in self.state.hosts[self.host].vteps if ipaddress.ip_address(text).version == version]
        if not own:
            raise ValueError(f"host {self.host} has no VTEP that {vtep} could send to")
        source = self.next_hops().get(str(ipaddress.ip_address(vtep))) or underlay_mac(vtep)
        macs = bytes.fromhex((self.stand.own_mac + source).replace(":", ""))
        return outer.put_on(vtep, own[0], segment, arrival.frame, tos=arrival.tos, macs=macs)

    def entrance(self, arrival: Arrival) -> int:
        """Index of the device by which it enters."""
        if arrival.physical is not None:
            return self.stand.index[self.physical[arrival.physical]]
        return self.stand.index[UPLINK if arrival.port is None else self._device.get(arrival.port, STRANGER)]

    def _run_tc(self, arrival: Arrival) -> tuple[Observed, abi.Conclusion]:
        frame, vlan = self.entering(arrival)
        cut = len(frame) if len(frame) < SHORTEST else 0
        program: Program = self._prelude.programs["from_uplink" if arrival.port is None else "from_port"]
        context = seen.skb_context(self.entrance(arrival), gso_size=arrival.gso_size, vlan=vlan, length=cut)
        result = program.test_run(frame.ljust(SHORTEST, b"\0") if cut else frame, ctx=context)
        conclusion = self.conclusion()
        mark = seen.SKB.unpack(result.ctx_out)[0]
        left = self._with_tag(result.data_out)
        if result.retval == seen.TC_ACT_UNSPEC:
            assert left == (frame if vlan is None else with_tag(frame, vlan)), "what is the kernel's goes on untouched"
            flooded = conclusion.reason == Reason.FLOODED
            observed = self._flooded() if flooded else Observed(reason=Reason.NONE, verdict=result.retval)
            observed = replace(observed, verdict=result.retval, passed=True)
        elif result.retval == seen.TC_ACT_REDIRECT and self.seam and conclusion.ifindex == self.seam:
            observed = self.come_out(left, mark)
        elif result.retval == seen.TC_ACT_REDIRECT:
            observed = self._left(left, conclusion.ifindex, result.retval, marked=mark == seen.MARK)
        elif result.retval == seen.TC_ACT_SHOT and conclusion.reason == Reason.FLOODED:
            observed = self._flooded()
        else:
            assert result.retval == seen.TC_ACT_SHOT, f"retval {result.retval:#x}"
            observed = Observed(reason=Reason.NONE, verdict=result.retval)
        return observed, conclusion

    def come_out(self, frame: bytes, mark: int, *, gso_size: int = 0) -> Observed:
        """Let a frame out at the seam's far end."""
        context = seen.skb_context(self.seam, mark=mark, gso_size=gso_size)
        result = self.datapath.programs["hr_from_seam"].test_run(frame, ctx=context)
        if result.retval != seen.TC_ACT_REDIRECT:
            return Observed(reason=Reason(self.conclusion().reason), verdict=result.retval, seamed=True)
        assert seen.SKB.unpack(result.ctx_out)[0] == 0, "the seam's mark goes no further"
        return replace(self._left(result.data_out, self.conclusion().ifindex, result.retval), seamed=True)

    def _with_tag(self, frame: bytes) -> bytes:
        """What left the last run, with the tag that was beside it."""
        beside = int.from_bytes(self._prelude.maps["beside"].lookup(bytes(4)) or b"", "little")
        return with_tag(frame, beside) if beside else frame

    def _run_xdp(self, arrival: Arrival) -> tuple[Observed, abi.Conclusion] | None:
        """None: XDP left it to tc, untouched or with nothing but its outer headers taken off."""
        which = "hr_xdp_from_uplink" if arrival.port is None else "hr_xdp_from_port"
        tunnelled = arrival.vtep is not None
        frame = self.outer(arrival) if tunnelled else arrival.frame
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
                assert len(inner) < len(frame), "outer headers go"
                assert frame.endswith(inner[ECN_AND_CHECKSUM:]), "and nothing else"
            return None
        assert result.retval == seen.XDP_REDIRECT, f"retval {result.retval}"
        return self._left(result.data_out, conclusion.ifindex, result.retval, hook="xdp"), conclusion

    def _left(self, frame: bytes, ifindex: int, verdict: int, *, hook: Hook = "tc", marked: bool = False) -> Observed:
        name = next((name for name, index in self.stand.index.items() if index == ifindex), "")
        assert name, f"redirected to device {ifindex}, which is none of ours"
        output = self._output(name, frame)
        around, wires = (b"", ()) if output.port is not None else (frame, (self._physical(name),))
        fields: dict[str, Any] = {"outputs": (output,), "outer": around, "wires": wires, "marked": marked}
        return Observed(reason=Reason.NONE, verdict=verdict, hook=hook, **fields)

    def _physical(self, device: str) -> str | None:
        """The physical network that a device leads to."""
        return next((name for name, found in self.physical.items() if found == device), None)

    def _output(self, device: str, frame: bytes) -> Output:
        physical = self._physical(device)
        if physical is not None:
            segment, inner = outer.take_tags(frame, physical)
            return Output(frame=inner, segment=segment)
        if device == UPLINK:
            found = outer.take_off(frame)
            vtep = found.destination or next((name for name, mac in self.next_hops().items() if mac == found.mac), "")
            return Output(frame=found.inner, vtep=vtep, segment=found.segment, tos=found.tos)
        port = next(port for port, name in self._device.items() if name == device)
        return Output(frame=frame, port=self._of_trunk(port, frame))

    def _of_trunk(self, trunk: str, frame: bytes) -> str:
        """The port that a frame is of which enters or leaves by a trunk's device: tags tell."""
        if frame[12:14] != outer.CUSTOMER:
            return trunk
        vid = int.from_bytes(frame[14:16], "big") & 0xFFF
        ports = self.state.ports_on(self.host)
        return min((name for name, port in ports.items() if (port.parent, port.vlan) == (trunk, vid)), default=trunk)

    def _whole(self, arrival: Arrival) -> bytes:
        """A frame with the tag in it that is beside it."""
        frame, vlan = self.entering(arrival)
        return frame if vlan is None else with_tag(frame, vlan)

    def _flooded(self) -> Observed:
        left = list(self.stand.copies())
        outputs = tuple(self._output(name, frame) for name, frame in left)
        away = [(frame, self._physical(name)) for name, frame in left if name in {UPLINK, *WIRES}]
        copies, wires = tuple(frame for frame, _ in away), tuple(wire for _, wire in away)
        return Observed(reason=Reason.FLOODED, verdict=seen.TC_ACT_SHOT, outputs=outputs, copies=copies, wires=wires)

    def conclusion(self) -> abi.Conclusion:
        """What the last program on this CPU concluded."""
        values = self.datapath.maps["hr_conclusions"].lookup_cpus(bytes(4))
        assert values is not None
        return abi.Conclusion.unpack(values[self.stand.cpu])

    def _explain(self, observed: Observed, conclusion: abi.Conclusion, counts: Counts, arrival: Arrival) -> Observed:
        """Complete what was seen by what the tables say of it."""
        entered = "" if arrival.port is None else self._of_trunk(arrival.port, self._whole(arrival))
        refused = tuple(
            Refusal(port=port, reason=reason)
            for (port, reason), count in sorted(counts.reasons.items())
            if observed.reason == Reason.FLOODED != reason and (port != entered or reason == Reason.TOO_BIG)
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


def with_tag(frame: bytes, tag: int) -> bytes:
    """A frame with the tag in it that was beside it."""
    return frame[:12] + tag.to_bytes(4, "big") + frame[12:]
