"""The commands that read figures: `stats`, `usage` and `cost`."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from session_lifecycle.cli.choices import Seen, UsageChoice, Window
from session_lifecycle.cli.options import Json, Place, on_database
from session_lifecycle.cli.output import print_json, print_note, print_tables

if TYPE_CHECKING:
    from session_lifecycle import SessionDatabase

TIMES = ("hour", "day", "week", "month")


def stats(place: Place, seen: Seen, window: Window, as_json: Json = False) -> None:
    """Show figures over all sessions: how many, how they ended, tokens and cost. A window is on the last activity."""

    async def work(db: "SessionDatabase") -> None:
        from session_lifecycle.cli.tables import stats_table

        found = await db.lifecycle.aggregate_stats(seen.viewer(), since=window.since, until=window.until)
        if as_json:
            print_json(found)
        else:
            print_tables(stats_table(found))

    on_database(work, place)


def usage(place: Place, seen: Seen, window: Window, choice: UsageChoice, as_json: Json = False) -> None:
    """Show the usage and its cost in one sum. A window is on the time of use."""

    async def work(db: "SessionDatabase") -> None:
        from session_lifecycle.cli.tables import usage_table
        from session_lifecycle.models import UsageFilters

        filters = UsageFilters.of_call(**choice.fields())
        found = await db.reports.usage(seen.viewer(), filters=filters, **window.fields())
        if as_json:
            print_json(found.total)
        else:
            print_tables(usage_table(found.total))

    on_database(work, place)


def cost(
    place: Place,
    seen: Seen,
    window: Window,
    choice: UsageChoice,
    by: Annotated[
        str,
        typer.Option(
            metavar="DIMENSIONS",
            help="What the cost is split by, with commas: model, provider, agent, user, dataset, client, kind, "
            "billing, service_tier, session, run, status, tag:NAME, and one of hour, day, week, month.",
        ),
    ] = "model",
    order_by: Annotated[
        str,
        typer.Option(metavar="NAME", help="A figure as cost_usd, events or tokens_in: greatest first. Or one of --by."),
    ] = "cost_usd",
    timezone: Annotated[
        str, typer.Option(metavar="ZONE", help="IANA time zone by whose clocks hours, days, weeks and months begin.")
    ] = "UTC",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number of rows.")] = 1000,
    as_json: Json = False,
) -> None:
    """Show the usage and its cost in groups. A window is on the time of use.

    A split by hour, day, week or month needs --since. There, --until is now by default.
    """
    dimensions = by.split(",")
    until = window.until
    if until is None and any(dimension in TIMES for dimension in dimensions):
        until = datetime.now(UTC)

    async def work(db: "SessionDatabase") -> None:
        from session_lifecycle.cli.tables import report_table
        from session_lifecycle.models import UsageFilters

        found = await db.reports.usage(
            seen.viewer(),
            group_by=dimensions,
            since=window.since,
            until=until,
            filters=UsageFilters.of_call(**choice.fields()),
            order_by=order_by,
            limit=limit,
            timezone=timezone,
        )
        if as_json:
            print_json(found)
            return
        print_tables(report_table(found, dimensions))
        if found.has_more:
            print_note("more groups follow: give a greater --limit")

    on_database(work, place)
