"""Reading objects from Neutron's database as records for the controller: revision and body from one snapshot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import msgspec
from neutron.db import segments_db
from neutron.plugins.ml2.models import PortBindingLevel
from neutron.services.trunk.models import SubPort, Trunk
from neutron_lib.api.definitions import portbindings
from neutron_lib.db import api as db_api
from neutron_lib.plugins import directory

from headrace.model import Object, Record
from headrace.neutron import config, translate
from headrace.neutron.binding import DRIVER_NAME, VIF_TYPE
from headrace.neutron.ledger import Key, admin
from headrace.neutron.translate import WRITER, Attributes, NotCarried, Place

LAST_REVISION = 2**53 - 1
"""The revision of a deletion: above any, for Neutron never uses an id twice. (2^53: exact in every JSON reader.)"""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One object as Neutron has it now.

    ``item`` None: Neutron has none (``revision`` None), or none that we carry (``refusal`` says why).
    """

    key: Key
    revision: int | None = None
    item: Object | None = None
    refusal: str | None = None

    def record(self, writer_epoch: str) -> Record:
        """What the controller shall have."""
        kind, identity = self.key
        return Record(
            type=kind,
            id=identity,
            writer=WRITER,
            writer_epoch=writer_epoch,
            revision=LAST_REVISION if self.revision is None else self.revision,
            body=None if self.item is None else translate.body(self.item),
        )


def read(keys: Iterable[Key]) -> list[Found]:
    """Read objects in one snapshot, in the order of ``keys``."""
    keys = list(keys)
    wanted: dict[str, list[str]] = defaultdict(list)
    for kind, identity in keys:
        wanted[kind].append(identity)
    context, plugin = admin(), directory.get_plugin()
    found: dict[Key, Found] = {}
    with db_api.CONTEXT_READER.using(context):
        for kind, identities in wanted.items():
            for source, item in READERS[kind](context, plugin, identities):
                key = (kind, source["id"])
                revision = source["revision_number"]
                if isinstance(item, NotCarried):
                    found[key] = Found(key=key, revision=revision, refusal=str(item))
                else:
                    found[key] = Found(key=key, revision=revision, item=item)
    return [found.get(key, Found(key=key)) for key in keys]


Read = Iterable[tuple[Attributes, Object | NotCarried]]


def networks(context: Any, plugin: Any, identities: list[str]) -> Read:
    """Networks, with their segments."""
    sources = plugin.get_networks(context, filters={"id": identities})
    segments = segments_db.get_networks_segments(context, identities)
    settings = config.transports(), config.dns_domain()
    for source in sources:
        yield source, attempt(translate.network, source, segments[source["id"]], *settings)


def subnets(context: Any, plugin: Any, identities: list[str]) -> Read:
    """Subnets, but for those of networks that are not carried."""
    sources = plugin.get_subnets(context, filters={"id": identities})
    foreign = not_carried(context, plugin, sources)
    for source in sources:
        yield source, foreign.get(source["network_id"]) or attempt(translate.subnet, source)


def ports(context: Any, plugin: Any, identities: list[str]) -> Read:
    """Ports with their bindings and places in trunks.

    Also those of networks that are not carried, which are members of groups too: on no host, whatever bound them.
    """
    sources = plugin.get_ports(context, filters={"id": identities})
    levels = context.session.query(PortBindingLevel.port_id, PortBindingLevel.host).filter(
        PortBindingLevel.port_id.in_(identities), PortBindingLevel.driver == DRIVER_NAME
    )
    bound = {(level.port_id, level.host) for level in levels}
    places = places_of(context, identities)
    foreign = not_carried(context, plugin, [source for source in sources if source[portbindings.VIF_TYPE] == VIF_TYPE])
    for source in sources:
        ours = (
            source[portbindings.VIF_TYPE] == VIF_TYPE
            and (source["id"], source[portbindings.HOST_ID]) in bound
            and source["network_id"] not in foreign
        )
        yield source, attempt(translate.port, source, ours=ours, place=places.get(source["id"]))


def places_of(context: Any, identities: list[str]) -> dict[str, Place]:
    """Of these ports, the sub-ports of trunks."""
    rows = (
        context.session.query(
            SubPort.port_id, Trunk.port_id.label("parent"), SubPort.segmentation_type, SubPort.segmentation_id
        )
        .join(Trunk, Trunk.id == SubPort.trunk_id)
        .filter(SubPort.port_id.in_(identities))
    )
    return {row.port_id: Place(row.parent, row.segmentation_type, row.segmentation_id) for row in rows}


def security_groups(context: Any, plugin: Any, identities: list[str]) -> Read:
    """Security groups, with their rules."""
    for source in plugin.get_security_groups(context, filters={"id": identities}):
        yield source, attempt(translate.security_group, source)


def address_groups(context: Any, plugin: Any, identities: list[str]) -> Read:
    """Address groups."""
    for source in plugin.get_address_groups(context, filters={"id": identities}):
        yield source, attempt(translate.address_group, source)


READERS = {
    "network": networks,
    "subnet": subnets,
    "security_group": security_groups,
    "address_group": address_groups,
    "port": ports,
}


def not_carried(context: Any, plugin: Any, sources: list[Attributes]) -> dict[str, NotCarried]:
    """Of the networks that these objects are on, those we do not carry, with the reason."""
    identities = list({source["network_id"] for source in sources})
    refused = {}
    for source, item in networks(context, plugin, identities) if identities else ():
        if isinstance(item, NotCarried):
            refused[source["id"]] = item
    return refused


def attempt(function: Any, *args: Any, **kwargs: Any) -> Object | NotCarried:
    """Translate; a refusal is a result."""
    try:
        item: Object = function(*args, **kwargs)
    except NotCarried as error:
        return error
    return item
