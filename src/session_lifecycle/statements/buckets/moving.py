"""The SQL by which a bucket moves: noting changes while it is copied, and leaving a pointer where it was.

Its texts go to the driver as they stand: COPY and DDL take no parameters.
"""

from collections.abc import Sequence
from hashlib import md5

from session_lifecycle.entities import metadata, quoted

NOTES = "bucket_changes"
"""The table that notes the key of every row that changes while its bucket is copied."""
NOTE_FUNCTION = "note_bucket_change"
SKIPPED = {"session_buckets"}
"""What is a bucket's own at each place."""
MOST_NAME_BYTES = 63
MOVES = "hashtextextended($1 || ' moves', 3)"
"""The key of an advisory lock. Who moves the schema `$1` takes it at both places."""
TRY_CLAIM = f"SELECT pg_catalog.pg_try_advisory_lock({MOVES})"
RELEASE = f"SELECT pg_catalog.pg_advisory_unlock({MOVES})"
CLAIM_WITHIN_TRANSACTION = f"SELECT pg_catalog.pg_advisory_xact_lock({MOVES})"


def left_schema(schema: str) -> str:
    """The name of the schema that stays at the old place."""
    return _beside(schema, " (moved)")


def arriving_schema(schema: str) -> str:
    """The name that the schema has at the new place until the bucket is there."""
    return _beside(schema, " (arriving)")


def _beside(schema: str, what: str) -> str:
    """The name with a word after it. A name that is too long is cut, and a hash of it added."""
    name = schema + what
    if len(name.encode()) <= MOST_NAME_BYTES:
        return name
    end = f" {md5(schema.encode(), usedforsecurity=False).hexdigest()[:8]}{what}"
    return schema.encode()[: MOST_NAME_BYTES - len(end)].decode(errors="ignore") + end


def moved_tables() -> dict[str, Sequence[str]]:
    """The columns of the primary key of each table whose rows move, with the sessions first."""
    # Whoever writes a session locks its row first, so the lock on this table is the gate for the other ones.
    first = "session_records"
    tables = sorted(metadata.sorted_tables, key=lambda table: table.name != first)
    return {
        table.name: [column.name for column in table.primary_key.columns]
        for table in tables
        if table.name not in SKIPPED
    }


def place(schema: str, name: str) -> str:
    return f"{quoted(schema)}.{quoted(name)}"


def create_notes(schema: str) -> list[str]:
    """The table of notes and the function that writes one. Whoever writes a row need not have rights on the notes."""
    return [
        # A crash empties it. The move ends with its connection then, and begins anew.
        f"""
        CREATE UNLOGGED TABLE {place(schema, NOTES)} (
            change_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, table_name text NOT NULL, key jsonb NOT NULL
        )
        """,
        f"""
        CREATE FUNCTION {place(schema, NOTE_FUNCTION)}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp AS $note$
        DECLARE
            named jsonb;
        BEGIN
            IF TG_OP <> 'INSERT' THEN
                SELECT jsonb_object_agg(k.column_name, to_jsonb(OLD) -> k.column_name) INTO named
                FROM unnest(TG_ARGV) k (column_name);
                INSERT INTO {place(schema, NOTES)} (table_name, key) VALUES (TG_TABLE_NAME, named);
            END IF;
            IF TG_OP <> 'DELETE' THEN
                SELECT jsonb_object_agg(k.column_name, to_jsonb(NEW) -> k.column_name) INTO named
                FROM unnest(TG_ARGV) k (column_name);
                INSERT INTO {place(schema, NOTES)} (table_name, key) VALUES (TG_TABLE_NAME, named);
            END IF;
            RETURN NULL;
        END
        $note$
        """,
    ]


def drop_notes(schema: str) -> list[str]:
    """Takes back what `create_notes` and `note_changes` have made."""
    return [
        f"DROP FUNCTION IF EXISTS {place(schema, NOTE_FUNCTION)}() CASCADE",
        f"DROP TABLE IF EXISTS {place(schema, NOTES)}",
    ]


def note_changes(schema: str, table: str, key: Sequence[str]) -> str:
    """Has every change of a row of the table noted. It waits for the writers that are at work."""
    names = ", ".join("'{}'".format(name.replace("'", "''")) for name in key)
    return (
        f"CREATE TRIGGER {NOTE_FUNCTION} AFTER INSERT OR UPDATE OR DELETE ON {place(schema, table)} "
        f"FOR EACH ROW EXECUTE FUNCTION {place(schema, NOTE_FUNCTION)}({names})"
    )


def take_notes(schema: str, most: int) -> str:
    """Takes the first notes, each key once: `table_name`, and `keys` as JSON. Deletes them."""
    notes = place(schema, NOTES)
    return (
        f"WITH taken AS (DELETE FROM {notes} WHERE change_id IN "
        f"(SELECT change_id FROM {notes} ORDER BY change_id LIMIT {most}) RETURNING table_name, key) "
        "SELECT table_name, jsonb_agg(DISTINCT key)::text AS keys, count(*) AS notes FROM taken GROUP BY table_name"
    )


def count_notes(schema: str, most: int) -> str:
    return f"SELECT count(*) FROM (SELECT FROM {place(schema, NOTES)} LIMIT {most}) n"


def _keyed(schema: str, table: str, key: Sequence[str]) -> str:
    """The rows `t` with one of the keys of `$1`."""
    same = " AND ".join(f"t.{quoted(name)} = k.{quoted(name)}" for name in key)
    return f"jsonb_populate_recordset(NULL::{place(schema, table)}, $1::jsonb) k WHERE {same}"


def select_rows(schema: str, table: str, columns: Sequence[str], key: Sequence[str] | None = None) -> str:
    """The rows of a table; those with the keys of `$1` where there is a key."""
    listed = ", ".join(f"t.{quoted(name)}" for name in columns)
    rows = f"SELECT {listed} FROM {place(schema, table)} t"
    return rows if key is None else f"{rows}, {_keyed(schema, table, key)}"


def delete_rows(schema: str, table: str, key: Sequence[str]) -> str:
    """Deletes the rows with the keys of `$1`."""
    return f"DELETE FROM {place(schema, table)} t USING {_keyed(schema, table, key)}"


STORED_COLUMNS = """
    SELECT c.relname::text AS table_name, array_agg(a.attname::text ORDER BY a.attnum) AS columns
    FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
    WHERE c.relnamespace = $1::text::regnamespace AND c.relkind = 'r' AND a.attnum > 0
        AND NOT a.attisdropped AND a.attgenerated = ''
    GROUP BY c.relname
"""
"""The columns of each table that are not computed from others. `$1` is the quoted schema."""

SEQUENCES = """
    SELECT s.relname::text AS name, s.oid::regclass::text AS sequence
    FROM pg_catalog.pg_class s WHERE s.relnamespace = $1::text::regnamespace AND s.relkind = 'S'
"""
"""The sequences of a schema. `$1` is the quoted schema."""


SET_SEQUENCE = "SELECT setval($1::text::regclass, $2, $3)"
HAS_SCHEMA = "SELECT true FROM pg_catalog.pg_namespace WHERE nspname = $1"
HAS_TABLE = """
    SELECT true FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2
"""
IS_ROW_SECURITY_ON = """
    SELECT true FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = 'session_records' AND c.relrowsecurity
"""


def read_sequence(sequence: str) -> str:
    """The state of a sequence, whose name Postgres has quoted."""
    return f"SELECT last_value, is_called FROM {sequence}"


def read_bucket(schema: str) -> str:
    """Which bucket the schema says it is, where it went, and by which move it came or went."""
    return f"SELECT number, moved_to, move_id FROM {place(schema, 'session_buckets')}"


def say_arriving(schema: str) -> list[str]:
    """Says which bucket is being copied into this schema: number, count, hash name, deployment, move.

    Everybody may read that, as everybody may read the pointer that leads there.
    """
    table = place(schema, "session_buckets")
    return [
        f"INSERT INTO {table} (number, bucket_count, hash_name, deployment_id, move_id) VALUES ($1, $2, $3, $4, $5)",
        *_let_everybody_read(schema),
    ]


def _let_everybody_read(schema: str) -> list[str]:
    return [
        f"GRANT USAGE ON SCHEMA {quoted(schema)} TO PUBLIC",
        f"GRANT SELECT ON {place(schema, 'session_buckets')} TO PUBLIC",
    ]


def take_name(arriving: str, schema: str, trigger: str) -> list[str]:
    """Gives the complete copy the name of the bucket, in place of a pointer, and lets its rows be written."""
    return [
        drop_schema(schema),
        f"REVOKE SELECT ON {place(arriving, 'session_buckets')} FROM PUBLIC",
        f"REVOKE USAGE ON SCHEMA {quoted(arriving)} FROM PUBLIC",
        set_trigger(arriving, trigger, enabled=True),
        f"ALTER SCHEMA {quoted(arriving)} RENAME TO {quoted(schema)}",
    ]


def lock_writers_out(schema: str, tables: Sequence[str]) -> str:
    """Waits for the writers that are at work, and keeps others waiting until the transaction ends. Readers go on."""
    return f"LOCK TABLE {', '.join(place(schema, table) for table in tables)} IN EXCLUSIVE MODE"


def leave_pointer(schema: str) -> list[str]:
    """Renames the schema, so that nothing of it is found by its name any more, and makes room for a pointer."""
    left, table = left_schema(schema), place(schema, "session_buckets")
    return [
        f"ALTER SCHEMA {quoted(schema)} RENAME TO {quoted(left)}",
        f"CREATE SCHEMA {quoted(schema)}",
        f"CREATE TABLE {table} (LIKE {place(left, 'session_buckets')} INCLUDING ALL)",
        f"INSERT INTO {table} SELECT * FROM {place(left, 'session_buckets')}",
        *_let_everybody_read(schema),
    ]


def point_to(schema: str) -> str:
    """Says where the bucket went, and by which move."""
    return f"UPDATE {place(schema, 'session_buckets')} SET moved_to = $1, move_id = $2"


def set_trigger(schema: str, trigger: str, *, enabled: bool) -> str:
    action = "ENABLE" if enabled else "DISABLE"
    return f"ALTER TABLE {place(schema, 'session_records')} {action} TRIGGER {trigger}"


def drop_schema(schema: str) -> str:
    return f"DROP SCHEMA IF EXISTS {quoted(schema)} CASCADE"
