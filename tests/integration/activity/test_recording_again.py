"""Runs, steps and messages that are recorded again: what is filled, what conflicts, what replaces; and their order."""

from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from session_lifecycle import Message, Run, RunFilters, SessionDatabase, Step, SummaryFilters
from session_lifecycle.entities import metadata
from session_lifecycle.models import Item

A = UUID(int=1)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def run(run_id: str = "r", **more: Any) -> Run:
    return Run(**{"run_id": run_id, "user_id": A, "session_id": "s", "started_at": NOON, **more})


def step(step_id: str = "x", **more: Any) -> Step:
    return Step(**{"step_id": step_id, "run_id": "r", "user_id": A, "kind": "tool", "started_at": NOON, **more})


def said(message_id: str = "m", content: str = "hello", **more: Any) -> Message:
    fields = {"message_id": message_id, "user_id": A, "session_id": "s", "role": "assistant", "created_at": NOON}
    return Message(**{**fields, "content": content, **more})


async def outcomes(db: SessionDatabase, *items: Item) -> list[str]:
    return [str(outcome) for outcome in await db.lifecycle.record(items)]


async def stored(db: SessionDatabase) -> tuple[list[Any], list[Any], list[Any]]:
    """The runs, steps and messages of the session."""
    detail = await db.activity.get_session_detail("s", A)
    assert detail is not None
    return detail.runs, [one for found in detail.runs for one in found.steps], detail.messages


# For each kind: what is recorded first, a field that it lacks, and another value of a field that it has.
KINDS: list[tuple[Any, list[dict[str, Any]], list[dict[str, Any]]]] = [
    (
        lambda **more: run(**{"name": "n", "output": {"a": 1}, "metadata": {"k": 1}, "quality_score": 0.5, **more}),
        [{"input": [1]}, {"error": "e"}, {"metadata": {"later": 2}}, {"ended_at": NOON}, {"provider": "p"}],
        [
            *({"name": "other"}, {"output": {"a": 2}}, {"metadata": {"k": 2}}, {"metadata": {"k": 2, "later": 2}}),
            *({"quality_score": 0.25}, {"output": "text", "input": [1]}),
        ],
    ),
    (
        lambda **more: step(**{"name": "n", "inputs": [1], "errors": "no", "seq": 1, "metadata": {"k": 1}, **more}),
        [{"output": 1}, {"metadata": {"later": 2}}, {"ended_at": NOON}, {"tool_call_id": "c"}, {"injected": True}],
        [
            *({"name": "other"}, {"inputs": []}, {"errors": "yes"}, {"seq": 2}, {"metadata": {"k": None}}),
            *({"kind": "task"}, {"inputs": [2], "output": 1}),
        ],
    ),
    (
        lambda **more: said(**{"metadata": {"k": 1}, **more}),
        [{"run_id": "r"}, {"metadata": {"later": 2}}, {"created_at": NOON - timedelta(seconds=1)}],
        [{"content": "hello you"}, {"role": "user"}, {"metadata": {"k": 2}}, {"content": "x", "run_id": "r"}],
    ),
]
FILLED = [(first, filled) for first, fills, _ in KINDS for filled in fills]
OTHERS = [(first, other) for first, _, others in KINDS for other in others]


def name_of(value: Any) -> str:
    return "-".join(value) if isinstance(value, dict) else ""


@pytest.mark.parametrize(("first", "filled"), FILLED, ids=name_of)
async def test_X12_what_is_missing_is_filled(
    session_database: SessionDatabase, first: Any, filled: dict[str, Any]
) -> None:
    await session_database.lifecycle.record([run("r") if first is not KINDS[0][0] else first(), first()])
    assert await outcomes(session_database, first(**filled)) == ["updated"]
    assert await outcomes(session_database, first(**filled), first()) == ["unchanged", "unchanged"]
    [found] = [one for kind in await stored(session_database) for one in kind if type(first()) in type(one).__mro__]
    for field, value in filled.items():
        assert getattr(found, field) == ({"k": 1, **value} if field == "metadata" else value)


@pytest.mark.parametrize(("first", "other"), OTHERS, ids=name_of)
async def test_R22_X12_other_content_conflicts_and_a_higher_revision_replaces(
    session_database: SessionDatabase, first: Any, other: dict[str, Any]
) -> None:
    await session_database.lifecycle.record([run("r") if first is not KINDS[0][0] else first(), first()])
    before = await stored(session_database)
    assert await outcomes(session_database, first(**other)) == ["conflict"]
    assert await stored(session_database) == before

    assert await outcomes(session_database, first(**other, revision=1)) == ["replaced"]
    assert await outcomes(session_database, first(**other, revision=1)) == ["unchanged"]
    assert await outcomes(session_database, first()) == ["superseded"]
    assert await outcomes(session_database, first(revision=1)) == ["conflict"]
    [found] = [one for kind in await stored(session_database) for one in kind if type(first()) in type(one).__mro__]
    assert found.revision == 1
    for field, value in other.items():
        assert getattr(found, field) == ({"k": 1, **value} if field == "metadata" else value)


async def test_X12_a_message_grows_while_it_streams_in_any_order(session_database: SessionDatabase) -> None:
    parts = [said(content="The an"[: 4 + size] + "swer" * size, revision=size) for size in range(3)]
    for order in permutations(parts):
        await session_database.maintenance.delete_session("s", A)
        for part in order:
            await session_database.lifecycle.record([part])
        [found] = await session_database.activity.chat_history("s", A)
        assert found == parts[-1]
    await session_database.lifecycle.record(parts)
    assert await session_database.activity.chat_history("s", A) == [parts[-1]]


async def test_X12_a_run_tells_its_parts_by_revision(session_database: SessionDatabase) -> None:
    """The beginning and the end of a run in any order: each gives what only it has, and the later one prevails."""
    beginning = run(input="prompt", metadata={"step": "first", "host": "h"})
    end = run(output="answer", metadata={"step": "last"}, ended_at=NOON, revision=1)
    for order in permutations([beginning, end]):
        await session_database.maintenance.delete_session("s", A)
        for part in order:
            await session_database.lifecycle.record([part])
        [[found], *_] = await stored(session_database)
        assert (found.input, found.output, found.metadata) == ("prompt", "answer", {"step": "last", "host": "h"})


async def test_X12_a_second_end_is_told_and_a_replay_is_not(session_database: SessionDatabase) -> None:
    ended = run(ended_at=NOON, status="failed")
    later = run(ended_at=NOON + timedelta(seconds=1), output=1)
    assert await outcomes(session_database, ended, ended, later, run()) == [
        *("created", "unchanged", "already_ended", "unchanged")
    ]
    assert await outcomes(session_database, run(status="completed")) == ["conflict"]
    [[found], *_] = await stored(session_database)
    assert (found.ended_at, found.status, found.output) == (NOON, "failed", 1)
    again = run(ended_at=NOON + timedelta(seconds=2), revision=1)
    assert await outcomes(session_database, again) == ["replaced"]
    [[found], *_] = await stored(session_database)
    assert (found.ended_at, found.status) == (NOON + timedelta(seconds=2), "completed")


async def test_X12_a_revision_moves_a_run_below_another_parent(session_database: SessionDatabase) -> None:
    child: dict[str, Any] = {"run_id": "child", "session_id": None}
    tops = [run("a", session_id="s"), run("b", session_id="t"), run(**child, parent_run_id="a")]
    await session_database.lifecycle.record(tops)
    low = run("low", session_id=None, parent_run_id="child")
    assert await outcomes(session_database, low, run(**child, parent_run_id="b")) == ["created", "conflict"]
    assert await outcomes(session_database, run(**child, parent_run_id="b", revision=1)) == ["replaced"]
    page = await session_database.activity.list_runs(RunFilters(user_id=A, include_open=True, session_id="t"))
    assert {found.run_id: found.root_run_id for found in page.runs} == {"b": "b", "child": "b", "low": "b"}


async def test_X12_pruned_errors_are_no_conflict(session_database: SessionDatabase) -> None:
    await session_database.lifecycle.record([run(), step(errors=["boom"])])
    async with session_database.engine.begin() as connection:
        await connection.execute(
            text("UPDATE session_lifecycle.session_records SET started_at = now(), last_activity_at = '2020-01-01'")
        )
    await session_database.maintenance.prune_payloads(timedelta(days=1))
    assert await outcomes(session_database, step(errors=["boom"])) == ["unchanged"]


ANSWERED_IN_ORDER = ["z", "a", "m", "b"]


async def answers(db: SessionDatabase) -> list[Any]:
    """What each read tells of a session whose parts are all of one moment, as lists of ids in their order."""
    runs, steps, messages = await stored(db)
    found: list[Any] = [[one.run_id for one in runs], [one.step_id for one in steps]]
    found.append([one.message_id for one in messages])
    found.append([one.message_id for one in await db.activity.chat_history("s", A)])
    found.append([one.message_id for one in await db.activity.chat_history("s", A, limit=2)])
    threads = await db.activity.list_threads("s", A)
    assert threads is not None
    found.append([thread.thread_id for thread in threads.threads])
    found.append([[one.step_id for one in action.tools] for thread in threads.threads for action in thread.actions])
    after = await db.activity.list_threads("s", A, after="a")
    before = await db.activity.list_threads("s", A, before="m", limit=1)
    assert after is not None
    assert before is not None
    found += [[thread.thread_id for thread in page.threads] for page in (after, before)]
    for descending in (True, False):
        walk: list[str] = []
        cursor = None
        while True:
            page = await db.activity.list_runs(
                RunFilters(user_id=A, include_open=True, limit=1, cursor=cursor, descending=descending)
            )
            walk += [one.run_id for one in page.runs]
            if (cursor := page.next_cursor) is None:
                break
        found.append(walk)
    [summary] = (await db.activity.list_session_summaries(SummaryFilters(user_id=A))).sessions
    found.append([summary.client, summary.metadata, summary.first_message, summary.last_message, summary.last_prompt])
    return found


async def test_R21_X13_what_happened_at_one_moment_is_in_the_order_of_recording(
    session_database: SessionDatabase,
) -> None:
    items: list[Item] = []
    for name in ANSWERED_IN_ORDER:
        role = "user" if name in ("z", "m") else "assistant"
        items += [
            run(name, client=f"client {name}", metadata={"name": name}),
            step(name, run_id="z", tool_call_id=name),
            said(name, content=f"says {name}", role=role),
        ]
    # A call's own order comes first.
    items += [step("second", run_id="b", seq=2), step("first", run_id="b", seq=1)]
    await session_database.lifecycle.record(items[:3])
    await session_database.lifecycle.record(items[3:])
    order = ANSWERED_IN_ORDER
    expected = [
        order,
        [*order, "first", "second"],
        order,
        order,
        order[2:],
        order,
        [order, ["first", "second"]],
        order[2:],
        order[1:2],
        order[::-1],
        order,
        ["client z", {"name": "z"}, "says z", "says b", "says m"],
    ]
    assert await answers(session_database) == expected

    # Replays in another order, one by one and together, and what they fill, change no order.
    for item in reversed(items):
        await session_database.lifecycle.record([item])
    await session_database.lifecycle.record([run("a", output=1), said("m", content="says m", role="user", revision=1)])
    await session_database.lifecycle.record(items[::-1])
    assert await answers(session_database) == expected


async def test_X13_a_run_is_in_the_order_of_its_recording_not_of_its_naming(session_database: SessionDatabase) -> None:
    await session_database.lifecycle.record([step("x", run_id="b"), run("a", parent_run_id="b"), run("c")])
    await session_database.lifecycle.record([run("b")])
    runs, _, _ = await stored(session_database)
    assert [found.run_id for found in runs] == ["a", "c", "b"]


async def test_X13_of_two_calls_of_one_moment_the_later_recorded_began_the_run(
    session_database: SessionDatabase,
) -> None:
    await session_database.lifecycle.record([run("z"), run("a")])
    await session_database.lifecycle.record([step(run_id="z", tool_call_id="c"), step(run_id="a", tool_call_id="c")])
    await session_database.lifecycle.record([run("began", parent_tool_call_id="c")])
    found = await session_database.activity.find_lineage(A, "c")
    assert found is not None
    assert found.parent_run_id == "a"
    page = await session_database.activity.list_runs(RunFilters(user_id=A, include_open=True))
    assert {one.run_id: one.parent_run_id for one in page.runs}["began"] == "a"


async def test_X12_a_revision_that_takes_a_tool_call_away_frees_the_run_that_it_began(
    session_database: SessionDatabase,
) -> None:
    async def began_by() -> str | None:
        page = await session_database.activity.list_runs(RunFilters(user_id=A, include_open=True))
        return {one.run_id: one.parent_run_id for one in page.runs}["began"]

    await session_database.lifecycle.record(
        [run("a"), step(run_id="a", tool_call_id="c"), run("began", parent_tool_call_id="c")]
    )
    assert await began_by() == "a"
    await session_database.lifecycle.record([step(run_id="a", tool_call_id="other", revision=1)])
    assert await began_by() is None


async def test_no_table_of_activity_is_without_its_order() -> None:
    for table in metadata.sorted_tables:
        if table.name in ("session_runs", "session_steps", "session_messages"):
            assert {"record_no", "revision"} <= set(table.columns.keys())
