"""What must not pass: another tenant's traffic, and forged frames."""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import struct
from collections.abc import Callable

from headrace.abi import Reason
from headrace.datapath import frame
from headrace.testing.demo.narrator import table
from headrace.testing.demo.probe import Ear, send_frames
from headrace.testing.demo.scene import Scene
from headrace.testing.demo.workload import Box
from headrace.testing.wait import wait_until

FRAMES = 5
ECHO = 8
LATE = 2.0
"""Seconds after which a frame that was sent is not counted any more."""

STRANGER = "10.0.0.99"
ALL_NODES = ipaddress.IPv6Address("ff02::1")


def other_tenant(scene: Scene) -> None:
    """Same addresses, different worlds."""
    narrator = scene.narrator
    blue, red, vm = scene.box("blue-web"), scene.box("red-app"), scene.workloads["blue-vm"]
    narrator.chapter(
        "The other tenant is out of reach",
        f"{blue.ipv4} exists twice, {vm.ipv4} only in blue's network. All sit on the same two hosts.",
    )
    scene.fetch("blue-app", blue.url(), "blue asks and reaches blue", "this is blue-web")
    scene.fetch("red-app", blue.url(), "red asks the same and reaches red", "this is red-web")
    command = f"ping -q -c 2 -i 0.2 -w 1 {vm.ipv4}"
    text = scene.did("red-app", command)
    narrator.claim("what only blue has does not exist for red", " 0 received" in text)
    mark = secrets.token_bytes(16)
    narrator.say(f"red-app somehow learnt blue-web's MAC, {blue.mac}, and writes {FRAMES} frames straight to it.")
    with Ear(blue) as ear:
        frames = [echo(red.mac, blue.mac, red.ipv4, blue.ipv4, mark, number) for number in range(FRAMES)]
        count = try_frames(red, frames, Reason.UNKNOWN_MAC, lambda: ear.heard(mark))
        heard = ear.heard(mark)
    narrator.claim("on red's segment nobody has that MAC", count == FRAMES, f"{count} x UNKNOWN_MAC")
    narrator.claim("blue-web heard none of them", heard == 0, f"{heard} frames")


def spoofing(scene: Scene) -> None:
    """Frames that lie about their sender."""
    narrator = scene.narrator
    app, web = scene.box("red-app"), scene.box("red-web")
    narrator.chapter(
        "A spoofing attempt is caught",
        f"red-app writes {FRAMES} raw frames of each kind to red-web, which it may ping. red-web listens to its wire.",
    )
    rows = []
    with Ear(web) as ear:
        for name, reason, frames, mark in attempts(app, web):
            counted = try_frames(app, frames, reason, lambda: ear.heard(mark))  # noqa: B023 - called here
            rows.append((name, reason, counted, ear.heard(mark)))
    shown = [(name, "-" if reason is Reason.NONE else reason.name, count, heard) for name, reason, count, heard in rows]
    narrator.show(
        table(("what red-app sends", "reason", "counted", "red-web heard"), shown, right=("counted", "red-web heard"))
    )
    honest = next(heard for _, reason, _, heard in rows if reason is Reason.NONE)
    narrator.claim("honest frames arrive", honest == FRAMES)
    caught = [(count, heard) == (FRAMES, 0) for _, reason, count, heard in rows if reason is not Reason.NONE]
    narrator.claim("forged ones are dropped at the port, and counted one by one", all(caught))


def try_frames(box: Box, frames: list[bytes], reason: Reason, heard: Callable[[], int]) -> int:
    """Send frames and wait until they were heard (honest ones) or counted; returns how many were."""

    def counted() -> int:
        return box.host.sight.reasons(box.port_id).get(reason, 0) - before

    before = box.host.sight.reasons(box.port_id).get(reason, 0)
    send_frames(box, frames)
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: (heard() if reason is Reason.NONE else counted()) >= len(frames), LATE)
    return counted()


def attempts(app: Box, web: Box) -> list[tuple[str, Reason, list[bytes], bytes]]:
    """What is sent: in words, the reason it must be dropped for, the frames, and octets to know them by."""
    marks = [secrets.token_bytes(16) for _ in range(3)]
    address = ipaddress.ip_address
    claim = frame.arp(
        operation=2, sender_mac=app.mac, sender=address(web.ipv4), target_mac=frame.BROADCAST, target=address(web.ipv4)
    )
    poison = frame.ethernet(source=app.mac, destination=frame.BROADCAST, ethertype=claim[0], payload=claim[1])
    link_local = address("fe80::1")
    prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 3600, 0) + marks[2]
    message = frame.icmp(link_local, ALL_NODES, 134, 0, struct.pack("!BBHII", 64, 0, 1800, 0, 0) + prefix)
    kind, packet = frame.ip(link_local, ALL_NODES, 58, message, hop_limit=255)
    advert = frame.ethernet(source=app.mac, destination=frame.multicast_mac(ALL_NODES), ethertype=kind, payload=packet)
    honest = secrets.token_bytes(16)
    lies = [echo(app.mac, web.mac, STRANGER, web.ipv4, marks[0], n) for n in range(FRAMES)]
    masked = [echo("02:00:00:be:ef:01", web.mac, app.ipv4, web.ipv4, marks[1], n) for n in range(FRAMES)]
    return [
        (
            "pings as itself",
            Reason.NONE,
            [echo(app.mac, web.mac, app.ipv4, web.ipv4, honest, n) for n in range(FRAMES)],
            honest,
        ),
        (f"pings as {STRANGER}", Reason.SPOOFED_ADDRESS, lies, marks[0]),
        ("pings with a MAC not its own", Reason.SPOOFED_MAC, masked, marks[1]),
        (f'ARP "{web.ipv4} is at my MAC"', Reason.SPOOFED_ARP, [poison] * FRAMES, poison[14:]),
        ('IPv6 "I am your router"', Reason.ROGUE_RA, [advert] * FRAMES, marks[2]),
    ]


def echo(mac: str, to_mac: str, source: str, destination: str, mark: bytes, number: int) -> bytes:
    """An ICMP echo request that carries a mark."""
    sender, receiver = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    message = frame.icmp(sender, receiver, ECHO, 0, struct.pack("!HH", 0x4852, number) + mark)
    ethertype, packet = frame.ip(sender, receiver, 1, message)
    return frame.ethernet(source=mac, destination=to_mac, ethertype=ethertype, payload=packet)
