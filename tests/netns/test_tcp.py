"""Real TCP under strangers' resets, and its own: docs/pipeline.md, "track"; docs/decisions/0005."""

from __future__ import annotations

import contextlib
import socket
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest

from headrace import abi
from headrace.abi import State
from headrace.testing import packet
from headrace.testing.cloud import CloudHost, Workload
from headrace.testing.scene import Scene
from headrace.testing.traffic import PATIENCE, Stream, Tap, connect, listen, opens, talks, tcp_pair
from headrace.testing.wait import wait_until
from headrace.testing.world import OUT, rule

WEB = (rule("web4", "ingress", 6, 80), rule("web6", "ingress", 6, 80, ethertype="IPv6"))
FAR = 2**30
"""Further from all that a connection has in flight than anything a blind reset may hit by chance."""


def record(scene: Scene, host: str) -> abi.Conn:
    """The only connection that a host remembers."""
    (conn,) = scene.connections(host)
    return conn


def state(scene: Scene, host: str) -> State:
    return State(record(scene, host).state)


def drops(host: CloudHost, port: str) -> int:
    """Resets that nobody would believe, of a port or, with "", on the uplink."""
    return host.reasons(port)["TCP_WINDOW"]


def wait_for_drops(host: CloudHost, port: str, wanted: int) -> None:
    wait_until(lambda: drops(host, port) >= wanted, what=f"{wanted} resets are dropped")


def wait_for_states(scene: Scene, host: str, allowed: set[State]) -> None:
    """Wait until every record of a host is in one of some states."""
    wait_until(lambda: {State(conn.state) for conn in scene.connections(host)} <= allowed, what=f"all are in {allowed}")


def abort(end: socket.socket) -> None:
    """Close with a reset."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


def drain(end: socket.socket) -> None:
    """Read until there is no more."""
    while end.recv(65536):
        pass


def blind_resets(conn: abi.Conn, sender: Workload, receiver: Workload, family: int) -> list[bytes]:
    """As the sender's, to the receiver; numbers far from what either has said."""
    which = int(conn.key[0].dport == 80 and sender.port.id.endswith("b"))
    key, base = conn.key[which], conn.tcp[which].edge
    return [
        packet.tcp(sender.port, receiver.port, key.sport, key.dport, flags, seq=base + way * FAR, ack=1, family=family)
        for flags in ("R", "RA")
        for way in (1, -1, 2)
    ]


@pytest.mark.parametrize("family", [4, 6])
def test_a_stream_survives_blind_resets(scene: Scene, family: int) -> None:
    """By somebody behind the peer's host who may send from any address, and from the peer's own device."""
    stranger = scene.port("c", 3, host="h2", port_security=False)
    a, b = scene.pair(*OUT, *WEB)
    scene.put(stranger)
    c = scene["c"]
    hosts = scene.cloud.hosts

    with Stream(a, b, b.address(family), 80, pause=0.001) as stream:
        before = {name: record(scene, name) for name in ("h1", "h2")}
        for injector, dropper, sender, receiver in ((c, "h1", b, a), (b, "h2", b, a), (a, "h1", a, b)):
            port = "" if injector is c else sender.port.id
            frames = blind_resets(before["h1"], sender, receiver, family)
            wanted = drops(hosts[dropper], port) + len(frames)
            with Tap(injector.namespace, "eth0") as tap:
                for frame in frames:
                    tap.send(frame)
            wait_for_drops(hosts[dropper], port, wanted)
            stream.advance()
        for name, known in before.items():
            assert (record(scene, name).id, state(scene, name)) == (known.id, State.ESTABLISHED)
    assert stream.error is None


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("which", [0, 1], ids=["opener", "other"])
@pytest.mark.parametrize("hosts", [("h1", "h2"), ("h1", "h1")], ids=["across", "local"])
def test_a_reset_closes_at_once(scene: Scene, hosts: tuple[str, str], which: int, family: int) -> None:
    """Also with data on its way, and the tuple can be used again."""
    a, b = scene.pair(*OUT, *WEB, hosts=hosts)
    with tcp_pair(a, b, b.address(family), 80) as ends:
        assert talks(*ends)
        source = ends[0].getsockname()[1]
        assert all(state(scene, host) == State.ESTABLISHED for host in hosts)
        with contextlib.suppress(ConnectionResetError):
            ends[which].sendall(bytes(100_000))
        abort(ends[which])
        for host in hosts:
            wait_for_states(scene, host, {State.CLOSED})
        with pytest.raises(ConnectionResetError):
            drain(ends[1 - which])
    with listen(b, b.address(family), 80), connect(a, b.address(family), 80, source=source):
        for host in hosts:
            assert state(scene, host) in {State.SYN_RECEIVED, State.ESTABLISHED}


@pytest.mark.parametrize("family", [4, 6])
def test_a_refused_connection_is_closed_at_once(scene: Scene, family: int) -> None:
    a, b = scene.pair(*OUT, *WEB)
    with pytest.raises(ConnectionRefusedError):
        connect(a, b.address(family), 80)
    for host in ("h1", "h2"):
        assert state(scene, host) == State.CLOSED
    assert opens(a, b, b.address(family), 80)
    for host, name in (("h1", "a"), ("h2", "b")):
        assert drops(scene.cloud.hosts[host], scene.id(name)) == 0


def aborted(a: Workload, b: Workload, port: int, which: int) -> None:
    """A connection full of data both ways, aborted by one end; the other has to notice."""
    with tcp_pair(a, b, b.address(), port) as ends:
        for end in ends:
            end.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                end.sendall(bytes(300_000))
        abort(ends[which])
        ends[1 - which].settimeout(PATIENCE)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            drain(ends[1 - which])


def test_no_abort_is_lost(scene: Scene) -> None:
    """Many at once, on all CPUs, with data in flight both ways; afterwards no record is left open."""
    a, b = scene.pair(*OUT, rule("some", "ingress", 6, 80, 87))
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(abort_many, a, b, port) for port in range(80, 84)]:
            done.result()
    over = {State.CLOSED, State.TIME_WAIT}
    for host in ("h1", "h2"):
        wait_for_states(scene, host, over)


def abort_many(a: Workload, b: Workload, port: int) -> None:
    for number in range(20):
        aborted(a, b, port, number % 2)
