"""The migrations make what the models say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from headrace.neutron import models
from headrace.neutron.mariadb import MariaDB


@pytest.mark.needs("mariadb")
def test_migrations_make_what_the_models_say(tmp_path_factory: pytest.TempPathFactory) -> None:
    metadata = sqlalchemy.MetaData()
    for model in models.ALL:
        model.__table__.to_metadata(metadata)
    directory = tmp_path_factory.mktemp("db")
    with MariaDB(directory) as mariadb:
        mariadb.create("neutron")
        configuration = directory / "neutron.conf"
        configuration.write_text(f"[DEFAULT]\ncore_plugin = ml2\n[database]\nconnection = {mariadb.url('neutron')}\n")
        run = Path(sys.executable).with_name("neutron-db-manage")
        command: list[str | Path] = [
            run,
            "--config-file",
            configuration,
            "--subproject",
            "headrace",
            "upgrade",
            "heads",
        ]
        subprocess.run(command, check=True, capture_output=True)
        engine = sqlalchemy.create_engine(mariadb.url("neutron"))
        with engine.connect() as connection:
            context = MigrationContext.configure(
                connection,
                opts={"include_object": lambda _, name, kind, *__: kind != "table" or name in metadata.tables},
            )
            assert compare_metadata(context, metadata) == []
        engine.dispose()
