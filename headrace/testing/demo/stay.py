"""After the story: what to type to play with the cloud, until Ctrl-C."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path

from rich.text import Text

from headrace.testing.demo.cloud import PROGRAMS
from headrace.testing.demo.scene import Scene
from headrace.testing.demo.workload import ADMIN

HERE = "^(flow|reason|drop|trace|host.(check|verify|drain|uninstall))"
"""What asks the host itself, and so needs to be told which of them it is."""


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
        lines += [f"{host.name}() {{", f'  if [ "$1" = headrace ] && [[ "$2 $3" =~ {HERE} ]]; then']
        lines += [f'    set -- "$@" --config {shlex.quote(str(host.config))}', "  fi"]
        lines += [f'  nsenter --net={host.namespace.path} -- "$@"', "}"]
    for box in scene.boxes():
        lines.append(f'{box.name}() {{ nsenter --net={box.namespace.path} -- "$@"; }}')
    path = cloud.directory / "env"
    path.write_text("\n".join(lines) + "\n")
    return path


def invite(scene: Scene, environment: Path) -> None:
    """Say what there is to try; nothing is framed, so that it can be copied."""
    web = scene.box("blue-web")
    console = scene.narrator.console
    console.print()
    console.rule(Text("Yours to play with", style="bold cyan"), align="left", style="cyan")
    for what, commands in (
        ("In another terminal, as root", [f"source {environment}"]),
        (
            "The cloud (an openstack command takes seconds to start)",
            [
                "openstack port list --long",
                "openstack security group rule create --protocol tcp --dst-port 8080 --remote-group blue-app blue-web",
                "headrace port list",
                f"headrace trace --port red-app 'udp 10.0.0.11:5000 > {web.ipv4}:53'",
            ],
        ),
        (
            "The workloads: blue-app, blue-web, red-app, red-web",
            [f"blue-app curl {web.url(ADMIN)}", f"red-app ping {web.ipv4}", "blue-app bash"],
        ),
        (
            "The hosts: compute-1, compute-2",
            [
                "compute-1 headrace flow list --connection --port blue-app",
                "compute-2 headrace reason list --port blue-web",
                "compute-2 headrace drop watch",
                "compute-1 headrace host verify",
                "compute-1 tcpdump -ni up0 udp port 4789",
            ],
        ),
    ):
        console.print(Text(f"   {what}", style="bold"))
        for command in commands:
            console.print(Text(f"     {command}", style="green"), soft_wrap=True)
    where = f"nsenter --net={web.namespace.path}"
    console.print(
        Text(f"   Without the file: {where} enters blue-web. Logs and state: {scene.cloud.directory}"), soft_wrap=True
    )
    console.print(Text("   Ctrl-C ends everything and leaves nothing behind.", style="bold"))


def until_told() -> None:
    """Stay until a signal ends it."""
    while True:
        signal.pause()
