"""Samples of drops: what a watcher sees of each kind, filters, rates, several watchers, and one that died."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import pytest

from headrace import abi
from headrace.abi import Reason
from headrace.agent.names import Names, PortName
from headrace.cli.drop_line import Teller, words
from headrace.datapath import sampling
from headrace.datapath.sampling import Watch
from headrace.errors import Unavailable
from headrace.testing import packet
from headrace.testing.host import PacketHost
from headrace.testing.outer import put_on
from headrace.testing.packet import Somewhere
from headrace.testing.twin import Twin, sent, tunnelled
from headrace.testing.wait import wait_until
from headrace.testing.world import OUT, group, network, port, rule

MakeTwin = Callable[..., Twin]

A, B, FAR = port("a", "blue", 1, "g"), port("b", "blue", 2, "g"), port("far", "blue", 8, "g", host="h2")
STATE = (network("blue"), group("g", *OUT, rule("web", "ingress", 6, 80)), A, B, FAR)
DENIED = packet.tcp(A, B, 1000, 81, "S")


class Screen:
    """What a watcher of a host was shown, in words."""

    def __init__(self, host: PacketHost, **options: Any) -> None:
        self.samples: list[abi.Sample] = []
        names = {str(index): PortName(id=name, name="", device="", network="") for name, index in host.ports.items()}
        self._teller = Teller(Names(host="h1", ports=names))
        self.watch = Watch(host.datapath, self.samples.append, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.watch.close()

    def rows(self) -> list[tuple[str | None, ...]]:
        """What is new: reason, port, receiver, entrance, packet."""
        self.samples.clear()
        self.watch.ring.consume()
        rows = map(self._teller.row, self.samples)
        return [(row["reason"], row["port"], row["to"], row["entered"], row["packet"]) for row in rows]


def test_a_drop_shows_its_reason_its_port_and_its_headers(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    with Screen(asked.host) as screen:
        for _ in range(2):  # a denied packet is never replayed
            assert asked.run(sent("a", DENIED)).reason == Reason.ACL_TO_PORT
        row = ("ACL_TO_PORT", "a", "b", "a", "tcp 10.0.0.1:1000 > 10.0.0.2:81 syn")
        assert screen.rows() == [row, row]
        assert [bytes(one.frame[: one.captured]) for one in screen.samples] == [DENIED, DENIED]
        asked.run(tunnelled(packet.udp(FAR, A, 5, 6, family=6), "2001:db8::2"))
        asked.run(sent("a", packet.udp(B, A, 5, 6)))
        assert screen.rows() == [
            ("ACL_TO_PORT", "uplink", "a", "vxlan 100", "udp [fd00::8]:5 > [fd00::1]:6"),
            ("SPOOFED_MAC", "a", "a", "a", "udp 10.0.0.2:5 > 10.0.0.1:6"),
        ]


def test_a_long_frame_shows_its_beginning(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    frame = packet.udp(A, B, 5, 6, payload=bytes(range(256)) * 4)
    with Screen(asked.host) as screen:
        asked.run(sent("a", frame))
        assert screen.rows() == [("ACL_TO_PORT", "a", "b", "a", "udp 10.0.0.1:5 > 10.0.0.2:6")]
        asked.run(sent("a", frame))
        screen.watch.ring.consume()
        (*_, sample) = screen.samples
        assert (sample.length, sample.captured) == (len(frame), abi.SAMPLE_OCTETS)
        assert bytes(sample.frame) == frame[: abi.SAMPLE_OCTETS]
        assert (sample.ifindex, sample.outer) == (asked.host.entrance(sent("a", frame)), 0)


def test_outer_headers_that_are_still_on_are_told_apart(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    inner = packet.udp(FAR, A, 5, 6)
    with Screen(asked.host) as screen:
        asked.run(tunnelled(inner, vni=999))
        asked.run(tunnelled(inner, "192.0.2.77"))
        assert screen.rows() == [
            ("UNKNOWN_SEGMENT", "uplink", None, "vxlan 999", "udp 10.0.0.8:5 > 10.0.0.1:6"),
            ("UNKNOWN_VTEP", "uplink", "a", "vxlan 100", "udp 10.0.0.8:5 > 10.0.0.1:6"),
        ]
        assert [one.outer for one in screen.samples] == [50, 50]
        broken = bytearray(put_on("192.0.2.2", "192.0.2.1", 100, inner))
        broken[42] = 0  # VXLAN's flags
        asked.run(tunnelled(inner).__class__(frame=bytes(broken)))
        ((reason, _, _, entered, line),) = screen.rows()
        assert (reason, entered) == ("MALFORMED_TUNNEL", "the underlay")
        assert str(line).startswith("udp 192.0.2.2:")


def test_a_flooded_copy_that_a_receiver_may_not_get_shows_the_receiver(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    frame = packet.udp(A, Somewhere("ff:ff:ff:ff:ff:ff", ("10.0.0.255",)), 5, 6)
    with Screen(asked.host) as screen:
        for _ in range(2):
            assert asked.run(sent("a", frame)).reason == Reason.FLOODED
        row = ("ACL_TO_PORT", "b", None, "a", "udp 10.0.0.1:5 > 10.0.0.255:6")
        assert screen.rows() == [row, row]


def test_malformed_frames_show_what_can_be_read(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    broken = bytearray(packet.udp(A, B, 5, 6))
    broken[14] = 0x65  # IP version 6 in an IPv4 packet
    with Screen(asked.host) as screen:
        asked.run(sent("a", bytes(broken)))
        asked.run(sent("a", bytes(broken[:24])))
        rows = screen.rows()
    assert [row[0] for row in rows] == ["MALFORMED_IPV4"] * 2
    assert all(str(row[4]).startswith(f"IPv4, {A.mac} > {B.mac}: ") for row in rows)
    assert words(bytes(10), 10) == "10 octets, no Ethernet frame"


def test_who_watches_one_port_or_reason_sees_no_other(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    at_b = {"port": asked.host.ports["b"]}
    with Screen(asked.host, **at_b) as narrow, Screen(asked.host, reasons=[Reason.SPOOFED_MAC]) as spoofed:
        asked.run(sent("a", DENIED))
        asked.run(sent("b", packet.udp(B, A, 5, 6)))
        asked.run(sent("b", packet.udp(A, B, 5, 6)))
        asked.run(tunnelled(packet.udp(FAR, B, 5, 6)))
        asked.run(tunnelled(packet.udp(FAR, A, 5, 6)))
        assert [row[:3] for row in narrow.rows()] == [
            ("ACL_TO_PORT", "a", "b"),
            ("ACL_TO_PORT", "b", "a"),
            ("SPOOFED_MAC", "b", "b"),
            ("ACL_TO_PORT", "uplink", "b"),
        ]
        assert [row[:2] for row in spoofed.rows()] == [("SPOOFED_MAC", "b")]
        assert (narrow.watch.slot, spoofed.watch.slot) == (0, 1)


def test_a_rate_is_kept_and_what_is_over_it_is_counted(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    with Screen(asked.host, rate=3) as slow, Screen(asked.host) as quick:
        for _ in range(20):
            asked.run(sent("a", DENIED))
        assert len(quick.rows()) == 20
        shown = len(slow.rows())
        assert 3 <= shown < 20
        assert (slow.watch.missed(), slow.watch.missed(), quick.watch.missed()) == (20 - shown, 0, 0)


def test_nothing_is_sampled_once_nobody_watches(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    with Screen(asked.host):
        assert any(asked.host.datapath.maps["hr_watched_until"].lookup(bytes(4)) or b"")
    assert not any(asked.host.datapath.maps["hr_watched_until"].lookup(bytes(4)) or b"")
    before = asked.host.datapath.maps["hr_watch_states"].lookup(bytes(4))
    asked.run(sent("a", DENIED))
    assert asked.host.datapath.maps["hr_watch_states"].lookup(bytes(4)) == before
    assert list(asked.host.datapath.maps["hr_samples"].items()) == []


def test_a_watcher_that_died_goes_quiet_and_its_place_is_given_away(
    twin: MakeTwin, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = twin(*STATE)
    monkeypatch.setattr(sampling, "LEASE", 0.05)
    dead = Screen(asked.host)  # never renewed, never closed
    monkeypatch.setattr(sampling, "LEASE", 60.0)

    def silent() -> bool:
        asked.run(sent("a", DENIED))
        return not dead.rows()

    wait_until(silent)
    with Screen(asked.host) as heir:
        assert heir.watch.slot == dead.watch.slot
        asked.run(sent("a", DENIED))
        assert (len(heir.rows()), dead.rows()) == (1, [])
        assert not dead.watch.renew()
        dead.watch.close()  # takes nothing from the heir
        asked.run(sent("a", DENIED))
        assert len(heir.rows()) == 1


def test_four_may_watch_and_the_fifth_is_told(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    screens = [Screen(asked.host) for _ in range(abi.WATCHERS)]
    try:
        with pytest.raises(Unavailable, match="4 others watch drops"):
            Screen(asked.host)
        asked.run(sent("a", DENIED))
        assert [len(screen.rows()) for screen in screens] == [1] * abi.WATCHERS
    finally:
        for screen in screens:
            screen.watch.close()
