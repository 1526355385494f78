"""`replay`: replays recorded requests from a file through public calls."""

import asyncio
import csv
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import MAXYEAR, UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple
from uuid import NAMESPACE_URL, UUID, uuid5
from zlib import crc32

import typer

from session_lifecycle.cli.choices import moment
from session_lifecycle.cli.options import MISUSE, Json, Place, finite, on_database, refuse
from session_lifecycle.cli.output import print_json, print_line, print_tables
from session_lifecycle.errors import InvalidValueError, shortened

if TYPE_CHECKING:
    from session_lifecycle import SessionDatabase, SessionWriter, UsageOutcome

DEFAULT_USER = uuid5(NAMESPACE_URL, "session-lifecycle:replay")
MODELS = ("gpt-4o", "gpt-4o-mini", "claude-sonnet-4-5", "gemini-2.5-flash")
COLUMNS = ("offset_ms", "session_id", "turn", "tokens_in", "tokens_out")
MOST_DIGITS = 12
"""The most digits of a number in the file: enough for thirty years of milliseconds and the most tokens of an event."""
EARLIEST_YEAR = 1970


class Request(NamedTuple):
    """One line of the file: a request to a model."""

    offset_ms: int
    session_id: str
    turn: int
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True)
class Plan:
    """What to replay, and how.

    Attributes:
        requests: The requests, in the order of time.
        user_id: The owner of the sessions.
        model: The model of all requests; None: one of `MODELS`, by session.
        concurrency: The most requests at a time.
        speed: 1 replays in real time, 60 sixty times as fast, 0 without pauses.
        end: The time of the last request.
    """

    requests: Sequence[Request]
    user_id: UUID
    model: str | None
    concurrency: int
    speed: float
    end: datetime


def replay(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="CSV file of requests.")],
    place: Place,
    user: Annotated[UUID, typer.Option(help="Id of the user who owns the sessions.")] = DEFAULT_USER,
    model: Annotated[str | None, typer.Option(help="Model of all requests. Default: one of four, by session.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1000, help="Maximum number of requests at a time.")] = 16,
    speed: Annotated[float, typer.Option(min=0, help="1: real time; 60: sixty times as fast; 0: without pauses.")] = 0,
    end: Annotated[
        datetime | None,
        typer.Option(
            parser=moment, metavar="TIME", help="Time of the last request: ISO 8601 or how long ago. Default: now."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Replay a CSV file of requests with the columns offset_ms, session_id, turn, tokens_in, tokens_out.

    Each request has an idempotency key. Run an interrupted replay again: no request counts twice.
    """
    try:
        requests = read_requests(file)
        end_at = last_moment(end)
    except ValueError as error:
        refuse(str(error), code=MISUSE)
    plan = Plan(
        requests=requests,
        user_id=user,
        model=model,
        concurrency=concurrency,
        speed=finite("--speed", speed),
        end=end_at,
    )

    async def work(db: "SessionDatabase") -> None:
        await db.migrate()
        await replay_requests(db, plan, as_json=as_json)

    on_database(work, place)


def last_moment(end: datetime | None) -> datetime:
    """The time of the last request: now if None.

    Raises:
        ValueError: The year is so early or late that the file's offsets could leave the calendar.
    """
    if end is None:
        return datetime.now(UTC)
    if not EARLIEST_YEAR <= end.year < MAXYEAR:
        raise ValueError(f"--end: got {shortened(end)}, expected a year from {EARLIEST_YEAR} and before {MAXYEAR}")
    return end


def read_requests(file: Path) -> list[Request]:
    """Reads the requests of a file, in the order of time.

    Raises:
        ValueError: A column is missing or a value is wrong; the message names the line.
    """
    # Spreadsheets write a byte order mark. Bytes that are not UTF-8 become surrogates, which `_request` refuses.
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
    from session_lifecycle import Touch

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


async def replay_requests(db: "SessionDatabase", plan: Plan, *, as_json: bool) -> None:
    """Records every request, those of one session in order, then shows the rate and the totals."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from session_lifecycle.cli.tables import costs_table, stats_table

    # All requests of a session belong to one worker, so none overtakes another.
    shares: list[list[Request]] = [[] for _ in range(plan.concurrency)]
    for request in plan.requests:
        shares[crc32(request.session_id.encode()) % plan.concurrency].append(request)
    last_offset_ms = max((request.offset_ms for request in plan.requests), default=0)
    outcomes: Counter[UsageOutcome] = Counter()
    console = Console(stderr=True)
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

    async def send(writer: "SessionWriter", share: list[Request]) -> None:
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
    stats = await db.primary.lifecycle.aggregate_stats(plan.user_id)
    costs = await db.primary.lifecycle.cost_by_model(plan.user_id)
    if as_json:
        said = {"requests": len(plan.requests), "seconds": seconds, "outcomes": outcomes}
        print_json(said | {"stats": stats, "costs": costs})
        return
    counts = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items()))
    rate = len(plan.requests) / seconds
    print_line(f"{len(plan.requests):,} requests in {seconds:.1f} s, {rate:,.0f}/s: {counts}")
    print_tables(stats_table(stats), costs_table(costs))
