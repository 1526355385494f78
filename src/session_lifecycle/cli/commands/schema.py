"""`db`: migrates the schema, checks it, prints its SQL, and the SQL of the database roles."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from session_lifecycle.cli.options import (
    FAILURE,
    MISUSE,
    Json,
    Place,
    Schema,
    Yes,
    on_database,
    refuse_two_databases,
    refusing_errors,
    run_until_done,
)
from session_lifecycle.cli.output import print_json, print_line, print_note
from session_lifecycle.errors import SessionLifecycleError

if TYPE_CHECKING:
    from session_lifecycle import SessionDatabase
    from session_lifecycle.models.schema import SchemaRevisions

Revision = Annotated[str, typer.Argument(metavar="REVISION", help="A revision, as `db history` lists them, or `base`.")]


def upgrade(
    place: Place,
    notes: Annotated[
        bool | None,
        typer.Option(
            "--notes/--no-notes",
            help="Whether every transaction that changes sessions sends a note, for live pages. Default: as it is.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Migrate the schema to the revision of this version.

    No writer waits for longer than half a second. An interrupted command leaves a database that works. Run it again to
    continue.
    """

    async def work(db: "SessionDatabase") -> None:
        try:
            await db.migrate(notes=notes, on_progress=print_note)
        except SessionLifecycleError:
            print_note("The database works as before: each step is written as a whole or not at all.")
            print_note("`session-lifecycle db check` says what is missing, and what mends it.")
            raise
        _report(await db.check(), as_json=as_json)

    on_database(work, place)


def downgrade(place: Place, revision: Revision, yes: Yes = False, as_json: Json = False) -> None:
    """Migrate back to a revision. What later revisions added is dropped, with its data.

    `base` drops all tables of this library.
    """

    async def work(db: "SessionDatabase") -> None:
        await db.administration.downgrade(revision, on_progress=print_note)
        _show(await db.administration.revisions(), as_json=as_json)

    question = f"Migrate back to {revision} and delete the data of later revisions? This cannot be undone."
    on_database(work, place, confirm=None if yes else question)


def current(place: Place, as_json: Json = False) -> None:
    """Show the revision of the schema. Exit with code 1 if it is not the newest of this version."""

    async def work(db: "SessionDatabase") -> None:
        found = await db.administration.revisions()
        _show(found, as_json=as_json)
        if found.applied != found.newest:
            raise typer.Exit(FAILURE)

    on_database(work, place)


def history(place: Place, as_json: Json = False) -> None:
    """Show the revisions that this version knows, oldest first, and which of them are applied."""

    async def work(db: "SessionDatabase") -> None:
        found = await db.administration.revisions()
        if as_json:
            print_json(found)
            return
        known = [one.revision for one in found.known]
        applied = known[: known.index(found.applied) + 1] if found.applied in known else known if found.applied else []
        for one in found.known:
            print_line(f"{one.revision} {'applied' if one.revision in applied else 'not applied'}: {one.does}")
        if found.applied is not None and found.applied not in known:
            print_line(f"{found.applied} applied: of a newer version")

    on_database(work, place)


def stamp(place: Place, revision: Revision, yes: Yes = False, as_json: Json = False) -> None:
    """Note a revision as applied, and run nothing. For a schema whose version table was lost."""

    async def work(db: "SessionDatabase") -> None:
        await db.administration.stamp(revision)
        _show(await db.administration.revisions(), as_json=as_json)

    question = f"Note revision {revision} as applied without running it? `db check` afterwards says what is missing."
    on_database(work, place, confirm=None if yes else question)


def check(place: Place, as_json: Json = False) -> None:
    """Check that the schema has everything that this version uses. Exit with code 1 if not."""

    async def work(db: "SessionDatabase") -> None:
        _report(await db.check(), as_json=as_json)

    on_database(work, place)


def _report(advice: list[str], *, as_json: bool) -> None:
    if as_json:
        print_json({"is_up_to_date": True, "advice": advice})
        return
    print_line("The schema is up to date.")
    for sentence in advice:
        print_note(f"note: {sentence}")


def _show(found: "SchemaRevisions", *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    applied = "not migrated" if found.applied is None else f"at revision {found.applied}"
    print_line(f"The schema is {applied}; the newest of this version is {found.newest}.")


def sql(
    schema: Schema = None,
    since: Annotated[
        str, typer.Option("--from", metavar="REVISION", help="The revision that the database is at.")
    ] = "base",
) -> None:
    """Print the SQL that migrates a database, by default an empty one."""
    from session_lifecycle.settings import settings_of

    with refusing_errors(code=MISUSE):
        settings = settings_of(None, schema)

    async def work() -> None:
        from session_lifecycle import SessionDatabase

        # This opens no connection: the URL only names the kind of database.
        sys.stdout.write(await SessionDatabase.connect("postgresql://", settings=settings).migration_sql(since))

    run_until_done(work)


def roles(
    place: Place,
    role: Annotated[
        str | None,
        typer.Option(
            metavar="ROLE",
            help="Only this one: migrator, worker, roller, operator or reader. Default: all.",
            show_default=False,
        ),
    ] = None,
    prefix: Annotated[str, typer.Option(metavar="TEXT", help="What the names of the roles begin with.")] = "sessions_",
    create: Annotated[bool, typer.Option("--create", help="Print CREATE ROLE as well.")] = False,
    check: Annotated[
        str | None,
        typer.Option(
            "--check",
            metavar="ROLE",
            help="Compare the rights of the role that connects with those that this role needs. Print no SQL.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the SQL that gives each database role what it needs, and nothing more. It needs no database.

    With --check, look at the role that connects instead. Exit with code 1 if it lacks a right, or has one that it does
    not need.
    """
    if check is None:
        refuse_two_databases(place)
        _print_roles(place.schema, role, prefix, create=create)
        return

    async def work(db: "SessionDatabase") -> None:
        report = await db.administration.check_role(check)
        if as_json:
            print_json(report)
        else:
            for right in report.missing:
                print_line(f"missing: {right}")
            for right in report.excess:
                print_line(f"not needed: {right}")
            if not report.missing and not report.excess:
                print_line(f"Role {report.role} has what the role {report.checked_as!r} needs, and nothing more.")
            if report.missing:
                print_note(f"`session-lifecycle db roles --role {report.checked_as}` prints the SQL of the rights.")
            if report.excess:
                from session_lifecycle.postgres.permissions import revoke_advice
                from session_lifecycle.settings import Settings

                schema = place.schema or Settings.load().database_schema
                print_note(f"to take away what is not needed: {revoke_advice(report, schema)}")
        if report.missing or report.excess:
            raise typer.Exit(FAILURE)

    on_database(work, place)


def _print_roles(schema: str | None, role: str | None, prefix: str, *, create: bool) -> None:
    from session_lifecycle.maintenance.administration import role_of, role_sql
    from session_lifecycle.settings import settings_of

    with refusing_errors(code=MISUSE):
        name = settings_of(None, schema).database_schema
        parts = role_sql(name, prefix, None if role is None else role_of(role), create=create)
    sys.stdout.write("\n\n".join(parts) + "\n")
