"""The agent's configuration file."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Device = Annotated[str, msgspec.Meta(min_length=1, max_length=15)]
PhysicalName = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of agent.toml.

    ``host``: this host's name, as Neutron's ``binding:host_id`` has it.
    ``controller``: where desired state comes from (URL); or ``state``: a YAML file, as `headrace apply` takes it.
    ``certificates``: where ca.crt, host.crt and host.key are.
    ``uplinks``: devices to the underlay; ``uplink_hook``: where the datapath sits on them.
    ``vteps``: own tunnel endpoints, one per IP version; by default the first global addresses of the uplinks.
    ``physical_networks``: the device that each of them is reached by here: ``{physnet1 = "eth1"}``.
    ``any_vtep``: take tunnelled frames from addresses that are no host's; anti-spoofing by VTEP ends with it.
    ``tunnel_port``: VXLAN's UDP port. ``bpf``: a directory on a BPF file system. ``run``: names for the command line.
    ``cache``: where desired state is kept for a start without the controller.
    ``connections``: how many the host remembers, 560 octets of kernel memory each.
    ``quota``: how many one port may have, by default a quarter of them; 0: any number.
    ``dhcp_lease``: seconds that a workload may use an address before it asks again.
    ``mss_clamp``: lower the MSS that workloads' SYNs offer to what the path takes.
    ``guard``: names of devices that may carry workloads (nftables wildcards); nothing passes between them and the
    host's stack.
    ``verify``: seconds between looks at whether the datapath is still as it was written, and repaired; 0: never.
    """

    host: str
    controller: str = ""
    state: str = ""
    certificates: str = "/etc/headrace"
    uplinks: tuple[Device, ...] = ()
    uplink_hook: Literal["tc", "xdp"] = "tc"
    vteps: tuple[str, ...] = ()
    physical_networks: Annotated[dict[PhysicalName, Device], msgspec.Meta(max_length=15)] = {}
    any_vtep: bool = False
    tunnel_port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 4789
    bpf: str = "/sys/fs/bpf/headrace"
    run: str = "/run/headrace"
    cache: str = "/var/lib/headrace"
    connections: Annotated[int, msgspec.Meta(ge=1024, le=16777216)] = 262144
    quota: Annotated[int, msgspec.Meta(ge=0)] | None = None
    dhcp_lease: Annotated[int, msgspec.Meta(ge=60, le=0xFFFFFFFE)] = 86400
    mss_clamp: bool = False
    guard: tuple[Device, ...] = ("tap*",)
    verify: Annotated[int, msgspec.Meta(ge=0)] = 60
    log: Literal["debug", "info", "warning", "error"] = "info"

    def __post_init__(self) -> None:
        owners: dict[str, str] = {}
        for name, device in self.physical_networks.items():
            if (other := owners.setdefault(device, name)) != name:
                raise ValueError(f"physical_networks: {other} and {name} are both on {device}; give each its own")
