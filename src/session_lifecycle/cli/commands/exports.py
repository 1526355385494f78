"""`export` of one table: its rows into a file or to standard output."""

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal

import typer

from session_lifecycle.cli.choices import Origin, RunChoice, Seen, SessionChoice, UsageChoice, Window
from session_lifecycle.cli.options import FAILURE, MISUSE, Json, Place, on_database, refuse
from session_lifecycle.cli.output import print_counts, print_note, row_progress

if TYPE_CHECKING:
    from session_lifecycle import SessionDatabase
    from session_lifecycle.models.transfer import ExportTable

STDOUT = "-"
Format = Annotated[Literal["csv", "jsonl", "parquet"], typer.Option("--format", help="The format of the file.")]
Output = Annotated[
    str, typer.Option("--output", metavar="PATH", help="The file to write, which must not exist; -: standard output.")
]
IncludeOpen = Annotated[bool, typer.Option("--include-open", help="Also runs that have not ended.")]


@dataclass(frozen=True)
class Target:
    """The file that an export writes."""

    file_format: Format = "jsonl"
    output: Output = STDOUT


def export_sessions(
    place: Place, target: Target, seen: Seen, window: Window, choice: SessionChoice, as_json: Json = False
) -> None:
    """Export sessions with their totals, in the order of their keys. A window is on the last activity."""
    _export_of_sessions("sessions", place, target, seen, window, choice, as_json=as_json)


def export_messages(
    place: Place, target: Target, seen: Seen, window: Window, choice: SessionChoice, as_json: Json = False
) -> None:
    """Export the messages of sessions, in the order of their keys. A window is on the session's last activity."""
    _export_of_sessions("messages", place, target, seen, window, choice, as_json=as_json)


def export_usage_events(
    place: Place, target: Target, seen: Seen, window: Window, choice: UsageChoice, as_json: Json = False
) -> None:
    """Export the usage events of the ledger, in the order of their keys. A window is on the time of use."""

    def filters() -> Any:
        from session_lifecycle.models import UsageEventFilters

        return UsageEventFilters.of_call(viewer=seen.viewer(), **window.fields(), **choice.fields())

    _export("usage_events", filters, target, place, as_json=as_json)


def export_runs(
    place: Place,
    target: Target,
    seen: Seen,
    window: Window,
    choice: RunChoice,
    origin: Origin,
    include_open: IncludeOpen = False,
    as_json: Json = False,
) -> None:
    """Export runs, in the order of their keys. A window is on the start."""
    _export_of_runs("runs", place, target, seen, window, choice, origin, include_open=include_open, as_json=as_json)


def export_steps(
    place: Place,
    target: Target,
    seen: Seen,
    window: Window,
    choice: RunChoice,
    origin: Origin,
    include_open: IncludeOpen = False,
    as_json: Json = False,
) -> None:
    """Export the steps of runs, in the order of their keys. A window is on the run's start."""
    _export_of_runs("steps", place, target, seen, window, choice, origin, include_open=include_open, as_json=as_json)


def _export_of_sessions(
    table: "ExportTable",
    place: Place,
    target: Target,
    seen: Seen,
    window: Window,
    choice: SessionChoice,
    *,
    as_json: bool,
) -> None:
    def filters() -> Any:
        from session_lifecycle import SessionListFilters

        return SessionListFilters.of_call(viewer=seen.viewer(), **window.fields(), **choice.fields())

    _export(table, filters, target, place, as_json=as_json)


def _export_of_runs(
    table: "ExportTable",
    place: Place,
    target: Target,
    seen: Seen,
    window: Window,
    choice: RunChoice,
    origin: Origin,
    *,
    include_open: bool,
    as_json: bool,
) -> None:
    def filters() -> Any:
        from session_lifecycle import RunFilters

        chosen = {**window.fields(), **choice.fields(), **origin.fields()}
        return RunFilters.of_call(viewer=seen.viewer(), include_open=include_open, **chosen)

    _export(table, filters, target, place, as_json=as_json)


def _export(table: "ExportTable", filters: Callable[[], Any], target: Target, place: Place, *, as_json: bool) -> None:
    to_stdout = target.output == STDOUT
    if not to_stdout and os.path.exists(target.output):  # noqa: PTH110 - `Path.exists` raises for a name that is too long
        refuse(f"--output: {target.output} exists already: give another path, or delete it", code=MISUSE)
    if to_stdout and as_json:
        refuse("--json prints a report on standard output, where the rows are: give --output PATH", code=MISUSE)
    if to_stdout and target.file_format == "parquet" and sys.stdout.isatty():
        refuse("Parquet is no text: give --output PATH", code=MISUSE)

    async def work(db: "SessionDatabase") -> None:
        from contextlib import aclosing

        from session_lifecycle.maintenance.export_files import row_writer

        rows = 0
        with row_progress("exporting") as tell, _opened(target.output) as file:
            writer = row_writer(table, target.file_format, file)
            async with aclosing(db.primary.maintenance.export(table, filters())) as batches:
                async for batch in batches:
                    writer.write(batch.rows)
                    rows += len(batch.rows)
                    tell(table, rows)
            writer.finish()
        report = {"table": table, "format": target.file_format, "output": target.output, "rows": rows}
        if to_stdout:
            print_note(f"Exported: {rows} rows of {table}")
        else:
            print_counts("Exported", report, as_json=as_json)

    on_database(work, place)


@contextmanager
def _opened(output: str) -> Generator[BinaryIO]:
    """The file to write. It has its name once it is whole; after a failure it is not there."""
    if output == STDOUT:
        try:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            # Nobody reads any further, as after `| head`. The interpreter would complain when it flushes at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILURE) from None
        return
    path = Path(output)
    part = path.with_name(f"{path.name}.part")
    try:
        file = part.open("wb")
    except OSError as error:
        refuse(f"--output: {output} cannot be written: {error.strerror}", code=FAILURE)
    try:
        with file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
