"""`db buckets`: migrates, lists, moves, exports and imports buckets of users. `db distribute`: puts them on Citus."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn
from uuid import UUID

import typer

from session_lifecycle.cli.commands.transfer import Folder, FolderFormat, end_import, import_folder, write_folder
from session_lifecycle.cli.options import (
    DATABASE_PANEL,
    MISUSE,
    Json,
    Yes,
    confirm_on_terminal,
    refuse,
    refusing_errors,
    run_until_done,
)
from session_lifecycle.cli.output import print_json, print_line, print_note

if TYPE_CHECKING:
    from session_lifecycle.buckets.database import BucketDatabase

Places = Annotated[
    list[str],
    typer.Option(
        "--place",
        rich_help_panel=DATABASE_PANEL,
        help="Place of the next bucket: a schema of the database, URL#schema, or a URL. Repeat it in the order that "
        "the program has.",
    ),
]
OfName = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=DATABASE_PANEL,
        help="Name of the program's own function of users. Default: the library's hash.",
        show_default=False,
    ),
]
Url = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        rich_help_panel=DATABASE_PANEL,
        help="URL of the places that name a schema only. Default: SESSION_LIFECYCLE_DATABASE_URL.",
        show_default=False,
    ),
]


def migrate(place: Places, url: Url = None, of_name: OfName = None, as_json: Json = False) -> None:
    """Migrate every bucket, and write down in each which one it is."""

    async def work(db: "BucketDatabase") -> None:
        await db.migrate()
        advice = await db.check()
        if as_json:
            print_json({"buckets": db.bucket_count, "advice": advice})
            return
        print_line(f"The schemas of {db.bucket_count} buckets are up to date.")
        for sentence in advice:
            print_note(f"note: {sentence}")

    _on_buckets(work, place, url, of_name)


def distribute(place: Places, url: Url = None, of_name: OfName = None, as_json: Json = False) -> None:
    """Have Citus keep each bucket on one of its nodes, and run the functions of the bucket there.

    The places are schemas of a coordinator's database, and are migrated. The writers of a bucket wait while its rows go
    to the node. Run it again to continue an interrupted command.
    """

    async def work(db: "BucketDatabase") -> None:
        await db.placement.distribute(on_progress=print_note)
        if as_json:
            print_json({"buckets": db.bucket_count})
        else:
            print_line(f"Citus has distributed {db.bucket_count} buckets.")

    _on_buckets(work, place, url, of_name)


def list_buckets(place: Places, url: Url = None, of_name: OfName = None, as_json: Json = False) -> None:
    """Show where each bucket is now: the database without a password, the schema, and the node of Citus."""

    async def work(db: "BucketDatabase") -> None:
        await _show(db, as_json=as_json)

    _on_buckets(work, place, url, of_name)


def move(
    number: Annotated[int, typer.Argument(help="Number of the bucket, from 0.", show_default=False)],
    to: Annotated[
        str,
        typer.Option(
            help="URL of the server and database to move it to, postgresql://…; or a node of Citus, host:port."
        ),
    ],
    place: Places,
    url: Url = None,
    of_name: OfName = None,
    keep_copy: Annotated[
        bool, typer.Option(help="Keep the rows at the old place, in the schema with ' (moved)' after its name.")
    ] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Move a bucket to a schema of the same name on another server, while programs write into it.

    A bucket that Citus has distributed moves to another node, by Citus' own means.
    """
    if not yes:
        confirm_on_terminal(f"Move bucket {number}?")

    async def work(db: "BucketDatabase") -> None:
        if "://" not in to:
            seconds = await db.placement.move_to_node(number, to)
            if as_json:
                print_json({"node": to, "seconds": seconds})
            else:
                print_line(f"Citus moved bucket {number} to {to} in {seconds:.1f} s.")
            return
        report = await db.placement.move(number, to, keep_copy=keep_copy, on_progress=print_note)
        if as_json:
            print_json(report.model_dump(mode="json"))
            return
        if not report.paused_seconds:
            print_line(f"Bucket {number} is there already.")
            return
        print_line(
            f"Moved bucket {number}: {report.rows:,} rows, {report.changes:,} changes meanwhile, "
            f"writers waited {report.paused_seconds:.2f} s."
        )

    _on_buckets(work, place, url, of_name)


def rebalance(place: Places, url: Url = None, of_name: OfName = None, yes: Yes = False, as_json: Json = False) -> None:
    """Have Citus spread the buckets over its nodes, while programs write into them, and wait until that is done.

    Citus moves whatever it distributes in the database, also what is not of this library.
    """
    if not yes:
        confirm_on_terminal("Have Citus spread what it distributes in this database?")

    async def work(db: "BucketDatabase") -> None:
        await db.placement.rebalance()
        await _show(db, as_json=as_json)

    _on_buckets(work, place, url, of_name)


def export(
    place: Places,
    output: Annotated[Path, typer.Option("--output", metavar="FOLDER", help="The folder; it is made, or is empty.")],
    url: Url = None,
    of_name: OfName = None,
    file_format: FolderFormat = "jsonl",
    as_json: Json = False,
) -> None:
    """Export everything of all buckets into one folder, as `export all` does of one database.

    Each bucket has a snapshot of its own. `import lifecycle` and `db buckets import` read the folder.
    """

    async def work(db: "BucketDatabase") -> None:
        await db.check()
        await write_folder(db.primary, output, file_format, as_json=as_json)

    # Each bucket keeps a connection as long as rows are read.
    _on_buckets(work, place, url, of_name, connections=len(place))


def import_(
    folder: Folder,
    place: Places,
    url: Url = None,
    of_name: OfName = None,
    as_json: Json = False,
) -> None:
    """Import a complete export of one database or of buckets: each user into the user's bucket.

    It refuses rows as `import lifecycle` does, and budgets without a user. Run it as often as you like.
    """

    async def work(db: "BucketDatabase") -> None:
        await db.check()
        end_import(await import_folder(db, folder), as_json=as_json)

    _on_buckets(work, place, url, of_name)


async def _show(db: "BucketDatabase", *, as_json: bool) -> None:
    for number, where in enumerate(await db.placement.where()):
        node = await db.placement.node_of(number)
        if as_json:
            print_json({"bucket": number, "place": where, "node": node})
        else:
            print_line(f"{number:>2}  {where}" + (f"  on {node}" if node is not None else ""))


def _on_buckets(
    work: "Callable[[BucketDatabase], Awaitable[None]]",
    places: list[str],
    url: str | None,
    of_name: str | None,
    *,
    connections: int = 0,
) -> None:
    """Opens the buckets, runs the work, and closes them.

    Args:
        work: What is done.
        places: Where the buckets are.
        url: The URL of places that name a schema only.
        of_name: The name of the program's own function of users.
        connections: How many connections the work may keep at once, where that is more than the settings allow.
    """
    from session_lifecycle import SessionDatabase, Settings
    from session_lifecycle.buckets.places import Place
    from session_lifecycle.errors import ConfigurationError
    from session_lifecycle.postgres.engines import asyncpg_url

    def unknown(_: UUID) -> NoReturn:
        raise ConfigurationError("the command does not know the program's own function of users")

    where: list[Place | str] = []
    for one in places:
        at, mark, schema = one.rpartition("#")
        where.append(Place(schema, at) if mark and "://" in at else one)
    of = None if of_name is None else unknown
    with refusing_errors(code=MISUSE):
        settings = Settings.load()
        if (more := connections - settings.pool_size) > settings.max_overflow:
            settings = Settings.load(max_overflow=more)
        needs_url = any(isinstance(one, str) and "://" not in one for one in where)
        if needs_url and url is None and settings.database_url is None:
            refuse(
                "no database is named: give --database-url, or places as URL#schema, "
                "or set SESSION_LIFECYCLE_DATABASE_URL",
                code=MISUSE,
            )
        db = SessionDatabase.buckets(where, of=of, of_name=of_name, url=url, settings=settings)
        named = [one.url if isinstance(one, Place) else one if "://" in one else None for one in where]
        default = url or (settings.database_url.get_secret_value() if settings.database_url is not None else "")
        urls = dict.fromkeys(asyncpg_url(one or default) for one in named)
    shown = [one.set(drivername="postgresql").render_as_string(hide_password=True) for one in urls]
    print_note(f"database: {', '.join(shown)}; buckets: {len(where)}")

    async def run() -> None:
        async with db:
            await work(db)

    run_until_done(run)
