"""Desired state: what should be, never what changed. No I/O."""

from headrace.model.object import (
    TYPES,
    AddressGroup,
    AddressPair,
    DhcpOption,
    Host,
    HostRoute,
    Network,
    Object,
    Port,
    Rule,
    SecurityGroup,
    Subnet,
)
from headrace.model.record import HostStatus, PortStatus, Record, WireStatus
from headrace.model.segment import Segment
from headrace.model.state import State, decode, plural

__all__ = [
    "TYPES",
    "AddressGroup",
    "AddressPair",
    "DhcpOption",
    "Host",
    "HostRoute",
    "HostStatus",
    "Network",
    "Object",
    "Port",
    "PortStatus",
    "Record",
    "Rule",
    "SecurityGroup",
    "Segment",
    "State",
    "Subnet",
    "WireStatus",
    "decode",
    "plural",
]
