"""`db`: migrates the schema, checks it, and prints the SQL of the migrations."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from session_lifecycle.cli.options import Json, Place, Schema, on_database, run_until_done
from session_lifecycle.cli.output import print_json, print_line, print_note

if TYPE_CHECKING:
    from session_lifecycle import SessionDatabase


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
    """Migrate the schema to the revision of this version."""

    async def work(db: "SessionDatabase") -> None:
        await db.migrate(notes=notes)
        _report(await db.check(), as_json=as_json)

    on_database(work, place)


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


def sql(schema: Schema = None) -> None:
    """Print the SQL that migrates an empty database."""

    async def work() -> None:
        from session_lifecycle import SessionDatabase

        # This opens no connection: the URL only names the kind of database.
        sys.stdout.write(await SessionDatabase.connect("postgresql://", schema=schema).migration_sql())

    run_until_done(work)
