"""Why a packet does not arrive, in words, and what would let it pass.

What Neutron wrote is changed by OpenStack's client; anything else by the YAML that ``headrace apply`` takes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from headrace.abi import Reason
from headrace.datapath.decision import RULE_ESTABLISHED, Key
from headrace.datapath.journey import Hop, Journey
from headrace.datapath.packet import ICMP, ICMPV6, SCTP, TCP, UDP, carries_ports, is_icmp, mac
from headrace.datapath.wires import vlan
from headrace.model import Port, Rule, SecurityGroup, Segment, State

PROTOCOLS = {TCP: "tcp", UDP: "udp", SCTP: "sctp", ICMP: "icmp", ICMPV6: "ipv6-icmp"}
"""The names that OpenStack's client takes."""

NEUTRON = "neutron"
"""The writer of what Neutron has (headrace.neutron.translate.WRITER)."""

Writers = Mapping[tuple[str, str], str]
"""Who wrote an object, by type and id; nothing of what a file says."""


def advice(state: State, journey: Journey, writers: Writers) -> list[str]:
    """A line for each cause that something could be done about; nothing for a packet that arrives."""
    if journey.arrives:
        return []
    first, last = journey.hops[0], journey.hops[-1]
    if first.decision.rule_from == RULE_ESTABLISHED and last is not first:
        told = f"a reply of a connection that host {first.host} remembers"
        return [f"this is {told}; whether host {last.host} does too, only a trace of its first packet there can tell"]
    lines = []
    for hop in journey.hops:
        for port, reason in denials(hop):
            line = cure(state, hop, state.ports.get(port), reason, writers)
            if line is not None and line not in lines:
                lines.append(line)
    return lines


def denials(hop: Hop) -> list[tuple[str, Reason]]:
    """The ports that a hop did not let send or receive, and why."""
    decision = hop.decision
    found = [(refusal.port, refusal.reason) for refusal in decision.refused]
    if decision.dropped and decision.reason != Reason.FLOODED:
        found.append((decision.denied_by or hop.arrival.port or "", decision.reason))
    return found


def cure(state: State, hop: Hop, port: Port | None, reason: Reason, writers: Writers) -> str | None:
    key = hop.decision.key
    if port is not None and key is not None and reason in {Reason.ACL_FROM_PORT, Reason.ACL_TO_PORT}:
        return missing_rule(state, port, key, writers, ingress=reason == Reason.ACL_TO_PORT)
    if reason == Reason.TCP_INVALID:
        return "a SYN+ACK answers a SYN: trace the SYN, for answers to what is allowed pass by themselves"
    if reason == Reason.ICMP_UNRELATED:
        return "an ICMP error passes with the connection that it quotes; trace that connection's first packet"
    if reason == Reason.PORT_DOWN:
        down = port if port is not None and not port.admin_up else receiver(state, hop)
        if down is None:
            return None
        command = f"openstack port set --enable {down.id}"
        return f"{down.label()} is down; {how('enable it', down, writers, command, 'admin_up: true')}"
    if port is not None and reason in {Reason.SPOOFED_ADDRESS, Reason.SPOOFED_MAC} and key_source(hop):
        address, source = key_source(hop), mac(hop.arrival.frame[6:12])
        if by_neutron(port, writers):
            command = f"openstack port set --allowed-address ip-address={address},mac-address={source} {port.id}"
            return f"allow {port.label()} to send from there with: {command}"
        entry = f'- {{address: "{address}", mac: "{source}"}}'
        return f"allow {port.label()} to send from there: add to its address_pairs in YAML: {entry}"
    if reason == Reason.UNKNOWN_MAC:
        found = receiver(state, hop)
        if found is not None and found.host is None:
            return f"{found.label()} has that MAC, but is not bound to a host"
    return None


def by_neutron(item: Port | SecurityGroup, writers: Writers) -> bool:
    """Whether Neutron has the last word on an object."""
    return writers.get((item.type, item.id)) == NEUTRON


def how(what: str, item: Port | SecurityGroup, writers: Writers, command: str, yaml: str) -> str:
    """``enable it with: openstack ...``, or ``enable it in YAML: ...``."""
    return f"{what} with: {command}" if by_neutron(item, writers) else f"{what} in YAML: {yaml}"


def missing_rule(state: State, port: Port, key: Key, writers: Writers, *, ingress: bool) -> str:
    """``no ingress rule of security group web (id) allows tcp 80 from 10.0.0.5; add one ...``."""
    direction = "ingress" if ingress else "egress"
    remote = key.source if ingress else key.destination
    what = f"{service(key)} {'from' if ingress else 'to'} {remote}"
    if not port.security_groups:
        give = how(
            "give it one",
            port,
            writers,
            f"openstack port set --security-group GROUP {port.id}",
            "security_groups: [GROUP]",
        )
        return f"{port.label()} carries no security group, so nothing allows {what}; {give}"
    groups = [state.security_groups[group] for group in port.security_groups if group in state.security_groups]
    unknown = [group for group in port.security_groups if group not in state.security_groups]
    named = f"security group{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}"
    if not groups:
        source = "Neutron has not told of" if by_neutron(port, writers) else "the state does not have"
        look = f"look with: openstack security group show {unknown[0]}"
        add = f"add to security_groups in YAML: - {{id: {unknown[0]}, rules: [{as_yaml(key, direction)}]}}"
        cure = look if by_neutron(port, writers) else add
        return f"{port.label()} carries {named}, which {source}, so nothing allows {what}; {cure}"
    words = ", ".join(f"{group.name} ({group.id})" if group.name else group.id for group in groups)
    noun = "security group" if len(groups) == 1 else "security groups"
    lacking = f" ({named} that {port.label()} carries too, the state does not have)" if unknown else ""
    if by_neutron(groups[0], writers):
        command = ["openstack security group rule create", f"--{direction}", f"--ethertype IPv{key.source.version}"]
        command += [*service_options(key), f"--remote-ip {ipaddress.ip_network(remote)}", groups[0].id]
        add = f"add one with: {' '.join(command)}"
    else:
        add = f"add to the rules of {groups[0].id} in YAML: - {as_yaml(key, direction)}"
    return f"no {direction} rule of {noun} {words} allows {what}{lacking}; {add}"


def as_yaml(key: Key, direction: str) -> str:
    """The rule that allows a packet, as ``headrace apply`` takes it; its id is the operator's to choose."""
    parts = ["id: NEW", f"direction: {direction}", f"ethertype: IPv{key.source.version}", f"protocol: {key.protocol}"]
    if is_icmp(key.source.version, key.protocol):
        parts += [f"port_min: {key.dport >> 8}", f"port_max: {key.dport & 0xFF}"]
    elif carries_ports(key.source.version, key.protocol):
        parts += [f"port_min: {key.dport}", f"port_max: {key.dport}"]
    remote = key.source if direction == "ingress" else key.destination
    return f'{{{", ".join(parts)}, remote_cidr: "{ipaddress.ip_network(remote)}"}}'


def service(key: Key) -> str:
    """``tcp 80``, ``icmp 8/0``, ``protocol 47``."""
    if is_icmp(key.source.version, key.protocol):
        return f"{PROTOCOLS[key.protocol]} {key.dport >> 8}/{key.dport & 0xFF}"
    if carries_ports(key.source.version, key.protocol):
        return f"{PROTOCOLS[key.protocol]} {key.dport}"
    return f"protocol {key.protocol}"


def service_options(key: Key) -> list[str]:
    if is_icmp(key.source.version, key.protocol):
        return [
            f"--protocol {PROTOCOLS[key.protocol]}",
            f"--icmp-type {key.dport >> 8}",
            f"--icmp-code {key.dport & 0xFF}",
        ]
    if carries_ports(key.source.version, key.protocol):
        return [f"--protocol {PROTOCOLS[key.protocol]}", f"--dst-port {key.dport}"]
    return [f"--protocol {key.protocol}"]


def rule_words(state: State, rule: str | None) -> str:
    """``rule http of web: ingress tcp 80 from 0.0.0.0/0``; a name like OPEN as it is."""
    if rule is None:
        return ""
    for group in state.security_groups.values():
        for candidate in group.rules:
            if candidate.id == rule:
                return f"rule {rule} of {group.name or group.id}: {rule_text(candidate)}"
    return rule


def rule_text(rule: Rule) -> str:
    """``ingress IPv4 tcp 80 from group web``."""
    protocol = "any protocol" if rule.protocol is None else PROTOCOLS.get(rule.protocol, f"protocol {rule.protocol}")
    low, high = rule.port_min, rule.port_max
    if low is None and high is None:
        span = ""
    elif rule.is_icmp:
        span = f" {low}" if high is None else f" {low}/{high}"
    else:
        span = f" {low}" if low == high else f" {low or 0}-{65535 if high is None else high}"
    remote = "anywhere"
    if rule.remote_cidr is not None:
        remote = rule.remote_cidr
    if rule.remote_group is not None:
        remote = f"group {rule.remote_group}"
    if rule.remote_address_group is not None:
        remote = f"address group {rule.remote_address_group}"
    return (
        f"{rule.direction} {rule.ethertype} {protocol}{span} {'from' if rule.direction == 'ingress' else 'to'} {remote}"
    )


def receiver(state: State, hop: Hop) -> Port | None:
    """The port that has the frame's destination MAC."""
    network = sender_network(state, hop)
    destination = mac(hop.arrival.frame[0:6])
    return next((port for port in state.ports.values() if port.network == network and port.mac == destination), None)


def sender_network(state: State, hop: Hop) -> str | None:
    if hop.arrival.port is not None:
        return state.ports[hop.arrival.port].network
    segment, physical = hop.arrival.segment, hop.arrival.physical
    if segment is None and physical is not None and (tags := vlan.take(hop.arrival.frame)) is not None:
        segment = Segment.on("physical", tags[1], physical, tags[0])
    place = segment.place if segment is not None else None
    return next((item.id for item in state.networks.values() if item.segment.place == place), None)


def key_source(hop: Hop) -> str | None:
    """The source address of an IP packet."""
    frame = hop.arrival.frame
    if frame[12:14] == b"\x08\x00":
        return str(ipaddress.IPv4Address(frame[26:30]))
    if frame[12:14] == b"\x86\xdd":
        return str(ipaddress.IPv6Address(frame[22:38]))
    return None
