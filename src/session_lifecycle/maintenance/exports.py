"""The job `export`: the rows of each table in key order, by a cursor of the server."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Select

from session_lifecycle.errors import InvalidValueError
from session_lifecycle.models.transfer import EXPORT_TABLES, ExportBatch, ExportTable
from session_lifecycle.postgres.execution import Execution
from session_lifecycle.postgres.row_level_security import refuse_walled_in
from session_lifecycle.statements.maintenance.export import FILTERS, SHAPES, AnyFilters, all_rows, chosen_rows

DEFAULT_EXPORT_BATCH = 500
"""Rows that are held at once. Messages and payloads may be large."""


def exported_tables(table: object) -> tuple[ExportTable, ...]:
    """The tables of an argument: `all`, or the name of one."""
    if table == "all":
        return EXPORT_TABLES
    found: tuple[ExportTable, ...] = tuple(name for name in EXPORT_TABLES if name == table)
    if not found:
        raise InvalidValueError("table", table, f"one of all, {', '.join(EXPORT_TABLES)}")
    return found


def checked_filters(tables: Sequence[ExportTable], filters: object) -> AnyFilters | None:
    """The filters of an export, checked: those of the one table."""
    if filters is None:
        return None
    kind = FILTERS.get(tables[0]) if len(tables) == 1 else None
    if kind is None:
        what = f"an export of {tables[0]}" if len(tables) == 1 else "an export of all tables"
        raise InvalidValueError("filters", filters, f"None: {what} takes no filters")
    return kind.checked(filters, "filters")


class Exporter:
    """Implements `SessionMaintenanceDb.export`."""

    def __init__(self, execution: Execution, abandon_after: timedelta) -> None:
        self._execution = execution
        self._abandon_after = abandon_after

    async def export(
        self, tables: Sequence[ExportTable], filters: AnyFilters | None, batch: int
    ) -> AsyncGenerator[ExportBatch]:
        """Yields the rows of the tables, one table after another, all from one snapshot."""
        await refuse_walled_in(self._execution)
        async with self._execution.snapshot() as stream:
            for table in tables:
                async with aclosing(stream(self._statement(table, filters), batch)) as batches:
                    async for rows in batches:
                        yield ExportBatch(table, [_row(row._mapping) for row in rows])

    def _statement(self, table: ExportTable, filters: AnyFilters | None) -> Select[*tuple[Any, ...]]:
        shape = SHAPES[table]
        return all_rows(shape) if filters is None else chosen_rows(shape, filters, self._abandon_after)


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row, with its times in UTC, whatever the connection's time zone."""
    return {name: value.astimezone(UTC) if isinstance(value, datetime) else value for name, value in row.items()}
