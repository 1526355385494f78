"""`get_recent_activity`: the label, the counts, and the newest messages and tool calls."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

import pytest

from session_lifecycle import InvalidValueError, Message, Run, SessionDatabase, Step, Viewer
from session_lifecycle.models import Item, RecentActivity
from session_lifecycle.models.pages import MOST_STORED_BYTES
from support.usage import A

AT = datetime(2026, 1, 1, tzinfo=UTC)
B, DATASET = UUID(int=2), UUID(int=4)


def message(
    number: int, role: Literal["user", "assistant", "system"] = "user", content: str = "", session_id: str = "s"
) -> Message:
    return Message(
        message_id=f"m{number}",
        user_id=A,
        session_id=session_id,
        role=role,
        content=content or f"message {number}",
        created_at=AT + timedelta(seconds=number),
    )


def step(number: int, run_id: str = "r", kind: str = "tool", seq: int | None = None, at: int | None = None) -> Step:
    started_at = AT + timedelta(seconds=number if at is None else at)
    return Step(step_id=f"t{number}", run_id=run_id, user_id=A, kind=kind, seq=seq, started_at=started_at)


def run(run_id: str = "r", name: str | None = None, second: int = 0) -> Run:
    return Run(run_id=run_id, user_id=A, session_id="s", name=name, started_at=AT + timedelta(seconds=second))


async def recent(db: SessionDatabase, viewer: Viewer | UUID = A, limit: int = 20) -> RecentActivity:
    found = await db.activity.get_recent_activity("s", viewer, limit=limit)
    assert found is not None
    return found


async def test_the_newest_are_there_and_all_are_counted(session_database: SessionDatabase) -> None:
    elsewhere = step(99).model_copy(update={"run_id": "elsewhere"})
    others: list[Item] = [message(99, session_id="other"), elsewhere]
    items: list[Item] = [
        run(),
        run("r2", second=1),
        *(message(number) for number in range(30)),
        *(step(number, "r" if number % 2 else "r2") for number in range(25)),
        *(step(100 + number, kind="task") for number in range(5)),
        *others,
    ]
    await session_database.lifecycle.record(items)
    found = await recent(session_database)
    assert (found.messages_count, found.tool_calls_count, found.has_payloads) == (30, 25, True)
    assert [one.message_id for one in found.messages] == [f"m{number}" for number in range(10, 30)]
    assert [one.step_id for one in found.tool_calls] == [f"t{number}" for number in range(5, 25)]
    fewer = await recent(session_database, limit=2)
    assert [one.message_id for one in fewer.messages] == ["m28", "m29"]
    assert [one.step_id for one in fewer.tool_calls] == ["t23", "t24"]
    assert fewer.messages_count == 30


async def test_R21_tool_calls_of_one_moment_go_by_seq_and_then_by_recording(session_database: SessionDatabase) -> None:
    at_once = [step(1, seq=3, at=0), step(2, seq=1, at=0), step(3, at=0), step(4, at=0), step(5, seq=2, at=0)]
    await session_database.lifecycle.record([run(), *at_once])
    found = await recent(session_database)
    assert [one.step_id for one in found.tool_calls] == ["t2", "t5", "t1", "t3", "t4"]
    assert [one.step_id for one in (await recent(session_database, limit=3)).tool_calls] == ["t1", "t3", "t4"]


@pytest.mark.parametrize(
    ("items", "label"),
    [
        ([message(1, "system", "rules"), message(2, content="x" * 121), message(3, content="later")], "x" * 120),
        ([message(1, "assistant"), run(name="nightly"), run("r0", "second", second=1)], "nightly"),
        ([message(1, "assistant"), run()], None),
        ([run(name="n"), message(9, content="asked")], "asked"),
    ],
)
async def test_the_label_is_the_first_prompt_or_the_name_of_the_first_run(
    session_database: SessionDatabase, items: list[Message | Run], label: str | None
) -> None:
    await session_database.lifecycle.ensure_and_touch_session("s", A)
    await session_database.lifecycle.record(items)
    assert (await recent(session_database)).label == label


async def test_R11_R15_it_is_the_session_that_the_viewer_may_see(session_database: SessionDatabase) -> None:
    assert await session_database.activity.get_recent_activity("s", A) is None
    await session_database.lifecycle.ensure_and_touch_session("s", A, DATASET)
    await session_database.lifecycle.record([run(), message(1), step(1)])
    assert await session_database.activity.get_recent_activity("s", B) is None
    shared = await recent(session_database, Viewer(B, [DATASET]))
    assert (shared.session.record.user_id, len(shared.messages), len(shared.tool_calls)) == (A, 1, 1)
    await session_database.lifecycle.ensure_and_touch_session("s", B)
    own = await recent(session_database, Viewer(B, [DATASET]))
    assert (own.session.record.user_id, own.messages_count, own.messages, own.tool_calls) == (B, 0, [], [])
    named = await session_database.activity.get_recent_activity("s", Viewer(B, [DATASET]), owner_id=A)
    assert named is not None
    assert named.messages_count == 1


async def test_R25_payloads_that_are_too_large_are_left_out(
    session_database: SessionDatabase, set_bound: Callable[[str, int], None]
) -> None:
    set_bound("session_lifecycle.models.pages.MOST_STORED_BYTES", 100)
    large = Step(**{**step(1).model_dump(), "inputs": {"text": "ab" * 200}})
    await session_database.lifecycle.record([run(), large])
    found = await recent(session_database)
    assert MOST_STORED_BYTES > 100
    assert (found.has_payloads, found.tool_calls[0].inputs) == (False, None)
    set_bound("session_lifecycle.models.pages.MOST_TEXT_BYTES", 10)
    await session_database.lifecycle.record([message(1, content="eleven here")])
    with pytest.raises(InvalidValueError, match=r"limit: got 20, expected a lower limit"):
        await recent(session_database)
