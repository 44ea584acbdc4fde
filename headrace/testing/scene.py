"""One network of a shared cloud, with ports and groups of its own, gone when the test is.

Scenes of one cloud have the same addresses and MACs on different segments: what leaks from one to another shows.
"""

from __future__ import annotations

import itertools
from typing import Any, Self

from headrace import abi
from headrace.controller.desired import CLI, encode
from headrace.model import Network, Object, Port, Record, Rule, SecurityGroup, Segment
from headrace.stages.view import segment_number
from headrace.testing import world
from headrace.testing.cloud import Cloud, Workload

VNI = 1000
_numbers = itertools.count(1)


class Scene:
    """Names within a scene are short; in the cloud they carry the scene's number."""

    def __init__(self, cloud: Cloud, *, mtu: int = 1450, segment: Segment | None = None) -> None:
        self.cloud = cloud
        self.number = next(_numbers)
        own = segment or Segment(id=VNI + self.number)
        self.network = Network(id=f"s{self.number}", segment=own, mtu=mtu)
        self._made: dict[tuple[str, str], Object] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.cloud.delete(*self._made.values())
        else:  # what failed may be what deleting needs
            self.cloud.forget(*self._made.values())

    def __getitem__(self, name: str) -> Workload:
        return self.cloud[self.id(name)]

    def id(self, name: str) -> str:
        """A name as the cloud has it."""
        return f"s{self.number}{name}"

    def group(self, name: str, *rules: Rule, stateful: bool = True) -> SecurityGroup:
        """A group; remote groups in its rules are named as in the scene."""
        own = []
        for rule in rules:
            remote = rule.remote_group and self.id(rule.remote_group)
            addresses = rule.remote_address_group and self.id(rule.remote_address_group)
            fields = {"id": f"{self.id(name)}-{rule.id}", "remote_group": remote, "remote_address_group": addresses}
            own.append(Rule(**{**{field: getattr(rule, field) for field in rule.__struct_fields__}, **fields}))
        return world.group(self.id(name), *own, stateful=stateful)

    def port(self, name: str, number: int, *groups: str, host: str | None = "h1", **fields: Any) -> Port:
        """A port with MAC and addresses of a number."""
        return world.port(self.id(name), self.network.id, number, *map(self.id, groups), host=host, **fields)

    def write(self, *objects: Object) -> None:
        """Have the controller take objects, without waiting for the agents; they are gone with the scene."""
        records = [Record(type=item.type, id=item.id, writer=CLI, body=encode(item)) for item in objects]
        self.cloud.ask(lambda client: client.batch(records))
        self._made |= {(item.type, item.id): item for item in objects}
        self.cloud.objects |= {(item.type, item.id): item for item in objects}

    def put(self, *objects: Object) -> None:
        """Add or change objects of the scene."""
        known = () if self._made else (self.network,)
        self._made |= {(item.type, item.id): item for item in (*known, *objects)}
        self.cloud.put(*known, *objects)

    def delete(self, *objects: Object) -> None:
        """Remove objects of the scene."""
        for item in objects:
            del self._made[item.type, item.id]
        self.cloud.delete(*objects)

    def connections(self, host: str) -> list[abi.Conn]:
        """What a host remembers of the scene."""
        names = self.cloud.hosts[host].names
        places = {int(index) for index, port in names.ports.items() if port.network == self.network.id}
        places.add(segment_number(self.network.segment))
        return [conn for conn in self.cloud.hosts[host].connections() if {key.where for key in conn.key} & places]

    def pair(self, *rules: Rule, hosts: tuple[str, str] = ("h1", "h2"), **fields: Any) -> tuple[Workload, Workload]:
        """Ports ``a`` (1) and ``b`` (2) in a group ``g`` of these rules, by default all that there are."""
        ends = [
            self.port(name, number, "g", host=host, **fields)
            for name, number, host in (("a", 1, hosts[0]), ("b", 2, hosts[1]))
        ]
        self.put(self.group("g", *(rules or world.ANY)), *ends)
        return self["a"], self["b"]
