"""ML2 type drivers ``mpls`` and ``nsh``: which label or service path a network has, and how large its packets may be.

Neutron's own tunnel type drivers keep a table of endpoints for agents on RPC; ours has none, for the controller knows
where hosts are. Its service plug-in ``network_segment_range`` knows four network types and not these: ranges are
configured here whether or not it is loaded.
"""

from __future__ import annotations

import logging
from typing import Any, ClassVar

from neutron.objects import base
from neutron.objects.plugins.ml2 import base as ml2_base
from neutron.plugins.ml2.drivers import type_tunnel
from neutron_lib import constants
from neutron_lib.exceptions import InvalidInput, NetworkTunnelRangeError
from neutron_lib.plugins.ml2 import api
from oslo_config import cfg
from oslo_db.exception import RetryRequest
from oslo_versionedobjects import fields

from headrace.model import Segment
from headrace.model.segment import IDS
from headrace.neutron import config, models

LOG = logging.getLogger(__name__)


class Allocation(ml2_base.SegmentAllocation):
    """What both kinds of row have, as Neutron's type drivers ask for it."""

    VERSION = "1.0"
    db_model: Any
    primary_keys: ClassVar[list[str]]

    @classmethod
    def get_segmentation_id(cls) -> Any:
        """The column of the identifier."""
        return getattr(cls.db_model, cls.primary_keys[0])


@base.NeutronObjectRegistry.register
class HeadraceMplsAllocation(base.NeutronDbObject, Allocation):
    """One label."""

    db_model = models.MplsAllocation
    primary_keys: ClassVar[list[str]] = ["label"]
    fields: ClassVar[dict[str, Any]] = {
        "label": fields.IntegerField(),
        "allocated": fields.BooleanField(default=False),
    }
    network_type = "mpls"


@base.NeutronObjectRegistry.register
class HeadraceNshAllocation(base.NeutronDbObject, Allocation):
    """One service path identifier."""

    db_model = models.NshAllocation
    primary_keys: ClassVar[list[str]] = ["path"]
    fields: ClassVar[dict[str, Any]] = {
        "path": fields.IntegerField(),
        "allocated": fields.BooleanField(default=False),
    }
    network_type = "nsh"


class HeadraceTypeDriver(type_tunnel.ML2TunnelTypeDriver):
    """A network type whose segments are numbers in outer headers; subclasses say which."""

    network_type: str
    ranges_option: tuple[str, str]
    """Group and name of the option with the ranges."""
    allocation: Any

    def __init__(self) -> None:
        config.register(cfg.CONF)
        super().__init__(self.allocation)
        self.model_segmentation_id = self.allocation.get_segmentation_id()
        self._tunnel_ranges: list[tuple[int, int]] = []

    def get_type(self) -> str:
        """Neutron's name of the network type."""
        return self.network_type

    def initialize(self) -> None:
        """Read the ranges and make the pool what they say. A range that is none ends Neutron, as with its own types."""
        group, name = self.ranges_option
        ranges: list[tuple[int, int]] = []
        try:
            self._parse_tunnel_ranges(cfg.CONF[group][name], ranges)
        except NetworkTunnelRangeError as error:
            LOG.error("[%s] %s: %s", group, name, error)  # noqa: TRY400 - the message says all
            raise SystemExit(f"[{group}] {name}: {error}") from None
        self._tunnel_ranges = ranges
        self._sync_allocations()

    def get_network_segment_ranges(self) -> list[tuple[int, int]]:
        """The configured ones, always."""
        return self._tunnel_ranges

    def _parse_tunnel_ranges(self, tunnel_ranges: list[str], current_range: list[tuple[int, int]]) -> None:
        super()._parse_tunnel_ranges(tunnel_ranges, current_range)
        for given in current_range:
            for number in given:
                if wrong := self._out_of_range(number):
                    raise NetworkTunnelRangeError(tunnel_range=given, error=wrong)

    def _out_of_range(self, number: int) -> str | None:
        meaning, least, most = IDS[self.network_type]
        return None if least <= number <= most else f"{number} is no {meaning}; give {least} to {most}"

    def validate_provider_segment(self, segment: dict[str, Any]) -> None:
        """What an administrator asks for: no physical network, and an identifier that the header has room for."""
        super().validate_provider_segment(segment)
        number = segment.get(api.SEGMENTATION_ID)
        if number is not None and (wrong := self._out_of_range(number)):
            raise InvalidInput(error_message=f"segmentation_id out of range: {wrong}")

    def allocate_partially_specified_segment(self, context: Any, **filters: Any) -> Any:
        """A free identifier of the ranges, or None where there is none left."""
        found = self.segmentation_obj.get_random_unallocated_segment(context, **filters)
        if found is None:
            return None
        if not self.segmentation_obj.allocate(
            context, **{self.segmentation_key: getattr(found, self.segmentation_key)}
        ):
            raise RetryRequest(RuntimeError("another request took it meanwhile"))
        return found

    def get_mtu(self, physical_network: str | None = None) -> int:
        """The largest IP packet of a workload, in octets; 0 where nothing is configured to compute it from."""
        version = cfg.CONF.ml2.overlay_ip_version
        without_ip = super().get_mtu(physical_network)
        if not without_ip:
            return 0
        _, least, _ = IDS[self.network_type]
        segment = Segment(type=self.network_type, id=least, transport=config.transports()[self.network_type])  # type: ignore[arg-type]
        return int(without_ip + constants.IP_HEADER_LENGTH[version] - segment.overhead(version))

    # Endpoints: of agents on RPC, which ours are not.

    def add_endpoint(self, ip: str, host: str) -> None:
        """Keep none."""

    def get_endpoints(self) -> list[dict[str, str]]:
        """Know none."""
        return []

    def get_endpoint_by_host(self, host: str) -> None:
        """Know none."""

    def get_endpoint_by_ip(self, ip: str) -> None:
        """Know none."""

    def delete_endpoint(self, ip: str) -> None:
        """Have none."""

    def delete_endpoint_by_host_or_ip(self, host: str, ip: str) -> None:
        """Have none."""


class MplsTypeDriver(HeadraceTypeDriver):
    """A label for each network (RFC 3032), over UDP or GRE."""

    network_type = "mpls"
    ranges_option = (config.MPLS_GROUP, "label_ranges")
    allocation = HeadraceMplsAllocation


class NshTypeDriver(HeadraceTypeDriver):
    """A service path for each network (RFC 8300), over VXLAN-GPE or Ethernet."""

    network_type = "nsh"
    ranges_option = (config.NSH_GROUP, "path_ranges")
    allocation = HeadraceNshAllocation
