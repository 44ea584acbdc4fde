"""Set contenders up, measure them in turns, take them down; whatever happens, leave nothing behind."""

from __future__ import annotations

import contextlib
import signal
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench.contender import Contender, Registry
from bench.cpu import Spinner, one_group
from bench.journal import JOURNAL
from bench.process import CommandError, SetupError
from bench.statistic import Rounds, Row, summarise
from bench.traffic import Stand, start_server
from bench.wiring import Kind, Wiring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from bench.dimension import Dimension, Point, Values
    from bench.rules import Site

LONGEST_S = 150.0
"""Of one measurement, warming up 1 M flows included."""

DISTURBED = 0.05
"""Share of the CPU that others may take before the reader is told."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """``minutes``: measurements that would begin later are left out, and the rows say so."""

    dimensions: Sequence[Dimension]
    contenders: frozenset[str] | None
    rounds: int
    seconds: float
    minutes: float

    def groups(self) -> list[tuple[Site, Kind, list[tuple[Dimension, Point]]]]:
        """What can be measured with one setting up: cells of the same site and kind of ports."""
        groups: dict[tuple[Kind, Site], list[tuple[Dimension, Point]]] = defaultdict(list)
        for dimension in self.dimensions:
            for point in dimension.points:
                groups[point.kind, point.site].append((dimension, point))
        order = sorted(groups, key=lambda group: (group[0] != "veth", group[1]))
        return [(site, kind, groups[kind, site]) for kind, site in order]

    def names(self, dimension: Dimension, point: Point) -> list[str]:
        """Who is measured in a cell."""
        return [
            name
            for name in dimension.contenders
            if (point.only is None or name in point.only) and (self.contenders is None or name in self.contenders)
        ]

    def rounds_of(self, dimension: Dimension) -> int:
        """As asked for, or as few as are enough."""
        return min(self.rounds, dimension.rounds or self.rounds)

    def estimate(self) -> float:
        """Seconds, from what a measurement and a setting up cost besides."""
        cells = [(self.names(dimension, point), point) for _, _, group in self.groups() for dimension, point in group]
        measuring = sum(
            len(self.names(dimension, point)) * self.rounds_of(dimension) * ((dimension.takes or self.seconds) + 0.6)
            for _, _, group in self.groups()
            for dimension, point in group
        )
        warming = sum(150.0 for _, point in cells if point.parameters.get("flows") == 1 << 20)
        standing = {(point.site, point.kind, name) for names, point in cells for name in names}
        return measuring + warming + 3.0 * len(standing)


@dataclass
class Outcome:
    """Rows by dimension, and what the reader must know besides."""

    rows: dict[str, list[Row]] = field(default_factory=lambda: defaultdict(list))
    remarks: dict[str, None] = field(default_factory=dict)

    def remark(self, text: str) -> None:
        self.remarks.setdefault(text)


class Bench:
    """One run."""

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self.plan = plan
        self.say = say
        self.outcome = Outcome()
        self._begin = time.monotonic()

    def run(self) -> Outcome:
        with JOURNAL.open(), _interruptible(), one_group():
            for site, kind, cells in self.plan.groups():
                self._group(site, kind, cells)
        return self.outcome

    def _group(self, site: Site, kind: Kind, cells: list[tuple[Dimension, Point]]) -> None:
        names = dict.fromkeys(name for cell in cells for name in self.plan.names(*cell))
        self.say(f"{site}, {kind} ports: setting up {', '.join(names)}")
        missing: dict[str, str] = {}
        stands: dict[str, Stand] = {}
        stack = contextlib.ExitStack()
        try:
            for name in names:
                try:
                    stands[name] = stand_up(stack, Registry().make(name), kind, site)
                except Exception as error:  # noqa: BLE001 - whatever breaks one contender, the others are measured
                    missing[name] = reason(error)
                    self.outcome.remark(f"{name} is left out: {missing[name]}")
                    self.say(f"{name} is left out: {missing[name]}")
            for dimension, point in cells:
                self._cell(dimension, point, stands, missing)
        finally:
            with _deaf():
                stack.close()

    def _cell(self, dimension: Dimension, point: Point, stands: dict[str, Stand], missing: dict[str, str]) -> None:
        names = self.plan.names(dimension, point)
        reasons = {name: missing[name] for name in names if name in missing}
        values: dict[str, list[Values | None]] = {name: [] for name in names}
        present = [name for name in names if name in stands]
        with contextlib.ExitStack() as stack:
            spinner = stack.enter_context(Spinner()) if dimension.awake and present else None
            if spinner is not None:
                self._calibrate(spinner)
            for turn in range(self.plan.rounds_of(dimension)):
                # Each round begins with another one, so that nobody always comes after the same neighbour.
                for name in present[turn % len(present) :] + present[: turn % len(present)] if present else []:
                    if time.monotonic() - self._begin > self.plan.minutes * 60:
                        reasons[name] = f"no time left within {self.plan.minutes:g} minutes"
                        values[name].append(None)
                        continue
                    try:
                        with _within(LONGEST_S), awake(stands[name]):
                            taken = dimension.measure(stands[name], point, self.plan.seconds, spinner)
                        values[name].append(
                            {key: float(f"{value * dimension.scale:.6g}") for key, value in taken.items()}
                        )
                    except Exception as error:  # noqa: BLE001 - as above
                        reasons[name] = reason(error)
                        values[name].append(None)
                        self.say(f"{dimension.name}: {name}: {reasons[name]}")
        for name in present:
            for remark in stands[name].remarks:
                self.outcome.remark(remark)
        self._record(dimension, point, values, reasons)

    def _calibrate(self, spinner: Spinner) -> None:
        spinner.calibrate()
        if spinner.disturbed > DISTURBED:
            self.outcome.remark(f"others took {spinner.disturbed:.0%} of the CPU while the spinner was calibrated")

    def _record(
        self, dimension: Dimension, point: Point, values: dict[str, list[Values | None]], reasons: dict[str, str]
    ) -> None:
        quantities = dict.fromkeys(key for taken in values.values() for each in taken if each for key in each)
        for quantity in quantities or dimension.units:
            rounds: dict[str, Rounds] = {
                name: [each.get(quantity) if each else None for each in taken]
                for name, taken in values.items()
                if not quantity or quantity in dimension.units or any(each and quantity in each for each in taken)
            }
            labels = point.labels()
            if quantity:
                labels["quantity"] = quantity
            unit = dimension.units.get(quantity) or next(iter(dimension.units.values()))
            rows = summarise(rounds, parameters=labels, unit=unit, against=dimension.against(), reasons=reasons)
            self.outcome.rows[dimension.name] += rows
            found = "  ".join(f"{row.contender} {row.median:.4g}" for row in rows if row.median is not None)
            words = " ".join(f"{key}={value}" for key, value in labels.items())
            elapsed = time.monotonic() - self._begin
            self.say(f"{elapsed // 60:.0f}:{elapsed % 60:02.0f} {dimension.name} {words}: {found or 'nothing'} {unit}")


def reason(error: Exception) -> str:
    """What a row says; an error that nobody foresaw tells its class too."""
    return str(error) if isinstance(error, (SetupError, CommandError)) else f"{type(error).__name__}: {error}"


def stand_up(stack: contextlib.ExitStack, contender: Contender, kind: Kind, site: Site) -> Stand:
    """Wire, set up, start the server, pause; ``stack`` undoes all of it."""
    with contextlib.ExitStack() as own:
        wiring = own.enter_context(Wiring(kind=kind, underlay=site.underlay, cut=site.cut))
        own.callback(contender.teardown)
        contender.setup(wiring, site)
        server = start_server(wiring)
        own.callback(server.stop)
        contender.pause()
        own.callback(contender.resume)
        stack.push(own.pop_all())
    return Stand(contender=contender, wiring=wiring, server=server)


@contextlib.contextmanager
def awake(stand: Stand) -> Iterator[None]:
    stand.contender.resume()
    try:
        yield
    finally:
        stand.contender.pause()


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> Iterator[None]:
    before = [(number, signal.signal(number, handler)) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    try:
        yield
    finally:
        for number, old in before:
            signal.signal(number, old)


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    """No contender may hang the run."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise CommandError(f"not done after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _interruptible() -> contextlib.AbstractContextManager[None]:
    """Let SIGTERM and SIGHUP end us the way Ctrl-C does."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    return _handling(stop)


def _deaf() -> contextlib.AbstractContextManager[None]:
    """Let no impatient second Ctrl-C break off the taking down."""
    return _handling(signal.SIG_IGN)
