"""What the audience sees: chapters, the commands that were run, what came back, and whether it was as promised."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence

import msgspec
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

WIDTH = 112
"""Columns when nobody's terminal says otherwise."""


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """Something shown, and whether it was so."""

    chapter: str
    text: str
    held: bool
    seen: str = ""


class Narrator:
    """Tells the story and keeps the score."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or stdout()
        self.claims: list[Claim] = []
        self._chapter = ""
        self._number = 0
        self._begin = time.monotonic()

    def chapter(self, title: str, text: str = "") -> None:
        """Open a chapter, with a sentence or two on what will be done."""
        self._number += 1
        self._chapter = title
        self.console.print()
        self.console.rule(Text(f"{self._number}  {title}", style="bold cyan"), align="left", style="cyan")
        if text:
            self.console.print(_indented(Text(text), 3))
            self.console.print()

    def did(self, command: str, result: str = "") -> None:
        """A command as it may be typed, and the gist of its answer."""
        self.console.print(_indented(Text.assemble(("$ ", "dim"), (command, "bold")), 3))
        if result:
            self.saw(result)

    def called(self, who: str, call: str, result: str = "") -> None:
        """A call of the OpenStack API, by whom."""
        self.console.print(_indented(Text.assemble((f"{who} ", "magenta"), (call, "bold")), 3))
        if result:
            self.saw(result)

    def saw(self, text: str) -> None:
        """What came back."""
        for line in text.strip("\n").splitlines():
            self.console.print(_indented(Text(line, style="bright_black"), 5))

    def say(self, text: str) -> None:
        """A remark."""
        self.console.print(_indented(Text(text), 3))

    def show(self, what: RenderableType) -> None:
        """A table, set off from the text."""
        self.console.print(Padding(what, (0, 0, 0, 5), expand=False))

    def claim(self, text: str, held: object, seen: str = "") -> bool:
        """Tick or cross: what was promised, whether it was so, and by what it is seen."""
        claim = Claim(chapter=self._chapter, text=text, held=bool(held), seen=seen)
        self.claims.append(claim)
        mark, style = ("✓", "bold green") if claim.held else ("✗", "bold red")
        line = Text.assemble((f"{mark} ", style), (text, "" if claim.held else style))
        if seen:
            line.append(f"  {seen}", style="bright_black")
        self.console.print(_indented(line, 3))
        return claim.held

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Something that takes a while; says how long it took."""
        begin = time.monotonic()
        with self.console.status(f"   {what} ...") if self.console.is_terminal else contextlib.nullcontext():
            yield
        self.console.print(_indented(Text(f"{what}: {time.monotonic() - begin:.1f} s", style="bright_black"), 3))

    def score(self) -> bool:
        """Say what was shown; whether all of it was so."""
        failed = [claim for claim in self.claims if not claim.held]
        self.console.print()
        self.console.rule(Text("What you saw", style="bold cyan"), align="left", style="cyan")
        chapters: dict[str, list[Claim]] = {}
        for claim in self.claims:
            chapters.setdefault(claim.chapter, []).append(claim)
        lines: list[RenderableType] = []
        for chapter, claims in chapters.items():
            held = sum(claim.held for claim in claims)
            good = held == len(claims)
            mark, style = ("✓", "green") if good else ("✗", "bold red")
            lines.append(Text.assemble((f"{mark} ", style), chapter, (f"  {held} of {len(claims)}", "bright_black")))
        lines += [Text(f"  not so: {claim.chapter}: {claim.text}  {claim.seen}", style="red") for claim in failed]
        seconds = time.monotonic() - self._begin
        verdict = "everything was as promised" if not failed else f"{len(failed)} things were NOT as promised"
        end = Text(
            f"{len(self.claims)} claims checked in {seconds:.0f} s: {verdict}", style="bold" if failed else "bold green"
        )
        self.console.print(Padding(Group(*lines, Text(), end), (0, 0, 0, 3), expand=False))
        return not failed


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> Table:
    """A plain table; ``right``: columns of numbers."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    return made


def stdout() -> Console:
    """The terminal in its own width and colours; into a file or pipe, plain and wide enough."""
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=WIDTH)


def _indented(text: Text, columns: int) -> Padding:
    return Padding(text, (0, 0, 0, columns), expand=False)
