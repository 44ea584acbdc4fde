"""What the agent knows of a port that it configures, and as whom it speaks to it. Pure."""

from __future__ import annotations

import enum
import hashlib
import ipaddress
from collections.abc import Collection, Mapping

import msgspec

from headrace.agent.dhcp_option import Encoded, encode_all
from headrace.model import Network, Port, Subnet
from headrace.model.offer import Lease, Offer, Surroundings
from headrace.stages.view import Device, View

NOBODY4 = ipaddress.IPv4Address("0.0.0.0")
NOBODY6 = ipaddress.IPv6Address("::")

SERVER4 = ipaddress.IPv4Address("169.254.169.254")
"""Who we are to clients of a subnet without a gateway: the address where clouds have their services."""


class Silence(enum.Enum):
    """Why a question gets no answer."""

    MALFORMED = "the message cannot be read"
    FOREIGN = "it is asked for another hardware address"
    RELAYED = "it came through a relay"
    OTHER_SERVER = "another server is meant"
    NOTHING = "nothing is to be said to it"
    UNSERVED = "the port is not configured in this way"
    LIMITED = "the port asks too often"
    UNKNOWN = "no port of this host is behind its index and device"
    UNSENT = "the device did not take the answer"


class Unanswered(Exception):
    """A question gets no answer."""

    def __init__(self, silence: Silence) -> None:
        super().__init__(silence.value)
        self.silence = silence


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """A port that the agent configures.

    ``links4``: the IPv4 subnets of its network, all on one link. ``server``: the MAC that answers
    come from. ``lease``: seconds. ``options``: the port's own, by IP version.
    """

    port: Port
    network: Network
    offer: Offer
    server: str
    lease: int
    device: str = ""
    ifindex: int = 0
    links4: tuple[Subnet, ...] = ()
    options: Mapping[int, tuple[Encoded, ...]] = {}

    @property
    def link_local(self) -> ipaddress.IPv6Address:
        """The server's link-local address, which is the router's too (RFC 4291 appendix A)."""
        mac = bytes.fromhex(self.server.replace(":", ""))
        return ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:])

    def server_of(self, lease: Lease) -> ipaddress.IPv4Address:
        """Who we are to clients of a subnet: its gateway, as with ML2/OVN, or else SERVER4."""
        gateway = lease.subnet.gateway
        return ipaddress.IPv4Address(gateway) if gateway else SERVER4


def server_mac(network: str, taken: Collection[str]) -> str:
    """A MAC for the servers of a network: locally administered, the same on every host, and no port's."""
    for attempt in range(len(taken) + 1):
        digest = hashlib.blake2b(f"{network} {attempt}".encode(), digest_size=3).digest()
        mac = (b"\x0a\x48\x72" + digest).hex(":")
        if mac not in taken:
            return mac
    raise AssertionError("one more attempt than MACs that are taken finds a free one")


def clients_of(view: View, lease: int) -> tuple[dict[int, Client], list[str]]:
    """The ports of a host to be configured, by index; and what is wrong with their options.

    A client that the view's memo knows is the same object again.
    """
    served = view.surroundings.subnets.keys() & view.networks.keys()
    around = {name: view.surroundings.of_network(name) for name in served}
    taken: dict[str, set[str]] = {name: set() for name in served}
    for port in view.ports:
        if port.network in taken:
            taken[port.network].update([port.mac, *(pair.mac for pair in port.address_pairs if pair.mac)])
    servers = {name: server_mac(name, macs) for name, macs in taken.items()}
    clients, faults = {}, []
    for port in view.local_ports:
        device = view.device_of(port)
        if port.network not in served or device is None or not port.admin_up:
            continue
        given = (port, view.networks[port.network], device, around[port.network], servers[port.network], lease)
        client, wrong = view.memo.of(("client", port.id), make, *given)
        faults += wrong
        if client:
            clients[view.index.port(port.attachment)] = client
    return clients, faults


def make(
    port: Port, network: Network, device: Device, around: Surroundings, server: str, lease: int
) -> tuple[Client | None, list[str]]:
    """One client, if it is offered anything, and its faults."""
    offer = around.offer(port)
    if not offer:
        return None, []
    options, faults = {}, []
    for version in (4, 6):
        options[version], wrong = encode_all(port.dhcp_options, version)
        faults += [f"{port.label()}: {fault}" for fault in wrong]
    client = Client(
        port=port,
        network=network,
        offer=offer,
        server=server,
        lease=lease,
        device=device.name,
        ifindex=device.ifindex,
        links4=around.links4.get(port.network, ()),
        options=options,
    )
    return client, faults
