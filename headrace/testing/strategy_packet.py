"""What arrives at the host under test: conversations, and everything that is no conversation."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.datapath.decision import Arrival
from headrace.model import Port, Segment, State
from headrace.testing import outer, packet
from headrace.testing.choice import Chooser, weighted
from headrace.testing.packet import Somewhere
from headrace.testing.strategy_end import Ends, has
from headrace.testing.strategy_state import HOST, PEER, SEGMENTS, VIRTUAL_MACS
from headrace.testing.strategy_tcp import SIZES, Numbers, draw_options

SERVICES = (80, 53, 1500, 22, 0, 65535, 2000, 81, 1024)
TCP_FLAGS = ("A", "SA", "S", "FA", "R", "PA", "RA", "F", "SF", "SR", "FR", "", "P", "SEC", "UPA")
ORDERLY = {False: ((6, "A"), (2, "S"), (3, "FA"), (2, "R")), True: ((5, "SA"), (5, "A"), (3, "FA"), (2, "R"))}
"""What the original sender and the other (True) send in a decent connection."""
ICMP_KINDS = {4: (8, 0, 13, 14, 9, 42), 6: (128, 129, 200, 42)}
ERRORS = {4: (3, 4, 5, 11, 12), 6: (1, 2, 3, 4)}
DISCOVERY = (130, 131, 132, 133, 134, 135, 136, 137, 143)
MULTICAST = ("01:00:5e:00:00:fb", "33:33:00:00:00:01", packet.BROADCAST)
STRANGER = Somewhere("02:00:00:00:ff:01", ("10.0.0.250", "fd00::250"))


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """Two ends that talk, and how. ``numbers``: of TCP."""

    one: Port
    other: Port
    kind: str
    family: int
    sport: int
    dport: int
    numbers: Numbers | None = None


class Traffic(Ends):
    """Draws arrivals at the host, of flows that go on from one to the next."""

    def __init__(self, choose: Chooser, state: State, *, both: bool = False) -> None:
        super().__init__(choose, state, both=both)
        self.flows: list[Flow] = []

    def arrivals(self) -> list[Arrival]:
        """What happens next: mostly one arrival, of fragments several."""
        make = weighted(
            self.choose,
            [
                (30, self.go_on),
                (9, self.begin),
                (4, self.handshake),
                (5, self.icmp_error),
                (5, self.fragments),
                (6, self.discovery),
                (4, self.question),
                (4, self.astray),
                (3, self.flood),
                (3, self.spoofed),
                (4, self.malformed),
                (2, self.virtual),
                (2, self.strange),
                (2, self.outside),
                (2, self.big),
            ],
        )
        return make()

    # Flows

    def begin(self) -> list[Arrival]:
        """The first packet of a flow."""
        one, other = self.ends()
        kind = self.choose.pick(("tcp", "udp", "icmp", "tcp", "tcp", "sctp", "other"))
        families = [family for family in (4, 6) if has(one, family) and has(other, family)]
        family = self.choose.pick((4, 6) if not families or self.choose.chance(10) else families)
        sport = self.choose.pick((1000, 1001))
        if kind == "icmp":
            sport, dport = self.choose.pick((7, 8)), self.choose.pick(ICMP_KINDS[family])
        else:
            dport = self.choose.pick(SERVICES)
        numbers = Numbers(self.choose) if kind == "tcp" else None
        flow = Flow(one=one, other=other, kind=kind, family=family, sport=sport, dport=dport, numbers=numbers)
        self.flows.append(flow)
        return self.sent(one, self.frame(flow, reply=False, flags="A" if self.choose.chance(12) else "S"))

    def go_on(self) -> list[Arrival]:
        """A packet of a flow that was begun, of either end."""
        if not self.flows:
            return self.begin()
        flow, reply = self.choose.pick(self.flows), not self.choose.chance(40)
        flags = weighted(self.choose, ORDERLY[reply])
        if self.choose.chance(15):
            flags = self.choose.pick(TCP_FLAGS)
        payload = bytes(self.choose.pick(SIZES)) if flow.kind == "tcp" else b""
        frame = self.frame(flow, reply=reply, flags=flags, payload=payload)
        return self.sent(flow.other if reply else flow.one, frame)

    def handshake(self) -> list[Arrival]:
        """A TCP flow is opened in three orderly segments, as far as rules let it."""
        arrivals = self.begin()
        flow = self.flows[-1]
        if flow.numbers is None:
            return arrivals
        for reply, flags in ((True, "SA"), (False, "A"), (True, "PA")):
            sender = flow.other if reply else flow.one
            arrivals += self.sent(sender, self.frame(flow, reply=reply, flags=flags, payload=bytes(len(flags) - 1)))
        return arrivals

    def frame(self, flow: Flow, *, reply: bool, flags: str, payload: bytes = b"") -> bytes:
        one, other = self.end(flow.one, flow.family), self.end(flow.other, flow.family)
        sport, dport = flow.sport, flow.dport
        if reply:
            one, other, sport, dport = other, one, dport, sport
        fields: dict[str, Any] = {"family": flow.family}
        if self.choose.chance(8):
            fields["tos" if flow.family == 4 else "tc"] = self.choose.pick((0xB8, 0x03, 0xFF))
        if flow.numbers is not None:
            seq, ack = flow.numbers.draw(flags, len(payload), reply=reply)
            options = draw_options(self.choose) if "S" in flags else []
            numbers: dict[str, Any] = {"seq": seq, "ack": ack, "options": options}
            return packet.tcp(one, other, sport, dport, flags, payload=payload, **numbers, **fields)
        if flow.kind == "udp":
            return packet.udp(one, other, sport, dport, payload=payload, **fields)
        if flow.kind == "sctp":
            return packet.sctp(one, other, sport, dport, **fields)
        if flow.kind == "icmp":
            answers = {8: 0, 0: 8, 13: 14, 14: 13, 128: 129, 129: 128}
            kind = answers.get(flow.dport, flow.dport) if reply else flow.dport
            return packet.icmp(one, other, kind, ident=flow.sport, **fields)
        return packet.other(one, other, self.choose.pick((47, 50, 59)), payload=bytes(12), **fields)

    def icmp_error(self) -> list[Arrival]:
        """An error about a flow's packet, from its receiver or from a third."""
        if not self.flows:
            return self.begin()
        flow, reply = self.choose.pick(self.flows), self.choose.chance(40)
        quoted = self.frame(flow, reply=reply, flags="A", payload=bytes(8))
        sender, receiver = (flow.one, flow.other) if reply else (flow.other, flow.one)
        if self.choose.chance(15):
            sender = self.port()
        if self.choose.chance(10):
            receiver = self.port()
        frame = packet.icmp_error(
            self.end(sender, flow.family),
            self.end(receiver, flow.family),
            quoted,
            self.choose.pick(ERRORS[flow.family]),
            room=self.choose.pick((64, 64, 28, 48, 27, 47, 8, 0)),
            family=flow.family,
            dst=packet.address(STRANGER, flow.family) if self.choose.chance(12) else None,
        )
        return self.sent(sender, frame)

    def fragments(self) -> list[Arrival]:
        """A flow's packet in parts: whole, with one missing, or in another order."""
        if not self.flows:
            return self.begin()
        flow, reply = self.choose.pick(self.flows), self.choose.chance(40)
        whole = self.frame(flow, reply=reply, flags=self.choose.pick(("A", "S", "FA", "R")), payload=bytes(40))
        ident = self.choose.pick((1, 2, 0x10203))
        parts = packet.fragments(whole, self.choose.pick((24, 8, 16, 32)), ident)
        if self.choose.chance(20):
            parts = packet.fragments(whole, 24, ident)[:1] + packet.fragments(whole, 8, ident)[1:]
        if len(parts) > 1 and self.choose.chance(30):
            parts.pop(self.choose.number(0, len(parts) - 1))
        if self.choose.chance(20):
            parts.reverse()
        return [arrival for part in parts for arrival in self.sent(flow.other if reply else flow.one, part)]

    def astray(self) -> list[Arrival]:
        """A flow's packet to somebody else's MAC."""
        if not self.flows:
            return self.begin()
        flow, reply = self.choose.pick(self.flows), not self.choose.chance(40)
        frame = self.frame(flow, reply=reply, flags=self.choose.pick(("A", "SA", "S")))
        macs = [port.mac for port in self.ports()] + list(VIRTUAL_MACS) + [STRANGER.mac]
        mac = self.choose.pick(macs)
        sender = flow.other if reply else flow.one
        if mac == sender.mac and not self.choose.chance(20):
            mac = STRANGER.mac
        return self.sent(sender, bytes.fromhex(mac.replace(":", "")) + frame[6:])

    # What is no flow

    def question(self) -> list[Arrival]:
        """ARP or a neighbour solicitation, for anybody's address or one's own."""
        asker, asked = self.port(), self.port()
        if self.choose.chance(50):
            one, other = self.end(asker, 6), self.end(asked, 6)
            option = self.choose.pick(("own", None, VIRTUAL_MACS[0]))
            to = other.mac if self.choose.chance(30) else None
            source = "::" if self.choose.chance(15) else one.addresses[0]
            hops = 64 if self.choose.chance(10) else 255
            return self.sent(asker, packet.ns(one, other.addresses[0], option=option, to=to, src=source, hlim=hops))
        one, other = self.end(asker, 4), self.end(asked, 4)
        source = "0.0.0.0" if self.choose.chance(15) else one.addresses[0]
        operation = 2 if self.choose.chance(20) else 1
        dmac = other.mac if self.choose.chance(20) else packet.BROADCAST
        return self.sent(asker, packet.arp(one, other.addresses[0], operation=operation, psrc=source, dmac=dmac))

    def discovery(self) -> list[Arrival]:
        """DHCP, router discovery, multicast listeners, advertisements: what implicit rules and guards are about."""
        one, other = self.port(), self.port()
        ends = self.end(one, 6), self.end(other, 6)
        kind = self.choose.pick(("icmpv6", "dhcp", "na", "ra", "dhcp"))
        if kind == "icmpv6":
            hops = self.choose.pick((255, 255, 64))
            source = self.choose.pick((ends[0].addresses[0], "::"))
            frame = packet.icmp(*ends, self.choose.pick(DISCOVERY), family=6, hlim=hops, src=source)
        elif kind == "dhcp":
            family = self.choose.pick((4, 6))
            question = (68, 67) if family == 4 else (546, 547)
            ports = self.choose.pick((question, question, question, (67, 68), (546, 547), (547, 546)))
            unset = "0.0.0.0" if family == 4 and self.choose.chance(30) else None
            servers: dict[str, Any] = {"dst": "ff02::1:2", "dmac": "33:33:00:01:00:02"}
            to = servers if family == 6 and self.choose.chance(60) else {}
            size = self.choose.pick((0, 300, 1600))
            both = self.end(one, family), self.end(other, family)
            frame = packet.udp(*both, *ports, family=family, src=unset, payload=bytes(size), **to)
        elif kind == "na":
            option = self.choose.pick(("own", None, other.mac))
            frame = packet.na(*ends, self.choose.pick((ends[0], ends[1])).addresses[0], option=option)
        else:
            frame = packet.ra(ends[0])
        return self.sent(one, frame)

    def flood(self) -> list[Arrival]:
        """Multicast and broadcast, of what rules may know and of what they do not."""
        one = self.port()
        family = self.choose.pick((4, 6))
        end, mac = self.end(one, family), self.choose.pick(MULTICAST)
        destination = "224.0.0.251" if family == 4 else "ff02::fb"
        make = self.choose.pick(("udp", "tcp", "raw"))
        if make == "raw":
            return self.sent(one, packet.raw(end, self.choose.pick((0x88CC, 0x0042, 0x8847)), bytes(46), dmac=mac))
        if make == "tcp":
            flags = self.choose.pick(TCP_FLAGS)
            return self.sent(one, packet.tcp(end, end, 1000, 80, flags, family=family, dst=destination, dmac=mac))
        return self.sent(one, packet.udp(end, end, 1000, 53, family=family, dst=destination, dmac=mac))

    def spoofed(self) -> list[Arrival]:
        """Somebody else's MAC, address, or both; addresses that nobody has."""
        one, other = self.ends()
        family = self.choose.pick((4, 6))
        own, its = self.end(one, family), self.end(other, family)
        mac = self.choose.pick((own.mac, its.mac, VIRTUAL_MACS[0], "03:00:00:00:00:01"))
        sources = {
            4: (its.addresses[0], "0.0.0.0", "10.0.0.100", "224.0.0.1", "198.51.100.5"),
            6: (its.addresses[0], "::", "fd00::100", "ff02::1", "::ffff:10.0.0.1", "fe80::ff:fe00:101"),
        }
        source = self.choose.pick(sources[family])
        return self.sent(one, packet.udp(own, its, 1000, 53, family=family, smac=mac, src=source))

    def virtual(self) -> list[Arrival]:
        """A gratuitous ARP from an address pair, or a packet to its MAC."""
        one = self.port()
        virtual = Somewhere(self.choose.pick(VIRTUAL_MACS), ("10.0.0.100", "fd00::100"))
        if self.choose.chance(50):
            return self.sent(one, packet.arp(virtual, "10.0.0.100"))
        return self.sent(one, packet.udp(self.end(one, 4), virtual, 1000, 53))

    def malformed(self) -> list[Arrival]:
        """A frame cut short, or with an octet changed, or tagged."""
        arrivals = (self.go_on if self.flows else self.begin)()
        if self.choose.chance(25):
            arrivals = self.question()
        broken = []
        for arrival in arrivals:
            frame = arrival.frame
            if arrival.frame[12:14] == b"\x86\xdd" and self.choose.chance(25):
                frame = packet.padded(frame, self.choose.number(1, 7))
            how = self.choose.pick(("cut", "octet", "tag", "shrink"))
            if how == "cut":
                frame = frame[: self.choose.number(packet.ETHERNET, len(frame))]
            elif how == "octet":
                offset = self.choose.number(12, min(len(frame), 90) - 1)
                frame = packet.with_octet(frame, offset, self.choose.number(0, 255))
            elif how == "shrink":
                frame = shrunk(frame, self.choose.number(0, 60))
            else:
                frame = packet.tagged(frame, ethertype=self.choose.pick((0x8100, 0x88A8)))
            broken.append(msgspec.structs.replace(arrival, frame=frame))
        return broken

    def strange(self) -> list[Arrival]:
        """From tunnels that nobody should use, and MACs that nobody has."""
        one, other = self.ends()
        frame, segment = packet.udp(self.end(one, 4), self.end(other, 4), 1000, 53), self.segment(one)
        kind = self.choose.pick(("vtep", "own vtep", "segment", "stranger"))
        if kind == "stranger":
            return self.came(segment, packet.udp(STRANGER, self.end(other, 4), 1000, 53))
        if kind == "segment" or segment.is_physical:
            others = (Segment(id=1), Segment(id=0xFFFFFE), *SEGMENTS)
            return self.came(self.choose.pick(others), frame)
        return [Arrival(vtep="192.0.2.99" if kind == "vtep" else self.vtep(HOST), segment=segment, frame=frame)]

    def outside(self) -> list[Arrival]:
        """A whole frame of the underlay, its outer headers cut short or with an octet changed."""
        one, other = self.ends()
        inner, segment = packet.udp(self.end(one, 4), self.end(other, 4), 1000, 53), self.segment(one)
        own = next(iter(self.state.hosts[HOST].vteps), "192.0.2.1")
        source = next((text for text in self.state.hosts[PEER].vteps if (":" in text) == (":" in own)), None)
        if segment.is_physical or segment.wire == "nsh-ethernet" or source is None:
            return self.came(segment, inner)
        frame = outer.put_on(source, own, segment, inner, tos=self.choose.pick((0, 3)))
        around = len(frame) - len(inner)
        if self.choose.chance(30):
            frame = frame[: self.choose.number(packet.ETHERNET, len(frame))]
        elif self.choose.chance(80):
            start = around - 20 if self.choose.chance(70) else 12
            frame = packet.with_octet(frame, self.choose.number(start, around - 1), self.choose.number(0, 255))
        physical = self.choose.pick((None, None, "physnet1"))
        return [Arrival(frame=frame, physical=physical)]

    def big(self) -> list[Arrival]:
        """Around the MTU of the network and of the underlay, and super-packets."""
        one, other = self.ends()
        mtu = self.state.networks[one.network].mtu
        family = self.choose.pick((4, 6))
        ends = self.end(one, family), self.end(other, family)
        fields: dict[str, Any] = {"family": family, "df": self.choose.chance(70)}
        if self.choose.chance(15):
            fields["dmac"] = self.choose.pick(MULTICAST)
        headers = 28 if family == 4 else 48
        if self.choose.chance(40):
            frame = packet.tcp(*ends, 1000, 80, "A", payload=bytes(self.choose.number(2000, 3300)), **fields)
            size = mtu - headers - 12 if mtu < 2000 else 1400
            return self.sent(one, frame, gso_size=size + self.choose.number(-1, 1))
        length = self.choose.pick((mtu, mtu, 1450, 1430)) + self.choose.number(-1, 1)
        if length > 3000 or not self.choose.chance(30):
            return self.sent(one, packet.udp(*ends, 1000, 53, payload=bytes(length - headers), **fields))
        quoted = packet.udp(*ends, 1000, 53, payload=bytes(length), family=family)
        kind = self.choose.pick((*ICMP_KINDS[family], *ERRORS[family]))
        return self.sent(one, packet.icmp_error(*ends, quoted, kind, 0, room=length - headers, **fields))


def shrunk(frame: bytes, octets: int) -> bytes:
    """An IP frame whose length field says so many octets of payload, at most what it said."""
    at, header = (16, 20) if frame[12:14] == b"\x08\x00" else (18, 0)
    said = int.from_bytes(frame[at : at + 2], "big")
    return frame[:at] + min(said, header + octets).to_bytes(2, "big") + frame[at + 2 :]
