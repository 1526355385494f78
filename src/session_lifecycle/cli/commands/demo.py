"""`demo`: records a fleet of made-up agents through public calls."""

import asyncio
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated
from uuid import UUID, uuid4

import typer

from session_lifecycle.cli.demo_fleet import AGENTS, MODELS
from session_lifecycle.cli.options import Json, Place, on_database
from session_lifecycle.cli.output import print_json, print_line, print_note, print_tables

if TYPE_CHECKING:
    from session_lifecycle import SessionDatabase

ENDINGS = ("completed", "completed", "completed", "failed", "silent", "running")
SESSIONS_PER_OWNER = 6
ERROR_RATE = 0.1
LATE_RATE = 0.3


@dataclass(frozen=True)
class Fleet:
    """The ids of two people, of an agent with its own user id, and of a shared dataset. They are new in every run."""

    ann: UUID = field(default_factory=uuid4)
    ben: UUID = field(default_factory=uuid4)
    agent_of_ann: UUID = field(default_factory=uuid4)
    shared: UUID = field(default_factory=uuid4)

    @property
    def names(self) -> dict[UUID, str]:
        """The users' names for the tables."""
        return {self.ann: "ann", self.ben: "ben", self.agent_of_ann: "ann's agent"}


def demo(
    place: Place,
    seed: Annotated[int, typer.Option(help="Seed of the random data. The same seed makes the same data.")] = 1,
    as_json: Json = False,
) -> None:
    """Record a fleet of made-up agents, then show their sessions, figures and costs."""

    async def work(db: "SessionDatabase") -> None:
        await db.migrate()
        await record_fleet(db, seed, as_json=as_json)

    on_database(work, place)


async def record_fleet(db: "SessionDatabase", seed: int, *, as_json: bool) -> None:
    """Records all sessions at once, then shows what Ann sees: her own, her agent's, and those Ben shares with her."""
    from session_lifecycle import SessionListFilters, Viewer
    from session_lifecycle.cli.tables import costs_table, sessions_table, stats_table

    fleet = Fleet()
    randomness = random.Random(seed)
    sessions: list[tuple[UUID, UUID | None, int]] = [
        (owner, fleet.shared if owner == fleet.ben and number % 2 else None, number)
        for owner in fleet.names
        for number in range(SESSIONS_PER_OWNER)
    ]
    # When one fails, the others end before the database is closed.
    async with asyncio.TaskGroup() as recording:
        for owner, dataset, number in sessions:
            chance = random.Random(randomness.random())
            recording.create_task(_record_session(db, owner, dataset, number, chance))

    ann = Viewer(fleet.ann, [fleet.shared], [fleet.agent_of_ann])
    page = await db.primary.lifecycle.list_session_rows(SessionListFilters(viewer=ann, limit=50))
    stats = await db.primary.lifecycle.aggregate_stats(ann)
    costs = await db.primary.lifecycle.cost_by_model(ann)
    if as_json:
        print_json({"sessions": page, "stats": stats, "costs": costs})
        return
    print_line("What Ann sees: her own sessions, her agent's, and those Ben shares through a dataset.")
    print_line("")
    print_tables(sessions_table(page, fleet.names), stats_table(stats), costs_table(costs))
    print_note("To see a fleet that moves, in your browser: session-lifecycle serve --demo")


async def _record_session(
    db: "SessionDatabase", owner: UUID, dataset: UUID | None, number: int, chance: random.Random
) -> None:
    from session_lifecycle import SessionStatus, Touch, UsageEvent

    ending = ENDINGS[number % len(ENDINGS)]
    session_id = f"{chance.choice(('chat', 'task', 'review'))}-{number}"
    now = datetime.now(UTC)
    started = now - (timedelta(hours=3) if ending == "silent" else timedelta(minutes=25))
    await db.lifecycle.record(
        [Touch(session_id=session_id, user_id=owner, dataset_id=dataset, agent_name=chance.choice(AGENTS), at=started)]
    )
    model = chance.choice(MODELS)
    for turn in range(chance.randint(2, 6)):
        tokens_in, tokens_out = chance.randint(500, 8_000), chance.randint(50, 1_500)
        event = UsageEvent(
            session_id=session_id,
            user_id=owner,
            model=model,
            tokens_in=tokens_in,
            cache_read_tokens=tokens_in // 3,
            tokens_out=tokens_out,
            errored=chance.random() < ERROR_RATE,
            idempotency_key=f"response-{turn}",
            at=started + timedelta(minutes=turn),
        )
        # A streamed response reports growing token counts, and hooks retry. The session counts each response once.
        final = event.model_copy(update={"revision": 1, "tokens_out": tokens_out + 200})
        await db.lifecycle.record([event, final, final])
    if ending in {"completed", "failed"}:
        ended = started + timedelta(minutes=10)
        await db.lifecycle.end_session(session_id, owner, SessionStatus(ending), at=ended)
        if chance.random() < LATE_RATE:
            await db.lifecycle.accumulate_usage(session_id, owner, model, 100, 10, idempotency_key="after the end")
    elif ending == "running":
        await db.lifecycle.ensure_and_touch_session(session_id, owner)
