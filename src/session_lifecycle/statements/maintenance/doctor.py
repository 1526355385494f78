"""What `diagnose` asks: the server, its catalogues, and bounded reads of our tables."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, Double, Select, Text, extract, func, select, text
from sqlalchemy.sql.functions import Function

from session_lifecycle.statements import tables
from session_lifecycle.statements.maintenance.roll_up import is_to_roll_up
from session_lifecycle.statements.shared.ledger import IS_UNPRICED

MOST_SESSIONS = 10_000
MOST_CHANGES = 100_000
MOST_NAMES = 20

# One row: what the server is and how it is set.
SERVER = text("""
SELECT pg_catalog.current_setting('server_version_num')::int AS version_number,
    pg_catalog.split_part(pg_catalog.current_setting('server_version'), ' ', 1) AS version,
    pg_catalog.current_setting('fsync') AS fsync,
    pg_catalog.current_setting('full_page_writes') AS full_page_writes,
    pg_catalog.current_setting('synchronous_commit') AS synchronous_commit,
    pg_catalog.current_setting('autovacuum') AS autovacuum,
    pg_catalog.current_setting('track_counts') AS track_counts,
    pg_catalog.current_setting('server_encoding') AS server_encoding,
    pg_catalog.pg_is_in_recovery() AS is_replica,
    current_user::text AS role,
    pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE') AS sees_others,
    extract(epoch FROM pg_catalog.clock_timestamp())::double precision AS clock
""")

# A row for each index whose build failed.
INVALID_INDEXES = text("""
SELECT c.relname::text
FROM pg_catalog.pg_index x
JOIN pg_catalog.pg_class c ON c.oid = x.indexrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = :schema AND NOT (x.indisvalid AND x.indisready)
ORDER BY 1
""")

# A row for each B-tree that is several times as large as its rows need, by the statistics. An entry has the columns, a
# header of eight bytes, a pointer of four, and its pages are filled by seven tenths after random inserts.
BLOATED_INDEXES = text("""
SELECT size.name, size.bytes, size.expected_bytes
FROM (
    SELECT c.relname::text AS name, pg_catalog.pg_relation_size(c.oid) AS bytes,
        (c.reltuples * (12 + pg_catalog.sum(coalesce(s.avg_width, 16))) / 0.7)::bigint AS expected_bytes
    FROM pg_catalog.pg_index x
    JOIN pg_catalog.pg_class c ON c.oid = x.indexrelid
    JOIN pg_catalog.pg_class t ON t.oid = x.indrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_am m ON m.oid = c.relam AND m.amname = 'btree'
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
    LEFT JOIN pg_catalog.pg_stats s
        ON s.schemaname = n.nspname AND s.tablename = t.relname AND s.attname = a.attname
    WHERE n.nspname = :schema AND c.reltuples >= 0
    GROUP BY c.oid, c.relname, c.reltuples
) size
WHERE size.bytes > :least_bytes AND size.bytes > :times * size.expected_bytes
ORDER BY size.bytes DESC
LIMIT :most
""")

# A row for each table: its dead rows, and whether it is large and its statistics were never gathered.
TABLE_HEALTH = text("""
SELECT s.relname::text AS name, s.n_live_tup AS live, s.n_dead_tup AS dead,
    coalesce(s.last_analyze, s.last_autoanalyze) IS NULL
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = s.relid AND c.reltuples >= 0)
        AND pg_catalog.pg_relation_size(s.relid) > :least_bytes AS is_without_statistics
FROM pg_catalog.pg_stat_user_tables s
WHERE s.schemaname = :schema
ORDER BY 1
""")

# A row for each transaction that waits for its client, the oldest first.
IDLE_TRANSACTIONS = text("""
SELECT a.pid, coalesce(a.application_name, '') AS application,
    extract(epoch FROM pg_catalog.clock_timestamp() - a.xact_start)::double precision AS seconds
FROM pg_catalog.pg_stat_activity a
WHERE a.datname = pg_catalog.current_database() AND a.pid <> pg_catalog.pg_backend_pid()
    AND a.state IN ('idle in transaction', 'idle in transaction (aborted)')
ORDER BY a.xact_start
LIMIT :most
""")

# A row for each transaction that was prepared and is neither committed nor rolled back.
PREPARED_TRANSACTIONS = text("""
SELECT p.gid, extract(epoch FROM pg_catalog.clock_timestamp() - p.prepared)::double precision AS seconds
FROM pg_catalog.pg_prepared_xacts p
WHERE p.database = pg_catalog.current_database()
ORDER BY p.prepared
LIMIT :most
""")

TRIGRAMS = text("""
SELECT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'pg_trgm') AS is_there,
    EXISTS (SELECT FROM pg_catalog.pg_available_extensions WHERE name = 'pg_trgm') AS is_available
""")


def _now() -> Function[datetime]:
    return func.statement_timestamp()


def waiting_for_roll_up(abandon_after: timedelta) -> Select[*tuple[Any, ...]]:
    """One row: how many sessions wait to be rolled up, at most `MOST_SESSIONS`, and how old the oldest is, seconds."""
    now: Any = _now()
    by_activity = (tables.sessions.status, tables.sessions.activity_minute)
    waiting = select(*by_activity).where(is_to_roll_up(now - abandon_after))
    found = waiting.order_by(*by_activity).limit(MOST_SESSIONS).subquery("found")
    age = extract("epoch", now - func.min(found.c.activity_minute)).cast(Double)
    sessions = func.count().cast(BigInteger).label("sessions")
    return select(sessions, func.coalesce(age, 0.0).label("seconds")).select_from(found)


def changes_to_compact() -> Select[int]:
    """One row: how many changes wait to be put into the roll-ups, at most `MOST_CHANGES`."""
    changes = select(tables.roll_up_changes.change_id).limit(MOST_CHANGES).subquery("changes")
    return select(func.count().cast(BigInteger).label("changes")).select_from(changes)


def unpriced_of_late(days: int) -> Select[*tuple[Any, ...]]:
    """The models and providers of the unpriced events of the last days, the most frequent first."""
    event = tables.usage_events
    count = func.count().cast(BigInteger)
    since: Any = _now() - timedelta(days=days)
    return (
        select(event.model, func.coalesce(event.provider, "", type_=Text).label("provider"), count.label("events"))
        .where(event.at >= since, IS_UNPRICED)
        .group_by(event.model, event.provider)
        .order_by(count.desc(), event.model, event.provider)
        .limit(MOST_NAMES)
    )
