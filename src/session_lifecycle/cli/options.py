"""What commands share: options, opening the database, exit codes."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from session_lifecycle import ConfigurationError, SessionDatabase, SessionLifecycleError, Settings

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        help="URL of the database, postgresql://…. Default: SESSION_LIFECYCLE_DATABASE_URL, else an embedded Postgres.",
        show_default=False,
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Data directory of the embedded Postgres. Default: one directory per user of this machine.",
        show_default=False,
    ),
]
OlderThanDays = Annotated[
    float, typer.Option(metavar="DAYS", help="Select sessions idle for longer than DAYS days (fractions allowed).")
]
Batch = Annotated[int, typer.Option(help="Maximum number of sessions per transaction.")]
DryRun = Annotated[bool, typer.Option(help="Report what would change, and change nothing.")]
Schema = Annotated[
    str | None,
    typer.Option(help="Postgres schema of the tables. Default: the settings' database_schema.", show_default=False),
]


def on_database(
    work: Callable[[SessionDatabase], Awaitable[None]], url: str | None, data_dir: Path | None, schema: str | None
) -> None:
    """Opens the database that the options name, runs the work on it, and closes it.

    Args:
        work: The work.
        url: The option `--database-url`.
        data_dir: The option `--data-dir`.
        schema: The option `--schema`.

    Raises:
        typer.Exit: With code 1, after an error message, if the library raises an error.
    """

    async def run() -> None:
        settings = Settings.load()
        if url is not None and data_dir is not None:
            raise ConfigurationError("--data-dir is for the embedded Postgres, --database-url for another: give one")
        if data_dir is not None or (url is None and settings.database_url is None):
            db = SessionDatabase.embedded(data_dir, schema=schema, settings=settings)
        else:
            db = SessionDatabase.connect(url, schema=schema, settings=settings)
        async with db:
            await work(db)

    run_until_done(run)


def run_until_done(work: Callable[[], Awaitable[None]]) -> None:
    """Runs the work on an event loop of its own.

    Raises:
        typer.Exit: With code 1, after an error message, if the library raises an error.
    """

    async def main() -> None:
        await work()

    refusals: list[BaseException] = []
    try:
        asyncio.run(main())
    except* SessionLifecycleError as errors:  # several tasks may fail at once
        refusals.extend(errors.exceptions)
    if refusals:
        while isinstance(refusals[0], BaseExceptionGroup):
            refusals[0] = refusals[0].exceptions[0]
        refuse(str(refusals[0]), code=1)


def refuse(message: str, *, code: int) -> NoReturn:
    """Prints an error message on standard error and ends the command with this exit code."""
    Console(stderr=True, soft_wrap=True).print(f"error: {message}", style="red", markup=False, highlight=False)
    raise typer.Exit(code)
