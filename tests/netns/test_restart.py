"""Agents are killed, replaced, and lose devices and neighbours; the datapath forwards on and is found as it was."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterator

import pytest

from headrace import abi
from headrace.datapath.attach import attached
from headrace.model import HostStatus, PortStatus
from headrace.testing.cloud import Cloud, CloudHost
from headrace.testing.scene import Scene
from headrace.testing.topology import Process
from headrace.testing.traffic import IMPATIENCE, Stream, opens, ping, talks, tcp_pair
from headrace.testing.wait import wait_until
from headrace.testing.world import ANY, OUT, rule

LOSS = re.compile(r"(\d+) packets transmitted, (\d+) received")


@pytest.fixture
def scene(cloud: Cloud) -> Iterator[Scene]:
    """A network for one test, which may kill agents."""
    with Scene(cloud) as made:
        yield made
        for host in cloud.hosts.values():
            if host.agent is None or host.agent.poll() is not None:
                host.start()
        cloud.settle()


def status(cloud: Cloud, host: str) -> HostStatus:
    """What a host says of itself."""
    return next(said for said in cloud.ask(lambda client: client.statuses()) if said.id == host)


def port_status(cloud: Cloud, host: str, port: str) -> PortStatus | None:
    return next((said for said in status(cloud, host).ports if said.id == port), None)


def programs(host: CloudHost) -> dict[str, int]:
    """Which program runs where."""
    found = {path.name: attached(path) for path in (host.bpf / "links").iterdir()}
    return {name: place.program_id for name, place in found.items() if place}


def flows(host: CloudHost, conn: abi.Conn) -> list[abi.Flow | None]:
    """A connection's entries."""
    return [host.datapath.flow(key) for key in conn.key]


@contextlib.contextmanager
def steady(scene: Scene, *, interval: float = 0.002) -> Iterator[None]:
    """Pings from ``a`` to ``b`` meanwhile, none of which may be lost."""
    pings: Process = scene["a"].namespace.popen(f"ping -q -i {interval} {scene['b'].address()}")
    try:
        yield
    finally:
        pings.send_signal(signal.SIGINT)
        pings.wait(5)
    found = LOSS.search(pings.output())
    assert found, pings.output()
    sent, received = map(int, found.groups())
    assert sent > 20
    assert sent - received <= 1, pings.output()  # the last may still be under way


def test_traffic_goes_on_when_agents_are_killed(scene: Scene) -> None:
    a, b = scene.pair()
    scene.put(scene.port("c", 3, "g"))
    with Stream(a, b, b.address(6), 80) as stream:
        for host in scene.cloud.hosts.values():
            host.kill()
        stream.advance()
        assert opens(scene["c"], b, b.address(), 81)
        assert opens(scene["c"], a, a.address(6), 81)
        for host in scene.cloud.hosts.values():
            host.start()
        scene.cloud.settle()
        stream.advance()


def test_a_restart_finds_everything_and_writes_nothing(scene: Scene) -> None:
    a, b = scene.pair()
    host = scene.cloud.hosts["h1"]
    with tcp_pair(a, b, b.address(), 80) as ends:
        assert talks(*ends)
        (conn,) = scene.connections("h1")
        entries, epoch = flows(host, conn), host.datapath.epoch(host.index(a.port.id))
        counters, names = host.counters(a.port.id), host.names
        assert all(entry and entry.flags & abi.FlowFlag.DECIDED for entry in entries)
        host.kill()
        host.start()
        scene.cloud.settle()
        assert host.agent
        assert "applied" not in host.agent.output()
        assert host.names == names
        assert host.datapath.epoch(host.index(a.port.id)) == epoch
        assert host.counters(a.port.id).from_port.packets >= counters.from_port.packets
        assert host.counters(a.port.id).to_port.packets >= counters.to_port.packets
        assert flows(host, conn) == entries
        assert talks(*ends)
        assert [found.id for found in scene.connections("h1")] == [conn.id]
        assert flows(host, conn) == entries


def test_programs_are_replaced_under_traffic_without_loss(scene: Scene) -> None:
    scene.pair()
    assert ping(scene["a"], scene["b"].address())
    before = {name: programs(host) for name, host in scene.cloud.hosts.items()}
    with steady(scene):
        for host in scene.cloud.hosts.values():
            assert host.stop() == 0
            host.start()
        scene.cloud.settle()
    for name, host in scene.cloud.hosts.items():
        assert programs(host).keys() == before[name].keys()
        assert not set(programs(host).values()) & set(before[name].values())
        assert len(list((host.bpf / "loads").iterdir())) == 1


def test_policy_changes_under_traffic_lose_nothing(scene: Scene) -> None:
    scene.pair()
    with steady(scene):
        for number in range(10):
            extra = rule("more", "ingress", 6, 1000 + number)
            scene.put(scene.group("g", *ANY, extra), scene.port(f"n{number}", 10 + number, "g", host=None))
        scene.put(scene.group("g", *ANY))


def test_a_device_that_goes_and_returns(scene: Scene) -> None:
    a, b = scene.pair()
    cloud, host = scene.cloud, scene.cloud.hosts["h1"]
    assert ping(a, b.address())
    index, counters = host.index(a.port.id), host.counters(a.port.id)
    a.unplug()
    wait_until(lambda: said_state(cloud, a.port.id) == "down", what="the port is reported down")
    said = port_status(cloud, "h1", a.port.id)
    assert said
    assert a.port.device_name in said.reason
    assert not ping(b, a.address(), patience=IMPATIENCE)
    a.plug()
    wait_until(lambda: said_state(cloud, a.port.id) == "up", what="the port is reported up")
    assert ping(a, b.address())
    assert ping(b, a.address(6))
    assert host.index(a.port.id) == index
    assert host.counters(a.port.id).from_port.packets > counters.from_port.packets


def said_state(cloud: Cloud, port: str) -> str:
    said = port_status(cloud, "h1", port)
    return said.state if said else ""


def test_a_device_that_is_made_anew_while_no_agent_runs(scene: Scene) -> None:
    a, b = scene.pair()
    host = scene.cloud.hosts["h1"]
    with tcp_pair(a, b, b.address(), 80) as ends:
        assert talks(*ends)
        host.kill()
        a.unplug()
        a.plug()
        host.start()
        scene.cloud.settle()
        assert ping(a, b.address())
        assert talks(*ends)


def test_a_rule_that_went_while_no_agent_ran_cuts_at_its_start(scene: Scene) -> None:
    a, b = scene.pair(*OUT, rule("web", "ingress", 6, 80), rule("other", "ingress", 6, 81))
    host = scene.cloud.hosts["h2"]
    with tcp_pair(a, b, b.address(), 80) as cut, tcp_pair(a, b, b.address(), 81) as kept:
        host.kill()
        scene.put(scene.group("g", *OUT, rule("other", "ingress", 6, 81)))
        assert talks(*cut)
        host.start()
        scene.cloud.settle()
        assert not talks(*cut, timeout=IMPATIENCE)
        assert talks(*kept)


@pytest.mark.parametrize(
    "happenings",
    [
        ("link set uplink address 02:aa:00:00:00:01", "link set uplink address {mac}"),
        ("link set uplink down", "link set uplink up"),
        ("neighbour flush dev uplink", "neighbour flush dev uplink"),
    ],
    ids=["mac", "flap", "flush"],
)
@pytest.mark.parametrize("where", ["h1", "h2"])
def test_whatever_becomes_of_a_next_hop_heals(scene: Scene, where: str, happenings: tuple[str, str]) -> None:
    a, b = scene.pair()
    host = scene.cloud.hosts[where].namespace
    mac, addresses = host.mac("uplink"), scene.cloud.underlay(int(where[1:]))
    host.sysctl("net.ipv4.conf.uplink.arp_notify", 1)
    host.sysctl("net.ipv6.conf.uplink.keep_addr_on_down", 1)
    with Stream(a, b, b.address(), 80) as stream:
        for happening in happenings:
            host.run(f"ip {happening.format(mac=mac)}")
            if "down" not in happening:
                stream.advance()
    kept = {f"{entry['local']}/{entry['prefixlen']}" for entry in host.ip("address show dev uplink")[0]["addr_info"]}
    assert kept >= {*addresses}


def test_a_next_hop_that_an_operator_fixed_stays_fixed(scene: Scene) -> None:
    host = scene.cloud.hosts["h1"].namespace
    address = scene.cloud.underlay(2)[0].partition("/")[0]
    mac = scene.cloud.hosts["h2"].namespace.mac("uplink")
    host.run(f"ip neighbour replace {address} lladdr {mac} dev uplink nud permanent")
    try:
        a, b = scene.pair()
        assert ping(a, b.address())
        (entry,) = (entry for entry in host.ip("neighbour show dev uplink") if entry["dst"] == address)
        assert entry["state"] == ["PERMANENT"]
    finally:
        host.run(f"ip neighbour delete {address} dev uplink")
    wait_until(lambda: ping(a, b.address(), patience=IMPATIENCE), what="the agent has it resolved again")
