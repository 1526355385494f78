"""The commands of the spool: what is in it, deliver it, and what was set aside."""

import asyncio
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from session_lifecycle.cli.options import (
    FAILURE,
    MISUSE,
    Json,
    Place,
    Yes,
    confirm_on_terminal,
    on_database,
    refuse,
    refusing_errors,
)
from session_lifecycle.cli.output import print_json, print_line
from session_lifecycle.writing.spool import DEFAULT_DRAIN_BATCH, Spool

if TYPE_CHECKING:
    from session_lifecycle import SessionDatabase

SpoolPath = Annotated[
    Path | None,
    typer.Option(
        "--path",
        help="Directory of the spool. Default: session-lifecycle/spool in $XDG_STATE_HOME or ~/.local/state.",
        show_default=False,
    ),
]


def status(path: SpoolPath = None, as_json: Json = False) -> None:
    """Show how many items wait, how many were set aside, and the size on disk."""
    with refusing_errors(), Spool(path) as spool:
        found = spool.status()
    if as_json:
        print_json(found._asdict())
        return
    drainer = "a drainer is at work" if found.is_draining else "no drainer is at work"
    print_line(
        f"{found.path}: {found.items} items, {found.poison} set aside, "
        f"{found.bytes:,} of {found.max_bytes:,} bytes, {drainer}"
    )


def drain(
    place: Place,
    path: SpoolPath = None,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for further items until interrupted.")] = False,
    batch: Annotated[int, typer.Option(help="Maximum number of items per transaction.")] = DEFAULT_DRAIN_BATCH,
    as_json: Json = False,
) -> None:
    """Deliver the items of the spool to the database.

    Exit with code 1 if items are left. An interrupted command keeps what it has delivered.
    """

    async def work(db: "SessionDatabase") -> None:
        from session_lifecycle.writing.spool_drain import Drainer

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
            if as_json:
                print_json({"delivered": drainer.drained, "set_aside": drainer.set_aside, "left": left})
            else:
                print_line(f"Drained: {drainer.drained} delivered, {drainer.set_aside} set aside, {left} left")
            if left and not follow:
                stopped_by = running.result().stopped_by
                refuse(stopped_by or f"{left} items were appended meanwhile: run the command again", code=FAILURE)

    on_database(work, place)


def poison(
    path: SpoolPath = None,
    retry: Annotated[bool, typer.Option("--retry", help="Put all of them back into the spool.")] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Delete all of them.")] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Show the items that were set aside, with the reason and the item as JSON.

    An item may hold what people or models said.
    """
    if retry and drop:
        refuse("--retry and --drop exclude each other: give one", code=MISUSE)
    if drop and not yes:
        confirm_on_terminal("Delete all items that were set aside? This cannot be undone.")
    with refusing_errors(), Spool(path) as spool:
        if retry or drop:
            count = spool.retry_poison() if retry else spool.drop_poison()
            if as_json:
                print_json({"put_back" if retry else "deleted": count})
            else:
                print_line(f"{'Put back' if retry else 'Deleted'}: {count} items")
            return
        after = 0
        while found := spool.poison(after=after):
            for one in found:
                if as_json:
                    print_json(one._asdict())
                else:
                    print_line(f"{one.position} ({one.at}): {one.reason}: {one.item}")
            after = found[-1].position
