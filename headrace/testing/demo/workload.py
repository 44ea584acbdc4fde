"""What is plugged into ports: network namespaces on veths, and a real guest on a tap; each serves a web page."""

from __future__ import annotations

import contextlib
import shlex
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from typing import Any, Self

from headrace.testing.demo.cloud import Cloud, Host
from headrace.testing.guest import Card, Guest
from headrace.testing.topology import Command, run

WEB, ADMIN = 80, 8080
"""TCP ports of a page: the one that is allowed, and the one that is not until a rule says so."""

PAGE = "/tmp/www"


class Workload:
    """A port and what is behind it. ``port``: as Neutron's API shows it."""

    def __init__(self, cloud: Cloud, name: str, host: Host, port: Any, mtu: int) -> None:
        self.name = name
        self.host = host
        self.port_id: str = port.id
        self.mac: str = port.mac_address
        addresses = [entry["ip_address"] for entry in port.fixed_ips]
        self.ipv4 = next(address for address in addresses if "." in address)
        self.ipv6 = next(address for address in addresses if ":" in address)
        self.mtu = mtu
        self._cloud = cloud

    @property
    def device(self) -> str:
        """The device on the host, named as Nova names it."""
        return f"tap{self.port_id[:11]}"

    @property
    def addresses(self) -> tuple[str, str]:
        """With prefix lengths."""
        return f"{self.ipv4}/24", f"{self.ipv6}/64"

    def url(self, port: int = WEB, version: int = 4) -> str:
        """Where its page is."""
        where = self.ipv4 if version == 4 else f"[{self.ipv6}]"
        return f"http://{where}/" if port == WEB else f"http://{where}:{port}/"

    def plug(self) -> None:
        """Make the device, as Nova does once the port is bound."""
        raise NotImplementedError

    @property
    def kind(self) -> str:
        """What it is."""
        raise NotImplementedError


class Box(Workload):
    """A network namespace, as a container has one, on a veth pair."""

    kind = "namespace on a veth"

    def __init__(self, cloud: Cloud, name: str, host: Host, port: Any, mtu: int) -> None:
        super().__init__(cloud, name, host, port, mtu)
        self.namespace = cloud.topology.host(name)

    def plug(self) -> None:
        inside, outside = self.namespace, self.host.namespace
        pair = f"name {self.device} netns {outside.name} mtu {self.mtu} type veth"
        pair += f" peer name eth0 address {self.mac} netns {inside.name} mtu {self.mtu}"
        run(["ip", "link", "add", *pair.split()])
        lines = [f"address add {address} dev eth0" + " nodad" * (":" in address) for address in self.addresses]
        run(["ip", "-n", inside.name, "-batch", "-"], stdin="\n".join([*lines, "link set eth0 up"]))
        run(["ip", "-n", outside.name, "link", "set", self.device, "up"])

    def run(self, command: Command, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        """Run something in it."""
        return self.namespace.run(command, check=False, timeout=timeout)

    def connect(self, address: str, port: int, timeout: float = 5) -> socket.socket:
        """A TCP connection from it."""
        with self.namespace.enter():
            return socket.create_connection((address, port), timeout)


class Machine(Workload):
    """A guest under QEMU, with Debian's kernel, on a tap."""

    kind = "QEMU guest on a tap"

    def __init__(self, cloud: Cloud, name: str, host: Host, port: Any, mtu: int) -> None:
        super().__init__(cloud, name, host, port, mtu)
        addresses = self.addresses[1:]  # it asks for the other one
        self.guest = Guest(
            host.namespace.name, self.device, self.mac, addresses=addresses, card=Card(mtu=mtu), dad=False
        )

    def plug(self) -> None:
        self.host.namespace.run(f"ip tuntap add dev {self.device} mode tap vnet_hdr")
        self.host.namespace.run(f"ip link set {self.device} mtu {self.mtu} up")
        self._cloud.topology.on_exit(self.guest.stop)
        self.guest.start(wait=0)

    def boot(self) -> str:
        """Wait until it runs, serve its page, and say what it is."""
        self.guest.ready(60)
        about = self.guest.run("uname -sr").output.strip()
        page = shlex.quote(greeting(self.name, self.host.name) + f"a guest under QEMU with {about}\n")
        self.guest.run(f"mkdir -p {PAGE} && printf %s {page} > {PAGE}/index.html && httpd -p {WEB} -h {PAGE}")
        return about

    def configure(self) -> tuple[str, bool]:
        """Ask for an IPv4 address, as a server does when it boots; what it got, and whether it is the port's."""
        self.guest.run("udhcpc -i eth0 -n -q -t 10 -T 1", timeout=30)
        got = self.guest.run("ip -4 -o addr show dev eth0; ip -4 route").output
        return " ".join(got.split()), f" {self.ipv4}/" in got


def greeting(name: str, host: str) -> str:
    """A page's first line."""
    return f"Hello, this is {name} on {host}.\n"


class Page(socketserver.StreamRequestHandler):
    """Answers GET with the page, and any other line with itself: something to keep a connection busy with."""

    timeout = 600
    server: Web

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while line := self.rfile.readline(4096):
                if line.startswith(b"GET "):
                    while self.rfile.readline(4096).strip():
                        pass
                    page = self.server.page.encode()
                    self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n" + page)
                    return
                self.wfile.write(line)


class Web(socketserver.ThreadingTCPServer):
    """A web server whose socket lives in a workload's namespace while its threads are ours."""

    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, box: Box, port: int) -> None:
        self.page = greeting(box.name, box.host.name)
        with box.namespace.enter():
            super().__init__(("::", port), Page)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """A client that is cut off is what some of the demo is about."""


@contextlib.contextmanager
def serving(boxes: list[Box]) -> Iterator[None]:
    """Their pages, on ports 80 and 8080."""
    with contextlib.ExitStack() as stack:
        for box in boxes:
            for port in (WEB, ADMIN):
                stack.enter_context(Web(box, port))
        yield
