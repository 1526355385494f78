"""`import` of the tables and exports of other systems."""

from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from session_lifecycle.cli.options import FAILURE, Json, Place, on_database
from session_lifecycle.cli.output import FirstNamed, print_counts, print_note, row_progress

if TYPE_CHECKING:
    from session_lifecycle import SessionDatabase
    from session_lifecycle.integrations.foreign_import import ForeignImport, ForeignRow

DefaultUser = Annotated[
    UUID | None,
    typer.Option("--user", metavar="ID", help="Who owns rows that name no user with a UUID.", show_default=False),
]
SourceSchema = Annotated[str, typer.Option(metavar="NAME", help="The schema of the tables that are imported.")]
NoContent = Annotated[bool, typer.Option("--no-content", help="Record no input or output.")]


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
        typer.Argument(
            metavar="SOURCE", help="A file or folder of JSON Lines, JSON, CSV or Parquet, or a postgresql:// URL."
        ),
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
    path: Annotated[
        Path, typer.Argument(help="A file or folder of Langfuse's export, in JSON Lines, JSON, CSV or Parquet.")
    ],
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
        job, named = ForeignImport(db.lifecycle), FirstNamed("refused rows")
        with row_progress("importing") as tell:
            async with aclosing(rows(job)) as found:
                async for row in found:
                    await job.add(row)
                    tell("rows", job.report.rows)
                    for refused in job.take_refused():
                        named.add(f"refused: {refused}")
            await job.flush()
        for refused in job.take_refused():
            named.add(f"refused: {refused}")
        named.finish()
        report = job.report
        for name, number in sorted(report.unmapped.items()):
            print_note(f"not kept: {name} of {number} rows")
        counts = {name: value for name, value in vars(report).items() if name != "unmapped"}
        print_counts("Imported", counts, as_json=as_json, more={"unmapped": dict(report.unmapped)})
        if report.refused:
            raise typer.Exit(FAILURE)

    on_database(work, place)
