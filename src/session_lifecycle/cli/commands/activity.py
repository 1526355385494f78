"""The commands that read what happened: `runs`, `events` and `search`."""

from typing import TYPE_CHECKING, Annotated

import typer

from session_lifecycle.cli.choices import (
    Origin,
    PageChoice,
    RunChoice,
    Seen,
    SessionChoice,
    SummaryOrder,
    UsageChoice,
    Window,
    print_next,
)
from session_lifecycle.cli.options import MISUSE, Json, Place, on_database, refuse
from session_lifecycle.cli.output import print_json, print_tables

if TYPE_CHECKING:
    from session_lifecycle import SessionDatabase


def runs(
    place: Place,
    seen: Seen,
    window: Window,
    choice: RunChoice,
    origin: Origin,
    page: PageChoice,
    include_open: Annotated[bool, typer.Option("--include-open", help="Also runs that have not ended.")] = False,
    as_json: Json = False,
) -> None:
    """List runs, the last started first. A window is on the start.

    With --json, each run has its steps, messages and events.
    """

    async def work(db: "SessionDatabase") -> None:
        from session_lifecycle import RunFilters
        from session_lifecycle.cli.tables import runs_table

        filters = RunFilters.of_call(
            viewer=seen.viewer(),
            include_open=include_open,
            **window.fields(),
            **choice.fields(),
            **origin.fields(),
            **page.fields(),
        )
        found = await db.activity.list_runs(filters)
        if as_json:
            print_json(found)
        else:
            print_tables(runs_table(found))
            print_next(found)

    on_database(work, place)


def events(
    place: Place, seen: Seen, window: Window, choice: UsageChoice, page: PageChoice, as_json: Json = False
) -> None:
    """List the usage events of the ledger, the last used first. A window is on the time of use.

    Each page reads the part of the ledger that --session or the window has, so give one of them.
    """

    async def work(db: "SessionDatabase") -> None:
        from session_lifecycle.cli.tables import events_table
        from session_lifecycle.models import UsageEventFilters

        filters = UsageEventFilters.of_call(viewer=seen.viewer(), **window.fields(), **choice.fields(), **page.fields())
        found = await db.activity.list_usage_events(filters)
        if as_json:
            print_json(found)
        else:
            print_tables(events_table(found))
            print_next(found)

    on_database(work, place)


def search(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Text that a message contains, in upper or lower case.")],
    place: Place,
    seen: Seen,
    window: Window,
    choice: SessionChoice,
    runs: RunChoice,
    page: PageChoice,
    order_by: Annotated[SummaryOrder, typer.Option(help="What the sessions are ordered by.")] = "last_activity_at",
    as_json: Json = False,
) -> None:
    """Find the sessions with a message that contains a text. A window is on the last activity."""
    if not text or _is_ignored(text):
        refuse("TEXT: got nothing, expected a text to search for", code=MISUSE)

    async def work(db: "SessionDatabase") -> None:
        from session_lifecycle import SummaryFilters
        from session_lifecycle.cli.tables import summaries_table

        filters = SummaryFilters.of_call(
            viewer=seen.viewer(),
            search=text,
            order_by=order_by,
            **window.fields(),
            **choice.fields(),
            **runs.fields(),
            **page.fields(),
        )
        found = await db.activity.list_session_summaries(filters)
        if as_json:
            print_json(found)
        else:
            print_tables(summaries_table(found))
            print_next(found)

    on_database(work, place)


def _is_ignored(text: str) -> bool:
    """Whether a search ignores every character of the text."""
    from session_lifecycle.models.json_payloads import folded

    return not folded(text)
