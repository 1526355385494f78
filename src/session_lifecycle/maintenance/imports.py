"""The job `import_export`: adds the rows of a complete export, as they are.

Rows are added as they stand in the export, so every answer is the one of the database that was exported: late events,
adjustments, revisions and the order of recording cannot be recorded a second time through the writer.

All rows that a total adds up belong to one user, and so do a run, its thread and a key. So a user is imported as a
whole or not at all: the job first looks at every row, and writes afterwards. It writes sessions last, because no read
shows what belongs to a session that is not there: an interrupted import shows nothing halfway.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from pydantic_core import to_json

from session_lifecycle.errors import InvalidValueError, shortened
from session_lifecycle.maintenance.export_files import ExportFolder
from session_lifecycle.maintenance.import_rows import (
    PARENTS,
    ImportRow,
    difference,
    fields_of,
    key_of,
    read_row,
    stored_values,
    user_of,
)
from session_lifecycle.models.json_payloads import folded
from session_lifecycle.models.maintenance import ReconcileReport
from session_lifecycle.models.transfer import EXPORT_TABLES, ExportTable, ImportReport, RefusedRow, TableReport
from session_lifecycle.postgres.execution import Execution
from session_lifecycle.settings import check_callable
from session_lifecycle.statements.maintenance import export
from session_lifecycle.statements.maintenance.export import CONTENT_FOLDED, RECORD_NO, SHAPES, TableShape

MOST_REFUSED = 100_000
"""The most rows that are refused. With more the job ends before it writes: the export does not fit this database."""
WRITE_ORDER: tuple[ExportTable, ...] = (*(name for name in EXPORT_TABLES if name != "sessions"), "sessions")
OnRefused = Callable[[RefusedRow], object] | None
OnProgress = Callable[[str, str, int], object] | None
Row = TypeVar("Row")


def _only(_user: UUID) -> int:
    return 0


class ImportTarget(NamedTuple):
    """Where an import adds rows: one database, or several of which each has its own users."""

    executions: Sequence[Execution]
    reconcile: Callable[[], Awaitable[ReconcileReport]]
    """Compares the totals with the ledger."""
    number_of: Callable[[UUID], int] = _only
    """Which of the executions has the rows of a user. Rows that belong to no user go to the first."""

    def of_users(self, rows: Iterable[tuple[UUID | None, Row]]) -> Iterator[tuple[Execution, list[Row]]]:
        """The rows of each execution that has any. Each row comes with its user."""
        found: defaultdict[int, list[Row]] = defaultdict(list)
        for user, row in rows:
            found[0 if user is None else self.number_of(user)].append(row)
        return ((self.executions[number], found[number]) for number in sorted(found))


async def import_folder(
    target: ImportTarget, folder: object, on_refused: OnRefused, on_progress: OnProgress
) -> ImportReport:
    """`SessionMaintenanceDb.import_export` into a target."""
    check_callable("on_progress", on_progress)
    check_callable("on_refused", on_refused)
    if not isinstance(folder, Path | str):
        raise InvalidValueError("folder", folder, "a path")
    return await _Importer(target, ExportFolder(Path(folder)), on_refused, on_progress).run()


class _Importer:
    """One import."""

    def __init__(
        self, target: ImportTarget, source: ExportFolder, on_refused: OnRefused, on_progress: OnProgress
    ) -> None:
        self._target = target
        self._source = source
        self._on_refused = on_refused
        self._on_progress = on_progress
        self._refused_users: set[UUID] = set()
        self._refused_lines: set[tuple[str, int]] = set()
        self._refused_rows = 0
        self._reports = {name: {"read": 0, "added": 0, "unchanged": 0, "refused": 0} for name in EXPORT_TABLES}

    async def run(self) -> ImportReport:
        """Looks at all rows, adds those of the users without a refused row, and compares the totals with the ledger."""
        for name in EXPORT_TABLES:
            await asyncio.to_thread(self._source.check, name)
        for name in EXPORT_TABLES:
            await self._look(SHAPES[name])
        for name in WRITE_ORDER:
            await self._write(SHAPES[name])
        found = await self._target.reconcile()
        return ImportReport(
            tables=[TableReport(table=name, **counts) for name, counts in self._reports.items()],
            refused_rows=self._refused_rows,
            refused_users=len(self._refused_users),
            mismatch_count=found.mismatch_count,
            mismatches=found.mismatches,
        )

    async def _look(self, shape: TableShape) -> None:
        stored = export.stored_rows(shape)
        looked, last = 0, None
        parent = PARENTS.get(shape.name)
        async with aclosing(self._batches(shape.name)) as batches, aclosing(self._keys(parent)) as keys:
            parents = _Parents(keys) if parent is not None else None
            async for lines in batches:
                rows: list[ImportRow] = []
                for number, text in lines:
                    row = self._read(shape, number, text)
                    if row is None or (shape.has_user and row.user_id in self._refused_users):
                        continue
                    if last is not None and row.key <= last:
                        expected = "a key that comes after the key of the row before"
                        self._refuse(shape, row, InvalidValueError(shape.key[-1], row.key[-1], expected))
                        continue
                    last = row.key
                    # The columns of the parent's key are the first ones of this key.
                    if parents is not None and not await parents.has(row.key[:2]):
                        expected = f"a row that is in {parent}"
                        self._refuse(shape, row, InvalidValueError(shape.key[1], row.key[1], expected))
                        continue
                    if shape.name == "budgets" and row.user_id is None and len(self._target.executions) > 1:
                        expected = "a user: no bucket sees what all users of an agent or a dataset use"
                        self._refuse(shape, row, InvalidValueError("user_id", None, expected))
                        continue
                    rows.append(row)
                for execution, of_execution in self._target.of_users((row.user_id, row) for row in rows):
                    await self._compare(execution, shape, stored, of_execution)
                looked += len(lines)
                self._tell("looked at", shape.name, looked)
        if looked != self._source.tables[shape.name]["rows"]:
            expected = f"{self._source.tables[shape.name]['rows']}, as the manifest says"
            raise InvalidValueError(f"{shape.name}: rows", looked, expected)

    async def _compare(self, execution: Execution, shape: TableShape, stored: Any, rows: Sequence[ImportRow]) -> None:
        """Refuses the rows that the database has with other content, or that it cannot have."""
        by_key = {row.key: row for row in rows}
        bound = {"rows": _as_array(row.text for row in rows)}
        for found in await execution.fetch(stored, bound):
            values = stored_values(shape, found._asdict())
            row = by_key[key_of(shape, values)]
            if (error := difference(row.values, values)) is not None:
                self._refuse(shape, row, error)
        if shape.name in {"sessions", "runs"}:
            erased = {user for (user,) in await execution.fetch(export.erased_users(shape), bound)}
            for row in rows:
                if row.user_id in erased:
                    error = InvalidValueError("user_id", str(row.user_id), "a user who is not erased in this database")
                    self._refuse(shape, row, error)
        if shape.name == "usage_events" and any(row.values["key_scope"] != "session" for row in rows):
            for user_id, session_id, event_id, counted_by in await execution.fetch(export.events_elsewhere(), bound):
                row = by_key[user_id, session_id, event_id]
                error = InvalidValueError(
                    "session_id", session_id, f"{counted_by!r}, whose ledger has the event already"
                )
                self._refuse(shape, row, error)

    def _read(self, shape: TableShape, number: int, text: str) -> ImportRow | None:
        fields: dict[str, Any] = {}
        try:
            fields = fields_of(text)
            return read_row(shape, number, text, fields)
        except InvalidValueError as error:
            user = user_of(fields)
            if shape.has_user and user is None:
                # Nobody knows whose row it is, so nobody's totals would be sure.
                raise InvalidValueError(f"{shape.name}:{number}: {error.field}", error.value, error.expected) from error
            self._note(shape, number, user, error)
            return None

    def _refuse(self, shape: TableShape, row: ImportRow, error: InvalidValueError) -> None:
        self._note(shape, row.line, row.user_id, error)

    def _note(self, shape: TableShape, number: int, user: UUID | None, error: InvalidValueError) -> None:
        """Remembers that a row is refused, and with it its user."""
        self._refused_rows += 1
        if shape.has_user and user is not None:
            self._refused_users.add(user)
        else:
            self._refused_lines.add((shape.name, number))
        if self._on_refused is not None:
            self._on_refused(RefusedRow(shape.name, number, error.field, shortened(error.value), error.expected))
        if self._refused_rows > MOST_REFUSED:
            raise InvalidValueError("refused rows", self._refused_rows, f"at most {MOST_REFUSED:,} in one import")

    async def _write(self, shape: TableShape) -> None:
        add, counts = export.add_rows(shape), self._reports[shape.name]
        most: defaultdict[Execution, int] = defaultdict(int)
        async with aclosing(self._batches(shape.name)) as batches:
            async for lines in batches:
                rows = [
                    (text, row) for number, text in lines if (row := self._accepted(shape, number, text)) is not None
                ]
                counts["read"] += len(lines)
                counts["refused"] += len(lines) - len(rows)
                for execution, of_execution in self._target.of_users((user_of(row[1]), row) for row in rows):
                    bound = {"rows": _as_array(_to_store(text, row) for text, row in of_execution)}
                    await execution.check_takes_any_user()
                    [(added,)] = await execution.write(add, bound, repeatable=True)
                    counts["added"] += added
                    counts["unchanged"] += len(of_execution) - added
                    most[execution] = max(most[execution], *(row.get(RECORD_NO, 0) for _, row in of_execution))
                self._tell("read", shape.name, counts["read"])
        for execution, number in most.items():
            if number:
                sequence = export.move_sequence_on(execution.schema, shape)
                await execution.fetch(sequence, {"most": number}, writes=True)

    def _accepted(self, shape: TableShape, number: int, text: str) -> dict[str, Any] | None:
        """The fields of a line that was looked at and not refused, as JSON has them."""
        if (shape.name, number) in self._refused_lines:
            return None
        fields = fields_of(text)
        is_refused = shape.has_user and self._refused_users and user_of(fields) in self._refused_users
        return None if is_refused else fields

    async def _batches(self, name: ExportTable) -> AsyncGenerator[Sequence[tuple[int, str]]]:
        lines = self._source.lines(name)
        # Reading and decompressing a file would hold up the event loop.
        while batch := await asyncio.to_thread(next, lines, ()):
            yield batch

    async def _keys(self, parent: ExportTable | None) -> AsyncGenerator[tuple[Any, ...]]:
        if parent is None:
            return
        shape = SHAPES[parent]
        async with aclosing(self._batches(parent)) as batches:
            async for lines in batches:
                for number, text in lines:
                    # A parent that is refused was noted before, and its user with it.
                    if (fields := self._accepted(shape, number, text)) is not None:
                        yield user_of(fields), fields[shape.key[1]]

    def _tell(self, doing: str, table: str, rows: int) -> None:
        if self._on_progress is not None:
            self._on_progress(doing, table, rows)


@dataclass
class _Parents:
    """The keys of the rows to which the rows of a table belong, both in the order of keys."""

    keys: AsyncGenerator[tuple[Any, ...]]
    current: tuple[Any, ...] | None = None

    async def has(self, key: tuple[Any, ...]) -> bool:
        """Whether there is a row with this key. Keys are asked for in their order."""
        while self.current is None or self.current < key:
            following = await anext(self.keys, None)
            if following is None:
                return False
            self.current = following
        return self.current == key


def _to_store(text: str, fields: Mapping[str, Any]) -> str:
    """The line, with the columns that are derived from others."""
    if (content := fields.get("content")) is None:
        return text
    derived = to_json({CONTENT_FOLDED: folded(content)}).decode()
    return f"{text.rstrip()[:-1]}, {derived[1:]}"


def _as_array(lines: Iterable[str]) -> str:
    return f"[{','.join(lines)}]"
