"""Run by alembic, with Neutron's configuration; keeps its own version table beside Neutron's."""

from __future__ import annotations

from typing import Any

from alembic import context
from neutron.db.migration.connection import DBConnection
from neutron_lib.db import model_base

from headrace.neutron import models

VERSION_TABLE = "alembic_version_headrace"

TABLES = {model.__tablename__ for model in models.ALL}


def include_object(_object: object, name: str, type_: str, _reflected: object, _compare_to: object) -> bool:
    """Only our own tables are ours to compare."""
    return type_ != "table" or name in TABLES


def main() -> None:
    """Upgrade, or print the SQL of it."""
    config = context.config
    neutron_config = vars(config)["neutron_config"]
    options: dict[str, Any] = {"version_table": VERSION_TABLE, "include_object": include_object}
    if context.is_offline_mode():
        database = neutron_config.database
        where: dict[str, Any] = (
            {"url": database.connection} if database.connection else {"dialect_name": database.engine}
        )
        context.configure(**where, **options)
        with context.begin_transaction():
            context.run_migrations()
        return
    with DBConnection(neutron_config.database.connection, config.attributes.get("connection")) as connection:
        context.configure(connection=connection, target_metadata=model_base.BASEV2.metadata, **options)
        with context.begin_transaction():
            context.run_migrations()


main()
