"""The check names what is missing and what mends it, and `migrate` mends it (rule R20, findings X43, X44)."""

from uuid import UUID

import pytest

from session_lifecycle import SchemaError, SessionDatabase, UsageEvent
from session_lifecycle.entities import metadata, quoted
from session_lifecycle.postgres.function_files import function_files
from session_lifecycle.postgres.schema_check import SEARCH_INDEX, Kind, used_objects

USER = UUID(int=1)
UPGRADE = "run `session-lifecycle db upgrade`"


async def execute(db: SessionDatabase, sql: str, schema: str) -> None:
    async with db.engine.begin() as connection:
        await connection.exec_driver_sql(sql.replace("{schema}", quoted(schema)))


async def works(db: SessionDatabase) -> None:
    """Writing and reading through every room that the objects of the schema serve."""
    receipt = await db.lifecycle.accumulate_usage("s", USER, "gpt-4o", 3, 4)
    assert receipt.outcome == "applied"
    await db.lifecycle.end_session("s", USER, "completed")
    await db.maintenance.roll_up()
    assert (await db.lifecycle.reopen_session("s", USER)) == "reopened"
    assert (await db.maintenance.reconcile()).mismatch_count == 0


MENDABLE = {
    "an index": (
        "DROP INDEX {schema}.ix_session_records_session_id_activity_minute",
        "index ix_session_records_session_id",
    ),
    "a unique index": (
        "DROP INDEX {schema}.ix_session_usage_events_user_id_event_id",
        "unique index ix_session_usage_events_user_id_event_id",
    ),
    "the trigger": ("DROP TRIGGER leave_roll_ups ON {schema}.session_records", "trigger leave_roll_ups"),
    "a disabled trigger": (
        "ALTER TABLE {schema}.session_records DISABLE TRIGGER leave_roll_ups",
        "trigger leave_roll_ups",
    ),
    "a function that Python calls": (
        "DROP FUNCTION {schema}.record_v1(jsonb, jsonb, timestamptz, boolean)",
        r"function record_v1\(",
    ),
    "a function that functions call": (
        "ALTER FUNCTION {schema}.lock_sessions RENAME TO elsewhere",
        r"function lock_sessions\(",
    ),
    "a function that was edited": (
        "CREATE OR REPLACE FUNCTION {schema}.refuse_erased(of_user uuid) RETURNS void LANGUAGE plpgsql AS 'BEGIN END'",
        "another body than session-lifecycle .* function refuse_erased",
    ),
}


@pytest.mark.parametrize(("sql", "named"), MENDABLE.values(), ids=list(MENDABLE))
async def test_X44_what_is_missing_is_named_and_mended(empty_url: str, schema: str, sql: str, named: str) -> None:
    async with SessionDatabase.connect(empty_url, schema=schema) as db:
        await db.migrate()
        await execute(db, sql, schema)
        with pytest.raises(SchemaError, match=f"{named}.*: {UPGRADE}"):
            await db.check()
        await db.migrate()
        await db.check()
        await works(db)


async def test_X44_a_lost_column_is_for_a_backup(empty_url: str, schema: str) -> None:
    async with SessionDatabase.connect(empty_url, schema=schema) as db:
        await db.migrate()
        await execute(db, "ALTER TABLE {schema}.session_runs DROP COLUMN output", schema)
        with pytest.raises(SchemaError, match=r"lacks column session_runs\.output: restore the data from a backup"):
            await db.check()
        with pytest.raises(SchemaError, match=r"session_runs\.output"):
            await db.lifecycle.ensure_and_touch_session("s", USER)
        await execute(db, "DROP TABLE {schema}.session_budgets", schema)
        with pytest.raises(SchemaError, match=r"lacks table session_budgets, .*: restore the data from a backup"):
            await db.migrate()


async def test_X44_a_renamed_schema(empty_url: str) -> None:
    async with SessionDatabase.connect(empty_url, schema="before") as before:
        await before.migrate()
        await before.lifecycle.record([UsageEvent(session_id="s", user_id=USER, tokens_in=1, idempotency_key="k")])
        await execute(before, "ALTER SCHEMA {schema} RENAME TO after", "before")
    async with SessionDatabase.connect(empty_url, schema="after") as after:
        with pytest.raises(SchemaError, match=f"another body .* and [0-9]+ more: {UPGRADE}"):
            await after.check()
        await after.migrate()
        await after.check()
        await works(after)


async def test_an_index_whose_build_failed_is_missing(empty_url: str, schema: str) -> None:
    async with SessionDatabase.connect(empty_url, schema=schema) as db:
        await db.migrate()
        name = "ix_session_records_session_id_activity_minute"
        await execute(
            db,
            f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{{schema}}.{name}'::regclass",
            schema,
        )
        with pytest.raises(SchemaError, match=f"index {name}: {UPGRADE}"):
            await db.check()
        await db.migrate()
        await db.check()


async def test_tables_without_a_revision_are_refused(empty_url: str, schema: str) -> None:
    async with SessionDatabase.connect(empty_url, schema=schema) as db:
        await db.migrate()
        await execute(db, "DELETE FROM {schema}.session_lifecycle_version", schema)
        with pytest.raises(SchemaError, match="has our tables and no revision"):
            await db.migrate()


async def test_the_search_index_is_advice(empty_url: str, schema: str) -> None:
    async with SessionDatabase.connect(empty_url, schema=schema) as db:
        await db.migrate()
        await execute(db, f"DROP INDEX IF EXISTS {{schema}}.{SEARCH_INDEX}", schema)
        [advice] = await db.check()
        assert advice.startswith(f"index {SEARCH_INDEX} is missing")
        await db.migrate()
        async with db.engine.connect() as connection:
            has_trigrams = (
                await connection.exec_driver_sql("SELECT count(*) FROM pg_extension WHERE extname = 'pg_trgm'")
            ).scalar_one()
        assert len(await db.check()) == (0 if has_trigrams else 1)


async def test_a_check_in_a_transaction_of_the_host_leaves_it_alive(empty_url: str, schema: str) -> None:
    async with SessionDatabase.connect(empty_url, schema=schema) as db, db.engine.begin() as host:
        with pytest.raises(SchemaError, match="is not migrated"):
            await db.bind(host).lifecycle.ensure_and_touch_session("s", USER)
        assert (await host.exec_driver_sql("SELECT 1")).scalar_one() == 1


def test_every_part_of_the_schema_is_looked_for() -> None:
    found = {kind: [one.name for one in used_objects() if one.kind is kind] for kind in Kind}
    assert len(found[Kind.TABLE]) == len(metadata.tables) > 10
    assert len(found[Kind.COLUMN]) == sum(len(table.columns) for table in metadata.tables.values())
    assert len(found[Kind.UNIQUE_INDEX]) >= len(metadata.tables)
    assert found[Kind.TRIGGER] == ["leave_roll_ups"]
    assert {name.partition("(")[0] for name in found[Kind.FUNCTION]} == {
        name for name, one in function_files().items() if one.is_entry
    }
