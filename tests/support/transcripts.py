"""Made transcripts of coding agents, importing them, and the rows that come of them. All wording is made up."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import text

from session_lifecycle import SessionDatabase, SessionRecorder
from session_lifecycle.integrations.positions import Positions
from session_lifecycle.integrations.transcript_import import BadLine, ImportReport, TranscriptImport
from support.usage import A

BEGIN = datetime(2026, 9, 1, 8, tzinfo=UTC)
LATER = datetime.now(UTC) + timedelta(days=400)
"""Long after every line, and after the files were written."""
SHARED = Path(__file__).parents[2].parent / "shared" / "runtimes"
"""Logs that are kept beside the project, where they are there."""
MODEL = "claude-sonnet-4-5-20250929"
Line = dict[str, Any]


def at(second: float) -> str:
    return (BEGIN + timedelta(seconds=second)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def write(path: Path, lines: Sequence[Line | str], *, end: str = "\n") -> Path:
    """Writes a transcript; a line that is text is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_bytes(("\n".join(texts) + end).encode())
    return path


def line(kind: str, second: float, session: str, message: Line, **more: Any) -> Line:
    common = {"type": kind, "sessionId": session, "uuid": f"{session}-{second}", "timestamp": at(second)}
    return {**common, "version": "2.1.197", "cwd": "/home/dev/orchard", "message": message, **more}


def prompt(second: float, words: str, *, session: str = "s1", **more: Any) -> Line:
    return line("user", second, session, {"role": "user", "content": words}, **more)


def result(
    second: float, call: str, words: str = "done", *, session: str = "s1", failed: bool = False, **more: Any
) -> Line:
    block = {"type": "tool_result", "tool_use_id": call, "content": words} | ({"is_error": True} if failed else {})
    return line("user", second, session, {"role": "user", "content": [block]}, **more)


def answer(
    second: float,
    message_id: str,
    counts: tuple[int, int, int, int],
    *,
    session: str = "s1",
    stop: str | None = "end_turn",
    tool: tuple[str, str] | None = None,
    model: str = MODEL,
    hour: int = 0,
    searches: int = 0,
    **more: Any,
) -> Line:
    """A line of an answer. `counts`: input beside the cache, written, read, out."""
    fresh, written, read, out = counts
    usage: Line = {"input_tokens": fresh, "cache_creation_input_tokens": written, "cache_read_input_tokens": read}
    usage |= {"output_tokens": out, "service_tier": "standard", "server_tool_use": {"web_search_requests": searches}}
    usage["cache_creation"] = {"ephemeral_5m_input_tokens": written - hour, "ephemeral_1h_input_tokens": hour}
    block: Line = {"type": "text", "text": "Looking at the trees."}
    if tool is not None:
        block = {"type": "tool_use", "id": tool[0], "name": tool[1], "input": {"row": 4}}
    message = {"id": message_id, "role": "assistant", "model": model, "content": [block], "stop_reason": stop}
    return line("assistant", second, session, message | {"usage": usage}, **more)


def synthetic(second: float, message_id: str, words: str, *, is_error: bool, session: str = "s1", **more: Any) -> Line:
    made = answer(second, message_id, (0, 0, 0, 0), session=session, model="<synthetic>", stop="stop_sequence")
    made["message"]["content"] = [{"type": "text", "text": words}]
    return {**made, "isApiErrorMessage": is_error, **more}


# Codex


def rollout(second: float, kind: str, **payload: Any) -> Line:
    return {"timestamp": at(second), "type": kind, "payload": payload}


def meta(second: float, session: str, **more: Any) -> Line:
    return rollout(second, "session_meta", id=session, model_provider="openai", cwd="/home/dev/orchard", **more)


def event(second: float, kind: str, **more: Any) -> Line:
    return rollout(second, "event_msg", type=kind, **more)


def turn(second: float, turn_id: str, model: str, words: str = "Sort the pears.") -> list[Line]:
    return [
        event(second, "task_started", turn_id=turn_id),
        event(second, "user_message", message=words),
        rollout(second, "turn_context", turn_id=turn_id, model=model),
    ]


NAMES = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_output_tokens")


def counted(second: float, total: tuple[int, int, int, int], last: tuple[int, int, int, int] | None = None) -> Line:
    """A count: the total after a response; `last` is only what an estimate says."""
    info = {"total_token_usage": dict(zip(NAMES, total, strict=True))}
    return event(second, "token_count", info=info | {"last_token_usage": dict(zip(NAMES, last or total, strict=True))})


def called(second: float, call: str) -> list[Line]:
    return [
        rollout(second, "response_item", type="function_call", name="shell", arguments="{}", call_id=call),
        rollout(second + 0.5, "response_item", type="function_call_output", call_id=call, output="ok"),
    ]


# Importing and looking


async def bring(
    db: SessionDatabase,
    program: Literal["claude-code", "codex"],
    *places: Path,
    positions: Path | None = None,
    now: datetime = LATER,
    on_bad_line: Callable[[BadLine], object] = lambda _: None,
    **more: Any,
) -> ImportReport:
    """Imports what is at these places for user A."""
    kept = None if positions is None else Positions(positions, "tests")
    job = TranscriptImport(
        program, places, db.lifecycle, kept, user_id=A, clock=lambda: now, on_bad_line=on_bad_line, **more
    )
    return await job.run()


async def rows(db: SessionDatabase, sql: str) -> list[tuple[Any, ...]]:
    async with db.engine.connect() as connection:
        return [tuple(row) for row in (await connection.execute(text(sql))).all()]


async def events(
    db: SessionDatabase, columns: str = "tokens_in, tokens_out, cache_read_tokens, cache_write_tokens"
) -> dict[str, tuple[Any, ...]]:
    """These columns of the usage events, by key, in the order in which they were recorded."""
    of_all = f"SELECT idempotency_key, {columns} FROM session_lifecycle.session_usage_events"
    in_order = await rows(db, f"{of_all} ORDER BY recorded_at, event_id")
    return {key: tuple(values) for key, *values in in_order}


async def written(
    db: SessionDatabase, recorder: SessionRecorder, columns: str = "tokens_in, tokens_out"
) -> dict[str, tuple[Any, ...]]:
    """`events`, once the recorder has written what it has, and has lost nothing."""
    await recorder.flush()
    assert recorder.snapshot().failures == 0
    return await events(db, columns)


async def runs(db: SessionDatabase, columns: str = "status") -> dict[str, Any]:
    """This column of the runs that were begun, or these, by id."""
    sql = f"SELECT run_id, {columns} FROM session_lifecycle.session_runs WHERE started_at IS NOT NULL"
    return {key: values[0] if len(values) == 1 else tuple(values) for key, *values in await rows(db, sql)}


async def steps(db: SessionDatabase) -> dict[tuple[str, str], tuple[str | None, str]]:
    """The name of each step and how it ended, by run and id."""
    sql = "SELECT run_id, step_id, name, ended_at IS NOT NULL, errors IS NOT NULL FROM session_lifecycle.session_steps"
    return {
        (run, step): (name, ("failed" if failed else "completed") if ended else "open")
        for run, step, name, ended, failed in await rows(db, sql)
    }


async def totals(db: SessionDatabase) -> dict[str, tuple[int, int, int, int]]:
    """In, out, unmeasured and errors of each session with usage or an error."""
    sql = """
        SELECT session_id, tokens_in, tokens_out, unmeasured_events, error_count
        FROM session_lifecycle.session_records ORDER BY session_id
    """
    return {session: tuple(values) for session, *values in await rows(db, sql) if any(values)}


async def everything(db: SessionDatabase) -> list[list[tuple[Any, ...]]]:
    """All rows, but for when they were recorded."""
    names = ("session_records", "session_runs", "session_steps", "session_messages", "session_usage_events")
    return [
        await rows(db, f"SELECT (to_jsonb(t) - 'recorded_at')::text FROM session_lifecycle.{name} t ORDER BY 1")
        for name in names
    ]
