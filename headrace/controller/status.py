"""What hosts say of themselves: kept, stamped by the controller's clock, and told to those who watch."""

from __future__ import annotations

import msgspec

from headrace.controller.api import Event
from headrace.controller.queue import Watcher, line
from headrace.model import HostStatus

STATUS = "status/"

PERSIST_EVERY = 60.0
"""Seconds after which a mere heartbeat is stored too; what says something new is stored at once."""


class Board:
    """The latest word of each host."""

    def __init__(self) -> None:
        self.statuses: dict[str, HostStatus] = {}
        self._stored: dict[str, HostStatus] = {}
        self._watchers: set[Watcher] = set()

    def post(self, status: HostStatus) -> bool:
        """A host's word, stamped. Returns whether it is worth storing."""
        self._tell(status)
        stored = self._stored.get(status.id)
        return (
            stored is None
            or status.time - stored.time >= PERSIST_EVERY
            or msgspec.structs.replace(stored, time=status.time) != status
        )

    def take(self, host: str, value: bytes | None) -> None:
        """What the store holds: our own word coming back, or what another controller was told."""
        if value is None:
            self.statuses.pop(host, None)
            self._stored.pop(host, None)
            return
        status = self._stored[host] = msgspec.json.decode(value, type=HostStatus)
        known = self.statuses.get(host)
        if known is None or known.time < status.time:
            self._tell(status)

    def snapshot(self) -> list[bytes]:
        """Every host's latest word, as lines."""
        return [line(Event(kind="status", status=status)) for status in self.statuses.values()]

    def attach(self, watcher: Watcher) -> None:
        """From here on the watcher is told."""
        self._watchers.add(watcher)

    def detach(self, watcher: Watcher) -> None:
        """No more."""
        self._watchers.discard(watcher)

    def _tell(self, status: HostStatus) -> None:
        self.statuses[status.id] = status
        data = line(Event(kind="status", status=status))
        for watcher in tuple(self._watchers):
            watcher.push(data)
