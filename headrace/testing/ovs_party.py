"""Open vSwitch's userspace datapath as a party (party.py): every wire but MPLS over UDP, by OpenFlow.

Two bridges: the underlay's with the tunnel endpoints, and the workload's with one tunnel port for each wire and IP
version. What is Ethernet alone goes from one to the other by a patch. What each flow means: ovs-actions(7).
"""

from __future__ import annotations

from collections.abc import Iterable

from headrace.model import Segment
from headrace.testing.cloud import Workload
from headrace.testing.ovs import Ovs
from headrace.testing.party import MTU, OFFLOADS, UPLINK, Meeting, Party
from headrace.testing.scene import Scene
from headrace.testing.topology import run
from headrace.testing.world import port

NUMBER = 200
MAC = "02:00:5e:00:02:c8"
"""Of the bridge that holds the tunnel endpoints: a veth's own would have the namespace's stack listen too."""
NIC, FAR, PATCH = 1, 1, 2
"""OpenFlow ports: the underlay's veth, the workload's veth, and on either bridge what leads to the other."""
METADATA = "md_type=2"
VLAN_PRESENT = 0x1000
"""Of OpenFlow's VLAN_VID, where there is a tag."""
INDEX = 255
"""A new service path's first service index."""

TUNNELS: dict[str, tuple[int, tuple[str, ...]]] = {
    "vxlan": (0, ("type=vxlan", "options:key=flow")),
    "geneve": (1, ("type=geneve", "options:key=flow")),
    "gre": (2, ("type=gre", "options:key=flow")),
    "mpls-gre": (3, ("type=gre", "options:packet_type=legacy_l3")),
    "nsh-gpe": (
        4,
        (
            "type=vxlan",
            "options:key=flow",
            "options:exts=gpe",
            "options:packet_type=ptap",
            "options:dst_port=4790",
        ),
    ),
}
"""By wire: a number of its tunnel port within an IP version's ten, and what that is made of."""


class OvsParty(Party):
    """Its switch is ``switch``."""

    def __init__(self, meeting: Meeting) -> None:
        super().__init__(meeting, "ovs", NUMBER)
        self._metadata = METADATA
        self._option = ""
        topology = meeting.topology
        self.far = topology.host("far")
        meeting.attach(self.namespace, "nic")
        workload = port("b", "", 2)
        pair = f"name eth0 address {workload.mac} mtu {MTU} netns {self.far.name} type veth"
        run(["ip", "link", "add", *pair.split(), *f"peer name far mtu {MTU} netns {self.namespace.name}".split()])
        self.far.run(OFFLOADS.format("eth0"))
        addresses = [f"{workload.addresses[0]}/24", f"{workload.addresses[1]}/64"]
        lines = [f"address add {address} dev eth0" for address in addresses]
        run(["ip", "-n", self.far.name, "-batch", "-"], stdin="\n".join([*lines, "link set eth0 up"]))
        run(["ip", "-n", self.namespace.name, "link", "set", "far", "up"])
        self.switch = Ovs(self.namespace, topology)
        self._build()

    def _build(self) -> None:
        bridges = ("phy", f"other-config:hwaddr={MAC}", "nic"), ("int", "fail-mode=secure", "far")
        words = ["set", "Open_vSwitch", ".", "other_config:vlan-limit=2"]
        for bridge, setting, device in bridges:
            other = "phy" if bridge == "int" else "int"
            words += ["--", "add-br", bridge, "--", "set", "bridge", bridge, "datapath_type=netdev", setting]
            words += _port(bridge, device, 1, ())
            words += _port(bridge, f"to-{other}", PATCH, ("type=patch", f"options:peer=to-{bridge}"))
        remotes = {4: self.meeting.underlay(1)[0], 6: self.meeting.underlay(1)[1]}
        for version, remote in remotes.items():
            for wire, (number, options) in TUNNELS.items():
                address = f'options:remote_ip="{remote.partition("/")[0]}"'
                words += _port("int", f"{wire}{version}", version * 10 + number, (*options, address))
        self.switch.configure(*words)
        lines = [f"address add {self.vteps[4]}/24 dev phy", f"address add {self.vteps[6]}/64 dev phy nodad"]
        run(["ip", "-n", self.namespace.name, "-batch", "-"], stdin="\n".join([*lines, "link set phy up"]))
        self.namespace.sysctl("net.ipv4.conf.all.arp_ignore", 1)
        for remote in remotes.values():  # else the first packet to each is lost
            self.switch.ask("tnl/neigh/set", "phy", remote.partition("/")[0], self.meeting.h1.mac(UPLINK))

    def meet(
        self,
        scene: Scene,
        segment: Segment,
        version: int,
        *,
        spare: int = 0,
        metadata: str = METADATA,
        option: str = "",
    ) -> Workload:
        """As Party has it. ``metadata``: of NSH, as ``encap`` in ovs-actions(7) has it.

        ``option``: one of Geneve's that every packet gets, as ``add-tlv-map`` in ovs-ofctl(8) has it.
        """
        self._metadata, self._option = metadata, option
        return super().meet(scene, segment, version, spare=spare)

    def carry(self, segment: Segment, version: int, mtu: int) -> None:
        """Have the flows of this segment, and no others."""
        run(["ip", "-n", self.far.name, "link", "set", "eth0", "mtu", str(mtu)])
        if segment.wire == "physical":
            workload, underlay = self._tagged(segment)
        elif segment.wire == "nsh-ethernet":
            workload, underlay = self._bare(segment)
        else:
            workload, underlay = self._tunnelled(segment, version), ()
        self.switch.flows("int", [])
        self.switch.options("int", [f"{self._option}->tun_metadata0"] if self._option else [])
        self.switch.flows("int", ["priority=0,actions=drop", *workload])
        self.switch.flows("phy", ["priority=0,actions=NORMAL", *underlay])

    def _tunnelled(self, segment: Segment, version: int) -> Iterable[str]:
        tunnel = version * 10 + TUNNELS[segment.wire][0]
        put_on, match, take_off = f"set_field:{segment.id}->tun_id", f"tun_id={segment.id}", ""
        if self._option:
            put_on += ",set_field:0xabcd->tun_metadata0"
        elif segment.wire == "mpls-gre":
            put_on = f"encap(mpls),set_mpls_label:{segment.id},set_mpls_ttl:64"
            match, take_off = f"mpls,mpls_label={segment.id}", "decap(),decap(packet_type(ns=0,type=0)),"
        elif segment.wire == "nsh-gpe":
            put_on = f"{self._path(segment)},{put_on}"
            match, take_off = f"packet_type=(1,0x894f),nsh_spi={segment.id},{match}", "decap(),"
        return [
            f"in_port={FAR},actions={put_on},output:{tunnel}",
            f"in_port={tunnel},{match},actions={take_off}output:{FAR}",
        ]

    def _path(self, segment: Segment) -> str:
        return f"encap(nsh({self._metadata})),set_field:{segment.id}->nsh_spi,set_field:{INDEX}->nsh_si"

    def _bare(self, segment: Segment) -> tuple[Iterable[str], Iterable[str]]:
        ends = f"set_field:{MAC}->eth_src,set_field:{self.meeting.h1.mac(UPLINK)}->eth_dst"
        return [
            f"in_port={FAR},actions={self._path(segment)},encap(ethernet),{ends},output:{PATCH}",
            f"in_port={PATCH},dl_type=0x894f,nsh_spi={segment.id},actions=decap(),decap(),output:{FAR}",
        ], _by_patch("dl_type=0x894f")

    def _tagged(self, segment: Segment) -> tuple[Iterable[str], Iterable[str]]:
        if segment.id is None:
            return [f"in_port={FAR},actions=output:{PATCH}", f"in_port={PATCH},actions=output:{FAR}"], ()
        put_on, first = f"push_vlan:0x8100,{_vid(segment.id)}", segment.id
        within: list[str] = []
        if segment.service_vlan is not None:
            first = segment.service_vlan
            put_on += f",push_vlan:0x88a8,{_vid(first)}"
            within = [f"table=1,dl_vlan={segment.id},actions=pop_vlan,output:{FAR}"]
        then = "goto_table:1" if within else f"output:{FAR}"
        return [
            f"in_port={FAR},actions={put_on},output:{PATCH}",
            f"in_port={PATCH},dl_vlan={first},actions=pop_vlan,{then}",
            *within,
        ], _by_patch(f"dl_vlan={first}")


def _vid(number: int) -> str:
    return f"set_field:{VLAN_PRESENT | number}->vlan_vid"


def _by_patch(match: str) -> list[str]:
    return [
        f"priority=10,in_port={PATCH},actions=output:{NIC}",
        f"priority=10,in_port={NIC},{match},actions=output:{PATCH}",
    ]


def _port(bridge: str, name: str, number: int, options: Iterable[str]) -> list[str]:
    words = ["--", "add-port", bridge, name, "--", "set", "interface", name, f"ofport_request={number}"]
    return [*words, *options]
