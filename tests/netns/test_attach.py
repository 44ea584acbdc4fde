"""Programs on devices: each way to attach, replaced under traffic, found again, taken off."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.datapath.attach import Attachment, attach_tc, attach_xdp, attached, detach
from headrace.datapath.libbpf import Object, Program, Refused
from headrace.testing.clang import compile_bpf
from headrace.testing.topology import Namespace, Topology
from headrace.testing.wait import wait_until

pytestmark = pytest.mark.needs("clang")

PORT = 5001
SOURCE = """
const volatile __u32 drop = 0;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} seen SEC(".maps");

/* Counts UDP to port 5001 over IPv4. */
static __always_inline void count(void *data, void *end)
{
	__u32 zero = 0;
	__u64 *total = bpf_map_lookup_elem(&seen, &zero);

	if (total && data + 38 <= end && *(__u8 *)(data + 23) == 17 && *(__u16 *)(data + 36) == __builtin_bswap16(5001))
		__sync_fetch_and_add(total, 1);
}

SEC("tc") int on_tc(struct __sk_buff *skb)
{
	count((void *)(long)skb->data, (void *)(long)skb->data_end);
	return drop ? TC_ACT_SHOT : TC_ACT_OK;
}

SEC("xdp.frags") int on_xdp(struct xdp_md *ctx)
{
	count((void *)(long)ctx->data, (void *)(long)ctx->data_end);
	return drop ? XDP_DROP : XDP_PASS;
}
"""

Attach = Callable[[int, Object, Path], Attachment]
WAYS: dict[str, Attach] = {
    "tcx": lambda ifindex, opened, pin: attach_tc(ifindex, opened.programs["on_tc"], "ingress", pin),
    "clsact": lambda ifindex, opened, pin: attach_tc(ifindex, opened.programs["on_tc"], "ingress", pin, tcx=False),
    "native": lambda ifindex, opened, pin: attach_xdp(ifindex, opened.programs["on_xdp"], pin),
    "generic": lambda ifindex, opened, pin: attach_xdp(ifindex, opened.programs["on_xdp"], pin, "generic"),
}
HAS_TCX = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 6)
KINDS = {"tcx": "tcx" if HAS_TCX else "clsact", "clsact": "clsact", "native": "xdp", "generic": "xdp"}


class Lab:
    """Two hosts; programs go to the second one's eth0."""

    def __init__(self, topology: Topology, built: Path) -> None:
        self.a, self.b = topology.host("a"), topology.host("b")
        topology.link(self.a, "eth0", self.b, "eth0", a_addresses=["192.0.2.1/24"], b_addresses=["192.0.2.2/24"])
        for here, there, address in ((self.a, self.b, "192.0.2.2"), (self.b, self.a, "192.0.2.1")):
            here.run(f"ip neigh replace {address} dev eth0 lladdr {there.mac('eth0')}")  # no wait for ARP's next try
        self.pins = topology.bpffs()
        self.ifindex = self.b.ifindex("eth0")
        self._topology = topology
        self._built = built

    def load(self, drop: int = 0) -> Object:
        opened = Object.open(self._built, {"drop": drop}, pin_dir=self.pins / "maps").load()
        self._topology.on_exit(opened.close)
        return opened

    def reaches(self) -> bool:
        return self.a.run("ping -c 1 -W 0.3 192.0.2.2", check=False).returncode == 0


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_bpf(SOURCE, tmp_path_factory.mktemp("bpf"))


@pytest.fixture
def lab(built: Path) -> Iterator[Lab]:
    with Topology() as topology:
        made = Lab(topology, built)
        with made.b.enter():
            yield made


@contextlib.contextmanager
def datagrams(host: Namespace) -> Iterator[list[int]]:
    """A steady stream to the other host; its one element is how many were sent, exact after the block."""
    sent, stop = [0], threading.Event()
    with host.enter():
        source = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def stream() -> None:
        while not stop.wait(0.0003):  # slow enough for the receiver's backlog
            source.sendto(b"x", ("192.0.2.2", PORT))  # unconnected: no ICMP error comes back to it
            sent[0] += 1

    thread = threading.Thread(target=stream)
    with source:
        thread.start()
        try:
            yield sent
        finally:
            stop.set()
            thread.join()


@pytest.mark.parametrize("way", WAYS)
def test_the_program_runs_is_found_and_is_taken_off(lab: Lab, way: str) -> None:
    pin = lab.pins / "ports" / "eth0"
    assert attached(pin) is None
    assert not detach(pin)
    opened = lab.load(drop=1)
    assert lab.reaches()
    made = WAYS[way](lab.ifindex, opened, pin)
    name = "on_xdp" if KINDS[way] == "xdp" else "on_tc"
    assert made == Attachment(KINDS[way], lab.ifindex, "ingress", opened.programs[name].id, pin)  # type: ignore[arg-type]
    assert not lab.reaches()
    opened.close()
    assert attached(pin) == made
    assert not lab.reaches()
    assert detach(pin)
    assert lab.reaches()
    assert attached(pin) is None
    assert list(pin.parent.iterdir()) == []


@pytest.mark.parametrize("way", WAYS)
def test_no_packet_passes_between_two_programs(lab: Lab, way: str) -> None:
    pin = lab.pins / "eth0"
    generations = [lab.load(), lab.load()]
    assert lab.reaches()
    WAYS[way](lab.ifindex, generations[0], pin)
    seen = generations[0].maps["seen"]

    def count() -> int:
        return int.from_bytes(seen.lookup(bytes(4)) or b"", "little")

    with datagrams(lab.a) as sent:
        for number in range(60):
            made = WAYS[way](lab.ifindex, generations[number % 2], pin)
            assert attached(pin) == made
            before = count()
            wait_until(lambda before=before: count() > before, what="traffic through the new program")  # type: ignore[misc]
    assert wait_until(lambda: count() >= sent[0], what=f"{sent[0]} datagrams counted, not {count()}")
    assert count() == sent[0]


@pytest.mark.parametrize("way", WAYS)
def test_a_device_that_went_leaves_a_pin_to_replace(lab: Lab, way: str) -> None:
    pin = lab.pins / "ports" / "eth0"
    opened = lab.load()
    WAYS[way](lab.ifindex, opened, pin)
    lab.b.run("ip link delete eth0")
    assert attached(pin) is None
    lab.b.run("ip link add eth0 type veth peer name eth1")
    assert WAYS[way](lab.b.ifindex("eth0"), opened, pin) == attached(pin)
    lab.b.run("ip link delete eth0")
    assert not detach(pin)
    assert list(pin.parent.iterdir()) == []


def test_both_directions_of_one_device(lab: Lab) -> None:
    passing, dropping = lab.load(), lab.load(drop=1)
    for tcx in (True, False):
        attach_tc(lab.ifindex, passing.programs["on_tc"], "ingress", lab.pins / "from", tcx=tcx)
        egress = attach_tc(lab.ifindex, dropping.programs["on_tc"], "egress", lab.pins / "to", tcx=tcx)
        assert attached(lab.pins / "to") == egress
        assert egress.direction == "egress"
        assert not lab.reaches()
        detach(lab.pins / "to")
        assert lab.reaches()
        assert detach(lab.pins / "from")


def test_changing_the_way_leaves_one_program(lab: Lab) -> None:
    pin = lab.pins / "eth0"
    passing, dropping = lab.load(), lab.load(drop=1)
    WAYS["tcx"](lab.ifindex, dropping, pin)
    WAYS["clsact"](lab.ifindex, passing, pin)
    assert lab.reaches()
    WAYS["clsact"](lab.ifindex, dropping, pin)
    WAYS["tcx"](lab.ifindex, passing, pin)
    assert lab.reaches()
    detach(pin)
    WAYS["native"](lab.ifindex, dropping, pin)
    WAYS["generic"](lab.ifindex, passing, pin)
    assert lab.reaches()
    facts = lab.b.ip("link show dev eth0")[0]["xdp"]
    assert facts["mode"] == 2  # XDP_ATTACHED_SKB


def test_a_filter_removed_by_another_hand_is_not_reported(lab: Lab) -> None:
    pin = lab.pins / "eth0"
    WAYS["clsact"](lab.ifindex, lab.load(), pin)
    lab.b.run("tc filter delete dev eth0 ingress")
    assert attached(pin) is None
    assert not detach(pin)


def test_refusals_name_program_and_device(lab: Lab) -> None:
    program: Program = lab.load().programs["on_tc"]
    for tcx in (True, False):
        with pytest.raises(Refused, match=r"on_tc.*device 9999"):
            attach_tc(9999, program, "ingress", lab.pins / "eth0", tcx=tcx)
    with pytest.raises(Refused, match=r"on_tc.*xdp"):
        attach_xdp(lab.ifindex, program, lab.pins / "eth0")
    assert attached(lab.pins / "eth0") is None
