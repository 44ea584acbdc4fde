"""Run the demo; whatever ends it, nothing of it stays."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from headrace.errors import HeadraceError
from headrace.testing.demo import firewall, isolation, race, remains, setting, stay, traffic
from headrace.testing.demo.cloud import Cloud
from headrace.testing.demo.narrator import Narrator
from headrace.testing.demo.scene import Scene
from headrace.testing.demo.workload import serving
from headrace.testing.topology import Topology

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Handler = Callable[[int, FrameType | None], None] | signal.Handlers


class Ended(BaseException):
    """A signal told us to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def main() -> int:
    """The exit status: 0 if everything shown was so, 128 + signal if it was broken off."""
    parser = argparse.ArgumentParser(prog="python -m headrace.testing.demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="run through and end; fail if anything shown was not so")
    parser.add_argument("--no-race", action="store_true", help="leave out the comparison with Linux")
    parser.add_argument("--sweep", metavar="NAME", help="only remove what a killed demo left (hr and six digits)")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("error: the demo makes network namespaces and loads eBPF programs; use: sudo make demo", file=sys.stderr)
        return 1
    if arguments.sweep:
        return sweep(arguments.sweep)
    narrator, good = Narrator(), None
    try:
        with owned() as topology:
            scene = Scene(narrator, Cloud(topology))
            setting.raise_cloud(scene)
            setting.make_tenants(scene)
            setting.plug_in(scene)
            with serving(scene.boxes()):
                tell(scene, with_race=not arguments.no_race)
                good = narrator.score()
                if not arguments.once:
                    stay.invite(scene, stay.write_environment(scene))
                    stay.until_told()
    except Ended as end:
        if good is None:
            return 128 + end.number
    except (HeadraceError, OSError) as error:
        narrator.claim("the demo runs to its end", held=False, seen=str(error))
    return 0 if good else 1


def tell(scene: Scene, *, with_race: bool) -> None:
    """The story, once the workloads are there. A chapter that breaks off is a promise not kept; the next follows."""
    rules: list[object] = []
    chapters: list[Callable[[], None]] = [
        lambda: traffic.across_hosts(scene),
        lambda: traffic.to_a_guest(scene),
        lambda: firewall.refused(scene),
        lambda: rules.append(firewall.rule_added(scene)),
        lambda: firewall.rule_removed(scene, rules.pop()),
        lambda: isolation.other_tenant(scene),
        lambda: isolation.spoofing(scene),
        lambda: traffic.flow_table(scene),
        lambda: traffic.without_agent(scene),
    ]
    if with_race:
        chapters.append(lambda: race.race(scene))
    for chapter in chapters:
        try:
            chapter()
        except Exception as error:  # noqa: BLE001 - told, and counted as not kept
            scene.narrator.claim("the chapter runs to its end", held=False, seen=f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def owned() -> Iterator[Topology]:
    """A topology whose every trace is gone afterwards; signals end it in order, and only once."""
    topology = Topology()
    os.environ[remains.MARK] = topology.prefix
    before = handle(end)
    try:
        with topology:
            tempfile.tempdir = os.environ["TMPDIR"] = str(topology.directory)
            try:
                yield topology
            finally:
                handle(signal.SIG_IGN)
                print("The demo ends: its processes, namespaces, mounts and files are removed.", flush=True)
                tempfile.tempdir = None
                os.environ.pop("TMPDIR")
    finally:
        handle(signal.SIG_IGN)
        sweep(topology.prefix)
        for number, handler in before.items():
            signal.signal(number, handler)


def sweep(prefix: str) -> int:
    """Remove whatever carries a demo's name, and say what that was."""
    if not remains.NAME.fullmatch(prefix):
        print(f"error: {prefix} is no demo's name; it would be like hr1f2e3d", file=sys.stderr)
        return 1
    for left in remains.sweep(prefix):
        print(f"also removed: {left}", flush=True)
    return 0


def end(number: int, _: FrameType | None) -> None:
    """First signal: break off. Later ones: cleaning up is under way."""
    handle(signal.SIG_IGN)
    raise Ended(number)


def handle(handler: Handler) -> dict[signal.Signals, Any]:
    """Set the handler of all signals that end the demo; what it was before."""
    return {number: signal.signal(number, handler) for number in SIGNALS}


if __name__ == "__main__":
    sys.exit(main())
