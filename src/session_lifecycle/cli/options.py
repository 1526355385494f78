"""What commands share: options, naming and opening the database, confirming, exit codes.

Every command loads this module before it knows its options, so nothing here loads the library at import.
"""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn
from uuid import UUID

import typer

from session_lifecycle.cli.output import print_error, print_note, shown
from session_lifecycle.errors import InvalidValueError, SessionLifecycleError

if TYPE_CHECKING:
    from session_lifecycle import SessionDatabase

FAILURE = 1
"""The exit code of a command that failed."""
MISUSE = 2
"""The exit code of a command whose arguments are refused, as it is Typer's."""
TERMINATED = 128 + signal.SIGTERM
"""The exit code of a command that SIGTERM ended. Shells use the same number."""
MOST_DAYS = 365_000
PRUNE_BATCH = 1000
REPRICE_BATCH = 500
DATABASE_PANEL = "Database"
"""The part of a command's help that has the options of `Place`."""

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        rich_help_panel=DATABASE_PANEL,
        help="URL of the database, postgresql://…. Default: SESSION_LIFECYCLE_DATABASE_URL.",
        show_default=False,
    ),
]
Embedded = Annotated[
    bool,
    typer.Option("--embedded", rich_help_panel=DATABASE_PANEL, help="Use the embedded Postgres of this user."),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=DATABASE_PANEL, help="Use an embedded Postgres on this data directory.", show_default=False
    ),
]
OlderThanDays = Annotated[
    float, typer.Option(metavar="DAYS", help="Select what is older than DAYS days (fractions allowed).")
]
Users = Annotated[
    list[UUID] | None,
    typer.Option("--user", metavar="ID", help="Only sessions of this user. Repeat for several.", show_default=False),
]
Agents = Annotated[
    list[str] | None,
    typer.Option(
        "--agent", metavar="NAME", help="Only sessions of this agent. Repeat for several.", show_default=False
    ),
]
Datasets = Annotated[
    list[UUID] | None,
    typer.Option(
        "--dataset", metavar="ID", help="Only sessions in this dataset. Repeat for several.", show_default=False
    ),
]
Batch = Annotated[int, typer.Option(help="Maximum number of sessions per transaction.")]
BatchOfEvents = Annotated[int, typer.Option("--batch", help="Maximum number of usage events per transaction.")]
DryRun = Annotated[bool, typer.Option(help="Report what would change, and change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print the answer as one line of JSON. Money is text, times are in UTC.")
]
Schema = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=DATABASE_PANEL,
        help="Postgres schema of the tables. Default: the settings' database_schema.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class Place:
    """The options that name a database."""

    database_url: DatabaseUrl = None
    data_dir: DataDir = None
    embedded: Embedded = False
    schema: Schema = None


def on_database(
    work: "Callable[[SessionDatabase], Awaitable[None]]", place: Place, *, confirm: str | None = None
) -> None:
    """Opens the database that the options name, runs the work on it, and closes it.

    No database is a default: a mistyped variable would let a command change or delete elsewhere. The database is
    printed on standard error, without a password.

    Args:
        work: The work.
        place: The options that name the database.
        confirm: A question that the user must answer with yes before the database is opened; None: there is none.

    Raises:
        typer.Exit: After an error message. With code 1 if the library raises an error; with code 2 if it refuses a
            value, the URL or a setting, if no database is named or two are, or if there is no terminal to confirm on;
            with code 143 after SIGTERM.
        typer.Abort: The user does not confirm.
    """
    refuse_two_databases(place)
    url, data_dir = place.database_url, place.data_dir
    is_embedded = place.embedded or data_dir is not None

    from session_lifecycle import SessionDatabase, Settings

    async def run() -> None:
        async with db:
            await work(db)

    with refusing_errors(code=MISUSE):  # nothing is opened yet: what fails is a setting or an option
        settings = Settings.load()
        if url is None and settings.database_url is None and not is_embedded:
            refuse(
                "no database is named: give --database-url, --embedded or --data-dir, "
                "or set SESSION_LIFECYCLE_DATABASE_URL",
                code=MISUSE,
            )
        if is_embedded:
            db = SessionDatabase.embedded(data_dir, schema=place.schema, settings=settings)
            named = f"the embedded Postgres {'of this user' if data_dir is None else f'on {data_dir}'}"
        else:
            db = SessionDatabase.connect(url, schema=place.schema, settings=settings)
            named = db.engine.url.set(drivername="postgresql").render_as_string(hide_password=True)
    print_note(f"database: {named}, schema {place.schema or settings.database_schema}")
    if confirm is not None:
        confirm_on_terminal(confirm)
    run_until_done(run)


def refuse_two_databases(place: Place) -> None:
    """Refuses options that name two databases.

    Raises:
        typer.Exit: With code 2, after an error message.
    """
    if place.database_url is not None and (place.embedded or place.data_dir is not None):
        refuse(
            "--embedded and --data-dir are for the embedded Postgres, --database-url for another: give one",
            code=MISUSE,
        )


def confirm_on_terminal(question: str) -> None:
    """Asks the question.

    Raises:
        typer.Exit: With code 2, after an error message, if there is no terminal.
        typer.Abort: The user does not confirm.
    """
    if not sys.stdin.isatty():
        refuse("there is no terminal to confirm on: give --yes", code=MISUSE)
    typer.confirm(shown(question), abort=True, err=True)


def older_than(days: float) -> timedelta:
    """The duration of the option `--older-than-days`.

    Raises:
        typer.Exit: With code 2, after an error message, if it is not above 0, too large or not a number.
    """
    if not 0 < days <= MOST_DAYS:
        refuse(f"--older-than-days: got {days}, expected a number above 0 and at most {MOST_DAYS:,}", code=MISUSE)
    return timedelta(days=days)


def narrowing(users: Users, agents: Agents, datasets: Datasets) -> str:
    """The sessions that the options choose, in words for a question; empty where they choose all."""
    chosen = (("user", users), ("agent", agents), ("dataset", datasets))
    return "".join(f", of the {name} {' or '.join(map(str, values))}" for name, values in chosen if values)


def finite(option: str, number: float) -> float:
    """The number of an option, which is neither infinite nor NaN.

    Raises:
        typer.Exit: With code 2, after an error message, if it is.
    """
    if not isfinite(number):
        refuse(f"{option}: got {number}, expected a finite number", code=MISUSE)
    return number


def run_until_done(work: Callable[[], Awaitable[None]]) -> None:
    """Runs the work on an event loop of its own.

    SIGTERM cancels the work, as SIGINT does, so that the work closes what it opened.

    Raises:
        typer.Exit: After an error message, with code 1 if the library raises an error, with code 2 if it refuses a
            value; with code 143 after SIGTERM.
    """
    terminated = False

    async def main() -> None:
        running = asyncio.ensure_future(work())

        def terminate() -> None:
            nonlocal terminated
            terminated = True
            running.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
        await running

    with refusing_errors():
        try:
            asyncio.run(main())
        except asyncio.CancelledError:
            if not terminated:
                raise
            raise typer.Exit(TERMINATED) from None


async def until_interrupted(work: Coroutine[Any, Any, None]) -> None:
    """Runs work that has no end of its own. SIGINT and SIGTERM cancel it, and the command goes on after it."""
    running = asyncio.ensure_future(work)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    with suppress(asyncio.CancelledError):
        await running


@contextmanager
def refusing_errors(*, code: int = FAILURE) -> Generator[None]:
    """Turns an error of the library into an error message.

    Args:
        code: The exit code of an error that refuses no value.

    Raises:
        typer.Exit: After the message of the first error: with code 2 if it refuses a value, else with `code`.
    """
    refusals: list[BaseException] = []
    try:
        yield
    except* SessionLifecycleError as errors:  # several tasks may fail at once
        refusals.extend(errors.exceptions)
    if refusals:
        while isinstance(refusals[0], BaseExceptionGroup):
            refusals[0] = refusals[0].exceptions[0]
        refuse(str(refusals[0]), code=MISUSE if isinstance(refusals[0], InvalidValueError) else code)


def refuse(message: str, *, code: int) -> NoReturn:
    """Prints an error message on standard error and ends the command with this exit code."""
    print_error(message)
    raise typer.Exit(code)
