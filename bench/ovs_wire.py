"""Each wire in OpenFlow's words (ovs-actions(7), ovs-fields(7)), or why Open vSwitch has it not in user space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.process import SetupError

if TYPE_CHECKING:
    from bench.rules import Site
    from bench.wiring import Host

GPE_PORT = 4790
FIRST_INDEX = 255
"""NSH's service index of a path that nobody has served yet."""

TUNNELS: dict[str, tuple[str, ...]] = {
    "vxlan": ("type=vxlan", "options:key=flow"),
    "geneve": ("type=geneve", "options:key=flow"),
    "gre": ("type=gre", "options:key=flow"),
    "mpls-gre": ("type=gre", "options:packet_type=legacy_l3"),
    "nsh-gpe": (
        "type=vxlan", "options:key=flow", "options:exts=gpe", "options:packet_type=ptap",
        f"options:dst_port={GPE_PORT}",
    ),
}  # fmt: skip
"""Of the tunnel's port."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """``tunnel``: settings of the port to the other host; none: it is the uplink itself.

    ``put_on``: actions before the output there. ``take_off``: what comes from there, and what is done to it, a step for
    each table; ``match``: the inner frame, where the last of them left it.
    """

    tunnel: tuple[str, ...]
    put_on: str
    match: str = ""
    take_off: tuple[tuple[str, str], ...] = ()


def way(host: Host, other: Host, site: Site) -> Way:
    """How a site's wire is had. Raises ``SetupError`` for those that are not."""
    segment, wire = site.segment, site.wire
    if wire == "mpls-udp":
        raise SetupError("ovs: mpls-udp: the userspace datapath takes a bareudp port and drops all that goes there")
    if segment.is_physical:
        return _tagged(site)
    path = f"encap(nsh(md_type=2)),set_field:{segment.id}->nsh_spi,set_field:{FIRST_INDEX}->nsh_si"
    if wire == "nsh-ethernet":
        ends = f"set_field:{host.uplink_mac}->eth_src,set_field:{other.uplink_mac}->eth_dst"
        return Way(
            tunnel=(),
            put_on=f"{path},encap(ethernet),{ends}",
            take_off=((f"dl_type=0x894f,nsh_spi={segment.id}", "decap(),decap()"),),
        )
    if wire not in TUNNELS:
        raise SetupError(f"ovs: {wire}: it has no such tunnel")
    tunnel = (*TUNNELS[wire], f'options:remote_ip="{other.underlay}"')
    if wire == "mpls-gre":
        return Way(
            tunnel=tunnel,
            put_on=f"encap(mpls),set_mpls_label:{segment.id},set_mpls_ttl:64",
            take_off=((f"mpls,mpls_label={segment.id}", "decap(),decap(packet_type(ns=0,type=0))"),),
        )
    key = f"set_field:{segment.id}->tun_id"
    if wire == "nsh-gpe":
        return Way(
            tunnel=tunnel,
            put_on=f"{path},{key}",
            take_off=((f"packet_type=(1,0x894f),nsh_spi={segment.id},tun_id={segment.id}", "decap()"),),
        )
    return Way(tunnel=tunnel, put_on=key, match=f"tun_id={segment.id}")


def _tagged(site: Site) -> Way:
    segment = site.segment
    if segment.id is None:
        return Way(tunnel=(), put_on="")
    tag = f"push_vlan:0x8100,set_field:{0x1000 | segment.id}->vlan_vid"
    if segment.service_vlan is None:
        return Way(tunnel=(), put_on=tag, take_off=((f"dl_vlan={segment.id}", "pop_vlan"),))
    outer = segment.service_vlan
    tag += f",push_vlan:0x88a8,set_field:{0x1000 | outer}->vlan_vid"
    # One flow cannot take two tags off: it knows only that there is one.
    return Way(tunnel=(), put_on=tag, take_off=tuple((f"dl_vlan={vid}", "pop_vlan") for vid in (outer, segment.id)))
