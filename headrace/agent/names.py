"""What the datapath's numbers mean, in a file that the command line reads, also when the agent does not run."""

from __future__ import annotations

from pathlib import Path

import msgspec

from headrace.agent.desired import replace
from headrace.errors import Denied, Unavailable
from headrace.model.object import attachment
from headrace.stages.view import View, rule_id, segment_text

FILE = "names.json"


class PortName(msgspec.Struct, frozen=True, kw_only=True):
    """A port behind an index. ``device``: that carries it; ``vlan``: of a sub-port, its tag there."""

    id: str
    name: str
    device: str
    network: str
    vlan: int | None = None

    @property
    def attachment(self) -> str:
        """Whom the index is of (Port.attachment)."""
        return attachment(self.id, self.network)


class RuleName(msgspec.Struct, frozen=True, kw_only=True):
    """A rule behind its number."""

    id: str
    group: str
    group_name: str


class Names(msgspec.Struct, frozen=True, kw_only=True):
    """Index or number (as text) -> what it is.

    ``wires``: of VTEP indices, those that stand for the wire of a physical network; ``physicals``: their numbers.
    """

    host: str
    bpf: str = ""
    ports: dict[str, PortName] = {}
    endpoints: dict[str, str] = {}
    segments: dict[str, str] = {}
    physicals: dict[str, str] = {}
    vteps: dict[str, str] = {}
    wires: dict[str, str] = {}
    rules: dict[str, RuleName] = {}

    def segment(self, number: int) -> str:
        """A segment in words, ``vxlan 100``, by what the datapath names it."""
        return segment_text(number, {int(index): name for index, name in self.physicals.items()})


def write_names(run: Path, view: View, bpf: str) -> None:
    """Write the file for a view, unless it says the same already."""
    content = view.memo.of(
        "names",
        lambda *_: msgspec.json.encode(names_of(view, bpf)),
        tuple(view.local_ports),
        tuple(view.remote_ports),
        tuple(view.networks.items()),
        tuple(view.state.security_groups.values()),
    )
    path = run / FILE
    if not path.exists() or path.read_bytes() != content:
        replace(path, content)


def names_of(view: View, bpf: str) -> Names:
    """What the numbers mean."""
    carriers = {port.id: port.device_name for port in view.local_ports}
    physicals = view.names["physical"]
    used = {group for port in view.local_ports for group in port.security_groups}
    return Names(
        host=view.host,
        bpf=bpf,
        ports={
            str(view.index.port(port.attachment)): PortName(
                id=port.id,
                name=port.name,
                device=carriers.get(port.parent or port.id, port.device_name),
                network=port.network,
                vlan=port.vlan,
            )
            for port in view.local_ports
        },
        endpoints={str(view.index.endpoint(f"port {port.id}")): port.id for port, _ in view.remote_ports},
        segments={str(segment): name for name, segment in view.segments.items()},
        vteps={str(view.index.vtep(str(vtep))): str(vtep) for _, vtep in view.remote_ports},
        wires={str(view.index.vtep(f"wire {name}")): name for name in physicals},
        physicals={str(view.index.physical(name)): name for name in physicals},
        rules={
            str(rule_id(rule.id)): RuleName(id=rule.id, group=group.id, group_name=group.name)
            for group in view.state.security_groups.values()
            if group.id in used
            for rule in group.rules
        },
    )


def read_names(run: Path) -> Names:
    """Read the file; raises Unavailable when there is none, Denied when it is not ours to read."""
    try:
        return msgspec.json.decode((run / FILE).read_bytes(), type=Names)
    except FileNotFoundError:
        raise Unavailable(
            f"{run / FILE} is not there: no agent has run on this host; give its run directory with --run"
        ) from None
    except PermissionError:
        raise Denied(f"{run / FILE}: reading the datapath's names needs root") from None
