"""Rows of the conversations table: sessions with their runs, tasks, messages and errors; search."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from session_lifecycle import Message, Run, Step, SummaryFilters, Touch
from session_lifecycle.models import RunStatus
from support.world import World

BEGIN = datetime(2026, 1, 10, 12, tzinfo=UTC)
LIVES = {
    "S1": ("alpha", 0, 60),
    "S2": ("alpha", 1, 10),
    "S3": ("beta", 2, 50),
    "S4": ("beta", 3, 40),
    "S5": ("alpha", 4, 30),
}
TASKS: dict[str, list[list[Any]]] = {
    "S1": [[["boom"], [], None], [None, ["x", "y"]]],
    "S3": [["oops", {}, "", False, 0]],
    "S4": [[[None], [[]]]],
    "S5": [[]],
}
SAID = {"S1": ["Order 100% rye", "ok", "and a_b please", "done"], "S3": ["order 1000 rolls"], "S4": ["aXb"], "S5": [""]}


def minute(number: float) -> datetime:
    return BEGIN + timedelta(minutes=number)


def said(session: str, number: int, content: str, user: Any) -> Message:
    role = "assistant" if number % 2 else "user"
    return Message(
        message_id=f"{session}.{number}",
        user_id=user,
        session_id=session,
        role=role,
        content=content,
        created_at=minute(5 + number),
    )


async def hold_conversations(world: World) -> None:
    for session, (agent, created, updated) in LIVES.items():
        items: list[Any] = [Touch(session_id=session, user_id=world.a, agent_name=agent, at=minute(created))]
        for place, tasks in enumerate(TASKS.get(session, [])):
            run_id = f"{session}.run{place}"
            items.append(Run(run_id=run_id, user_id=world.a, session_id=session, started_at=minute(created + place)))
            items += [
                Step(
                    step_id=f"task{number}",
                    run_id=run_id,
                    user_id=world.a,
                    seq=number,
                    kind="task",
                    started_at=minute(5),
                    errors=errors,
                )
                for number, errors in enumerate(tasks)
            ]
        items += [said(session, number, content, world.a) for number, content in enumerate(SAID.get(session, []))]
        await world.record(*items, Touch(session_id=session, user_id=world.a, at=minute(updated)))


async def test_K01_the_list_is_newest_first(world: World) -> None:
    await hold_conversations(world)
    page = await world.activity.list_session_summaries(SummaryFilters(user_id=world.a))
    assert [summary.session_id for summary in page.sessions] == ["S1", "S3", "S4", "S5", "S2"]
    assert (page.total, page.has_more, page.next_cursor) == (5, False, None)


async def test_K02_runs_tasks_messages_and_errors_are_counted(world: World) -> None:
    await hold_conversations(world)
    counts = {
        one.session_id: (one.runs_count, one.steps_count, one.messages_count, one.errors_count)
        for one in await world.summaries()
    }
    assert counts == {
        "S1": (2, 5, 4, 2),
        "S3": (1, 5, 1, 5),
        "S4": (1, 2, 1, 2),
        "S5": (1, 0, 1, 0),
        "S2": (0, 0, 0, 0),
    }


async def test_K03_the_first_and_the_last_message(world: World) -> None:
    await hold_conversations(world)
    ends = {one.session_id: (one.first_message, one.last_message) for one in await world.summaries()}
    assert ends["S1"] == ("Order 100% rye", "done")
    assert ends["S5"] == ("", "")
    assert ends["S2"] == (None, None)
    long = "é" * 201
    await world.record(said("S2", 0, long, world.a))
    summary = await world.summary("S2")
    assert (summary.first_message, summary.last_message, summary.last_prompt) == (long[:200],) * 3
    detail = await world.detail("S2")
    assert [message.content for message in detail.messages] == [long]


async def test_K04_an_agent_filter_chooses_its_sessions(world: World) -> None:
    await hold_conversations(world)
    assert await world.summarised(agent_name="alpha") == ["S1", "S5", "S2"]
    assert await world.summarised(agent_name="unknown") == []


async def test_K05_a_window_of_starts_may_have_one_edge_only(world: World) -> None:
    await hold_conversations(world)
    assert await world.summarised(started_since=minute(2)) == ["S3", "S4", "S5"]
    assert await world.summarised(started_until=minute(2)) == ["S1", "S2"]


async def test_K06_a_window_includes_its_beginning_and_not_its_end(world: World) -> None:
    await hold_conversations(world)
    assert await world.summarised(started_since=minute(2), started_until=minute(3)) == ["S3"]
    with pytest.raises(ValidationError, match="started_until"):
        SummaryFilters(started_since=minute(3), started_until=minute(1))
    with pytest.raises(ValidationError, match="until"):
        SummaryFilters(since=minute(3), until=minute(1))


async def test_K07_a_search_ignores_case(world: World) -> None:
    await hold_conversations(world)
    assert await world.summarised(search="ORDER") == ["S1", "S3"]
    assert await world.summarised(search="ORDER", agent_name="beta") == ["S3"]


async def test_K08_a_percent_sign_is_text(world: World) -> None:
    await hold_conversations(world)
    assert await world.summarised(search="100%") == ["S1"]


async def test_K09_an_underscore_is_text(world: World) -> None:
    await hold_conversations(world)
    assert await world.summarised(search="a_b") == ["S1"]


async def test_K10_an_empty_search_filters_nothing(world: World) -> None:
    await hold_conversations(world)
    assert await world.summarised(search="%") == ["S1"]
    # The second text has only characters that a search ignores.
    for empty in ("", "\u00ad\u200b\ufe0f"):
        assert len(await world.summarised(search=empty)) == 5


async def test_K11_pages_by_offset(world: World) -> None:
    await hold_conversations(world)

    async def page(offset: int) -> tuple[list[str], int | None]:
        filters = SummaryFilters(user_id=world.a, limit=2, offset=offset)
        found = await world.activity.list_session_summaries(filters)
        return [summary.session_id for summary in found.sessions], found.total

    assert await page(0) == (["S1", "S3"], 5)
    assert await page(4) == (["S2"], 5)
    assert await page(9) == ([], 5)


@pytest.mark.parametrize("limit", [-1, 0, 501])
def test_K12_a_limit_out_of_bounds_is_refused(limit: int) -> None:
    with pytest.raises(ValidationError, match="limit"):
        SummaryFilters(limit=limit)


async def test_K13_a_detail_has_runs_with_their_tasks_and_messages_in_order(world: World) -> None:
    await hold_conversations(world)
    detail = await world.detail("S1")
    assert [message.content for message in detail.messages] == SAID["S1"]
    assert [len(run.steps) for run in detail.runs] == [3, 2]
    assert detail.summary == await world.summary("S1")


async def test_K14_errors_are_read_back_as_recorded(world: World) -> None:
    await hold_conversations(world)
    for session in ("S3", "S4"):
        detail = await world.detail(session)
        assert [[step.errors for step in run.steps] for run in detail.runs] == TASKS[session]
        assert [[type(step.errors) for step in run.steps] for run in detail.runs] == [
            [type(errors) for errors in tasks] for tasks in TASKS[session]
        ]


async def test_K15_the_detail_of_an_unknown_or_invisible_session_is_none(world: World) -> None:
    await hold_conversations(world)
    assert await world.activity.get_session_detail("S9", world.a) is None
    assert await world.activity.get_session_detail("S1", world.b) is None


async def test_K16_no_errors_and_a_null_are_read_as_none(world: World) -> None:
    await hold_conversations(world)
    await world.sql(
        "UPDATE session_lifecycle.session_steps SET errors = 'null' WHERE run_id = 'S1.run1' AND step_id = 'task0'"
    )
    detail = await world.detail("S1")
    assert [step.errors for step in detail.runs[1].steps] == [None, ["x", "y"]]
    assert [run.errors_count for run in detail.runs] == [1, 1]


async def test_K17_a_session_with_two_matches_is_listed_once(world: World) -> None:
    await hold_conversations(world)
    page = await world.activity.list_session_summaries(SummaryFilters(user_id=world.a, search="o"))
    assert ([one.session_id for one in page.sessions], page.total) == (["S1", "S3"], 2)


async def test_K18_a_session_started_twice_is_listed_once(world: World) -> None:
    await hold_conversations(world)
    await world.record(Touch(session_id="S1", user_id=world.a, agent_name="beta", at=minute(61)))
    assert await world.summarised() == ["S1", "S3", "S4", "S5", "S2"]
    assert (await world.summary("S1")).record.agent_name == "alpha"


async def test_K20_a_history_is_the_newest_that_fits(world: World) -> None:
    await world.record(*(said("s", number, f"m{number}", world.a) for number in range(3)))

    async def history(**bounds: Any) -> list[str]:
        return [message.content for message in await world.activity.chat_history("s", world.a, **bounds)]

    assert await history() == ["m0", "m1", "m2"]
    assert await history(limit=2) == ["m1", "m2"]
    assert await history(max_characters=2) == await history(max_characters=3) == ["m2"]
    assert await history(max_characters=1) == []
    assert await history(limit=1, max_characters=100) == ["m2"]


async def test_K23_a_failed_run_is_an_error(world: World) -> None:
    run = Run(
        run_id="r", user_id=world.a, session_id="s", started_at=BEGIN, ended_at=minute(1), status=RunStatus.FAILED
    )
    await world.record(run)
    assert (await world.summary()).errors_count == 1
    await world.record(Step(step_id="task", run_id="r", user_id=world.a, kind="task", started_at=BEGIN, errors="boom"))
    assert (await world.summary()).errors_count == 1


async def test_K24_a_search_uses_an_index(world: World) -> None:
    await world.sql(
        "INSERT INTO session_lifecycle.session_messages "
        "(user_id, session_id, message_id, role, content, content_folded, created_at) "
        "SELECT '00000000-0000-0000-0000-000000000001', 's' || n % 2000, n::text, 'user', text, text, now() "
        "FROM generate_series(1, 20000) n, LATERAL (SELECT 'message ' || md5(n::text)) x (text)"
    )
    await world.sql(
        "INSERT INTO session_lifecycle.session_records (user_id, session_id) "
        "SELECT '00000000-0000-0000-0000-000000000001', 's' || n FROM generate_series(0, 1999) n"
    )
    await world.sql("ANALYZE session_lifecycle.session_messages")
    await world.sql("ANALYZE session_lifecycle.session_records")
    plan = await world.plan(
        world.activity.list_session_summaries(SummaryFilters(user_id=world.a, search="c4ca4238a0b9"))
    )
    # Some servers lack the extension; the search works without it, by a scan.
    has_trigrams = bool(await world.sql("SELECT name FROM pg_available_extensions WHERE name = 'pg_trgm'"))
    assert ("ix_session_messages_search" in plan) == has_trigrams
    assert await world.summarised(search="C4CA4238A0b9") == ["s1"]


@pytest.mark.parametrize(
    ("said_text", "searched"),
    [(r"C:\new_dir", r"c:\NEW_"), ("a 🦊 runs", "🦊"), ("ÉTÉ", "é"), ("e\u0301te\u0301", "É")],
)
async def test_K25_any_text_is_found(world: World, said_text: str, searched: str) -> None:
    await world.record(said("s", 0, said_text, world.a), said("other", 0, "C:/new-dir, a fox, ete", world.a))
    assert await world.summarised(search=searched) == ["s"]
