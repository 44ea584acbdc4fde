"""Whether this host takes new ports: a file in the agent's cache, so that it outlives the agent."""

from __future__ import annotations

from pathlib import Path

from headrace.agent.desired import replace

DRAINED = "drained"


def is_drained(cache: Path) -> bool:
    """Whether an operator has taken the host out."""
    return (cache / DRAINED).exists()


def mark_drained(cache: Path, *, drained: bool) -> None:
    """Have this host take no new ports, or new ones again."""
    path = cache / DRAINED
    if drained:
        replace(path, b"")
    else:
        path.unlink(missing_ok=True)
