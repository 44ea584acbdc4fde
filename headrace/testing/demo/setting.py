"""The first chapters: the cloud comes up, tenants make their networks, workloads are plugged in."""

from __future__ import annotations

import time

from headrace.testing import kernel
from headrace.testing.demo.cloud import HOSTS
from headrace.testing.demo.narrator import table
from headrace.testing.demo.scene import Scene, milliseconds
from headrace.testing.demo.tenant import Tenant
from headrace.testing.demo.workload import Box, Machine, Workload
from headrace.testing.wait import wait_until

CAST = (
    ("blue", "blue-app", "app", 11, "compute-1", Box),
    ("blue", "blue-web", "web", 12, "compute-2", Box),
    ("blue", "blue-vm", "web app", 13, "compute-2", Machine),
    ("red", "red-app", "app", 11, "compute-1", Box),
    ("red", "red-web", "web", 12, "compute-2", Box),
)
"""Tenant, workload, security groups, last part of its addresses, host, kind."""

ACTIVE = 30.0
"""Seconds until a port must be ACTIVE on a busy machine; a tenth of one is usual."""


def raise_cloud(scene: Scene) -> None:
    """Chapter 1."""
    narrator, cloud = scene.narrator, scene.cloud
    narrator.chapter(
        "A cloud comes up",
        "Neutron 29 from PyPI on a MariaDB of its own, the Headrace controller, and two hosts: network namespaces "
        "joined by an underlay, a headrace agent in each. Everybody shows a certificate. "
        f"All that is made here is called {cloud.topology.prefix}-something, and goes when the demo ends.",
    )
    with narrator.waiting("the controller"):
        cloud.start_controller()
    cloud.start_neutron()
    with narrator.waiting("two hosts, their underlay and agents"):
        cloud.start_hosts()
    with narrator.waiting("a Debian kernel for the guest (downloaded the first time)"):
        kernel.fetch()
    with narrator.waiting("Neutron's API"):
        cloud.wait_for_neutron()
    scene.nova = cloud.admin()
    for name in ("blue", "red"):
        scene.tenants[name] = Tenant(name, cloud.project(name), narrator, aloud=name == "blue")
    narrator.called("nova>", "agents()")
    alive = wait_until(lambda: agents(scene), 15, "both agents in Neutron")
    narrator.show(table(("agent type", "host", "alive", "vtep"), alive))
    narrator.claim("Neutron knows both hosts, from their own reports", len(alive) == len(HOSTS))


def agents(scene: Scene) -> list[tuple[str, ...]]:
    """The agents that Neutron thinks alive, once they are all there."""
    found = [
        (agent.agent_type, agent.host, "yes", ", ".join(agent.configuration["vteps"]))
        for agent in scene.nova.agents()
        if agent.is_alive
    ]
    return sorted(found) if len(found) == len(HOSTS) else []


def make_tenants(scene: Scene) -> None:
    """Chapter 2."""
    narrator = scene.narrator
    narrator.chapter(
        "Two tenants who chose the same addresses",
        "Through the OpenStack API (openstacksdk). Group app may only send; group web lets app in: ping, and TCP 80.",
    )
    for tenant in scene.tenants.values():
        if tenant.name == "red":
            narrator.say("red makes just the same: the same prefixes, the same addresses.")
        tenant.make_network()
        tenant.make_groups()
    for owner, name, groups, number, *_ in CAST:
        scene.tenants[owner].make_port(name, groups.split(), number)
    blue, red = (scene.tenants[name].ports for name in ("blue", "red"))
    same = [entry["ip_address"] for entry in blue["blue-web"].fixed_ips]
    narrator.claim(
        "blue-web and red-web have the same addresses",
        same == [entry["ip_address"] for entry in red["red-web"].fixed_ips],
        ", ".join(same),
    )


def plug_in(scene: Scene) -> None:
    """Chapter 3."""
    narrator, nova = scene.narrator, scene.nova
    narrator.chapter(
        "Workloads are plugged in, and ports become ACTIVE",
        "As Nova does it: bind the port to a host, then make the device tap<first 11 characters of the port's id>. "
        "Neutron shows ACTIVE when the datapath has acknowledged the port, not before. blue-vm is a real guest.",
    )
    mtus = {tenant.network.id: tenant.network.mtu for tenant in scene.tenants.values()}
    for owner, name, _, _, host, kind in CAST:
        port = scene.tenants[owner].ports[name]
        bound = nova.update_port(port.id, binding_host_id=host)
        narrator.called(
            "nova>", f"update_port({name!r}, binding_host_id={host!r})", f"vif_type {bound.binding_vif_type}"
        )
        scene.workloads[name] = kind(scene.cloud, name, scene.host(host), port, mtus[port.network_id])
    status = {port.id: port.status for port in nova.ports()}
    narrator.claim("bound but not plugged in: DOWN", set(status.values()) == {"DOWN"})
    since = {}
    for workload in scene.workloads.values():
        workload.plug()
        since[workload.port_id] = time.monotonic()
    took = wait_for_active(scene, since)
    rows = [row(workload, took.get(workload.port_id)) for workload in scene.workloads.values()]
    columns = ("port", "addresses", "host", "device", "is a", "status", "after")
    narrator.show(table(columns, rows, right=("after",)))
    narrator.claim("plugged in: all ACTIVE", len(took) == len(since))


def wait_for_active(scene: Scene, since: dict[str, float]) -> dict[str, float]:
    """Seconds from plugging in to ACTIVE, by port."""
    took: dict[str, float] = {}
    deadline = time.monotonic() + ACTIVE
    while len(took) < len(since) and time.monotonic() < deadline:
        for port in scene.nova.ports():
            if port.status == "ACTIVE" and port.id not in took:
                took[port.id] = time.monotonic() - since[port.id]
        for host in scene.cloud.hosts.values():
            host.reached()
        time.sleep(0.05)
    return took


def row(workload: Workload, took: float | None) -> tuple[str, ...]:
    """A workload's line."""
    status = ("ACTIVE", milliseconds(took)) if took is not None else ("DOWN", "-")
    addresses = f"{workload.ipv4} {workload.ipv6}"
    return workload.name, addresses, workload.host.name, workload.device, workload.kind, *status
