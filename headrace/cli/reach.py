"""How a command reaches the controller: two options, and a client that lives as long as the question."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from headrace.controller.client import Client
    from headrace.model import Record

Answer = TypeVar("Answer")
Function = TypeVar("Function", bound=Callable[..., Any])

CONTROLLER = "https://127.0.0.1:9797"
DIRECTORY = "/etc/headrace"


class Reach:
    """A controller's URL and the certificates to show it."""

    def __init__(self, url: str, certificates: str) -> None:
        self.url = url
        self.certificates = certificates

    def ask(self, question: Callable[[Client], Awaitable[Answer]], *, identity: str = "client") -> Answer:
        """Run a question in an event loop of its own; ``identity`` is the name of the certificate to show."""
        import asyncio

        from headrace.controller.client import Client
        from headrace.controller.identity import Files
        from headrace.errors import Unavailable

        async def answer() -> Answer:
            async with Client(self.url, tls=Files.at(self.certificates, identity)) as client:
                return await question(client)

        try:
            return asyncio.run(answer())
        except Unavailable as error:
            if self.url != CONTROLLER or not isinstance(error.__cause__, OSError):
                raise
            raise Unavailable(
                f"{error}; where it is elsewhere, say so by --controller or HEADRACE_CONTROLLER"
            ) from None


def reaching(function: Function) -> Function:
    """Give a command the options, and a `Reach` as its first argument."""

    @click.option(
        "--controller",
        "url",
        metavar="URL",
        envvar="HEADRACE_CONTROLLER",
        default=CONTROLLER,
        show_default=True,
        help="The controller.",
    )
    @click.option(
        "--certificates",
        type=click.Path(file_okay=False),
        envvar="HEADRACE_CERTIFICATES",
        default=DIRECTORY,
        show_default=True,
        help="Where ca.crt, client.crt and client.key are.",
    )
    @functools.wraps(function)
    def command(*given: Any, url: str, certificates: str, **options: Any) -> Any:
        return function(*given, Reach(url, certificates), **options)

    return command  # type: ignore[return-value]


async def find(client: Client, type_name: str, name: str) -> Record:
    """The object with an id, or else the only one with that name."""
    from headrace.errors import InvalidInput, NotFound

    records = (await client.list(type_name)).items
    label = type_name.replace("_", " ")
    for record in records:
        if record.id == name:
            return record
    named = [record for record in records if (record.body or {}).get("name") == name]
    if not named:
        raise NotFound(f"{label} {name} does not exist; `headrace {label} list` shows what does")
    if len(named) > 1:
        raise InvalidInput(
            f"{label} {name}: {len(named)} have that name; give one's id: {', '.join(r.id for r in named)}"
        )
    return named[0]


def delete(reach: Reach, type_name: str, names: tuple[str, ...]) -> None:
    """Delete objects, as the writer ``cli``."""
    from headrace.controller.desired import CLI
    from headrace.model import Record

    async def question(client: Client) -> list[Record]:
        found = [await find(client, type_name, name) for name in names]
        await client.batch(Record(type=type_name, id=record.id, writer=CLI) for record in found)
        return found

    for record in reach.ask(question):
        click.echo(f"{type_name.replace('_', ' ')} {record.id} deleted")
