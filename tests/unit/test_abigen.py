"""The ABI generator, on small C sources compiled with clang as the datapath is."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import abigen

pytestmark = pytest.mark.needs("clang")

Generate = Callable[..., ModuleType]
MAP = """
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct hr_key);
	__type(value, __u64);
	__uint(max_entries, HR_SLOTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} hr_slots SEC(".maps") __attribute__((btf_decl_tag("doc:what is where")));
"""


class Refused(Exception):
    """The generator exited with an error."""


@pytest.fixture
def generate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Generate:
    """Compile a header and a source that uses it, and import what is generated."""
    numbers = itertools.count()

    def run(header: str, source: str, *options: str) -> ModuleType:
        number = next(numbers)
        folder = tmp_path / str(number)
        folder.mkdir()
        includes = "#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\n"
        (folder / "abi.h").write_text(header)
        (folder / "abi.bpf.c").write_text(f'{includes}#include "abi.h"\n{source}\n')
        compiler = ["clang", "-O2", "-g", "-target", "bpf", "-mcpu=v3", "-c", "abi.bpf.c", "-o", "abi.bpf.o"]
        multiarch = [f"-I{path.parent}" for path in Path("/usr/include").glob("*-linux-gnu/asm")]
        subprocess.run([*compiler, *multiarch], cwd=folder, check=True)
        output = folder / f"abi_{number}.py"
        arguments = [str(folder / "abi.bpf.o"), "--header", str(folder / "abi.h"), "-o", str(output), *options]
        if abigen.main(arguments):
            raise Refused(capsys.readouterr().err)
        spec = importlib.util.spec_from_file_location(output.stem, output)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[output.stem] = module
        spec.loader.exec_module(module)
        return module

    return run


def test_layout_and_byte_order(generate: Generate) -> None:
    abi = generate(
        "struct hr_key { __be16 port; __u16 id; __be32 addr; __u8 mac[6]; __u8 pad[2]; };",
        "struct hr_key key;",
    )
    key = abi.Key(port=0x1234, id=0x1234, addr=0x0A000001, mac=b"\2\0\0\0\0\1")
    packed = bytes.fromhex("1234 3412 0a000001 020000000001 0000")
    assert key.pack() == packed
    assert len(packed) == abi.Key.SIZE
    assert abi.Key.unpack(packed) == key
    assert abi.Key.unpack(memoryview(packed)) == key


def test_fields_not_given_are_zero(generate: Generate) -> None:
    abi = generate("struct hr_key { __u64 a; __u8 b[8]; };", "struct hr_key key;")
    assert abi.Key().pack() == bytes(16)


def test_nested_structs_arrays_and_signs(generate: Generate) -> None:
    abi = generate(
        "struct hr_point { __be16 x; __s16 y; };\n"
        "struct hr_path { struct hr_point start; struct hr_point way[2]; __be32 words[2]; __s32 bend[3]; };",
        "struct hr_path path;",
    )
    path = abi.Path(start=abi.Point(x=1, y=-1), way=(abi.Point(x=2), abi.Point(y=3)), words=(4, 5), bend=(-6, 7, -8))
    assert path.pack().hex() == "0001ffff00020000000003000000000400000005faffffff07000000f8ffffff"
    assert abi.Path.unpack(path.pack()) == path


def test_numpy_reads_the_same(generate: Generate) -> None:
    abi = generate(
        "struct hr_point { __be16 x; __s16 y; };\n"
        "struct hr_path { struct hr_point way[2]; __be32 seen; __u8 name[4]; __u64 count; };",
        "struct hr_path path;",
    )
    path = abi.Path(way=(abi.Point(x=1, y=-1), abi.Point(x=2)), seen=7, name=b"abcd", count=2**63)
    row = np.frombuffer(path.pack(), np.dtype(abi.Path.DTYPE))[0]
    assert row["way"]["x"].tolist() == [1, 2]
    assert row["way"]["y"].tolist() == [-1, 0]
    assert (row["seen"], bytes(row["name"]), row["count"]) == (7, b"abcd", 2**63)


@pytest.mark.parametrize(("field", "value"), [("mac", b"12345"), ("mac", b"1234567"), ("words", (1,))])
def test_wrong_lengths_are_refused_by_name(generate: Generate, field: str, value: object) -> None:
    abi = generate("struct hr_key { __u8 mac[6]; __u16 words[3]; };", "struct hr_key key;")
    with pytest.raises(ValueError, match=rf"Key\.{field} takes"):
        abi.Key(**{"words": (1, 2, 3), field: value}).pack()


def test_named_union_is_octets_and_anonymous_one_its_whole_member(generate: Generate) -> None:
    abi = generate(
        "union hr_any { __be32 v4; __u8 v6[16]; };\n"
        "struct hr_key { union hr_any addr; union { __u8 octets[4]; __u16 half; }; };",
        "struct hr_key key;",
    )
    assert abi.Key(addr=bytes(range(16)), octets=b"abcd").pack() == bytes(range(16)) + b"abcd"


def test_kernel_owned_fields_do_not_appear(generate: Generate) -> None:
    abi = generate("struct hr_value { struct bpf_timer timer; __u64 count; };", "struct hr_value value;")
    assert abi.Value.__struct_fields__ == ("count",)
    assert abi.Value.SIZE == 24


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("struct hr_key { __u8 a; __u32 b; };", "struct hr_key: implicit padding at offset 1 before b"),
        ("struct hr_key { __u32 b; __u8 a; };", "struct hr_key: implicit padding at offset 5, the end"),
        ("struct hr_key { __u32 a : 4; __u32 b : 28; };", "struct hr_key: a at bit 0 is a bit-field"),
        ("struct hr_key { void *a; };", "struct hr_key: a at offset 0 is ptr"),
        ("struct hr_key { __u16 a[2][2]; };", "struct hr_key: a at offset 0 is array"),
        ("struct hr_key { union { __u32 a; __u8 b[4]; }; };", "struct hr_key: the anonymous union at offset 0 has 2"),
        ("struct other { __u32 a; }; struct hr_key { struct other a; };", "struct hr_key: a at offset 0 is struct"),
        ("struct hr_key { __u32 from; };", "struct hr_key: from cannot be a field in Python"),
        ("struct hr_key { __u32 a; };\nstruct hr_lost { __u32 a; };", "struct hr_lost is not in the BTF"),
        ("enum hr_a { HR_A_X = -1 };\nstruct hr_key { enum hr_a a; };", "enum hr_a: HR_A_X is not within 0"),
        ("enum hr_a { HR_A_1 };\nstruct hr_key { enum hr_a a; };", "HR_A_1 has no Python name"),
    ],
)
def test_refusals_name_the_place(generate: Generate, header: str, message: str) -> None:
    with pytest.raises(Refused, match=message):
        generate(header, "struct hr_key key;")


def test_enums_carry_comments_and_constants_their_value(generate: Generate) -> None:
    abi = generate(
        "enum hr_reason {\n\tHR_REASON_NONE, /* forwarded */\n\tHR_REASON_SPOOFED = 5, /* from an address\n"
        "\t\t\t\t* that is another's */\n\tHR_REASON_OTHER,\n\t__HR_REASON_MAX,\n};\n"
        "enum hr_side { HR_FROM, HR_TO };\n"
        "#define HR_SLOTS (1U << 12) /* many */\n#define HR_TWICE \\\n\t(HR_SLOTS * 2)\n#define HR_ABI_H\n"
        "#define HR_CALL(x) (x)\n",
        "enum hr_reason reason; enum hr_side side;",
    )
    assert {member.name: (int(member), member.doc) for member in abi.Reason} == {
        "NONE": (0, "forwarded"),
        "SPOOFED": (5, "from an address that is another's"),
        "OTHER": (6, ""),
    }
    assert abi.Reason(5) is abi.Reason.SPOOFED
    assert (abi.Side.FROM, abi.Side.TO) == (0, 1)
    assert (abi.SLOTS, abi.TWICE) == (4096, 8192)
    assert not hasattr(abi, "CALL")


def test_maps(generate: Generate) -> None:
    abi = generate("#define HR_SLOTS 100\nstruct hr_key { __u32 a; };", MAP)
    assert {
        "hr_slots": abi.MapSpec(
            name="hr_slots",
            type=1,
            max_entries=100,
            flags=1,
            pinning=1,
            key_size=4,
            value_size=8,
            key=abi.Key,
            value=abi.U64,
            doc="what is where",
        )
    } == abi.MAPS


def test_plain_integers_are_packed_too(generate: Generate) -> None:
    abi = generate("struct hr_key { __u32 a; };", "struct hr_key key;")
    assert abi.U32(value=1).pack() == b"\1\0\0\0"
    assert abi.U64.unpack(bytes(7) + b"\1") == abi.U64(value=1 << 56)
    with pytest.raises(ValueError, match="U32 takes 4 octets"):
        abi.U32.unpack(bytes(8))


def test_documentation_from_tags_and_comments(generate: Generate) -> None:
    abi = generate(
        "/* Where a flow\n * entered. */\nstruct hr_key { __u32 a; };\n"
        'struct hr_value { __u32 b; } __attribute__((btf_decl_tag("doc:What it holds")));',
        "struct hr_key key; struct hr_value value;",
    )
    assert abi.Key.__doc__ == "struct hr_key: Where a flow entered."
    assert abi.Value.__doc__ == "struct hr_value: What it holds."


def test_hash_follows_layout_and_not_words(generate: Generate) -> None:
    plain = generate("#define HR_SLOTS 8\nstruct hr_key { __u32 a; __u16 b; __u16 c; };", MAP)
    worded = generate("/* A key. */\n#define HR_SLOTS 8\nstruct hr_key { __u32 a; __u16 b; __u16 c; };", MAP)
    turned = generate("#define HR_SLOTS 8\nstruct hr_key { __u32 a; __be16 b; __u16 c; };", MAP)
    larger = generate("#define HR_SLOTS 9\nstruct hr_key { __u32 a; __u16 b; __u16 c; };", MAP)
    assert plain.ABI_HASH == worded.ABI_HASH
    assert len({plain.ABI_HASH, turned.ABI_HASH, larger.ABI_HASH}) == 3


def test_check_finds_a_difference(generate: Generate) -> None:
    with pytest.raises(Refused, match="differs from"):
        generate("struct hr_key { __u32 a; };", "struct hr_key key;", "--check")
