"""`alembic/schema.sql`: a migrated database, written down object by object.

Run as a script it writes the file from an embedded Postgres; `make schema` does that.
"""

import asyncio
import re
from pathlib import Path

import asyncpg

from session_lifecycle import SessionDatabase
from session_lifecycle.entities import VERSION_TABLE
from session_lifecycle.postgres.embedded import EmbeddedPostgres, temporary_data_dir
from session_lifecycle.postgres.schema_check import SEARCH_INDEX
from session_lifecycle.settings import DEFAULT_SCHEMA

FILE = Path(__file__).parents[2] / "alembic" / "schema.sql"
HEADER = f"""\
-- What the revisions in versions/ add up to, for reading and reviewing; nothing runs this file. `make schema` writes
-- it, and a test compares it with a migrated database. Left out: the version table, the bodies of functions (they are
-- in functions/), and the index {SEARCH_INDEX}, which exists where the extension pg_trgm may be created.
"""
# A row for each object: its kind, for sorting, its name, and its DDL as far as a reviewer asks for it.
OBJECTS = """
    SELECT 1, c.relname, format(
               E'CREATE TABLE %s (\\n    %s\\n)%s;', c.oid::regclass, p.parts,
               ' WITH (' || array_to_string(c.reloptions, ', ') || ')'
           )
    FROM pg_class c
    CROSS JOIN LATERAL (
        SELECT string_agg(p.part, E',\\n    ' ORDER BY p.kind, p.place, p.part COLLATE "C") AS parts
        FROM (
            SELECT 1 AS kind, a.attnum AS place, concat_ws(
                       ' ', quote_ident(a.attname), format_type(a.atttypid, a.atttypmod),
                       CASE WHEN a.attcollation <> t.typcollation THEN 'COLLATE ' || quote_ident(l.collname) END,
                       CASE WHEN a.attnotnull THEN 'NOT NULL' END,
                       CASE
                           WHEN a.attidentity = 'a' THEN 'GENERATED ALWAYS AS IDENTITY'
                           WHEN a.attgenerated = 's' THEN format('GENERATED ALWAYS AS (%s) STORED', d.expression)
                           ELSE 'DEFAULT ' || d.expression
                       END
                   ) AS part
            FROM pg_attribute a
            JOIN pg_type t ON t.oid = a.atttypid
            LEFT JOIN pg_collation l ON l.oid = a.attcollation
            LEFT JOIN LATERAL (
                SELECT pg_get_expr(d.adbin, d.adrelid) AS expression
                FROM pg_attrdef d WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum
            ) d ON true
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
            UNION ALL
            -- From version 18 on NOT NULL is a constraint as well.
            SELECT 2, 0, format('CONSTRAINT %I %s', o.conname, pg_get_constraintdef(o.oid))
            FROM pg_constraint o WHERE o.conrelid = c.oid AND o.contype <> 'n'
        ) p
    ) p
    WHERE c.relnamespace = $1::text::regnamespace AND c.relkind = 'r'
    UNION ALL
    SELECT 2, i.relname, pg_get_indexdef(i.oid) || ';'
    FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
    WHERE i.relnamespace = $1::text::regnamespace
        AND NOT EXISTS (SELECT FROM pg_constraint o WHERE o.conindid = i.oid)
    UNION ALL
    SELECT 3, t.tgname, pg_get_triggerdef(t.oid) || ';'
    FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
    WHERE c.relnamespace = $1::text::regnamespace AND NOT t.tgisinternal
    UNION ALL
    SELECT 4, f.proname, concat_ws(
               ' ', format('CREATE FUNCTION %s(%s)', f.oid::regproc, pg_get_function_arguments(f.oid)),
               'RETURNS ' || pg_get_function_result(f.oid), 'LANGUAGE ' || l.lanname,
               CASE WHEN f.provolatile = 'i' THEN 'IMMUTABLE' WHEN f.provolatile = 's' THEN 'STABLE' END,
               (SELECT string_agg('SET ' || one, ' ' ORDER BY one COLLATE "C") FROM unnest(f.proconfig) one)
           ) || ';'
    FROM pg_proc f JOIN pg_language l ON l.oid = f.prolang
    WHERE f.pronamespace = $1::text::regnamespace
    ORDER BY 1, 2
"""
NAME = re.compile(r"CREATE (?:UNIQUE )?(TABLE|INDEX|TRIGGER|FUNCTION) (?:\w+\.)?(\w+)")


def objects_in(text: str) -> dict[str, str]:
    """The objects of a text like that of the file, by kind and name.

    Without spaces and parentheses, in which versions of Postgres could differ.
    """
    found = {}
    for part in text.split("\n\n"):
        if named := NAME.match(part):
            found[f"{named[1].lower()} {named[2]}"] = re.sub(r"[\s()]+", " ", part).strip()
    return found


async def schema_text(url: str) -> str:
    """What the file has to be for this migrated database."""
    connection = await asyncpg.connect(url)
    try:
        # Names in the DDL are qualified then.
        await connection.execute("SET search_path = ''")
        rows = await connection.fetch(OBJECTS, DEFAULT_SCHEMA)
    finally:
        await connection.close()
    kept = [row[2] for row in rows if row[1] not in {VERSION_TABLE, SEARCH_INDEX, f"{VERSION_TABLE}_pkc"}]
    return "\n\n".join([HEADER.strip(), *kept]) + "\n"


async def main() -> None:
    with temporary_data_dir() as data_dir:
        async with await EmbeddedPostgres.start(data_dir, durable=False) as server:
            async with SessionDatabase.connect(server.url) as db:
                await db.migrate()
            FILE.write_text(await schema_text(server.url), "utf-8")


if __name__ == "__main__":
    asyncio.run(main())
