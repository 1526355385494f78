"""`sessions`: lists sessions, shows one, and ends, reopens, updates or deletes it."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn
from uuid import UUID

import typer

from session_lifecycle.cli.choices import (
    PageChoice,
    Seen,
    SessionChoice,
    SessionOrder,
    Time,
    Window,
    json_object,
    print_next,
    tag,
)
from session_lifecycle.cli.options import FAILURE, MISUSE, DryRun, Json, Place, Yes, on_database, refuse
from session_lifecycle.cli.output import print_json, print_line, print_note, print_tables

if TYPE_CHECKING:
    from session_lifecycle import SessionDatabase
    from session_lifecycle.models import EndOutcome, ReopenOutcome

SessionId = Annotated[str, typer.Argument(metavar="SESSION", help="Id of the session.")]
Owner = Annotated[UUID, typer.Option("--user", metavar="ID", help="Id of the user who owns the session.")]


def list_sessions(
    place: Place,
    seen: Seen,
    window: Window,
    choice: SessionChoice,
    page: PageChoice,
    order_by: Annotated[SessionOrder, typer.Option(help="What the sessions are ordered by.")] = "last_activity_at",
    as_json: Json = False,
) -> None:
    """List sessions, the last active first. A window is on the last activity."""

    async def work(db: "SessionDatabase") -> None:
        from session_lifecycle import SessionListFilters
        from session_lifecycle.cli.tables import sessions_table

        filters = SessionListFilters.of_call(
            viewer=seen.viewer(), order_by=order_by, **window.fields(), **choice.fields(), **page.fields()
        )
        found = await db.lifecycle.list_session_rows(filters)
        if as_json:
            print_json(found)
        else:
            print_tables(sessions_table(found))
            print_next(found)

    on_database(work, place)


def show(
    session_id: SessionId,
    place: Place,
    seen: Seen,
    project: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only runs of this project.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Maximum number of runs, and of messages.")] = 50,
    offset: Annotated[int, typer.Option(min=0, help="Leave out so many runs, and messages.")] = 0,
    messages: Annotated[bool, typer.Option("--messages", help="Show what people and models said.")] = False,
    as_json: Json = False,
) -> None:
    """Show a session: its fields, figures and runs, oldest first.

    Several users may have a session with this id. Without --user, the last active one of them is shown.
    """

    async def work(db: "SessionDatabase") -> None:
        from session_lifecycle.cli.tables import detail_tables

        detail = await db.activity.get_session_detail(
            session_id, seen.viewer(), project=project, limit=limit, offset=offset, payloads=False
        )
        if detail is None:
            _refuse_unknown(session_id)
        if as_json:
            print_json(detail.model_dump(exclude=set() if messages else {"messages"}))
            return
        print_tables(*detail_tables(detail, messages=messages))
        if detail.has_more_runs or (messages and detail.has_more_messages):
            print_note(f"more follow: --offset {offset + limit}")

    on_database(work, place)


def end(
    session_id: SessionId,
    user: Owner,
    status: Annotated[Literal["completed", "failed"], typer.Option(help="How the session ended.")],
    place: Place,
    reason: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Why the session ended.", show_default=False)
    ] = None,
    at: Time = None,
    as_json: Json = False,
) -> None:
    """End a running session. A session that has ended keeps its first end."""

    async def work(db: "SessionDatabase") -> None:
        from session_lifecycle import End

        item = End.of_call(session_id=session_id, user_id=user, status=status, reason=reason, at=at)
        [outcome] = await db.lifecycle.record([item])
        await _print_outcome(db, session_id, user, outcome, as_json=as_json)

    on_database(work, place)


def reopen(session_id: SessionId, user: Owner, place: Place, at: Time = None, as_json: Json = False) -> None:
    """Make an ended session running again. Its totals stay."""

    async def work(db: "SessionDatabase") -> None:
        outcome = await db.lifecycle.reopen_session(session_id, user, at=at)
        await _print_outcome(db, session_id, user, outcome, as_json=as_json)

    on_database(work, place)


async def _print_outcome(
    db: "SessionDatabase", session_id: str, user: UUID, outcome: "EndOutcome | ReopenOutcome", *, as_json: bool
) -> None:
    if outcome.value == "unknown":
        await _refuse_unwritten(db, session_id, user)
    if as_json:
        print_json({"session_id": session_id, "user_id": user, "outcome": outcome})
    else:
        print_line(f"Session {session_id} of user {user}: {outcome}")


async def _refuse_unwritten(db: "SessionDatabase", session_id: str, user: UUID) -> NoReturn:
    """A write found no session. A role that row-level security walls in finds none, whether there is one or not."""
    report = await db.administration.check_row_level_security()
    if report.is_walled_in:
        refuse(
            f"role {report.role} cannot change a session, as row-level security is on and does not trust it: connect "
            "as the owner of the schema, or as a role that `session-lifecycle db rls enable` trusts",
            code=FAILURE,
        )
    _refuse_unknown(session_id, user)


def _refuse_unknown(session_id: str, user: UUID | None = None) -> NoReturn:
    refuse(f"there is no session {session_id}{'' if user is None else f' of user {user}'}", code=FAILURE)


def update(
    session_id: SessionId,
    user: Owner,
    place: Place,
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="Title.", show_default=False)] = None,
    metadata: Annotated[
        Any, typer.Option(parser=json_object, metavar="JSON", help="Metadata, in place of all.", show_default=False)
    ] = None,
    tags: Annotated[
        list[Any] | None,
        typer.Option("--tag", parser=tag, metavar="NAME=VALUE", help="Tag, in place of all. Repeat for several."),
    ] = None,
    dataset: Annotated[UUID | None, typer.Option(metavar="ID", help="Dataset.", show_default=False)] = None,
    agent: Annotated[str | None, typer.Option(metavar="NAME", help="Agent.", show_default=False)] = None,
    parent: Annotated[
        str | None, typer.Option(metavar="SESSION", help="Session that started this one.", show_default=False)
    ] = None,
    clear: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD",
            help="Empty this field: title, metadata, tags, dataset, agent or parent. Repeat for several.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Replace fields of a session, in any status.

    Fields that are not given stay. The change is no activity of the session.
    """
    given = {
        "title": title,
        "metadata": metadata,
        "tags": None if not tags else dict(tags),
        "dataset": dataset,
        "agent": agent,
        "parent": parent,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if unknown := [name for name in clear or [] if name not in given]:
        refuse(f"--clear: got {unknown[0]}, expected {', '.join(given)}", code=MISUSE)
    if both := sorted(changes.keys() & set(clear or [])):
        refuse(f"--clear {both[0]}: the field is also given: give one", code=MISUSE)
    changes |= dict.fromkeys(clear or [])
    if not changes:
        refuse("there is nothing to change: give a field, or --clear", code=MISUSE)
    names = {"dataset": "dataset_id", "agent": "agent_name", "parent": "parent_session_id"}
    replaced: Any = {names.get(name, name): value for name, value in changes.items()}

    async def work(db: "SessionDatabase") -> None:
        from session_lifecycle.cli.tables import record_table

        record = await db.lifecycle.update_session(session_id, user, **replaced)
        if record is None:
            await _refuse_unwritten(db, session_id, user)
        if as_json:
            print_json(record)
        else:
            print_tables(record_table(record))

    on_database(work, place)


def delete(
    session_id: SessionId, user: Owner, place: Place, dry_run: DryRun = False, yes: Yes = False, as_json: Json = False
) -> None:
    """Delete a session with its runs, messages and usage."""

    async def work(db: "SessionDatabase") -> None:
        from session_lifecycle.cli.tables import row_table

        if not dry_run:
            if not await db.maintenance.delete_session(session_id, user):
                _refuse_unknown(session_id, user)
            if as_json:
                print_json({"session_id": session_id, "user_id": user, "deleted": True})
            else:
                print_line(f"Deleted: session {session_id} of user {user}")
            return
        row = await db.lifecycle.get_session_row(session_id, user)
        if row is None:
            _refuse_unknown(session_id, user)
        if as_json:
            print_json(row)
        else:
            print_line(f"Would delete: session {session_id} of user {user}")
            print_tables(row_table(row))

    question = f"Delete the session {session_id} of user {user} with its usage? This cannot be undone."
    on_database(work, place, confirm=None if yes or dry_run else question)
