"""The lab VM's kernel and we understand each other on every wire it has a device for; the VM boots once for all."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator

import pytest

from headrace.model import Segment
from headrace.testing.cloud import Workload
from headrace.testing.kernel import Kernel
from headrace.testing.kernel_party import DEVICE, MODULES, KernelParty
from headrace.testing.labsession import LabSession, card
from headrace.testing.labvm import LabVM
from headrace.testing.party import AMOUNT, ICMP, IP_AND_TCP, MTU, PHYSICAL, Meeting, received
from headrace.testing.scene import Scene
from headrace.testing.topology import Topology, run
from headrace.testing.traffic import connect, listen, ping
from headrace.testing.wait import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300), pytest.mark.needs("qemu", "tun", "program:busybox")]

NUMBER = 202
MAC = "02:00:5e:00:02:ca"
SINK = 9
PATIENCE = 30.0
"""Seconds that an emulated machine may take."""
ID = 0x1234
TUNNELS = (
    Segment(type="vxlan", id=ID),
    Segment(type="geneve", id=ID),
    Segment(type="gre", id=ID),
    Segment(type="mpls", id=ID, transport="udp"),
    Segment(type="mpls", id=ID, transport="gre"),
)
ETHERNET = (
    Segment(type="flat", physical_network=PHYSICAL),
    Segment(type="vlan", id=12, physical_network=PHYSICAL),
    Segment(type="vlan", id=12, service_vlan=7, physical_network=PHYSICAL),
)
WIRES = [(segment, version) for segment in TUNNELS for version in (4, 6)] + [(segment, 4) for segment in ETHERNET]
SET_UP = f"""set -e
ip link set eth0 mtu {MTU} up
ip address add 192.0.2.{NUMBER}/24 dev eth0
ip address add 2001:db8::{NUMBER:x}/64 dev eth0 nodad
socat -u TCP6-LISTEN:{SINK},fork,reuseaddr OPEN:/dev/null </dev/null >/dev/null 2>&1 &
"""


@pytest.fixture(scope="module")
def lab(lab_kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[KernelParty, LabSession]]:
    """The VM on a tap of the underlay's bridge."""
    with Topology() as topology, Meeting(topology) as meeting:
        fabric = meeting.fabric
        run(["ip", "-n", fabric.name, "tuntap", "add", "dev", "lab", "mode", "tap"])
        run(["ip", "-n", fabric.name, "link", "set", "lab", "mtu", str(MTU), "master", "fabric", "up"])
        vm = LabVM(series=lab_kernel.series, devices=card("lab", MAC))
        share = tmp_path_factory.mktemp("lab")
        with LabSession(vm, share, namespace=fabric, modules=("virtio_net", *MODULES)) as session:
            session.run(SET_UP)
            yield KernelParty(meeting, "lab", NUMBER, "eth0", lambda script: session.run(script).output), session


@pytest.fixture
def scene(lab: tuple[KernelParty, LabSession]) -> Iterator[Scene]:
    with Scene(lab[0].meeting) as made:
        yield made


@pytest.mark.parametrize(
    ("segment", "version"), WIRES, ids=[f"{segment.text}-v{version}".replace(" ", "-") for segment, version in WIRES]
)
def test_full_size_packets_both_ways(
    lab: tuple[KernelParty, LabSession], scene: Scene, segment: Segment, version: int
) -> None:
    party, session = lab
    a = party.meet(scene, segment, version)
    mtu = scene.network.mtu
    for family in (4, 6):
        size, full = mtu - ICMP[family], mtu - IP_AND_TCP[family]
        wait_until(lambda f=family, s=size: ping(a, party.address(f), size=s), timeout=PATIENCE, what="the VM answers")  # type: ignore[misc]
        session.run(f"ping -n -c 1 -W 30 -M do -s {size} {a.address(family)}")
        assert goes(a, party.address(family), session) == full
        assert comes(a, a.address(family), session) == full
    party.check_nothing_lost(a)


def goes(a: Workload, address: str, session: LabSession) -> int:
    """Open a connection to the VM and send: the size of segments that it received (ss(8))."""

    def arrived() -> int:
        said = session.run(f"ss -tinH state established sport = :{SINK}").output
        found = re.search(r"rcvmss:(\d+)", said)
        return int(found[1]) if found and f"bytes_received:{AMOUNT} " in said else 0

    with connect(a, address, SINK, timeout=PATIENCE) as here:
        here.settimeout(PATIENCE)
        here.sendall(bytes(AMOUNT))
        return wait_until(arrived, PATIENCE, "the VM has it all")


def comes(a: Workload, address: str, session: LabSession) -> int:
    """Have the VM open a connection and send: the size of segments that we received."""
    at = f"[{address}]" if ":" in address else address
    with listen(a, address, 80) as listener:
        send = f"head -c {AMOUNT} /dev/zero | socat -u -b {AMOUNT} - TCP{6 if ':' in address else 4}:{at}:80"
        sender = threading.Thread(target=session.run, args=[send])
        sender.start()
        listener.settimeout(PATIENCE)
        there, _ = listener.accept()
        there.settimeout(PATIENCE)
        with there:
            size = received(there)
        sender.join()
    return size


@pytest.mark.parametrize("segment", TUNNELS[:1] + TUNNELS[2:3], ids=["vxlan", "gre"])
def test_a_fragment_of_the_outer_packet_meets_its_reason(
    lab: tuple[KernelParty, LabSession], scene: Scene, segment: Segment
) -> None:
    party, session = lab
    a = party.meet(scene, segment, 4, fragments=True)
    mtu, host = scene.network.mtu, party.meeting.hosts["h1"]
    session.run(f"ping -n -c 1 -W 30 {a.address()}")
    before = host.reasons()["OUTER_FRAGMENT"]
    session.run(f"ip link set {DEVICE} mtu {mtu + 1}")
    assert session.run(f"ping -n -c 1 -W 1 -M do -s {mtu + 1 - ICMP[4]} {a.address()}", check=False).returncode == 1
    assert host.reasons()["OUTER_FRAGMENT"] == before + 1
