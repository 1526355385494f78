"""The commands and what they share: which database, and how trouble is told."""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, NoReturn
from uuid import UUID

import typer
from pydantic import BaseModel
from rich.console import Console

from session_lifecycle import (
    BackgroundRollUp,
    ConfigurationError,
    PruneReport,
    RollUpReport,
    SessionDatabase,
    SessionLifecycleError,
    Settings,
)
from session_lifecycle.cli import demo as demo_command
from session_lifecycle.cli import replay as replay_command
from session_lifecycle.maintenance import DEFAULT_PRUNE_BATCH

app = typer.Typer(
    help="Sessions of AI agents, kept in Postgres.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
database_app = typer.Typer(help="The database's schema.", no_args_is_help=True)
app.add_typer(database_app, name="db")

PLAIN_WIDTH = 140

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        help="postgresql://…; else SESSION_LIFECYCLE_DATABASE_URL, else an embedded Postgres of this user's own.",
        show_default=False,
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Where the embedded Postgres keeps its data; else one place per user.", show_default=False),
]
OlderThanDays = Annotated[float, typer.Option(help="Sessions last active longer ago than so many days.")]
Batch = Annotated[int, typer.Option(help="How many sessions one transaction takes at most.")]
DryRun = Annotated[bool, typer.Option(help="Change nothing; say what would be.")]
Schema = Annotated[str | None, typer.Option(help="The Postgres schema of the tables.", show_default=False)]


@app.command()
def demo(
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    schema: Schema = None,
    seed: Annotated[int, typer.Option(help="The same seed lives the same lives.")] = 1,
) -> None:
    """Lives a fleet of agents through the public calls, then shows its sessions, figures and costs."""

    async def work(db: SessionDatabase) -> None:
        await db.migrate()
        await demo_command.live(db, _console(), seed)

    _on_database(work, database_url, data_dir, schema)


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True)],
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    schema: Schema = None,
    user: Annotated[UUID, typer.Option(help="Whose sessions they become.")] = replay_command.DEFAULT_USER,
    model: Annotated[str | None, typer.Option(help="One model for all; else a few, by session.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1000, help="How many requests at a time.")] = 16,
    speed: Annotated[float, typer.Option(min=0, help="1 is as it was, 60 sixty times as fast, 0 without pauses.")] = 0,
    end: Annotated[datetime | None, typer.Option(help="When the last request happened; now by default.")] = None,
) -> None:
    """Replays a CSV of requests: offset_ms, session_id, turn, tokens_in, tokens_out.

    Each request has a key, so a replay that was interrupted, or is run again, counts nothing twice.
    """
    try:
        requests = replay_command.read_requests(file)
        ends = replay_command.aware(end)
    except ValueError as error:
        _refuse(str(error), code=2)
    plan = replay_command.Plan(
        requests=requests,
        user_id=user,
        model=model,
        concurrency=concurrency,
        speed=speed,
        end=ends,
    )

    async def work(db: SessionDatabase) -> None:
        await db.migrate()
        await replay_command.replay(db, plan, _console())

    _on_database(work, database_url, data_dir, schema)


@app.command()
def prune_sessions(
    older_than_days: OlderThanDays,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    schema: Schema = None,
    batch: Batch = DEFAULT_PRUNE_BATCH,
    dry_run: DryRun = False,
) -> None:
    """Deletes sessions idle for longer than that, with all that is theirs. Interrupted and run again, it goes on."""

    async def work(db: SessionDatabase) -> None:
        report = await db.maintenance.prune_sessions(
            timedelta(days=older_than_days), batch=batch, dry_run=dry_run, on_progress=_tell_progress
        )
        _tell("Would delete" if dry_run else "Deleted", report)

    _on_database(work, database_url, data_dir, schema)


@app.command()
def prune_payloads(
    older_than_days: OlderThanDays,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    schema: Schema = None,
    batch: Batch = DEFAULT_PRUNE_BATCH,
    dry_run: DryRun = False,
) -> None:
    """Deletes what was said and done in sessions idle for longer than that; what it cost stays."""

    async def work(db: SessionDatabase) -> None:
        report = await db.maintenance.prune_payloads(
            timedelta(days=older_than_days), batch=batch, dry_run=dry_run, on_progress=_tell_progress
        )
        _tell("Would empty" if dry_run else "Emptied", report)

    _on_database(work, database_url, data_dir, schema)


@app.command()
def erase_user(
    user: Annotated[UUID, typer.Argument(help="Whose sessions.")],
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    schema: Schema = None,
    anonymise: Annotated[bool, typer.Option(help="Keep what was used and spent, under a random user id.")] = False,
    tombstone: Annotated[bool, typer.Option(help="Refuse everything that would bring the user back.")] = False,
    yes: Annotated[bool, typer.Option(help="Do not ask.")] = False,
) -> None:
    """Erases everything a user has."""
    if not yes:
        typer.confirm(f"Erase everything of {user}? It cannot be undone.", abort=True)

    async def work(db: SessionDatabase) -> None:
        receipt = await db.maintenance.erase_user(
            user, usage="anonymise" if anonymise else "delete", tombstone=tombstone
        )
        _tell("Erased", receipt)

    _on_database(work, database_url, data_dir, schema)


@app.command()
def reconcile(
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    schema: Schema = None,
    repair: Annotated[bool, typer.Option(help="Put right what differs.")] = False,
) -> None:
    """Compares every total with the ledger, the roll-ups with the sessions; exit code 1 where one is not put right."""

    async def work(db: SessionDatabase) -> None:
        report = await db.maintenance.reconcile(repair=repair)
        for mismatch in report.mismatches:
            _tell("Differs", mismatch)
        console = Console(soft_wrap=True, highlight=False)
        console.print(
            f"{report.sessions_looked_at} sessions, {report.mismatch_count} mismatches, {report.repaired} repaired"
        )
        if report.repaired < report.mismatch_count:
            raise typer.Exit(1)

    _on_database(work, database_url, data_dir, schema)


@app.command()
def roll_up(
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    schema: Schema = None,
    every: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Go on so often, give or take a half, until told to end.", show_default=False
        ),
    ] = None,
) -> None:
    """Adds up the sessions that are over, so that reports need not. Interrupted and run again, it goes on."""

    async def work(db: SessionDatabase) -> None:
        async def once() -> RollUpReport:
            report = await db.maintenance.roll_up(on_progress=_tell_progress)
            _tell("Rolled up", report)
            return report

        if every is None:
            await once()
            return
        told_to_end = asyncio.Event()
        for told in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(told, told_to_end.set)
        async with BackgroundRollUp(once, every):
            await told_to_end.wait()

    _on_database(work, database_url, data_dir, schema)


@database_app.command()
def upgrade(database_url: DatabaseUrl = None, data_dir: DataDir = None, schema: Schema = None) -> None:
    """Brings the schema to this version's revision."""

    async def work(db: SessionDatabase) -> None:
        await db.migrate()
        await db.check()
        Console().print("The schema is up to date.")

    _on_database(work, database_url, data_dir, schema)


@database_app.command()
def check(database_url: DatabaseUrl = None, data_dir: DataDir = None, schema: Schema = None) -> None:
    """Looks whether the schema is the one this version works with."""

    async def work(db: SessionDatabase) -> None:
        await db.check()
        Console().print("The schema is up to date.")

    _on_database(work, database_url, data_dir, schema)


@database_app.command()
def sql(schema: Schema = None) -> None:
    """Prints the SQL that migrates an empty database."""

    async def work() -> None:
        # Nothing is opened: the URL only names the kind of database.
        sys.stdout.write(await SessionDatabase.connect("postgresql://", schema=schema).migration_sql())

    _run(work)


def _tell_progress(report: PruneReport | RollUpReport) -> None:
    Console(stderr=True, soft_wrap=True).print(f"{report.sessions} sessions so far", highlight=False)


def _tell(what: str, report: BaseModel) -> None:
    """The report's fields that say something, on one line."""
    fields = ", ".join(f"{name} {value}" for name, value in report if value is not None)
    Console(soft_wrap=True).print(f"{what}: {fields}", markup=False, highlight=False)


def _console() -> Console:
    """Standard output; wide enough for the tables where there is no terminal to ask."""
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)


def _on_database(
    work: Callable[[SessionDatabase], Awaitable[None]], url: str | None, data_dir: Path | None, schema: str | None
) -> None:
    async def run() -> None:
        settings = Settings.load()
        if url is not None and data_dir is not None:
            raise ConfigurationError("--data-dir is of an embedded Postgres, --database-url of another: give one")
        if data_dir is not None or (url is None and settings.database_url is None):
            db = SessionDatabase.embedded(data_dir, schema=schema, settings=settings)
        else:
            db = SessionDatabase.connect(url, schema=schema, settings=settings)
        async with db:
            await work(db)

    _run(run)


def _run(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await work()

    refusals: list[BaseException] = []
    try:
        asyncio.run(main())
    except* SessionLifecycleError as errors:  # of one task, or of several at once
        refusals.extend(errors.exceptions)
    if refusals:
        while isinstance(refusals[0], BaseExceptionGroup):
            refusals[0] = refusals[0].exceptions[0]
        _refuse(str(refusals[0]), code=1)


def _refuse(message: str, *, code: int) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(f"error: {message}", style="red", markup=False, highlight=False)
    raise typer.Exit(code)


def run() -> None:
    """Runs the command line; an interrupt ends it after the embedded server has stopped."""
    try:
        app(prog_name="session-lifecycle")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
