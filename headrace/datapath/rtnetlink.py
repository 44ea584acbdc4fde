"""A route netlink socket: a request and its answers, or the kernel's announcements.

pyroute2 describes and parses the messages. Its own sockets run an event loop each, which cannot be
done from inside the agent's loop; a question to the kernel is answered at once and needs none.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections.abc import Iterator
from typing import Any, Self

from pyroute2.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from headrace.datapath.binding import Refused
from headrace.errors import Unavailable

SOL_NETLINK = 270
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12
LARGEST_DATAGRAM = 1 << 16
BACKLOG = 1 << 20
ATTEMPTS = 20
ANSWER_TIME = 5.0
"""Seconds; the kernel answers within the system call, so only a bug gets here."""


class RouteSocket:
    """Bound to the network namespace of the thread that makes it."""

    def __init__(self, groups: int = 0) -> None:
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        try:
            self.socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
            self.socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BACKLOG)
            self.socket.setblocking(False)
            self.socket.bind((0, groups))
        except BaseException:
            self.socket.close()
            raise
        self._marshal: Any = MarshalRtnl()
        self._sequence = 0

    def close(self) -> None:
        """Stop listening."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def change(self, kind: int, message: Any, flags: int, what: str) -> None:
        """Send a request that only succeeds or fails."""
        self._request(kind, message, NLM_F_REQUEST | NLM_F_ACK | flags)
        for answer in self._answers(what):
            if answer["header"]["type"] == NLMSG_ERROR:
                return

    def get(self, kind: int, message: Any, what: str) -> Any:
        """Ask for one object."""
        self._request(kind, message, NLM_F_REQUEST)
        return next(self._answers(what))

    def dump(self, kind: int, message: Any, what: str) -> list[Any]:
        """Ask for all objects; asks again when they changed meanwhile."""
        for _ in range(ATTEMPTS):
            self._request(kind, message, NLM_F_REQUEST | NLM_F_DUMP)
            found: list[Any] = []
            interrupted = False
            for answer in self._answers(what):
                interrupted |= bool(answer["header"]["flags"] & NLM_F_DUMP_INTR)
                if answer["header"]["type"] == NLMSG_DONE:
                    break
                found.append(answer)
            if not interrupted:
                return found
        message_text = f"{what}: it changed during each of {ATTEMPTS} reads; try again later"
        raise Unavailable(message_text)

    def parse(self, datagram: bytes) -> Iterator[Any]:
        """Messages of a datagram."""
        yield from self._marshal.parse(datagram)

    def _request(self, kind: int, message: Any, flags: int) -> None:
        with contextlib.suppress(BlockingIOError):  # what an earlier failure left behind
            while self.socket.recv(LARGEST_DATAGRAM):
                pass
        self._sequence += 1
        message["header"]["type"] = kind
        message["header"]["flags"] = flags
        message["header"]["sequence_number"] = self._sequence
        message.reset()
        message.encode()
        self.socket.send(message.data)

    def _answers(self, what: str) -> Iterator[Any]:
        while True:
            for message in self.parse(self._receive(what)):
                header = message["header"]
                if header["sequence_number"] != self._sequence:
                    continue
                if header["error"] is not None:
                    number = getattr(header["error"], "code", None) or errno.EBADMSG
                    why = str(header["error"].args[-1] or "")
                    raise Refused(f"{what} ({why})" if why and why != os.strerror(number) else what, number)
                yield message

    def _receive(self, what: str) -> bytes:
        if not _readable(self.socket):
            message = f"{what}: no answer from the kernel"
            raise Unavailable(message)
        return self.socket.recv(LARGEST_DATAGRAM)


def _readable(source: socket.socket) -> bool:
    poll = select.poll()  # select() ends at descriptor 1023
    poll.register(source, select.POLLIN)
    return bool(poll.poll(ANSWER_TIME * 1000))
