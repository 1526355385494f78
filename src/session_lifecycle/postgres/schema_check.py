"""Whether the schema of a database serves this version of the library (rule R20).

The check looks at what is there, not at a number: tables, columns, indexes, functions by signature, the trigger. A
schema that is newer than this version serves it as long as the function `oldest_served_version_v1` says so.
"""

import asyncio
import re
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import Engine, Select, Text, column, select, table, text
from sqlalchemy.ext.asyncio import AsyncConnection

from session_lifecycle._version import __version__
from session_lifecycle.entities import VERSION_TABLE, metadata, quoted
from session_lifecycle.errors import SchemaError
from session_lifecycle.postgres.function_files import STANDS_FOR, function_files

REVISIONS = ("0001",)
"""Every revision that this version knows, oldest first."""
HEAD = REVISIONS[-1]
TRIGGER = "leave_roll_ups"
SEARCH_INDEX = "ix_session_messages_search"
"""The one part of the schema that a database may lack: it needs the extension pg_trgm."""
SERVED_VERSION = "oldest_served_version_v1"
UPGRADE_COMMAND = "session-lifecycle db upgrade"
LIBRARY_COMMAND = "pip install --upgrade session-lifecycle"
MOST_NAMED = 5
"""How many objects an error names."""

_checked: "WeakKeyDictionary[Engine, set[str]]" = WeakKeyDictionary()


class Kind(StrEnum):
    """The kinds of objects that the check looks for."""

    TABLE = "table"
    COLUMN = "column"
    UNIQUE_INDEX = "unique index"
    INDEX = "index"
    FUNCTION = "function"
    TRIGGER = "trigger"


class SchemaObject(NamedTuple):
    """One object of the schema, by its kind and its name; a function by its signature."""

    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class Inventory(NamedTuple):
    """What is in a schema."""

    objects: dict[SchemaObject, str | None]
    """Each object; a function with the MD5 of its body, or of the body that it stands for."""
    revision: str | None
    """The newest revision that was applied; None where the schema was never migrated."""
    oldest_served_version: str | None
    """The oldest version of the library that the schema serves; None where the schema does not say."""

    @property
    def is_newer(self) -> bool:
        """Whether the schema is at a revision that this version does not know."""
        return self.revision is not None and self.revision not in REVISIONS

    @property
    def serves_this_version(self) -> bool:
        """Whether the schema says that it serves this version."""
        served = self.oldest_served_version
        return served is not None and _release(served) <= _release(__version__)


class Lack(NamedTuple):
    """What a schema lacks of the objects that this version uses."""

    missing: Sequence[SchemaObject]
    replaced: Sequence[SchemaObject]
    """Functions that are there with another body."""
    optional: Sequence[SchemaObject]
    """Objects that the schema may lack."""


# A row for each object: its kind, its name, and the MD5 of a function's body. An index whose build failed counts as
# missing, and so does a disabled trigger.
_OBJECTS = text("""
WITH place AS (SELECT n.oid FROM pg_catalog.pg_namespace n WHERE n.nspname = :schema)
SELECT 'table', c.relname::text, NULL::text
FROM pg_catalog.pg_class c JOIN place ON place.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p')
UNION ALL
SELECT 'column', pg_catalog.concat(c.relname, '.', a.attname), NULL
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
JOIN place ON place.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT CASE WHEN x.indisunique THEN 'unique index' ELSE 'index' END, c.relname::text, NULL
FROM pg_catalog.pg_index x
JOIN pg_catalog.pg_class c ON c.oid = x.indexrelid
JOIN place ON place.oid = c.relnamespace
WHERE x.indisvalid
UNION ALL
SELECT 'trigger', t.tgname::text, NULL
FROM pg_catalog.pg_trigger t
JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
JOIN place ON place.oid = c.relnamespace
WHERE t.tgenabled <> 'D' AND NOT t.tgisinternal
UNION ALL
SELECT 'function', f.signature, coalesce(
    pg_catalog.substring(p.prosrc, pg_catalog.concat(CAST(:stands_for AS text), '([0-9a-f]{32})')),
    pg_catalog.md5(p.prosrc)
)
FROM pg_catalog.unnest(CAST(:signatures AS text[])) f (signature)
JOIN pg_catalog.pg_proc p
    ON p.oid = pg_catalog.to_regprocedure(pg_catalog.concat(CAST(:quoted AS text), '.', f.signature))
""")


async def check_schema_once(connection: AsyncConnection, schema: str) -> None:
    """`check_schema`, once for each engine and schema."""
    engine = connection.engine.sync_engine
    if schema not in _checked.get(engine, ()):
        await check_schema(connection, schema)
        _checked.setdefault(engine, set()).add(schema)


async def check_schema(connection: AsyncConnection, schema: str) -> None:
    """Looks whether every statement of this version finds what it needs to give the right answer.

    Raises:
        SchemaError: The schema is not migrated, lacks something, or is newer and does not serve this version. The
            message names what is missing and the command that mends it.
    """
    inventory = await take_inventory(connection, schema)
    refuse_unserved(schema, inventory)
    needed = [one for one in used_objects() if one.kind is not Kind.INDEX]
    _refuse_missing(schema, inventory, [one for one in needed if one not in inventory.objects])


async def check_everything(connection: AsyncConnection, schema: str) -> list[str]:
    """Looks, beside what `check_schema` looks at, for every index and for functions that are not those of this version.

    Returns:
        Advice on optional parts that the schema lacks, a sentence each; empty where it has all of them.

    Raises:
        SchemaError: As `check_schema`; also where an index is missing or a function is another one.
    """
    inventory = await take_inventory(connection, schema)
    refuse_unserved(schema, inventory)
    lack = find_lack(inventory, schema)
    _refuse_missing(schema, inventory, lack.missing)
    if lack.replaced:
        raise SchemaError(
            f"schema {schema!r} has another body than session-lifecycle {__version__} in {_named(lack.replaced)}: "
            f"run `{UPGRADE_COMMAND}`"
        )
    if not lack.optional:
        return []
    advice = f"index {SEARCH_INDEX} is missing, so a search reads all messages it may find"
    return [f"{advice}: run `CREATE EXTENSION pg_trgm` and then `{UPGRADE_COMMAND}`"]


async def take_inventory(connection: AsyncConnection, schema: str) -> Inventory:
    """What is in the schema. A schema that does not exist is empty and no error, so a host's transaction survives."""
    # The files are read once for each process, and not on the event loop.
    files = await asyncio.to_thread(function_files)
    signatures = [one.signature for one in files.values()]
    asked = {"schema": schema, "quoted": quoted(schema), "signatures": signatures, "stands_for": STANDS_FOR}
    found = await connection.execute(_OBJECTS, asked)
    objects = {SchemaObject(Kind(kind), name): body for kind, name, body in found}
    revision = served = None
    if SchemaObject(Kind.TABLE, VERSION_TABLE) in objects:
        applied: Select[str] = select(column("version_num", Text)).select_from(table(VERSION_TABLE, schema=schema))
        revision = max((await connection.execute(applied)).scalars(), default=None)
    if SchemaObject(Kind.FUNCTION, f"{SERVED_VERSION}()") in objects:
        version = text(f"SELECT {quoted(schema)}.{SERVED_VERSION}()".replace(":", "\\:"))
        served = (await connection.execute(version)).scalar_one()
    return Inventory(objects, revision, served)


def used_objects() -> list[SchemaObject]:
    """Every object that this version uses by name.

    A function that only functions call is not among them: a later revision replaces it together with its callers.
    """
    used: list[SchemaObject] = []
    for entity in metadata.sorted_tables:
        used.append(SchemaObject(Kind.TABLE, entity.name))
        used += (SchemaObject(Kind.COLUMN, f"{entity.name}.{one.name}") for one in entity.columns)
        used.append(SchemaObject(Kind.UNIQUE_INDEX, str(entity.primary_key.name)))
        used += (
            SchemaObject(Kind.UNIQUE_INDEX if index.unique else Kind.INDEX, str(index.name))
            for index in sorted(entity.indexes, key=lambda index: str(index.name))
        )
    used.append(SchemaObject(Kind.TRIGGER, TRIGGER))
    used += (SchemaObject(Kind.FUNCTION, one.signature) for one in function_files().values() if one.is_entry)
    return used


def find_lack(inventory: Inventory, schema: str) -> Lack:
    """What the schema lacks.

    At the newest revision of this version, that includes functions that only functions call, and functions with another
    body. A body names its schema, so after a schema was renamed every body is another one.
    """
    used = used_objects()
    bodies: dict[SchemaObject, str] = {}
    if inventory.revision == HEAD:
        bodies = {SchemaObject(Kind.FUNCTION, one.signature): one.body_md5(schema) for one in function_files().values()}
        used += (one for one in bodies if one not in used)
    missing = [one for one in used if one not in inventory.objects]
    replaced = [one for one, body in bodies.items() if inventory.objects.get(one, body) != body]
    search_index = SchemaObject(Kind.INDEX, SEARCH_INDEX)
    return Lack(missing, replaced, [search_index] if search_index not in inventory.objects else [])


def refuse_unserved(schema: str, inventory: Inventory) -> None:
    """Raises SchemaError for a schema that is not migrated, or that is newer and does not serve this version."""
    refuse_left(schema, inventory)
    if inventory.revision is None:
        raise SchemaError(f"schema {schema!r} is not migrated: run `{UPGRADE_COMMAND}`")
    if inventory.is_newer and not inventory.serves_this_version:
        served = inventory.oldest_served_version
        which = "does not say which versions it serves" if served is None else f"serves version {served} and later"
        raise SchemaError(
            f"schema {schema!r} is at revision {inventory.revision}, which {which}; this is session-lifecycle "
            f"{__version__}: run `{LIBRARY_COMMAND}`"
        )


def refuse_left(schema: str, inventory: Inventory) -> None:
    """Raises SchemaError for a schema that a bucket has left: a row that says where the bucket is, and no more."""
    tables = {one.name for one in inventory.objects if one.kind is Kind.TABLE}
    if inventory.revision is None and "session_buckets" in tables and "session_records" not in tables:
        raise SchemaError(
            f"schema {schema!r} is where a bucket was that has moved: reach it by all places of its buckets, with "
            "`SessionDatabase.buckets` or `--place`"
        )


def refuse_lost_data(schema: str, inventory: Inventory, missing: Sequence[SchemaObject]) -> None:
    """Raises SchemaError where a table or a column of a migrated schema is gone: no migration brings its data back."""
    lost = [one for one in missing if one.kind in {Kind.TABLE, Kind.COLUMN}]
    _refuse_missing(schema, inventory, lost)


def _refuse_missing(schema: str, inventory: Inventory, missing: Sequence[SchemaObject]) -> None:
    if missing:
        raise SchemaError(f"schema {schema!r} lacks {_named(missing)}: {_remedy(inventory, missing)}")


def _named(objects: Sequence[SchemaObject]) -> str:
    names = ", ".join(map(str, objects[:MOST_NAMED]))
    return f"{names} and {len(objects) - MOST_NAMED} more" if len(objects) > MOST_NAMED else names


def _remedy(inventory: Inventory, objects: Sequence[SchemaObject]) -> str:
    if inventory.revision == HEAD and any(one.kind in {Kind.TABLE, Kind.COLUMN} for one in objects):
        return "restore the data from a backup"
    version = " of the newer session-lifecycle" if inventory.is_newer else ""
    return f"run `{UPGRADE_COMMAND}`{version}"


def _release(version: str) -> tuple[int, ...]:
    """The release of a version as numbers: `0.2.1.dev3` is `(0, 2, 1)`."""
    release = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in release[0].split(".")) if release else ()
