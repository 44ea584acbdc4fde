"""Traffic with a clock: when does a port open, until when does a connection live, who hears a forged frame."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from typing import Self

from headrace.testing.demo.workload import Box
from headrace.testing.wait import wait_until

PACE = 0.002
"""Seconds between two tries."""

ETH_P_ALL = 3
PATIENCE = 0.3
"""Seconds that a try may take; its SYN is sent once, the next would come a second later."""


class Probe:
    """Something that runs in a thread until it is left. Times are `time.monotonic`'s."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        raise NotImplementedError


class Knock(Probe):
    """Tries a TCP port every 2 ms, each time from a new port, until somebody opens."""

    def __init__(self, box: Box, address: str, port: int) -> None:
        super().__init__(box)
        self._peer = (address, port)
        self.tries = 0
        self.opened_at: float | None = None

    def opened(self, timeout: float) -> float | None:
        """When it opened; None if it did not in time."""
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: self.opened_at is not None, timeout)
        return self.opened_at

    def _run(self) -> None:
        family = socket.AF_INET6 if ":" in self._peer[0] else socket.AF_INET
        with self._box.namespace.enter(), selectors.DefaultSelector() as selector:
            try:
                while not self._stop.is_set() and self.opened_at is None:
                    line = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                    line.connect_ex(self._peer)
                    selector.register(line, selectors.EVENT_WRITE, time.monotonic() + PATIENCE)
                    self.tries += 1
                    self._listen(selector, time.monotonic() + PACE)
            finally:
                for key in list(selector.get_map().values()):
                    close(key.fileobj)

    def _listen(self, selector: selectors.BaseSelector, until: float) -> None:
        """Notice answers until it is time for the next try."""
        while (left := until - time.monotonic()) > 0 and self.opened_at is None:
            for key, _ in selector.select(left):
                if isinstance(key.fileobj, socket.socket):
                    if key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                        self.opened_at = time.monotonic()
                    selector.unregister(key.fileobj)
                    close(key.fileobj)
        now = time.monotonic()
        for key in [key for key in selector.get_map().values() if key.data < now]:
            selector.unregister(key.fileobj)
            close(key.fileobj)


class Talk(Probe):
    """A connection on which a line goes and comes back every 2 ms, for as long as it can."""

    def __init__(self, box: Box, address: str, port: int) -> None:
        super().__init__(box)
        self._line = box.connect(address, port)
        self._line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._line.settimeout(0.1)
        self.answers = 0
        self.last = time.monotonic()
        self.longest_pause = 0.0

    def quiet_for(self) -> float:
        """Seconds since the last answer."""
        return time.monotonic() - self.last

    def __exit__(self, *details: object) -> None:
        super().__exit__(*details)
        self._line.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while not self._stop.is_set():
                self._line.sendall(b"still there?\n")
                if not self._answered():
                    return
                now = time.monotonic()
                self.longest_pause = max(self.longest_pause, now - self.last)
                self.answers, self.last = self.answers + 1, now
                time.sleep(PACE)

    def _answered(self) -> bool:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                return bool(self._line.recv(4096))
        return False


class Ear:
    """Hears every frame that reaches a workload."""

    def __init__(self, box: Box) -> None:
        with box.namespace.enter():
            self._raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(ETH_P_ALL))
            self._raw.bind(("eth0", 0))
        self._frames: list[bytes] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()

    def heard(self, octets: bytes) -> int:
        """How many frames that hold these octets came so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, (_, _, kind, *_) = self._raw.recvfrom(65536)
                if kind != socket.PACKET_OUTGOING:
                    self._frames.append(frame)
        return sum(octets in frame for frame in self._frames)


def send_frames(box: Box, frames: list[bytes]) -> None:
    """Put frames on a workload's wire as they are: what only its root could do."""
    with (
        box.namespace.enter(),
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0) as raw,
    ):
        raw.bind(("eth0", 0))
        for frame in frames:
            raw.send(frame)


def close(line: object) -> None:
    """Close a socket without a FIN that would need a rule of its own to be answered."""
    if isinstance(line, socket.socket):
        line.close()
