"""Every revision, up and down on real rows, and what they add up to."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Connection, Integer, MetaData, Table, inspect, text

from recount import Stored
from session_lifecycle import End, SchemaError, SessionDatabase, UsageEvent, Viewer, include_object, metadata
from session_lifecycle.migrations import HEAD, REVISIONS, SEARCH_INDEX, configuration, quoted, run
from session_lifecycle.models.reads import SESSION_ORDERS
from session_lifecycle.settings import DEFAULT_SCHEMA
from session_lifecycle.statements.schema_version import VERSION_TABLE

USER = UUID(int=1)
TABLES = sorted(table.name for table in metadata.tables.values())
FIRST_TABLES = ("session_model_usage", "session_records", "session_usage_events")
# Of the first tables; they come and go with a later revision.
ADDED_COLUMNS = {"derived", "rolled_up"}

# All that the catalogue says about our tables, except where they are and how full their pages.
DESCRIBE = """
    SELECT c.relname, 'column', a.attname, concat_ws(' ', a.attnum, format_type(a.atttypid, a.atttypmod),
           a.attnotnull, a.attgenerated, l.collname, pg_get_expr(d.adbin, d.adrelid))
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
    LEFT JOIN pg_collation l ON l.oid = a.attcollation
    WHERE c.relnamespace = $1::text::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND c.relname <> $2
    UNION ALL
    SELECT c.relname, 'constraint', o.conname, pg_get_constraintdef(o.oid)
    FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid
    WHERE c.relnamespace = $1::text::regnamespace AND c.relname <> $2
    UNION ALL
    SELECT c.relname, 'index', i.relname, replace(pg_get_indexdef(i.oid), $1 || '.', '')
    FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class c ON c.oid = x.indrelid
    WHERE c.relnamespace = $1::text::regnamespace AND c.relname <> $2
    ORDER BY 1, 2, 3
"""


def ours_in(schema: str) -> MetaData:
    """Our tables, as they are in a schema of this name."""
    moved = MetaData(naming_convention=metadata.naming_convention)
    for table in metadata.tables.values():
        table.to_metadata(moved, schema=schema)
    return moved


async def migrate(db: SessionDatabase, schema: str, revision: str, *, down: bool = False) -> None:
    async with db.engine.begin() as connection:
        await connection.run_sync(run, schema, "downgrade" if down else "upgrade", revision)


async def differences(db: SessionDatabase, target: MetaData, **options: Any) -> list[Any]:
    def compare(connection: Connection) -> list[Any]:
        options.update(include_schemas=True, compare_type=True, compare_server_default=True)
        return compare_metadata(MigrationContext.configure(connection, opts=options), target)

    async with db.engine.connect() as connection:
        return await connection.run_sync(compare)


async def contents(url: str, schema: str, tables: Sequence[str] = TABLES) -> dict[str, list[tuple[Any, ...]]]:
    connection = await asyncpg.connect(url)
    try:
        return {
            table: [
                tuple(value for column, value in row.items() if column not in ADDED_COLUMNS)
                for row in await connection.fetch(f"SELECT * FROM {quoted(schema)}.{table} ORDER BY 1, 2")
            ]
            for table in tables
        }
    finally:
        await connection.close()


async def names(url: str, schema: str) -> tuple[list[str], list[str]]:
    """The tables and the functions of a schema."""
    connection = await asyncpg.connect(url)
    try:
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = $1 ORDER BY 1", schema)
        functions = await connection.fetch(
            "SELECT proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE nspname = $1 ORDER BY 1",
            schema,
        )
        return [row[0] for row in tables], [row[0] for row in functions]
    finally:
        await connection.close()


def test_the_library_knows_every_revision() -> None:
    script = ScriptDirectory.from_config(configuration(DEFAULT_SCHEMA))
    walked = list(script.walk_revisions())
    assert tuple(revision.revision for revision in reversed(walked)) == REVISIONS
    assert script.get_heads() == [HEAD]
    assert all(revision.doc and not revision.branch_labels and not revision.dependencies for revision in walked)


async def test_rows_survive_every_revision(empty_url: str, schema: str) -> None:
    async with SessionDatabase.connect(empty_url, schema=schema) as db:
        await db.migrate()
        await db.lifecycle.record(
            [
                UsageEvent(session_id="one", user_id=USER, model="gpt-4o", tokens_in=120, tokens_out=40),
                UsageEvent(
                    session_id="two", user_id=USER, cost_usd=Decimal("0.1"), idempotency_key="k", details={"a:b %": 1}
                ),
                End(session_id="two", user_id=USER, status="failed"),
            ]
        )
        await db.maintenance.reprice()
        before = await contents(empty_url, schema, FIRST_TABLES)
        assert [len(rows) for rows in before.values()] == [2, 2, 2]

        for revision in reversed(REVISIONS[:-1]):
            await migrate(db, schema, revision, down=True)
            assert await contents(empty_url, schema, list(before)) == before
            with pytest.raises(SchemaError, match=f"at revision {revision}, expected {HEAD}"):
                await db.check()
        assert await names(empty_url, schema) == ([VERSION_TABLE, *before], [])
        for revision in REVISIONS[1:]:
            await migrate(db, schema, revision)
            assert await contents(empty_url, schema, list(before)) == before
        await db.check()

    async with SessionDatabase.connect(empty_url, schema=schema) as db:
        receipt = await db.lifecycle.accumulate_usage("one", USER, "gpt-4o", 1, 1)
        assert (receipt.outcome, receipt.session_tokens_in) == ("applied", 121)
        again = UsageEvent("two", USER, cost_usd=Decimal("0.1"), idempotency_key="k", details={"a:b %": 1})
        assert [receipt.outcome for receipt in await db.lifecycle.record([again])] == ["duplicate"]


async def test_what_was_rolled_up_is_rolled_up_by_year_too(empty_url: str) -> None:
    async with SessionDatabase.connect(empty_url) as db:
        await db.migrate()
        for number in range(8):
            at = datetime(2025, 10, 31, 23, 50, tzinfo=UTC) + number * timedelta(days=15)
            event = UsageEvent(f"s{number}", USER, "m", 3, 4, Decimal("0.1"), dataset_id=USER, at=at)
            await db.lifecycle.record([event, End(f"s{number}", USER, "failed", at=at)])
        await db.maintenance.roll_up()
        await db.lifecycle.reopen_session("s0", USER)  # appended, and not yet in the buckets
        levels = "SELECT level, count(*) FROM session_lifecycle.session_model_rollups GROUP BY level ORDER BY level"
        async with db.engine.connect() as connection:
            before = dict(map(tuple, await connection.execute(text(levels))))
        assert before == {"quarter_hour": 32, "day": 32, "month": 20, "year": 8}
        assert (await Stored.of(db)).faults() == []

        await migrate(db, DEFAULT_SCHEMA, "0006", down=True)
        async with db.engine.connect() as connection:
            without = dict(map(tuple, await connection.execute(text(levels))))
        assert without == {"quarter_hour": 32, "day": 32, "month": 20}
        await migrate(db, DEFAULT_SCHEMA, "0007")
        assert (await Stored.of(db)).faults() == []
        assert (await db.lifecycle.aggregate_stats(Viewer(USER))).total_spend_usd == Decimal("0.8")
        await db.maintenance.roll_up()
        assert (await Stored.of(db)).faults() == []


async def test_down_to_nothing_and_up_again(empty_url: str, schema: str) -> None:
    async with SessionDatabase.connect(empty_url, schema=schema) as db:
        await db.migrate()
        complete = await names(empty_url, schema)
        await migrate(db, schema, "base", down=True)
        assert await names(empty_url, schema) == ([VERSION_TABLE], [])
        with pytest.raises(SchemaError, match="is not migrated"):
            await db.check()
        await db.migrate()
        await db.check()
        assert await names(empty_url, schema) == complete
        await db.migrate()
        await db.check()


async def test_autogenerate_finds_nothing_to_do(empty_url: str, schema: str) -> None:
    async with SessionDatabase.connect(empty_url, schema=schema) as db:
        await db.migrate()
        found = await differences(db, ours_in(schema), version_table_schema=schema)
        # Which only some databases have, and which is dropped with its table.
        assert [one for one in found if getattr(one[1], "name", None) != SEARCH_INDEX] == []


async def test_the_tables_are_those_of_the_metadata(empty_url: str, schema: str) -> None:
    """Checks, collations, generated columns and partial indexes too, which autogenerate does not compare."""
    async with SessionDatabase.connect(empty_url, schema=schema) as db:
        await db.migrate()
        async with db.engine.begin() as connection:
            await connection.exec_driver_sql("CREATE SCHEMA directly")
            await connection.run_sync(ours_in("directly").create_all)
    connection = await asyncpg.connect(empty_url)
    try:
        found = await connection.fetch(DESCRIBE, quoted(schema), VERSION_TABLE)
        migrated = [row for row in found if SEARCH_INDEX not in row[3]]
        created = await connection.fetch(DESCRIBE, '"directly"', VERSION_TABLE)
        # pg_get_indexdef quotes only where it must.
        plain = [(*row[:3], row[3].replace("directly.", "")) for row in created]
        assert [(*row[:3], row[3].replace(f"{schema}.", "")) for row in migrated] == plain
    finally:
        await connection.close()
    assert len(plain) > 60


async def test_constraints_are_named_by_convention(empty_url: str, schema: str) -> None:
    def found(connection: Connection) -> dict[str, set[str]]:
        inspector = inspect(connection)
        return {
            table: {inspector.get_pk_constraint(table, schema)["name"] or ""}
            | {check["name"] or "" for check in inspector.get_check_constraints(table, schema)}
            | {index["name"] or "" for index in inspector.get_indexes(table, schema)} - {SEARCH_INDEX}
            for table in TABLES
        }

    async with SessionDatabase.connect(empty_url, schema=schema) as db:
        await db.migrate()
        async with db.engine.connect() as connection:
            assert await connection.run_sync(found) == {
                "session_model_usage": {"pk_session_model_usage", "ck_session_model_usage_never_negative"},
                "session_records": {
                    "pk_session_records",
                    "ck_session_records_status",
                    "ck_session_records_ended_at",
                    "ck_session_records_never_negative",
                    "ix_session_records_user_id_status_activity_minute",
                    "ix_session_records_dataset_id_status_activity_minute",
                    "ix_session_records_status_activity_minute",
                    "ix_session_records_session_id_user_id",
                },
                "rolled_up_sessions": {
                    "pk_rolled_up_sessions",
                    "ix_rolled_up_sessions_last_activity_at",
                    "ix_rolled_up_sessions_user_id_agent_name_last_activity_at",
                    "ix_rolled_up_sessions_dataset_id_agent_name_last_activity_at",
                    "ix_rolled_up_sessions_user_id_dataset_id_last_activity_at",
                    *(
                        f"ix_rolled_up_sessions_{scope}_{column}"
                        for scope in ("user_id", "dataset_id")
                        for column in SESSION_ORDERS
                    ),
                },
                "session_rollups": {"pk_session_rollups"},
                "session_model_rollups": {"pk_session_model_rollups"},
                **{
                    name: {f"pk_{name}", f"ix_{name}_user_id_starts_at", f"ix_{name}_dataset_id_starts_at"}
                    for name in ("session_rollup_changes", "session_model_rollup_changes")
                },
                "session_messages": {
                    "pk_session_messages",
                    "ck_session_messages_role",
                    "ix_session_messages_user_id_session_id_created_at_message_id",
                    "ix_session_messages_user_id_run_id_created_at",
                },
                "session_runs": {
                    "pk_session_runs",
                    "ck_session_runs_status",
                    "ix_session_runs_user_id_session_id_started_at_run_id",
                    "ix_session_runs_user_id_parent_run_id",
                    "ix_session_runs_user_id_root_run_id",
                    "ix_session_runs_user_id_parent_tool_call_id",
                    "ix_session_runs_model_user_id_session_id",
                    "ix_session_runs_client_user_id_session_id",
                    "ix_session_runs_user_id_started_at_run_id",
                },
                "session_steps": {"pk_session_steps", "ix_session_steps_user_id_tool_call_id_started_at"},
                "session_tombstones": {"pk_session_tombstones"},
                "session_repricings": {"pk_session_repricings"},
                "session_usage_events": {
                    "pk_session_usage_events",
                    "ck_session_usage_events_key_scope",
                    "ck_session_usage_events_parts_of_input",
                    "ck_session_usage_events_part_of_output",
                    "ck_session_usage_events_never_negative",
                    "ix_session_usage_events_at",
                    "ix_session_usage_events_user_id_event_id",
                    "ix_session_usage_events_user_id_run_id",
                },
            }


async def test_autogenerate_of_a_host_keeps_away(empty_url: str, schema: str) -> None:
    host = MetaData()
    Table("host_things", host, Column("id", Integer, primary_key=True), Column("at", Integer, index=True))
    async with SessionDatabase.connect(empty_url, schema=schema) as db:
        await db.migrate()
        seen = await differences(db, host)
        assert {difference[1].name for difference in seen if difference[0] == "remove_table"} == {
            VERSION_TABLE,
            *TABLES,
        }
        own = await differences(db, host, include_object=include_object)
        assert [(difference[0], difference[1].name) for difference in own] == [
            ("add_table", "host_things"),
            ("add_index", "ix_host_things_at"),
        ]
        async with db.engine.begin() as connection:
            await connection.run_sync(host.create_all)
        assert await differences(db, host, include_object=include_object) == []
        # A table of the host that is called like one of ours stays the host's, in any schema.
        Table("session_records", host, Column("id", Integer, primary_key=True))
        Table("session_records", host, Column("id", Integer, primary_key=True), schema="elsewhere")
        own = await differences(db, host, include_object=include_object)
        assert {(difference[0], difference[1].schema) for difference in own} == {
            ("add_table", None),
            ("add_table", "elsewhere"),
        }
