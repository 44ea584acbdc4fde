"""``headrace drop watch`` beside real traffic: what it prints, and that one killed leaves nothing behind that costs."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator

from headrace.datapath.reader import Reader
from headrace.testing.cloud import HEADRACE, CloudHost
from headrace.testing.scene import Scene
from headrace.testing.topology import Process
from headrace.testing.traffic import udp
from headrace.testing.wait import wait_until
from headrace.testing.world import OUT


@contextlib.contextmanager
def watching(host: CloudHost, *words: str) -> Iterator[Process]:
    command = [*HEADRACE, "drop", "watch", *words, "--run", str(host.directory / "run")]
    process = host.namespace.popen(command, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.stop()


def test_drops_are_shown_as_they_happen(scene: Scene) -> None:
    a, b = scene.pair(*OUT)
    host = scene.cloud.hosts["h2"]
    with (
        udp(a, a.address(), 4000) as here,
        watching(host, "--port", b.port.id, "--reason", "acl-to-port", "--count", "1", "-o", "json") as told,
        watching(host, "--count", "1") as read,
    ):

        def ended() -> bool:
            here.sendto(b"anybody?", (b.address(), 53))
            return told.poll() is not None and read.poll() is not None

        wait_until(ended)
        assert told.stdout is not None
        assert read.stdout is not None
        row = json.loads(told.stdout.read())
        assert (row["reason"], row["to"]) == ("ACL_TO_PORT", b.port.id)
        assert row["entered"] == scene.network.segment.text
        assert row["packet"] == "udp 10.0.0.1:4000 > 10.0.0.2:53"
        assert "ACL_TO_PORT" in read.stdout.read()
        assert (told.returncode, read.returncode) == (0, 0)


def test_a_killed_watcher_is_forgotten(scene: Scene) -> None:
    scene.pair(*OUT)
    host = scene.cloud.hosts["h2"]
    with Reader(host.bpf) as reader, watching(host) as watcher:

        def until() -> int:
            return int.from_bytes(reader.maps["hr_watched_until"].lookup(bytes(4)) or b"", "little")

        wait_until(until)
        watcher.kill()
        watcher.wait()
        assert until(), "it could not say that it goes"
        before = until()
        with watching(host):
            wait_until(lambda: until() > before)
