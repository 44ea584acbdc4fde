"""``headrace trace``: what would happen to a packet, stage by stage.

By the oracle, from desired state alone, and without root; with root on a host that the packet passes, also by the real
programs on that host's tables, and from what it remembers.
"""

from __future__ import annotations

import ipaddress
import sys
from typing import IO, TYPE_CHECKING, Any

import click

from headrace.cli.local import Local, on_this_host
from headrace.cli.output import output_option, show_json
from headrace.cli.reach import Reach, reaching

if TYPE_CHECKING:
    from headrace.cli.trace_live import Answer
    from headrace.controller.client import Client
    from headrace.datapath.journey import Hop, Journey
    from headrace.model import Segment, State

DROPPED = 2
"""Exit status of a packet that nobody gets."""
DIFFERENT = 3
"""Exit status where the oracle and the programs differ."""
MADE_UP = ipaddress.IPv4Address("198.18.0.0"), ipaddress.IPv6Address("2001:2::")
"""Where tunnel endpoints are made up from: addresses for benchmarks (RFC 2544, RFC 5180), which nobody has."""


@click.command()
@click.argument("packet", required=False, nargs=-1)
@click.option("--port", "name", required=True, help="The port that sends it: id, name, or how its id begins.")
@click.option("--hex", "octets", metavar="FRAME", help="The whole Ethernet frame instead of PACKET.")
@click.option("--from-mac", help="Source MAC.  [default: the port's]")
@click.option("--to-mac", help="Destination MAC.  [default: as a workload would find it]")
@click.option("--gso-size", type=click.IntRange(0, 65535), default=0, help="Octets a segment, if it is a super-packet.")
@click.option("--state", "file", type=click.File("rb"), help="Desired state from YAML, not from the controller.")
@output_option
@on_this_host
@reaching
def trace(
    local: Local,
    reach: Reach,
    packet: tuple[str, ...],
    name: str,
    octets: str | None,
    from_mac: str | None,
    to_mac: str | None,
    gso_size: int,
    file: IO[bytes] | None,
    output: str,
) -> None:
    """Follow a PACKET that a port sends, over all hosts, to everybody who gets it.

    \b
    tcp 10.0.0.5:1234 > 10.0.0.9:80 syn        udp [fd00::5]:1000 > [fd00::9]:53
    icmp 10.0.0.5 > 10.0.0.9 echo              ip 10.0.0.5 > 10.0.0.9 proto 47
    arp who-has 10.0.0.9 tell 10.0.0.5         ns fd00::9 from fd00::5

    It is judged as the first packet of its flow, on hosts that remember nothing. With root on a host of its way, that
    host's memory counts, and its real programs are asked too, without a trace in any table: what they conclude,
    whether a flow entry replays it, and - loudly - where they and the oracle differ.

    Exit status: 0 if anybody gets it, 2 if it is dropped, 3 if oracle and programs differ.
    """
    from headrace.cli.trace_advice import advice
    from headrace.cli.trace_live import ask_along, live
    from headrace.cli.trace_packet import find_port, frame_of
    from headrace.datapath.decision import Arrival
    from headrace.errors import InvalidInput

    if bool(packet) == bool(octets):
        raise InvalidInput("give either a PACKET in words or a frame with --hex")
    state, writers = (read(file), {}) if file else reach.ask(stored)
    assumed = reachable(state) if file else state
    port = find_port(state, name)
    if octets:
        frame = unhex(octets)
    else:
        frame = frame_of(state, port, " ".join(packet), from_mac=lower(from_mac), to_mac=lower(to_mac))
    with live(local, assumed) as asked:
        alone = asked if assumed is state else None
        journey, answers = ask_along(assumed, Arrival(port=port.id, frame=frame, gso_size=gso_size), alone)
    lines = advice(state, journey, writers)
    if output == "json":
        show_json(as_json(journey, lines, answers))
    else:
        show(state, journey, lines, answers)
    if any(answer.unlike for answer in answers.values()):
        sys.exit(DIFFERENT)
    sys.exit(0 if journey.arrives else DROPPED)


def read(file: IO[bytes]) -> State:
    """The state in a YAML file as `headrace apply` takes it."""
    from headrace.model import State
    from headrace.model.document import read as read_objects

    return State.of(read_objects(file.read(), file.name))


def reachable(state: State) -> State:
    """A file's state with tunnel endpoints made up for hosts of which it has none: those that run report their own."""
    import msgspec

    from headrace.model import Host

    hosts = {name: Host(id=name) for port in state.ports.values() if (name := port.host)} | dict(state.hosts)
    silent = sorted(name for name, host in hosts.items() if not host.vteps)
    if not silent:
        return state
    click.echo(f"made up, for the file does not say them: the vteps of {', '.join(silent)}", err=True)
    made = {
        name: Host(id=name, vteps=(str(MADE_UP[0] + number), str(MADE_UP[1] + number)))
        for number, name in enumerate(silent, 1)
    }
    return msgspec.structs.replace(state, hosts=hosts | made)


async def stored(client: Client) -> tuple[State, dict[tuple[str, str], str]]:
    """The state that the controller has, and who wrote each object, by type and id."""
    from headrace.model import TYPES, State, decode

    records = [record for name in TYPES for record in (await client.list(name)).items]
    writers = {(record.type, record.id): record.writer for record in records}
    return State.of(decode(record.type, record.body) for record in records), writers


def unhex(text: str) -> bytes:
    from headrace.errors import InvalidInput

    try:
        return bytes.fromhex(text.replace(":", ""))
    except ValueError:
        raise InvalidInput(
            "--hex: give octets as hexadecimal digits, with spaces or colons between them or not"
        ) from None


def lower(text: str | None) -> str | None:
    """A MAC as the model writes it."""
    import re

    from headrace.errors import InvalidInput

    if text is not None and not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", text):
        raise InvalidInput(f"{text!r} is no MAC address; write it as 52:54:00:12:34:56")
    return text and text.lower()


def show(state: State, journey: Journey, lines: list[str], answers: dict[str, Answer]) -> None:
    """A line a step, a paragraph a host, then how it ends."""
    from headrace.cli.trace_advice import rule_words

    for hop in journey.hops:
        click.secho(f"host {hop.host}", bold=True)
        for step in hop.decision.steps:
            words = rule_words(state, step.rule)
            click.echo(f"  {step.stage:<15} {step.text}{f' ({words})' if words else ''}")
        if (answer := answers.get(hop.host)) is not None:
            click.echo(f"  {'real programs':<15} {spoken(state, answer)}")
            for line in answer.unlike:
                click.secho(f"  DISAGREEMENT    {line}", fg="red", bold=True)
    click.secho(end(state, journey), fg="green" if journey.arrives else "red")
    for line in lines:
        click.echo(line)


def spoken(state: State, answer: Answer) -> str:
    """What the programs concluded, in a line."""
    from headrace.abi import Reason
    from headrace.cli.trace_advice import rule_words

    told = answer.reason.name
    if answer.reason == Reason.NONE:
        port = state.ports.get(answer.to or "")
        to = port.label() if port else answer.to
        told = f"to {to}, {'replayed by a flow entry' if answer.replayed else 'by the walk'}"
    if answer.reason == Reason.FLOODED:
        told = f"{answer.copies} copies"
    rules = dict.fromkeys(rule for rule in (answer.rule_from, answer.rule_to) if rule != "NONE")
    told += "".join(f"; {rule_words(state, rule)}" for rule in rules)
    return told if answer.same_build else f"{told} (of this command's build; another one runs here)"


def end(state: State, journey: Journey) -> str:
    """How it ends, in a sentence."""
    from headrace.abi import Reason

    if journey.hops[0].decision.reason == Reason.ANSWERED:
        return "answered by the datapath"
    if journey.wires:
        left = " and ".join(segment.text for segment in journey.wires)
        here = "".join(f", and to {state.ports[name].label()}" for name in journey.receivers)
        return f"left to the wire: {left}, where no host of ours has the destination{here}"
    if journey.arrives:
        return "delivered to " + ", ".join(state.ports[name].label() for name in journey.receivers)
    reason = journey.reason
    if reason == Reason.FLOODED:
        return f"dropped on host {journey.hops[-1].host}: nobody may get it"
    return f"dropped on host {journey.hops[-1].host}: {reason.name}, {reason.doc}"


def as_json(journey: Journey, lines: list[str], answers: dict[str, Answer]) -> dict[str, Any]:
    return {
        "frame": journey.hops[0].arrival.frame.hex(),
        "delivered": journey.arrives,
        "receivers": journey.receivers,
        "reason": journey.reason.name,
        "advice": lines,
        "hops": [hop_json(hop, answers.get(hop.host)) for hop in journey.hops],
    }


def hop_json(hop: Hop, answer: Answer | None) -> dict[str, Any]:
    import msgspec

    decision = hop.decision
    return {
        "host": hop.host,
        "port": hop.arrival.port,
        "vtep": hop.arrival.vtep,
        "segment": words(hop.arrival.segment),
        "physical_network": hop.arrival.physical,
        "reason": decision.reason.name,
        "rule_from": decision.rule_from,
        "rule_to": decision.rule_to,
        "outputs": [
            {
                "port": out.port,
                "vtep": out.vtep,
                "segment": words(out.segment),
                "rule": out.rule,
                "frame": out.frame.hex(),
            }
            for out in decision.outputs
        ],
        "refused": [{"port": refusal.port, "reason": refusal.reason.name} for refusal in decision.refused],
        "datapath": None if answer is None else msgspec.structs.asdict(answer) | {"reason": answer.reason.name},
        "steps": [{"stage": step.stage, "text": step.text, "rule": step.rule} for step in decision.steps],
    }


def words(segment: Segment | None) -> str | None:
    """``vxlan 100``."""
    return segment.text if segment is not None else None
