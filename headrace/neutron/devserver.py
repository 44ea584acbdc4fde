"""A whole Neutron in one process for the demo, tests and development: ``python -m headrace.neutron.devserver``.

The real API from PyPI on a private MariaDB, without Keystone and RabbitMQ, on the loopback address only. Everything
is in one directory, which a second start uses again. Prints ``READY URL``; SIGTERM or SIGINT ends it and what it
started.
"""

from __future__ import annotations

import argparse
import configparser
import contextlib
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headrace.neutron.mariadb import MariaDB, die_with_parent

DATABASE = "neutron"

PASTE = """\
[composite:neutron]
use = egg:Paste#urlmap
/: neutronversions_composite
/v2.0: neutronapi_v2_0

[composite:neutronapi_v2_0]
use = call:neutron.auth:pipeline_factory
noauth = http_proxy_to_wsgi request_id devcontext catch_errors extensions neutronapiapp_v2_0

[composite:neutronversions_composite]
use = call:neutron.auth:pipeline_factory
noauth = http_proxy_to_wsgi neutronversions

[filter:devcontext]
paste.filter_factory = headrace.neutron.devcontext:DevContext.factory

[filter:request_id]
paste.filter_factory = oslo_middleware:RequestId.factory

[filter:catch_errors]
paste.filter_factory = oslo_middleware:CatchErrors.factory

[filter:http_proxy_to_wsgi]
paste.filter_factory = oslo_middleware.http_proxy_to_wsgi:HTTPProxyToWSGI.factory

[filter:extensions]
paste.filter_factory = neutron.api.extensions:plugin_aware_extension_middleware_factory

[app:neutronversions]
paste.app_factory = neutron.pecan_wsgi.app:versions_factory

[app:neutronapiapp_v2_0]
paste.app_factory = neutron.api.v2.router:APIRouter.factory
"""


def settings(directory: Path, database: str, controller: str) -> dict[str, dict[str, str]]:
    """The configuration by section: production's, but for who is trusted and where things are."""
    return {
        "DEFAULT": {
            "core_plugin": "ml2",
            # Address groups, revisions and tags come with ML2; no router until Headrace routes.
            "service_plugins": "trunk",
            "auth_strategy": "noauth",
            "transport_url": "fake://",
            "rpc_workers": "0",
            "rpc_state_report_workers": "0",
            "enable_traditional_dhcp": "false",
            "notify_nova_on_port_data_changes": "false",
            "api_paste_config": str(directory / "etc/api-paste.ini"),
            "state_path": str(directory / "state"),
            "log_file": str(directory / "neutron.log"),
            "use_stderr": "false",
        },
        "database": {"connection": database, "max_pool_size": "20"},
        "oslo_concurrency": {"lock_path": str(directory / "lock")},
        "ml2": {
            "type_drivers": "flat,vlan,vxlan,geneve,gre,mpls,nsh",
            "tenant_network_types": "vxlan",
            "mechanism_drivers": "headrace",
            "extension_drivers": "port_security",
        },
        "ml2_type_vlan": {"network_vlan_ranges": "physnet1:100:199"},
        "ml2_type_flat": {"flat_networks": "physnet1"},
        "ml2_type_vxlan": {"vni_ranges": "1000:99999"},
        "ml2_type_geneve": {"vni_ranges": "100000:100999"},
        "ml2_type_gre": {"tunnel_id_ranges": "200000:200999"},
        "ml2_type_mpls": {"label_ranges": "1000:1999"},
        "ml2_type_nsh": {"path_ranges": "1:999"},
        "headrace": {"controller": controller},
    }


def write_settings(directory: Path, sections: dict[str, dict[str, str]]) -> Path:
    """Write neutron.conf and what it names; returns it."""
    for name in ("etc", "state", "lock"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    (directory / "etc/api-paste.ini").write_text(PASTE)
    parser = configparser.RawConfigParser(default_section="")
    # The documented way to keep the case of option names.
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_dict(sections)
    path = directory / "etc/neutron.conf"
    with path.open("w") as file:
        parser.write(file)
    return path


def create_schema(database: str) -> None:
    """Make all tables at once: migrations take ten seconds more, and are tested by themselves."""
    import sqlalchemy
    from neutron.db.migration.models import head

    import headrace.neutron.models  # noqa: F401 - known to the metadata by being imported

    engine = sqlalchemy.create_engine(database)
    head.get_metadata().create_all(engine)
    add_default_rules(engine)
    engine.dispose()


def add_default_rules(engine: Any) -> None:
    """The rules that new groups get: Neutron's migrations bring them, its models do not (revision c33da356b165)."""
    from neutron.db.models.securitygroup_default_rules import SecurityGroupDefaultRule
    from sqlalchemy.orm import Session

    with Session(engine) as session, session.begin():
        for ethertype in ("IPv4", "IPv6"):
            egress = {"direction": "egress", "used_in_default_sg": True, "used_in_non_default_sg": True}
            own = {"direction": "ingress", "used_in_default_sg": True, "used_in_non_default_sg": False}
            session.add(SecurityGroupDefaultRule(ethertype=ethertype, **egress))
            session.add(SecurityGroupDefaultRule(ethertype=ethertype, remote_group_id="PARENT", **own))


def load_application(configuration: Path) -> Any:
    """The WSGI application; loads all plug-ins."""
    from oslo_service import backend

    backend.init_backend(backend.BackendType.THREADING)
    os.environ["OS_NEUTRON_CONFIG_DIR"] = str(configuration.parent)
    os.environ["OS_NEUTRON_CONFIG_FILES"] = configuration.name
    # Neutron's module parses the command line as its own.
    arguments, sys.argv = sys.argv, ["neutron-api"]
    try:
        from neutron.wsgi.api import application
    finally:
        sys.argv = arguments
    return application


@contextlib.contextmanager
def worker_thread() -> Iterator[None]:
    """The worker within this process."""
    from headrace.neutron.worker import HeadraceWorker

    worker = HeadraceWorker(own_process=False)
    worker.start()
    try:
        yield
    finally:
        worker.stop()
        worker.wait()


@contextlib.contextmanager
def worker_process(configuration: Path) -> Iterator[None]:
    """The worker where production has it: under neutron-periodic-workers."""
    program = Path(sys.executable).with_name("neutron-periodic-workers")
    log = configuration.parent.parent / "periodic-workers.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [program, "--config-file", configuration, "--log-file", log],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - no other thread runs yet
        )
    (configuration.parent.parent / "periodic-workers.pid").write_text(f"{process.pid}\n")
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def serving(application: Any, port: int) -> Iterator[int]:
    """Answer requests in threads of this process; yields the TCP port."""
    import waitress

    server = waitress.create_server(application, host="127.0.0.1", port=port, threads=8)
    thread = threading.Thread(target=server.run, name="waitress", daemon=True)
    thread.start()
    try:
        yield server.effective_port
    finally:
        server.close()
        server.task_dispatcher.shutdown()


def main() -> None:
    """Run until told to end."""
    parser = argparse.ArgumentParser(prog="python -m headrace.neutron.devserver", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="run directory; kept, and used again")
    parser.add_argument("--port", type=int, default=9696, help="TCP port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--controller", default="http://127.0.0.1:9797", help="URL of the Headrace controller")
    parser.add_argument("--worker", choices=("thread", "process", "none"), default="thread", help="where it runs")
    parser.add_argument("--database", help="use this database (SQLAlchemy URL) and start none")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.OPTION=VALUE", help="one more line of neutron.conf"
    )
    arguments = parser.parse_args()
    # Neutron's and its libraries', at import: not for whoever runs the demo.
    warnings.simplefilter("ignore")
    directory = arguments.dir.resolve()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())

    with contextlib.ExitStack() as stack:
        database = arguments.database
        if database is None:
            mariadb = stack.enter_context(MariaDB(directory / "mariadb"))
            fresh, database = mariadb.create(DATABASE), mariadb.url(DATABASE)
            if fresh:
                create_schema(database)
        sections = settings(directory, database, arguments.controller)
        for line in arguments.set:
            name, _, value = line.partition("=")
            section, _, option = name.rpartition(".")
            sections.setdefault(section, {})[option] = value
        configuration = write_settings(directory, sections)
        if arguments.worker == "process":
            stack.enter_context(worker_process(configuration))
        application = load_application(configuration)
        if arguments.worker == "thread":
            stack.enter_context(worker_thread())
        port = stack.enter_context(serving(application, arguments.port))
        print(f"READY http://127.0.0.1:{port}", flush=True)  # noqa: T201 - who started us waits for it
        ended.wait()


if __name__ == "__main__":
    main()
