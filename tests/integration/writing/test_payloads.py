"""The host's payloads, labels and ids as they are stored: redacted first, then as given, made safe, cut or refused."""

import random
import tracemalloc
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from sqlalchemy import select

from session_lifecycle import (
    InvalidValueError,
    Message,
    Run,
    RunFilters,
    SessionDatabase,
    SessionLifecycleError,
    SessionListFilters,
    Settings,
    Step,
    SummaryFilters,
    Touch,
    UsageEvent,
)
from session_lifecycle.entities import SessionMessageEntity, SessionRunEntity, SessionStepEntity
from session_lifecycle.models import Item

USER = UUID(int=1)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def run(**more: Any) -> Run:
    return Run(**{"run_id": "r", "user_id": USER, "session_id": "s", "started_at": NOON, **more})


def step(**more: Any) -> Step:
    return Step(**{"step_id": "s", "run_id": "r", "user_id": USER, "kind": "task", "started_at": NOON, **more})


def message(content: str, message_id: str = "m", **more: Any) -> Message:
    known = {"message_id": message_id, "user_id": USER, "session_id": "s", "role": "user", "created_at": NOON}
    return Message(**{**known, "content": content, **more})


async def stored(db: SessionDatabase, column: Any) -> Any:
    async with db.engine.connect() as connection:
        return (await connection.execute(select(column))).scalar_one()


@pytest_asyncio.fixture
async def small(session_database: SessionDatabase, session_database_url: str) -> AsyncIterator[SessionDatabase]:
    """The same database, with payloads of at most 1,000 bytes, larger ones refused."""
    limits = Settings(payload_limit_bytes=1000, payload_when_larger="refuse")
    async with SessionDatabase.connect(session_database_url, settings=limits) as db:
        yield db


@pytest.mark.parametrize(
    "payload",
    [None, True, 0, -7, 10**30, 0.1, "", "text", [], {}, [None], [[]], {"b": [1, {"a": None}], "a": "É🙂\\"}],
)
async def test_json_values_are_stored_as_given(session_database: SessionDatabase, payload: Any) -> None:
    await session_database.lifecycle.record([run(input=payload), step(errors=payload)])
    assert await stored(session_database, SessionRunEntity.input) == payload
    assert await stored(session_database, SessionStepEntity.errors) == payload


@pytest.mark.parametrize(
    ("payload", "kept"),
    [
        ("a\x00b\ud800c", "a�b�c"),
        ("\ud83d\ude42", "🙂"),
        ({"k\x00": ["\udfff"]}, {"k�": ["�"]}),
        (float("nan"), "nan"),
        ([float("inf")], ["inf"]),
        (10**100, str(10**100)),
        ((1, 2), [1, 2]),
        ({1: NOON, "id": USER}, {"1": "2026-01-01T12:00:00Z", "id": str(USER)}),
        ({"odd": object}, {"odd": "<class 'object'>"}),
    ],
)
async def test_values_that_postgres_or_json_cannot_hold_are_made_safe(
    session_database: SessionDatabase, payload: Any, kept: Any
) -> None:
    await session_database.lifecycle.record([run(output=payload)])
    assert await stored(session_database, SessionRunEntity.output) == kept


async def test_too_deep_a_payload_ends_with_a_mark(session_database: SessionDatabase) -> None:
    deep: Any = "bottom"
    for _ in range(5000):
        deep = [deep]
    await session_database.lifecycle.record([run(input=deep)])
    kept, levels = await stored(session_database, SessionRunEntity.input), 0
    while isinstance(kept, list):
        [kept], levels = kept, levels + 1
    assert (levels, kept) == (100, "… deeper than 100 levels")


async def test_a_text_is_made_safe_and_folded(session_database: SessionDatabase) -> None:
    await session_database.lifecycle.record([message("A\x00 É\ud800")])
    assert await stored(session_database, SessionMessageEntity.content) == "A� É�"
    assert await stored(session_database, SessionMessageEntity.content_folded) == "a� é�"


async def test_a_large_payload_is_cut_with_a_mark(session_database_url: str, session_database: SessionDatabase) -> None:
    async with SessionDatabase.connect(session_database_url, settings=Settings(payload_limit_bytes=1000)) as db:
        await db.lifecycle.record([run(input={"x": "é" * 800}, error="é" * 800), message("🙂" * 300)])
    cut = await stored(session_database, SessionRunEntity.input)
    assert (cut["truncated"], cut["bytes"], cut["beginning"][:8]) == (True, 1608, '{"x":"éé')
    assert await stored(session_database, SessionRunEntity.error) == "é" * 500 + "… (truncated, 1600 bytes)"
    assert await stored(session_database, SessionMessageEntity.content) == "🙂" * 250 + "… (truncated, 1200 bytes)"


@pytest.mark.parametrize(
    ("item", "field"),
    [(run(output="x" * 999), "output"), (run(error="x" * 1001), "error"), (message("é" * 501), "content")],
)
async def test_a_large_payload_is_refused_by_the_setting(small: SessionDatabase, item: Item, field: str) -> None:
    with pytest.raises(InvalidValueError, match=f"{field}: .* bytes.*at most 1000 bytes"):
        await small.lifecycle.record([run(), item])
    assert await small.lifecycle.get_session_row("s", USER) is None
    async with small.recorder() as recorder:
        with pytest.raises(InvalidValueError):
            await recorder.record([item])
        recorder.submit(item)
        assert await recorder.record([run()]) == ["created"]
        assert recorder.snapshot().pending == 0


def no_secrets(item: Item) -> Item:
    match item:
        case Message():
            return item.model_copy(update={"content": item.content.replace("hunter2", "***")})
        case Run():
            return item.model_copy(update={"input": None, "name": "x" * 300_000})
        case Touch():
            return item.model_copy(update={"title": None})
        case _:
            return item


async def test_an_item_is_redacted_before_it_is_stored(
    session_database_url: str, session_database: SessionDatabase
) -> None:
    async with SessionDatabase.connect(session_database_url, redact=no_secrets) as db:
        async with db.recorder() as recorder:
            await recorder.record(
                [message("my password is hunter2"), Touch(session_id="s", user_id=USER, title="hunter2")]
            )
        async with db.engine.begin() as connection:
            await db.bind(connection).lifecycle.record([run(input="hunter2")])
        assert (await db.lifecycle.accumulate_usage("s", USER, "m", 1)).outcome == "applied"
    assert await stored(session_database, SessionMessageEntity.content) == "my password is ***"
    assert await stored(session_database, SessionMessageEntity.content_folded) == "my password is ***"
    assert await stored(session_database, SessionRunEntity.input) is None
    row = await session_database.lifecycle.get_session_row("s", USER)
    assert row is not None
    assert row.record.title is None


def give_nothing(item: Item) -> None:
    return None


def name_another_user(item: Item) -> Item:
    return item.model_copy(update={"user_id": UUID(int=2)})


def remove_the_time(item: Item) -> Item:
    return item.model_copy(update={"created_at": None})


def fail(item: Item) -> Item:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("redact", "error", "message_of_error"),
    [
        (give_nothing, InvalidValueError, "redact: got 'another NoneType', expected the same item"),
        (name_another_user, InvalidValueError, "with the same ids"),
        (remove_the_time, InvalidValueError, "created_at"),
        (fail, SessionLifecycleError, r"redact failed \(ZeroDivisionError\), and nothing was stored"),
    ],
)
async def test_a_redaction_that_fails_stores_nothing(
    session_database_url: str,
    session_database: SessionDatabase,
    redact: Any,
    error: type[Exception],
    message_of_error: str,
) -> None:
    async with SessionDatabase.connect(session_database_url, redact=redact) as db:
        with pytest.raises(error, match=message_of_error):
            await db.lifecycle.record([message("secret")])
    assert await session_database.lifecycle.get_session_row("s", USER) is None


def odd_text(
    seed: int, size: int, alphabet: str = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
) -> str:
    """A text that Postgres cannot compress: a compressible one fits into an index row that it should not fit into."""
    return "".join(random.Random(seed).choices(alphabet, k=size))


EMOJI = "".join(map(chr, range(0x1F300, 0x1F6D0)))


async def test_X16_ids_of_1500_bytes_are_stored_and_found(session_database: SessionDatabase) -> None:
    root, child, call, message_id, step_id, parent_step = (odd_text(seed, 1_500) for seed in range(6))
    session_id, short = odd_text(7, 512), odd_text(8, 1_100)
    record = session_database.lifecycle.record
    activity = session_database.activity
    await record([run(run_id=root, session_id=session_id), run(run_id=short, session_id=session_id)])
    await record(
        [
            step(run_id=short, step_id=step_id, parent_step_id=parent_step, tool_call_id=call, kind="tool"),
            step(run_id=root, step_id=odd_text(9, 1_100), tool_call_id=odd_text(10, 1_500)),
            run(run_id=child, session_id=None, parent_tool_call_id=call, started_at=NOON + timedelta(minutes=1)),
            message("hello", message_id=message_id, session_id=session_id, run_id=child),
            UsageEvent(session_id=session_id, user_id=USER, model="m", tokens_in=5, run_id=child),
        ]
    )
    lineage = await activity.find_lineage(USER, call)
    assert lineage is not None
    assert lineage.parent_run_id == short
    detail = await activity.get_session_detail(session_id, USER)
    assert detail is not None
    assert {one.run_id for one in detail.runs} == {root, short, child}
    [told] = await activity.chat_history(session_id, USER)
    assert (told.message_id, told.run_id) == (message_id, child)
    seen, cursor = set(), None
    for _ in range(3):
        page = await activity.list_runs(RunFilters(user_id=USER, include_open=True, limit=1, cursor=cursor))
        seen |= {one.run_id for one in page.runs}
        cursor = page.next_cursor
    assert (seen, cursor) == ({root, short, child}, None)
    for replayed in (run(run_id=root, session_id=session_id), step(run_id=short, step_id=step_id, kind="tool")):
        assert await record([replayed]) == ["unchanged"]


async def test_X16_a_root_with_a_long_id_has_a_session_that_can_be_read_and_ended(
    session_database: SessionDatabase,
) -> None:
    root = odd_text(1, 1_500)
    children = [run(run_id=odd_text(seed, 1_500), session_id=None, parent_run_id=root) for seed in (2, 3)]
    await session_database.lifecycle.record([*children, run(run_id=root, session_id=None)])
    page = await session_database.lifecycle.list_session_rows(SessionListFilters(user_id=USER))
    [session_id] = [row.record.session_id for row in page.sessions]
    detail = await session_database.activity.get_session_detail(session_id, USER)
    assert detail is not None
    assert len(detail.runs) == 3
    assert await session_database.lifecycle.end_session(session_id, USER, "completed") == "ended"


async def test_X16_the_longest_labels_and_ids_fit_into_every_index(session_database: SessionDatabase) -> None:
    """Index rows of 2,704 bytes: of sessions, runs and roll-ups, with ids and labels of four bytes a character."""
    session_id = odd_text(1, 512, EMOJI)
    label = odd_text(2, 300, EMOJI)
    dataset = UUID(int=9)
    labels = dict.fromkeys(["agent_name", "client", "provider", "model", "project"], label)
    long_ago = NOON - timedelta(days=300)
    await session_database.lifecycle.record(
        [
            Touch(session_id=session_id, user_id=USER, dataset_id=dataset, agent_name=label, at=long_ago),
            run(run_id=odd_text(3, 550), session_id=session_id, dataset_id=dataset, **labels, started_at=long_ago),
            message("hello", message_id=odd_text(4, 552), session_id=session_id, created_at=long_ago),
            UsageEvent(session_id=session_id, user_id=USER, model=label, tokens_in=5, at=long_ago, idempotency_key="k"),
        ]
    )
    await session_database.maintenance.roll_up()
    assert not (await session_database.maintenance.reconcile()).mismatches
    page = await session_database.activity.list_session_summaries(
        SummaryFilters(user_id=USER, agent_name=label, project=label, model=label, client=label, provider=label)
    )
    assert [one.record.session_id for one in page.sessions] == [session_id]
    rows = await session_database.lifecycle.list_session_rows(SessionListFilters(user_id=USER, agent_name=label))
    assert [row.record.session_id for row in rows.sessions] == [session_id]


@pytest.mark.parametrize(
    ("content", "search"),
    [
        ("Ä İstanbul trip", "istanbul"),
        ("\uff26\uff35\uff2c\uff2c width", "full"),
        ("costs 10\u00a0000 in total", "10 000"),
        ("Donau\u00addampf\u00adschiff", "Dampfschiff"),
        ("find me", "\uff46\uff49nd\u00a0ME"),
        ("100%_sure", "100%_s"),
    ],
)
async def test_X18_search_finds_the_same_text_in_another_form(
    session_database: SessionDatabase, content: str, search: str
) -> None:
    await session_database.lifecycle.record([message(content), message("100 percent", "n", session_id="other")])
    page = await session_database.activity.list_session_summaries(SummaryFilters(user_id=USER, search=search))
    assert [one.record.session_id for one in page.sessions] == ["s"]
    assert await session_database.activity.chat_history("s", USER)


async def test_X19_a_shared_payload_is_cut_before_it_is_written_out(session_database: SessionDatabase) -> None:
    text = "x" * 300_000
    shared: Any = 1
    for _ in range(22):
        shared = [shared, shared]
    tracemalloc.start()
    try:
        await session_database.lifecycle.record([run(input=[text] * 1_000, output=text)])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30_000_000
    cut = await stored(session_database, SessionRunEntity.input)
    assert cut["truncated"] is True
    assert cut["bytes"] > 90_000_000
    assert cut["beginning"] == ('["' + text + '","' + text + '","' + text + '","' + text)[:1_048_576]
    await session_database.lifecycle.record([step(inputs=shared, output=shared)])
    assert await stored(session_database, SessionStepEntity.inputs)


async def test_R26_X20_what_the_host_gives_is_stored_as_some_json(session_database: SessionDatabase) -> None:
    cyclic: dict[Any, Any] = {1: b"\xff", "1": 10**5_000, 2.5: {3, 1}, None: iter([1])}
    cyclic["self"] = cyclic
    kept = {
        "1": hex(10**5_000),
        "1 (int)": "\ufffd",
        "2.5": [1, 3],
        "None": "<list_iterator object>",
        "self": "… contains itself",
    }
    payloads = dict.fromkeys(["inputs", "output", "prompt", "errors", "metadata"], cyclic)
    await session_database.lifecycle.record([run(input=cyclic, output=cyclic, metadata=cyclic), step(**payloads)])
    for column in (SessionRunEntity.input, SessionRunEntity.run_metadata, SessionStepEntity.errors):
        assert await stored(session_database, column) == kept
