"""Devices of a VLAN or of QinQ where the kernel has none (8021q): a veth, and BPF programs that tag and untag.

    vlan_device(topology, foreign, "eth0", "eth0.12", Vlan(vid=12), addresses=["10.0.0.9/24"])

What leaves by the device leaves by its lower one with tags; what arrives there with these tags comes in by the device.
Others' frames go to the lower device as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from headrace.datapath.attach import attach_tc
from headrace.datapath.libbpf import Object
from headrace.testing.clang import compile_bpf
from headrace.testing.topology import Namespace, Topology, run

SOURCE = """
#define VID 0xfff
const volatile __u32 vid, service, device;

static __always_inline int mine(struct __sk_buff *skb)
{
    __u8 inner[4];

    if (!skb->vlan_present)
        return 0;
    if (!service)
        return skb->vlan_proto == __builtin_bswap16(0x8100) && (skb->vlan_tci & VID) == vid;
    if (skb->vlan_proto != __builtin_bswap16(0x88a8) || (skb->vlan_tci & VID) != service)
        return 0;
    return !bpf_skb_load_bytes(skb, 12, inner, 4) && inner[0] == 0x81 && !inner[1] &&
           ((inner[2] & 0xf) << 8 | inner[3]) == vid;
}

SEC("tc") int untag(struct __sk_buff *skb)
{
    if (!mine(skb))
        return TC_ACT_UNSPEC;
    if (bpf_skb_vlan_pop(skb) || (service && bpf_skb_vlan_pop(skb)))
        return TC_ACT_SHOT;
    return bpf_redirect(device, 0);
}

SEC("tc") int tag(struct __sk_buff *skb)
{
    if (bpf_skb_vlan_push(skb, __builtin_bswap16(0x8100), vid))
        return TC_ACT_SHOT;
    if (service && bpf_skb_vlan_push(skb, __builtin_bswap16(0x88a8), service))
        return TC_ACT_SHOT;
    return bpf_redirect(device, 0);
}
"""


class Vlan(NamedTuple):
    """Tags: 802.1Q, and 802.1ad before it where there is a ``service`` VID."""

    vid: int
    service: int = 0


def vlan_device(
    topology: Topology,
    namespace: Namespace,
    lower: str,
    name: str,
    vlan: Vlan,
    *,
    mac: str | None = None,
    addresses: Sequence[str] = (),
    mtu: int = 1500,
) -> None:
    """Make device ``name`` in a namespace; it goes with the namespace. ``addresses`` as ``10.0.0.1/24``."""
    inside = f"{name}-tag"
    pair = f"name {name} mtu {mtu} netns {namespace.name} type veth"
    pair += f" peer name {inside} mtu {mtu} netns {namespace.name}"
    run(["ip", "link", "add", *pair.split()])
    lines = [f"link set {name} address {mac}"] if mac else []
    lines += [f"address add {text} dev {name}" + (" nodad" if ":" in text else "") for text in addresses]
    run(
        ["ip", "-n", namespace.name, "-batch", "-"],
        stdin="\n".join([*lines, f"link set {inside} up", f"link set {name} up"]),
    )
    built = topology.directory / "vlan.bpf.o"
    if not built.exists():
        built = compile_bpf(SOURCE, topology.directory, "vlan")
    pins = topology.bpffs()
    attach(namespace, built, "untag", (lower, inside), vlan, pins)
    attach(namespace, built, "tag", (inside, lower), vlan, pins)


def attach(namespace: Namespace, built: Path, program: str, way: tuple[str, str], vlan: Vlan, pins: Path) -> None:
    """Run one of the programs where frames enter, towards where they leave."""
    enters, leaves = way
    constants = {"vid": vlan.vid, "service": vlan.service, "device": namespace.ifindex(leaves)}
    with Object.open(built, rodata=constants).load() as loaded, namespace.enter():
        attach_tc(namespace.ifindex(enters), loaded.programs[program], "ingress", pins / program)
