"""Configuration: nothing unknown is accepted, and a mistake is named."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from headrace.agent.config import AgentConfig
from headrace.config import load
from headrace.controller.config import ControllerConfig
from headrace.errors import InvalidInput, UnknownField
from headrace.strict import decode

SAMPLE = Path(__file__).parents[2] / "packaging" / "controller.toml"


def written(directory: Path, text: str) -> Path:
    path = directory / "controller.toml"
    path.write_text(text)
    return path


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    config = load(written(tmp_path, ""), ControllerConfig)
    assert config == ControllerConfig()
    assert config.tls, "mutual TLS unless switched off by name"
    assert config.address == ("::", 9797)


def test_the_sample_shows_the_defaults() -> None:
    assert load(SAMPLE, ControllerConfig) == ControllerConfig()


def test_every_key_is_taken(tmp_path: Path) -> None:
    text = 'listen = "127.0.0.1:80"\nstore = "sqlite:/x"\ntls = false\ncertificates = "/y"\nlog = "debug"\n'
    config = load(written(tmp_path, text), ControllerConfig)
    assert config.address == ("127.0.0.1", 80)
    assert (config.store, config.tls, config.certificates, config.log) == ("sqlite:/x", False, "/y", "debug")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('lisen = "x:1"', r"controller\.toml: .*unknown field `lisen`; did you mean `listen`"),
        ('zzz = "x:1"', r"controller\.toml: .*unknown field `zzz`$"),
        ('tls = "no"', r"controller\.toml: Expected `bool`, got `str` - at `\$\.tls`"),
        ('listen = "9797"', r"controller\.toml: .*listen"),
        ('log = "loud"', r"controller\.toml: .*log: 'loud' is none of debug, error, info, warning"),
        ("listen = ", r"controller\.toml: Invalid value"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        load(written(tmp_path, text), ControllerConfig)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none\.toml: No such file or directory; write it"):
        load(tmp_path / "none.toml", ControllerConfig)


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    """As configuration sections and rules are."""

    interface: str = ""


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    """Structs below structs, lists, dictionaries and unions."""

    inner: Inner = msgspec.field(default_factory=Inner)
    many: tuple[Inner, ...] = ()
    named: dict[str, Inner] = {}
    perhaps: Inner | None = None


@pytest.mark.parametrize(
    "text",
    [
        '{"inner":{"inteface":1}}',
        '{"many":[{"inteface":1}]}',
        '{"named":{"x":{"inteface":1}}}',
        '{"perhaps":{"inteface":1}}',
    ],
)
def test_the_nearest_name_is_of_the_struct_meant(text: str) -> None:
    with pytest.raises(UnknownField, match=r"thing 1: .*`inteface`.*did you mean `interface`"):
        decode(text.encode(), Outer, "thing 1")


def test_a_device_leads_to_one_physical_network(tmp_path: Path) -> None:
    path = written(tmp_path, 'host = "h1"\nphysical_networks = {one = "eth1", two = "eth2"}')
    assert load(path, AgentConfig).physical_networks == {"one": "eth1", "two": "eth2"}
    path = written(tmp_path, 'host = "h1"\nphysical_networks = {one = "eth1", two = "eth1"}')
    with pytest.raises(InvalidInput, match=r"physical_networks: one and two are both on eth1; give each its own"):
        load(path, AgentConfig)


@pytest.mark.parametrize(("text", "value"), [("", False), ("mss_clamp = false", False), ("mss_clamp = true", True)])
def test_clamping_is_switched_on_by_name(tmp_path: Path, text: str, value: bool) -> None:  # noqa: FBT001 - a parameter
    assert load(written(tmp_path, f'host = "h1"\n{text}'), AgentConfig).mss_clamp is value


def test_clamping_is_on_or_off(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"Expected `bool`, got `int` - at `\$\.mss_clamp`"):
        load(written(tmp_path, 'host = "h1"\nmss_clamp = 1400'), AgentConfig)
