"""No function of ours runs code that somebody planted on the search path of its caller.

Somebody is whoever may create in a schema there: in `public`, or in one before `pg_catalog`.
"""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio

from session_lifecycle import End, Message, Run, SessionDatabase, Step, Touch, UsageEvent
from session_lifecycle.postgres.function_files import function_files
from session_lifecycle.pricing.catalogue import PriceCatalogue
from session_lifecycle.writing.prepared import prepare
from session_lifecycle.writing.waves import parts
from support.stored_rows import store

A, B, DATASET = UUID(int=1), UUID(int=2), UUID(int=11)
AT = datetime(2026, 1, 1, tzinfo=UTC)

# Better matches than what pg_catalog has, where that takes any type: these win although `public` comes after it.
IN_PUBLIC = """
    CREATE FUNCTION public.hostile_concatenation(uuid, text) RETURNS text LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'hostile code ran: uuid || text'; END
    $$;
    CREATE OPERATOR public.|| (LEFTARG = uuid, RIGHTARG = text, FUNCTION = public.hostile_concatenation);
    DO $do$
    DECLARE
        signature text;
    BEGIN
        FOREACH signature IN ARRAY ARRAY[
            'cardinality(uuid[]) RETURNS int', 'cardinality(text[]) RETURNS int', 'unnest(text[]) RETURNS SETOF text',
            'unnest(uuid[]) RETURNS SETOF uuid', 'unnest(boolean[]) RETURNS SETOF boolean',
            'jsonb_build_array(jsonb) RETURNS jsonb', 'jsonb_agg(jsonb) RETURNS jsonb'
        ] LOOP
            EXECUTE format(
                'CREATE FUNCTION public.%s LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION ''hostile code ran: %s''; END$$',
                signature, signature
            );
        END LOOP;
    END
    $do$
"""
# Every function and operator that a body of ours can mean, and the types, in a schema that comes before pg_catalog.
BEFORE_THE_CATALOGUE = """
    CREATE SCHEMA hostile;
    DO $do$
    DECLARE
        bodies text := (
            SELECT string_agg(coalesce(pg_get_function_sqlbody(oid), prosrc), ' ') FROM pg_proc
            WHERE pronamespace = 'session_lifecycle'::regnamespace
        );
        names text[] := ARRAY(SELECT DISTINCT m[1] FROM regexp_matches(bodies, '([a-z_0-9]+)\\(', 'g') m);
        one record;
    BEGIN
        FOR one IN
            SELECT p.proname AS name, format_type(p.prorettype, NULL) AS result, p.proretset AS is_set,
                   array_to_string(ARRAY(SELECT format_type(t, NULL) FROM unnest(p.proargtypes) t), ', ') AS arguments
            FROM pg_proc p WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = ANY (names)
        LOOP
            BEGIN
                EXECUTE format(
                    'CREATE FUNCTION hostile.%I(%s) RETURNS %s %s LANGUAGE plpgsql AS %L', one.name, one.arguments,
                    CASE WHEN one.is_set THEN 'SETOF' END, one.result,
                    format('BEGIN RAISE EXCEPTION ''hostile code ran: %s(%s)''; END', one.name, one.arguments)
                );
            EXCEPTION WHEN feature_not_supported OR invalid_function_definition THEN
                -- Its types are those of the server's own code, which nobody else can write.
            END;
        END LOOP;
        FOR one IN
            SELECT o.oid, o.oprname AS name, format_type(o.oprresult, NULL) AS result,
                   CASE WHEN o.oprleft <> 0 THEN format_type(o.oprleft, NULL) END AS left_type,
                   format_type(o.oprright, NULL) AS right_type
            FROM pg_operator o
            WHERE o.oprnamespace = 'pg_catalog'::regnamespace AND position(o.oprname IN bodies) > 0
        LOOP
            BEGIN
                EXECUTE format(
                    'CREATE FUNCTION hostile.operator_%s(%s) RETURNS %s LANGUAGE plpgsql AS %L', one.oid,
                    concat_ws(', ', one.left_type, one.right_type), one.result,
                    format('BEGIN RAISE EXCEPTION ''hostile code ran: %s %s %s''; END', one.left_type,
                           replace(one.name, '%', '%%'), one.right_type)
                );
                EXECUTE format(
                    'CREATE OPERATOR hostile.%s (%s RIGHTARG = %s, FUNCTION = hostile.operator_%s)', one.name,
                    'LEFTARG = ' || one.left_type || ',', one.right_type, one.oid
                );
            EXCEPTION WHEN feature_not_supported OR invalid_function_definition THEN
                -- As above.
            END;
        END LOOP;
        FOR one IN SELECT unnest(ARRAY['uuid', 'text', 'timestamptz', 'jsonb', 'bytea', 'oid']) AS name LOOP
            EXECUTE format('CREATE DOMAIN hostile.%I AS pg_catalog.%I CHECK (false)', one.name, one.name);
        END LOOP;
        ASSERT (SELECT count(*) FROM pg_operator WHERE oprnamespace = 'hostile'::regnamespace) > 200;
        ASSERT (SELECT count(*) FROM pg_proc WHERE pronamespace = 'hostile'::regnamespace) > 300;
    END
    $do$
"""

Call = Callable[..., Any]


def items() -> list[Any]:
    """Every kind of item, of two users."""
    usage = {"model": "gpt-4o", "tokens_in": 10, "tokens_out": 5}
    run = {"user_id": A, "started_at": AT, "agent_name": "a"}
    return [
        Touch(session_id="s", user_id=A, metadata={"a": 1}, dataset_id=DATASET),
        UsageEvent(session_id="s", user_id=A, **usage),
        UsageEvent(session_id="s", user_id=A, **usage, idempotency_key="k"),
        UsageEvent(session_id="s", user_id=A, **usage, idempotency_key="k", revision=1, run_id="r"),
        UsageEvent(session_id="s", user_id=A, **usage, idempotency_key="u", key_scope="user"),
        UsageEvent(session_id="t", user_id=A, **usage, idempotency_key="u", key_scope="user"),
        Run(run_id="r", session_id="s", reported_cost_usd=Decimal(1), **run),
        Run(run_id="child", parent_run_id="r", parent_tool_call_id="call", **run),
        Run(run_id="orphan", parent_run_id="nobody", **run),
        Step(step_id="step", run_id="r", user_id=A, kind="task", started_at=AT, tool_call_id="call", errors=["e"]),
        Message(message_id="m", user_id=A, session_id="s", role="user", content="hi", created_at=AT, run_id="r"),
        End(session_id="t", user_id=A, status="failed"),
        UsageEvent(session_id="t", user_id=A, **usage),
        UsageEvent(session_id="w", user_id=B, **usage, idempotency_key="k"),
    ]


async def use_everything(db: SessionDatabase) -> None:
    """Writes, rolls up, reprices, reconciles and deletes, as a host does."""
    await db.lifecycle.record(items())
    await db.lifecycle.record(
        [
            UsageEvent(session_id="s", user_id=A, model="m", tokens_in=1),
            Touch(session_id="s", user_id=A),
            UsageEvent(session_id="w", user_id=B, model="m", tokens_in=1),
        ]
    )
    await db.lifecycle.accumulate_usage("s", A, "m", 1)
    await db.lifecycle.ensure_and_touch_session("s", A)
    await db.lifecycle.end_session("s", A, "completed")
    await db.maintenance.roll_up()
    await db.lifecycle.reopen_session("s", A)
    await db.maintenance.reprice()
    await db.maintenance.reconcile(repair=True)
    await db.lifecycle.end_session("s", A, "completed")
    await db.maintenance.roll_up()
    await db.maintenance.prune_payloads(timedelta(microseconds=1))
    await db.maintenance.prune_sessions(timedelta(microseconds=1), batch=1)
    await db.lifecycle.record(items())
    await db.maintenance.erase_user(B, usage="anonymise")
    await db.maintenance.erase_user(A)


async def test_the_library_runs_nothing_that_was_planted_in_public(
    session_database: SessionDatabase, session_database_url: str
) -> None:
    connection = await asyncpg.connect(session_database_url)
    try:
        await connection.execute(IN_PUBLIC)
        with pytest.raises(asyncpg.RaiseError, match="hostile code ran"):
            await connection.fetch("SELECT * FROM unnest(ARRAY['a'])")
    finally:
        await connection.close()
    await use_everything(session_database)


@pytest_asyncio.fixture
async def hostile(session_database: SessionDatabase, session_database_url: str) -> Call:
    """Calls a function of ours on a new connection whose path begins with a hostile schema."""
    connection = await asyncpg.connect(session_database_url)
    await connection.execute(BEFORE_THE_CATALOGUE)
    await connection.close()

    async def call(sql: str, *arguments: Any) -> list[Any]:
        connection = await asyncpg.connect(session_database_url)
        try:
            # The driver asks about types when a statement is prepared, and those questions are not ours.
            statement = await connection.prepare(sql)
            await connection.execute("SET search_path = hostile, pg_catalog, public")
            return list(await statement.fetch(*arguments))
        finally:
            await connection.close()

    return call


async def bound(*given: Any) -> tuple[str, str, Any, bool]:
    """What `record_v1` is called with for these items."""
    prices = PriceCatalogue()
    await prices.load()
    [(_, found)] = parts([prepare(item, prices) for item in given])
    return found["waves"], found["activity"], found["latest_at"], found["is_plain"]


RECORD = """
    SELECT * FROM session_lifecycle.record_v1(CAST($1 AS pg_catalog.jsonb), CAST($2 AS pg_catalog.jsonb), $3, $4)
"""
KEYS = [{"user_id": A, "session_id": "s", "run_id": "orphan"}]
TOKENS = ("tokens_in", "tokens_out", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")
MODELS = json.dumps([{"m": "m", **dict.fromkeys("ciorwze", 1)}])
# Each function with arguments under which it has something to do; `j` stands for the first one as JSON.
DIRECTLY: dict[str, tuple[str, tuple[Any, ...]]] = {
    "sum_totals_v1": ("ARRAY[j], '{}'", ({"web_searches": 1},)),
    "event_totals_v1": ("j, 'plan', true, true, 1, 1, 1", ({"web_searches": 1},)),
    "replaces_run_events": ("j", ([[{"user_id": A, "session_id": "s", "event_id": B, "idempotency_key": "k"}]],)),
    "refuse_parent_cycles": ("$1, $2", ([A], ["s"])),
    "update_session_v1": ("$2, 's', j", ({"title": "x"}, A)),
    "annotate_session_v1": ("$1, 's', 'quality', '', 1, 'a', 'b', $2", (A, AT)),
    "delete_runs": ("$1, $2", ([A], ["nobody"])),
    "create_sessions": ("j, $2", ([{"position": 0, "kind": "touch", "user_id": A, "session_id": "new"}], AT)),
    "record_plain": ("j, $2", ([{"position": 0, "kind": "touch", "user_id": A, "session_id": "s"}], AT)),
    "record_wave": ("j, $2", ([{"position": 0, "kind": "touch", "user_id": A, "session_id": "s"}], AT)),
    "lock_sessions": (
        "j, '[]', '[]'",
        ([[{"user_id": A, "session_id": "new", "key_scope": "user", "event_id": B, "run_id": "r"}]],),
    ),
    "lock_items_v1": (
        "j, '[]', $2",
        ([[{"user_id": A, "session_id": "new", "key_scope": "user", "event_id": B, "run_id": "r"}]], AT),
    ),
    "lock_session": ("$1, 'new'", (A,)),
    "refuse_erased": ("$1", (A,)),
    "keyed_event_id": ("$1, 's', 'k'", (A,)),
    "reprice_v1": (
        "j, $2",
        ([{"user_id": A, "session_id": "s", "event_id": B, "revision": 0, "run_id": "r"}], B),
    ),
    "lock_idle_sessions": ("j, '[]', $2", (KEYS, AT + timedelta(days=9999))),
    "delete_activity": ("$1, $2", ([A], ["t"])),
    "delete_unnamed_runs": ("$1, $2, NULL", ([A], ["nobody"])),
    "share": ("$1, $1, 'failed', $2, $2, $2, 1, 1, 1, 1, 1, 1, 1, NULL, -1", (A, AT)),
    "model_shares_v1": ("$2, $2, $3, $1::pg_catalog.json, -1", (MODELS, A, AT)),
    "append_changes": (
        "$2, $2, 'failed', $3, $3, $3, 1, 1, 1, 1, 1, 1, 1, NULL, $1::pg_catalog.json, -1",
        (MODELS, A, AT),
    ),
    "families": ("$1, $1", (A,)),
    "levels": ("$1", (AT,)),
    "density": ("'user'", ()),
    "members": ("'user', $1, NULL, $2, $2", (A, AT)),
    "is_dense": ("'user', $1, NULL, 64", (A,)),
    "add_parts": ("'user', $1, $1, '9 days', $2, $2", (A, AT)),
    "depths": ("'user', NULL, NULL, true", ()),
    "holds": ("'user', $1, $1, $1, $1", (A,)),
    "lock_roll_ups": ("true", ()),
    "session_models_v1": ("$1, $2", ([A], ["s"])),
    "lock_runs": ("'[]', j", ([[{"kind": "run", "user_id": A, "run_id": "r", "tool_call_id": "call"}]],)),
    "follow_runs": (
        "j, '[]'",
        ([[{"kind": "usage", "position": 0, "user_id": A, "session_id": "x", "run_id": "r", "idempotency_key": "k"}]],),
    ),
    "record_activity": (
        "j",
        (
            [
                {
                    "kind": "run",
                    "position": 0,
                    "user_id": A,
                    "run_id": "r",
                    "started_at": "2026-01-01T00:00:00Z",
                    "status": "running",
                }
            ],
        ),
    ),
    "settle_runs": ("$1, $2, $3, $4, $1, $4, $5", ([A, A], ["child", "r"], [True, True], ["s", "s"], AT)),
    "adjust_run": (
        "j, $2",
        (
            [
                {
                    "user_id": A,
                    "run_id": "another",
                    "session_id": "s",
                    "model": "m",
                    "due_usd": 1,
                    "at": "2026-01-01T00:00:00Z",
                }
            ],
            AT,
        ),
    ),
    "record_locked": (
        "j, '[]', '[]', true, $2",
        (
            [
                [
                    {
                        "position": 0,
                        "kind": "usage",
                        "user_id": A,
                        "session_id": "s",
                        "event_id": UUID(int=9),
                        "tokens_in": 1,
                        "run_id": "r",
                    }
                ]
            ],
            AT,
        ),
    ),
    "roll_up_sessions_v1": ("j, $2", ([{"user_id": A, "session_id": "t"}], AT)),
    "compact_roll_ups_v1": ("1000", ()),
    "expected_roll_ups_v1": ("NULL, NULL, NULL, NULL, true", ()),
    "rebuild_roll_ups_v1": ("'user', NULL, $1", (A,)),
    "take_out_of_roll_ups_v1": ("$1, 't'", (A,)),
    "window_begin": ("'month', NULL, 'America/Havana', $1", (AT,)),
    "set_budget_v1": ("'b', $1, NULL, 'x', $2, 5, 5, 'day', NULL, 'America/Havana', 'refuse'", (A, DATASET)),
    "applying_budgets_v1": ("$1, 's', 'x', $2", (A, DATASET)),
    # An id that ends like this one cleans up, too.
    "reserve_v1": ("$1, 's', $2, 'user', 'x', $3, 1, 1, false, 1000000", (A, UUID(int=8), DATASET)),
    "budget_use_v1": ("$1, NULL, NULL, NULL, 1, 1, true", (["b"],)),
    "is_settled": ("$1, 's', $1, 'session'", (A,)),
    "delete_settled": ("$1", ([A],)),
    "write_tombstone_v1": ("$1", (UUID(int=3),)),
    "empty_sessions_v1": ("j, $2", (KEYS, AT + timedelta(days=9999))),
    "anonymise_sessions_v1": ("j, $2", ([{"user_id": A, "session_id": "t"}], B)),
    "delete_waiting_runs_v1": ("j, $2", (KEYS, AT + timedelta(days=9999))),
    "delete_locked": ("j, '[]', $2", (KEYS, AT)),
    "delete_sessions_v1": ("j, NULL", (KEYS,)),
}


def directly(name: str, arguments: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The call of a function with these values; the first one is JSON where the arguments say `j`."""
    if re.search(r"\bj\b", arguments):
        arguments = re.sub(r"\bj\b", "CAST($1 AS pg_catalog.jsonb)", arguments)
        values = (json.dumps(values[0], default=str), *values[1:])
    return f"SELECT * FROM session_lifecycle.{name}({arguments})", *values


async def test_no_function_means_anything_of_a_schema_before_the_catalogue(
    session_database: SessionDatabase, hostile: Call
) -> None:
    for batch in (
        items(),
        [UsageEvent(session_id="s", user_id=A, model="m", tokens_in=1)],
        [Touch(session_id="s", user_id=A)],
        [UsageEvent(session_id="s", user_id=A, model="m", tokens_in=1), Touch(session_id="w", user_id=B)],
    ):
        rows = await hostile(RECORD, *await bound(*batch))
        assert {row["item_position"] for row in rows} == set(range(len(batch)))
    await store(session_database, "session_repricings", {"repricing_id": B})
    for name, (arguments, values) in DIRECTLY.items():
        await hostile(*directly(name, arguments, values))
    # The triggers, by a statement of others.
    await session_database.migrate(notes=True)
    await session_database.lifecycle.record(
        [Touch(session_id="v", user_id=A), End(session_id="v", user_id=A, status="failed")]
    )
    await session_database.maintenance.roll_up()
    changed = await hostile(
        "UPDATE session_lifecycle.session_records SET title = 'x' WHERE rolled_up RETURNING user_id, session_id"
    )
    assert ("v", A) in {(row["session_id"], row["user_id"]) for row in changed}
    triggers = {"leave_roll_ups_v1", "notify_of_changes_v1"}
    assert {*DIRECTLY, *triggers, "record_v1", "oldest_served_version_v1"} == function_files().keys()


async def test_without_its_path_a_function_would_run_it(session_database: SessionDatabase, hostile: Call) -> None:
    async with session_database.engine.begin() as connection:
        await connection.exec_driver_sql("ALTER FUNCTION session_lifecycle.lock_session(uuid, text) RESET ALL")
    # The planted `count` is no aggregate, so a `count(*)` that means it is refused before it runs.
    with pytest.raises(asyncpg.PostgresError, match=r"hostile|text_check|count is not an aggregate function"):
        await hostile(*directly("lock_session", *DIRECTLY["lock_session"]))


async def test_migrating_means_nothing_of_the_callers_path(session_database: SessionDatabase, hostile: Call) -> None:
    """Defaults, generated columns and functions parsed when they are created are written on a path of our own."""
    sql = await session_database.migration_sql()
    assert sql.index("SET LOCAL search_path = pg_catalog, pg_temp") < sql.index("CREATE SCHEMA")
