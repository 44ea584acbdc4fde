"""Why a packet does not arrive, in words, and what would let it pass."""

from __future__ import annotations

import ipaddress

from headrace.abi import Reason
from headrace.datapath.decision import RULE_ESTABLISHED, Key
from headrace.datapath.journey import Hop, Journey
from headrace.datapath.packet import ICMP, ICMPV6, SCTP, TCP, UDP, carries_ports, is_icmp, mac
from headrace.model import Port, Rule, State

PROTOCOLS = {TCP: "tcp", UDP: "udp", SCTP: "sctp", ICMP: "icmp", ICMPV6: "ipv6-icmp"}
"""The names that OpenStack's client takes."""


def advice(state: State, journey: Journey) -> list[str]:
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
            line = cure(state, hop, state.ports.get(port), reason)
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


def cure(state: State, hop: Hop, port: Port | None, reason: Reason) -> str | None:
    key = hop.decision.key
    if port is not None and key is not None and reason in {Reason.ACL_FROM_PORT, Reason.ACL_TO_PORT}:
        return missing_rule(state, port, key, ingress=reason == Reason.ACL_TO_PORT)
    if reason == Reason.TCP_INVALID:
        return "a SYN+ACK answers a SYN: trace the SYN, for answers to what is allowed pass by themselves"
    if reason == Reason.ICMP_UNRELATED:
        return "an ICMP error passes with the connection that it quotes; trace that connection's first packet"
    if reason == Reason.PORT_DOWN:
        down = port if port is not None and not port.admin_up else receiver(state, hop)
        return f"{down.label()} is down; enable it with: openstack port set --enable {down.id}" if down else None
    if port is not None and reason in {Reason.SPOOFED_ADDRESS, Reason.SPOOFED_MAC} and key_source(hop):
        pair = f"ip-address={key_source(hop)},mac-address={mac(hop.arrival.frame[6:12])}"
        return f"allow {port.label()} to send from there with: openstack port set --allowed-address {pair} {port.id}"
    if reason == Reason.UNKNOWN_MAC:
        found = receiver(state, hop)
        if found is not None and found.host is None:
            return f"{found.label()} has that MAC, but is not bound to a host"
    return None


def missing_rule(state: State, port: Port, key: Key, *, ingress: bool) -> str:
    """``no ingress rule of security group web (id) allows tcp 80 from 10.0.0.5; add one with: ...``."""
    direction = "ingress" if ingress else "egress"
    remote = key.source if ingress else key.destination
    what = f"{service(key)} {'from' if ingress else 'to'} {remote}"
    groups = [state.security_groups[group] for group in port.security_groups if group in state.security_groups]
    if not groups:
        return (
            f"{port.label()} carries no security group, so nothing allows {what}; "
            f"give it one with: openstack port set --security-group GROUP {port.id}"
        )
    words = ", ".join(f"{group.name} ({group.id})" if group.name else group.id for group in groups)
    noun = "security group" if len(groups) == 1 else "security groups"
    command = ["openstack security group rule create", f"--{direction}", f"--ethertype IPv{key.source.version}"]
    command += [*service_options(key), f"--remote-ip {ipaddress.ip_network(remote)}", groups[0].id]
    return f"no {direction} rule of {noun} {words} allows {what}; add one with: {' '.join(command)}"


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
    return next((item.id for item in state.networks.values() if item.segment.id == hop.arrival.vni), None)


def key_source(hop: Hop) -> str | None:
    """The source address of an IP packet."""
    frame = hop.arrival.frame
    if frame[12:14] == b"\x08\x00":
        return str(ipaddress.IPv4Address(frame[26:30]))
    if frame[12:14] == b"\x86\xdd":
        return str(ipaddress.IPv6Address(frame[22:38]))
    return None
