"""Traffic between namespaces from within a test: sockets that live there, pings, a stream that watches itself."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Self

from headrace.testing.cloud import Workload
from headrace.testing.topology import Namespace
from headrace.testing.wait import wait_until

ETH_P_ALL = 3
PATIENCE = 3.0
"""Seconds that a packet may take on a loaded machine."""
IMPATIENCE = 0.3
"""Seconds to wait for what should not come."""
BLOCK = 8192

Place = Workload | Namespace


def within(place: Place) -> Namespace:
    """The namespace meant."""
    return place.namespace if isinstance(place, Workload) else place


def make_socket(place: Place, address: str, kind: socket.SocketKind, protocol: int = 0) -> socket.socket:
    """A socket of an address's family in a namespace; it stays there wherever it is used."""
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    with within(place).enter():
        made = socket.socket(family, kind, protocol)
    made.settimeout(PATIENCE)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made


def listen(place: Place, address: str, port: int) -> socket.socket:
    """A TCP listener."""
    made = make_socket(place, address, socket.SOCK_STREAM)
    made.bind((address, port))
    made.listen()
    return made


def connect(
    place: Place, address: str, port: int, *, source: int = 0, origin: str = "", timeout: float = PATIENCE
) -> socket.socket:
    """A TCP connection, from a port and an address if given; raises TimeoutError when nobody answers."""
    made = make_socket(place, address, socket.SOCK_STREAM)
    made.settimeout(timeout)
    if source or origin:
        made.bind((origin, source))
    try:
        made.connect((address, port))
    except OSError:
        made.close()
        raise
    made.settimeout(PATIENCE)
    return made


def udp(place: Place, address: str, port: int = 0) -> socket.socket:
    """A bound UDP socket."""
    made = make_socket(place, address, socket.SOCK_DGRAM)
    made.bind((address, port))
    return made


@contextlib.contextmanager
def tcp_pair(client: Place, server: Place, address: str, port: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """An open connection: the client's end and the server's."""
    with listen(server, address, port) as listener:
        here = connect(client, address, port)
        there, _ = listener.accept()
    there.settimeout(PATIENCE)
    with here, there:
        yield here, there


def talks(here: socket.socket, there: socket.socket, *, timeout: float = PATIENCE) -> bool:
    """Whether what one end of a connection says arrives at the other, both ways."""
    for sender, receiver in ((here, there), (there, here)):
        sender.sendall(b"x")
        receiver.settimeout(timeout)
        try:
            if receiver.recv(1) != b"x":
                return False
        except TimeoutError:
            return False
    return True


def opens(client: Place, server: Place, address: str, port: int, *, timeout: float = PATIENCE) -> bool:
    """Whether a TCP connection can be opened and used."""
    try:
        with listen(server, address, port) as listener, connect(client, address, port, timeout=timeout) as here:
            there, _ = listener.accept()
            with there:
                return talks(here, there)
    except TimeoutError:
        return False


def reaches(sender: socket.socket, receiver: socket.socket, *, timeout: float = PATIENCE) -> bool:
    """Whether a datagram from one bound socket arrives at the other."""
    mark = struct.pack("d", time.monotonic())
    sender.sendto(mark, receiver.getsockname()[:2])
    receiver.settimeout(timeout)
    try:
        while receiver.recv(2048) != mark:  # an earlier one that came late
            pass
    except TimeoutError:
        return False
    return True


def ping(place: Place, address: str, *, count: int = 1, size: int = 56, patience: float = PATIENCE) -> bool:
    """Whether every echo is answered; packets are not fragmented."""
    command = f"ping -n -q -c {count} -i 0.01 -W {patience:g} -M do -s {size} {address}"
    return f" {count} received" in within(place).run(command, check=False).stdout


class Tap:
    """Frames on a device, as octets: all that pass it can be heard, any can be sent."""

    def __init__(self, place: Namespace, device: str) -> None:
        with place.enter():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            self._socket.bind((device, ETH_P_ALL))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, frame: bytes) -> None:
        """Put a frame on the device."""
        self._socket.send(frame)

    def heard(self, part: bytes, *, timeout: float = PATIENCE) -> bytes | None:
        """The next frame with these octets in it; nothing when none comes."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                frame = self._socket.recv(65536)
            except TimeoutError:
                return None
            if part in frame:
                return frame
        return None


class Stream:
    """A TCP connection that carries numbered blocks until told to stop, and notices any harm to it.

    ``pause``: seconds between blocks, so that it leaves the machine to others.
    """

    def __init__(self, client: Place, server: Place, address: str, port: int, *, pause: float = 0.0) -> None:
        self._pause = pause
        self._pair = contextlib.ExitStack()
        self.here, self.there = self._pair.enter_context(tcp_pair(client, server, address, port))
        self.received = 0
        self.error: str | None = None
        self._end = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._receive)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.advance()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for end in (self.here, self.there):  # wakes the threads also where the connection stands still
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        self._pair.close()

    def advance(self, *, blocks: int = 20, timeout: float = 10.0) -> None:
        """Wait until more has arrived; raises when the connection breaks or stands still."""
        wanted = self.received + blocks
        wait_until(lambda: self.error or self.received >= wanted, timeout, "the stream goes on")
        assert self.error is None, self.error

    def _send(self) -> None:
        number = 0
        self.here.settimeout(60)
        try:
            while not self._end.wait(self._pause):
                self.here.sendall(number.to_bytes(8, "big") * (BLOCK // 8))
                number += 1
        except OSError as error:
            if not self._end.is_set():  # else it is our own end that it met
                self.error = f"sender: {error}"

    def _receive(self) -> None:
        self.there.settimeout(60)
        rest = b""
        try:
            while part := self.there.recv(65536):
                rest += part
                while len(rest) >= BLOCK:
                    if rest[:BLOCK] != self.received.to_bytes(8, "big") * (BLOCK // 8):
                        self.error = f"block {self.received} is not what was sent"
                        return
                    rest = rest[BLOCK:]
                    self.received += 1
        except OSError as error:
            if not self._end.is_set():  # else it is our own end that it met
                self.error = f"receiver: {error}"
