"""After the story: what to type to play with the cloud, until Ctrl-C."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path

from rich.panel import Panel
from rich.text import Text

from headrace.testing.demo.cloud import PROGRAMS
from headrace.testing.demo.scene import Scene


def write_environment(scene: Scene) -> Path:
    """A file to source: where everything is, and a command by the name of each host and workload."""
    cloud = scene.cloud
    settings = {
        "OS_AUTH_TYPE": "none",
        "OS_ENDPOINT": cloud.neutron_url,
        "HEADRACE_CONTROLLER": cloud.controller_url,
        "HEADRACE_CERTIFICATES": str(cloud.pki),
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in settings.items()]
    lines += [f"export PATH={shlex.quote(str(PROGRAMS))}:$PATH", 'export no_proxy="127.0.0.1${no_proxy:+,$no_proxy}"']
    for host in cloud.hosts.values():
        lines += [f"{host.name}() {{", '  if [ "$1" = headrace ] && [[ "$2" =~ ^(flow|reason)$ ]]; then']
        lines += [f'    set -- "$@" --config {shlex.quote(str(host.config))}', "  fi"]
        lines += [f'  nsenter --net={host.namespace.path} -- "$@"', "}"]
    for box in scene.boxes():
        lines.append(f'{box.name}() {{ nsenter --net={box.namespace.path} -- "$@"; }}')
    path = cloud.directory / "env"
    path.write_text("\n".join(lines) + "\n")
    return path


def invite(scene: Scene, environment: Path) -> None:
    """Say what there is to try."""
    web, app = scene.tenants["blue"].groups["web"].id, scene.tenants["blue"].groups["app"].id
    blue_web = scene.box("blue-web")
    text = Text()
    for what, commands in (
        ("In another terminal, as root", [f"source {environment}"]),
        (
            "The cloud (each openstack command takes some seconds to start)",
            [
                "openstack network agent list",
                "openstack port list --long",
                f"openstack security group rule create --protocol tcp --dst-port 8080 --remote-group {app} {web}",
            ],
        ),
        (
            "The workloads: blue-app, blue-web, red-app, red-web",
            [f"blue-app curl {blue_web.url(8080)}", f"red-app ping {blue_web.ipv4}", "blue-app bash"],
        ),
        (
            "The hosts: compute-1, compute-2",
            [
                "headrace port list",
                "compute-1 headrace flow list",
                "compute-2 headrace reason list",
                "compute-1 tcpdump -ni up0",
            ],
        ),
    ):
        text.append(f"{what}\n", style="bold")
        for command in commands:
            text.append(f"    {command}\n", style="green")
    text.append(f"\nLogs and state: {scene.cloud.directory}. Ctrl-C ends everything and leaves nothing behind.")
    scene.narrator.console.print()
    scene.narrator.console.print(Panel(text, title="Yours to play with", border_style="cyan"))


def until_told() -> None:
    """Stay until a signal ends it."""
    while True:
        signal.pause()
