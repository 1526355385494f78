"""A ledger with events of every kind, and its rows as they are stored."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any
from uuid import UUID

from session_lifecycle import Run, SessionDatabase, Touch, UsageEvent, Viewer
from support.stored_rows import ask

A, B, C, D1, D2 = (UUID(int=number) for number in range(1, 6))
NOON = datetime(2026, 3, 28, 12, tzinfo=UTC)
"""Noon of the day before the clocks change in Berlin."""
HOUR = timedelta(hours=1)
SESSIONS = {(A, "s0"): (None, "coder"), (A, "s1"): (D1, None), (B, "s0"): (D1, "coder"), (C, "s2"): (D2, "Baker")}
"""The data set and the agent of each session."""
TAGS = {(A, "s0"): {"team": "red", "odd 'name' %s:": "1"}, (A, "s1"): {"team": ""}, (C, "s2"): {"team": "blue"}}
"""The tags of some sessions."""
RUNS = {(A, "r0"): ("s0", "Cursor"), (A, "r1"): ("s1", None), (B, "r0"): ("s0", "Zed"), (C, "r2"): ("s2", "Cursor")}
"""The session and the client of each run."""
MODELS = ["gpt-4o", "GPT-4o", "claude-sonnet-4-5", "no-such-model", "unknown", "Ü", "ü", None]
VIEWERS = {
    "own": Viewer(A),
    "shared": Viewer(A, [D1]),
    "by a data set": Viewer(None, [D1, D2]),
    "with an agent": Viewer(A, agent_user_ids=[C]),
    "auditor": Viewer.auditor(),
    "nobody": Viewer.of_users([]),
}
Row = Mapping[str, Any]


async def fill_ledger(db: SessionDatabase, random: Random, events: int = 120) -> None:
    """Records sessions, runs and events: with and without everything that an event may have, some of them late."""
    touches = [
        Touch(
            session_id=session_id,
            user_id=user,
            dataset_id=dataset,
            agent_name=agent,
            tags=TAGS.get((user, session_id)),
            at=NOON - 80 * HOUR,
        )
        for (user, session_id), (dataset, agent) in SESSIONS.items()
    ]
    moved = UsageEvent(session_id="s1", user_id=A, run_id="moved", model="gpt-4o", tokens_in=7, at=NOON - HOUR)
    await db.lifecycle.record([*touches, moved])
    runs = [
        Run(run_id=run_id, user_id=user, session_id=session_id, client=client, started_at=NOON - 50 * HOUR)
        for (user, run_id), (session_id, client) in RUNS.items()
    ]
    # The event of this run was counted in another session before.
    runs.append(Run(run_id="moved", user_id=A, session_id="s0", client="Elsewhere", started_at=NOON - HOUR))
    expensive = runs[1].model_copy(update={"reported_cost_usd": Decimal("123.4500000000000000000000000001")})
    await db.lifecycle.record([*runs[:1], expensive, *runs[2:]])
    await db.lifecycle.record([event(random, number) for number in range(events)])
    await db.lifecycle.end_session("s2", C, "failed", at=NOON)
    await db.lifecycle.record(
        [event(random, events + number, session=(C, "s2"), at=NOON + HOUR) for number in range(5)]
    )
    # Replaces what has the first of these keys, and is outside every run.
    await db.lifecycle.record([event(random, 0, session=(A, "s0"), key="k0", revision=2)])


def event(
    random: Random, number: int, session: tuple[UUID, str] | None = None, key: str | None = None, **given: Any
) -> UsageEvent:
    """A drawn event."""
    user, session_id = session or random.choice([*SESSIONS])
    own = [run_id for (owner, run_id), (of_session, _) in RUNS.items() if (owner, of_session) == (user, session_id)]
    fields: dict[str, Any] = {
        "session_id": session_id,
        "user_id": user,
        "model": random.choice(MODELS),
        "provider": random.choice([None, "openai", "azure", "unknown"]),
        "run_id": random.choice([None, *own]),
        # Many events share a moment.
        "at": NOON + random.randrange(-70, 1) * HOUR if session_id == "s2" else NOON + random.randrange(-70, 30) * HOUR,
        "errored": random.random() < 0.2,
        "kind": random.choice(["llm", "llm", "embedding"]),
        "billing": random.choice(["api", "api", "plan"]),
        "service_tier": random.choice(["standard", "standard", "batch", "priority"]),
        "partial": random.random() < 0.2,
        "idempotency_key": key or random.choice([None, f"k{number}"]),
        "details": random.choice([{}, {"pages": number}, {"pages": 10**12, "odd 'name' %s": 3}]),
    }
    if random.random() < 0.1:
        fields |= {"measured": False, "partial": False}
    elif random.random() < 0.9:
        reads, writes = random.randrange(200), random.randrange(200)
        fields |= {
            "tokens_in": 10**12 - random.randrange(1000),
            "tokens_out": 1000 + random.randrange(1000),
            "cache_read_tokens": reads,
            "cache_write_tokens": writes,
            "reasoning_tokens": random.randrange(100),
            "cost_usd": random.choice([None, Decimal(random.randrange(10**18)).scaleb(-30), 0, 2]),
        }
        if random.random() < 0.5:
            fields |= {
                "cache_write_1h_tokens": random.randrange(writes + 1),
                "audio_tokens_in": 90,
                "cache_read_audio_tokens": min(reads, random.randrange(90)) // 2,
                "image_tokens_in": 80,
                "cache_read_image_tokens": min(reads, random.randrange(80)) // 2,
                "video_tokens_in": random.randrange(10**11),
                "audio_tokens_out": random.randrange(100),
                "image_tokens_out": random.randrange(100),
                "web_searches": random.randrange(4),
            }
    return UsageEvent(**fields | given)


async def stored_events(db: SessionDatabase) -> list[dict[str, Any]]:
    """The ledger's rows, each with the data set, the agent and the tags of its session, and the client of its run."""
    # As text, because the driver would read the numbers of JSON as floats.
    as_text = ("parts", "details", "unit_prices")
    columns = ", ".join(f"{name}::text AS {name}_text" for name in as_text)
    rows = [dict(row._mapping) for row in await ask(db, f"SELECT *, {columns} FROM session_usage_events")]
    sessions = {(row.user_id, row.session_id): row for row in await ask(db, "SELECT * FROM session_records")}
    runs = {(row.user_id, row.run_id): row for row in await ask(db, "SELECT * FROM session_runs")}
    for row in rows:
        row |= {name: json.loads(row[f"{name}_text"] or "null") for name in as_text}
        session = sessions[row["user_id"], row["session_id"]]
        run = runs.get((row["user_id"], row["run_id"]))
        row |= {"dataset_id": session.dataset_id, "agent_name": session.agent_name, "session_status": session.status}
        row["tags"] = TAGS.get((row["user_id"], row["session_id"]), {})
        row["client"] = run.client if run is not None and run.session_id == row["session_id"] else None
    return rows


def seen_by(viewer: Viewer, rows: Sequence[Row]) -> list[Row]:
    """The rows that the viewer sees."""
    return [
        row
        for row in rows
        if viewer.sees_all or row["user_id"] in viewer.owner_ids or row["dataset_id"] in viewer.permitted_dataset_ids
    ]


def model_key(row: Row) -> str:
    """The model of a row as names are compared: Postgres folds the letters of ASCII only, in the collation "C"."""
    return "".join(one.lower() if one.isascii() else one for one in row["model"] or "unknown")
