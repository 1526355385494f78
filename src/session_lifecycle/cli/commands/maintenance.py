"""The operator's commands: each runs one maintenance job and prints its report."""

import asyncio
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

import typer

from session_lifecycle.cli.choices import Window
from session_lifecycle.cli.options import (
    FAILURE,
    MISUSE,
    PRUNE_BATCH,
    REPRICE_BATCH,
    Agents,
    Batch,
    BatchOfEvents,
    Datasets,
    DryRun,
    Json,
    OlderThanDays,
    Place,
    Users,
    Yes,
    finite,
    narrowing,
    older_than,
    on_database,
    refuse,
)
from session_lifecycle.cli.output import at_work, print_json, print_line, print_note, print_progress, print_report

if TYPE_CHECKING:
    from session_lifecycle import SessionDatabase
    from session_lifecycle.models import RollUpReport


@dataclass(frozen=True)
class Pruned:
    """Which sessions are pruned, and how."""

    older_than_days: OlderThanDays
    user: Users = None
    agent: Agents = None
    dataset: Datasets = None
    batch: Batch = PRUNE_BATCH
    dry_run: DryRun = False

    def fields(self) -> dict[str, Any]:
        """The arguments of the job, but for the age."""
        return {
            "batch": self.batch,
            "dry_run": self.dry_run,
            "on_progress": print_progress,
            # Without an option all sessions are meant, and an empty collection would choose none.
            "user_ids": self.user or None,
            "agent_names": self.agent or None,
            "dataset_ids": self.dataset or None,
        }

    def question(self, what: str) -> str:
        """The question that the user must answer with yes."""
        chosen = narrowing(self.user, self.agent, self.dataset)
        return f"Delete the {what} than {self.older_than_days:g} days{chosen}? This cannot be undone."


def prune_sessions(pruned: Pruned, place: Place, yes: Yes = False, as_json: Json = False) -> None:
    """Delete sessions idle for longer than N days, with their runs, messages and usage.

    Options that choose sessions narrow each other: a session must match one value of each.

    An interrupted command keeps what it has deleted. Run it again to continue.
    """
    age = older_than(pruned.older_than_days)

    async def work(db: "SessionDatabase") -> None:
        report = await db.maintenance.prune_sessions(age, **pruned.fields())
        print_report("Would delete" if pruned.dry_run else "Deleted", report, as_json=as_json)

    confirm = None if yes or pruned.dry_run else pruned.question("sessions idle for longer")
    on_database(work, place, confirm=confirm)


def prune_payloads(pruned: Pruned, place: Place, yes: Yes = False, as_json: Json = False) -> None:
    """Delete messages and payloads older than N days. Usage and cost stay.

    Options that choose sessions narrow each other: a session must match one value of each.

    An interrupted command keeps what it has deleted. Run it again to continue.
    """
    age = older_than(pruned.older_than_days)

    async def work(db: "SessionDatabase") -> None:
        report = await db.maintenance.prune_payloads(age, **pruned.fields())
        print_report("Would empty" if pruned.dry_run else "Emptied", report, as_json=as_json)

    confirm = None if yes or pruned.dry_run else pruned.question("payloads older")
    on_database(work, place, confirm=confirm)


def erase_user(
    user: Annotated[UUID, typer.Argument(help="Id of the user.")],
    place: Place,
    anonymise: Annotated[bool, typer.Option(help="Keep usage and cost, under a random user id.")] = False,
    tombstone: Annotated[bool, typer.Option(help="Refuse all future sessions of the user.")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Erase all sessions, runs, messages and usage of a user.

    An interrupted command keeps what it has erased. Run it again to continue.
    """

    async def work(db: "SessionDatabase") -> None:
        if dry_run:
            found = {"user_id": user, **await _owned(db, user)}
            if as_json:
                print_json(found)
            else:
                print_line("Would erase: " + ", ".join(f"{name} {value}" for name, value in found.items()))
            return
        usage: Literal["anonymise", "delete"] = "anonymise" if anonymise else "delete"
        with at_work("erasing"):
            receipt = await db.maintenance.erase_user(user, usage=usage, tombstone=tombstone)
        print_report("Erased", receipt, as_json=as_json)

    question = f"Erase everything of user {user}? This cannot be undone."
    on_database(work, place, confirm=None if yes or dry_run else question)


async def _owned(db: "SessionDatabase", user: UUID) -> dict[str, int | None]:
    """How many sessions, runs and usage events the user has."""
    from session_lifecycle import RunFilters, SessionListFilters
    from session_lifecycle.models import UsageEventFilters

    sessions = await db.primary.lifecycle.list_session_rows(SessionListFilters(user_id=user, limit=1))
    runs = await db.primary.activity.list_runs(RunFilters(user_id=user, include_open=True, limit=1))
    events = await db.primary.activity.list_usage_events(UsageEventFilters(user_id=user, limit=1))
    return {"sessions": sessions.total, "runs": runs.total, "events": events.total}


def reconcile(
    place: Place,
    repair: Annotated[bool, typer.Option(help="Repair the totals that differ.")] = False,
    as_json: Json = False,
) -> None:
    """Compare every total with the ledger, and the roll-ups with the sessions. Without --repair, change nothing.

    Exit with code 1 if a mismatch remains.

    An interrupted command keeps what it has repaired. Run it again to continue.
    """

    async def work(db: "SessionDatabase") -> None:
        with at_work("comparing"):
            report = await db.maintenance.reconcile(repair=repair)
        if as_json:
            print_json(report)
        else:
            for mismatch in report.mismatches:
                print_report("Differs", mismatch)
            print_line(
                f"{report.sessions_looked_at} sessions, {report.mismatch_count} mismatches, {report.repaired} repaired"
            )
        if report.repaired < report.mismatch_count:
            raise typer.Exit(FAILURE)

    on_database(work, place)


def reprice(
    place: Place,
    window: Window,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only events that named this model.", show_default=False),
    ] = None,
    batch: BatchOfEvents = REPRICE_BATCH,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Price usage events again by the current catalogue. A window is on the time of use.

    Events whose cost was given keep it, and so do events whose price is not known any more.

    An interrupted command keeps what it has priced. Run it again to continue.
    """

    async def work(db: "SessionDatabase") -> None:
        report = await db.maintenance.reprice(
            model,
            window.since,
            dry_run,
            until=window.until,
            batch=batch,
            on_progress=lambda events: print_note(f"{events} events so far"),
        )
        print_report("Would reprice" if dry_run else "Repriced", report, as_json=as_json)

    on_database(work, place)


def roll_up(
    place: Place,
    every: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Repeat every SECONDS (±50 %) until interrupted.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Add up ended and abandoned sessions, which makes reports faster. No figure changes.

    An interrupted command keeps what it has added up. Run it again to continue.
    """
    if every is not None and finite("--every", every) <= 0:
        refuse(f"--every: got {every}, expected a number of seconds above 0", code=MISUSE)

    async def work(db: "SessionDatabase") -> None:
        from session_lifecycle.maintenance.background import BackgroundRollUp

        async def once() -> "RollUpReport":
            report = await db.maintenance.roll_up(on_progress=print_progress)
            print_report("Rolled up", report, as_json=as_json)
            return report

        if every is None:
            await once()
            return
        interrupted = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
        async with BackgroundRollUp(once, every):
            await interrupted.wait()

    on_database(work, place)
