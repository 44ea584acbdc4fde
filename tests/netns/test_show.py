"""``headrace flow`` and ``headrace reason`` tell what this host forwards, and why not; the agent may be dead."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from headrace.testing.cloud import HEADRACE, Cloud, CloudHost
from headrace.testing.scene import Scene
from headrace.testing.topology import CommandFailed
from headrace.testing.traffic import IMPATIENCE, opens, reaches, talks, tcp_pair, udp
from headrace.testing.world import OUT, rule

WEB = rule("web", "ingress", 6, 80)


def shown(host: CloudHost, *words: str) -> Any:
    """The JSON answer of a command about this host's datapath."""
    command = [*HEADRACE, *words, "--run", str(host.directory / "run"), "-o", "json"]
    return json.loads(host.namespace.run(command).stdout)


def table(host: CloudHost, *words: str) -> str:
    return host.namespace.run([*HEADRACE, *words, "--run", str(host.directory / "run")]).stdout


def test_a_connection_is_shown_with_all_that_is_known_of_it(scene: Scene) -> None:
    a, b = scene.pair(*OUT, WEB)
    h1, h2 = scene.cloud.hosts["h1"], scene.cloud.hosts["h2"]
    with tcp_pair(a, b, b.address(), 80) as ends:
        assert talks(*ends)
        source = ends[0].getsockname()[1]
        (sent,) = shown(h1, "flow", "list", "-c", "--port", a.port.id)
        (got,) = shown(h2, "flow", "list", "-c", "--port", b.port.id)
        mine = ("flow", "list", "-c", "--port", a.port.id)
        assert [row["id"] for row in shown(h1, *mine, "--state", "ESTABLISHED")] == [sent["id"]]
        assert shown(h1, *mine, "--state", "closed", "--state", "new") == []
    key = f"tcp 10.0.0.1:{source} > 10.0.0.2:80"
    assert (sent["original"]["key"], got["original"]["key"]) == (key, key)
    assert (sent["state"], got["state"]) == ("established", "established")
    assert sent["original"]["enters"] == f"port {a.port.id}"
    assert got["original"]["enters"] == f"vxlan {scene.network.segment.id} (network {scene.network.id})"
    assert sent["original"]["goes_to"].startswith("vtep 192.0.2.2 ")
    assert got["original"]["goes_to"] == f"port {b.port.id}"
    assert sent["original"]["allowed_by"]["from"]["rule"] == scene.id("g-out4")
    assert got["original"]["allowed_by"]["to"] == {
        "rule": scene.id("g-web"),
        "group": scene.id("g"),
        "text": f"rule {scene.id('g-web')} of group {scene.id('g')}",
    }
    assert got["reply"]["allowed_by"]["from"]["text"] == "the connection being allowed"
    for way in (sent["original"], sent["reply"], got["original"], got["reply"]):
        assert way["decided"], way
        assert way["hook"] == "tc"
    assert sent["original"]["packets"] == got["original"]["packets"] >= 3
    assert sent["reply"]["octets"] == got["reply"]["octets"] > 0
    one = shown(h1, "flow", "show", sent["id"])
    assert one["original"]["key"] == key
    for way, back in (("original", "reply"), ("reply", "original")):
        assert sent[way]["tcp"]["edge"] == got[way]["tcp"]["edge"]
        assert (got[way]["tcp"]["edge"] - got[back]["tcp"]["ack"]) % 2**32 < 2**16
    assert shown(h1, "flow", "show", key)["id"] == sent["id"]
    assert key in table(h1, "flow", "show", sent["id"])
    assert re.search(r"original tcp +edge \d+, ack \d+\n", table(h1, "flow", "show", sent["id"]))


def test_why_packets_walk(scene: Scene) -> None:
    a, b = scene.pair(*OUT, rule("dns", "ingress", 17, 53), WEB)
    host = scene.cloud.hosts["h2"]
    with udp(a, a.address(), 4000) as here, udp(b, b.address(), 53) as there, tcp_pair(a, b, b.address(), 80) as ends:
        assert reaches(here, there)
        assert talks(*ends)
        rows = {row["original"]["key"][:3]: row for row in shown(host, "flow", "list", "-c", "--port", b.port.id)}
        assert rows["udp"]["state"] == "new"
        assert rows["udp"]["original"]["tcp"] is None
        assert not rows["udp"]["reply"]["decided"]
        assert rows["udp"]["reply"]["why"] == "waiting for the first reply"
        assert rows["tcp"]["reply"]["why"] is None
        walked = shown(host, "flow", "list", "--port", b.port.id, "--walked", "--state", "NEW")
        assert [row["why"] for row in walked] == ["waiting for the first reply"]
        scene.put(scene.group("g", *OUT, WEB))
        (row,) = (
            row for row in shown(host, "flow", "list", "--port", b.port.id) if row["key"].startswith("udp 10.0.0.1")
        )
        assert row["why"] == f"what was decided about port {b.port.id} has changed"
        assert "walked: what was decided" in table(host, "flow", "list", "--port", b.port.id)


def test_reasons_of_a_port_and_of_all(scene: Scene) -> None:
    a, b = scene.pair(*OUT[1:], WEB)
    host = scene.cloud.hosts["h1"]
    assert not opens(a, b, b.address(), 80, timeout=IMPATIENCE)
    own = {row["reason"]: row for row in shown(host, "reason", "list", "--port", a.port.device_name)}
    assert own["ACL_FROM_PORT"]["packets"] >= 1
    assert own["ACL_FROM_PORT"]["meaning"] == "no egress rule of the sender's groups allows it"
    assert own["SPOOFED_MAC"]["packets"] == 0
    every = {row["reason"]: row["packets"] for row in shown(host, "reason", "list")}
    assert every["ACL_FROM_PORT"] >= own["ACL_FROM_PORT"]["packets"]
    one = shown(host, "reason", "show", "acl-from-port")
    assert one["ports"][a.port.id] == own["ACL_FROM_PORT"]["packets"]
    assert "ACL_FROM_PORT" in table(host, "reason", "list")
    assert "SPOOFED_MAC" not in table(host, "reason", "list", "--port", a.port.id)
    assert "SPOOFED_MAC" in table(host, "reason", "list", "--port", a.port.id, "--all")


def test_it_works_with_the_agent_dead(cloud: Cloud, scene: Scene) -> None:
    a, b = scene.pair(*OUT, WEB)
    host = cloud.hosts["h2"]
    host.kill()
    try:
        assert opens(a, b, b.address(), 80)
        rows = shown(host, "flow", "list", "-c", "--port", b.port.id)
        assert {row["state"] for row in rows} <= {"time_wait", "closing", "closed", "established"}
        assert rows
    finally:
        host.start()
        cloud.settle()


def test_limits_and_errors_name_what_to_do(scene: Scene) -> None:
    a, b = scene.pair(*OUT, WEB)
    host = scene.cloud.hosts["h1"]
    for _ in range(3):
        assert opens(a, b, b.address(), 80)
    command = [*HEADRACE, "flow", "list", "-c", "--run", str(host.directory / "run"), "--limit", "2"]
    done = host.namespace.run(command)
    assert "only the first 2; --limit 0 shows all" in done.stderr
    assert len(done.stdout.splitlines()) == 3
    for words, complaint in (
        (("flow", "list", "--port", "nobody"), f"port nobody is not on host {host.name}"),
        (("flow", "show", "ffffffff"), "no connection here has that id or key"),
        (("reason", "show", "ACL_TO_PRT"), "did you mean `ACL_TO_PORT`?"),
        (("flow", "list", "--bpf", "/sys/fs/bpf/nothing-here"), "no datapath is loaded here"),
    ):
        with pytest.raises(CommandFailed, match="error: ") as refused:
            host.namespace.run([*HEADRACE, *words, "--run", str(host.directory / "run")])
        assert complaint in str(refused.value)
    host.directory.parent.chmod(0o755)
    nobody = ["setpriv", "--reuid=65534", "--clear-groups"]
    with pytest.raises(CommandFailed, match="needs root"):
        host.namespace.run([*nobody, *HEADRACE, "flow", "list", "--run", str(host.directory / "run")])
