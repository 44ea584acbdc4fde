"""Connections made, refreshed, evicted and swept on all CPUs at once: no living one is lost, nothing is left over."""

from __future__ import annotations

import ipaddress
import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import IPPROTO_UDP

import pytest

from headrace import abi
from headrace.datapath.bpf import Sizes
from headrace.datapath.decision import Key, Place
from headrace.datapath.libbpf import Object, Program
from headrace.testing import packet
from headrace.testing.clang import compile_bpf
from headrace.testing.host import CONNECTIONS, PacketHost
from headrace.testing.observation import skb_context
from headrace.testing.twin import Twin, sent, tunnelled
from headrace.testing.wait import wait_until
from headrace.testing.world import ANY, group, network, port

MakeTwin = Callable[..., Twin]

ROOT = Path(__file__).parents[2]
BLUE = network("blue")
A, B, C, D = (port(name, "blue", number, "any") for number, name in enumerate("abcd", 1))
FAR = port("far", "blue", 9, "any", host="h2")
QUOTA = 200
SECONDS = 1.5
SHORT_MS = 200
"""Silence that every connection survives here, at least."""
COARSE_MS = 50
"""How far the clock that connections are stamped by may lag on a busy machine."""
KEPT = 8

SHORTEN = f"""
#include "connections.h"

const volatile __u32 hr_everything = 0;

/* Only what was refreshed just now, as the sweeper never takes what could be about to be refreshed. */
static long shorten_one(__u32 index, __u64 *now)
{{
	struct hr_conn *conn = bpf_map_lookup_elem(&hr_conns, &index);
	__u64 id, last;

	if (!conn)
		return 1;
	id = READ_ONCE(conn->id);
	last = conn->counter[0].seen > conn->counter[1].seen ? conn->counter[0].seen : conn->counter[1].seen;
	if (id && (hr_everything || *now - last < {SHORT_MS // 2} * NSEC_PER_MSEC))
		WRITE_ONCE(conn->timeout, {SHORT_MS});
	return 0;
}}

SEC("tc") int shorten(struct __sk_buff *skb)
{{
	__u64 now = bpf_ktime_get_coarse_ns();

	bpf_loop({2 * CONNECTIONS}, shorten_one, &now, 0);
	return 0;
}}
"""


class Churn:
    """Threads that use a host's programs, each on a CPU of its own as far as there are."""

    def __init__(self, host: PacketHost, seed: int) -> None:
        self.host = host
        self.lost: list[str] = []
        self.kept = 0
        self._seed = seed
        self._end = threading.Event()
        self._errors: list[BaseException] = []
        self._cpus = itertools.cycle(sorted(os.sched_getaffinity(os.getpid()) | set(range(os.cpu_count() or 1))))

    def run(self, works: list[Callable[[random.Random], None]], shorten: Program) -> None:
        """Each work over and over, until the time is up."""
        threads = [threading.Thread(target=self._work, args=(work,), daemon=True) for work in works]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline and not self._errors:
            shorten.test_run(bytes(64))
        self._end.set()
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def _work(self, work: Callable[[random.Random], None]) -> None:
        try:
            os.sched_setaffinity(0, {next(self._cpus)})
            dice = random.Random(f"{self._seed} {threading.get_ident()}")
            with self.host.stand.inside():
                while not self._end.is_set():
                    work(dice)
        except BaseException as error:  # noqa: BLE001 - the test's thread raises it
            self._errors.append(error)

    def send(self, name: str, frame: bytes) -> None:
        """Let a frame in from a port, or with ``far`` by tunnel."""
        arrival = tunnelled(frame) if name == "far" else sent(name, frame)
        program = self.host.datapath.programs["hr_from_uplink" if name == "far" else "hr_from_port"]
        program.test_run(self.host.outer(arrival), ctx=skb_context(self.host.entrance(arrival)))

    def conn_id(self, key: Key) -> int | None:
        flow = self.host.memory.flow(key)
        return flow.conn_id if flow else None


def frames() -> Iterator[tuple[str, bytes]]:
    """Every way in which connections come, go on, end and come again, for few keys, so that CPUs meet on them."""
    ends = [(A, B), (B, A), (A, FAR), (FAR, A), (FAR, B), (B, FAR)]
    for sender, receiver in ends:
        for number in range(24):
            ports = (number, 80) if (sender, receiver) in ends[::2] else (80, number)
            for flags in ("S", "SA", "A", "R", "FA"):
                yield sender.id, packet.tcp(sender, receiver, *ports, flags)
            yield sender.id, packet.udp(sender, receiver, *ports)


@pytest.fixture
def shorten(host: PacketHost) -> Iterator[list[Program]]:
    """Programs that make what was just refreshed, and everything, expire after SHORT_MS."""
    compiled = compile_bpf(SHORTEN, host.stand.directory, "shorten", include=ROOT / "bpf")
    sizes = Sizes(connections=CONNECTIONS).tables()
    made = []
    for everything in (0, 1):
        opened = Object.open(
            compiled, rodata={"hr_everything": everything}, map_sizes=sizes, pin_dir=host.datapath.pins
        )
        made.append(opened.load())
    yield [one.programs["shorten"] for one in made]
    for one in made:
        one.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_churn(twin: MakeTwin, shorten: list[Program], seed: int) -> None:
    asked = twin(BLUE, group("any", *ANY), A, B, C, D, FAR, quota=QUOTA)
    host, memory = asked.host, asked.host.memory
    churn = Churn(host, seed)
    known = list(frames())
    new = packet.udp(A, B, 0, 53)
    refreshed: dict[int, tuple[int, float]] = {}
    source, target = (ipaddress.ip_address(one.addresses[0]) for one in (C, D))
    keys = [Key(source, target, IPPROTO_UDP, 7000 + number, 53, Place("port", "c on blue")) for number in range(KEPT)]
    asking = [packet.udp(C, D, 7000 + number, 53) for number in range(KEPT)]
    answers = [packet.udp(D, C, 53, 7000 + number) for number in range(KEPT)]

    def meet(dice: random.Random) -> None:
        churn.send(*dice.choice(known))

    def flood(dice: random.Random) -> None:
        churn.send("a", new[:34] + dice.randbytes(4) + new[38:])

    def keep(dice: random.Random) -> None:
        """What is refreshed before it expires goes on being itself."""
        number = dice.randrange(KEPT)
        before, since = refreshed.get(number, (0, 0.0))
        began = time.monotonic()
        churn.send("c", asking[number])
        silence = (time.monotonic() - since) * 1000
        after = churn.conn_id(keys[number])
        if before and silence < SHORT_MS - COARSE_MS:
            churn.kept += 1
            if after != before:
                churn.lost.append(f"{number}: {before:x} became {after} after {silence:.0f} ms")
        if after != before:
            churn.send("d", answers[number])  # an answered one never gives way
        refreshed[number] = (after or 0, began)

    churn.run([meet, meet, flood, keep], shorten[0])
    assert not churn.lost
    assert churn.kept
    counts = host.datapath.connection_counts()
    assert counts[host.ports["a"]].evicted
    assert all(count.live <= QUOTA for count in counts.values())
    assert not memory.inconsistencies()
    shorten[1].test_run(bytes(64))
    wait_until(lambda: not memory.live(), what="everything expires and is swept")
    assert not list(host.datapath.flows()), "no key is left without its connection"
    assert not any(count.live for count in host.datapath.connection_counts().values())
    assert memory.cursor(abi.Cursor.USED) == 0
    assert sorted(memory.free()) == list(range(memory.cursor(abi.Cursor.FRESH))), "no index is lost or there twice"
