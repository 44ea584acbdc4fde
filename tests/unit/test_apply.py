"""The command line against a real controller: apply above all, and what it shows afterwards."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from headrace.cli import reach
from headrace.cli.main import COMMANDS, root
from headrace.cli.reach import Reach
from headrace.controller.client import Client
from headrace.controller.config import ControllerConfig
from headrace.controller.identity import Authority
from headrace.errors import Conflict, HeadraceError, InvalidInput, NotFound, Unavailable, UnknownField
from headrace.model import HostStatus, Port, PortStatus, Record
from headrace.model.document import read
from headrace.testing.controller import controller_process, controller_thread

YAML = """
networks:
  - {id: blue, name: Blue, segment: {id: 100}, mtu: 1450}
subnets:
  - {id: blue-4, network: blue, cidr: 10.0.0.0/24}
---
hosts: [{id: h1}]
security_groups:
  - id: web
    rules:
      - {id: http, direction: ingress, protocol: 6, port_min: 80, port_max: 80, remote_cidr: 0.0.0.0/0}
ports:
  - {id: p1, name: web-1, network: blue, mac: 52:54:00:12:34:56, addresses: [10.0.0.1], host: h1,
     security_groups: [web]}
"""

Command = Callable[..., Result]


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with controller_thread(
        ControllerConfig(listen="127.0.0.1:0", store=f"sqlite:{tmp_path / 's.db'}", tls=False)
    ) as url:
        yield url


@pytest.fixture
def headrace(url: str) -> Command:
    def run(*arguments: str, file: str | None = None) -> Result:
        result = CliRunner().invoke(root, arguments, input=file, env={"HEADRACE_CONTROLLER": url})
        if isinstance(result.exception, HeadraceError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result

    return run


def put_status(url: str, status: HostStatus) -> None:
    async def put() -> None:
        async with Client(url) as client:
            await client.put_status(status)

    asyncio.run(put())


def put_record(url: str, record: Record) -> None:
    async def put() -> None:
        async with Client(url) as client:
            await client.put(record)

    asyncio.run(put())


# apply


def test_applying_twice_changes_nothing(headrace: Command) -> None:
    first = headrace("apply", "-", file=YAML).output
    assert "+ network blue\n" in first
    assert "+ port p1\n" in first
    assert "5 new, 0 changed, 0 deleted, 0 unchanged; revision 2" in first
    assert headrace("apply", "-", file=YAML).output == "0 new, 0 changed, 0 deleted, 5 unchanged\n"


def test_changes_are_shown_by_field_and_dry_runs_change_nothing(headrace: Command) -> None:
    headrace("apply", "-", file=YAML)
    changed = YAML.replace("10.0.0.1]", "10.0.0.2]").replace("Blue", "Azure")
    for _ in range(2):
        dry = headrace("apply", "--dry-run", "-", file=changed).output
        assert "~ network blue: name\n~ port p1: addresses\n" in dry
        assert "dry run, nothing was changed" in dry
    assert "0 new, 2 changed" in headrace("apply", "-", file=changed).output
    assert json.loads(headrace("port", "show", "p1", "-o", "json").output)["addresses"] == ["10.0.0.2"]


def test_prune_deletes_only_what_was_applied(headrace: Command, url: str) -> None:
    headrace("apply", "-", file=YAML)
    put_record(url, Record(type="network", id="cloud", writer="neutron", body={"id": "cloud", "segment": {"id": 5}}))
    less = "networks: [{id: green, segment: {id: 101}}]"
    assert "1 new, 0 changed, 0 deleted, 0 unchanged" in headrace("apply", "-", file=less).output
    pruned = headrace("apply", "--prune", "-", file=less).output
    assert "- network blue\n" in pruned, "together with the ports that use it"
    assert "0 new, 0 changed, 5 deleted, 1 unchanged" in pruned
    rows = json.loads(headrace("network", "list", "-o", "json").output)
    assert [row["id"] for row in rows] == ["cloud", "green"]
    assert "5 new" in headrace("apply", "-", file=YAML).output, "what was deleted can be applied again"


def test_an_empty_file_prunes_all_only_if_told_twice(headrace: Command) -> None:
    headrace("apply", "-", file=YAML)
    with pytest.raises(InvalidInput, match=r"holds no object, so --prune would delete all .* add --yes"):
        headrace("apply", "--prune", "-", file="# nothing\n")
    assert "5 deleted" in headrace("apply", "--prune", "--dry-run", "-", file="").output
    assert "5 deleted" in headrace("apply", "--prune", "--yes", "-", file="").output


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("mac: 52:54:00:12:34:56", "MAC 52:54:00:12:34:56"),
        ("mac: 52:54:00:12:34:57, addresses: [10.0.0.1]", "address 10.0.0.1"),
    ],
)
def test_two_ports_with_one_place_are_refused(headrace: Command, body: str, words: str) -> None:
    headrace("apply", "-", file=YAML)
    second = f"ports: [{{id: p2, network: blue, {body}}}]"
    with pytest.raises(InvalidInput, match=rf"port p2 and port web-1 \(p1\) both have {words} on network blue"):
        headrace("apply", "-", file=second)
    with pytest.raises(InvalidInput, match="both have"):
        headrace("apply", "--dry-run", "-", file=f"{YAML}---\n{second}")
    other = "networks: [{id: red, segment: {id: 7}}]\n" + second.replace("blue", "red")
    assert "2 new" in headrace("apply", "-", file=other).output
    assert "0 new, 0 changed" in headrace("apply", "-", file=YAML).output


def test_a_host_with_ports_is_not_forgotten(headrace: Command) -> None:
    headrace("apply", "-", file=YAML)
    with pytest.raises(Conflict, match="host h1 has ports, port p1 for one; move or unbind them, or give --force"):
        headrace("host", "delete", "h1")
    headrace("port", "delete", "p1")
    assert headrace("host", "delete", "h1").output == "host h1 deleted\n"


def test_what_a_cloud_owns_is_refused(headrace: Command, url: str) -> None:
    put_record(url, Record(type="network", id="blue", writer="neutron", body={"id": "blue", "segment": {"id": 5}}))
    for options in ((), ("--dry-run",)):
        with pytest.raises(Conflict, match="network blue: belongs to writer neutron"):
            headrace("apply", *options, "-", file=YAML)


def test_apply_as_json(headrace: Command) -> None:
    answer = json.loads(headrace("apply", "-o", "json", "-", file="networks: [{id: n, segment: {id: 1}}]").output)
    assert answer["changes"] == [{"kind": "new", "type": "network", "id": "n", "fields": []}]
    assert answer["revision"] == 2


def test_an_empty_file_is_nothing(headrace: Command) -> None:
    assert headrace("apply", "-", file="# nothing\n").output == "0 new, 0 changed, 0 deleted, 0 unchanged\n"


def test_an_unknown_host_is_refused(headrace: Command) -> None:
    with pytest.raises(InvalidInput, match="port p1: host: unknown host 'h1'; known: none yet"):
        headrace("apply", "-", file=YAML.replace("hosts: [{id: h1}]", ""))


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("netwoks: []", UnknownField, "x.yaml: unknown list `netwoks`; did you mean `networks`"),
        ("zebras: []", UnknownField, "x.yaml: unknown list `zebras`; known: networks, "),
        ("- a", InvalidInput, "x.yaml: a document is a mapping of lists .* not a list"),
        ("networks: {id: n}", InvalidInput, "x.yaml: networks: give a list, not a mapping"),
        ("networks: [{id: n, segment: {id: 1}, mtuu: 9}]", UnknownField, "network n: .*`mtuu`; did you mean `mtu`"),
        ("networks: [{id: n}]", InvalidInput, "network n: .*`segment`"),
        ("networks: [5]", InvalidInput, "Expected `object`, got `int`"),
        (
            "networks: [{id: n, segment: {id: 1}}]\n---\nnetworks: [{id: n, segment: {id: 2}}]",
            InvalidInput,
            "n is given twice",
        ),
        (
            "ports: [{id: p, network: n, mac: '52:54'}]",
            InvalidInput,
            "port p: mac: '52:54' is not a MAC address .* 52:54:00:12:34:56",
        ),
        (
            "security_groups: [{id: g, rules: [{id: a, direction: up}]}]",
            InvalidInput,
            "security_group g: direction: 'up' is none of ingress, egress|egress, ingress",
        ),
        (
            "security_groups: [{id: g, rules: [{id: a, direction: egress}, {id: b, direction: egress, protocol: x}]}]",
            InvalidInput,
            "security_group g: protocol: 'x' is not a protocol's number: tcp is 6",
        ),
        ("networks: [{id: a b, segment: {id: 1}}]", InvalidInput, "network a b: id: 'a b' is not an id: 1 to 64"),
        ("networks: []\nnetworks: []", InvalidInput, "x.yaml: key `networks` is given twice"),
        ("networks: [", InvalidInput, "x.yaml: while parsing"),
        ("networks: !!python/object:os.system []", InvalidInput, "x.yaml: could not determine a constructor"),
    ],
)
def test_a_mistake_in_a_file_is_named(text: str, kind: type[InvalidInput], words: str) -> None:
    with pytest.raises(kind, match=words):
        read(text.encode(), "x.yaml")


def test_yaml_means_what_it_says() -> None:
    """YAML 1.1 would read these as a number in base 60, a truth value, an octal number and a date."""
    text = "ports: [{id: no, name: 2024-01-02, project: 0101, network: on, mac: 52:54:00:12:34:56, admin_up: false}]"
    [port] = read(text.encode(), "x")
    assert port == Port(
        id="no", name="2024-01-02", project="0101", network="on", mac="52:54:00:12:34:56", admin_up=False
    )


# list and show


@pytest.fixture
def applied(headrace: Command, url: str) -> Command:
    headrace("apply", "-", file=YAML)
    return headrace


def row(output: str, id_: str) -> list[str]:
    """The cells of a table's row."""
    return next(line for line in output.splitlines() if line.startswith(f"{id_} ")).split()


@pytest.mark.parametrize(
    ("state", "reason", "revision", "shown"),
    [
        ("up", "", 99, ["up", "-"]),
        ("up", "", 0, ["up", "revision 2 not applied yet"]),
        ("down", "no device tapp1", 99, ["down", "no device tapp1"]),
        ("error", "MTU 9000 does not fit", 99, ["error", "MTU 9000 does not fit"]),
    ],
)
def test_a_port_shows_what_its_host_says(
    applied: Command, url: str, state: str, reason: str, revision: int, shown: list[str]
) -> None:
    told = PortStatus(id="p1", state=state, reason=reason, revision=revision)  # type: ignore[arg-type]
    put_status(url, HostStatus(id="h1", vteps=("192.0.2.1",), ports=(told,)))
    found = json.loads(applied("port", "show", "web-1", "-o", "json").output)
    assert [found["state"], found["reason"] or "-"] == shown
    assert row(applied("port", "list").output, "p1")[6:] == " ".join(shown).split()


def test_a_port_without_word_says_why(applied: Command, url: str) -> None:
    assert row(applied("port", "list").output, "p1")[6:] == ["down", "host", "h1", "has", "not", "reported"]
    put_status(url, HostStatus(id="h1"))
    assert row(applied("port", "list").output, "p1")[6:] == ["down", "host", "h1", "says", "nothing", "of", "it"]
    refusal = PortStatus(id="p1", state="error", reason="vnic macvtap is not supported")
    put_status(url, HostStatus(id="neutron", ports=(refusal,)))
    assert "neutron: vnic macvtap is not supported" in applied("port", "list").output


OFFERS = """
networks: [{id: red, segment: {id: 200}, dns_domain: a.org}]
subnets:
  - {id: red-4, network: red, cidr: 10.0.0.0/24, gateway: 10.0.0.254, enable_dhcp: true, dns_nameservers: [10.0.0.53],
     host_routes: [{destination: 10.9.0.0/16, nexthop: 10.0.0.9}]}
  - {id: red-6, network: red, cidr: "fd00::/64", enable_dhcp: true, ipv6_ra_mode: slaac, ipv6_address_mode: slaac}
ports:
  - {id: p2, network: red, mac: 52:54:00:12:34:57, addresses: [10.0.0.1, "fd00::1"],
     dhcp_options: [{name: mtu, value: "1400"}, {name: nonsense, value: x}]}
"""


def test_a_port_shows_what_it_is_offered(headrace: Command) -> None:
    headrace("apply", "-", file=OFFERS)
    shown = json.loads(headrace("port", "show", "p2", "-o", "json").output)
    assert shown["dhcpv4"] == [
        {
            "address": "10.0.0.1/24",
            "dns": ["10.0.0.53"],
            "domain": "a.org",
            "router": "10.0.0.254",
            "mtu": 1450,
            "routes": ["10.9.0.0/16 via 10.0.0.9"],
            "options": {"mtu": "1400", "nonsense": "x"},
        }
    ]
    assert shown["dhcpv6"] is None
    assert shown["advert"] == [{"prefix": "fd00::/64", "mode": "slaac", "dns": [], "domain": "a.org", "mtu": 1450}]
    assert shown["dhcp_faults"] == ["DHCPv4 option nonsense has a name that is not known; give its number"]
    assert "10.0.0.1/24" in headrace("port", "show", "p2").output


def test_lists_can_be_narrowed(applied: Command) -> None:
    assert json.loads(applied("port", "list", "--host", "h2", "-o", "json").output) == []
    assert len(json.loads(applied("port", "list", "--host", "h1", "--network", "blue", "-o", "json").output)) == 1


def test_a_host_shows_heartbeat_and_applied_revision(applied: Command, url: str) -> None:
    assert row(applied("host", "list").output, "h1")[1] == "unknown"
    put_status(url, HostStatus(id="h1", vteps=("192.0.2.1",), applied=2, version="0.1.0"))
    cells = row(applied("host", "list").output, "h1")
    assert cells[:6] == ["h1", "alive", "192.0.2.1", "0", "2", "3"]
    assert re.fullmatch(r"\d+s", cells[6])
    assert cells[7] == "0.1.0"
    shown = json.loads(applied("host", "show", "h1", "-o", "json").output)
    assert (shown["applied"], shown["network_types"]) == (2, ["vxlan"])


def test_networks(applied: Command) -> None:
    shown = json.loads(applied("network", "show", "Blue", "-o", "json").output)
    assert (shown["segment"], shown["subnets"], shown["ports"], shown["hosts"]) == ("vxlan 100", ["10.0.0.0/24"], 1, 1)
    with pytest.raises(NotFound, match="network red does not exist; `headrace network list`"):
        applied("network", "show", "red")


def test_delete(applied: Command) -> None:
    with pytest.raises(Conflict, match="network blue is in use by port p1"):
        applied("network", "delete", "blue")
    assert applied("port", "delete", "web-1").output == "port p1 deleted\n"
    applied("network", "delete", "blue")
    assert json.loads(applied("network", "list", "-o", "json").output) == []


# The process


def test_the_process_with_tls_enrolls_restarts_and_remembers(tmp_path: Path) -> None:
    """What an operator types, as processes."""
    directory = tmp_path / "controller"

    def run(url: str, *arguments: str, status: int = 0) -> str:
        command = [
            sys.executable,
            "-m",
            "headrace",
            *arguments,
            "--controller",
            url,
            "--certificates",
            str(directory / "pki"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    with controller_process(directory, tls=True) as url:
        assert "certificate valid until" in run(url, "host", "enroll", "h1")
        first = json.loads(run(url, "controller", "status", "-o", "json"))
    with controller_process(directory, tls=True) as url:
        again = json.loads(run(url, "controller", "status", "-o", "json"))
        assert run(url, "network", "show", "red", status=1).startswith("error: network red does not exist")
    assert (again["epoch"], again["objects"]) == (first["epoch"], 1)


def test_a_controller_that_cannot_start_says_so_once(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f'tls = false\nlisten = "127.0.0.1:0"\nstore = "sqlite:{tmp_path / "s.db"}"\n')
    (tmp_path / "s.db").write_text("nonsense " * 100)
    command = [sys.executable, "-m", "headrace", "controller", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 78, "which systemd is told not to try again"
    assert "error: store" in done.stderr
    assert "damaged" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_lists_every_command_and_imports_none() -> None:
    code = (
        "import sys; from headrace.cli.main import root\n"
        "try: root(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'aiohttp', 'rich', 'msgspec', 'yaml', 'cryptography', 'asyncio'} & sys.modules.keys()\n"
        "print('imported', sorted(heavy))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "imported []" in said
    for name, (_, line) in COMMANDS.items():
        assert f"  {name} " in said
        assert line.split(",")[0][:20] in said


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_is_there(name: str) -> None:
    assert CliRunner().invoke(root, [name, "--help"]).exit_code == 0


def test_help_shows_examples_as_they_are() -> None:
    """A raw docstring would hide from click the mark that says: do not wrap."""
    assert "\n  networks:\n    - {id: blue" in CliRunner().invoke(root, ["apply", "--help"]).output
    assert "\n  headrace controller --config" in CliRunner().invoke(root, ["controller", "--help"]).output


def test_who_did_not_say_where_the_controller_is_is_told_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Authority.create(tmp_path).issue(tmp_path, "client", "operator", "cli")
    nowhere = Reach("https://127.0.0.1:1", str(tmp_path))
    with pytest.raises(Unavailable, match=r"\]$"):
        nowhere.ask(lambda client: client.health())
    monkeypatch.setattr(reach, "CONTROLLER", nowhere.url)
    with pytest.raises(Unavailable, match=r"say so by --controller or HEADRACE_CONTROLLER$"):
        nowhere.ask(lambda client: client.health())
