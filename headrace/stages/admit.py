"""admit: which device is which port, and what the datapath must know of a port and of the host."""

from __future__ import annotations

from headrace import abi
from headrace.model import Port
from headrace.stages.acl import policy_of
from headrace.stages.view import Tables, View, address_octets, mac_octets, segment_of


def compile_tables(view: View) -> Tables:
    """hr_configs, hr_devices, hr_ports."""
    vteps = {vtep.version: address_octets(vtep) for vtep in reversed(view.vteps)}
    config = abi.Config(
        vtep4=vteps.get(4, bytes(16)), vtep6=vteps.get(6, bytes(16)), port=view.tunnel_port, quota=view.quota
    )
    tables: Tables = {"hr_configs": {abi.U32(value=0): config}, "hr_devices": {}, "hr_ports": {}}
    for port in view.local_ports:
        index = view.index.port(port.id)
        tables["hr_ports"][abi.U32(value=index)] = compile_port(view, port)
        device = view.devices.get(port.id)
        if device:
            tables["hr_devices"][abi.U32(value=device.ifindex)] = abi.Device(port=index)
    return tables


def compile_port(view: View, port: Port) -> abi.Port:
    """One local port; without a device it is known, and down."""
    device = view.devices.get(port.id)
    known = view.state.security_groups
    groups = [known[group] for group in port.security_groups if group in known]
    flags = 0
    if port.admin_up and device:
        flags |= abi.PortFlag.UP
    if port.port_security:
        flags |= abi.PortFlag.SECURITY
    if port.port_security and all(group.stateful for group in groups):
        flags |= abi.PortFlag.STATEFUL
    if port.is_router:
        flags |= abi.PortFlag.ROUTER
    if device and device.peer:
        flags |= abi.PortFlag.PEER
    if device and device.xdp:
        flags |= abi.PortFlag.XDP
    offer = view.surroundings.offer(port)
    if offer.dhcp4:
        flags |= abi.PortFlag.DHCP4
    if offer.dhcp6:
        flags |= abi.PortFlag.DHCP6
    if offer.advert:
        flags |= abi.PortFlag.RA
    network = view.networks[port.network]
    return abi.Port(
        policy=policy_of(view, port),
        flags=flags,
        ifindex=device.ifindex if device else 0,
        segment=segment_of(network),
        mtu=network.mtu,
        mac=mac_octets(port.mac),
    )
