"""`import` of transcripts: records what coding agents have written into their own files."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from uuid import UUID

import typer

from session_lifecycle.cli.options import MISUSE, Json, Place, on_database, refuse, until_interrupted
from session_lifecycle.cli.output import FirstNamed, print_json, print_line, print_note
from session_lifecycle.errors import DatabaseUnavailableError, TransactionConflictError
from session_lifecycle.integrations.hook_command import default_user

if TYPE_CHECKING:
    from session_lifecycle import SessionDatabase
    from session_lifecycle.integrations.transcript_import import Program, TranscriptImport

Files = Annotated[
    Path | None,
    typer.Argument(help="File or directory. Default: where the program keeps its files.", show_default=False),
]
User = Annotated[
    UUID | None,
    typer.Option(help="Id of the user who owns the sessions. Default: made of the login name and the host's name."),
]
Follow = Annotated[bool, typer.Option("--follow", help="Wait for further lines until interrupted.")]
NoContent = Annotated[bool, typer.Option("--no-content", help="Record no messages, and no input or output of tools.")]
Again = Annotated[bool, typer.Option("--again", help="Read everything from the beginning. It counts nothing twice.")]
Billing = Annotated[Literal["api", "plan"], typer.Option(help="plan: the use is under a subscription, and in no cost.")]


@dataclass(frozen=True)
class Reading:
    """What is read, and how it is recorded."""

    path: Files = None
    user: User = None
    follow: Follow = False
    no_content: NoContent = False
    billing: Billing = "api"
    again: Again = False


def claude_code(reading: Reading, place: Place, as_json: Json = False) -> None:
    """Record the sessions of Claude Code: responses, prompts, sub-agents, tools.

    Run it as often as you like: it goes on where it stopped, and counts nothing twice.
    """
    _import("claude-code", reading, place, as_json=as_json)


def codex(reading: Reading, place: Place, as_json: Json = False) -> None:
    """Record the sessions of Codex: responses, turns, forks, sub-agents, tools.

    Run it as often as you like: it goes on where it stopped, and counts nothing twice.
    """
    _import("codex", reading, place, as_json=as_json)


def _import(program: "Program", reading: Reading, place: Place, *, as_json: bool) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from session_lifecycle.integrations.positions import Positions, default_directory
    from session_lifecycle.integrations.transcript_import import DEFAULT_BATCH, TranscriptImport, default_places

    content = not reading.no_content
    places = default_places(program) if reading.path is None else [reading.path]
    if not any(map(os.path.exists, places)):  # `Path.exists` raises where its folder may not be read
        refuse(f"there is nothing at {' or '.join(map(str, places))}: give a file or a directory", code=MISUSE)
    user_id = default_user() if reading.user is None else str(reading.user)
    console = Console(stderr=True)
    named = FirstNamed("bad lines")

    async def work(db: "SessionDatabase") -> None:
        await db.check()
        print_note(f"user: {user_id}")
        target = (db.engine.url.host, db.engine.url.port, db.engine.url.database, db.engine.url.query.get("host"))
        into = f"{program} {target} {place.data_dir} {place.schema} {user_id} {content} {reading.billing}"
        positions = Positions(default_directory(), into)
        progress = Progress(
            TextColumn("importing"),
            BarColumn(),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        with progress:
            bar = progress.add_task("importing", total=None)
            job = TranscriptImport(
                program,
                places,
                db.lifecycle,
                positions,
                user_id=user_id,
                content=content,
                billing=reading.billing,
                on_bad_line=lambda bad: named.add(f"{bad.path}:{bad.number}: {bad.reason}"),
                on_progress=lambda done, whole: progress.update(bar, completed=done, total=whole),
                reads_again=reading.again,
                batch=DEFAULT_BATCH,
            )
            if not reading.follow:
                await job.run()
            else:
                await until_interrupted(_follow(job))
        named.finish()
        _print_report(job, as_json=as_json)

    on_database(work, place)


async def _follow(job: "TranscriptImport") -> None:
    from session_lifecycle.integrations.transcript_import import LOOK_SECONDS

    is_away = False
    while True:
        try:
            await job.follow()
        except (DatabaseUnavailableError, TransactionConflictError) as error:
            if not is_away:
                print_note(f"the database cannot be reached now: {error}")
            is_away = True
        await asyncio.sleep(LOOK_SECONDS)


def _print_report(job: "TranscriptImport", *, as_json: bool) -> None:
    report = job.report
    if report.missing_origins:
        print_note(
            f"{len(report.missing_origins)} origins of forks are not at hand: lines of the first second of a fork "
            "were taken for copies"
        )
    if report.conflicts:
        print_note(
            f"{report.conflicts} usage events are in the database with other content, such as another billing, and "
            "stay as they are"
        )
    if as_json:
        counts = ("files", "lines", "items", "new_events", "conflicts", "bad_lines")
        print_json({name: getattr(report, name) for name in counts})
        return
    print_line(
        f"Imported: {report.files} files, {report.lines} lines, {report.items} items, "
        f"{report.new_events} new usage events, {report.bad_lines} bad lines"
    )
