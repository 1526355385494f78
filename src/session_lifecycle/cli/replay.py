"""Replaying recorded requests through the public calls."""

import asyncio
import csv
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import MAXYEAR, UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple
from uuid import NAMESPACE_URL, UUID, uuid5
from zlib import crc32

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from session_lifecycle import InvalidValueError, SessionDatabase, SessionWriter, Touch, UsageOutcome
from session_lifecycle.cli.tables import costs_table, stats_table

DEFAULT_USER = uuid5(NAMESPACE_URL, "session-lifecycle:replay")
MODELS = ("gpt-4o", "gpt-4o-mini", "claude-sonnet-4-5", "gemini-2.5-flash")
COLUMNS = ("offset_ms", "session_id", "turn", "tokens_in", "tokens_out")
MOST_DIGITS = 12
"""Of a number in the file: thirty years of milliseconds, and as many tokens as an event may hold."""
EARLIEST_YEAR = 1970


class Request(NamedTuple):
    """One line of the file."""

    offset_ms: int
    session_id: str
    turn: int
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True)
class Plan:
    """What to replay, and how."""

    requests: Sequence[Request]
    user_id: UUID
    model: str | None
    concurrency: int
    speed: float
    end: datetime


def aware(end: datetime | None) -> datetime:
    """The moment the replay ends: now by default, and local time where no zone is given.

    Raises:
        ValueError: It is at an edge of the calendar, where a file's span or a zone would lead out of it.
    """
    if end is None:
        return datetime.now(UTC)
    if not EARLIEST_YEAR <= end.year < MAXYEAR:
        raise ValueError(f"--end: got {end}, expected a year from {EARLIEST_YEAR} and before {MAXYEAR}")
    return end.astimezone(UTC)


def read_requests(file: Path) -> list[Request]:
    """The requests of a file, in order of time.

    Raises:
        ValueError: A column is missing or a line is not what it should be; names the line.
    """
    # Spreadsheets begin with a mark of order; what is not UTF-8 is refused with its line, as any other text.
    with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
        reader = csv.DictReader(lines, restval="")
        try:
            if missing := [column for column in COLUMNS if column not in (reader.fieldnames or ())]:
                raise ValueError(f"{file}: the column {missing[0]} is missing, expected {', '.join(COLUMNS)}")
            requests = [_request(row, f"{file}:{reader.line_num}") for row in reader]
        except csv.Error as error:
            raise ValueError(f"{file}:{reader.line_num + 1}: {error}") from error
    return sorted(requests, key=lambda request: request.offset_ms)


def _request(row: dict[str, str], place: str) -> Request:
    try:
        session_id = Touch.of_call(session_id=row["session_id"], user_id=DEFAULT_USER).session_id
    except InvalidValueError as error:
        raise ValueError(f"{place}: {error}") from error
    values: dict[str, int] = {}
    for column in ("offset_ms", "turn", "tokens_in", "tokens_out"):
        text = row[column]
        if not text.isdecimal() or len(text) > MOST_DIGITS:
            raise ValueError(
                f"{place}: {column}: got {text!r}, expected a whole number of at most {MOST_DIGITS} digits"
            )
        values[column] = int(text)
    return Request(session_id=session_id, **values)


async def replay(db: SessionDatabase, plan: Plan, console: Console) -> None:
    """Sends every request, those of one session in order, then shows rate and totals."""
    # A worker owns its sessions, so one session's requests never overtake each other.
    shares: list[list[Request]] = [[] for _ in range(plan.concurrency)]
    for request in plan.requests:
        shares[crc32(request.session_id.encode()) % plan.concurrency].append(request)
    last_offset_ms = max((request.offset_ms for request in plan.requests), default=0)
    outcomes: Counter[UsageOutcome] = Counter()
    began = time.monotonic()
    progress = Progress(
        TextColumn("replaying"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )

    async def send(writer: SessionWriter, share: list[Request]) -> None:
        for request in share:
            if plan.speed:
                await asyncio.sleep(max(0.0, request.offset_ms / 1000 / plan.speed - (time.monotonic() - began)))
            model = plan.model or MODELS[crc32(request.session_id.encode(), 1) % len(MODELS)]
            receipt = await writer.accumulate_usage(
                request.session_id,
                plan.user_id,
                model,
                request.tokens_in,
                request.tokens_out,
                idempotency_key=f"turn-{request.turn}",
                at=plan.end - timedelta(milliseconds=last_offset_ms - request.offset_ms),
            )
            outcomes[receipt.outcome] += 1
            progress.advance(bar)

    with progress:
        bar = progress.add_task("replaying", total=len(plan.requests))
        async with db.recorder() as recorder, asyncio.TaskGroup() as tasks:
            for share in shares:
                tasks.create_task(send(recorder, share))

    seconds = time.monotonic() - began
    told = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items()))
    console.print(f"{len(plan.requests):,} requests in {seconds:.1f} s, {len(plan.requests) / seconds:,.0f}/s: {told}")
    console.print(stats_table(await db.primary.lifecycle.aggregate_stats(plan.user_id)))
    console.print(costs_table(await db.primary.lifecycle.cost_by_model(plan.user_id)))
