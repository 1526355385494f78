"""The commands of the spool: what is in it, deliver it, and what was set aside."""

import asyncio
import signal
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from session_lifecycle import SessionDatabase, Spool
from session_lifecycle.cli.options import (
    MISUSE,
    DatabaseUrl,
    DataDir,
    Embedded,
    Schema,
    on_database,
    refuse,
    refusing_errors,
)
from session_lifecycle.cli.output import print_line
from session_lifecycle.writing.spool import DEFAULT_DRAIN_BATCH
from session_lifecycle.writing.spool_drain import Drainer

SpoolPath = Annotated[
    Path | None,
    typer.Option(
        "--path",
        help="Directory of the spool. Default: session-lifecycle/spool in $XDG_STATE_HOME or ~/.local/state.",
        show_default=False,
    ),
]


def status(path: SpoolPath = None) -> None:
    """Show how many items wait, how many were set aside, and the size on disk."""
    with refusing_errors(), Spool(path) as spool:
        found = spool.status()
    drainer = "a drainer is at work" if found.is_draining else "no drainer is at work"
    print_line(
        f"{found.path}: {found.items} items, {found.poison} set aside, "
        f"{found.bytes:,} of {found.max_bytes:,} bytes, {drainer}"
    )


def drain(
    path: SpoolPath = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    embedded: Embedded = False,
    schema: Schema = None,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for further items until interrupted.")] = False,
    batch: Annotated[int, typer.Option(help="Maximum number of items per transaction.")] = DEFAULT_DRAIN_BATCH,
) -> None:
    """Deliver the items of the spool to the database.

    Exit with code 1 if items are left. An interrupted command keeps what it has delivered.
    """

    async def work(db: SessionDatabase) -> None:
        if not follow:
            await db.check()  # so that a wrong database is refused even if the spool is empty
        with Spool(path) as spool, spool.draining():
            drainer = Drainer(spool, db, batch=batch)
            running = asyncio.ensure_future(drainer.run(follow=follow))
            if follow:
                for number in (signal.SIGINT, signal.SIGTERM):
                    asyncio.get_running_loop().add_signal_handler(number, running.cancel)
            with suppress(asyncio.CancelledError):
                await running
            left = spool.count()
            print_line(f"Drained: {drainer.drained} delivered, {drainer.set_aside} set aside, {left} left")
            if left and not follow:
                stopped_by = running.result().stopped_by
                refuse(stopped_by or f"{left} items were appended meanwhile: run the command again", code=1)

    on_database(work, database_url, data_dir, schema, embedded=embedded)


def poison(
    path: SpoolPath = None,
    retry: Annotated[bool, typer.Option("--retry", help="Put all of them back into the spool.")] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Delete all of them.")] = False,
) -> None:
    """Show the items that were set aside, with the reason and the item as JSON.

    An item may hold what people or models said.
    """
    if retry and drop:
        refuse("--retry and --drop exclude each other: give one", code=MISUSE)
    with refusing_errors(), Spool(path) as spool:
        if retry:
            print_line(f"Put back: {spool.retry_poison()} items")
        elif drop:
            print_line(f"Deleted: {spool.drop_poison()} items")
        else:
            after = 0
            while found := spool.poison(after=after):
                for one in found:
                    print_line(f"{one.position} ({one.at}): {one.reason}: {one.item}")
                after = found[-1].position
