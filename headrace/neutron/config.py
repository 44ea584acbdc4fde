"""The ``[headrace]`` group of neutron.conf or ml2_conf.ini."""

from __future__ import annotations

from pathlib import Path

from neutron_lib._i18n import _
from oslo_config import cfg

from headrace.controller.api import PORT
from headrace.controller.identity import DIRECTORY, Files
from headrace.neutron.translate import WRITER

GROUP = "headrace"

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


def register(conf: cfg.ConfigOpts = cfg.CONF) -> None:
    """Make ``conf.headrace`` known. Twice changes nothing."""
    conf.register_opts(OPTIONS, group=GROUP)


def list_opts() -> list[tuple[str, list[cfg.Opt]]]:
    """For oslo-config-generator."""
    return [(GROUP, OPTIONS)]


def dns_domain(conf: cfg.ConfigOpts = cfg.CONF) -> str:
    """Neutron's own option ``dns_domain``; its default is nobody's domain, and told to nobody (as ML2/OVN has it)."""
    return "" if conf.dns_domain == NO_DOMAIN else str(conf.dns_domain)


def tls(conf: cfg.ConfigOpts = cfg.CONF) -> Files:
    """The certificates to show to a controller that is reached by https."""
    options = conf[GROUP]
    return Files(Path(options.ca), Path(options.certificate), Path(options.key))
