"""Security groups act on real connections: open, closed, cut at once, and nobody else's."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from headrace.model import AddressGroup, Rule
from headrace.testing.cloud import Workload
from headrace.testing.scene import Scene
from headrace.testing.traffic import (
    IMPATIENCE,
    PATIENCE,
    connect,
    listen,
    make_socket,
    opens,
    ping,
    reaches,
    talks,
    tcp_pair,
    udp,
)
from headrace.testing.world import OUT, rule

ICMP, TCP, UDP, GRE, ICMPV6, SCTP = 1, 6, 17, 47, 58, 132
WEB = rule("web", "ingress", TCP, 80)
OTHER = rule("other", "ingress", TCP, 81)


def both(name: str, direction: str, protocol: int | None, *ports: int, **fields: str) -> tuple[Rule, Rule]:
    """A rule for each IP version."""
    return (
        rule(f"{name}4", direction, protocol, *ports, **fields),
        rule(f"{name}6", direction, protocol, *ports, ethertype="IPv6", **fields),
    )


def answers(client: Workload, server: Workload, protocol: int, payload: bytes, *, timeout: float = PATIENCE) -> bool:
    """Whether an IP packet of any protocol arrives, by raw sockets."""
    with make_socket(server, server.address(), socket.SOCK_RAW, protocol) as ear:
        with make_socket(client, client.address(), socket.SOCK_RAW, protocol) as mouth:
            mouth.sendto(payload, (server.address(), 0))
        ear.settimeout(timeout)
        try:
            return payload in ear.recv(2048)
        except TimeoutError:
            return False


@contextlib.contextmanager
def serving(server: Workload, address: str, port: int) -> Iterator[None]:
    """Somebody who answers every connection until it is closed."""
    with listen(server, address, port) as listener:
        thread = threading.Thread(target=lambda: echo(listener), daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE)


def echo(listener: socket.socket) -> None:
    listener.settimeout(None)
    with contextlib.suppress(OSError):
        while True:
            accepted, _ = listener.accept()
            with accepted:
                accepted.settimeout(PATIENCE)
                accepted.sendall(accepted.recv(100))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("hosts", [("h1", "h2"), ("h1", "h1")], ids=["across", "local"])
def test_only_what_a_rule_allows_comes_in_and_is_answered(scene: Scene, hosts: tuple[str, str], family: int) -> None:
    a, b = scene.pair(*OUT, *both("web", "ingress", TCP, 80), hosts=hosts)
    address = b.address(family)
    assert opens(a, b, address, 80)
    assert not opens(a, b, address, 81, timeout=IMPATIENCE)
    assert not ping(a, address, patience=IMPATIENCE)
    assert not opens(b, a, a.address(family), 8080, timeout=IMPATIENCE)


def test_the_sender_needs_a_rule_too(scene: Scene) -> None:
    a, b = scene.pair(WEB, rule("dns", "egress", UDP, 53), rule("dns", "ingress", UDP))
    with udp(a, a.address()) as here, udp(b, b.address(), 53) as dns, udp(b, b.address(), 54) as other:
        assert reaches(here, dns)
        assert not reaches(here, other, timeout=IMPATIENCE)
    assert not opens(a, b, b.address(), 80, timeout=IMPATIENCE)
    assert scene.cloud.hosts["h1"].reasons(scene.id("a"))["ACL_FROM_PORT"] >= 2


def test_without_groups_nothing_passes_but_address_configuration(scene: Scene) -> None:
    scene.put(scene.port("a", 1, host="h1"), scene.port("b", 2, host="h2"))
    a, b = scene["a"], scene["b"]
    for family in (4, 6):
        assert not ping(a, b.address(family), patience=IMPATIENCE)
    neighbours = a.namespace.ip("neighbour show")
    assert {entry["dst"] for entry in neighbours if entry.get("lladdr") == b.port.mac} >= {*b.port.addresses}


def test_a_default_group_lets_its_members_talk(scene: Scene) -> None:
    default = scene.group("default", *OUT, *both("in", "ingress", None, remote_group="default"))
    ports = [
        scene.port("a", 1, "default"),
        scene.port("b", 2, "default", host="h2"),
        scene.port("c", 3, "out", host="h2"),
    ]
    scene.put(default, scene.group("out", *OUT), *ports)
    a, b, c = (scene[name] for name in "abc")
    for family in (4, 6):
        assert ping(a, b.address(family))
        assert not ping(c, a.address(family), patience=IMPATIENCE)
        assert not ping(c, b.address(family), patience=IMPATIENCE)


@pytest.mark.parametrize("family", [4, 6])
def test_stateless_groups_judge_every_direction(scene: Scene, family: int) -> None:
    web, back = both("web", "ingress", TCP, 80), both("back", "ingress", TCP, 32768, 65535)
    ports = scene.port("a", 1, "client"), scene.port("b", 2, "server", host="h2")
    scene.put(scene.group("client", *OUT, stateful=False), scene.group("server", *OUT, *web, stateful=False), *ports)
    a, b = scene["a"], scene["b"]
    assert not opens(a, b, b.address(family), 80, timeout=IMPATIENCE)
    scene.put(scene.group("client", *OUT, *back, stateful=False))
    assert opens(a, b, b.address(family), 80)


def test_icmp_by_type(scene: Scene) -> None:
    echo_only = rule("echo4", "ingress", ICMP, 8, 0), rule("echo6", "ingress", ICMPV6, 128, 0, ethertype="IPv6")
    a, b = scene.pair(*OUT, *echo_only)
    assert ping(a, b.address(4))
    assert ping(a, b.address(6))
    assert not answers(a, b, ICMP, bytes([13, 0, 0, 0, 0, 1, 0, 1]) + bytes(12), timeout=IMPATIENCE)
    scene.put(scene.group("g", *OUT, rule("stamp", "ingress", ICMP, 13)))
    assert not ping(a, b.address(4), patience=IMPATIENCE)
    assert answers(a, b, ICMP, bytes([13, 0, 0, 0, 0, 1, 0, 1]) + bytes(12))


def test_sctp_by_port_and_other_protocols_by_number(scene: Scene) -> None:
    a, b = scene.pair(*OUT, rule("sctp", "ingress", SCTP, 5000), rule("gre", "ingress", GRE))
    chunk = bytes(8) + b"\x01\x00\x00\x04"
    assert answers(a, b, SCTP, b"\x13\x87\x13\x88" + chunk)
    assert not answers(a, b, SCTP, b"\x13\x87\x13\x89" + chunk, timeout=IMPATIENCE)
    assert answers(a, b, GRE, b"\x00\x00\x88\xb5 payload")
    assert not answers(a, b, 112, b"\x21\x01\x64\x00" + bytes(8), timeout=IMPATIENCE)


def test_an_address_group_is_a_set_that_may_change(scene: Scene) -> None:
    def friends(*addresses: str) -> AddressGroup:
        return AddressGroup(id=scene.id("friends"), addresses=addresses)

    web = rule("web", "ingress", TCP, 80, remote_address_group="friends")
    scene.put(friends("10.0.0.0/31"), scene.group("g", *OUT, web))
    scene.put(scene.port("a", 1, "g"), scene.port("b", 2, "g", host="h2"), scene.port("c", 3, "g"))
    a, b, c = (scene[name] for name in "abc")
    assert opens(a, b, b.address(), 80)
    assert not opens(c, b, b.address(), 80, timeout=IMPATIENCE)
    with tcp_pair(a, b, b.address(), 80) as ends:
        scene.put(friends("10.0.0.3"))
        assert opens(c, b, b.address(), 80)
        assert not talks(*ends, timeout=IMPATIENCE)


@pytest.mark.parametrize("hosts", [("h1", "h2"), ("h1", "h1")], ids=["across", "local"])
def test_a_rule_that_goes_cuts_its_connections_and_no_others(scene: Scene, hosts: tuple[str, str]) -> None:
    a, b = scene.pair(*OUT, WEB, OTHER, hosts=hosts)
    with tcp_pair(a, b, b.address(), 80) as cut, tcp_pair(a, b, b.address(), 81) as kept:
        assert talks(*cut)
        assert talks(*kept)
        before = {conn.key[0].dport: conn.id for conn in scene.connections(hosts[1])}
        scene.put(scene.group("g", *OUT, OTHER))
        assert not talks(*cut, timeout=IMPATIENCE)
        assert talks(*kept)
        assert set(before) == {80, 81}
        after = {conn.key[0].dport: conn.id for conn in scene.connections(hosts[1])}
        assert after == before, "the one that was cut is remembered as denied, the other as it was"


def test_a_rule_that_comes_opens_at_once_and_disturbs_nobody(scene: Scene) -> None:
    a, b = scene.pair(*OUT, OTHER)
    with serving(b, b.address(), 80), tcp_pair(a, b, b.address(), 81) as kept:
        assert talks(*kept)
        with pytest.raises(TimeoutError):
            connect(a, b.address(), 80, timeout=IMPATIENCE)
        known = {conn.key[0].dport: conn.id for conn in scene.connections("h2")}
        scene.put(scene.group("g", *OUT, OTHER, WEB))
        with connect(a, b.address(), 80, timeout=IMPATIENCE) as opened:
            opened.sendall(b"hello")
            assert opened.recv(100) == b"hello"
        assert talks(*kept)
        now = {conn.key[0].dport: conn.id for conn in scene.connections("h2")}
        assert now[81] == known[81]


@pytest.mark.parametrize("hosts", [("h1", "h2"), ("h2", "h2")], ids=["across", "local"])
def test_a_member_that_leaves_a_group_loses_its_connections(scene: Scene, hosts: tuple[str, str]) -> None:
    web = rule("web", "ingress", TCP, 80, remote_group="friends")
    friends, server = scene.group("friends", *OUT), scene.group("server", *OUT, web)
    ports = [scene.port("a", 1, "friends", host=hosts[0]), scene.port("c", 3, "friends", host=hosts[0])]
    scene.put(friends, server, *ports, scene.port("b", 2, "server", host=hosts[1]))
    a, b, c = (scene[name] for name in "abc")
    with tcp_pair(a, b, b.address(), 80) as lost:
        with tcp_pair(c, b, b.address(), 80) as kept:
            assert talks(*lost)
            assert talks(*kept)
            scene.put(scene.group("out", *OUT), scene.port("a", 1, "out", host=hosts[0]))
            assert not talks(*lost, timeout=IMPATIENCE)
            assert talks(*kept)
        assert not opens(a, b, b.address(), 80, timeout=IMPATIENCE)
        scene.put(scene.port("a", 1, "friends", host=hosts[0]))
    assert opens(a, b, b.address(), 80)


def test_without_port_security_everything_passes(scene: Scene) -> None:
    ports = scene.port("a", 1, port_security=False), scene.port("b", 2, host="h2", port_security=False)
    scene.put(*ports)
    a, b = scene["a"], scene["b"]
    a.namespace.run("ip address add 10.0.0.77/24 dev eth0")
    assert opens(a, b, b.address(), 80)
    assert ping(b, "10.0.0.77")
    assert answers(a, b, GRE, b"\x00\x00\x88\xb5 payload")
