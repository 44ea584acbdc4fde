"""The binding of libbpf against this kernel: loading, maps of each kind, test runs, errors."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.datapath.libbpf import (
    BPF_NOEXIST,
    Map,
    MapType,
    Object,
    Program,
    Refused,
    RunStatistics,
    possible_cpus,
)
from headrace.errors import DatapathError
from headrace.testing.clang import compile_bpf
from headrace.testing.topology import Topology

pytestmark = pytest.mark.needs("clang")

SOURCE = """
const volatile __u32 limit = 3;
const volatile __s16 offset = 0;
const volatile __u8 mac[6];
static const volatile __u64 wide SEC(".rodata.second") = 1;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} shared SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 20000);
	__type(key, __u32);
	__type(value, __u32);
} large SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u32);
} counters SEC(".maps");
struct prefix {
	__u32 length;
	__u8 address[4];
};
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 64);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, __u32);
} prefixes SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 2);
	__type(value, __u32);
} queue SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u32);
} calls SEC(".maps");

SEC("tc") int classify(struct __sk_buff *skb)
{
	__u32 zero = 0, *count = bpf_map_lookup_elem(&counters, &zero);
	__u32 sum = limit + offset + mac[5] + (__u32)wide;

	if (count)
		*count += 1;
	skb->mark = sum;
	bpf_ringbuf_output(&ring, &sum, sizeof(sum), 0);
	bpf_tail_call(skb, &calls, 1);
	return sum;
}

SEC("tc") int called(struct __sk_buff *skb)
{
	__u32 key = 7;
	__u64 value = skb->len;

	bpf_map_update_elem(&shared, &key, &value, BPF_ANY);
	return TC_ACT_SHOT;
}

SEC("xdp.frags") int grow(struct xdp_md *ctx)
{
	return bpf_xdp_adjust_head(ctx, -4) ? XDP_ABORTED : XDP_TX;
}

struct argument {
	int question;
	int answer;
};
SEC("syscall") int ask(struct argument *argument)
{
	argument->answer = argument->question * 2;
	return 5;
}
"""

REFUSED = """
SEC("tc") int careless(struct __sk_buff *skb)
{
	return *(int *)(long)skb->data;
}
"""

FRAME = bytes(range(64))


def word(number: int) -> bytes:
    return struct.pack("<I", number)


def long(number: int) -> bytes:
    return struct.pack("<Q", number)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_bpf(SOURCE, tmp_path_factory.mktemp("bpf"))


@pytest.fixture
def pins() -> Iterator[Path]:
    with Topology() as lab:
        yield lab.bpffs()


@pytest.fixture
def loaded(built: Path, pins: Path) -> Iterator[Object]:
    with Object.open(built, pin_dir=pins).load() as opened:
        yield opened


def test_read_only_globals_are_set_before_the_load(built: Path, pins: Path) -> None:
    values: dict[str, int | bytes] = {"limit": 1000, "offset": -5, "mac": b"\1\2\3\4\5\6", "wide": 20}
    with Object.open(built, values, pin_dir=pins).load() as opened:
        assert opened.programs["classify"].test_run(FRAME).retval == 1000 - 5 + 6 + 20
    with Object.open(built, pin_dir=pins).load() as opened:
        assert opened.programs["classify"].test_run(FRAME).retval == 3 + 1


@pytest.mark.parametrize(
    ("values", "part"),
    [({"limt": 1}, "limit"), ({"limit": 1 << 32}, "does not fit"), ({"mac": b"\1"}, "takes 6 octets")],
)
def test_wrong_globals_are_named(built: Path, values: dict[str, int | bytes], part: str) -> None:
    with pytest.raises(DatapathError, match=part):
        Object.open(built, values)


def test_a_map_takes_the_size_it_is_given(built: Path, pins: Path) -> None:
    with Object.open(built, map_sizes={"shared": 3}, pin_dir=pins).load() as opened:
        table = opened.maps["shared"]
        assert (table.type, table.max_entries, table.key_size, table.value_size) == (MapType.HASH, 3, 4, 8)
        with pytest.raises(Refused, match="shared") as refused:
            table.update_many((word(number), long(number)) for number in range(5))
        assert refused.value.errno == 7  # E2BIG
    with pytest.raises(DatapathError, match="no map shred"):
        Object.open(built, map_sizes={"shred": 3})


def test_maps_pinned_by_name_are_shared(built: Path, pins: Path) -> None:
    with Object.open(built, pin_dir=pins / "deep").load() as first:
        first.maps["shared"].update(word(1), long(11))
    with Object.open(built, pin_dir=pins / "deep").load() as second:
        assert second.maps["shared"].lookup(word(1)) == long(11)
    with Map.from_pin(pins / "deep" / "shared") as pinned:
        assert (pinned.name, pinned.lookup(word(1))) == ("shared", long(11))
    with pytest.raises(Refused, match="parameter mismatch"):
        Object.open(built, map_sizes={"shared": 99}, pin_dir=pins / "deep").load()


def test_a_refused_program_shows_the_verifiers_words(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"careless[\s\S]*invalid access to packet") as refused:
        Object.open(compile_bpf(REFUSED, tmp_path)).load()
    assert refused.value.errno == 13  # EACCES


def test_a_missing_object_is_named(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"nothing\.bpf\.o.*ENOENT"):
        Object.open(tmp_path / "nothing.bpf.o")


def test_single_entries(loaded: Object) -> None:
    table = loaded.maps["shared"]
    assert table.lookup(word(1)) is None
    table.update(word(1), long(10))
    table.update(word(1), long(11))
    assert table.lookup(word(1)) == long(11)
    with pytest.raises(Refused, match="EEXIST"):
        table.update(word(1), long(12), BPF_NOEXIST)
    with pytest.raises(Refused, match="EEXIST"):
        table.update_many([(word(1), long(12))], BPF_NOEXIST)
    assert table.delete(word(1))
    assert not table.delete(word(1))
    with pytest.raises(DatapathError, match="key of 3 octets, not 4"):
        table.lookup(b"abc")
    with pytest.raises(DatapathError, match="value of 3 octets, not 8"):
        table.update(word(1), b"abc")


def test_many_entries_in_batches(loaded: Object) -> None:
    table = loaded.maps["large"]
    wanted = {word(number): word(number * 3) for number in range(20000)}
    table.update_many(wanted.items())
    assert dict(table.items()) == wanted
    assert set(table.keys()) == wanted.keys()
    assert sum(chunk.entries for chunk in table.chunks(size=1)) == len(wanted)  # grows past a crowded bucket
    doomed = [word(number) for number in range(5, 30000, 5)]
    assert table.delete_many(doomed) == 20000 // 5 - 1
    assert set(table.keys()) == wanted.keys() - set(doomed)
    assert table.delete_many([]) == 0


def test_longest_prefixes(loaded: Object) -> None:
    table = loaded.maps["prefixes"]
    wide, narrow = word(8) + b"\x0a\0\0\0", word(24) + b"\x0a\1\2\0"
    table.update_many([(wide, word(1)), (narrow, word(2))])
    assert table.lookup(word(32) + b"\x0a\1\2\3") == word(2)
    assert table.lookup(word(32) + b"\x0a\7\2\3") == word(1)
    assert dict(table.items()) == {wide: word(1), narrow: word(2)}
    assert table.delete_many([narrow, word(9) + b"\x0a\0\0\0"]) == 1


def test_per_cpu_values(loaded: Object) -> None:
    table = loaded.maps["counters"]
    loaded.programs["classify"].test_run(FRAME, repeat=3)
    values = table.lookup_cpus(word(0))
    assert values is not None
    assert (len(values), sum(int.from_bytes(value, "little") for value in values)) == (possible_cpus(), 3)
    table.update(word(1), word(9))
    assert table.lookup_cpus(word(1)) == [word(9)] * possible_cpus()
    everything = dict(table.items())
    assert [table.cpus(everything[word(number)])[0] for number in (1, 2)] == [word(9), word(0)]


def test_queue(loaded: Object) -> None:
    queue = loaded.maps["queue"]
    assert queue.pop() is None
    queue.push(word(1))
    queue.push(word(2))
    with pytest.raises(Refused, match="E2BIG"):
        queue.push(word(3))
    assert [queue.pop(), queue.pop(), queue.pop()] == [word(1), word(2), None]


def test_runs_of_each_kind_of_program(loaded: Object) -> None:
    tc = loaded.programs["classify"].test_run(FRAME, ctx=bytes(192))
    assert (tc.retval, tc.data_out, tc.ctx_out[8:12]) == (4, FRAME, word(4))  # the mark is the third word
    xdp = loaded.programs["grow"].test_run(FRAME)
    assert (xdp.retval, len(xdp.data_out), xdp.data_out[4:]) == (3, len(FRAME) + 4, FRAME)
    jumbo = loaded.programs["grow"].test_run(bytes(9000))
    assert (jumbo.retval, len(jumbo.data_out)) == (3, 9004)
    call = loaded.programs["ask"].test_run(ctx=word(21) + word(0))
    assert (call.retval, call.ctx_out) == (5, word(21) + word(42))
    with pytest.raises(Refused, match="grow"):
        loaded.programs["grow"].test_run(b"short")


def test_tail_calls_through_a_program_array(loaded: Object) -> None:
    calls = loaded.maps["calls"]
    calls.update(word(1), word(loaded.programs["called"].fd))
    assert loaded.programs["classify"].test_run(FRAME).retval == 2  # TC_ACT_SHOT, from the called program
    assert loaded.maps["shared"].lookup(word(7)) == long(len(FRAME))
    assert list(calls.items()) == [(word(1), word(loaded.programs["called"].id))]
    assert calls.delete(word(1))
    assert list(calls.keys()) == []


def test_what_the_kernel_tells_of_a_program(loaded: Object, pins: Path) -> None:
    program = loaded.programs["classify"]
    with RunStatistics():
        before = program.info()
        program.test_run(FRAME, repeat=10)
        after = program.info()
    assert (after.run_count - before.run_count, after.name) == (10, "classify")
    assert after.run_time_ns > before.run_time_ns
    assert after.verified_instructions > 10
    assert min(after.jited_size, after.xlated_size) > 0
    program.pin(pins / "classify")
    with Program.from_pin(pins / "classify") as pinned:
        assert (pinned.id, pinned.test_run(FRAME).retval) == (program.id, 4)


def test_a_closed_object_closes_its_descriptors(built: Path, pins: Path) -> None:
    opened = Object.open(built, pin_dir=pins).load()
    table, program = opened.maps["shared"], opened.programs["classify"]
    opened.close()
    opened.close()
    assert (table.fd, program.fd) == (-1, -1)
    with pytest.raises(Refused, match="EBADF"):
        table.lookup(word(1))
