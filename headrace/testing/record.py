"""Builders of records for tests that speak to a controller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headrace.controller.config import ControllerConfig
from headrace.model import Record


def record(
    type_: str, id_: str, *, writer: str = "neutron", epoch: str = "w1", revision: int = 1, **body: Any
) -> Record:
    """A put; ``body``: the object's fields."""
    return Record(type=type_, id=id_, writer=writer, writer_epoch=epoch, revision=revision, body={"id": id_, **body})


def network(id_: str, **options: Any) -> Record:
    """A put of a network."""
    return record("network", id_, **{"segment": {"id": 7}, **options})


def port(id_: str, network_: str = "n1", **options: Any) -> Record:
    """A put of a port."""
    return record("port", id_, **{"network": network_, "mac": "02:00:00:00:00:01", **options})


def gone(type_: str, id_: str, *, writer: str = "neutron", epoch: str = "w1", revision: int = 0) -> Record:
    """A delete."""
    return Record(type=type_, id=id_, writer=writer, writer_epoch=epoch, revision=revision)


def config(directory: Path) -> ControllerConfig:
    """A controller on loopback, without TLS, on a free port."""
    return ControllerConfig(listen="127.0.0.1:0", store=f"sqlite:{directory / 'state.db'}", tls=False)
