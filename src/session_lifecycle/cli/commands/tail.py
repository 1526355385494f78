"""`tail`: follows the sessions that change."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from session_lifecycle.cli.choices import Seen, SessionChoice
from session_lifecycle.cli.options import Json, Place, on_database, until_interrupted
from session_lifecycle.cli.output import print_json, print_line, print_note

if TYPE_CHECKING:
    from session_lifecycle import SessionDatabase
    from session_lifecycle.web.look import FeedEvent


def tail(
    place: Place,
    seen: Seen,
    choice: SessionChoice,
    recent: Annotated[int, typer.Option(min=0, max=50, help="How many of the newest sessions come first.")] = 10,
    as_json: Json = False,
) -> None:
    """Follow the sessions until interrupted: a line for each that is new, has changed, or is gone."""

    async def follow(db: "SessionDatabase") -> None:
        from session_lifecycle import SessionListFilters
        from session_lifecycle.web.feed import LiveFeed

        filters = SessionListFilters.of_call(**choice.fields())
        async with (
            LiveFeed(db, stream_seconds=None) as feed,
            await feed.open(filters, viewer=seen.viewer(), recent=recent) as stream,
        ):
            async for event in stream:
                if event is not None:
                    _print(event, as_json=as_json)

    async def work(db: "SessionDatabase") -> None:
        await until_interrupted(follow(db))

    on_database(work, place)


def _print(event: "FeedEvent", *, as_json: bool) -> None:
    if as_json:
        of_session = {} if event.key is None else {"user_id": event.key[0], "session_id": event.key[1]}
        print_json({"event": event.name, **of_session, "session": event.row})
        return
    if event.key is None:
        print_note("changes were missed: more sessions changed at once than are followed")
        return
    user_id, session_id = event.key
    if event.row is None:
        print_line(f"{datetime.now(UTC):%H:%M:%S}Z  gone       {session_id}  of {user_id}")
        return
    from session_lifecycle.cli.tables import money

    record = event.row.record
    parts = (
        f"{record.last_activity_at.astimezone(UTC):%H:%M:%S}Z",
        f"{event.row.effective_status:<9}",
        f"{session_id}  of {user_id}",
        f"{record.tokens_in:,} in  {record.tokens_out:,} out  {money(record.cost_usd)} USD",
        *filter(None, (record.agent_name, record.last_model, record.title)),
    )
    print_line("  ".join(parts))
