"""Mutual TLS as it is: real certificates, real handshakes, and what each role may do."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ssl
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from headrace.cli.main import root
from headrace.controller.client import Client
from headrace.controller.config import ControllerConfig
from headrace.controller.identity import Authority, Files, common_name, expiry, names_in, new_request, write
from headrace.controller.serve import Running, running
from headrace.errors import Denied, InvalidInput, NotFound, Unavailable
from headrace.model import HostStatus, Record


def record(type_: str, id_: str, writer: str = "cli", **body: object) -> Record:
    return Record(type=type_, id=id_, writer=writer, body={"id": id_, **body})


def port(id_: str, network: str, host: str) -> Record:
    return record("port", id_, network=network, mac="02:00:00:00:00:01", host=host)


STATE = [
    record("host", "h1"),
    record("host", "h2"),
    record("network", "n1", segment={"id": 1}),
    record("network", "n2", segment={"id": 2}),
    port("p1", "n1", "h1"),
    port("p2", "n2", "h2"),
]


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    directory = tmp_path / "pki"
    authority = Authority.create(directory)
    authority.issue(directory, "controller", "controller", "127.0.0.1", ["127.0.0.1"])
    for name, role in (("h1", "host"), ("h2", "host"), ("neutron", "writer"), ("cli", "operator")):
        authority.issue(directory, name, role, name)  # type: ignore[arg-type]
    return directory


@pytest.fixture
async def controller(tmp_path: Path, pki: Path) -> AsyncIterator[Running]:
    config = ControllerConfig(listen="127.0.0.1:0", store=f"sqlite:{tmp_path / 's.db'}", certificates=str(pki))
    async with running(config) as controller:
        yield controller


async def as_(controller: Running, pki: Path, name: str, stack: contextlib.AsyncExitStack) -> Client:
    return await stack.enter_async_context(Client(controller.url, tls=Files.at(pki, name)))


@pytest.fixture
async def stack() -> AsyncIterator[contextlib.AsyncExitStack]:
    async with contextlib.AsyncExitStack() as stack:
        yield stack


async def test_a_host_reads_only_its_closure(controller: Running, pki: Path, stack: contextlib.AsyncExitStack) -> None:
    await (await as_(controller, pki, "cli", stack)).batch(STATE)
    host = await as_(controller, pki, "h1", stack)
    assert [item.id for item in (await host.list("port")).items] == ["p1"]
    assert [item.id for item in (await host.list("network")).items] == ["n1"]
    assert [item.id for item in (await host.list("host")).items] == ["h1"]
    assert await host.get("port", "p1") is not None
    assert await host.get("port", "p2") is None, "not even that it exists"
    with pytest.raises(Denied, match="host h1 may not read what host h2 sees"):
        await anext(host.watch("h2"))
    seen = []
    async with contextlib.aclosing(host.watch()) as events:
        async for event in events:
            if event.kind == "sync":
                break
            seen.append(event.record.id if event.record else event.kind)
    assert seen == ["reset", "n1", "h1", "p1"], "without asking for itself, a host still sees only its own"


async def test_a_host_writes_only_its_status(controller: Running, pki: Path, stack: contextlib.AsyncExitStack) -> None:
    host = await as_(controller, pki, "h1", stack)
    await host.put_status(HostStatus(id="h1", vteps=("192.0.2.1",)))
    with pytest.raises(Denied, match="host h1 may not write the status of host h2"):
        await host.put_status(HostStatus(id="h2", vteps=("192.0.2.2",)))
    for attempt in (
        host.put(port("p1", "n1", "h1")),
        host.batch([port("p1", "n1", "h1")]),
        host.delete("network", "n1", writer="cli"),
        host.resync("cli", "x", ["port"], []),
    ):
        with pytest.raises(Denied, match="host h1 may not write objects of writer cli"):
            await attempt
    with pytest.raises(Denied):
        await anext(host.watch_status())
    await (await as_(controller, pki, "h2", stack)).put_status(HostStatus(id="h2"))
    assert [status.id for status in await host.statuses()] == ["h1"]


async def test_a_writer_writes_under_its_own_name(
    controller: Running, pki: Path, stack: contextlib.AsyncExitStack
) -> None:
    neutron = await as_(controller, pki, "neutron", stack)
    await neutron.put(record("network", "n1", "neutron", segment={"id": 1}))
    with pytest.raises(Denied, match="writer neutron may not write objects of writer cli"):
        await neutron.put(record("network", "n2", "cli", segment={"id": 1}))
    with pytest.raises(Denied):
        await neutron.batch([record("network", "n1", "neutron", segment={"id": 1}), STATE[2]])
    assert len((await neutron.list("network")).items) == 1
    await neutron.put_status(HostStatus(id="neutron"))
    with pytest.raises(Denied):
        await neutron.sign("h1", new_request("h1")[1])
    with pytest.raises(Denied):
        await neutron.put_status(HostStatus(id="h1"))


async def test_enrolling_makes_an_identity_and_renewing_keeps_it(
    controller: Running, pki: Path, stack: contextlib.AsyncExitStack, tmp_path: Path
) -> None:
    operator = await as_(controller, pki, "cli", stack)
    # Whatever the request claims, the certificate is for the host that the path names.
    key, request = new_request("cli")
    signed = await operator.sign("h9", request)
    files = Files.at(tmp_path / "h9", "host")
    files.key.parent.mkdir()
    files.key.write_bytes(key)
    files.certificate.write_text(signed.certificate)
    files.authority.write_text(signed.authority)
    assert common_name(files.certificate) == "h9"
    assert dt.timedelta(days=364) < expiry(files.certificate) - dt.datetime.now(dt.UTC) < dt.timedelta(days=366)
    assert [item.id for item in (await operator.list("host")).items] == ["h9"], "known from now on"
    host = await stack.enter_async_context(Client(controller.url, tls=files))
    await host.put_status(HostStatus(id="h9", vteps=("192.0.2.9",)))
    assert (await host.sign("h9", new_request("h9")[1])).certificate != signed.certificate
    with pytest.raises(Denied, match="host h9 may not enroll host h1"):
        await host.sign("h1", new_request("h1")[1])
    stored = await operator.get("host", "h9")
    assert stored is not None
    assert stored.body == {"id": "h9", "vteps": ["192.0.2.9"]}, "renewing takes nothing away"
    with pytest.raises(InvalidInput, match="host h1: the certificate request cannot be read"):
        await operator.sign("h1", b"nonsense")


async def test_no_certificate_no_answer(controller: Running, pki: Path) -> None:
    context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
    address, _, tcp = controller.url.removeprefix("https://").partition(":")
    reader, writer = await asyncio.open_connection(address, int(tcp), ssl=context)
    writer.write(b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
    # With TLS 1.3 the refusal arrives with the first read.
    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    writer.close()


async def test_a_foreign_authority_is_no_authority(controller: Running, tmp_path: Path, pki: Path) -> None:
    foreign = tmp_path / "foreign"
    files = Authority.create(foreign).issue(foreign, "client", "operator", "cli")
    mixed = Files(pki / "ca.crt", files.certificate, files.key)
    with pytest.raises(Unavailable):
        async with Client(controller.url, tls=mixed) as client:
            await client.health()
    with pytest.raises(Unavailable, match="certificate"):
        async with Client(controller.url, tls=files) as client:
            await client.health()


async def test_a_server_under_another_name_is_refused(tmp_path: Path, pki: Path) -> None:
    Authority.load(pki).issue(pki, "controller", "controller", "other", ["other.example.org"])
    config = ControllerConfig(listen="127.0.0.1:0", store=f"sqlite:{tmp_path / 's.db'}", certificates=str(pki))
    async with running(config) as controller, Client(controller.url, tls=Files.at(pki, "cli")) as client:
        with pytest.raises(Unavailable, match=r"not valid for '127\.0\.0\.1'.*; use a name that it has \(`headrace"):
            await client.health()


async def test_a_hosts_certificate_serves_nobody(tmp_path: Path, pki: Path) -> None:
    """A host that could pose as the controller could program every other host."""
    files = Authority.load(pki).issue(tmp_path / "h", "controller", "host", "h1", ["127.0.0.1"])
    (tmp_path / "h" / "ca.key").unlink(missing_ok=True)
    config = ControllerConfig(
        listen="127.0.0.1:0", store=f"sqlite:{tmp_path / 's.db'}", certificates=str(files.key.parent)
    )
    async with running(config) as controller, Client(controller.url, tls=Files.at(pki, "cli")) as client:
        with pytest.raises(Unavailable, match="certificate"):
            await client.health()


async def test_renewed_certificates_are_taken_into_use(controller: Running, pki: Path) -> None:
    async with Client(controller.url, tls=Files.at(pki, "cli")) as client:
        await client.health()
        Authority.load(pki).issue(pki, "controller", "controller", "renewed", ["127.0.0.1"])
        controller.reload()
        await client.health()  # what is open stays open
    address, _, tcp = controller.url.removeprefix("https://").partition(":")
    context = Files.at(pki, "cli").client_context()
    _, writer = await asyncio.open_connection(address, int(tcp), ssl=context)
    assert "renewed" in str(writer.get_extra_info("peercert")["subject"])
    writer.close()
    (pki / "controller.crt").write_text("nonsense")
    with pytest.raises(InvalidInput, match=r"controller\.crt"):
        controller.reload()


async def test_a_certificate_of_no_role_is_denied(controller: Running, pki: Path) -> None:
    files = Authority.load(pki).issue(pki, "odd", "toaster", "t1")  # type: ignore[arg-type]
    async with Client(controller.url, tls=files) as client:
        with pytest.raises(Denied, match="of no role"):
            await client.health()


def test_an_authority_is_made_once_and_keys_are_private(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path)
    with pytest.raises(InvalidInput, match=r"ca\.key exists"):
        Authority.create(tmp_path)
    files = authority.issue(tmp_path, "host", "host", "h1")
    for path in (tmp_path / "ca.key", files.key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert isinstance(certificate.signature_hash_algorithm, hashes.SHA256)


def test_a_controller_keeps_the_names_it_was_given(tmp_path: Path) -> None:
    def init(*arguments: str) -> None:
        done = CliRunner().invoke(root, ["controller", "init", "--directory", str(tmp_path), *arguments])
        assert done.exit_code == 0, done.output

    init("--name", "ctl.example", "--name", "192.0.2.9")
    init("--name", "other.example")
    init()
    assert {"ctl.example", "192.0.2.9", "other.example", "localhost"} <= set(names_in(tmp_path / "controller.crt"))


def test_a_missing_certificate_is_named_with_its_cure(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"ca\.crt is missing; `headrace controller init`"):
        Files.at(tmp_path, "client").client_context()
    with pytest.raises(InvalidInput, match="controller init"):
        Authority.load(tmp_path)


async def test_another_controller_without_the_key_serves_but_does_not_enroll(tmp_path: Path, pki: Path) -> None:
    (pki / "ca.key").rename(tmp_path / "ca.key")
    config = ControllerConfig(listen="127.0.0.1:0", store=f"sqlite:{tmp_path / 's.db'}", certificates=str(pki))
    async with running(config) as controller, Client(controller.url, tls=Files.at(pki, "cli")) as client:
        assert (await client.health()).store == "ok"
        with pytest.raises(InvalidInput, match=r"no authority's key \(ca\.key\)"):
            await client.sign("h1", new_request("h1")[1])
        with pytest.raises(NotFound):
            await client._ask("GET", "/v1/ports/none", Record)


def test_where_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match=r"file/h1/host\.key cannot be written: Not a directory"):
        write(tmp_path / "file" / "h1" / "host.key", b"", secret=True)


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "host.crt").write_text("nonsense")
    with pytest.raises(InvalidInput, match=r"certificate .*host\.crt: .*; bring it anew"):
        common_name(tmp_path / "host.crt")
