"""Runs the controller: in a process of its own, or inside a test's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
from aiohttp import web

from headrace.config import load
from headrace.controller.api import HEARTBEAT
from headrace.controller.config import ControllerConfig
from headrace.controller.identity import Authority, Files
from headrace.controller.queue import QUEUE_OCTETS
from headrace.controller.server import Api
from headrace.controller.service import Service
from headrace.errors import InvalidInput
from headrace.log import set_up
from headrace.store import open_engine

EX_CONFIG = 78
"""Exit status for what only an operator can mend (sysexits.h): systemd is told not to start again."""

GRACE = 1.0
"""Seconds for requests under way at the end."""

log = logging.getLogger(__name__)


class Running(msgspec.Struct, frozen=True):
    """A controller that serves. ``reload`` takes renewed certificates into use, for connections to come."""

    url: str
    service: Service
    reload: Callable[[], None]


@contextlib.asynccontextmanager
async def running(
    config: ControllerConfig, *, heartbeat: float = HEARTBEAT, queue_octets: int = QUEUE_OCTETS
) -> AsyncIterator[Running]:
    """Serve while inside. Raises a HeadraceError if it cannot start."""
    files = Files.at(config.certificates, "controller")
    context, authority = None, None
    if config.tls:
        context = files.server_context()
        if (Path(config.certificates) / "ca.key").exists():
            authority = Authority.load(Path(config.certificates))
    else:
        log.warning("tls=false: whoever reaches %s may read and change everything", config.listen)

    def reload() -> None:
        if context:
            files.load_into(context)
            log.info("certificates loaded again")

    async with Service.running(open_engine(config.store)) as service:
        api = Api(service, tls=config.tls, authority=authority, heartbeat=heartbeat, queue_octets=queue_octets)
        runner = web.AppRunner(api.application(), access_log=None, shutdown_timeout=GRACE)
        await runner.setup()
        try:
            sock = bind(config)  # the site's from here: its server closes it
            await web.SockSite(runner, sock, ssl_context=context).start()
            scheme = "https" if config.tls else "http"
            yield Running(f"{scheme}://{reached_by(config.address[0])}:{sock.getsockname()[1]}", service, reload)
        finally:
            await runner.cleanup()


GARBAGE = (50_000, 20, 100)
"""Desired state lives long and has no cycles: looking for some at Python's usual pace is most of a change's time."""


async def serve(config: ControllerConfig) -> None:
    """Serve until SIGTERM or SIGINT."""
    gc.set_threshold(*GARBAGE)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(config) as controller:
        loop.add_signal_handler(signal.SIGHUP, reload, controller)
        log.info(
            "serving url=%s listen=%s store=%s epoch=%s revision=%d",
            controller.url,
            config.listen,
            config.store,
            controller.service.engine.epoch,
            controller.service.hub.revision,
        )
        print(f"headrace controller: serving {controller.url}", flush=True)  # noqa: T201 - for who started it by hand
        notify("READY=1")
        await stop.wait()
        notify("STOPPING=1")


def reload(controller: Running) -> None:
    """Load certificates again; if they are no good, say so and serve on with the old ones."""
    try:
        controller.reload()
    except InvalidInput as error:
        log.error("certificates not loaded, the old ones stay: %s", error)  # noqa: TRY400 - the message names the cure


def main(path: str) -> None:
    """The process: a configuration file in, a service until a signal."""
    config = load(path, ControllerConfig)
    set_up(config.log)
    asyncio.run(serve(config))


def reached_by(host: str) -> str:
    """A bound address as it stands in a URL; a wildcard is reached by loopback."""
    host = {"::": "::1", "0.0.0.0": "127.0.0.1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def bind(config: ControllerConfig) -> socket.socket:
    """A listening socket; ``::`` is reached by IPv4 too. Raises InvalidInput naming the address."""
    host, port = config.address
    try:
        [(family, _, _, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        dual = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(address[:2], family=family, dualstack_ipv6=dual, backlog=1024)
    except (OSError, OverflowError) as error:
        raise InvalidInput(f"listen {config.listen}: {getattr(error, 'strerror', None) or error}") from None


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3)), if it asked to be told."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
