"""Ring buffers against this kernel: order, loss, waiting, errors, pins."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.datapath.libbpf import Object, Refused
from headrace.datapath.ringbuf import RingBuffer
from headrace.testing.clang import compile_bpf
from headrace.testing.topology import Topology

pytestmark = pytest.mark.needs("clang")

SOURCE = """
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} ring SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} plain SEC(".maps");

SEC("tc") int say(struct __sk_buff *skb)
{
	__u32 mark = skb->mark;

	return bpf_ringbuf_output(&ring, &mark, sizeof(mark), 0) ? 1 : 0;
}
"""


class Speaker:
    """A program that writes a number into a pinned ring buffer."""

    def __init__(self, opened: Object, pin: Path) -> None:
        self.opened = opened
        self.pin = pin

    def say(self, number: int) -> bool:
        """Whether there was room."""
        ctx = struct.pack("<III", 0, 0, number).ljust(192, b"\0")
        return self.opened.programs["say"].test_run(bytes(64), ctx=ctx).retval == 0


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_bpf(SOURCE, tmp_path_factory.mktemp("bpf"))


@pytest.fixture
def speaker(built: Path) -> Iterator[Speaker]:
    with Topology() as lab:
        pins = lab.bpffs()
        with Object.open(built, pin_dir=pins).load() as opened:
            yield Speaker(opened, pins / "ring")


def word(number: int) -> bytes:
    return struct.pack("<I", number)


def test_records_come_in_order_and_once(speaker: Speaker) -> None:
    got: list[bytes] = []
    with RingBuffer.from_pin(speaker.pin, got.append) as ring:
        assert (ring.consume(), ring.poll()) == (0, 0)
        assert all(speaker.say(number) for number in (7, 8))
        assert (ring.poll(timeout=1), got) == (2, [word(7), word(8)])
        assert speaker.say(9)
        assert (ring.consume(), ring.consume(), got[2:]) == (1, 0, [word(9)])


def test_what_nobody_fetched_waits_and_what_does_not_fit_is_lost(speaker: Speaker) -> None:
    said = 0
    while speaker.say(said):
        said += 1
    assert 100 < said < 4096 // 12 + 1  # eight octets of header, then the record, rounded up to eight
    got: list[bytes] = []
    with RingBuffer.from_pin(speaker.pin, got.append) as ring:
        assert ring.consume() == said
    assert got == [word(number) for number in range(said)]
    assert speaker.say(1)  # there is room again


def test_an_event_loop_is_woken_by_each_record(speaker: Speaker) -> None:
    async def listen() -> list[bytes]:
        records: asyncio.Queue[bytes] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        with RingBuffer.from_pin(speaker.pin, records.put_nowait) as ring:
            loop.add_reader(ring.fileno(), ring.consume)
            try:
                heard = []
                for number in range(3):
                    assert speaker.say(number)
                    heard.append(await asyncio.wait_for(records.get(), 5))
                return heard
            finally:
                loop.remove_reader(ring.fileno())

    assert asyncio.run(listen()) == [word(0), word(1), word(2)]


def test_so_many_and_no_more(speaker: Speaker) -> None:
    got: list[bytes] = []
    with RingBuffer.from_pin(speaker.pin, got.append) as ring:
        assert all(speaker.say(number) for number in range(5))
        assert [ring.consume(2), ring.consume(2), ring.consume(2), ring.consume(2)] == [2, 2, 1, 0]
        assert all(speaker.say(number) for number in (5, 6))
        assert (ring.consume(1), ring.poll()) == (1, 1)
    assert got == [word(number) for number in range(7)]


def test_who_writes_without_end_does_not_hold_the_event_loop(speaker: Speaker) -> None:
    """Each record read makes another: others have their turn nevertheless, and then all that waits is read."""

    async def listen() -> tuple[int, int]:
        said = heard = turns = 0
        done = asyncio.Event()

        def receive(_: bytes) -> None:
            nonlocal said, heard
            heard += 1
            if turns < 100 and said < 10_000:
                said += speaker.say(heard)
            elif heard == said:
                done.set()

        for number in range(10):
            said += speaker.say(number)
        loop = asyncio.get_running_loop()
        with RingBuffer.from_pin(speaker.pin, receive) as ring:
            loop.add_reader(ring.fileno(), ring.consume, 4)
            try:
                while turns < 100:
                    turns += 1
                    await asyncio.sleep(0)
                until_then = heard
                await asyncio.wait_for(done.wait(), 10)
            finally:
                loop.remove_reader(ring.fileno())
            assert ring.consume() == 0
            return until_then, heard

    until_then, heard = asyncio.run(listen())
    assert 0 < until_then <= 4 * 100
    assert until_then < heard <= until_then + 10


def test_an_error_of_the_receiver_comes_back_and_the_rest_is_kept(speaker: Speaker) -> None:
    got: list[bytes] = []

    def receive(record: bytes) -> None:
        if record == word(1):
            raise LookupError(record.hex())
        got.append(record)

    with RingBuffer.from_pin(speaker.pin, receive) as ring:
        assert all(speaker.say(number) for number in range(3))
        with pytest.raises(LookupError, match=word(1).hex()):
            ring.consume()
        ring.consume()
    assert got == [word(0), word(2)]


def test_what_is_no_ring_buffer_is_named(speaker: Speaker) -> None:
    with pytest.raises(Refused, match="ring buffer plain"):
        RingBuffer(speaker.opened.maps["plain"], lambda _: None)
    with pytest.raises(Refused, match=r"nothing.*ENOENT"):
        RingBuffer.from_pin(speaker.pin.with_name("nothing"), lambda _: None)
