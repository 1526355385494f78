"""What the books say: the usage events, runs, steps and messages that an adapter has recorded."""

from typing import Any, NamedTuple

from session_lifecycle import SessionDatabase
from session_lifecycle.integrations.adapter import Adapter, OpenParts
from support.model_server import ModelServer
from support.transcripts import rows


class Event(NamedTuple):
    """A usage event. Counts are inclusive."""

    session: str
    run: str | None
    agent: str | None
    """The agent of its run."""
    provider: str | None
    model: str | None
    counts: tuple[int, int]
    """In, out."""
    parts: tuple[int, int, int, int]
    """Cache reads, cache writes, those of them for an hour, reasoning."""
    measured: bool = True
    errored: bool = False
    partial: bool = False


class RunRow(NamedTuple):
    """A run."""

    session: str | None
    agent: str | None
    status: str
    parent: str | None = None
    parent_tool_call: str | None = None


def open_parts(adapter: Adapter) -> int:
    """How many parts an adapter keeps open, of all kinds."""
    return sum(len(parts) for parts in vars(adapter).values() if isinstance(parts, OpenParts))


async def events(db: SessionDatabase) -> dict[str, Event]:
    """The usage events, by key, in the order of their times."""
    sql = """
        SELECT e.idempotency_key, e.session_id, e.run_id, r.agent_name, e.provider, e.model, e.tokens_in, e.tokens_out,
            e.cache_read_tokens, e.cache_write_tokens, coalesce((e.parts->>'cache_write_1h_tokens')::int, 0),
            e.reasoning_tokens, e.measured, e.errored, e.partial
        FROM session_lifecycle.session_usage_events e
        LEFT JOIN session_lifecycle.session_runs r ON r.user_id = e.user_id AND r.run_id = e.run_id
        ORDER BY e.at, e.idempotency_key
    """
    return {
        key: Event._make([*row[:5], tuple(row[5:7]), tuple(row[7:11]), *row[11:]]) for key, *row in await rows(db, sql)
    }


async def runs(db: SessionDatabase) -> dict[str, RunRow]:
    """The runs, by id."""
    sql = """
        SELECT run_id, session_id, agent_name, status, parent_run_id, parent_tool_call_id
        FROM session_lifecycle.session_runs WHERE started_at IS NOT NULL ORDER BY started_at
    """
    return {run_id: RunRow(*values) for run_id, *values in await rows(db, sql)}


async def steps(db: SessionDatabase, kind: str = "tool") -> dict[tuple[str, str], tuple[str | None, str]]:
    """The name of each step of a kind, and how it ended, by run and tool call."""
    sql = f"""
        SELECT run_id, coalesce(tool_call_id, step_id), name, ended_at IS NOT NULL, errors IS NOT NULL
        FROM session_lifecycle.session_steps WHERE kind = '{kind}'
    """
    return {
        (run, call): (name, ("failed" if failed else "completed") if ended else "open")
        for run, call, name, ended, failed in await rows(db, sql)
    }


async def messages(db: SessionDatabase) -> list[tuple[str | None, str, Any]]:
    """Run, role and content of the messages, in the order of their times."""
    sql = "SELECT run_id, role, content FROM session_lifecycle.session_messages ORDER BY created_at, message_id"
    return [(run, role, content) for run, role, content in await rows(db, sql)]


async def items_needed(db: SessionDatabase) -> int:
    """How many items the books need at least: the beginning and the end of each run and step, an item for all else."""
    [[needed]] = await rows(
        db,
        """
        SELECT 2 * (SELECT count(*) FROM session_lifecycle.session_runs)
            + 2 * (SELECT count(*) FROM session_lifecycle.session_steps)
            + (SELECT count(*) FROM session_lifecycle.session_messages)
            + (SELECT count(*) FROM session_lifecycle.session_usage_events)
        """,
    )
    return int(needed)


async def texts(db: SessionDatabase) -> str:
    """All that the tables say, as one text: a test looks for what must not stand there."""
    names = ("session_records", "session_runs", "session_steps", "session_messages", "session_usage_events")
    found = [await rows(db, f"SELECT to_jsonb(t)::text FROM session_lifecycle.{name} t") for name in names]
    return "\n".join(str(row) for table in found for row in table)


def served(server: ModelServer) -> dict[str, tuple[str, tuple[int, int], tuple[int, int, int, int]]]:
    """What the stand-in answered whole and with usage: served model, counts and parts, by the response's id."""
    return {
        one.response_id: (
            one.served_model,
            (one.tokens_in, one.tokens_out),
            (one.cache_read_tokens, one.cache_write_tokens, one.cache_write_1h_tokens, one.reasoning_tokens),
        )
        for one in server.answered
    }


async def measured(db: SessionDatabase) -> dict[str, tuple[str | None, tuple[int, int], tuple[int, int, int, int]]]:
    """The same of the events that have usage, by key."""
    return {key: (one.model, one.counts, one.parts) for key, one in (await events(db)).items() if any(one.counts)}
