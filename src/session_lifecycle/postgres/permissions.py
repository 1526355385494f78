"""The rights of the database roles: the SQL that grants them, and what a role has too much or too little of.

`docs/reference/permissions.md` explains the roles; a test compares its statements with those of here.
"""

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from session_lifecycle.entities import KEY_TABLE, VERSION_TABLE, metadata, quoted
from session_lifecycle.errors import SchemaError
from session_lifecycle.models.schema import RoleReport
from session_lifecycle.postgres.schema_check import UPGRADE_COMMAND
from session_lifecycle.settings import DEFAULT_SCHEMA

DEFAULT_PREFIX = "sessions_"
RUNS_SEQUENCE = "session_runs_record_no_seq"
"""The one sequence that an insert names; the others belong to columns that are always generated."""


class DatabaseRole(StrEnum):
    """The roles that share the work on a database."""

    MIGRATOR = "migrator"
    WORKER = "worker"
    ROLLER = "roller"
    OPERATOR = "operator"
    READER = "reader"


class Grant(NamedTuple):
    """Rights on tables."""

    rights: tuple[str, ...]
    tables: tuple[str, ...]


SELECT, INSERT, UPDATE, DELETE = "SELECT", "INSERT", "UPDATE", "DELETE"
ALL_RIGHTS = (SELECT, INSERT, UPDATE, DELETE)
RIGHTS_OF_OWNERS = ("TRUNCATE", "REFERENCES", "TRIGGER")
"""Rights on tables that no role but the owner needs."""
TABLES = tuple(sorted(table.name for table in metadata.tables.values()))
GRANTS = {
    DatabaseRole.WORKER: (
        Grant(ALL_RIGHTS, ("session_records", "session_model_usage", "session_usage_events", "session_reservations")),
        Grant((SELECT, INSERT, UPDATE), ("session_runs", "session_steps", "session_messages", "session_annotations")),
        Grant((SELECT, DELETE), ("rolled_up_sessions",)),
        Grant((SELECT, INSERT), ("session_roll_up_changes", "session_model_roll_up_changes")),
        Grant(
            (SELECT,),
            (
                "session_roll_ups",
                "session_model_roll_ups",
                "session_budgets",
                "session_tombstones",
                "session_buckets",
                VERSION_TABLE,
            ),
        ),
    ),
    DatabaseRole.ROLLER: (
        Grant((SELECT, UPDATE), ("session_records",)),
        Grant((SELECT,), ("session_model_usage", "session_buckets", VERSION_TABLE)),
        Grant(
            (SELECT, INSERT, DELETE),
            ("rolled_up_sessions", "session_roll_up_changes", "session_model_roll_up_changes"),
        ),
        Grant(ALL_RIGHTS, ("session_roll_ups", "session_model_roll_ups")),
    ),
    DatabaseRole.OPERATOR: (Grant(ALL_RIGHTS, TABLES), Grant((SELECT,), (VERSION_TABLE,))),
    DatabaseRole.READER: (Grant((SELECT,), (*TABLES, VERSION_TABLE)),),
}
"""The rights on tables of each role but the one that migrates, which owns the tables."""
_ATTRIBUTE = " (an attribute of the role)"
NEEDS_SEQUENCE = {DatabaseRole.WORKER, DatabaseRole.OPERATOR}

# A row for each right that the current role has: its kind, the object, the right.
_HELD = text("""
WITH place AS (SELECT n.oid FROM pg_catalog.pg_namespace n WHERE n.nspname = :schema)
SELECT 'table', c.relname::text, r.name
FROM pg_catalog.pg_class c
JOIN place ON place.oid = c.relnamespace
CROSS JOIN pg_catalog.unnest(CAST(:rights AS text[])) r (name)
WHERE c.relkind IN ('r', 'p') AND pg_catalog.has_table_privilege(c.oid, r.name)
UNION ALL
SELECT 'sequence', c.relname::text, 'USAGE'
FROM pg_catalog.pg_class c
JOIN place ON place.oid = c.relnamespace
-- A sequence of a column that is always generated is used with the rights on the table.
WHERE c.relkind = 'S' AND c.relname = :sequence AND pg_catalog.has_sequence_privilege(c.oid, 'USAGE')
UNION ALL
SELECT 'schema', '', r.name
FROM place CROSS JOIN (VALUES ('USAGE'), ('CREATE')) r (name)
WHERE pg_catalog.has_schema_privilege(place.oid, r.name)
UNION ALL
SELECT 'refused function', p.oid::regprocedure::text, 'EXECUTE'
FROM pg_catalog.pg_proc p
JOIN place ON place.oid = p.pronamespace
-- Row-level security keeps this one for the owner.
WHERE p.proname <> 'signed_viewer' AND NOT pg_catalog.has_function_privilege(p.oid, 'EXECUTE')
UNION ALL
SELECT 'attribute', '', a.name
FROM pg_catalog.pg_roles r
CROSS JOIN LATERAL (
    VALUES ('SUPERUSER', r.rolsuper), ('BYPASSRLS', r.rolbypassrls), ('CREATEROLE', r.rolcreaterole)
) a (name, has)
WHERE r.rolname = current_user AND a.has
UNION ALL
SELECT 'migrated', '', ''
FROM pg_catalog.pg_class c
JOIN place ON place.oid = c.relnamespace
WHERE c.relname = :version_table
""")


def identifier(name: str) -> str:
    """The name as SQL writes it, in quotes only where it needs them or may be a keyword."""
    is_plain = name == DEFAULT_SCHEMA or re.fullmatch(r"[a-z][a-z0-9]*_[a-z0-9_]*", name)
    return name if is_plain else quoted(name)


def role_sql(schema: str, role: DatabaseRole, name: str, *, database: str | None = None, create: bool = False) -> str:
    """The statements that give a role of this name what it needs, and nothing more.

    Args:
        schema: The Postgres schema of the tables.
        role: What the role does.
        name: The name of the role.
        database: The database, where the role that migrates may create the schema; None: `CREATE SCHEMA` makes the role
            the owner of the schema instead.
        create: Whether the role is created as well, without a password.
    """
    to, place = identifier(name), identifier(schema)
    statements = [f"CREATE ROLE {to} LOGIN;"] if create else []
    if role is DatabaseRole.MIGRATOR:
        if database is None:
            statements.append(f"CREATE SCHEMA IF NOT EXISTS {place} AUTHORIZATION {to};")
        else:
            statements.append(f"GRANT CREATE ON DATABASE {identifier(database)} TO {to};")
        return "\n".join(statements)
    statements.append(f"GRANT USAGE ON SCHEMA {place} TO {to};")
    for rights, tables in GRANTS[role]:
        named = ",\n    ".join(f"{place}.{table}" for table in tables)
        statements.append(f"GRANT {', '.join(rights)} ON\n    {named}\nTO {to};")
    if role in NEEDS_SEQUENCE:
        statements.append(f"GRANT USAGE ON SEQUENCE {place}.{RUNS_SEQUENCE} TO {to};")
    statements.append(f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {place} TO {to};")
    return "\n".join(statements)


async def check_role(connection: AsyncConnection, schema: str, role: DatabaseRole) -> RoleReport:
    """Compares the rights of the connection's role with those that a role needs.

    Membership counts: a right of another role that the role has by it is a right of the role.

    Raises:
        SchemaError: The schema is not migrated, so only the role that migrates can have its rights yet.
    """
    asked = {"schema": schema, "rights": [*ALL_RIGHTS, *RIGHTS_OF_OWNERS], "sequence": RUNS_SEQUENCE}
    asked["version_table"] = VERSION_TABLE
    held = {(kind, name, right) for kind, name, right in await connection.execute(_HELD, asked)}
    if ("migrated", "", "") not in held and role is not DatabaseRole.MIGRATOR:
        raise SchemaError(
            f"schema {schema!r} is not migrated: run `{UPGRADE_COMMAND}`, and grant the rights afterwards"
        )
    held.discard(("migrated", "", ""))
    current: str = (await connection.exec_driver_sql("SELECT current_user")).scalar_one()
    refused = {one for one in held if one[0] == "refused function"}
    held -= refused
    ours = {*TABLES, VERSION_TABLE, KEY_TABLE}
    held = {one for one in held if one[0] != "table" or one[1] in ours}
    if role is DatabaseRole.MIGRATOR:
        needed = {("schema", "", right) for right in ("USAGE", "CREATE")}
        # The owner of the tables has every right on them.
        held = {one for one in held if one[0] in {"schema", "attribute"}}
    else:
        needed = {("table", table, right) for rights, tables in GRANTS[role] for table in tables for right in rights}
        needed.add(("schema", "", "USAGE"))
        if role in NEEDS_SEQUENCE:
            needed.add(("sequence", RUNS_SEQUENCE, "USAGE"))
    if ("attribute", "", "SUPERUSER") in held:
        # A superuser has every right, so only the attributes say something.
        held = needed | {one for one in held if one[0] == "attribute"}
    missing = [*sorted(needed - held), *(sorted(refused) if role is not DatabaseRole.MIGRATOR else ())]
    return RoleReport(
        role=current,
        checked_as=role.value,
        missing=_said(missing, schema),
        excess=_said(sorted(held - needed), schema),
    )


def revoke_advice(report: RoleReport, schema: str) -> str:
    """What takes away the rights that the role does not need: SQL, or another role where it has them as an owner."""
    of_owner = {f"CREATE on schema {schema}", *(f"{right} on session_records" for right in RIGHTS_OF_OWNERS)}
    if of_owner <= set(report.excess) or any(one.endswith(_ATTRIBUTE) for one in report.excess):
        return f"connect as a role of its own: session-lifecycle db roles --create --role {report.checked_as}"
    rights: dict[str, list[str]] = {}
    for one in report.excess:
        right, _, what = one.partition(" on ")
        rights.setdefault(_named(what, identifier(schema)), []).append(right)
    to = identifier(report.role)
    return "; ".join(f"REVOKE {', '.join(those)} ON {what} FROM {to}" for what, those in rights.items())


def _named(what: str, place: str) -> str:
    if what.startswith("schema "):
        return f"SCHEMA {place}"
    return f"SEQUENCE {place}.{what}" if what == RUNS_SEQUENCE else f"{place}.{what}"


def _said(rights: Sequence[tuple[str, str, str]], schema: str) -> tuple[str, ...]:
    """The rights in words: `INSERT on session_runs`."""

    def said(kind: str, name: str, right: str) -> str:
        if kind == "attribute":
            return f"{right}{_ATTRIBUTE}"
        return f"{right} on {f'schema {schema}' if kind == 'schema' else name}"

    return tuple(said(*one) for one in rights)
