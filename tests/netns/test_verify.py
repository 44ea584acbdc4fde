"""`headrace host verify`: whatever somebody takes, changes or adds behind the agent's back is named, and repaired."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace import abi
from headrace.agent.control import Request, ask
from headrace.agent.seam import FAR, NEAR
from headrace.datapath.attach import attached
from headrace.datapath.binding import check, get_pinned, lib
from headrace.datapath.bpfmap import Map
from headrace.testing.cloud import HEADRACE, Cloud, CloudHost
from headrace.testing.scene import Scene
from headrace.testing.topology import Topology
from headrace.testing.traffic import Stream, opens, ping
from headrace.testing.wait import wait_until
from headrace.testing.world import ANY

Drift = Callable[[CloudHost, str, int], object]
"""Spoils a host: given it, a port's device and its index."""


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    """Agents that look for drift only when asked."""
    with Topology() as topology, Cloud(topology, settings="verify = 0") as made:
        yield made


def verify(host: CloudHost, *options: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit status and differences."""
    command = [*HEADRACE, "host", "verify", "--run", str(host.directory / "run"), "-o", "json", *options]
    done = host.namespace.run(command, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def seam_of(host: CloudHost) -> int:
    """The device that the datapath sends to what must be cut."""
    return abi.Config.unpack(host.datapath.maps["hr_configs"].lookup(u32(0)) or b"").seam


def u32(value: int) -> bytes:
    return abi.U32(value=value).pack()


def take_an_entry(host: CloudHost, _: str, index: int) -> None:
    table = host.datapath.maps["hr_sources"]
    key = next(key for key in table.keys() if abi.SourceKey.unpack(key).port == index)  # noqa: SIM118 - no dict
    assert table.delete(key)


def change_an_entry(host: CloudHost, _: str, index: int) -> None:
    port = host.datapath.port(index)
    fields = {field: getattr(port, field) for field in port.__struct_fields__}
    host.datapath.maps["hr_ports"].update(u32(index), abi.Port(**fields | {"flags": 0}).pack())


def add_a_stray(host: CloudHost, _: str, index: int) -> None:
    host.datapath.maps["hr_devices"].update(u32(4000), abi.Device(port=index).pack())


def take_a_name(host: CloudHost, _: str, index: int) -> None:
    table = host.datapath.maps["hr_names"]
    key = next(key for key, value in table.items() if abi.Name.unpack(value).index == index and not key[-1])
    assert table.delete(key)


def detach_a_program(host: CloudHost, device: str, _: int, kind: str = "ingress") -> None:
    fd = get_pinned(host.bpf / "links" / f"{device}@{kind}", "link")
    try:
        check(lib.bpf_link_detach(fd), "detach")
    finally:
        os.close(fd)


def unpin_a_link(host: CloudHost, device: str, _: int) -> None:
    (host.bpf / "links" / f"{device}@egress").unlink()


def unpin_a_table(host: CloudHost, *_: object) -> None:
    (host.bpf / abi.ABI_HASH / "hr_flows").unlink()


def empty_a_stage(host: CloudHost, *_: object) -> None:
    (load,) = (host.bpf / "loads").iterdir()
    with Map.from_pin(load / "stages") as table:
        assert table.delete(u32(0))


def flush_the_guard(host: CloudHost, *_: object) -> None:
    host.namespace.run("nft flush ruleset")


def flush_a_chain(host: CloudHost, *_: object) -> None:
    host.namespace.run("nft flush chain arp headrace_guard leaving")


def put_it_down(host: CloudHost, device: str, _: int) -> None:
    host.namespace.run(f"ip link set {device} down")


def have_the_seam_cut_nothing(host: CloudHost, *_: object) -> None:
    host.namespace.run(f"ethtool -K {NEAR} tso on tx on")


def let_the_stack_speak_in_the_seam(host: CloudHost, *_: object) -> None:
    host.namespace.sysctl(f"net.ipv6.conf.{FAR}.disable_ipv6", 0)


def take_the_seams_program(host: CloudHost, *_: object) -> None:
    detach_a_program(host, FAR, 0, "seam")


SPOILT: dict[Drift, tuple[str, str, str]] = {
    take_an_entry: ("table", "hr_sources", "missing"),
    change_an_entry: ("table", "hr_ports", "changed"),
    add_a_stray: ("table", "hr_devices", "stray"),
    take_a_name: ("name", "hr_names", "missing"),
    detach_a_program: ("program", "DEVICE", "missing"),
    unpin_a_link: ("program", "DEVICE", "missing"),
    unpin_a_table: ("pin", "hr_flows", "missing"),
    empty_a_stage: ("stage", "hr_stages", "missing"),
    flush_the_guard: ("guard", "inet headrace_guard arriving", "missing"),
    flush_a_chain: ("guard", "arp headrace_guard leaving", "missing"),
    put_it_down: ("device", "DEVICE", "changed"),
    have_the_seam_cut_nothing: ("seam", NEAR, "changed"),
    let_the_stack_speak_in_the_seam: ("seam", FAR, "changed"),
    take_the_seams_program: ("program", FAR, "missing"),
}


def test_all_that_somebody_spoils_is_named_and_repaired(scene: Scene) -> None:
    a, b = scene.pair()
    host = scene.cloud.hosts["h1"]
    index, device = host.index(a.port.id), a.port.device_name
    assert verify(host) == (0, [])
    with Stream(a, b, b.address(), 80, pause=0.002) as stream:
        for spoil, (kind, place, state) in SPOILT.items():
            spoil(host, device, index)
            answer = ask(host.directory / "run", Request(verify=True, repair=True))
            assert answer
            assert not answer.left, spoil
            rows = [(row.kind, row.place.rpartition("/")[2], row.state) for row in answer.differences]
            assert (kind, place.replace("DEVICE", device), state) in rows, spoil
            stream.advance()
    assert opens(a, b, b.address(6), 81)
    assert all(attached(path) for path in (host.bpf / "links").glob(f"{device}@*"))


def test_a_seam_that_was_deleted_is_made_anew_at_once(scene: Scene) -> None:
    scene.pair()
    host = scene.cloud.hosts["h1"]
    before = seam_of(host)
    host.namespace.run(f"ip link delete {NEAR}")
    wait_until(lambda: seam_of(host) not in {0, before}, what="there is another")
    assert verify(host) == (0, [])
    (facts,) = host.namespace.ip(f"link show dev {NEAR}")
    assert facts["ifindex"] == seam_of(host)


def test_a_difference_is_told_in_words(scene: Scene) -> None:
    a, _ = scene.pair()
    host = scene.cloud.hosts["h1"]
    take_an_entry(host, a.port.device_name, host.index(a.port.id))
    status, (found,) = verify(host)
    assert status == 1
    status, (row,) = verify(host, "--repair")
    assert (status, row) == (0, found)
    assert f"port={a.port.id}" in row["key"]
    assert f"mac={a.port.mac}" in row["key"]


def test_the_agent_looks_by_itself(scene: Scene) -> None:
    """And counts what it repaired, for whoever asks the controller."""
    a, b = scene.pair()
    host = scene.cloud.hosts["h1"]
    before = host.config.read_text()
    host.stop()
    host.config.write_text(before.replace("verify = 0", "verify = 1"))
    host.start()
    scene.cloud.settle()
    index = host.index(a.port.id)
    try:
        assert ping(a, b.address())
        change_an_entry(host, a.port.device_name, index)
        wait_until(lambda: host.datapath.port(index).flags, 10, "the port is repaired")
        assert ping(a, b.address())
        assert host.agent
        wait_until(lambda: host.agent and "drift: repaired=1 left=0" in host.agent.output(), 5, "it is said")
        scene.cloud.settle()
        statuses = scene.cloud.ask(lambda client: client.statuses())
        assert next(said for said in statuses if said.id == "h1").repairs == 1
    finally:
        host.stop()
        host.config.write_text(before)
        host.start()
        scene.cloud.settle()


def test_without_an_agent_it_says_what_to_do(scene: Scene) -> None:
    host = scene.cloud.hosts["h2"]
    host.kill()
    done = host.namespace.run([*HEADRACE, "host", "verify", "--run", str(host.directory / "run")], check=False)
    assert done.returncode == 1
    assert "no agent runs here; start it" in done.stderr
    host.start()
    scene.put(scene.group("g", *ANY))
    assert Path(host.directory / "run" / "agent.sock").exists()
