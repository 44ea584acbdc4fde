"""The lab keeps its promise: hosts that talk at once, and nothing left behind."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from headrace.testing.topology import NAMESPACES, CommandFailed, Process, Topology
from headrace.testing.wait import wait_until

OURS = Path("/proc/thread-self/ns/net")


def connect(topology: Topology) -> None:
    topology.link(
        topology.host("a"),
        "eth0",
        topology.host("b"),
        "eth0",
        a_addresses=["192.0.2.1/24", "2001:db8::1/64"],
        b_addresses=["192.0.2.2/24", "2001:db8::2/64"],
        mtu=9000,
    )


def leftovers(prefix: str) -> list[str]:
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    names = [path.name for folder in (NAMESPACES, Path("/tmp")) for path in folder.iterdir()]
    return [name for name in (*mounts, *names) if prefix in name]


def gone(process: Process) -> bool:
    return process.poll() is not None and not Path(f"/proc/{process.pid}").exists()


def test_addresses_work_at_once_in_both_families() -> None:
    with Topology() as lab:
        connect(lab)
        a, b = lab.host("a"), lab.host("b")
        for target in ("192.0.2.2", "2001:db8::2", "127.0.0.1"):
            a.run(f"ping -c 1 -W 1 {target}")
        assert a.ip("link show dev eth0")[0]["mtu"] == 9000
        assert a.mac("eth0") != b.mac("eth0")


def test_a_host_is_entered_and_left() -> None:
    outside = OURS.readlink()
    with Topology() as lab:
        connect(lab)
        b = lab.host("b")
        with b.enter():
            assert OURS.readlink() != outside
            assert {name for _, name in socket.if_nameindex()} == {"lo", "eth0"}
            listener = socket.create_server(("192.0.2.2", 0))
        assert OURS.readlink() == outside
        with listener, lab.host("a").enter(), socket.create_connection(listener.getsockname(), timeout=2):
            pass
        with pytest.raises(LookupError), b.enter():
            raise LookupError
        assert OURS.readlink() == outside


def test_sysctls_are_the_hosts_own() -> None:
    with Topology() as lab:
        a, b = lab.host("a"), lab.host("b")
        a.sysctl("net.ipv4.ip_forward", 1)
        assert [host.run("sysctl -n net.ipv4.ip_forward").stdout.strip() for host in (a, b)] == ["1", "0"]


def test_bpf_filesystems_are_seen_from_every_host() -> None:
    with Topology() as lab:
        where = lab.bpffs()
        (where / "folder").mkdir()
        assert lab.host("a").run(["ls", str(where / "folder")]).stdout == ""


def test_failed_commands_tell_what_they_printed() -> None:
    with Topology() as lab:
        host = lab.host("a")
        with pytest.raises(CommandFailed, match=r"nsenter.*ls.*ended with 2: .*No such file"):
            host.run("ls /nonexistent/file")
        assert host.run("ls /nonexistent/file", check=False).returncode == 2
        assert host.run("cat", stdin="given").stdout == "given"


@pytest.mark.parametrize("failing", [False, True])
def test_nothing_is_left(*, failing: bool) -> None:
    lab = Topology()
    order: list[str] = []
    try:
        with lab:
            lab.on_exit(order.append, "first")
            lab.on_exit(order.append, "second")
            connect(lab)
            lab.bpffs()
            stubborn = lab.host("a").popen(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 60; done"])
            family = lab.host("b").popen(["sh", "-c", "sleep 60 & echo $!; wait"], env={"MARK": lab.prefix})
            wait_until(lambda: stubborn.output() and family.output(), what="both have started")
            assert leftovers(lab.prefix)
            child = Path(f"/proc/{family.output().strip()}")
            assert child.exists()
            if failing:
                raise LookupError
    except LookupError:
        assert failing
    assert gone(stubborn)
    assert gone(family)
    wait_until(lambda: not child.exists() or "Z (" in (child / "status").read_text(), what="the grandchild ended")
    assert order == ["second", "first"]
    assert leftovers(lab.prefix) == []


def test_two_topologies_do_not_meet() -> None:
    with Topology() as one, Topology() as other:
        assert one.host("a").name != other.host("a").name
        assert one.host("a") is one.host("a")
