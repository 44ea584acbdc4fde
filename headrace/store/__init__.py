"""The state engine under the controller, in etcd v3's terms."""

from headrace.store.engine import (
    Batch,
    Change,
    Commit,
    Compacted,
    Compare,
    Delete,
    Engine,
    Item,
    Put,
    StoreBroken,
)

__all__ = [
    "Batch",
    "Change",
    "Commit",
    "Compacted",
    "Compare",
    "Delete",
    "Engine",
    "Item",
    "Put",
    "StoreBroken",
    "open_engine",
]


def open_engine(url: str) -> Engine:
    """The engine that a URL names: ``sqlite:PATH`` (``sqlite:/var/lib/headrace/state.db``)."""
    from headrace.errors import InvalidInput
    from headrace.store.sqlite import SqliteEngine

    scheme, _, path = url.partition(":")
    if scheme != "sqlite" or not path:
        raise InvalidInput(f"store {url!r}: unknown engine; give sqlite:PATH")
    return SqliteEngine(path)
