"""``headrace host check``: whether this host can run the agent, item by item, with the cure for what is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from headrace.cli.local import CONFIG, Local
from headrace.cli.output import output_option, show_list

COLUMNS = ("check", "state", "found", "cure")


@click.command()
@click.option("--config", type=click.Path(dir_okay=False), help=f"The agent's.  [default: {CONFIG}]")
@output_option
def check(config: str | None, output: str) -> None:
    """Whether this host has what the agent needs: kernel, BPF, nftables, certificate, sysctls, uplinks.

    Changes nothing. Exit status 1 when something fails; what is only less than good is a warning.
    """
    import msgspec

    from headrace.agent.readiness import look

    findings = [msgspec.structs.asdict(finding) for finding in look(Local(config, None, None).config())]
    if config is None and not Path(CONFIG).exists():
        cure = "write it (packaging/agent.toml shows every key), or name another with --config"
        missing = {
            "check": "configuration",
            "state": "warn",
            "found": f"no {CONFIG}: defaults are judged",
            "cure": cure,
        }
        findings.insert(0, missing)
    show_list(output, COLUMNS, findings, "nothing looked at")
    if any(finding["state"] == "fail" for finding in findings):
        sys.exit(1)
