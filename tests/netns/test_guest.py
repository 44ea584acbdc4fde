"""Guests behave as workloads on taps: two of them and a namespace on a plain Linux bridge reach each other."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from headrace.errors import Unavailable
from headrace.testing import kernel
from headrace.testing.guest import ECHO_PORT, Card, Guest
from headrace.testing.topology import Namespace, Topology

pytestmark = [pytest.mark.timeout(240), pytest.mark.needs("qemu", "tun", "program:busybox", "program:gcc")]

TAPS = ("tap4f0c7a52-11", "tap4f0c7a52-22")
MTU = 1450
OCTETS = 1 << 20


class Lab(NamedTuple):
    """A host with a bridge, two guests on its taps, and a namespace beside it."""

    host: Namespace
    peer: Namespace
    guests: tuple[Guest, Guest]


@pytest.fixture(scope="module")
def lab(lab_kernel: kernel.Kernel) -> Iterator[Lab]:
    with Topology() as t:
        host, peer = t.host("host"), t.host("peer")
        host.run("ip link add br0 type bridge mcast_snooping 0")
        host.run("ip link set br0 up")
        for tap in TAPS:
            host.run(f"ip tuntap add dev {tap} mode tap vnet_hdr")
            host.run(f"ip link set {tap} master br0 up")
        t.link(host, "veth0", peer, "eth0", b_addresses=["10.0.0.4/24", "fd00::4/64"])
        host.run("ip link set veth0 master br0")
        guests = (
            Guest(
                host.name,
                TAPS[0],
                "52:54:00:00:00:05",
                addresses=["10.0.0.5/24", "fd00::5/64"],
                series=lab_kernel.series,
            ),
            Guest(
                host.name,
                TAPS[1],
                "52:54:00:00:00:06",
                addresses=["10.0.0.6/24", "fd00::6/64"],
                gateways=["10.0.0.4", "fd00::4"],
                card=Card(offloads=False, mtu=MTU),
                modules=["8021q"],
                series=lab_kernel.series,
            ),
        )
        for guest in guests:
            t.on_exit(guest.stop)
            guest.start(wait=0)
        for guest in guests:
            guest.ready()
        yield Lab(host, peer, guests)


def echoed(peer: Namespace, address: str, kind: socket.SocketKind, data: bytes) -> bytes:
    """What the echo service at an address answers a namespace."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with peer.enter(), socket.socket(family, kind) as line:
        line.settimeout(10)
        line.connect((address, ECHO_PORT))
        answer = b""
        sent = 0
        while len(answer) < len(data):
            if sent - len(answer) < 1 << 16:
                sent += line.send(data[sent : sent + (1 << 15)])
            answer += line.recv(1 << 16)
    return answer


@pytest.mark.parametrize("address", ["10.0.0.6", "fd00::6", "10.0.0.4", "fd00::4"])
def test_a_guest_reaches_a_guest_and_a_namespace(lab: Lab, address: str) -> None:
    answer = lab.guests[0].run(f"ping -c 3 -i 0.2 -W 5 {address}")
    assert answer.returncode == 0, answer.output
    assert "3 packets received" in answer.output


@pytest.mark.parametrize("address", ["10.0.0.5", "fd00::5", "10.0.0.6", "fd00::6"])
def test_tcp_echo_with_and_without_offloads(lab: Lab, address: str) -> None:
    data = os.urandom(OCTETS)
    assert echoed(lab.peer, address, socket.SOCK_STREAM, data) == data


@pytest.mark.parametrize("address", ["10.0.0.5", "fd00::5"])
def test_udp_echo(lab: Lab, address: str) -> None:
    assert echoed(lab.peer, address, socket.SOCK_DGRAM, b"are you there") == b"are you there"


def test_a_guest_talks_tcp_to_a_guest(lab: Lab) -> None:
    answer = lab.guests[0].run(f"echo over there | nc -w 5 fd00::6 {ECHO_PORT}")
    assert answer.output == "over there\n"


def test_an_exit_code_and_a_time_limit_come_back(lab: Lab) -> None:
    assert lab.guests[0].run("echo 'it'\"'\"'s'; echo two >&2; exit 3") == (3, "it's\ntwo\n")
    assert lab.guests[0].run("sleep 100", timeout=1).returncode == 137
    assert lab.guests[0].run("true") == (0, "")


def test_settings_reach_the_guest(lab: Lab) -> None:
    second = lab.guests[1]
    assert second.run("cat /sys/class/net/eth0/mtu").output == f"{MTU}\n"
    assert second.run("cat /sys/class/net/eth0/address").output == "52:54:00:00:00:06\n"
    assert "default via 10.0.0.4" in second.run("ip route").output
    assert "default via fd00::4" in second.run("ip -6 route").output
    assert second.run("ip link add link eth0 name eth0.7 type vlan id 7").returncode == 0


def test_qemu_lives_in_the_hosts_namespace(lab: Lab) -> None:
    inside = Path(f"/proc/{lab.guests[0].pid}/ns/net").stat()
    assert inside.st_ino == lab.host.path.stat().st_ino


def test_a_guest_that_cannot_start_says_why(lab: Lab) -> None:
    with pytest.raises(Unavailable, match=r"no/such/tap"):
        Guest(lab.host.name, "no/such/tap", "52:54:00:00:00:07").start()


def test_stop_leaves_the_tap_and_no_process(lab: Lab) -> None:
    lab.host.run("ip tuntap add dev tapspare mode tap vnet_hdr")
    guest = Guest(lab.host.name, "tapspare", "52:54:00:00:00:08").start(wait=0)
    pid = guest.pid
    guest.stop()
    assert not Path(f"/proc/{pid}").exists()
    assert lab.host.ip("link show dev tapspare")[0]["ifname"] == "tapspare"
