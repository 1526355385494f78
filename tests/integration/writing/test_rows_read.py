"""X14: how many rows the server reads to write, by its own counters. What others have written does not count.

The planner sees a table that grows: with the plans that a connection made when it was empty, with new ones, and with
statistics. A plan that reads a whole table is a fast one while the table is small, and stays.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from session_lifecycle import End, Message, Run, RunFilters, SessionDatabase, Step, Touch, UsageEvent
from session_lifecycle.entities import metadata
from session_lifecycle.models import Item
from session_lifecycle.roles import SessionRoles

A, B = UUID(int=1), UUID(int=2)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
# A page more or less is read where rows of one key lie close together.
SLACK = 5

Write = Callable[[SessionRoles], Awaitable[object]]


def run(run_id: str = "r", **more: Any) -> Run:
    return Run(**{"run_id": run_id, "user_id": A, "session_id": "s", "started_at": NOON, **more})


def step(step_id: str = "x", **more: Any) -> Step:
    return Step(**{"step_id": step_id, "run_id": "r", "user_id": A, "kind": "tool", "started_at": NOON, **more})


def use(session_id: str | None = "s", **more: Any) -> UsageEvent:
    return UsageEvent(**{"session_id": session_id, "user_id": A, "model": "m", "tokens_in": 1, "cost_usd": 1, **more})


def touch(session_id: str = "s", **more: Any) -> Touch:
    return Touch(session_id=session_id, user_id=A, **more)


def said(message_id: str = "m", **more: Any) -> Message:
    fields = {"session_id": "s", "user_id": A, "role": "user", "content": "hello", "created_at": NOON}
    return Message(message_id=message_id, **{**fields, **more})


def family(children: int) -> list[Item]:
    return [run("root"), *(run(f"child {number}", parent_run_id="root", session_id=None) for number in range(children))]


async def rows_read(connection: AsyncConnection, db: SessionDatabase, write: Write, table: str = "%") -> int:
    """How many rows the server reads to write this. Nothing is written."""
    counter = text("SELECT sum(seq_tup_read + idx_tup_fetch) FROM pg_stat_xact_user_tables WHERE relname LIKE :table")
    # The counters of a connection also hold what its earlier transactions read.
    [(before,)] = await connection.execute(counter, {"table": table})
    await write(db.bind(connection))
    [(after,)] = await connection.execute(counter, {"table": table})
    await connection.rollback()
    return int(after - (before or 0))


async def runs_read(db: SessionDatabase, items: Sequence[Item]) -> int:
    async with db.engine.connect() as connection:
        return await rows_read(connection, db, recording(*items), "session_runs")


def recording(*items: Item) -> Write:
    return lambda roles: roles.lifecycle.record(items)


STORED: list[Item] = [
    touch(),
    touch("parent"),
    touch("child", parent_session_id="parent"),
    use(idempotency_key="k"),
    use(idempotency_key="of the user", key_scope="user"),
    use("other", idempotency_key="k"),
    End(session_id="ended", user_id=A, status="completed"),
    *family(20),
    run("r"),
    run("elsewhere", session_id="other"),
    step(tool_call_id="call"),
    step(run_id="root", tool_call_id="call of the root"),
    use(run_id="r", idempotency_key="of the run"),
    said(),
]
WRITES: dict[str, Write] = {
    "a touch": recording(touch()),
    "a touch of a new session": recording(touch("new")),
    "a touch with all it can have": recording(
        touch(title="t", metadata={"a": 1}, tags={"t": "v"}, parent_session_id="parent", dataset_id=B, agent_name="a")
    ),
    "a touch of an ended session": recording(touch("ended")),
    "a use": recording(use()),
    "a use in a new session": recording(use("new")),
    "a use with a key": recording(use(idempotency_key="new")),
    "a repeated use": recording(use(idempotency_key="k")),
    "a revised use": recording(use(idempotency_key="k", tokens_in=2, revision=1)),
    "a partial use": recording(use(idempotency_key="partial", partial=True)),
    "a use with a key of the user": recording(use(idempotency_key="new", key_scope="user")),
    "a use that is repeated in another session": recording(
        use("other", idempotency_key="of the user", key_scope="user")
    ),
    "a use in an ended session": recording(use("ended", idempotency_key="late")),
    "a use of a run": recording(use(run_id="r")),
    "a use of a run with a key": recording(use(run_id="r", idempotency_key="new")),
    "a use of a run of another session": recording(use(run_id="elsewhere", idempotency_key="new")),
    "a repeated use of a run": recording(use(run_id="r", idempotency_key="of the run")),
    "a use of a new run": recording(use(run_id="new", idempotency_key="new")),
    "many uses": recording(*(use(f"s{number % 9}", idempotency_key=f"{number}") for number in range(30))),
    "an end": recording(End(session_id="s", user_id=A, status="failed")),
    "a run": recording(run("new")),
    "a run that a call began": recording(run("new", session_id=None, parent_tool_call_id="call")),
    "a run that is recorded again": recording(run("root")),
    "a run that ends": recording(run("root", ended_at=NOON, output="done", reported_cost_usd=1)),
    "a run that goes to another session": recording(run("root", output="other", session_id="other")),
    "a run that names its parent": recording(run("elsewhere", session_id=None, parent_run_id="root")),
    "a run and its child": recording(run("root"), run("new", parent_run_id="root", session_id=None)),
    "a step": recording(step("new")),
    "a step that is recorded again": recording(step(output=1)),
    "a step with a call": recording(step("new", run_id="root", tool_call_id="new call", output=1)),
    "a message": recording(said("new", run_id="r")),
    "a message that is recorded again": recording(said(metadata={"a": 1})),
    "all kinds at once": recording(
        touch(), use(run_id="r"), run("new"), step("new", run_id="new"), said("new", run_id="new"), use(run_id="new")
    ),
    "a session that is reopened": lambda roles: roles.lifecycle.reopen_session("ended", A),
    "a session that is updated": lambda roles: roles.lifecycle.update_session("child", A, title="t", tags={"a": "b"}),
    "a session that gets a parent": lambda roles: roles.lifecycle.update_session("s", A, parent_session_id="child"),
    "an annotation": lambda roles: roles.lifecycle.annotate_session("s", A, "quality", score=0.5),
    "a reservation": lambda roles: roles.budgets.reserve("s", A, "m", 1, 1, cost_usd=1, idempotency_key="reserved"),
    "a session that is deleted": lambda roles: roles.maintenance.delete_session("parent", A),
}


async def write_many_others(db: SessionDatabase) -> None:
    """Much of other users, and of the same user in other sessions and runs."""
    for user in (A, B):
        others: list[Item] = []
        for number in range(400):
            of = {"user_id": user, "session_id": f"{user.int} {number % 300}"}
            run_id = f"{user.int} {number}"
            others += [
                Touch(**of, parent_session_id=f"{user.int} parent", tags={"t": str(number)}),
                UsageEvent(**of, model="m", tokens_in=1, idempotency_key=f"other {number}", key_scope="user"),
                UsageEvent(**of, model="m", tokens_in=1, idempotency_key=f"{number}"),
                Run(**of, run_id=run_id, started_at=NOON, parent_tool_call_id=f"other call {number}"),
                Step(user_id=user, run_id=run_id, step_id="x", kind="tool", started_at=NOON, tool_call_id=run_id),
                UsageEvent(**of, model="m", tokens_in=1, run_id=run_id, idempotency_key=f"run {number}"),
                Message(**of, message_id=f"m {number}", role="user", content="hello", created_at=NOON),
            ]
            if number < 40:
                others.append(End(**of, status="completed"))
        await db.lifecycle.record(others)


async def most_read(connection: AsyncConnection, db: SessionDatabase) -> dict[str, int]:
    """The most rows of seven calls of each: from the sixth on a connection may keep one plan for all values."""
    return {name: max([await rows_read(connection, db, write) for _ in range(7)]) for name, write in WRITES.items()}


async def test_X14_whatever_is_written_reads_no_more_where_others_have_written_much(
    session_database: SessionDatabase,
) -> None:
    db = session_database
    many: dict[str, dict[str, int]] = {}
    async with db.engine.connect() as connection:
        # The server's own look at the tables would end the plans whose life is looked at here.
        for table in metadata.tables.values():
            await connection.exec_driver_sql(
                f"ALTER TABLE session_lifecycle.{table.name} SET (autovacuum_enabled = false)"
            )
        await connection.commit()
        await db.lifecycle.record(STORED)
        few = await most_read(connection, db)
        await write_many_others(db)
        many["plans of small tables"] = {name: await rows_read(connection, db, write) for name, write in WRITES.items()}
    for statistics in ("none", "fresh"):
        await db.engine.dispose()
        async with db.engine.connect() as connection:
            many[f"plans of large tables, statistics: {statistics}"] = await most_read(connection, db)
            await connection.exec_driver_sql("ANALYZE")
            await connection.commit()
    for plans, found in many.items():
        more = {name: (few[name], rows) for name, rows in found.items() if rows > few[name] + SLACK}
        assert (plans, more) == (plans, {})


async def test_X14_a_run_reads_no_more_with_more_descendants(session_database: SessionDatabase) -> None:
    again: list[list[Item]] = [
        [run("root")],
        [run("root", ended_at=NOON, output="done", reported_cost_usd=1)],
        [run("root", output="other", session_id="another")],
        [step(run_id="root", tool_call_id="call", output=1)],
        [run("root"), run("new", parent_run_id="root", session_id=None)],
    ]
    await session_database.lifecycle.record([*family(20), step(run_id="root", tool_call_id="call")])
    few = [await runs_read(session_database, items) for items in again]
    await session_database.lifecycle.record(family(400))
    for items, before in zip(again, few, strict=True):
        assert await runs_read(session_database, items) <= before + SLACK


async def test_X14_a_batch_reads_as_many_rows_as_it_records(session_database: SessionDatabase) -> None:
    """Also while the tables have no statistics, and the plans of the functions are made."""
    for size in (50, 100, 200, 400, 300, 200):
        assert await runs_read(session_database, family(size)) < 30 * size


async def test_X14_a_root_that_comes_last_settles_a_large_family(session_database: SessionDatabase) -> None:
    [root, *children] = family(3000)
    await session_database.lifecycle.record(children)
    assert await runs_read(session_database, [root]) < 40 * len(children)
    await session_database.lifecycle.record([root])
    page = await session_database.activity.list_runs(RunFilters(user_id=A, include_open=True, session_id="s", limit=1))
    assert page.total == 3001
