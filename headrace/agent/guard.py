"""A guard that needs no agent: nothing passes between workloads' devices and the host's own stack.

The datapath's programs already see to it on devices that they are attached to. A tap that was made anew while no agent
runs has none, so nftables drops by name what such a device brings to, or takes from, IP and ARP. Frames that the
datapath redirects never pass these hooks.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any

from headrace.agent import seam
from headrace.errors import NotSupported

TABLE = "headrace_guard"
SEAM = (seam.NEAR, seam.FAR)
"""What is in there is workloads' too."""
FAMILIES = (("inet", "prerouting", "postrouting"), ("arp", "input", "output"))
"""nftables families, with the hooks where devices' packets arrive and leave."""


def ruleset(devices: Sequence[str]) -> str:
    """An nft script that replaces the guard; without devices it only removes it."""
    lines = []
    for family in ("inet", "arp"):
        lines += [f"table {family} {TABLE}", f"delete table {family} {TABLE}"]
    if devices:
        names = ", ".join(f'"{device}"' for device in (*devices, *SEAM))
        for family, arriving, leaving in FAMILIES:
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


def missing(devices: Sequence[str]) -> list[str]:
    """Chains of the guard that are not in force as installed, by name; a guard that should not be, too."""
    found = []
    for family, arriving, leaving in FAMILIES:
        listed = subprocess.run(
            ["nft", "-j", "list", "table", family, TABLE], text=True, check=False, capture_output=True
        )
        rows = json.loads(listed.stdout)["nftables"] if listed.returncode == 0 else []
        if not devices:
            found += [f"{family} {TABLE}"] if rows else []
            continue
        for chain, hook, match in (("arriving", arriving, "iifname"), ("leaving", leaving, "oifname")):
            if not _in_force(rows, chain, hook, match, {*devices, *SEAM}):
                found.append(f"{family} {TABLE} {chain}")
    return found


def _in_force(rows: Sequence[dict[str, Any]], chain: str, hook: str, match: str, devices: set[str]) -> bool:
    """Whether a chain is at its hook, and its first rule drops what these devices bring or take."""
    chains = [row["chain"] for row in rows if "chain" in row]
    if not any((known["name"], known.get("hook")) == (chain, hook) for known in chains):
        return False
    rules = [row["rule"] for row in rows if "rule" in row and row["rule"]["chain"] == chain]
    if not rules or not any("drop" in part for part in rules[0]["expr"]):
        return False
    left = next((part["match"] for part in rules[0]["expr"] if "match" in part), None)
    if left is None or left["op"] != "==" or left["left"] != {"meta": {"key": match}}:
        return False
    right = left["right"]
    named = right.get("set", []) if isinstance(right, dict) else [right]
    return set(named) >= devices
