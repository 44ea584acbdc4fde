"""How a command reaches this host's datapath: where its tables are pinned, and where their names are kept."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from headrace.agent.config import AgentConfig
    from headrace.agent.names import Names, PortName
    from headrace.datapath.reader import Reader

Function = TypeVar("Function", bound=Callable[..., Any])

CONFIG = "/etc/headrace/agent.toml"


class Local:
    """The agent's directories: as given, else as the agent's configuration has them."""

    def __init__(self, config: str | None, bpf: str | None, run: str | None) -> None:
        self._config = config
        self._bpf = bpf
        self._run = run

    @contextmanager
    def open(self) -> Iterator[tuple[Reader, Names]]:
        """The datapath and the names in it. Raises Denied or Unavailable where they cannot be read."""
        from headrace.agent.names import read_names
        from headrace.datapath.reader import Reader

        config = self.config()
        names = read_names(Path(self._run or config.run))
        with Reader(Path(self._bpf or (names.bpf if self._run else "") or config.bpf)) as reader:
            yield reader, names

    def run(self) -> Path:
        """The agent's run directory."""
        return Path(self._run or self.config().run)

    def config(self) -> AgentConfig:
        """The agent's configuration; its defaults where there is no file."""
        from headrace.agent.config import AgentConfig
        from headrace.config import load

        path = self._config or (CONFIG if Path(CONFIG).exists() else None)
        return load(path, AgentConfig) if path else AgentConfig(host="")


def on_this_host(function: Function) -> Function:
    """Give a command the options, and a `Local` as its first argument."""

    @click.option("--config", type=click.Path(dir_okay=False), help=f"The agent's.  [default: {CONFIG}]")
    @click.option("--bpf", type=click.Path(file_okay=False), help="Where the datapath is pinned, if not as configured.")
    @click.option("--run", type=click.Path(file_okay=False), help="The agent's run directory, if not as configured.")
    @functools.wraps(function)
    def command(config: str | None, bpf: str | None, run: str | None, **options: Any) -> Any:
        return function(Local(config, bpf, run), **options)

    return command  # type: ignore[return-value]


def port_index(names: Names, wanted: str) -> int:
    """The index of a port by id, name or device; a sub-port's device is its parent's, a dot and its VLAN."""
    from headrace.errors import InvalidInput, NotFound

    found = [index for index, port in names.ports.items() if wanted in {port.id, port.name, port_device(port)}]
    if not found:
        known = ", ".join(sorted(port.name or port.id for port in names.ports.values())) or "none"
        raise NotFound(f"port {wanted} is not on host {names.host}; here are: {known}")
    if len(found) > 1:
        raise InvalidInput(f"port {wanted}: several have that name; give an id or a device")
    return int(found[0])


def port_device(port: PortName) -> str:
    """The device that carries a port; of a sub-port with its tag: ``tap1.100``."""
    return port.device if port.vlan is None else f"{port.device}.{port.vlan}"


def port_label(names: Names, index: int) -> str:
    """What people call the port behind an index; ``uplink`` for 0."""
    if not index:
        return "uplink"
    port = names.ports.get(str(index))
    return (port.name or port.id) if port else f"port index {index}"
