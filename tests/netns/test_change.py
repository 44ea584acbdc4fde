"""A change of rules acts on the connections it concerns, both ways and at once, and on no other; in both families."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Self

import pytest

from headrace.controller.client import Client
from headrace.controller.desired import CLI, encode
from headrace.model import AddressPair, Object, Record, Rule
from headrace.testing.cloud import Workload
from headrace.testing.scene import Scene
from headrace.testing.traffic import IMPATIENCE, PATIENCE, connect, listen, opens, talks, tcp_pair, udp
from headrace.testing.wait import wait_until
from headrace.testing.world import OUT, rule

TCP, UDP = 6, 17
FAMILIES = (4, 6)
PAIRS = {4: "10.0.0.77", 6: "fd00::77"}
UPDATES = 200
SO_RCVBUFFORCE = 33

Pair = tuple[socket.socket, socket.socket]


def both(name: str, port: int, **fields: str) -> tuple[Rule, Rule]:
    """An ingress rule for each IP version."""
    return (
        rule(f"{name}4", "ingress", TCP, port, **fields),
        rule(f"{name}6", "ingress", TCP, port, ethertype="IPv6", **fields),
    )


WEB, OTHER = both("web", 80), both("other", 81)


def a_rule(scene: Scene) -> tuple[list[Object], list[Object]]:
    scene.put(scene.group("out", *OUT), scene.group("g", *WEB, *OTHER))
    scene.put(scene.port("a", 1, "out"), scene.port("b", 2, "g", host="h2"))
    return [scene.group("g", *OTHER)], [scene.group("g", *WEB, *OTHER)]


def a_member(scene: Scene) -> tuple[list[Object], list[Object]]:
    friends = (*both("f", 80, remote_group="friends"), *both("all", 81))
    scene.put(scene.group("out", *OUT), scene.group("friends"), scene.group("g", *friends))
    scene.put(scene.port("a", 1, "out", "friends"), scene.port("b", 2, "g", host="h2"))
    return [scene.port("a", 1, "out")], [scene.port("a", 1, "out", "friends")]


def a_group(scene: Scene) -> tuple[list[Object], list[Object]]:
    scene.put(scene.group("out", *OUT), scene.group("web", *WEB), scene.group("g", *OTHER))
    scene.put(scene.port("a", 1, "out"), scene.port("b", 2, "web", "g", host="h2"))
    return [scene.port("b", 2, "g", host="h2")], [scene.port("b", 2, "web", "g", host="h2")]


CHANGES: dict[str, Callable[[Scene], tuple[list[Object], list[Object]]]] = {
    "a rule": a_rule,
    "a member": a_member,
    "a group": a_group,
}
"""Workloads a on h1 and b on h2; objects that take port 80 away and leave 81, and those that give it back."""


def passes(sender: socket.socket, receiver: socket.socket, timeout: float) -> bool:
    """Whether an octet comes through."""
    sender.sendall(b"x")
    receiver.settimeout(timeout)
    try:
        return receiver.recv(1) == b"x"
    except TimeoutError:
        return False


def is_cut(pair: Pair) -> bool:
    """Whether neither direction passes any more."""
    here, there = pair
    return not passes(here, there, IMPATIENCE) and not passes(there, here, IMPATIENCE)


@contextlib.contextmanager
def pairs(a: Workload, b: Workload, port: int) -> Iterator[list[Pair]]:
    """An open connection in each family."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(tcp_pair(a, b, b.address(family), port)) for family in FAMILIES]


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_taken_away_is_cut_both_ways_and_nothing_else(scene: Scene, name: str) -> None:
    less, again = CHANGES[name](scene)
    a, b = scene["a"], scene["b"]
    with pairs(a, b, 80) as lost, pairs(a, b, 81) as kept:
        assert all(talks(*pair) for pair in (*lost, *kept))
        before = {(conn.key[0].dport, conn.key[0].saddr): conn.id for conn in scene.connections("h2")}
        scene.put(*less)
        assert all(is_cut(pair) for pair in lost)
        assert all(talks(*pair) for pair in kept)
        assert not opens(a, b, b.address(4), 80, timeout=IMPATIENCE)
        after = {(conn.key[0].dport, conn.key[0].saddr): conn.id for conn in scene.connections("h2")}
        assert {key: after.get(key) for key in before} == before, "no connection is forgotten, and none begins anew"
        scene.put(*again)
        assert all(opens(a, b, b.address(family), 80, timeout=PATIENCE) for family in FAMILIES)
        assert all(talks(*pair) for pair in lost), "what is allowed again goes on"
        assert all(talks(*pair) for pair in kept)


def test_an_address_pair_that_goes_takes_its_connections_along(scene: Scene) -> None:
    allowed = tuple(AddressPair(address=address) for address in PAIRS.values())
    friends = both("f", 80, remote_group="friends")
    scene.put(scene.group("friends", *OUT), scene.group("g", *friends))
    scene.put(scene.port("a", 1, "friends", address_pairs=allowed), scene.port("b", 2, "g", host="h2"))
    a, b = scene["a"], scene["b"]
    with contextlib.ExitStack() as stack, pairs(a, b, 80) as kept:  # these from the fixed addresses
        a.namespace.run(f"ip address add {PAIRS[4]}/24 dev eth0")
        a.namespace.run(f"ip address add {PAIRS[6]}/64 dev eth0 nodad")
        lost = []
        for family in FAMILIES:
            with listen(b, b.address(family), 80) as listener:
                here = stack.enter_context(connect(a, b.address(family), 80, origin=PAIRS[family]))
                lost.append((here, stack.enter_context(listener.accept()[0])))
        assert all(talks(*pair) for pair in (*lost, *kept))
        scene.put(scene.port("a", 1, "friends"))
        assert all(is_cut(pair) for pair in lost)
        assert all(talks(*pair) for pair in kept)


class Numbers:
    """Numbered datagrams, one a millisecond, and which of them arrived."""

    def __init__(self, sender: socket.socket, receiver: socket.socket) -> None:
        receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)  # a starved test must not lose what came
        self._sender, self._receiver = sender, receiver
        self._target = receiver.getsockname()[:2]
        self._end = threading.Event()
        self.sent = 0
        self.arrived: set[int] = set()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._receive)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._threads[0].join()
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: len(self.arrived) >= self.sent, PATIENCE)
        self._receiver.close()
        self._threads[1].join(PATIENCE)

    def _send(self) -> None:
        while not self._end.wait(0.001):
            self._sender.sendto(struct.pack("!Q", self.sent), self._target)
            self.sent += 1

    def _receive(self) -> None:
        self._receiver.settimeout(0.1)
        with contextlib.suppress(OSError):
            while True:
                with contextlib.suppress(TimeoutError):
                    self.arrived.add(struct.unpack("!Q", self._receiver.recv(100))[0])


def test_what_stays_allowed_never_misses_a_packet(scene: Scene) -> None:
    """Rules, members and addresses come and go two hundred times; streams that they all allow lose nothing."""
    members = rule("in4", "ingress", UDP, remote_group="friends"), rule(
        "in6", "ingress", UDP, remote_group="friends", ethertype="IPv6"
    )  # fmt: skip
    web = (*WEB, *both("crowd", 82, remote_group="crowd"))

    def update(number: int) -> Object:
        match number % 4:
            case 0:
                return scene.group("g", *OUT, *members, *web[: number // 4 % 4])
            case 1:
                return scene.port("c", 3, "friends", *(["crowd"] if number % 8 == 1 else []), host=None)
            case 2:
                return scene.port("d", 4, *(["friends"] if number % 8 == 2 else []), host=None)
            case _:
                return scene.group("g", *members, *OUT, *OTHER[: number // 4 % 3])

    scene.put(scene.group("friends", *OUT), scene.group("crowd"), update(0))
    scene.put(scene.port("a", 1, "friends", "g"), scene.port("b", 2, "friends", "g", host="h2"), update(1), update(2))
    a, b = scene["a"], scene["b"]
    with contextlib.ExitStack() as stack:
        streams = []
        for family in FAMILIES:
            here = stack.enter_context(udp(a, a.address(family)))
            there = stack.enter_context(udp(b, b.address(family), 9000))
            streams.append(stack.enter_context(Numbers(here, there)))
        wait_until(lambda: all(stream.arrived for stream in streams), PATIENCE)
        records = [
            Record(type=item.type, id=item.id, writer=CLI, body=encode(item)) for item in map(update, range(UPDATES))
        ]

        async def send(client: Client) -> None:
            for record in records:
                await client.put(record)

        scene.cloud.ask(send)
        scene.cloud.settle()
    for stream in streams:
        assert stream.arrived == set(range(stream.sent)), f"lost {set(range(stream.sent)) - stream.arrived}"
        assert stream.sent > UPDATES
