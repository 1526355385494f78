"""Every revision, up and down on real rows, and what they add up to."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Connection, Integer, MetaData, NullPool, Table, inspect
from sqlalchemy.ext.asyncio import create_async_engine

from session_lifecycle import (
    End,
    Message,
    Run,
    SchemaError,
    SessionDatabase,
    Step,
    UsageEvent,
)
from session_lifecycle.entities import VERSION_TABLE, include_object, metadata, quoted
from session_lifecycle.postgres.engines import asyncpg_url
from session_lifecycle.postgres.migrations import configuration, run
from session_lifecycle.postgres.schema_check import HEAD, REVISIONS, SEARCH_INDEX
from session_lifecycle.settings import DEFAULT_SCHEMA
from support.recount import Stored

USER = UUID(int=1)
AT = datetime(2026, 1, 1, tzinfo=UTC)
TABLES = sorted(table.name for table in metadata.tables.values())
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
        found: list[Any] = compare_metadata(MigrationContext.configure(connection, opts=options), target)
        return found

    async with db.engine.connect() as connection:
        return await connection.run_sync(compare)


async def contents(url: str, schema: str) -> dict[str, list[tuple[Any, ...]]]:
    connection = await asyncpg.connect(url)
    try:
        return {
            table: [
                tuple(row) for row in await connection.fetch(f"SELECT * FROM {quoted(schema)}.{table} ORDER BY 1, 2")
            ]
            for table in TABLES
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


async def live(db: SessionDatabase) -> list[Any]:
    """Sessions, runs and what they cost beyond their events; the outcomes."""
    receipts = await db.lifecycle.record(
        [
            UsageEvent(session_id="one", user_id=USER, model="gpt-4o", tokens_in=120, tokens_out=40),
            UsageEvent(
                session_id="two", user_id=USER, cost_usd=Decimal("0.1"), idempotency_key="k", details={"a:b %": 1}
            ),
            End(session_id="two", user_id=USER, status="failed"),
            Run(run_id="r", user_id=USER, session_id="one", started_at=AT, reported_cost_usd=Decimal(2)),
            UsageEvent(
                session_id="one", user_id=USER, model="m", cost_usd=Decimal("0.5"), run_id="r", idempotency_key="of run"
            ),
            Step(step_id="s", run_id="r", user_id=USER, kind="task", started_at=AT),
            Message(message_id="m", user_id=USER, session_id="one", role="user", content="hi", created_at=AT),
        ]
    )
    await db.maintenance.roll_up()
    await db.maintenance.reprice()
    return [getattr(receipt, "outcome", receipt) for receipt in receipts]


async def check_figures(db: SessionDatabase) -> None:
    # Of the run's two dollars its event accounts for a half.
    one = await db.lifecycle.get_session_row("one", USER)
    assert one is not None
    assert (one.record.tokens_in, one.record.cost_usd > 2) == (120, True)
    assert (await Stored.of(db)).faults() == []
    assert (await db.maintenance.reconcile()).mismatches == []


async def test_rows_survive_every_revision(empty_url: str, schema: str) -> None:
    """Down to each revision but the first, and up again."""
    async with SessionDatabase.connect(empty_url, schema=schema) as db:
        await db.migrate()
        await live(db)
        before = await contents(empty_url, schema)
        assert len(before["session_usage_events"]) == 4
        for revision in reversed(REVISIONS[:-1]):
            await migrate(db, schema, revision, down=True)
            with pytest.raises(SchemaError, match="lacks"):
                await db.check()
        for revision in REVISIONS[1:]:
            await migrate(db, schema, revision)
        assert await contents(empty_url, schema) == before
        await db.check()

    async with SessionDatabase.connect(empty_url, schema=schema) as db:
        receipt = await db.lifecycle.accumulate_usage("one", USER, "gpt-4o", 1, 1)
        assert (receipt.outcome, receipt.session_tokens_in) == ("applied", 121)
        again = UsageEvent(
            session_id="two", user_id=USER, cost_usd=Decimal("0.1"), idempotency_key="k", details={"a:b %": 1}
        )
        assert [receipt.outcome for receipt in await db.lifecycle.record([again])] == ["duplicate"]


async def test_X46_down_to_nothing_and_up_again(empty_url: str, schema: str) -> None:
    async with SessionDatabase.connect(empty_url, schema=schema) as db:
        await db.migrate()
        complete = await names(empty_url, schema)
        recorded = await live(db)
        await migrate(db, schema, "base", down=True)
        assert await names(empty_url, schema) == ([VERSION_TABLE], [])
        with pytest.raises(SchemaError, match="is not migrated"):
            await db.check()
        await db.migrate()
        await db.check()
        assert await names(empty_url, schema) == complete
        # Nothing is left that the same items could meet: a run that reports a cost is recorded as it was at first.
        assert await live(db) == recorded
        if schema == DEFAULT_SCHEMA:
            await check_figures(db)
        await db.migrate()
        await db.check()


async def test_the_hosts_search_path_stays_as_it_was(empty_url: str) -> None:
    async with SessionDatabase.connect(empty_url) as db, db.engine.begin() as connection:
        await connection.exec_driver_sql("SET LOCAL search_path = public, elsewhere")
        await db.migrate(connection=connection)
        assert (await connection.exec_driver_sql("SHOW search_path")).scalar() == "public, elsewhere"


async def test_autogenerate_finds_nothing_to_do(empty_url: str, schema: str) -> None:
    async with SessionDatabase.connect(empty_url, schema=schema) as db:
        await db.migrate()
        found = await differences(db, ours_in(schema), version_table=VERSION_TABLE, version_table_schema=schema)
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
                    "ix_session_records_session_id_activity_minute",
                    "ix_session_records_session_id_dataset_id_activity_minute",
                    "ix_session_records_user_id_parent_session_id",
                    "ix_session_records_waiting",
                    "ix_session_records_waiting_dataset_id",
                    "ix_session_records_waiting_user_id",
                },
                "rolled_up_sessions": {
                    "pk_rolled_up_sessions",
                    "ix_rolled_up_sessions_last_activity_at",
                    "ix_rolled_up_sessions_cost_usd",
                    "ix_rolled_up_sessions_user_id_agent_name_last_activity_at",
                    "ix_rolled_up_sessions_dataset_id_agent_name_last_activity_at",
                    "ix_rolled_up_sessions_user_id_dataset_id_last_activity_at",
                    "ix_rolled_up_sessions_user_id_last_activity_at",
                    "ix_rolled_up_sessions_dataset_id_last_activity_at",
                },
                "session_roll_ups": {"pk_session_roll_ups"},
                "session_model_roll_ups": {"pk_session_model_roll_ups"},
                **{
                    name: {f"pk_{name}", f"ix_{name}_user_id_starts_at", f"ix_{name}_dataset_id_starts_at"}
                    for name in ("session_roll_up_changes", "session_model_roll_up_changes")
                },
                "session_messages": {
                    "pk_session_messages",
                    "ck_session_messages_role",
                    "ix_session_messages_user_id_session_id_created_at_record_no",
                    "ix_session_messages_user_id_run_id_created_at",
                },
                "session_runs": {
                    "pk_session_runs",
                    "ck_session_runs_status",
                    "ix_session_runs_user_id_session_id_started_at_record_no",
                    "ix_session_runs_user_id_parent_run_id",
                    "ix_session_runs_user_id_root_run_id",
                    "ix_session_runs_user_id_parent_tool_call_id",
                    "ix_session_runs_lower_model_user_id_session_id",
                    "ix_session_runs_client_user_id_session_id",
                    "ix_session_runs_user_id_started_at_record_no",
                    "ix_session_runs_ended_at",
                },
                "session_annotations": {"pk_session_annotations"},
                "session_steps": {"pk_session_steps", "ix_session_steps_user_id_tool_call_id_started_at"},
                "session_budgets": {
                    "pk_session_budgets",
                    "ck_session_budgets_names",
                    "ck_session_budgets_limits",
                    "ck_session_budgets_window",
                    "ck_session_budgets_on_unpriced",
                    "ck_session_budgets_never_negative",
                    "ix_session_budgets_user_id_session_id",
                    "ix_session_budgets_agent_name",
                    "ix_session_budgets_dataset_id",
                },
                "session_reservations": {
                    "pk_session_reservations",
                    "ck_session_reservations_key_scope",
                    "ck_session_reservations_never_negative",
                    "ix_session_reservations_expires_at",
                },
                "session_tombstones": {"pk_session_tombstones"},
                "session_repricings": {"pk_session_repricings"},
                "session_buckets": {"pk_session_buckets", "ck_session_buckets_number"},
                "session_usage_events": {
                    "pk_session_usage_events",
                    "ck_session_usage_events_billing",
                    "ck_session_usage_events_key_scope",
                    "ck_session_usage_events_parts_of_input",
                    "ck_session_usage_events_part_of_output",
                    "ck_session_usage_events_never_negative",
                    "ix_session_usage_events_at",
                    "ix_session_usage_events_user_id_event_id",
                    "ix_session_usage_events_user_id_run_id",
                },
            }


@pytest.mark.parametrize("schema", [DEFAULT_SCHEMA, 'we"ird: %s $body$ Schema', "public"])
async def test_X43_autogenerate_of_a_host_keeps_away(empty_url: str, schema: str) -> None:
    host = MetaData()
    Table("host_things", host, Column("id", Integer, primary_key=True), Column("at", Integer, index=True))
    # Autogenerate runs on the host's engine: ours has no schema of the host on its search path.
    engine = create_async_engine(asyncpg_url(empty_url), poolclass=NullPool)
    async with SessionDatabase.from_engine(engine, schema=schema) as db:
        await db.migrate()
        await db.check()
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
            # The host's own version table stays the host's, beside ours too.
            await connection.exec_driver_sql("CREATE TABLE public.alembic_version (version_num varchar PRIMARY KEY)")
        assert await differences(db, host, include_object=include_object) == []
        await db.migrate()
        await db.check()
        # A table of the host that is called like one of ours stays the host's, in any schema.
        if schema != "public":
            Table("session_records", host, Column("id", Integer, primary_key=True))
        Table("session_records", host, Column("id", Integer, primary_key=True), schema="elsewhere")
        own = await differences(db, host, include_object=include_object)
        assert {(difference[0], difference[1].schema) for difference in own} == {
            ("add_table", "elsewhere"),
            *(() if schema == "public" else [("add_table", None)]),
        }


@pytest.mark.parametrize("schema", [DEFAULT_SCHEMA, "public"])
async def test_a_host_whose_revisions_are_in_the_same_schema(empty_url: str, schema: str) -> None:
    """Our revisions neither read nor write the host's `alembic_version`."""
    async with SessionDatabase.connect(empty_url, schema=schema) as db:
        async with db.engine.begin() as connection:
            await connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {schema}")
            await connection.exec_driver_sql(f"CREATE TABLE {schema}.alembic_version (version_num varchar PRIMARY KEY)")
            await connection.exec_driver_sql(f"INSERT INTO {schema}.alembic_version VALUES ('of the host')")
        await db.migrate()
        await db.check()
        await live(db)
        await migrate(db, schema, "base", down=True)
        async with db.engine.connect() as connection:
            found = await connection.exec_driver_sql(f"SELECT version_num FROM {schema}.alembic_version")
            assert found.scalars().all() == ["of the host"]
