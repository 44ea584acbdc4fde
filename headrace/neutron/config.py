"""The groups ``[headrace]``, ``[ml2_type_mpls]`` and ``[ml2_type_nsh]`` of neutron.conf or ml2_conf.ini."""

from __future__ import annotations

import hashlib
from pathlib import Path

from neutron_lib._i18n import _
from oslo_config import cfg

from headrace.controller.api import PORT
from headrace.controller.identity import DIRECTORY, Files
from headrace.model.segment import TRANSPORTS
from headrace.neutron.translate import VERSION, WRITER

GROUP = "headrace"
MPLS_GROUP, NSH_GROUP = "ml2_type_mpls", "ml2_type_nsh"

NO_DOMAIN = "openstacklocal"
"""Default of ``dns_domain`` (neutron.conf.common)."""

FILES = Files.at(DIRECTORY, WRITER)

OPTIONS = [
    cfg.StrOpt(
        "controller",
        default=f"http://127.0.0.1:{PORT}",
        help=_("URL of the Headrace controller. With https:// the certificates below are shown and checked."),
    ),
    cfg.StrOpt(
        "ca",
        default=str(FILES.authority),
        help=_("PEM file of the authority that signed the controller's certificate."),
    ),
    cfg.StrOpt(
        "certificate",
        default=str(FILES.certificate),
        help=_("PEM file of the certificate by which the controller knows this plug-in (role writer)."),
    ),
    cfg.StrOpt("key", default=str(FILES.key), help=_("PEM file of the private key of the certificate.")),
    cfg.FloatOpt(
        "poll_interval",
        default=0.05,
        min=0.01,
        max=5,
        help=_("Seconds between looks at the table of changed objects; a change leaves within twice this."),
    ),
    cfg.FloatOpt(
        "ledger_interval",
        default=30,
        min=0.5,
        help=_(
            "Seconds between comparisons of every object's revision with what the controller acknowledged. "
            "Bounds how long a lost mark, or a status that changed while no worker ran, goes unnoticed."
        ),
    ),
    cfg.IntOpt(
        "lease",
        default=10,
        min=2,
        help=_("Seconds that a worker leads without renewing; another takes over this long after it died."),
    ),
]

MPLS_OPTIONS = [
    cfg.ListOpt(
        "label_ranges",
        default=[],
        help=_(
            "Comma-separated <first>:<last> of labels that networks of type mpls are given, each from 16 to 1048575 "
            "(RFC 3032). Every label is a row in the database: give as many as there will be networks."
        ),
    ),
    cfg.StrOpt(
        "transport",
        default=TRANSPORTS["mpls"][0],
        choices=TRANSPORTS["mpls"],
        help=_("What carries MPLS between hosts: UDP (RFC 7510) or GRE (RFC 4023). One for all networks."),
    ),
]

NSH_OPTIONS = [
    cfg.ListOpt(
        "path_ranges",
        default=[],
        help=_(
            "Comma-separated <first>:<last> of service path identifiers that networks of type nsh are given, each from "
            "1 to 16777215 (RFC 8300). Every one is a row in the database: give as many as there will be networks."
        ),
    ),
    cfg.StrOpt(
        "transport",
        default=TRANSPORTS["nsh"][0],
        choices=TRANSPORTS["nsh"],
        help=_(
            "What carries NSH between hosts: VXLAN-GPE, or Ethernet alone where all hosts are on one link. "
            "One for all networks."
        ),
    ),
]

GROUPS = {GROUP: OPTIONS, MPLS_GROUP: MPLS_OPTIONS, NSH_GROUP: NSH_OPTIONS}


def register(conf: cfg.ConfigOpts = cfg.CONF) -> None:
    """Make the groups known to ``conf``. Twice changes nothing."""
    for group, options in GROUPS.items():
        conf.register_opts(options, group=group)


def list_opts() -> list[tuple[str, list[cfg.Opt]]]:
    """For oslo-config-generator."""
    return list(GROUPS.items())


def transports(conf: cfg.ConfigOpts = cfg.CONF) -> dict[str, str]:
    """By network type, what carries it."""
    return {"mpls": conf[MPLS_GROUP].transport, "nsh": conf[NSH_GROUP].transport}


def dns_domain(conf: cfg.ConfigOpts = cfg.CONF) -> str:
    """Neutron's own option ``dns_domain``; its default is nobody's domain, and told to nobody (as ML2/OVN has it)."""
    return "" if conf.dns_domain == NO_DOMAIN else str(conf.dns_domain)


def tls(conf: cfg.ConfigOpts = cfg.CONF) -> Files:
    """The certificates to show to a controller that is reached by https."""
    options = conf[GROUP]
    return Files(Path(options.ca), Path(options.certificate), Path(options.key))


def translation(conf: cfg.ConfigOpts = cfg.CONF) -> str:
    """What decides, beside Neutron's objects, on what they become."""
    carried = " ".join(f"{kind}-{transport}" for kind, transport in sorted(transports(conf).items()))
    return hashlib.sha256(f"{VERSION} {carried} {dns_domain(conf)}".encode()).hexdigest()
