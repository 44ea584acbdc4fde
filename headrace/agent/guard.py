"""A guard that needs no agent: nothing passes between workloads' devices and the host's own stack.

The datapath's programs already see to it on devices that they are attached to. A tap that was made anew while no agent
runs has none, so nftables drops by name what such a device brings to, or takes from, IP and ARP. Frames that the
datapath redirects never pass these hooks.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from headrace.errors import NotSupported

TABLE = "headrace_guard"


def ruleset(devices: Sequence[str]) -> str:
    """An nft script that replaces the guard; without devices it only removes it."""
    lines = []
    for family in ("inet", "arp"):
        lines += [f"table {family} {TABLE}", f"delete table {family} {TABLE}"]
    if devices:
        names = ", ".join(f'"{device}"' for device in devices)
        for family, arriving, leaving in (("inet", "prerouting", "postrouting"), ("arp", "input", "output")):
            lines += [
                f"table {family} {TABLE} {{",
                f"  chain arriving {{ type filter hook {arriving} priority -500;",
                f"    iifname {{ {names} }} counter drop; }}",
                f"  chain leaving {{ type filter hook {leaving} priority 500;",
                f"    oifname {{ {names} }} counter drop; }}",
                "}",
            ]
    return "\n".join(lines) + "\n"


def install(devices: Sequence[str]) -> None:
    """Put the guard in force, in place of an earlier one; it stays when the agent ends."""
    try:
        subprocess.run(["nft", "-f", "-"], input=ruleset(devices), text=True, check=True, capture_output=True)
    except FileNotFoundError:
        raise NotSupported("the guard needs nftables: install the package, or set guard = []") from None
    except subprocess.CalledProcessError as error:
        raise NotSupported(f"the guard was refused by nftables: {error.stderr.strip()}; or set guard = []") from None
