"""The real programs asked what they would do: loaded once more beside those that run, on the same tables, writing none.

``hr_dry`` (``bpf/dry.h``) is read-only data, so the verifier takes every write out of this load, and the load that
carries traffic pays nothing for it. No packet of a workload can reach the dry programs, for they are on no device.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Self

import msgspec

from headrace import abi
from headrace.datapath.libbpf import Object, Program, RunResult
from headrace.datapath.reader import Reader
from headrace.datapath.use import connections_at
from headrace.errors import DatapathError, NotSupported

OBJECT = Path(__file__).parent / "objects" / "tc.bpf.o"
OWN = {"hr_conclusions"}
"""Tables that the dry programs do not share: what they conclude."""
NOTHING = abi.Conclusion(reason=0xFFFFFFFF)
SHORTEST = 54
"""Test runs refuse frames that end in their IP header (Linux 6.18, ``net/bpf/test_run.c``)."""
SKB = struct.Struct("<8xI28xI4xII120xI12x")
"""``struct __sk_buff``: mark, ifindex, cb[0], cb[1], gso_size; what is not given must be zero."""
TC_ACT_UNSPEC = 0xFFFFFFFF


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the programs concluded about one frame.

    ``passed``: the kernel would have it, and nobody else unless it is flooded. ``ifindex``: the device it would leave
    by, 0: none. ``frame``: as it would leave. ``key``, ``rule``: of the walk; ``replayed``: an existing flow entry
    decides it.
    """

    reason: abi.Reason
    passed: bool = False
    ifindex: int = 0
    replayed: bool = False
    copies: int = 0
    key: abi.FlowKey
    rule: abi.ConnRule
    frame: bytes = b""


class Dry:
    """The dry programs of one host. Needs the right to load programs, and to be where its devices are."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        if not OBJECT.exists():
            raise DatapathError(f"{OBJECT.name} is not built; run make bpf")
        shared = {name: table for name, table in reader.maps.items() if name in abi.MAPS and name not in OWN}
        self._object = Object.open(
            OBJECT,
            rodata={"hr_dry": 1, "hr_observe": 1, "hr_connections": connections_at(reader.pins) or 0},
            map_sizes={name: table.max_entries for name, table in shared.items()},
            pin_dir=reader.pins,
            unpinned=OWN,
        ).load()

    def close(self) -> None:
        """Unload them."""
        self._object.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def from_port(self, frame: bytes, ifindex: int, gso_size: int = 0) -> Outcome:
        """A frame that a port's device ``ifindex`` sends."""
        return self._run("hr_from_port", frame, ifindex, gso_size)

    def from_uplink(self, frame: bytes, ifindex: int, gso_size: int = 0) -> Outcome:
        """A whole frame of the underlay, that enters by the uplink ``ifindex``."""
        return self._run("hr_from_uplink", frame, ifindex, gso_size)

    def is_what_runs(self) -> bool:
        """Whether the programs that carry traffic here are the same, instruction by instruction."""
        loads = sorted(path for path in (self._reader.root / "loads").iterdir())
        if not loads:
            return False
        latest = max(loads, key=lambda path: int(path.name))
        return stage_tags(latest / "stages") == {
            key: tag_of(int.from_bytes(value, "little")) for key, value in self._object.maps["hr_stages"].items()
        }

    def _run(self, name: str, frame: bytes, ifindex: int, gso_size: int) -> Outcome:
        if len(frame) < SHORTEST:
            raise NotSupported(f"a frame of {len(frame)} octets: this kernel tries none shorter than {SHORTEST}")
        conclusions = self._object.maps["hr_conclusions"]
        conclusions.update(bytes(4), NOTHING.pack())
        result = self._object.programs[name].test_run(frame, ctx=SKB.pack(0, ifindex, 0, 0, gso_size))
        rows = map(abi.Conclusion.unpack, conclusions.lookup_cpus(bytes(4)) or ())
        return outcome(result, next((row for row in rows if row.reason != NOTHING.reason), None), name)


def outcome(result: RunResult, conclusion: abi.Conclusion | None, name: str) -> Outcome:
    """What a run says."""
    if conclusion is None:
        if result.retval != TC_ACT_UNSPEC:
            raise DatapathError(f"program {name} ended with {result.retval:#x} and concluded nothing; a bug")
        return Outcome(
            reason=abi.Reason.NONE, passed=True, key=abi.FlowKey(), rule=abi.ConnRule(), frame=result.data_out
        )
    return Outcome(
        reason=abi.Reason(conclusion.reason),
        passed=result.retval == TC_ACT_UNSPEC,
        ifindex=conclusion.ifindex,
        replayed=bool(conclusion.replayed),
        copies=conclusion.copies,
        key=conclusion.key,
        rule=conclusion.rule,
        frame=result.data_out,
    )


def stage_tags(path: Path) -> dict[bytes, str]:
    """Stage -> tag of its program, of a pinned array of stages."""
    from headrace.datapath.bpfmap import Map

    with Map.from_pin(path) as table:
        return {key: tag_of(int.from_bytes(value, "little")) for key, value in table.items()}


def tag_of(program: int) -> str:
    """The kernel's digest of a program's instructions, maps and read-only data left out, by the program's id."""
    with Program.by_id(program) as found:
        return found.info().tag
