"""Load compiled BPF objects and run their programs, by libbpf.

``Object.open(path, ...)`` sets read-only globals and map sizes, ``load()`` passes the verifier; then
``maps`` and ``programs`` hold what the object has, by the names in its C source. Maps declared
``LIBBPF_PIN_BY_NAME`` are shared through ``pin_dir``: taken from there when pinned, else pinned there.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from headrace.datapath.binding import Refused, check, ffi, get_pinned, info, lib, logged, pin, pointer
from headrace.datapath.bpfmap import BPF_ANY, BPF_EXIST, BPF_F_LOCK, BPF_NOEXIST, Map, MapType, possible_cpus
from headrace.errors import DatapathError

__all__ = [
    "BPF_ANY",
    "BPF_EXIST",
    "BPF_F_LOCK",
    "BPF_NOEXIST",
    "Map",
    "MapType",
    "Object",
    "Program",
    "ProgramInfo",
    "Refused",
    "RunResult",
    "RunStatistics",
    "possible_cpus",
]

BTF_KIND_DATASEC = 15
PROGRAM_TYPE_SYSCALL = 31
TEST_XDP_LIVE_FRAMES = 2
GROWTH = 1024


class RunResult(NamedTuple):
    """What a test run of a program gave."""

    retval: int
    data_out: bytes
    ctx_out: bytes
    duration_ns: int


class ProgramInfo(NamedTuple):
    """What the kernel tells about a loaded program; sizes in octets, run figures only while counted."""

    id: int
    name: str
    type: int
    tag: str
    xlated_size: int
    jited_size: int
    verified_instructions: int
    run_count: int
    run_time_ns: int


class Program:
    """A loaded program by its descriptor."""

    def __init__(self, fd: int, name: str = "", *, owned: bool = False) -> None:
        facts = info(fd, "prog")
        self.fd = fd
        self.name = name or ffi.string(facts.name).decode()
        self.id = int(facts.id)
        self.type = int(facts.type)
        self._owned = owned

    @classmethod
    def from_pin(cls, path: Path) -> Self:
        """The program pinned at ``path``; the caller closes it."""
        return cls(get_pinned(path, "program"), path.name, owned=True)

    @classmethod
    def by_id(cls, number: int) -> Self:
        """A loaded program by the kernel's id; the caller closes it."""
        return cls(check(lib.bpf_prog_get_fd_by_id(number), f"program {number}"), owned=True)

    def close(self) -> None:
        """Give back the descriptor when it is ours."""
        if self._owned and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pin(self, path: Path) -> None:
        """Pin the program at ``path``."""
        pin(self.fd, path, f"program {self.name}")

    def info(self) -> ProgramInfo:
        """Sizes and run figures."""
        facts = info(self.fd, "prog")
        return ProgramInfo(
            id=int(facts.id),
            name=self.name,
            type=int(facts.type),
            tag=bytes(facts.tag).hex(),
            xlated_size=int(facts.xlated_prog_len),
            jited_size=int(facts.jited_prog_len),
            verified_instructions=int(facts.verified_insns),
            run_count=int(facts.run_cnt),
            run_time_ns=int(facts.run_time_ns),
        )

    def test_run(
        self,
        data: bytes = b"",
        *,
        ctx: bytes | None = None,
        repeat: int = 1,
        data_out_size: int | None = None,
        flags: int = 0,
    ) -> RunResult:
        """Run once (or ``repeat`` times) on ``data`` by BPF_PROG_TEST_RUN.

        ``ctx`` is a ``__sk_buff``, an ``xdp_md`` or a syscall program's argument, and is returned as it ends.
        """
        options = ffi.new("struct bpf_test_run_opts *", {"sz": ffi.sizeof("struct bpf_test_run_opts")})
        held = [ffi.from_buffer("char[]", data), ffi.new("char[]", ctx or b"\0"), ffi.NULL, ffi.NULL]
        options.flags = flags
        size = len(ctx or b"")
        if size:
            options.ctx_in, options.ctx_size_in = held[1], size
        if self.type == PROGRAM_TYPE_SYSCALL:  # takes nothing else, and writes its argument back in place
            held[2] = held[1]
        else:
            options.repeat = repeat
            options.data_in, options.data_size_in = held[0], len(data)
            if not flags & TEST_XDP_LIVE_FRAMES:
                room = len(data) + GROWTH if data_out_size is None else data_out_size
                held[3] = ffi.new("char[]", room)
                options.data_out, options.data_size_out = held[3], room
                if size:
                    held[2] = ffi.new("char[]", size)
                    options.ctx_out, options.ctx_size_out = held[2], size
        check(lib.bpf_prog_test_run_opts(self.fd, options), f"test run of program {self.name}")
        return RunResult(
            int(options.retval),
            bytes(ffi.buffer(held[3], options.data_size_out)) if options.data_out else b"",
            bytes(ffi.buffer(held[2], size)) if size and held[2] else b"",
            int(options.duration),
        )


class Object:
    """A compiled BPF object: opened, then loaded once."""

    def __init__(self, handle: Any, name: str) -> None:
        self._handle = handle
        self.name = name
        self.maps: dict[str, Map] = {}
        self.programs: dict[str, Program] = {}

    @classmethod
    def open(
        cls,
        path: Path,
        rodata: Mapping[str, int | bytes] | None = None,
        map_sizes: Mapping[str, int] | None = None,
        pin_dir: Path | None = None,
        unpinned: Collection[str] = (),
    ) -> Self:
        """Read ``path``, set its ``const volatile`` globals and its maps' ``max_entries``. Nothing is loaded yet.

        ``unpinned``: maps that stay this object's own, though they are declared to be shared by their pins.
        """
        options = ffi.new("struct bpf_object_open_opts *", {"sz": ffi.sizeof("struct bpf_object_open_opts")})
        root = None
        if pin_dir is not None:
            pin_dir.mkdir(parents=True, exist_ok=True)
            root = ffi.new("char[]", os.fsencode(pin_dir))
            options.pin_root_path = root
        with logged():
            handle = pointer(lib.bpf_object__open_file(os.fsencode(path), options), f"open {path}")
        opened = cls(handle, path.name)
        try:
            opened._set_rodata(rodata or {})
            for name, entries in (map_sizes or {}).items():
                table = lib.bpf_object__find_map_by_name(handle, name.encode())
                if table == ffi.NULL:
                    raise DatapathError(f"{path.name} has no map {name} to give a size")
                check(lib.bpf_map__set_max_entries(table, entries), f"size of map {name} in {path.name}")
            for name in unpinned:
                table = lib.bpf_object__find_map_by_name(handle, name.encode())
                check(lib.bpf_map__set_pin_path(table, ffi.NULL), f"pin of map {name} in {path.name}")
        except BaseException:
            opened.close()
            raise
        return opened

    def load(self) -> Self:
        """Create the maps, pass the verifier; the error of a refused program ends with the verifier's last words."""
        with logged():
            if (result := lib.bpf_object__load(self._handle)) < 0:
                error = Refused(f"load {self.name}", -result)
                self.close()
                raise error
        table = program = ffi.NULL
        while (table := lib.bpf_object__next_map(self._handle, table)) != ffi.NULL:
            name = ffi.string(lib.bpf_map__name(table)).decode()
            self.maps[name] = Map(lib.bpf_map__fd(table), name)
        while (program := lib.bpf_object__next_program(self._handle, program)) != ffi.NULL:
            name = ffi.string(lib.bpf_program__name(program)).decode()
            self.programs[name] = Program(lib.bpf_program__fd(program), name)
        return self

    def close(self) -> None:
        """Close every descriptor of the object; what is pinned or attached stays."""
        if self._handle != ffi.NULL:
            lib.bpf_object__close(self._handle)
            self._handle = ffi.NULL
            for table in self.maps.values():
                table.fd = -1
            for program in self.programs.values():
                program.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set_rodata(self, values: Mapping[str, int | bytes]) -> None:
        places = self._rodata_places() if values else {}
        for name, value in values.items():
            if name not in places:
                raise DatapathError(f"{self.name} has no read-only global {name}; it has {', '.join(sorted(places))}")
            address, size = places[name]
            try:
                octets = value if isinstance(value, bytes) else value.to_bytes(size, "little", signed=value < 0)
            except OverflowError:
                raise DatapathError(f"{name} = {value!r} does not fit its {size} octets in {self.name}") from None
            if len(octets) != size:
                raise DatapathError(f"{name} takes {size} octets in {self.name}, not {len(octets)}")
            ffi.memmove(address, octets, size)

    def _rodata_places(self) -> dict[str, tuple[Any, int]]:
        """Name -> (address in the section's image, size) of each global in ``.rodata*``, from the object's BTF."""
        places: dict[str, tuple[Any, int]] = {}
        btf = lib.bpf_object__btf(self._handle)
        for number in range(1, lib.btf__type_cnt(btf) if btf != ffi.NULL else 1):
            section = lib.btf__type_by_id(btf, number)
            name = ffi.string(lib.btf__name_by_offset(btf, section.name_off)).decode()
            if section.info >> 24 & 0x1F != BTF_KIND_DATASEC or not name.startswith(".rodata"):
                continue
            table = lib.bpf_object__find_map_by_name(self._handle, name.encode())
            if table == ffi.NULL:
                continue
            image = ffi.cast("char *", lib.bpf_map__initial_value(table, ffi.new("size_t *")))
            variables = ffi.cast("struct btf_var_secinfo *", section + 1)
            for at in range(section.info & 0xFFFF):
                variable = variables[at]
                kind = lib.btf__type_by_id(btf, variable.type)
                label = ffi.string(lib.btf__name_by_offset(btf, kind.name_off)).decode()
                places[label] = (image + variable.offset, int(variable.size))
        return places


class RunStatistics:
    """Counts runs and run time of every program on the host while open (costs a little on each run)."""

    def __enter__(self) -> Self:
        self._fd = check(lib.bpf_enable_stats(0), "enable BPF run statistics")
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
