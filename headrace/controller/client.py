"""Talks to a controller: what agents, plug-ins and the command line use.

    async with Client("https://10.0.0.1:9797", tls=Files.at("/etc/headrace", "host")) as client:
        async for event in client.watch(host="h1"):
            ...

Reconnecting is the caller's business; errors are those of `headrace.errors`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
import msgspec

from headrace.controller.api import (
    HEARTBEAT,
    Answer,
    Event,
    Failure,
    Health,
    Listing,
    Resync,
    Signed,
    Signing,
    revive,
)
from headrace.controller.identity import DIRECTORY, Files
from headrace.errors import InvalidInput, NotFound, Unavailable
from headrace.model import TYPES, HostStatus, Record, plural

SILENCE = 3 * HEARTBEAT
"""Seconds without a line after which a watch counts as broken."""

PATIENCE = 60.0
"""Seconds for an answer to anything else."""

CONNECT = 5.0

Content = TypeVar("Content")


class Statuses(msgspec.Struct, frozen=True):
    """The answer to GET /v1/status."""

    items: tuple[HostStatus, ...]


class Client:
    """One controller. ``tls``: the certificates to show; by default the operator's in /etc/headrace."""

    def __init__(self, url: str, *, tls: Files | None = None, silence: float = SILENCE) -> None:
        if not url.startswith(("http://", "https://")):
            raise InvalidInput(f"controller {url!r}: give http://HOST:PORT or https://HOST:PORT")
        self._url = url.rstrip("/")
        self._tls = (tls or Files.at(DIRECTORY, "client")) if url.startswith("https://") else None
        self._silence = silence
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        context = self._tls.client_context() if self._tls else False
        self._session = aiohttp.ClientSession(
            # A cluster's control traffic never goes by the proxy of the environment (trust_env is off by default).
            connector=aiohttp.TCPConnector(ssl=context, limit=0),
            timeout=aiohttp.ClientTimeout(total=PATIENCE, sock_connect=CONNECT),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session:
            await self._session.close()
            self._session = None

    async def list(self, type_name: str) -> Listing:
        """All records of a type (``port``)."""
        return await self._ask("GET", f"/v1/{collection(type_name)}", Listing)

    async def get(self, type_name: str, id_: str) -> Record | None:
        """One record, or None."""
        try:
            return await self._ask("GET", f"/v1/{collection(type_name)}/{id_}", Record)
        except NotFound:
            return None

    async def put(self, record: Record) -> Answer:
        """Store a record unless it is older than what is there."""
        return await self._ask("PUT", f"/v1/{collection(record.type)}/{record.id}", Answer, record)

    async def delete(
        self, type_name: str, id_: str, *, writer: str, writer_epoch: str = "", revision: int = 0
    ) -> Answer:
        """Delete an object; no error when it is not there."""
        query = {"writer": writer, "writer_epoch": writer_epoch, "revision": str(revision)}
        return await self._ask("DELETE", f"/v1/{collection(type_name)}/{id_}", Answer, query=query)

    async def batch(self, records: Iterable[Record]) -> Answer:
        """Puts and deletes (``body`` None) as one transaction."""
        return await self._ask("POST", "/v1/batch", Answer, tuple(records))

    async def resync(
        self, writer: str, writer_epoch: str, types: Iterable[str], keep: Iterable[tuple[str, str]]
    ) -> Answer:
        """Delete everything of a writer among these types that is not kept; the epoch becomes its current one."""
        wish = Resync(writer=writer, writer_epoch=writer_epoch, types=tuple(types), keep=tuple(keep))
        return await self._ask("POST", "/v1/resync", Answer, wish)

    async def watch(
        self, host: str | None = None, *, after: int | None = None, epoch: str = ""
    ) -> AsyncGenerator[Event, None]:
        """Events, for ever: a snapshot unless everything after a revision of an epoch can be told, then changes.

        Raises Unavailable when the stream ends or falls silent.
        """
        query = {"epoch": epoch} if epoch else {}
        if after is not None:
            query["from"] = str(after)
        if host is not None:
            query["host"] = host
        async with contextlib.aclosing(self._stream("/v1/watch", query)) as events:
            async for event in events:
                yield event

    async def put_status(self, status: HostStatus) -> Answer:
        """What a host says of itself; its ``vteps`` become the host's in everyone's eyes."""
        return await self._ask("PUT", f"/v1/status/{status.id}", Answer, status)

    async def statuses(self) -> tuple[HostStatus, ...]:
        """The latest word of each host."""
        return (await self._ask("GET", "/v1/status", Statuses)).items

    async def watch_status(self) -> AsyncGenerator[Event, None]:
        """Events of kind ``status`` (all hosts first, then as they report) and ``sync``, for ever."""
        async with contextlib.aclosing(self._stream("/v1/status/watch", {})) as events:
            async for event in events:
                yield event

    async def sign(self, host: str, request: bytes) -> Signed:
        """Have a host's certificate request (PEM) signed."""
        return await self._ask("POST", f"/v1/identity/{host}", Signed, Signing(request=request.decode()))

    async def health(self) -> Health:
        """How the controller is."""
        return await self._ask("GET", "/v1/health", Health)

    async def _ask(
        self, method: str, path: str, type_: type[Content], body: object = None, *, query: dict[str, str] | None = None
    ) -> Content:
        data = None if body is None else msgspec.json.encode(body)
        async with self._reached(), self._open.request(method, self._url + path, data=data, params=query) as response:
            content = await response.read()
            if response.status >= 400:
                raise self._failure(response.status, content)
        return self._decode(content, type_)

    async def _stream(self, path: str, query: dict[str, str]) -> AsyncGenerator[Event, None]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=self._silence)
        async with self._reached():
            async with self._open.get(self._url + path, params=query, timeout=timeout) as response:
                if response.status >= 400:
                    raise self._failure(response.status, await response.read())
                # Lines are put together here: aiohttp's own reader has a limit on their length.
                rest = b""
                async for data in response.content.iter_any():
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        yield self._decode(line, Event)
            raise Unavailable(f"controller {self._url}: it ended the watch")

    @property
    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise Unavailable(f"controller {self._url}: the client is closed; use it in `async with`")
        return self._session

    @contextlib.asynccontextmanager
    async def _reached(self) -> AsyncIterator[None]:
        """Any failure to talk is Unavailable."""
        try:
            yield
        except TimeoutError:
            raise Unavailable(f"controller {self._url}: no answer in time") from None
        except aiohttp.ClientConnectorCertificateError as error:
            why = getattr(error.certificate_error, "verify_message", "") or error.certificate_error
            cure = "use a name that it has (`headrace controller init --name` adds one), and its authority's ca.crt"
            told = f"its certificate is not believed: {str(why).rstrip('.')}"
            raise Unavailable(f"controller {self._url}: {told}; {cure}") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unavailable(f"controller {self._url}: {error or type(error).__name__}") from error

    def _decode(self, content: bytes, type_: type[Content]) -> Content:
        try:
            return msgspec.json.decode(content, type=type_)
        except msgspec.MsgspecError as error:
            raise Unavailable(f"controller {self._url}: its answer cannot be understood: {error}") from None

    def _failure(self, status: int, content: bytes) -> Exception:
        try:
            return revive(msgspec.json.decode(content, type=Failure))
        except msgspec.MsgspecError:
            return Unavailable(f"controller {self._url}: HTTP status {status}")


def collection(type_name: str) -> str:
    """The path of a type's collection; raises InvalidInput for an unknown type."""
    if type_name not in TYPES:
        raise InvalidInput(f"unknown object type {type_name!r}; known: {', '.join(TYPES)}")
    return plural(type_name)
