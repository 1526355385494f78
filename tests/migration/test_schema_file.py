"""`alembic/schema.sql` says what the revisions add up to."""

from session_lifecycle import SessionDatabase
from support.schema_file import FILE, objects_in, schema_text


async def test_the_schema_file_is_the_migrated_schema(empty_url: str) -> None:
    async with SessionDatabase.connect(empty_url) as db:
        await db.migrate()
    expected = objects_in(await schema_text(empty_url))
    found = objects_in(FILE.read_text("utf-8"))
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    assert differing == [], f"alembic/schema.sql has other DDL for {', '.join(differing)}: run `make schema`"
    assert len(expected) > 60


def test_no_object_of_the_file_is_overlooked() -> None:
    text = FILE.read_text("utf-8")
    assert len(objects_in(text)) == text.count("\nCREATE ")
