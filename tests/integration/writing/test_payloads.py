"""The host's payloads as they are stored: redacted first, then as given, made safe, cut or refused."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from sqlalchemy import select

from session_lifecycle import (
    InvalidValueError,
    Message,
    Run,
    SessionDatabase,
    SessionLifecycleError,
    Settings,
    Step,
    Touch,
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
    return Message(**known, content=content, **more)


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
