"""Another ABI takes over, and gives back: connections go on with their state, counters and numbers."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.testing.build import Build
from headrace.testing.cloud import HEADRACE, Cloud, CloudHost
from headrace.testing.scene import Scene
from headrace.testing.traffic import Stream, talks, tcp_pair
from headrace.testing.wait import wait_until
from headrace.testing.world import OUT, rule

pytestmark = pytest.mark.needs("clang")

WEB = rule("web", "ingress", 6, 80, 81)
PAUSE = 0.002
TCP = 6


def with_more_fields(text: str) -> str:
    """A field in the middle of a connection and of a flow entry, and one less at a connection's end."""
    text = text.replace(
        "\tstruct hr_conn_counter counter[2]; /* original",
        "\t__u64 more;\n\tstruct hr_conn_counter counter[2]; /* original",
        1,
    )
    return text.replace(
        "\t__u32 conn; /* index in hr_conns */\n\t__u32 from_index;",
        "\t__u32 more[2];\n\t__u32 conn;\n\t__u32 from_index;",
        1,
    )


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return Build.make(tmp_path_factory.mktemp("build") / "other", {"bpf/abi.h": with_more_fields})


@pytest.fixture
def scene(cloud: Cloud) -> Iterator[Scene]:
    with Scene(cloud) as made:
        yield made
        for host in cloud.hosts.values():
            host.kill()
            host.start()
        cloud.settle()


def replace(cloud: Cloud, *hosts: CloudHost, build: Build | None = None) -> None:
    """Stop agents and start those of another build."""
    for host in hosts:
        host.stop()
        host.start(build)
    cloud.settle()


def listed(host: CloudHost, *sources: int, build: Build | None = None) -> list[dict[str, Any]]:
    """The connections from source ports."""
    rows = host.show("flow", "list", "--connection", build=build)
    return [row for source in sources for row in rows if f":{source} >" in row["original"]["key"]]


def counts(row: dict[str, Any]) -> tuple[int, ...]:
    """Packets and octets, both ways."""
    return tuple(row[way][what] for way in ("original", "reply") for what in ("packets", "octets"))


def test_connections_come_over_and_go_back(scene: Scene, other: Build) -> None:
    """What is quiet meanwhile is found again by the side that adoption would not let in."""
    a, b = scene.pair(*OUT, WEB)
    hosts = list(scene.cloud.hosts.values())
    with Stream(a, b, b.address(), 80, pause=PAUSE) as stream, tcp_pair(a, b, b.address(), 81) as (here, there):
        assert talks(here, there)
        sources = here.getsockname()[1], stream.here.getsockname()[1]
        for build, before in ((other, None), (None, other)):
            quiet, busy = listed(hosts[0], *sources, build=before)
            replace(scene.cloud, *hosts, build=build)
            stream.advance()
            still, more = listed(hosts[0], *sources, build=build)
            assert counts(still) == counts(quiet)
            assert all(after > at for at, after in zip(counts(busy), counts(more), strict=True))
            for one, same in ((quiet, still), (busy, more)):
                assert (same["id"], same["state"]) == (one["id"], "established")
                assert same["original"]["allowed_by"] == one["original"]["allowed_by"]
            there.sendall(b"x")  # from the listener's side: no rule lets it in to a
            here.settimeout(5)
            assert here.recv(1) == b"x"
            assert talks(here, there)
    for host in hosts:
        assert len([path for path in host.bpf.iterdir() if (path / "hr_conns").exists()]) == 1
        assert len(list((host.bpf / "loads").iterdir())) == 1


def test_the_same_abi_goes_on_in_the_same_tables(scene: Scene, tmp_path: Path) -> None:
    """Other programs, but the same entries: they are replaced device by device under the stream."""
    a, b = scene.pair(*OUT, WEB)
    host = scene.cloud.hosts["h1"]

    def otherwise(text: str) -> str:
        return text.replace("#define HR_FIB_ONE_IN 16", "#define HR_FIB_ONE_IN 8")

    build = Build.make(tmp_path / "compatible", {"bpf/stages/decide.h": otherwise})
    with Stream(a, b, b.address(), 80, pause=PAUSE) as stream:
        (was,) = (conn for conn in scene.connections("h1") if conn.key[0].proto == TCP)
        epoch = host.datapath.epoch(host.index(a.port.id))
        replace(scene.cloud, host, build=build)
        stream.advance()
        (now,) = (conn for conn in scene.connections("h1") if conn.key[0].proto == TCP)
        assert (now.id, now.created) == (was.id, was.created)
        assert host.datapath.epoch(host.index(a.port.id)) == epoch
        assert host.agent
        assert "carried connections" not in host.agent.output()


def test_nothing_is_counted_twice_or_lost_on_the_way(scene: Scene, other: Build) -> None:
    """The host that stays as it is has counted the same packets."""
    a, b = scene.pair(*OUT, WEB)
    changed, kept = scene.cloud.hosts.values()
    with Stream(a, b, b.address(), 80, pause=PAUSE) as stream:
        source = stream.here.getsockname()[1]
        replace(scene.cloud, changed, build=other)
        stream.advance()
    ((one,), (two,)) = listed(changed, source, build=other), listed(kept, source)
    assert counts(one) == counts(two)
    assert changed.agent
    assert "all devices switched" in changed.agent.output()


def start_and_kill(host: CloudHost, build: Build, said: str) -> None:
    """Run an agent until it has said something."""
    process = host.namespace.popen([*HEADRACE, "agent", "--config", str(host.config)], env=build.environment)
    wait_until(lambda: said in process.output() or process.poll() is not None, 15, said)
    assert process.poll() is None, process.output()
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_who_is_killed_half_way_leaves_it_to_the_next(scene: Scene, other: Build) -> None:
    """Before the first device is switched, and between the first and the last."""
    a, b = scene.pair(*OUT, WEB)
    host = scene.cloud.hosts["h1"]
    with Stream(a, b, b.address(), 80, pause=PAUSE) as stream, tcp_pair(a, b, b.address(), 81) as (here, there):
        assert talks(here, there)
        host.stop()
        for said in ("carried connections", "attached device"):
            start_and_kill(host, other, said)
            stream.advance()
        host.start(other)
        scene.cloud.settle()
        stream.advance()
        there.sendall(b"x")
        here.settimeout(5)
        assert here.recv(1) == b"x"
