"""Export and import: the names of the tables, and the reports."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

from session_lifecycle.models.fields import Value
from session_lifecycle.models.maintenance import Mismatch

FORMAT_VERSION = 1
"""The version of the files of a complete export."""
ExportFormat = Literal["csv", "jsonl", "parquet"]
ExportTable = Literal[
    "sessions",
    "session_models",
    "usage_events",
    "runs",
    "steps",
    "messages",
    "annotations",
    "budgets",
    "tombstones",
    "repricings",
]
EXPORT_TABLES: tuple[ExportTable, ...] = get_args(ExportTable)
"""The tables of a complete export, in their order."""


class ExportBatch(NamedTuple):
    """Rows of one table, in the order of the table's key. `SessionMaintenanceDb.export` yields it."""

    table: ExportTable
    rows: Sequence[dict[str, Any]]
    """Each row by column: UUID, text, int, bool, float, `Decimal`, or datetime in UTC. A JSON value is its JSON text,
    so that no number of it is rounded. None where the column is null."""


class RefusedRow(NamedTuple):
    """A row of an export that was not imported. `on_refused` gets it."""

    table: str
    line: int
    """The number of the row in its file, from 1."""
    field: str
    value: str
    """The value as an error shows it: of a field with content only its size."""
    expected: str

    def __str__(self) -> str:
        return f"{self.table}:{self.line}: {self.field}: got {self.value}, expected {self.expected}"


class TableReport(Value):
    """What an import did with the rows of one table. Part of an `ImportReport`."""

    table: str
    read: int = 0
    added: int = 0
    unchanged: int = 0
    """Rows that the database had already, with the same content."""
    refused: int = 0
    """Rows that were left out: of a user with a row that was refused."""


class ImportReport(Value):
    """The result of `import_export`."""

    tables: list[TableReport]
    """In the order of `EXPORT_TABLES`."""
    refused_rows: int
    """Rows that were refused for themselves; `on_refused` got each of them."""
    refused_users: int
    """Users of whom no row was imported, because one of their rows was refused."""
    mismatch_count: int
    """Totals of the database that differ from the ledger after the import, as `reconcile` counts them."""
    mismatches: list[Mismatch]
    """The first 100 of them."""

    @property
    def added(self) -> int:
        """The rows that were added, over all tables."""
        return sum(one.added for one in self.tables)
