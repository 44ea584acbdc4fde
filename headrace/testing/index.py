"""Indices without a kernel, for compilers under test."""

from __future__ import annotations

from headrace import abi


class Counting:
    """Gives each name the next index of its range (headrace.stages.Index)."""

    def __init__(self) -> None:
        self.ports: dict[str, int] = {}
        self.endpoints: dict[str, int] = {}
        self.vteps: dict[str, int] = {}
        self.physicals: dict[str, int] = {}

    def port(self, attachment: str) -> int:
        """Index of a local port, by its attachment to a network."""
        return self.ports.setdefault(attachment, len(self.ports) + 1)

    def endpoint(self, name: str) -> int:
        """Index of a remote port or VTEP."""
        return self.endpoints.setdefault(name, len(self.endpoints) + abi.PORTS)

    def vtep(self, address: str) -> int:
        """Index of a VTEP."""
        return self.vteps.setdefault(address, len(self.vteps) + 1)

    def physical(self, name: str) -> int:
        """Number of a physical network."""
        return self.physicals.setdefault(name, len(self.physicals) + 1)
