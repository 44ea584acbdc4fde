"""Two ports that cannot both be: with one MAC, or one address, on one network."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from headrace.errors import InvalidInput
from headrace.model import Object, Port, decode

if TYPE_CHECKING:
    from headrace.model import Record

Key = tuple[str, str]
"""An object's type and id."""


def refuse_clashes(wanted: Collection[Object], have: Mapping[Key, Record], deleted: Collection[Key]) -> None:
    """Raise InvalidInput naming both ports, and what they share, where a wanted one would clash with another.

    ``have``: what is stored; ``deleted``: what of it goes. Stored ports that clash among themselves are left alone.
    """
    fresh = {item.id for item in wanted if isinstance(item, Port)}
    kept = [
        decode("port", record.body)
        for (kind, identity), record in have.items()
        if kind == "port" and identity not in fresh and (kind, identity) not in deleted
    ]
    holders: dict[tuple[str, str], Port] = {}
    for port in (item for item in (*kept, *wanted) if isinstance(item, Port)):
        for what in places(port):
            holder = holders.setdefault((port.network, what), port)
            if holder is not port and port.id in fresh:
                raise InvalidInput(
                    f"{port.label()} and {holder.label()} both have {what} on network {port.network}; give one another"
                )


def places(port: Port) -> Iterator[str]:
    """What nobody else on its network may have, in words."""
    yield f"MAC {port.mac}"
    for address in port.addresses:
        yield f"address {ipaddress.ip_address(address)}"
