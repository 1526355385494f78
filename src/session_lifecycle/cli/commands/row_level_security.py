"""`db rls`: enables row-level security, disables it, checks it, and prints its SQL."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from session_lifecycle.cli.options import FAILURE, MISUSE, Json, Place, Schema, Yes, on_database, refusing_errors
from session_lifecycle.cli.output import print_json, print_line, print_note

if TYPE_CHECKING:
    from session_lifecycle import SessionDatabase
    from session_lifecycle.models.schema import RowLevelSecurityReport

Trusted = Annotated[
    list[str] | None,
    typer.Option(
        "--trusted",
        metavar="ROLE",
        help="A role that sees every row, as it writes. Repeat for several. Default: those that may change sessions.",
        show_default=False,
    ),
]


def enable(place: Place, trusted: Trusted = None, as_json: Json = False) -> None:
    """Show each role only the rows of the viewer of its read, except the roles that write.

    The key is SESSION_LIFECYCLE_ROW_LEVEL_SECURITY_KEY. Processes that read need the same, and
    SESSION_LIFECYCLE_ROW_LEVEL_SECURITY=true. Run it again to change the key or the roles.
    """

    async def work(db: "SessionDatabase") -> None:
        report = await db.administration.enable_row_level_security(trusted, on_progress=print_note)
        if as_json:
            print_json(report)
        else:
            print_line(f"Row-level security is enabled. Trusted roles: {', '.join(report.trusted_roles) or 'none'}.")

    on_database(work, place)


def disable(place: Place, yes: Yes = False, as_json: Json = False) -> None:
    """Drop the policies and the key."""

    async def work(db: "SessionDatabase") -> None:
        await db.administration.disable_row_level_security(on_progress=print_note)
        if as_json:
            print_json({"is_enabled": False})
        else:
            print_line("Row-level security is disabled.")

    question = "Disable row-level security? Roles that read will see the rows of all users."
    on_database(work, place, confirm=None if yes else question)


def check(place: Place, as_json: Json = False) -> None:
    """Check row-level security, and whether the role that connects is walled in. Exit with code 1 on a problem."""

    async def work(db: "SessionDatabase") -> None:
        report = await db.administration.check_row_level_security()
        if as_json:
            print_json(report)
        else:
            _show(report)
        if report.problems:
            raise typer.Exit(FAILURE)

    on_database(work, place)


def _show(report: "RowLevelSecurityReport") -> None:
    state = "enabled" if report.is_enabled else "disabled"
    sees = "sees the rows of the viewer only" if report.is_walled_in else "sees every row that it may read"
    print_line(f"Row-level security is {state}. Role {report.role} {sees}.")
    for problem in report.problems:
        print_line(f"problem: {problem}")


def sql(schema: Schema = None, trusted: Trusted = None) -> None:
    """Print the SQL that enables row-level security. It needs the key and no database, and is as secret as the key."""
    from session_lifecycle.maintenance.administration import row_level_security_sql
    from session_lifecycle.settings import settings_of

    with refusing_errors(code=MISUSE):
        settings = settings_of(None, schema)
        sys.stdout.write(row_level_security_sql(settings.database_schema, settings, trusted or ()))
