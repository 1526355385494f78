"""`export`, `import` of tables, and `move`: data in and out."""

import os
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal
from uuid import UUID

import typer

from session_lifecycle.cli.choices import Origin, RunChoice, Seen, SessionChoice, UsageChoice, Window
from session_lifecycle.cli.options import FAILURE, MISUSE, Json, Place, on_database, refuse
from session_lifecycle.cli.output import print_json, print_line, print_note

if TYPE_CHECKING:
    from session_lifecycle import SessionDatabase
    from session_lifecycle.buckets.database import BucketDatabase
    from session_lifecycle.integrations.foreign_import import ForeignImport, ForeignRow
    from session_lifecycle.models import ImportReport
    from session_lifecycle.models.transfer import ExportFormat, ExportTable
    from session_lifecycle.roles import SessionRoles

MOST_NAMED = 20
"""The most refused rows that are named."""
STDOUT = "-"
Format = Annotated[Literal["csv", "jsonl", "parquet"], typer.Option("--format", help="The format of the file.")]
FolderFormat = Annotated[
    Literal["csv", "jsonl", "parquet"],
    typer.Option("--format", help="The format of the files. CSV cannot be imported again."),
]
Output = Annotated[
    str, typer.Option("--output", metavar="PATH", help="The file to write, which must not exist; -: standard output.")
]
IncludeOpen = Annotated[bool, typer.Option("--include-open", help="Also runs that have not ended.")]
Folder = Annotated[Path, typer.Argument(help="The folder of a complete export.")]
DefaultUser = Annotated[
    UUID | None,
    typer.Option("--user", metavar="ID", help="Who owns rows that name no user with a UUID.", show_default=False),
]
SourceSchema = Annotated[str, typer.Option(metavar="NAME", help="The schema of the tables that are imported.")]
NoContent = Annotated[bool, typer.Option("--no-content", help="Record no input or output.")]


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


def export_all(
    place: Place,
    output: Annotated[Path, typer.Option("--output", metavar="FOLDER", help="The folder; it is made, or is empty.")],
    file_format: FolderFormat = "jsonl",
    as_json: Json = False,
) -> None:
    """Export everything into a folder: a file for each table and a manifest, from one snapshot.

    `import lifecycle` reads the folder. An interrupted export has no manifest: delete its folder and run it again.
    """

    async def work(db: "SessionDatabase") -> None:
        await db.check()
        await write_folder(db.primary, output, file_format, as_json=as_json)

    on_database(work, place)


async def write_folder(roles: "SessionRoles", folder: Path, file_format: "ExportFormat", *, as_json: bool) -> None:
    """Writes a complete export. Shows how far it is, and prints the counts of rows."""
    from session_lifecycle.maintenance.export_files import export_to_folder

    with progress("exporting") as tell:
        manifest = await export_to_folder(roles.maintenance.export, folder, file_format, tell)
    counts = {table: entry["rows"] for table, entry in manifest["tables"].items()}
    _print_counts("Exported", {"folder": str(folder), "format": file_format, "rows": counts}, as_json=as_json)


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
    if not to_stdout and Path(target.output).exists():
        refuse(f"--output: {target.output} exists already: give another path, or delete it", code=MISUSE)
    if to_stdout and as_json:
        refuse("--json prints a report on standard output, where the rows are: give --output PATH", code=MISUSE)
    if to_stdout and target.file_format == "parquet" and sys.stdout.isatty():
        refuse("Parquet is no text: give --output PATH", code=MISUSE)

    async def work(db: "SessionDatabase") -> None:
        from contextlib import aclosing

        from session_lifecycle.maintenance.export_files import row_writer

        rows = 0
        with progress("exporting") as tell, _opened(target.output) as file:
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
            _print_counts("Exported", report, as_json=as_json)

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


def import_lifecycle(folder: Folder, place: Place, as_json: Json = False) -> None:
    """Import a complete export of this program, in JSON Lines or Parquet.

    Run it as often as you like: rows that are there already are left alone. A user with a row that is refused is left
    out. Exit with code 1 if a row was refused, or if a total differs from the ledger afterwards.
    """

    async def work(db: "SessionDatabase") -> None:
        await db.check()
        end_import(await import_folder(db, folder), as_json=as_json)

    on_database(work, place)


def move(
    place: Place,
    to: Annotated[str, typer.Option("--to", metavar="URL", help="URL of the database to move to, postgresql://….")],
    to_schema: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its schema. Default: the one moved from.", show_default=False)
    ] = None,
    work_dir: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Where the export is kept meanwhile. Default: a temporary directory."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Move everything to another database, such as from the embedded server to a real one.

    It migrates the other database, exports, imports and compares the counts of rows. The database moved from stays as
    it is. Stop the programs that write to it first. An interrupted command can be run again.
    """

    async def work(db: "SessionDatabase") -> None:
        import tempfile

        from session_lifecycle import SessionDatabase, Settings
        from session_lifecycle.maintenance.export_files import export_to_folder

        await db.check()
        settings = Settings.load()
        schema = to_schema or place.schema or settings.database_schema
        async with SessionDatabase.connect(to, schema=schema, settings=settings) as target:
            named = target.engine.url.set(drivername="postgresql").render_as_string(hide_password=True)
            print_note(f"to: {named}, schema {schema}")
            await target.migrate()
            with tempfile.TemporaryDirectory(dir=work_dir, prefix="session-lifecycle-move-") as folder:
                with progress("exporting") as tell:
                    await export_to_folder(db.primary.maintenance.export, Path(folder) / "all", "jsonl", tell)
                report = await import_folder(target, Path(folder) / "all")
        end_import(report, as_json=as_json)

    on_database(work, place)


async def import_folder(db: "SessionDatabase | BucketDatabase", folder: Path) -> "ImportReport":
    """Imports a complete export. Shows how far it is, and names the first refused rows."""
    named = _Named()
    with progress("importing") as tell:
        report = await db.maintenance.import_export(
            folder, on_refused=named.add, on_progress=lambda doing, table, rows: tell(f"{doing} {table}", rows)
        )
    named.finish()
    return report


class _Named:
    """Names the first refused rows on standard error."""

    def __init__(self) -> None:
        self._rows = 0

    def add(self, refused: object) -> None:
        self._rows += 1
        if self._rows <= MOST_NAMED:
            print_note(f"refused: {refused}")

    def finish(self) -> None:
        if self._rows > MOST_NAMED:
            print_note(f"and {self._rows - MOST_NAMED} more refused rows")


def end_import(report: "ImportReport", *, as_json: bool) -> None:
    """Prints the report of an import, and ends the command with its exit code."""
    if as_json:
        print_json(report)
    else:
        for one in report.tables:
            print_line(f"{one.table}: {one.added} added, {one.unchanged} unchanged, {one.refused} refused")
        print_line(
            f"{report.refused_rows} rows refused, {report.refused_users} users left out, "
            f"{report.mismatch_count} totals differ from the ledger"
        )
    if report.mismatch_count:
        print_note("run `session-lifecycle reconcile` to see the totals that differ, and with --repair to repair them")
    if report.refused_rows or report.mismatch_count:
        raise typer.Exit(FAILURE)


def import_reference(
    url: Annotated[str, typer.Argument(metavar="URL", help="URL of the reference's database, postgresql://….")],
    place: Place,
    source_schema: SourceSchema = "public",
    as_json: Json = False,
) -> None:
    """Import the reference's tables session_records and session_model_usage.

    The totals of each session become usage events with keys. Run it again to import what has changed since. Exit with
    code 1 if a session was refused, or has other totals afterwards.
    """

    async def rows(job: "ForeignImport") -> AsyncGenerator["ForeignRow"]:
        from session_lifecycle import InvalidValueError, Settings
        from session_lifecycle.integrations.reference_rows import reference_row
        from session_lifecycle.maintenance.foreign import reference_rows

        async for session, models in reference_rows(url, source_schema, Settings.load()):
            try:
                yield reference_row(session, models)
            except InvalidValueError as error:
                job.refuse(f"session {session.get('session_id')!r} of user {session.get('user_id')}", error)

    _import_rows(rows, place, as_json=as_json)


def import_litellm_spend_logs(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="A file or folder of JSON Lines, JSON or CSV, or a postgresql:// URL."),
    ],
    place: Place,
    user: DefaultUser = None,
    source_schema: SourceSchema = "public",
    as_json: Json = False,
) -> None:
    """Import the rows of LiteLLM's table LiteLLM_SpendLogs.

    Each request becomes a usage event with the request's id as its key. Run it as often as you like. Exit with code 1
    if a row was refused.
    """

    async def rows(job: "ForeignImport") -> AsyncGenerator["ForeignRow"]:
        from session_lifecycle import InvalidValueError
        from session_lifecycle.integrations.litellm_spend_logs import spend_log_row, unmapped_fields

        async for where, fields in _spend_logs(source, source_schema, job):
            job.report.unmapped.update(unmapped_fields(fields))
            try:
                yield spend_log_row(where, fields, user)
            except InvalidValueError as error:
                job.refuse(where, error)

    _import_rows(rows, place, as_json=as_json)


async def _spend_logs(source: str, schema: str, job: "ForeignImport") -> AsyncGenerator[tuple[str, Any]]:
    if source.startswith(("postgresql://", "postgres://", "postgresql+asyncpg://")):
        from session_lifecycle import Settings
        from session_lifecycle.maintenance.foreign import spend_log_rows

        async for fields in spend_log_rows(source, schema, Settings.load()):
            yield f"request {fields.get('request_id')!r}", fields
        return
    for where, fields in _rows_of_files(Path(source), job):
        yield where, fields


def _rows_of_files(path: Path, job: "ForeignImport") -> Generator[tuple[str, Any]]:
    from session_lifecycle.integrations.row_files import files_in, rows_of_file

    for file in files_in(path):
        for row in rows_of_file(file):
            if row.error is not None:
                job.refuse(row.where, row.error)
            else:
                yield row.where, row.fields


def import_langfuse(
    path: Annotated[Path, typer.Argument(help="A file or folder of Langfuse's export, in JSON or JSON Lines.")],
    place: Place,
    user: DefaultUser = None,
    no_content: NoContent = False,
    as_json: Json = False,
) -> None:
    """Import Langfuse's export of traces and observations.

    A trace becomes a run, an observation a step, and a generation a usage event with the observation's id as its key.
    Run it as often as you like. Exit with code 1 if a row was refused.
    """

    async def rows(job: "ForeignImport") -> AsyncGenerator["ForeignRow"]:
        from session_lifecycle import InvalidValueError
        from session_lifecycle.integrations.foreign_import import ForeignImport
        from session_lifecycle.integrations.langfuse_export import LangfuseReader, unmapped_fields

        reader = LangfuseReader(user, content=not no_content)
        # An observation names only its trace, so all traces are read first. The second reading reports refused rows.
        unheard = ForeignImport(job.into)
        for where, fields in _rows_of_files(path, unheard):
            try:
                reader.note_trace(fields)
            except InvalidValueError as error:
                unheard.refuse(where, error)
        for where, fields in _rows_of_files(path, job):
            job.report.unmapped.update(unmapped_fields(fields))
            try:
                yield reader.row(where, fields)
            except InvalidValueError as error:
                job.refuse(where, error)

    _import_rows(rows, place, as_json=as_json)


def _import_rows(
    rows: Callable[["ForeignImport"], AsyncGenerator["ForeignRow"]], place: Place, *, as_json: bool
) -> None:
    async def work(db: "SessionDatabase") -> None:
        from contextlib import aclosing

        from session_lifecycle.integrations.foreign_import import ForeignImport

        await db.check()
        job, named = ForeignImport(db.lifecycle), _Named()
        with progress("importing") as tell:
            async with aclosing(rows(job)) as found:
                async for row in found:
                    await job.add(row)
                    tell("rows", job.report.rows)
                    for refused in job.take_refused():
                        named.add(refused)
            await job.flush()
        for refused in job.take_refused():
            named.add(refused)
        named.finish()
        report = job.report
        for name, number in sorted(report.unmapped.items()):
            print_note(f"not kept: {name} of {number} rows")
        counts = {name: value for name, value in vars(report).items() if name != "unmapped"}
        _print_counts("Imported", counts, as_json=as_json, more={"unmapped": dict(report.unmapped)})
        if report.refused:
            raise typer.Exit(FAILURE)

    on_database(work, place)


def _print_counts(heading: str, report: dict[str, Any], *, as_json: bool, more: dict[str, Any] | None = None) -> None:
    if as_json:
        print_json({**report, **(more or {})})
        return
    rows = report.get("rows")
    if isinstance(rows, dict):
        report = {**report, "rows": " ".join(f"{table}={number}" for table, number in rows.items())}
    print_line(f"{heading}: " + ", ".join(f"{name} {value}" for name, value in report.items()))


@contextmanager
def progress(doing: str) -> Generator[Callable[[str, int], None]]:
    """Shows on a terminal how far a job is; elsewhere a line for each ten thousand rows."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        told: dict[str, int] = {}

        def tell(what: str, rows: int) -> None:
            if rows // 10_000 > told.get(what, 0):
                told[what] = rows // 10_000
                print_note(f"{doing}: {what}: {rows} rows so far")

        yield tell
        return
    with console.status(doing) as status:
        yield lambda what, rows: status.update(f"{doing}: {what}: {rows} rows")
