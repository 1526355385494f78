"""`export all`, `import lifecycle` and `move`: everything that a database has, out and in."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from session_lifecycle.cli.options import FAILURE, Json, Place, on_database
from session_lifecycle.cli.output import FirstNamed, print_counts, print_json, print_line, print_note, row_progress

if TYPE_CHECKING:
    from session_lifecycle import SessionDatabase
    from session_lifecycle.buckets.database import BucketDatabase
    from session_lifecycle.models import ImportReport
    from session_lifecycle.models.transfer import ExportFormat
    from session_lifecycle.roles import SessionRoles

FolderFormat = Annotated[
    Literal["csv", "jsonl", "parquet"],
    typer.Option("--format", help="The format of the files. CSV cannot be imported again."),
]
Folder = Annotated[Path, typer.Argument(help="The folder of a complete export.")]


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

    with row_progress("exporting") as tell:
        manifest = await export_to_folder(roles.maintenance.export, folder, file_format, tell)
    counts = {table: entry["rows"] for table, entry in manifest["tables"].items()}
    print_counts("Exported", {"folder": str(folder), "format": file_format, "rows": counts}, as_json=as_json)


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
                with row_progress("exporting") as tell:
                    await export_to_folder(db.primary.maintenance.export, Path(folder) / "all", "jsonl", tell)
                report = await import_folder(target, Path(folder) / "all")
        end_import(report, as_json=as_json)

    on_database(work, place)


async def import_folder(db: "SessionDatabase | BucketDatabase", folder: Path) -> "ImportReport":
    """Imports a complete export. Shows how far it is, and names the first refused rows."""
    named = FirstNamed("refused rows")
    with row_progress("importing") as tell:
        report = await db.maintenance.import_export(
            folder,
            on_refused=lambda row: named.add(f"refused: {row}"),
            on_progress=lambda doing, table, rows: tell(f"{doing} {table}", rows),
        )
    named.finish()
    return report


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
