"""The client against what networks and peers do: nobody there, nonsense, pieces, silence."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from headrace import errors
from headrace.controller.api import HTTP_STATUS, Failure, http_status, revive
from headrace.controller.client import Client
from headrace.errors import Denied, InvalidInput, Unavailable
from headrace.model import Record

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"

Play = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def peer(play: Play) -> AsyncIterator[str]:
    """A server that reads a request's head and then does as it likes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            await play(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def answering(status: str, body: bytes) -> Play:
    async def play(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()

    return play


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def test_nobody_there() -> None:
    async with peer(answering("200 OK", b"")) as url:
        pass
    async with Client(url) as client:
        with pytest.raises(Unavailable, match=f"controller {url}: Cannot connect"):
            await client.health()
        with pytest.raises(Unavailable, match="Cannot connect"):
            await anext(client.watch())


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        ("502 Bad Gateway", b"<html>", Unavailable, "HTTP status 502"),
        ("403 Forbidden", b'{"error":"Denied","message":"host h1 may not"}', Denied, "^host h1 may not$"),
        ("400 Bad", b'{"error":"Exception","message":"odd"}', Unavailable, "odd"),
        ("200 OK", b"<html>", Unavailable, "its answer cannot be understood"),
        ("200 OK", b'{"epoch":1}', Unavailable, "its answer cannot be understood"),
    ],
)
async def test_strange_answers(status: str, body: bytes, kind: type[Exception], words: str) -> None:
    async with peer(answering(status, body)) as url, Client(url) as client:
        with pytest.raises(kind, match=words):
            await client.health()
        with pytest.raises(kind, match="ended the watch" if status == "200 OK" else words):
            await anext(client.watch())


async def test_a_connection_that_breaks() -> None:
    async def play(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")

    async with peer(play) as url, Client(url) as client:
        with pytest.raises(Unavailable):
            await client.list("port")


async def test_lines_arrive_in_pieces_and_in_lumps() -> None:
    long = (
        b'{"kind":"put","record":{"type":"network","id":"n1","writer":"w","body":{"id":"' + b"x" * 3_000_000 + b'"}}}\n'
    )
    stream = long + b'{"kind":"sync","epoch":"e","revision":7}\n{"kind":"sync","epoch":"e","revision":8}\n'
    size = 700_001

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for start in range(0, len(stream), size):
            writer.write(chunk(stream[start : start + size]))
            await writer.drain()
        await reader.read(1)

    async with peer(play) as url, Client(url) as client, contextlib.aclosing(client.watch()) as events:
        async with asyncio.timeout(5):
            found = [await anext(events) for _ in range(3)]
    assert [event.kind for event in found] == ["put", "sync", "sync"]
    assert found[0].record is not None
    assert found[0].record.body == {"id": "x" * 3_000_000}
    assert found[2].revision == 8


async def test_silence_is_noticed() -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(b'{"kind":"sync"}\n'))
        await reader.read(1)

    async with (
        peer(play) as url,
        Client(url, silence=0.05) as client,
        contextlib.aclosing(client.watch()) as events,
    ):
        assert (await anext(events)).kind == "sync"
        with pytest.raises(Unavailable, match="no answer in time"):
            await anext(events)


async def test_the_question_is_as_documented() -> None:
    heard: list[bytes] = []

    async def play(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append((await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")[0])
        await play(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
        for attempt in (
            anext(client.watch("h1", after=7, epoch="e")),
            client.delete("security_group", "g", writer="w", writer_epoch="e", revision=3),
        ):
            with pytest.raises(Unavailable):
                await attempt
    assert heard == [
        b"GET /v1/watch?epoch=e&from=7&host=h1 HTTP/1.1",
        b"DELETE /v1/security_groups/g?writer=w&writer_epoch=e&revision=3 HTTP/1.1",
    ]


async def test_wrong_use_is_named() -> None:
    with pytest.raises(InvalidInput, match="give http://HOST:PORT or https://HOST:PORT"):
        Client("10.0.0.1:9797")
    client = Client("http://127.0.0.1:1")
    with pytest.raises(Unavailable, match="the client is closed"):
        await client.health()
    async with client:
        with pytest.raises(InvalidInput, match="unknown object type 'prt'; known: network"):
            await client.list("prt")
        with pytest.raises(InvalidInput, match="unknown object type"):
            await client.put(Record(type="ports", id="p", writer="w"))


@pytest.mark.parametrize("cls", [*HTTP_STATUS, errors.UnknownField, errors.DatapathError])
def test_errors_survive_the_journey(cls: type[errors.HeadraceError]) -> None:
    error = revive(Failure(error=cls.__name__, message="port p1: no"))
    assert type(error) is cls
    assert str(error) == "port p1: no"
    assert http_status(error) in range(400, 600)
