"""Who is on stage: the cloud, the tenants and their workloads, and the narrator who tells of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from headrace.abi import Reason
from headrace.testing.demo.cloud import Cloud, Host
from headrace.testing.demo.narrator import Narrator, table
from headrace.testing.demo.tenant import Tenant
from headrace.testing.demo.workload import Box, Machine, Workload
from headrace.testing.topology import Command


class Scene:
    """What every chapter works with."""

    def __init__(self, narrator: Narrator, cloud: Cloud) -> None:
        self.narrator = narrator
        self.cloud = cloud
        self.nova: Any = None
        self.tenants: dict[str, Tenant] = {}
        self.workloads: dict[str, Workload] = {}

    def box(self, name: str) -> Box:
        """A workload in a namespace."""
        found = self.workloads[name]
        assert isinstance(found, Box)
        return found

    def machine(self, name: str) -> Machine:
        """A workload that is a guest."""
        found = self.workloads[name]
        assert isinstance(found, Machine)
        return found

    def boxes(self) -> list[Box]:
        """All workloads in namespaces."""
        return [found for found in self.workloads.values() if isinstance(found, Box)]

    def host(self, name: str) -> Host:
        """A host."""
        return self.cloud.hosts[name]

    def ping(self, who: str, address: str, claim: str) -> None:
        """Three pings, all of which must be answered."""
        command = f"ping -c 3 -i 0.2 -W 1 {address}"
        done = self.box(who).run(command)
        lines = [line for line in done.stdout.splitlines() if "transmitted" in line or line.startswith("rtt")]
        self.narrator.did(f"{who} {command}")
        self.narrator.claim(claim, " 3 received" in done.stdout, ", ".join(gist(line) for line in lines))

    def fetch(self, who: str, url: str, claim: str, page: str) -> None:
        """Get a page, which must hold some words."""
        command = f"curl -sS -g -m 3 {url}"
        done = self.box(who).run(command)
        self.narrator.did(f"{who} {command}")
        self.narrator.claim(claim, page in done.stdout, (done.stdout or done.stderr).strip())

    def did(self, who: str, command: Command) -> str:
        """Run something in a workload, and tell of it; returns what it printed."""
        done = self.box(who).run(command)
        text = (done.stdout + done.stderr).strip()
        self.narrator.did(f"{who} {command}", text)
        return text

    @contextlib.contextmanager
    def counting(self, host: str) -> Iterator[dict[Reason, int]]:
        """What a host drops within, by reason; filled in, and shown, at the end."""
        before = self._reasons(host)
        counted: dict[Reason, int] = {}
        yield counted
        after = self._reasons(host)
        counted.update({reason: count - before[reason] for reason, count in after.items() if count > before[reason]})
        for reason in (Reason.FLOODED, Reason.ANSWERED):  # no drops
            counted.pop(reason, None)
        self.narrator.did(f"{host} headrace reason list", "" if counted else "nothing new")
        rows = [(reason.name, f"+{count}", reason.doc) for reason, count in counted.items()]
        self.narrator.show(table(("reason", "packets", "meaning"), rows, right=("packets",)))

    def _reasons(self, host: str) -> dict[Reason, int]:
        rows = json.loads(self.host(host).headrace("reason", "list", "-o", "json"))
        return {Reason[row["reason"]]: row["packets"] for row in rows}


def gist(line: str) -> str:
    """The part of ping's statistics that matters."""
    if line.startswith("rtt"):
        return f"{float(line.split('=')[1].split('/')[1]):.2f} ms"
    return line.partition(", time")[0].replace("packets transmitted", "sent")


def milliseconds(seconds: float) -> str:
    """A duration in whole milliseconds."""
    return f"{seconds * 1000:.0f} ms"
