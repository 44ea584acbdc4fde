"""The kernel's own bridge port for each wire, or why it has none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.process import CommandError, SetupError, run
from bench.wiring import WORKLOAD_MTU, Host, ip

if TYPE_CHECKING:
    from bench.rules import Site

VXLAN_PORT, GENEVE_PORT = 4789, 6081
FAR = "far"
"""The device that leads to the other host, where it is not the uplink itself."""

OUTER = {"vxlan": f"udp dport {VXLAN_PORT}", "geneve": f"udp dport {GENEVE_PORT}", "gre": "meta l4proto gre"}
"""Which packets are the tunnel's, in nftables' words."""

NONE = {
    "mpls": "no bridge port of the kernel's carries Ethernet in MPLS",
    "nsh": "no bridge port of the kernel's carries NSH",
}
"""By network type."""


def far_device(host: Host, other: Host, site: Site) -> str:
    """Make the device to put on the bridge beside the workload's; its name.

    Raises ``SetupError`` where this kernel has no such device.
    """
    segment = site.segment
    if segment.service_vlan is not None:
        raise SetupError("linux: qinq: a bridge knows one VLAN tag of a frame, not two")
    if segment.is_physical:
        return host.uplink
    if segment.type in NONE:
        raise SetupError(f"linux: {site.wire}: {NONE[segment.type]}")
    try:
        ip(host, f"link add {FAR} mtu {WORKLOAD_MTU} type {kind(host, other, site)}")
    except CommandError as error:
        raise SetupError(f"linux: {site.wire}, IPv{site.underlay}: this kernel has no such device: {error}") from error
    return FAR


def kind(host: Host, other: Host, site: Site) -> str:
    """Type and settings of the device (ip-link(8)).

    ``udp6zerocsum...``: as ours, no UDP checksum of VXLAN over IPv6. ``encaplimit none``: else ip6_gre adds an option.
    """
    segment, six = site.segment, site.underlay == 6
    if segment.type == "vxlan":
        zero = " udp6zerocsumtx udp6zerocsumrx" if six else ""
        return f"vxlan id {segment.id} local {host.underlay} dev {host.uplink} dstport {VXLAN_PORT} nolearning{zero}"
    if segment.type == "geneve":
        return f"geneve id {segment.id} remote {other.underlay} dstport {GENEVE_PORT}"
    if segment.type != "gre":
        raise SetupError(f"linux: {site.wire}: it has no such tunnel")
    ends = f"local {host.underlay} remote {other.underlay}"
    return f"ip6gretap key {segment.id} {ends} encaplimit none" if six else f"gretap key {segment.id} {ends}"


def bridge(host: Host, other: Host, site: Site) -> None:
    """The port and the device to the other host on one bridge, with static forwarding entries."""
    segment, name = site.segment, "bench"
    far = far_device(host, other, site)
    tagged = segment.type == "vlan"
    filtering = " vlan_filtering 1 vlan_default_pvid 0" if tagged else ""
    try:
        ip(
            host,
            f"link add {name} mtu {WORKLOAD_MTU} type bridge stp_state 0 ageing_time 0 mcast_snooping 0{filtering}",
        )
    except CommandError as error:
        raise SetupError(f"linux: {site.wire}: this kernel's bridge filters no VLANs: {error}") from error
    for device in (far, host.port):
        ip(host, f"link set {device} master {name} up")
        run("bridge", "-n", host.namespace, "link", "set", "dev", device, "learning", "off")
    ip(host, f"link set {name} up")
    vlan = ["vlan", str(segment.id)] if tagged else []
    if tagged:
        for device, untagged in ((far, []), (host.port, ["pvid", "untagged"])):
            run("bridge", "-n", host.namespace, "vlan", "add", "dev", device, "vid", str(segment.id), *untagged)
    fdb = ["bridge", "-n", host.namespace, "fdb", "replace"]
    run(*fdb, host.workload.mac, "dev", host.port, "master", "static", *vlan)
    run(*fdb, other.workload.mac, "dev", far, "master", "static", *vlan)
    if segment.type == "vxlan":
        run(*fdb, other.workload.mac, "dev", far, "dst", other.underlay, "self")
