"""Floods of new connections cost those who send them, and nobody else. docs/pipeline.md, track, "A full table"."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Iterator, Sequence

import pytest
from msgspec.structs import replace

from headrace import abi
from headrace.datapath.reader import Reader
from headrace.testing import packet
from headrace.testing.cloud import Cloud, CloudHost, Workload
from headrace.testing.scene import Scene
from headrace.testing.topology import Topology
from headrace.testing.traffic import Stream, Tap, opens
from headrace.testing.wait import wait_until
from headrace.testing.world import ANY

CONNECTIONS, QUOTA = 4096, 1024
CPUS = os.cpu_count() or 1
"""Each may just be trying to take one more than there is."""
BURST, PAUSE = 64, 0.01
"""Frames at once and seconds between: several times what an honest port opens, yet other tests get the CPU too."""
FILLING = 30
"""Seconds that a flood may take, on a loaded machine, to fill what it can."""
SPORT = 34
"""Where a TCP segment over IPv4 has its ports. Changed ones make its checksum wrong, so that nobody answers it."""


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    """Hosts with small tables."""
    settings = f"connections = {CONNECTIONS}\nquota = {QUOTA}"
    with Topology() as topology, Cloud(topology, families=(4,), settings=settings) as made:
        yield made


@contextlib.contextmanager
def syn_flood(senders: Sequence[Workload], target: Workload) -> Iterator[None]:
    """SYNs from ever new ports of all these senders in turn, which nobody answers."""
    end = threading.Event()
    with contextlib.ExitStack() as stack:
        taps = [stack.enter_context(Tap(sender.namespace, "eth0")) for sender in senders]
        whole = [packet.tcp(sender.port, target.port, 0, 0) for sender in senders]

        def work() -> None:
            for burst in itertools.cycle(range(1 << 20)):
                for tap, frame in zip(taps, whole, strict=True):
                    for number in range(burst * BURST, (burst + 1) * BURST):
                        tap.send(frame[:SPORT] + (number % (1 << 32)).to_bytes(4, "big") + frame[SPORT + 4 :])
                if end.wait(PAUSE):
                    return

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()


def counts(host: CloudHost, port: Workload) -> abi.ConnCount:
    return counts_at(host.datapath, host.index(port.port.id))


def counts_at(table: Reader, index: int) -> abi.ConnCount:
    return table.connection_counts().get(index, abi.ConnCount())


def used(host: CloudHost) -> int:
    value = host.datapath.maps["hr_cursors"].lookup(abi.U32(value=abi.Cursor.USED).pack())
    return int.from_bytes(value or b"", "little")


def crowd(scene: Scene, floods: Sequence[str]) -> tuple[Workload, Workload]:
    """Ports ``a`` here and ``b`` elsewhere; beside ``a`` those that flood, and their target ``c``."""
    names = [*floods, "c"]
    ports = [scene.port(name, number, "g") for number, name in enumerate(names, 3)]
    scene.put(scene.group("g", *ANY), scene.port("a", 1, "g"), scene.port("b", 2, "g", host="h2"), *ports)
    return scene["a"], scene["b"]


def test_a_flood_from_one_port_costs_only_its_own(scene: Scene) -> None:
    """It fills its quota, and goes round in it; even its own new connections go on."""
    a, b = crowd(scene, ["f"])
    host, flooding = scene.cloud.hosts["h1"], scene["f"]
    with Stream(a, b, b.address(), 5001, pause=0.001) as stream, syn_flood([flooding], scene["c"]):
        wait_until(lambda: counts(host, flooding).evicted > QUOTA, FILLING, what="the flood goes round in its quota")
        stream.advance()
        assert opens(a, b, b.address(), 80)
        assert opens(flooding, b, b.address(), 81)
        assert counts(host, flooding).live <= QUOTA + CPUS
        first, *others = host.show("flow", "top", "-n", "0", "--interval", "0.1")
        stream.advance()
    assert first["port"] == flooding.port.id
    assert first["quota"] == QUOTA
    assert 0 < first["connections"] <= QUOTA + CPUS
    assert first["half_open"] > first["connections"] // 2
    assert first["evicted"] > QUOTA
    assert first["walks"] > 0
    mine = next(row for row in others if row["port"] == a.port.id)
    assert (mine["evicted"], mine["refused"]) == (0, 0)
    assert mine["connections"] >= 2


def test_a_table_full_of_floods(scene: Scene) -> None:
    """Several ports together fill the table, but for what is for others, who find room and lose nothing."""
    a, b = crowd(scene, names := [f"f{number}" for number in range(5)])
    host, floods = scene.cloud.hosts["h1"], [scene[name] for name in names]
    with Stream(a, b, b.address(), 5001, pause=0.001) as stream, syn_flood(floods, scene["c"]):
        wait_until(lambda: used(host) >= CONNECTIONS * 7 // 8, FILLING, what="the table is full")
        for number in range(5):
            assert opens(a, b, b.address(), 80 + number)
        stream.advance()
        assert used(host) <= CONNECTIONS + CPUS
        assert counts(host, a).evicted == 0
        mine = [conn for conn in scene.connections("h1") if conn.port == host.index(a.port.id)]
        assert [abi.State(conn.state) for conn in mine if conn.key[0].dport == 5001] == [abi.State.ESTABLISHED]


def test_what_expired_is_swept_without_the_agent(scene: Scene) -> None:
    """The sweeper is the kernel's: records, keys, counts and indices come back while the agent is dead."""
    crowd(scene, ["f"])
    host, flooding = scene.cloud.hosts["h1"], scene["f"]
    with syn_flood([flooding], scene["c"]):
        wait_until(lambda: counts(host, flooding).live >= QUOTA, FILLING, what="the quota is full")
    index, table = host.index(flooding.port.id), host.datapath
    host.kill()
    try:
        silent = (abi.ConnCounter(seen=1),) * 2
        expired = [
            (abi.U32(value=number).pack(), replace(conn, timeout=0, counter=silent).pack())
            for number, conn in table.connections()
            if conn.port == index
        ]
        before = used(host)
        table.maps["hr_conns"].update_many(expired)
        wait_until(lambda: not counts_at(table, index).live, what="they are swept")
        assert not [key for key, _ in table.flows() if key.where == index]
        assert used(host) <= before - len(expired)
    finally:
        host.start()
        scene.cloud.settle()
