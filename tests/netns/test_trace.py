"""``headrace trace`` on a host: the real programs on its live tables and the oracle give one answer, or it says so."""

from __future__ import annotations

import json
from typing import Any

from headrace import abi
from headrace.cli.trace import DIFFERENT, DROPPED
from headrace.testing.cloud import HEADRACE, CloudHost
from headrace.testing.scene import Scene
from headrace.testing.traffic import reaches, talks, tcp_pair, udp
from headrace.testing.world import OUT, rule

WEB, DNS = rule("web", "ingress", 6, 80), rule("dns", "ingress", 17, 53)


def traced(scene: Scene, host: CloudHost, port: str, packet: str, status: int = 0) -> Any:
    """The answer of a trace run on a host."""
    done = host.namespace.run(command(scene, host, port, packet, "-o", "json"), check=False)
    assert done.returncode == status, f"{done.returncode}: {done.stdout}{done.stderr}"
    return json.loads(done.stdout)


def command(scene: Scene, host: CloudHost, port: str, packet: str, *words: str) -> list[str]:
    where = ["--controller", scene.cloud.url, "--run", str(host.directory / "run")]
    return [*HEADRACE, "trace", "--port", port, packet, *where, *words]


def test_both_answers_agree_before_and_after_traffic(scene: Scene) -> None:
    a, b = scene.pair(*OUT, WEB, DNS)
    h1, h2 = scene.cloud.hosts["h1"], scene.cloud.hosts["h2"]
    with udp(a, a.address(), 4000) as here, udp(b, b.address(), 53) as there:
        packet = "udp 10.0.0.1:4000 > 10.0.0.2:53"
        first = traced(scene, h1, a.port.id, packet)["hops"][0]["datapath"]
        assert (first["reason"], first["replayed"], first["to"], first["unlike"]) == ("NONE", False, "the underlay", [])
        assert (first["rule_from"], first["same_build"]) == (scene.id("g-out4"), True)
        assert not [conn for conn in h1.connections() if conn.key[0].sport == 4000], "asking opened nothing"
        assert reaches(here, there)
        assert traced(scene, h1, a.port.id, packet)["hops"][0]["datapath"]["replayed"]
        last = traced(scene, h2, a.port.id, packet)["hops"]
        assert last[0]["datapath"] is None, "another host's programs cannot be asked here"
        assert (last[1]["datapath"]["to"], last[1]["datapath"]["rule_to"]) == (b.port.id, scene.id("g-dns"))
        assert last[1]["datapath"]["unlike"] == []
        answer = "udp 10.0.0.2:53 > 10.0.0.1:4000"
        told = traced(scene, h2, b.port.id, answer, DROPPED)  # what h1 remembers is not known here
        assert told["advice"][0].startswith("this is a reply of a connection that host h2 remembers")
        back = told["hops"][0]["datapath"]
        assert (back["rule_from"], back["unlike"]) == ("ESTABLISHED", []), "what the host remembers counts"
    text = h2.namespace.run(command(scene, h2, a.port.id, packet)).stdout
    assert f"real programs   to port {b.port.label().removeprefix('port ')}, replayed by a flow entry" in text


def test_drops_floods_and_answers_agree(scene: Scene) -> None:
    a, b = scene.pair(*OUT, WEB)
    h1, h2 = scene.cloud.hosts["h1"], scene.cloud.hosts["h2"]
    denied = traced(scene, h2, a.port.id, "udp 10.0.0.1 > 10.0.0.2:53", DROPPED)["hops"][1]["datapath"]
    assert (denied["reason"], denied["unlike"]) == ("ACL_TO_PORT", [])
    spoofed = traced(scene, h1, a.port.id, "udp 10.0.0.9 > 10.0.0.2:53", DROPPED)["hops"][0]["datapath"]
    assert (spoofed["reason"], spoofed["unlike"]) == ("SPOOFED_ADDRESS", [])
    answered = traced(scene, h1, a.port.id, "ns fd00::2 from fd00::1")["hops"][0]["datapath"]
    assert (answered["reason"], answered["to"], answered["unlike"]) == ("ANSWERED", a.port.id, [])
    flooded = traced(scene, h1, a.port.id, "arp who-has 10.0.0.77 tell 10.0.0.1")["hops"][0]["datapath"]
    assert (flooded["reason"], flooded["copies"], flooded["unlike"]) == ("FLOODED", 1, [])
    with tcp_pair(a, b, b.address(), 80) as ends:
        assert talks(*ends)
        source = ends[0].getsockname()[1]
        reopened = traced(scene, h1, a.port.id, f"tcp 10.0.0.1:{source} > 10.0.0.2:80 ack")["hops"][0]["datapath"]
        assert (reopened["replayed"], reopened["unlike"]) == (True, [])
        assert talks(*ends), "asking changed nothing"


def test_a_disagreement_is_loud(scene: Scene) -> None:
    a, _ = scene.pair(*OUT, WEB)
    host = scene.cloud.hosts["h1"]
    table = host.datapath.maps["hr_sources"]
    index = host.index(a.port.id)
    kept = {key: value for key, value in table.items() if abi.SourceKey.unpack(key).port == index}
    table.delete_many(list(kept))
    try:
        packet = "udp 10.0.0.1:4000 > 10.0.0.2:53"
        hop = traced(scene, host, a.port.id, packet, DIFFERENT)["hops"][0]
        assert hop["datapath"]["unlike"] == ["the oracle says NONE, the datapath SPOOFED_MAC"]
        done = host.namespace.run(command(scene, host, a.port.id, packet), check=False)
        assert "DISAGREEMENT    the oracle says NONE, the datapath SPOOFED_MAC" in done.stdout
    finally:
        table.update_many(kept.items())
