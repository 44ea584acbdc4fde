"""``headrace trace``: from a packet in words to who gets it, and to the rule that is missing."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from headrace.cli.main import root
from headrace.cli.trace_advice import advice
from headrace.cli.trace_packet import frame_of
from headrace.controller.client import Client
from headrace.controller.config import ControllerConfig
from headrace.datapath.decision import Arrival
from headrace.datapath.journey import follow
from headrace.errors import HeadraceError, InvalidInput, NotFound
from headrace.model import Record, State, document
from headrace.testing import packet
from headrace.testing.controller import controller_thread
from headrace.testing.world import HOSTS, OUT, World, group, network, port, rule

FILE = """
networks:
  - {id: blue, segment: {id: 100}, mtu: 1450}
subnets:
  - {id: s4, network: blue, cidr: 10.0.0.0/24, gateway: 10.0.0.254}
  - {id: s6, network: blue, cidr: fd00::/64, gateway: fd00::fe}
hosts:
  - {id: h1, vteps: [192.0.2.1]}
  - {id: h2, vteps: [192.0.2.2]}
security_groups:
  - id: web-0001
    name: web
    rules:
      - {id: http, direction: ingress, protocol: 6, port_min: 80, port_max: 80, remote_cidr: 0.0.0.0/0}
      - {id: ping, direction: ingress, protocol: 1, port_min: 8}
      - {id: peers, direction: ingress, protocol: 17, port_min: 1000, port_max: 2000, remote_group: web-0001}
      - {id: out, direction: egress}
ports:
  - {id: aa-1, name: one, network: blue, mac: 02:00:00:00:00:01, addresses: [10.0.0.1, fd00::1],
     security_groups: [web-0001], host: h1}
  - {id: aa-2, name: two, network: blue, mac: 02:00:00:00:00:02, addresses: [10.0.0.2, fd00::2],
     security_groups: [web-0001], host: h2, address_pairs: [{address: 10.0.0.100, mac: 00:00:5e:00:01:07}]}
  - {id: bb-3, name: three, network: blue, mac: 02:00:00:00:00:03, addresses: [10.0.0.3], host: h1, admin_up: false}
  - {id: bb-4, name: twin, network: blue, mac: 02:00:00:00:00:04, addresses: [10.0.0.4]}
  - {id: bb-5, name: twin, network: blue, mac: 02:00:00:00:00:05, addresses: [10.0.0.5], host: h1}
  - {id: gate, network: blue, mac: 02:00:00:00:00:fe, addresses: [10.0.0.254], host: h2, port_security: false}
"""

Trace = Callable[..., Result]


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    path = tmp_path / "state.yaml"
    path.write_text(FILE)

    def run(*arguments: str, name: str = "one") -> Result:
        result = CliRunner().invoke(root, ["trace", "--state", str(path), "--port", name, *arguments])
        if isinstance(result.exception, HeadraceError):
            raise result.exception
        return result

    return run


def test_delivered_to_another_host(trace: Trace) -> None:
    result = trace("tcp 10.0.0.1:1234 > 10.0.0.2:80 syn")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        "host h1",
        "host h2",
        "delivered to port two (aa-2)",
    ]
    assert [line.split("  ")[1] for line in lines[1:7]] == [
        "admit",
        "anti_spoof",
        "track",
        "acl, from side",
        "forward",
        "acl, to side",
    ]
    assert "(rule out of web: egress IPv4 any protocol to anywhere)" in lines[4]
    assert "(rule http of web: ingress IPv4 tcp 80 from 0.0.0.0/0)" in lines[13]


def test_words_may_be_given_unquoted(trace: Trace) -> None:
    assert trace("icmp", "10.0.0.1", ">", "10.0.0.2").exit_code == 0


@pytest.mark.parametrize("name", ["aa-1", "one", "aa-"])
def test_names_of_ports(trace: Trace, name: str) -> None:
    if name == "aa-":
        with pytest.raises(InvalidInput, match=r"port aa-: 2 ports are meant by that; give one's id: aa-1, aa-2"):
            trace("icmp 10.0.0.1 > 10.0.0.2", name=name)
        return
    assert trace("icmp 10.0.0.1 > 10.0.0.2", name=name).exit_code == 0


def test_ports_that_cannot_send(trace: Trace) -> None:
    with pytest.raises(NotFound, match="port nobody does not exist"):
        trace("icmp 10.0.0.1 > 10.0.0.2", name="nobody")
    with pytest.raises(NotFound, match=r"port twin \(bb-4\) is not bound to a host"):
        trace("icmp 10.0.0.4 > 10.0.0.2", name="bb-4")
    with pytest.raises(InvalidInput, match="port twin: 2 ports"):
        trace("icmp 10.0.0.4 > 10.0.0.2", name="twin")


MISSING = {
    "tcp 10.0.0.1:1 > 10.0.0.2:81": [
        "no ingress rule of security group web (web-0001) allows tcp 81 from 10.0.0.1; ",
        "add to the rules of web-0001 in YAML: - {id: NEW, direction: ingress, ethertype: IPv4, protocol: 6, ",
        'port_min: 81, port_max: 81, remote_cidr: "10.0.0.1/32"}',
    ],
    "icmp fd00::1 > fd00::2 echo": [
        "no egress rule of security group web (web-0001) allows ipv6-icmp 128/0 to fd00::2; ",
        "add to the rules of web-0001 in YAML: - {id: NEW, direction: egress, ethertype: IPv6, protocol: 58, ",
        'port_min: 128, port_max: 0, remote_cidr: "fd00::2/128"}',
    ],
    "ip 10.0.0.1 > 10.0.0.2 proto 47": [
        "no ingress rule of security group web (web-0001) allows protocol 47 from 10.0.0.1; ",
        "add to the rules of web-0001 in YAML: - {id: NEW, direction: ingress, ethertype: IPv4, protocol: 47, ",
        'remote_cidr: "10.0.0.1/32"}',
    ],
    "icmp 10.0.0.1 > 10.0.0.5": [
        "port twin (bb-5) carries no security group, so nothing allows icmp 8/0 from 10.0.0.1; ",
        "give it one in YAML: security_groups: [GROUP]",
    ],
    "tcp 10.0.0.1:1 > 10.0.0.2:80 syn+ack": ["a SYN+ACK answers a SYN: trace the SYN"],
    "icmp 10.0.0.1 > 10.0.0.2 3/1": ["an ICMP error passes with the connection that it quotes"],
    "icmp 10.0.0.1 > 10.0.0.3": ["port three (bb-3) is down; enable it in YAML: admin_up: true"],
    "icmp 10.0.0.1 > 10.0.0.4": ["port twin (bb-4) has that MAC, but is not bound to a host"],
    "icmp 10.0.0.77 > 10.0.0.2": [
        "allow port one (aa-1) to send from there: add to its address_pairs in YAML: ",
        '- {address: "10.0.0.77", mac: "02:00:00:00:00:01"}',
    ],
}


@pytest.mark.parametrize("line", MISSING)
def test_what_is_missing(trace: Trace, line: str) -> None:
    result = trace(line)
    assert result.exit_code == 2
    assert "".join(MISSING[line]) in result.output.splitlines()[-1]
    assert result.output.splitlines()[-2].startswith("dropped on host h")


ADD = "openstack security group rule create"

BY_NEUTRON = {
    "tcp 10.0.0.1:1 > 10.0.0.2:81": f"add one with: {ADD} --ingress --ethertype IPv4 --protocol tcp --dst-port 81 "
    "--remote-ip 10.0.0.1/32 web-0001",
    "icmp fd00::1 > fd00::2 echo": f"add one with: {ADD} --egress --ethertype IPv6 --protocol ipv6-icmp --icmp-type 128"
    " --icmp-code 0 --remote-ip fd00::2/128 web-0001",
    "icmp 10.0.0.1 > 10.0.0.5": "give it one with: openstack port set --security-group GROUP bb-5",
    "icmp 10.0.0.1 > 10.0.0.3": "enable it with: openstack port set --enable bb-3",
    "icmp 10.0.0.77 > 10.0.0.2": "to send from there with: openstack port set "
    "--allowed-address ip-address=10.0.0.77,mac-address=02:00:00:00:00:01 aa-1",
    "icmp 10.0.0.1 > 10.0.0.6": "port lost (bb-6) carries security group gone, which Neutron has not told of, "
    "so nothing allows icmp 8/0 from 10.0.0.1; look with: openstack security group show gone",
}
LOST = """  - {id: bb-6, name: lost, network: blue, mac: 02:00:00:00:00:06, addresses: [10.0.0.6], host: h1,
     security_groups: [gone]}
"""


@pytest.mark.parametrize("line", BY_NEUTRON)
def test_what_neutron_wrote_is_changed_there(line: str) -> None:
    state = State.of(document.read((FILE + LOST).encode(), "state.yaml"))
    one = state.ports["aa-1"]
    journey = follow(state, Arrival(port=one.id, frame=frame_of(state, one, line, from_mac=None, to_mac=None)))
    assert not journey.arrives
    (told,) = advice(state, journey, {(item.type, item.id): "neutron" for item in state.all()})
    assert told.endswith(BY_NEUTRON[line])
    (told,) = advice(state, journey, {(item.type, item.id): "cli" for item in state.all()})
    assert "openstack" not in told
    assert "in YAML: " in told


def traced(path: Path, text: str, line: str) -> tuple[int, str]:
    path.write_text(text)
    result = CliRunner().invoke(root, ["trace", "--state", str(path), "--port", "one", line])
    return result.exit_code, result.output.splitlines()[-1]


@pytest.mark.parametrize(
    ("line", "before"),
    [
        ("tcp 10.0.0.1:1 > 10.0.0.2:81", "    rules:\n"),
        ("ip 10.0.0.1 > 10.0.0.2 proto 47", "    rules:\n"),
        ("icmp 10.0.0.1 > 10.0.0.2 13/0", "    rules:\n"),
        ("icmp 10.0.0.1 > 10.0.0.6", "security_groups:\n"),
    ],
)
def test_what_is_told_to_add_helps(tmp_path: Path, line: str, before: str) -> None:
    status, told = traced(tmp_path / "state.yaml", FILE + LOST, line)
    assert status == 2
    entry = told.partition("in YAML: ")[2]
    helped = (FILE + LOST).replace(before, f"{before}{' ' * (6 if before.startswith(' ') else 2)}{entry}\n", 1)
    assert traced(tmp_path / "state.yaml", helped, line)[0] == 0


def test_a_group_that_nobody_has_is_named(tmp_path: Path) -> None:
    _, told = traced(tmp_path / "state.yaml", FILE + LOST, "icmp 10.0.0.1 > 10.0.0.6")
    assert told.startswith("port lost (bb-6) carries security group gone, which the state does not have, so nothing")
    both = FILE + LOST.replace("[gone]", "[web-0001, gone]")
    _, told = traced(tmp_path / "state.yaml", both, "tcp 10.0.0.1:1 > 10.0.0.6:81")
    assert "(security group gone that port lost (bb-6) carries too, the state does not have); add to the rules" in told


def test_a_sender_that_is_down(trace: Trace) -> None:
    result = trace("icmp 10.0.0.3 > 10.0.0.2", name="three")
    assert result.exit_code == 2
    assert result.output.splitlines()[-2:] == [
        "dropped on host h1: PORT_DOWN, the port is administratively down",
        "port three (bb-3) is down; enable it in YAML: admin_up: true",
    ]


def test_answered(trace: Trace) -> None:
    for line in ("arp who-has 10.0.0.2 tell 10.0.0.1", "ns fd00::2 from fd00::1"):
        result = trace(line)
        assert result.exit_code == 0
        assert result.output.splitlines()[-1] == "answered by the datapath"


def test_flooded(trace: Trace) -> None:
    result = trace("arp who-has 10.0.0.99 tell 10.0.0.1")
    assert result.exit_code == 0
    assert result.output.splitlines()[-1] == "delivered to port twin (bb-5), port two (aa-2), port gate"
    assert "not to port three (bb-3), PORT_DOWN" in result.output
    nobody = trace("udp 10.0.0.1:1 > 224.0.0.251:5353")
    assert "delivered to port gate" in nobody.output


@pytest.mark.parametrize(
    ("target", "mac"),
    [
        ("10.0.0.2", "02:00:00:00:00:02"),
        ("10.0.0.100", "00:00:5e:00:01:07"),
        ("198.51.100.1", "02:00:00:00:00:fe"),
        ("224.0.0.251", "01:00:5e:00:00:fb"),
        ("239.129.2.3", "01:00:5e:01:02:03"),
        ("255.255.255.255", "ff:ff:ff:ff:ff:ff"),
        ("10.0.0.255", "ff:ff:ff:ff:ff:ff"),
        ("fd00::2", "02:00:00:00:00:02"),
        ("ff02::fb", "33:33:00:00:00:fb"),
    ],
)
def test_the_mac_a_workload_would_send_to(trace: Trace, target: str, mac: str) -> None:
    source = "fd00::1" if ":" in target else "10.0.0.1"
    found = json.loads(trace("-o", "json", f"icmp {source} > {target}").output)
    assert found["frame"].startswith(mac.replace(":", ""))


@pytest.mark.parametrize("target", ["10.0.0.99", "2001:db8::1"])
def test_a_mac_that_nobody_has(trace: Trace, target: str) -> None:
    source = "fd00::1" if ":" in target else "10.0.0.1"
    with pytest.raises(InvalidInput, match=f"nobody on network blue has {target}; say with --to-mac"):
        trace(f"icmp {source} > {target}")
    result = trace("--to-mac", "02:00:00:00:00:FE", f"ip {source} > {target} proto 47")
    assert "02:00:00:00:00:fe is port gate" in result.output or "ACL_FROM_PORT" in result.output


def test_another_source_mac(trace: Trace) -> None:
    result = trace("--from-mac", "02:00:00:00:00:09", "icmp 10.0.0.1 > 10.0.0.2")
    assert "SPOOFED_MAC" in result.output
    with pytest.raises(InvalidInput, match="'02-00' is no MAC address"):
        trace("--from-mac", "02-00", "icmp 10.0.0.1 > 10.0.0.2")


def test_a_whole_frame(trace: Trace) -> None:
    ends = packet.Somewhere("02:00:00:00:00:01", ("10.0.0.1",)), packet.Somewhere("02:00:00:00:00:02", ("10.0.0.2",))
    frame = packet.tcp(*ends, 1, 80)
    assert trace("--hex", frame.hex()).exit_code == 0
    assert trace("--hex", frame.hex(":")).exit_code == 0
    assert "VLAN_TAGGED" in trace("--hex", packet.tagged(frame).hex()).output
    big = packet.tcp(*ends, 1, 80, payload=bytes(5000))
    assert trace("--hex", big.hex()).exit_code == 2
    assert trace("--hex", big.hex(), "--gso-size", "1400").exit_code == 0
    with pytest.raises(InvalidInput, match="hexadecimal"):
        trace("--hex", "zz")


def test_one_packet_at_a_time(trace: Trace) -> None:
    with pytest.raises(InvalidInput, match="either a PACKET"):
        trace()
    with pytest.raises(InvalidInput, match="either a PACKET"):
        trace("--hex", "00", "icmp 10.0.0.1 > 10.0.0.2")


def test_json(trace: Trace) -> None:
    result = trace("-o", "json", "tcp 10.0.0.1:1 > 10.0.0.2:81")
    found = json.loads(result.output)
    assert result.exit_code == 2
    assert (found["delivered"], found["reason"], found["receivers"]) == (False, "ACL_TO_PORT", [])
    assert [(hop["host"], hop["reason"], hop["rule_from"]) for hop in found["hops"]] == [
        ("h1", "NONE", "out"),
        ("h2", "ACL_TO_PORT", "REMOTE"),
    ]
    assert found["hops"][0]["outputs"][0]["vtep"] == "192.0.2.2"
    assert found["hops"][1]["vtep"] == "192.0.2.1"
    assert found["hops"][1]["steps"][-1]["stage"] == "acl, to side"
    assert len(found["advice"]) == 1


def test_state_from_the_controller(tmp_path: Path) -> None:
    world = World(network("blue"), group("web", *OUT, rule("http", "ingress", 6, 80)))
    world.put(port("a", "blue", 1, "web"), port("b", "blue", 2, "web", host="h2"))
    records = [
        Record(type=item.type, id=item.id, writer="cli", body=msgspec.to_builtins(item)) for item in world.state.all()
    ]

    async def fill(url: str) -> None:
        async with Client(url) as client:
            await client.batch(records)

    config = ControllerConfig(listen="127.0.0.1:0", store=f"sqlite:{tmp_path / 's.db'}", tls=False)
    with controller_thread(config) as url:
        asyncio.run(fill(url))
        arguments = ["trace", "--controller", url, "--port", "a", "tcp 10.0.0.1:1 > 10.0.0.2:80"]
        result = CliRunner().invoke(root, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == "delivered to port b"


def test_ten_thousand_ports() -> None:
    """As many as a controller may tell; processor time, for the machine may be busy."""
    world = World(network("blue"), group("web", *OUT, rule("r", "ingress", remote_group="web")), hosts=HOSTS)
    world.put(*(port(f"p{n}", "blue", n, "web", host="h1" if n % 2 else "h2") for n in range(1, 10_001)))
    one, two = world.port("p1"), world.port("p2")
    for frame, receivers in [
        (packet.tcp(one, two, 1, 80), 1),
        (packet.udp(one, two, 1, 80, dmac=packet.BROADCAST), 9_999),
    ]:
        begin = time.process_time()
        journey = follow(world.state, Arrival(port="p1", frame=frame))
        assert len(journey.receivers) == receivers
        assert time.process_time() - begin < 1


def test_hosts_of_which_the_file_has_no_endpoints(tmp_path: Path) -> None:
    path = tmp_path / "state.yaml"
    path.write_text(FILE.replace("hosts:\n  - {id: h1, vteps: [192.0.2.1]}\n  - {id: h2, vteps: [192.0.2.2]}\n", ""))
    arguments = ["trace", "--state", str(path), "--port", "one", "tcp 10.0.0.1:1234 > 10.0.0.2:80 syn"]
    result = CliRunner().invoke(root, arguments)
    assert result.exit_code == 0, result.output
    assert "made up, for the file does not say them: the vteps of h1, h2" in result.stderr
    assert result.stdout.splitlines()[-1] == "delivered to port two (aa-2)"
