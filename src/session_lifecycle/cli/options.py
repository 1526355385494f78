"""What commands share: options, naming and opening the database, confirming, exit codes."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from math import isfinite
from pathlib import Path
from typing import Annotated, NoReturn
from uuid import UUID

import typer

from session_lifecycle import ConfigurationError, SessionDatabase, SessionLifecycleError, Settings
from session_lifecycle.cli.output import print_error, print_note

MISUSE = 2
"""The exit code of a command whose arguments are refused, as it is Typer's."""
MOST_DAYS = 365_000

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        help="URL of the database, postgresql://…. Default: SESSION_LIFECYCLE_DATABASE_URL.",
        show_default=False,
    ),
]
Embedded = Annotated[bool, typer.Option("--embedded", help="Use the embedded Postgres of this user.")]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Use an embedded Postgres on this data directory.", show_default=False),
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
DryRun = Annotated[bool, typer.Option(help="Report what would change, and change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]
Schema = Annotated[
    str | None,
    typer.Option(help="Postgres schema of the tables. Default: the settings' database_schema.", show_default=False),
]


def on_database(
    work: Callable[[SessionDatabase], Awaitable[None]],
    url: str | None,
    data_dir: Path | None,
    schema: str | None,
    *,
    embedded: bool,
    confirm: str | None = None,
) -> None:
    """Opens the database that the options name, runs the work on it, and closes it.

    No database is a default: a mistyped variable would let a command change or delete elsewhere. The database is
    printed on standard error, without a password.

    Args:
        work: The work.
        url: The option `--database-url`.
        data_dir: The option `--data-dir`.
        schema: The option `--schema`.
        embedded: The option `--embedded`.
        confirm: A question that the user must answer with yes before the database is opened; None: there is none.

    Raises:
        typer.Exit: With code 1, after an error message, if the library raises an error; with code 2 if no database is
            named, or if there is no terminal to confirm on.
        typer.Abort: The user does not confirm.
    """

    async def run() -> None:
        async with db:
            await work(db)

    with refusing_errors():
        settings = Settings.load()
        is_embedded = embedded or data_dir is not None
        if url is not None and is_embedded:
            raise ConfigurationError(
                "--embedded and --data-dir are for the embedded Postgres, --database-url for another: give one"
            )
        if url is None and settings.database_url is None and not is_embedded:
            refuse(
                "no database is named: give --database-url, --embedded or --data-dir, "
                "or set SESSION_LIFECYCLE_DATABASE_URL",
                code=MISUSE,
            )
        if is_embedded:
            db = SessionDatabase.embedded(data_dir, schema=schema, settings=settings)
            place = f"the embedded Postgres {'of this user' if data_dir is None else f'on {data_dir}'}"
        else:
            db = SessionDatabase.connect(url, schema=schema, settings=settings)
            place = db.engine.url.set(drivername="postgresql").render_as_string(hide_password=True)
    print_note(f"database: {place}, schema {schema or settings.database_schema}")
    if confirm is not None:
        _confirm(confirm)
    run_until_done(run)


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        refuse("there is no terminal to confirm on: give --yes", code=MISUSE)
    typer.confirm(question, abort=True, err=True)


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

    Raises:
        typer.Exit: With code 1, after an error message, if the library raises an error.
    """

    async def main() -> None:
        await work()

    with refusing_errors():
        asyncio.run(main())


@contextmanager
def refusing_errors() -> Generator[None]:
    """Turns an error of the library into an error message.

    Raises:
        typer.Exit: With code 1, after the message of the first error.
    """
    refusals: list[BaseException] = []
    try:
        yield
    except* SessionLifecycleError as errors:  # several tasks may fail at once
        refusals.extend(errors.exceptions)
    if refusals:
        while isinstance(refusals[0], BaseExceptionGroup):
            refusals[0] = refusals[0].exceptions[0]
        refuse(str(refusals[0]), code=1)


def refuse(message: str, *, code: int) -> NoReturn:
    """Prints an error message on standard error and ends the command with this exit code."""
    print_error(message)
    raise typer.Exit(code)
