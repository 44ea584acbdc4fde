"""The rules of the house that a program can check."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = {
    "decide": "ends every walk: composes what the stages found and keeps it",
    "flood": "the replication of forward, under its heading",
    "seam": "the way round by which some packets come to encap, under its heading",
}
"""Files of bpf/stages that are no stage of their own, with the reason."""

ELSEWHERE = {"admit": "the first thing every program does: bpf/lib/parse.h and the entry programs"}
"""Stages without a file in bpf/stages, with the reason."""

STAGES = sorted({path.stem for path in (ROOT / "bpf/stages").glob("*.h")} - PARTS.keys() | ELSEWHERE.keys())
FAMILIES = ("encap",)
"""Stages of several files, ``encap_vxlan.h``: the name before the underscore counts."""

NO_COMPILER = {
    "account": "has no table that policy fills",
    "budget": "has no table that policy fills",
    "too_big": "looks at MTUs: the network's in hr_ports, the path's in hr_adjacencies",
    "track": "has no table that policy fills",
}
NO_PACKET_TEST: dict[str, str] = {}
ONLY_COMPILER = {
    "compile": "calls every compiler",
    "epoch": "says whose decisions a change made wrong",
    "memo": "what an earlier compilation found, for all of them",
    "remote": "the addresses that acl's rules speak of",
    "view": "what the compilers compile from",
}
ONLY_PACKET_TEST = {
    "churn": "connections that CPUs make, refresh, evict and sweep at once",
    "change": "packets between the single writes of a change",
    "corpus": "every scenario that ever told programs and oracle apart",
    "epoch": "what a walk stands on while tables change under it",
    "equivalence": "all stages at once, against the oracle",
    "fuzz": "broken frames at every stage",
    "full_table": "who gives way where a port or the host has too many connections",
    "index": "the numbers by which all stages know ports and places",
    "load": "the verifier's word on every program",
    "libbpf": "the binding that the other packet tests stand on",
    "punt": "respond, where it is the agent that answers",
    "dry": "that asking leaves every table as it was",
    "sampling": "what every stage's drops show to those who watch",
    "seam": "encap, of what is cut or summed first",
    "ringbuf": "what programs hand to user space",
    "replay": "what comes before all stages",
    "tcp": "track, where it is about TCP's numbers",
    "physical": "admit and forward, where a network is on a wire of the operator's",
    "trunk": "admit, where ports share a device",
    "wires": "encap, every wire beside the others",
    "wire_hostile": "admit, where the outer headers of every wire are wrong",
    "wire_safety": "who may take whose MAC or address, on any wire",
}
"""Names that stand alone, with the reason."""

SOURCES = {".py", ".c", ".h", ".sh"}
GENERATED = {Path("headrace/abi.py")}
BANNED_NAMES = {"utils", "util", "common", "helper", "helpers", "manager", "managers"}
MACHINE_PATH = re.compile(r"(^|[^\w.-])/(wo" + r"rk|fa" + r"rm|tmp/ba" + r"sh_jobs|root/\.\w+|home/\w+)/")


def files() -> list[Path]:
    """Every file of the project, tracked or about to be."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [Path(name) for name in names if name and (ROOT / name).is_file()]


def imports(path: Path) -> Iterator[str]:
    """The names of modules that a file imports anywhere."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def stage_of(name: str) -> str:
    """``encap_vxlan`` -> ``encap``; other names are themselves."""
    family = name.partition("_")[0]
    return family if family in FAMILIES else name


def stages_for(room: str, alone: dict[str, str]) -> list[str]:
    """The stages that need a file in a room; none while nobody lives there."""
    return sorted({stage_of(name) for name in STAGES} - alone.keys()) if (ROOT / room).exists() else []


def headings() -> set[str]:
    text = (ROOT / "docs/pipeline.md").read_text()
    return set(re.findall(r"^## ([a-z_]+)$", text, re.MULTILINE))


@pytest.mark.parametrize("stage", STAGES)
def test_stage_has_its_heading(stage: str) -> None:
    assert stage_of(stage) in headings(), f"docs/pipeline.md has no heading `## {stage_of(stage)}`"


@pytest.mark.parametrize("stage", stages_for("headrace/stages", NO_COMPILER))
def test_stage_has_its_compiler(stage: str) -> None:
    found = [*ROOT.glob(f"headrace/stages/{stage}.py"), *ROOT.glob(f"headrace/stages/{stage}_*.py")]
    assert found, f"headrace/stages/{stage}.py is missing"


@pytest.mark.parametrize("stage", stages_for("tests/packet", NO_PACKET_TEST))
def test_stage_has_its_packet_test(stage: str) -> None:
    found = [*ROOT.glob(f"tests/packet/test_{stage}.py"), *ROOT.glob(f"tests/packet/test_{stage}_*.py")]
    assert found, f"tests/packet/test_{stage}.py is missing"


@pytest.mark.parametrize(
    ("pattern", "prefix", "alone"),
    [
        ("headrace/stages/*.py", "", ONLY_COMPILER),
        ("tests/packet/test_*.py", "test_", ONLY_PACKET_TEST),
    ],
)
def test_no_name_without_its_stage(pattern: str, prefix: str, alone: dict[str, str]) -> None:
    names = {path.stem.removeprefix(prefix) for path in ROOT.glob(pattern) if not path.stem.startswith("_")}
    stages = {stage_of(name) for name in STAGES} | set(STAGES)
    assert names - stages - alone.keys() == set(), f"{pattern}: name a file after its stage, or list it with a reason"


@pytest.mark.parametrize(
    ("pattern", "names", "exists"),
    [
        ("bpf/stages/{}.h", PARTS, True),
        ("bpf/stages/{}.h", ELSEWHERE, False),
        ("headrace/stages/{}.py", NO_COMPILER, False),
        ("headrace/stages/{}.py", ONLY_COMPILER, True),
        ("tests/packet/test_{}.py", NO_PACKET_TEST, False),
        ("tests/packet/test_{}.py", ONLY_PACKET_TEST, True),
    ],
)
def test_exceptions_are_needed(pattern: str, names: dict[str, str], exists: bool) -> None:  # noqa: FBT001 - a parameter
    assert [name for name in names if (ROOT / pattern.format(name)).exists() is not exists] == []


def test_files_stay_readable() -> None:
    sizes = {
        path: len((ROOT / path).read_text().splitlines())
        for path in files()
        if path.suffix in SOURCES and path not in GENERATED
    }
    assert {str(path): lines for path, lines in sizes.items() if lines > 800} == {}


def test_only_the_plug_in_imports_neutron() -> None:
    found = [
        f"{path}: {name}"
        for path in files()
        if path.suffix == ".py" and path.parts[:2] not in {("headrace", "neutron"), ("tests", "neutron")}
        for name in imports(path)
        if re.match(r"(neutron|neutron_lib|oslo_\w+)(\.|$)", name)
    ]
    assert found == []


def test_modules_are_named_for_what_they_are() -> None:
    assert [str(path) for path in files() if path.stem in BANNED_NAMES or path.parent.name in BANNED_NAMES] == []


def test_tests_wait_for_conditions_and_not_for_time() -> None:
    found = [
        str(path)
        for path in files()
        if path.parts[0] == "tests" and path.suffix == ".py" and path.name != Path(__file__).name
        if re.search(r"\btime\.sleep\(", (ROOT / path).read_text())
    ]
    assert found == []


def test_no_path_of_a_machine() -> None:
    found = []
    for path in files():
        data = (ROOT / path).read_bytes()
        if b"\0" in data:
            continue
        lines = enumerate(data.decode().splitlines(), 1)
        found += [f"{path}:{number}" for number, line in lines if MACHINE_PATH.search(line)]
    assert found == []
