"""What must pass: pings and pages across hosts, to a guest, with an agent dead; and what is counted of it."""

from __future__ import annotations

import json
from typing import Any

from headrace.testing.demo.cloud import AGENTS
from headrace.testing.demo.narrator import table
from headrace.testing.demo.probe import Talk
from headrace.testing.demo.scene import Scene, milliseconds
from headrace.testing.demo.workload import WEB
from headrace.testing.wait import wait_until

PINGS, PAYLOAD, SHOWN = 5, 100, 8
NUMBERS = ("packets", "octets", "back")
HEADERS = 14 + 20 + 8
"""Octets of Ethernet, IPv4 and ICMP."""


def across_hosts(scene: Scene) -> None:
    """Ping and TCP, both families."""
    scene.narrator.chapter(
        "Across two hosts",
        "From blue-app on compute-1 to blue-web on compute-2, by VXLAN over the underlay, firewall on.",
    )
    web = scene.workloads["blue-web"]
    scene.ping("blue-app", web.ipv4, "ping, IPv4")
    scene.ping("blue-app", web.ipv6, "ping, IPv6")
    scene.fetch("blue-app", web.url(), "TCP, IPv4", "this is blue-web")
    scene.fetch("blue-app", web.url(version=6), "TCP, IPv6", "this is blue-web")


def to_a_guest(scene: Scene) -> None:
    """The same to a virtual machine."""
    vm = scene.machine("blue-vm")
    scene.narrator.chapter(
        "A real virtual machine", "blue-vm is Debian's kernel under QEMU (emulated: no KVM needed), on a tap."
    )
    with scene.narrator.waiting("the guest boots"):
        vm.boot()
    got, fits = vm.configure()
    scene.narrator.did("(in blue-vm) udhcpc -i eth0")
    scene.narrator.claim("its IPv4 address, by DHCP from the agent of its own host", fits, got)
    scene.ping("blue-app", vm.ipv4, "ping, IPv4")
    scene.fetch("blue-app", vm.url(version=6), "TCP, IPv6", "under QEMU with Linux")
    web = scene.workloads["blue-web"]
    scene.narrator.say(
        "blue-vm is in both groups, so it may ask as well: blue-web is on its own host, no tunnel between."
    )
    command = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {web.ipv4} {WEB}"
    answer = vm.guest.run(command, timeout=8).output
    scene.narrator.did(f"(in blue-vm) {command}")
    page = answer.strip().splitlines()[-1:] or ["no answer"]
    scene.narrator.claim("TCP, IPv4, on one host", "this is blue-web" in answer, page[0])


def flow_table(scene: Scene) -> None:
    """Counters, exact on both ends."""
    narrator = scene.narrator
    web = scene.workloads["blue-web"]
    octets = PINGS * (PAYLOAD + HEADERS)
    narrator.chapter(
        "Every flow is counted, exactly",
        f"{PINGS} pings with {PAYLOAD} octets of payload are {PINGS} packets and {octets} octets each way, "
        "at the sender's host and at the receiver's.",
    )
    before = {row["original"]["key"] for row in connections(scene, "compute-1", "blue-app")}
    scene.did("blue-app", f"ping -q -c {PINGS} -i 0.05 -W 1 -s {PAYLOAD} {web.ipv4}")
    narrator.did("compute-1 headrace flow list --connection --port blue-app")
    rows = connections(scene, "compute-1", "blue-app")
    fresh = [row["original"]["key"] for row in rows if is_icmp(row) and row["original"]["key"] not in before]
    shown = sorted(rows, key=lambda row: float(row["idle"]))[:SHOWN]
    narrator.show(
        table(("key", "state", "packets", "octets", "back", "octets", "goes to"), map(cells, shown), right=NUMBERS)
    )
    for host, port, seen in (
        ("compute-1", "blue-app", rows),
        ("compute-2", "blue-web", connections(scene, "compute-2", "blue-web")),
    ):
        counted = [way for row in seen if row["original"]["key"] in fresh for way in both(row)]
        narrator.claim(
            f"{host} counted just that, both ways, for {port}", counted == [(PINGS, octets)] * 2, said(counted)
        )


def connections(scene: Scene, host: str, port: str) -> list[dict[str, Any]]:
    """What ``headrace flow list`` knows of a port."""
    found: list[dict[str, Any]] = json.loads(
        scene.host(host).headrace("flow", "list", "--connection", "--port", port, "-o", "json")
    )
    return found


def is_icmp(row: dict[str, Any]) -> bool:
    """Whether it is a ping."""
    return str(row["original"]["key"]).startswith("icmp ")


def cells(row: dict[str, Any]) -> tuple[object, ...]:
    """A connection's line."""
    there, back = row["original"], row["reply"] or {"packets": "-", "octets": "-"}
    return (
        there["key"],
        row["state"],
        there["packets"],
        there["octets"],
        back["packets"],
        back["octets"],
        there["goes_to"],
    )


def both(row: dict[str, Any]) -> list[tuple[int, int]]:
    """Packets and octets there and back."""
    return [(way["packets"], way["octets"]) for way in (row["original"], row["reply"]) if way]


def said(counted: list[tuple[int, int]]) -> str:
    """Counters in words."""
    return ", ".join(f"{packets} packets {octets} octets" for packets, octets in counted) or "not there"


def without_agent(scene: Scene) -> None:
    """The agent is killed: the datapath is in the kernel and stays."""
    narrator, host = scene.narrator, scene.host("compute-2")
    web = scene.workloads["blue-web"]
    narrator.chapter(
        "The agent is killed",
        "The datapath is in the kernel and asks nobody. While a connection runs, compute-2's agent gets SIGKILL.",
    )
    assert host.agent is not None
    with Talk(scene.box("blue-app"), web.ipv4, WEB) as talk:
        wait_until(lambda: talk.answers > 20, 5, "answers")
        talk.longest_pause = 0.0
        host.agent.kill()
        host.agent.wait()
        narrator.did(f"kill -9 {host.agent.pid}")
        answers = talk.answers
        scene.fetch("blue-app", web.url(), "a new connection is made", "this is blue-web")
        wait_until(lambda: talk.answers > answers + 20 or talk.quiet_for() > 1, 5, "answers")
        host.start()
        with narrator.waiting("compute-2's agent is started again"):
            wait_until(host.reached, AGENTS, "the agent to come back")
        wait_until(lambda: talk.answers > answers + 100 or talk.quiet_for() > 1, 5, "answers")
        pause = f"its longest pause: {milliseconds(talk.longest_pause)}"
        narrator.claim("the running connection did not notice", talk.quiet_for() < 1, pause)
