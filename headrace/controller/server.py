"""The controller over HTTP: JSON in, JSON out, watches as JSON lines. docs/controller.md shows it with curl."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator

import msgspec
from aiohttp import web

from headrace.controller.api import (
    HEARTBEAT,
    Failure,
    Listing,
    Resync,
    Signed,
    Signing,
    http_status,
)
from headrace.controller.identity import Authority, Identity, pem
from headrace.controller.queue import QUEUE_OCTETS, Watcher
from headrace.controller.service import Service
from headrace.errors import HeadraceError, InvalidInput, NotFound, UnknownField
from headrace.model import TYPES, HostStatus, Record, plural
from headrace.model.object import Identity as Name
from headrace.strict import convert, decode, suggestion

MAX_BODY = 256 * 1024 * 1024
"""Octets of a request: a batch of 100,000 ports fits."""

STUCK_AFTER = 30.0
"""Seconds a watcher may take nothing at all before it is dropped."""

CHUNK = 256 * 1024

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)


class StrictRecord(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A record as a writer must put it: a misspelt field is a mistake, not an extension."""

    def plain(self) -> Record:
        """The same as everyone else knows it."""
        return Record(**msgspec.structs.asdict(self))


class Api:
    """The routes of one service. ``tls``: callers have a certificate; otherwise everybody is an operator."""

    def __init__(
        self,
        service: Service,
        *,
        tls: bool,
        authority: Authority | None = None,
        heartbeat: float = HEARTBEAT,
        queue_octets: int = QUEUE_OCTETS,
    ) -> None:
        self._service = service
        self._tls = tls
        self._authority = authority
        self._heartbeat = heartbeat
        self._queue_octets = queue_octets
        self._closing = asyncio.Event()

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=MAX_BODY, middlewares=[failures])
        types = "|".join(plural(name) for name in TYPES)
        app.add_routes(
            [
                web.get("/v1/health", self.health),
                web.get("/v1/watch", self.watch),
                web.post("/v1/batch", self.batch),
                web.post("/v1/resync", self.resync),
                web.get("/v1/status", self.statuses),
                web.get("/v1/status/watch", self.watch_status),
                web.put("/v1/status/{host}", self.put_status),
                web.post("/v1/identity/{host}", self.sign),
                web.get(f"/v1/{{types:{types}}}", self.list),
                web.get(f"/v1/{{types:{types}}}/{{id}}", self.get),
                web.put(f"/v1/{{types:{types}}}/{{id}}", self.put),
                web.delete(f"/v1/{{types:{types}}}/{{id}}", self.delete),
            ]
        )
        app.on_shutdown.append(self._end_watches)
        return app

    async def _end_watches(self, _app: web.Application) -> None:
        self._closing.set()

    def _who(self, request: web.Request) -> Identity:
        if not self._tls:
            return Identity("operator", "anyone")
        transport = request.transport
        return Identity.of_peer(transport.get_extra_info("peercert") if transport else None)

    # Objects

    async def list(self, request: web.Request) -> web.Response:
        """GET /v1/{types}."""
        query(request)
        who = self._who(request)
        hub = self._service.hub
        records = self._service.listing(singular(request), who.sight)
        return answer(Listing(epoch=self._service.engine.epoch, revision=hub.revision, items=records))

    async def get(self, request: web.Request) -> web.Response:
        """GET /v1/{types}/{id}."""
        query(request)
        who = self._who(request)
        key = (singular(request), request.match_info["id"])
        record = self._service.record(key, who.sight)
        if record is None:
            raise NotFound(f"{key[0].replace('_', ' ')} {key[1]} does not exist")
        return answer(record)

    async def put(self, request: web.Request) -> web.Response:
        """PUT /v1/{types}/{id}."""
        query(request)
        key = (singular(request), request.match_info["id"])
        record = decode(await request.read(), StrictRecord, f"{key[0]} {key[1]}").plain()
        if (record.type, record.id) != key:
            raise InvalidInput(f"{key[0]} {key[1]}: the record says {record.type} {record.id}")
        if record.body is None:
            raise InvalidInput(f"{key[0]} {key[1]}: body is missing; DELETE deletes")
        self._who(request).may_write(record.writer)
        return answer(await self._service.write([record]))

    async def delete(self, request: web.Request) -> web.Response:
        """DELETE /v1/{types}/{id}?writer=W&writer_epoch=E&revision=R."""
        given = query(request, "writer", "writer_epoch", "revision")
        key = (singular(request), request.match_info["id"])
        values = {**given, "type": key[0], "id": key[1], "revision": number(given, "revision") or 0}
        record = convert(values, Record, f"{key[0]} {key[1]}")
        self._who(request).may_write(record.writer)
        return answer(await self._service.write([record]))

    async def batch(self, request: web.Request) -> web.Response:
        """POST /v1/batch."""
        query(request)
        records = [item.plain() for item in decode(await request.read(), tuple[StrictRecord, ...], "batch")]
        who = self._who(request)
        for writer in {record.writer for record in records}:
            who.may_write(writer)
        return answer(await self._service.write(records))

    async def resync(self, request: web.Request) -> web.Response:
        """POST /v1/resync."""
        query(request)
        wish = decode(await request.read(), Resync, "resync")
        self._who(request).may_write(wish.writer)
        return answer(await self._service.resync(wish))

    # Watches

    async def watch(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/watch?from=REV&epoch=E&host=H."""
        given = query(request, "from", "epoch", "host")
        after = number(given, "from")
        host = self._who(request).may_watch(given.get("host"))
        hub = self._service.hub
        watcher = Watcher(host, limit=self._queue_octets)
        try:
            start = await hub.begin(watcher, after, given.get("epoch", ""))
            return await self._stream(request, watcher, start)
        finally:
            hub.detach(watcher)

    async def watch_status(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/status/watch."""
        query(request)
        self._who(request).may_watch_status()
        watcher = Watcher(limit=self._queue_octets)
        board = self._service.hub.board
        board.attach(watcher)
        try:
            return await self._stream(request, watcher, [*board.snapshot(), self._service.hub.sync()])
        finally:
            board.detach(watcher)

    async def _stream(self, request: web.Request, watcher: Watcher, start: Iterable[bytes]) -> web.StreamResponse:
        """Send what to begin with, then what comes, with a heartbeat; ends when the watcher or the server goes."""
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        transport = request.transport
        if transport is None:
            return response
        watcher.on_drop = transport.abort
        closing = asyncio.create_task(self._closing.wait())
        closing.add_done_callback(lambda _: watcher.end())
        try:
            for data in chunks(start):
                async with asyncio.timeout(STUCK_AFTER):
                    await response.write(data)
            while True:
                data = await watcher.pull(self._heartbeat)
                if watcher.ended:
                    break
                data = data or self._service.hub.sync()
                async with asyncio.timeout(STUCK_AFTER):
                    await response.write(data)
        except TimeoutError:
            watcher.drop()
        except ConnectionError:
            pass  # it left, or was dropped
        finally:
            closing.cancel()
        if watcher.dropped:
            log.warning("watcher dropped: too slow peer=%s host=%s", request.remote, watcher.host)
        return response

    # Status, identity, health

    async def put_status(self, request: web.Request) -> web.Response:
        """PUT /v1/status/{host}."""
        query(request)
        host = request.match_info["host"]
        self._who(request).may_report(host)
        status = decode(await request.read(), HostStatus, f"status of host {host}")
        if status.id != host:
            raise InvalidInput(f"status of host {host}: it says host {status.id}")
        return answer(await self._service.report(status))

    async def statuses(self, request: web.Request) -> web.Response:
        """GET /v1/status."""
        query(request)
        sight = self._who(request).sight
        known = self._service.hub.board.statuses
        return answer({"items": [known[host] for host in sorted(known) if sight in {None, host}]})

    async def sign(self, request: web.Request) -> web.Response:
        """POST /v1/identity/{host}: a certificate for a host's request."""
        query(request)
        host = convert(request.match_info["host"], Name, "host")
        who = self._who(request)
        who.may_sign(host)
        if self._authority is None:
            raise InvalidInput("this controller has no authority's key (ca.key): enroll hosts where it is kept")
        wish = decode(await request.read(), Signing, f"enrolment of host {host}")
        certificate = self._authority.sign(wish.request.encode(), "host", host)
        await self._service.introduce(host)
        log.info("certificate issued host=%s by=%s", host, who)
        return answer(Signed(certificate=certificate.decode(), authority=pem(self._authority.certificate).decode()))

    async def health(self, request: web.Request) -> web.Response:
        """GET /v1/health."""
        query(request)
        self._who(request)
        return answer(self._service.health())


@web.middleware
async def failures(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The one place where errors become answers."""
    try:
        return await handler(request)
    except HeadraceError as error:
        return answer(Failure(error=type(error).__name__, message=str(error)), status=http_status(error))
    except web.HTTPNotFound:
        known = "networks, subnets, security_groups, address_groups, hosts, ports, batch, resync, watch, status"
        return answer(
            Failure(error="NotFound", message=f"{request.path}: no such path; under /v1: {known}"), status=404
        )
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        message = f"{request.path}: {request.method} is not possible; allowed: {allowed}"
        return answer(Failure(error="InvalidInput", message=message), status=405)
    except web.HTTPRequestEntityTooLarge:
        message = f"{request.path}: more than {MAX_BODY} octets; send smaller batches"
        return answer(Failure(error="InvalidInput", message=message), status=413)


def answer(content: object, *, status: int = 200) -> web.Response:
    """JSON."""
    return web.Response(body=msgspec.json.encode(content), status=status, content_type="application/json")


def singular(request: web.Request) -> str:
    """The object type that a path names."""
    return request.match_info["types"][:-1]


def query(request: web.Request, *known: str) -> dict[str, str]:
    """The query's values; raises InvalidInput for a name nobody knows: ``?hots=h1`` must not mean everything."""
    for name in request.query:
        if name not in known:
            raise UnknownField(f"{request.path}: unknown parameter `{name}`{suggestion(name, list(known))}")
    return dict(request.query)


def number(given: dict[str, str], name: str) -> int | None:
    """A query's value as a number, if given."""
    try:
        return int(given[name]) if name in given else None
    except ValueError:
        raise InvalidInput(f"{name}: {given[name]!r} is not a number") from None


def chunks(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The same octets in fewer pieces."""
    gathered: list[bytes] = []
    size = 0
    for data in lines:
        gathered.append(data)
        size += len(data)
        if size >= CHUNK:
            yield b"".join(gathered)
            gathered, size = [], 0
    yield b"".join(gathered)
