"""Looks at trunks in Neutron's database and makes them what headrace.neutron.follow says. Runs in the worker."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any

import sqlalchemy as sa
from neutron.db import models_v2
from neutron.db.models.provisioning_block import ProvisioningBlock
from neutron.objects import trunk as trunk_objects
from neutron.plugins.ml2.models import PortBinding, PortBindingLevel
from neutron.services.trunk import models as trunk_models
from neutron_lib import constants
from neutron_lib.api.definitions import portbindings
from neutron_lib.db import api as db_api
from neutron_lib.exceptions import NeutronException
from neutron_lib.plugins import directory
from neutron_lib.services.trunk.constants import TRUNK_SUBPORT_OWNER

from headrace.neutron import follow
from headrace.neutron.binding import DRIVER_NAME
from headrace.neutron.follow import Change, Member, Trunk
from headrace.neutron.ledger import admin

LOG = logging.getLogger(__name__)

BATCH = 500
"""Ports looked up at a time."""


def look(ports: Collection[str] | None = None) -> list[Change]:
    """Write trunks' statuses; what there is to change that sub-ports follow their parents, and former ones are free.

    ``ports``: parents, sub-ports and former sub-ports to look at; None: all that there are, and what failed before
    is tried again. Not while a port's status is being written: it has no block then, and is not ACTIVE yet.
    """
    trunks, former = load(ports)
    for trunk in trunks:
        if (status := follow.status(trunk)) != trunk.status:
            write_status(trunk, status)
    found = [change for trunk in trunks for change in follow.changes(trunk, again=ports is None)]
    return found + [change for port in former if (change := follow.release(port))]


def apply(change: Change) -> None:
    """Update a port as an administrator would. What fails is tried again at the next look at all trunks."""
    attributes = {
        portbindings.HOST_ID: change.host,
        portbindings.PROFILE: change.profile,
        "device_owner": change.device_owner,
    }
    LOG.info("sub-port %s goes to host %s, parent %s", change.port, change.host, change.profile.get(follow.PARENT))
    try:
        directory.get_plugin().update_port(admin(), change.port, {"port": attributes})
    except NeutronException as error:
        LOG.warning("sub-port %s cannot be brought to host %r: %s", change.port, change.host, error)


@db_api.retry_db_errors
def write_status(trunk: Trunk, status: str) -> None:
    """Set a trunk's status, unless somebody else has meanwhile."""
    context = admin()
    with db_api.CONTEXT_WRITER.using(context):
        held = trunk_objects.Trunk.get_object(context, id=trunk.id)
        if held is not None and held.status == trunk.status:
            LOG.info("trunk %s is %s", trunk.id, status)
            held.update(status=status)


def load(ports: Collection[str] | None) -> tuple[list[Trunk], list[Member]]:
    """The trunks that these ports are of, whole, and those ports that are of none; of all ports, former sub-ports."""
    trunk, subport = trunk_models.Trunk, trunk_models.SubPort
    rows = sa.select(
        trunk.id, trunk.status, trunk.port_id, subport.port_id.label("subport"), subport.segmentation_id
    ).outerjoin(subport, subport.trunk_id == trunk.id)
    if ports is not None:
        of_subports = sa.select(subport.trunk_id).where(subport.port_id.in_(ports))
        rows = rows.where(sa.or_(trunk.port_id.in_(ports), trunk.id.in_(of_subports)))
    context = admin()
    with db_api.CONTEXT_READER.using(context):
        found = context.session.execute(rows.order_by(trunk.id, subport.segmentation_id)).all()
        members = {name for row in found for name in (row.port_id, row.subport) if name}
        former = (former_subports(context) if ports is None else set(ports)) - members
        known = read(context, members | former)
    subports: defaultdict[str, list[tuple[int, Member]]] = defaultdict(list)
    for row in found:
        if row.subport in known:
            subports[row.id].append((row.segmentation_id, known[row.subport]))
    trunks = [
        Trunk(id=identity, status=status, parent=known[parent], subports=tuple(subports[identity]))
        for identity, status, parent in dict.fromkeys((row.id, row.status, row.port_id) for row in found)
        if parent in known
    ]
    return trunks, [known[name] for name in sorted(former) if name in known]


def former_subports(context: Any) -> set[str]:
    """Ports that still look like sub-ports, and are of no trunk."""
    port, subport = models_v2.Port, trunk_models.SubPort
    query = (
        sa.select(port.id)
        .outerjoin(subport, subport.port_id == port.id)
        .where(port.device_owner == TRUNK_SUBPORT_OWNER, subport.port_id.is_(None))
    )
    return set(context.session.execute(query).scalars())


def read(context: Any, ports: Iterable[str]) -> dict[str, Member]:
    """Ports with their active bindings, by id."""
    identities, found = sorted(ports), {}
    for start in range(0, len(identities), BATCH):
        for row in context.session.execute(query_of(identities[start : start + BATCH])):
            found[row.id] = Member(
                id=row.id,
                status=row.status,
                admin_up=row.admin_state_up,
                device_owner=row.device_owner,
                host=row.host or "",
                vif_type=row.vif_type or portbindings.VIF_TYPE_UNBOUND,
                profile=json.loads(row.profile) if row.profile else {},
                ours=row.vif_type not in {None, *follow.UNBOUND} and row.driver == DRIVER_NAME,
                blocked=row.entity is not None,
            )
    return found


def query_of(ports: Collection[str]) -> Any:
    """What ``read`` reads. A port with several provisioning blocks comes several times, the same but for those."""
    port, binding, level = models_v2.Port, PortBinding, PortBindingLevel
    active = sa.and_(binding.port_id == port.id, binding.status == constants.ACTIVE)
    ours = sa.and_(level.port_id == port.id, level.host == binding.host, level.driver == DRIVER_NAME)
    return (
        sa.select(
            port.id,
            port.status,
            port.admin_state_up,
            port.device_owner,
            binding.host,
            binding.vif_type,
            binding.profile,
            level.driver,
            ProvisioningBlock.entity,
        )
        .outerjoin(binding, active)
        .outerjoin(level, ours)
        .outerjoin(ProvisioningBlock, ProvisioningBlock.standard_attr_id == port.standard_attr_id)
        .where(port.id.in_(ports))
    )
