"""Two tenants as the OpenStack API sees them: each with its own network, groups and ports, and the same addresses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.testing.demo.narrator import Narrator
from headrace.testing.demo.workload import WEB

CIDRS = {4: "10.0.0.0/24", 6: "fd00:10::/64"}
ETHERTYPES = {4: "IPv4", 6: "IPv6"}
PINGS = {4: "icmp", 6: "ipv6-icmp"}


class Tenant:
    """A project, and what it made."""

    def __init__(self, name: str, api: Any, narrator: Narrator, *, aloud: bool = True) -> None:
        self.name = name
        self.api = api
        self.network: Any = None
        self.groups: dict[str, Any] = {}
        self.ports: dict[str, Any] = {}
        self._narrator = narrator
        self._aloud = aloud
        self._names: dict[str, str] = {}

    def call(self, method: str, *arguments: Any, aloud: bool | None = None, **options: Any) -> Any:
        """Call openstacksdk, and say so with names for ids."""
        if self._aloud if aloud is None else aloud:
            words = [self._word(value) for value in arguments]
            words += [f"{key}={self._word(value)}" for key, value in options.items()]
            self._narrator.called(f"{self.name}>", f"{method}({', '.join(words)})")
        made = getattr(self.api, method)(*arguments, **options)
        if (identity := getattr(made, "id", None)) and (name := getattr(made, "name", "")):
            self._names[identity] = name
        return made

    def _word(self, value: Any) -> str:
        if isinstance(value, str):
            return repr(self._names.get(value, value))
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{key}: {self._word(each)}" for key, each in value.items()) + "}"
        if isinstance(value, list):
            return f"[{', '.join(map(self._word, value))}]"
        return repr(value)

    def make_network(self) -> None:
        """A network with an IPv4 and an IPv6 subnet."""
        self.network = self.call("create_network", name=f"{self.name}-net")
        for version, cidr in CIDRS.items():
            self.call(
                "create_subnet",
                name=f"{self.name}-v{version}",
                network_id=self.network.id,
                ip_version=version,
                cidr=cidr,
                enable_dhcp=version == 4,
            )

    def make_groups(self) -> None:
        """``app`` may only send; ``web`` lets ``app`` in: ping, and HTTP on port 80."""
        for name in ("app", "web"):
            self.groups[name] = self.call("create_security_group", name=f"{self.name}-{name}")
        rules = [{"protocol": PINGS[version], "ethertype": ETHERTYPES[version]} for version in CIDRS] + [
            self.web_rule(version) for version in CIDRS
        ]
        common = {
            "direction": "ingress",
            "security_group_id": self.groups["web"].id,
            "remote_group_id": self.groups["app"].id,
        }
        if self._aloud:
            listed = ", ".join(f"{rule['ethertype']} {said(rule)}" for rule in rules)
            call = f"create_security_group_rules([ingress of {self.name}-web from {self.name}-app: {listed}])"
            self._narrator.called(f"{self.name}>", call)
        self.api.create_security_group_rules([common | rule for rule in rules])

    @staticmethod
    def web_rule(version: int, port: int = WEB) -> dict[str, Any]:
        """TCP to one port."""
        ethertype = ETHERTYPES[version]
        return {"protocol": "tcp", "ethertype": ethertype, "port_range_min": port, "port_range_max": port}

    def make_port(self, name: str, groups: list[str], number: int) -> Any:
        """A port with address .number and ::number."""
        self.ports[name] = self.call(
            "create_port",
            name=name,
            network_id=self.network.id,
            security_group_ids=[self.groups[group].id for group in groups],
            fixed_ips=[{"ip_address": f"10.0.0.{number}"}, {"ip_address": f"fd00:10::{number}"}],
        )
        return self.ports[name]

    def allow(self, port: int) -> Any:
        """Let ``app`` into ``web`` on one more TCP port (IPv4)."""
        return self.call(
            "create_security_group_rule",
            security_group_id=self.groups["web"].id,
            direction="ingress",
            **self.web_rule(4, port),
            remote_group_id=self.groups["app"].id,
        )

    def forbid(self, rule: Any) -> None:
        """Take a rule back."""
        self._names[rule.id] = f"the rule for port {rule.port_range_min}"
        self.call("delete_security_group_rule", rule.id)


def said(rule: Mapping[str, Any]) -> str:
    """A rule's protocol and ports."""
    port = rule.get("port_range_min")
    return f"{rule['protocol']} {port}" if port else str(rule["protocol"])
