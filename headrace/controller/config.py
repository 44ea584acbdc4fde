"""The controller's configuration file."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from headrace.controller.api import PORT
from headrace.controller.identity import DIRECTORY

Listen = Annotated[str, msgspec.Meta(pattern=r"^(\[[0-9a-fA-F:.]+\]|[^\[\]:]+):[0-9]{1,5}$")]
"""ADDRESS:PORT or [ADDRESS]:PORT."""


class ControllerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of controller.toml.

    ``listen``: where to serve; port 0 takes any free one and says which.
    ``store``: the state engine.
    ``tls``: mutual TLS; without it whoever reaches the port may do everything.
    ``certificates``: where ca.crt, ca.key (to enroll hosts), controller.crt and controller.key are.
    ``log``: how much to tell.
    """

    listen: Listen = f"[::]:{PORT}"
    store: str = "sqlite:/var/lib/headrace/state.db"
    tls: bool = True
    certificates: str = str(DIRECTORY)
    log: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def address(self) -> tuple[str, int]:
        """Address and port to bind."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)
