"""Why a port cannot be as desired on this host, in words that name the cure. Pure."""

from __future__ import annotations

from collections.abc import Collection

from headrace.agent.config import AgentConfig
from headrace.model import Port
from headrace.stages import View


def trouble(port: Port, view: View, config: AgentConfig) -> str | None:
    """What is wrong with the port itself, whatever its device; None: nothing."""
    if port.network not in view.state.networks:
        return f"network {port.network} is not known here"
    if port.network in view.clashes:
        return f"network {port.network} has the segment of network {view.clashes[port.network]}; give it another"
    if port.network in view.unwired:
        return unwired(port.network, view.unwired[port.network], config)
    if port.id in view.misfits:
        return view.misfits[port.id]
    if port.parent is None and port.device_name in outward(config):
        return f"device {port.device_name} leads out of this host; give the port one of its own"
    return None


def unwired(network: str, physical: str, config: AgentConfig) -> str:
    """A network that no device here leads to."""
    device = config.physical_networks.get(physical)
    if device is not None:
        return f"network {network} is on physical network {physical}, whose device {device} is not there"
    return (
        f"network {network} is on physical network {physical}, which no device of this host leads to;"
        f' set physical_networks = {{{physical} = "DEVICE"}} in agent.toml, or bind the port elsewhere'
    )


def outward(config: AgentConfig) -> Collection[str]:
    """Devices to the underlay and to physical networks, each once: hr_from_uplink runs there."""
    return dict.fromkeys((*config.uplinks, *config.physical_networks.values()))
