"""Which revision a database is at (rule R20)."""

from typing import Any

from sqlalchemy import Column, MetaData, Select, Table, Text, bindparam, func, select
from sqlalchemy.dialects.postgresql import REGCLASS

VERSION_TABLE = "alembic_version"


def version_table_exists() -> Select[*tuple[Any, ...]]:
    """One boolean for the bound `name`, a quoted and qualified table name. A missing table is no error here, so that a
    host's transaction survives the question.
    """
    return select(func.to_regclass(bindparam("name", type_=Text), type_=REGCLASS).is_not(None))


def revisions(schema: str) -> Select[tuple[str]]:
    """The revisions the version table holds: one, or none when the schema was migrated down to nothing."""
    table = Table(VERSION_TABLE, MetaData(), Column("version_num", Text), schema=schema)
    return select(table.c.version_num)
