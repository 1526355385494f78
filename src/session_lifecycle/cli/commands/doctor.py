"""`doctor`: looks at the database and says what to do. `metrics`: the same figures for Prometheus."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from session_lifecycle.cli.options import FAILURE, Json, Place, on_database, refuse
from session_lifecycle.cli.output import at_work, print_json, print_line, print_note

if TYPE_CHECKING:
    from session_lifecycle import SessionDatabase
    from session_lifecycle.models.doctor import DoctorReport


def doctor(
    place: Place,
    full: Annotated[
        bool, typer.Option("--full", help="Compare every total with the ledger, not only those of a sample.")
    ] = False,
    role: Annotated[
        str | None,
        typer.Option(
            metavar="ROLE",
            help="Compare the rights of the role that connects with those of this one, as `worker`.",
            show_default=False,
        ),
    ] = None,
    spool: Annotated[
        Path | None,
        typer.Option(
            help="Directory of the spool. Default: session-lifecycle/spool in $XDG_STATE_HOME or ~/.local/state.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Look at the server, the schema, the role, the data and the spool, and say what to do. Change nothing.

    Exit with code 1 if a finding needs action.
    """

    async def work(db: "SessionDatabase") -> None:
        with at_work("looking"):
            report = await db.diagnose(full=full, spool=spool, role=role)
        if as_json:
            print_json(report)
        else:
            _show(report)
        if report.needs_action:
            raise typer.Exit(FAILURE)

    on_database(work, place)


def metrics(
    place: Place,
    spool: Annotated[
        Path | None, typer.Option(help="Directory of a spool to watch. Default: none.", show_default=False)
    ] = None,
) -> None:
    """Print the metrics of the database and of a spool in Prometheus's text format.

    Exit with code 1 if the database could not be read; what is known is printed all the same.
    """

    async def work(db: "SessionDatabase") -> None:
        from session_lifecycle.maintenance.metrics import UP

        found = db.metrics(spool=spool)
        sys.stdout.write(await found.text())
        if not found.values()[UP]:
            refuse("the database could not be read", code=FAILURE)

    on_database(work, place)


def _show(report: "DoctorReport") -> None:
    for one in report.findings:
        print_line(f"{one.severity}: {one.check}: {one.says}")
        if one.do is not None:
            print_line(f"    do: {one.do}")
    figures = report.figures
    if figures is not None:
        print_note(
            f"{figures.sessions_to_roll_up} sessions wait to be rolled up, {figures.unpriced_events} events are "
            f"unpriced, {figures.drift_sample_mismatches} of {figures.drift_sample_sessions} sampled sessions differ "
            "from the ledger"
        )
    print_line(
        f"PostgreSQL {report.server_version}, schema at revision {report.revision or 'none'}, "
        f"session-lifecycle {report.library_version}: "
        f"{'action is needed' if report.needs_action else 'nothing needs action'}."
    )
