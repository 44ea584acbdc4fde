"""admit: which device is which port, and what the datapath must know of a port and of the host."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from headrace import abi
from headrace.model import Network, Port
from headrace.model.offer import Surroundings
from headrace.stages.acl import policy_of
from headrace.stages.memo import Entry, Table
from headrace.stages.view import Device, Parts, View, address_octets, mac_octets


class Local(NamedTuple):
    """All that a local port's entry is made of."""

    port: Port
    number: int
    network: Network
    segment: int
    device: Device | None
    policy: int
    stateful: bool
    around: Surroundings


def compile_parts(view: View) -> Parts:
    """hr_configs, hr_devices, hr_ports, hr_subports."""
    vteps = {vtep.version: address_octets(vtep) for vtep in reversed(view.vteps)}
    config = abi.Config(
        vtep4=vteps.get(4, bytes(16)),
        vtep6=vteps.get(6, bytes(16)),
        port=view.tunnel_port,
        flags=(abi.ConfigFlag.CLAMP if view.mss_clamp else 0) | (abi.ConfigFlag.ANY_VTEP if view.any_vtep else 0),
        quota=view.quota,
        wires=functools.reduce(operator.or_, (1 << (one >> abi.WHERE_SHIFT) for one in view.segments.values()), 0),
        seam=view.seam,
    )
    around = {name: view.surroundings.of_network(name) for name in view.networks}
    ports = {port.id: local(view, port, around[port.network]) for port in view.local_ports}
    return {
        "hr_configs": {"": {abi.U32(value=0): config}},
        "hr_ports": {"": view.memo.spread("hr_ports", ports, compile_port)},
        "hr_devices": {"": view.memo.spread("hr_devices", ports, compile_device)},
        "hr_subports": {"": compile_subports(ports)},
    }


def local(view: View, port: Port, around: Surroundings) -> Local:
    """A local port with what it refers to. Without a device it is known, and down."""
    known = view.state.security_groups
    return Local(
        port=port,
        number=view.index.port(port.attachment),
        network=view.networks[port.network],
        segment=view.segments[port.network],
        device=view.device_of(port),
        policy=policy_of(view, port),
        stateful=all(known[group].stateful for group in port.security_groups if group in known),
        around=around,
    )


def compile_port(own: Local) -> Iterator[Entry]:
    """The port by its index."""
    port, device, flags = own.port, own.device, 0
    if port.admin_up and device:
        flags |= abi.PortFlag.UP
    if port.port_security:
        flags |= abi.PortFlag.SECURITY
    if port.port_security and own.stateful:
        flags |= abi.PortFlag.STATEFUL
    if port.is_router:
        flags |= abi.PortFlag.ROUTER
    if device and device.peer:
        flags |= abi.PortFlag.PEER
    if device and device.xdp:
        flags |= abi.PortFlag.XDP
    offer = own.around.offer(port)
    if offer.dhcp4:
        flags |= abi.PortFlag.DHCP4
    if offer.dhcp6:
        flags |= abi.PortFlag.DHCP6
    if offer.advert:
        flags |= abi.PortFlag.RA
    yield (
        abi.U32(value=own.number),
        abi.Port(
            policy=own.policy,
            flags=flags,
            ifindex=device.ifindex if device else 0,
            segment=own.segment,
            mtu=own.network.mtu,
            mac=mac_octets(port.mac),
            vlan=port.vlan or 0,
        ),
    )


def compile_device(own: Local) -> Iterator[Entry]:
    """The device by which the port's packets enter; a sub-port has none of its own."""
    if own.device and own.port.parent is None:
        yield abi.U32(value=own.device.ifindex), abi.Device(port=own.number)


def compile_subports(ports: Mapping[str, Local]) -> Table:
    """Tags on a trunk's device; of sub-ports that claim the same one, the first by id has it."""
    table: Table = {}
    for own in ports.values():
        parent = ports.get(own.port.parent or "")
        if parent and parent.port.parent is None:
            key = abi.SubportKey(port=parent.number, vid=own.port.vlan or 0)
            table.setdefault(key, abi.Subport(port=own.number))
    return table
