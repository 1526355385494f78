"""The operator's commands: each runs one maintenance job and prints its report."""

import asyncio
import signal
from typing import Annotated
from uuid import UUID

import typer

from session_lifecycle import SessionDatabase
from session_lifecycle.cli.options import (
    Agents,
    Batch,
    DatabaseUrl,
    DataDir,
    Datasets,
    DryRun,
    Embedded,
    OlderThanDays,
    Schema,
    Users,
    Yes,
    finite,
    narrowing,
    older_than,
    on_database,
)
from session_lifecycle.cli.output import print_line, print_progress, print_report
from session_lifecycle.maintenance.background import BackgroundRollUp
from session_lifecycle.maintenance.role import DEFAULT_PRUNE_BATCH
from session_lifecycle.models import RollUpReport


def prune_sessions(
    older_than_days: OlderThanDays,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    embedded: Embedded = False,
    schema: Schema = None,
    user: Users = None,
    agent: Agents = None,
    dataset: Datasets = None,
    batch: Batch = DEFAULT_PRUNE_BATCH,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Delete sessions idle for longer than N days, with their runs, messages and usage.

    Options that choose sessions narrow each other: a session must match one value of each.

    An interrupted command keeps what it has deleted. Run it again to continue.
    """
    age = older_than(older_than_days)

    async def work(db: SessionDatabase) -> None:
        report = await db.maintenance.prune_sessions(
            age,
            batch=batch,
            dry_run=dry_run,
            on_progress=print_progress,
            # Without an option all sessions are meant, and an empty collection would choose none.
            user_ids=user or None,
            agent_names=agent or None,
            dataset_ids=dataset or None,
        )
        print_report("Would delete" if dry_run else "Deleted", report)

    chosen = narrowing(user, agent, dataset)
    question = f"Delete the sessions idle for longer than {older_than_days:g} days{chosen}? This cannot be undone."
    confirm = None if yes or dry_run else question
    on_database(work, database_url, data_dir, schema, embedded=embedded, confirm=confirm)


def prune_payloads(
    older_than_days: OlderThanDays,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    embedded: Embedded = False,
    schema: Schema = None,
    user: Users = None,
    agent: Agents = None,
    dataset: Datasets = None,
    batch: Batch = DEFAULT_PRUNE_BATCH,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Delete messages and payloads older than N days. Usage and cost stay.

    Options that choose sessions narrow each other: a session must match one value of each.

    An interrupted command keeps what it has deleted. Run it again to continue.
    """
    age = older_than(older_than_days)

    async def work(db: SessionDatabase) -> None:
        report = await db.maintenance.prune_payloads(
            age,
            batch=batch,
            dry_run=dry_run,
            on_progress=print_progress,
            # Without an option all sessions are meant, and an empty collection would choose none.
            user_ids=user or None,
            agent_names=agent or None,
            dataset_ids=dataset or None,
        )
        print_report("Would empty" if dry_run else "Emptied", report)

    chosen = narrowing(user, agent, dataset)
    question = f"Delete the payloads older than {older_than_days:g} days{chosen}? This cannot be undone."
    confirm = None if yes or dry_run else question
    on_database(work, database_url, data_dir, schema, embedded=embedded, confirm=confirm)


def erase_user(
    user: Annotated[UUID, typer.Argument(help="Id of the user.")],
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    embedded: Embedded = False,
    schema: Schema = None,
    anonymise: Annotated[bool, typer.Option(help="Keep usage and cost, under a random user id.")] = False,
    tombstone: Annotated[bool, typer.Option(help="Refuse all future sessions of the user.")] = False,
    yes: Yes = False,
) -> None:
    """Erase all sessions, runs, messages and usage of a user."""

    async def work(db: SessionDatabase) -> None:
        receipt = await db.maintenance.erase_user(
            user, usage="anonymise" if anonymise else "delete", tombstone=tombstone
        )
        print_report("Erased", receipt)

    question = f"Erase everything of user {user}? This cannot be undone."
    confirm = None if yes else question
    on_database(work, database_url, data_dir, schema, embedded=embedded, confirm=confirm)


def reconcile(
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    embedded: Embedded = False,
    schema: Schema = None,
    repair: Annotated[bool, typer.Option(help="Repair the totals that differ.")] = False,
) -> None:
    """Compare every total with the ledger, and the roll-ups with the sessions.

    Exit with code 1 if a mismatch remains.
    """

    async def work(db: SessionDatabase) -> None:
        report = await db.maintenance.reconcile(repair=repair)
        for mismatch in report.mismatches:
            print_report("Differs", mismatch)
        print_line(
            f"{report.sessions_looked_at} sessions, {report.mismatch_count} mismatches, {report.repaired} repaired"
        )
        if report.repaired < report.mismatch_count:
            raise typer.Exit(1)

    on_database(work, database_url, data_dir, schema, embedded=embedded)


def roll_up(
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    embedded: Embedded = False,
    schema: Schema = None,
    every: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Repeat every SECONDS (±50 %) until interrupted.", show_default=False),
    ] = None,
) -> None:
    """Add up ended and abandoned sessions, which makes reports faster.

    An interrupted command keeps what it has added up. Run it again to continue.
    """
    if every is not None:
        finite("--every", every)

    async def work(db: SessionDatabase) -> None:
        async def once() -> RollUpReport:
            report = await db.maintenance.roll_up(on_progress=print_progress)
            print_report("Rolled up", report)
            return report

        if every is None:
            await once()
            return
        interrupted = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
        async with BackgroundRollUp(once, every):
            await interrupted.wait()

    on_database(work, database_url, data_dir, schema, embedded=embedded)
