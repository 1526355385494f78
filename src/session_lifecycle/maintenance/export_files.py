"""The files of an export: CSV, JSON Lines and Parquet, and the folder of a complete export with its manifest.

Money is decimal text in every format, and so exact in every reader. An amount may have 30 decimals before which stand
ten digits, which is more than the 38 digits of Parquet's `decimal128`; readers such as DuckDB turn a `decimal256` into
a float. Ids are text, times are in UTC, and JSON is its text: nested in JSON Lines, a text column elsewhere.
"""

import csv
import hashlib
import io
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from uuid import UUID

from session_lifecycle._version import __version__
from session_lifecycle.errors import ConfigurationError, InvalidValueError
from session_lifecycle.models.transfer import EXPORT_TABLES, FORMAT_VERSION, ExportBatch, ExportFormat, ExportTable
from session_lifecycle.postgres.schema_check import HEAD
from session_lifecycle.statements.maintenance.export import FLAG, FLOAT, INTEGER, JSON, MOMENT, SHAPES, TableShape

MANIFEST = "manifest.json"
FORMAT = "session-lifecycle export"
ROW_GROUP_BYTES = 16_000_000
"""About how much a file of Parquet gathers in memory before it writes a group of rows."""
ROW_GROUP_ROWS = 50_000
LINES_AT_ONCE = 500
LONGEST_LINE = 64_000_000
"""The most bytes of a line that is read."""


def text_of(value: Any) -> Any:
    """The value as CSV, JSON and Parquet have it: ids and money as text. Flags, numbers and None stay as they are."""
    match value:
        case str():
            return value
        case UUID():
            return str(value)
        case Decimal():
            return format(value, "f")
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        case _:
            return value


def json_line(shape: TableShape, row: Mapping[str, Any]) -> str:
    """The row as one line of JSON. A JSON value stands in it as Postgres wrote it, to the last digit."""
    pairs = [
        f'"{name}": {"null" if (value := row[name]) is None else value if one.kind is JSON else _json(value)}'
        for name, one in shape.columns.items()
    ]
    return f"{{{', '.join(pairs)}}}"


_encode_text = json.encoder.encode_basestring_ascii


def _json(value: Any) -> str:
    """The value as JSON. `json.dumps` alone takes three times as long for text and integers, which most values are."""
    value = text_of(value)
    if isinstance(value, str):
        return _encode_text(value)
    return str(value) if type(value) is int else json.dumps(value)


class RowWriter(ABC):
    """Writes the rows of one table."""

    def __init__(self, shape: TableShape, file: BinaryIO) -> None:
        self._shape = shape
        self._file = file

    @abstractmethod
    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes rows."""

    def finish(self) -> None:  # noqa: B027 - only Parquet gathers rows
        """Writes what is gathered. The file stays open."""


class _Csv(RowWriter):
    def __init__(self, shape: TableShape, file: BinaryIO) -> None:
        super().__init__(shape, file)
        self._write_lines([list(shape.columns)])

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._write_lines([[self._cell(row[name]) for name in self._shape.columns] for row in rows])

    @staticmethod
    def _cell(value: Any) -> Any:
        return str(value).lower() if isinstance(value, bool) else text_of(value)

    def _write_lines(self, lines: Sequence[Sequence[Any]]) -> None:
        written = _Lines()
        csv.writer(written, lineterminator=_Lines.END).writerows(lines)
        self._file.write("".join(written).encode())


class _Lines(list[str]):
    """What a writer of CSV writes. It quotes a cell with a character of its own line end, and no other line break."""

    END = "\r\n"

    def write(self, line: str) -> None:
        self.append(f"{line.removesuffix(self.END)}\n")


class _JsonLines(RowWriter):
    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._file.write("".join(f"{json_line(self._shape, row)}\n" for row in rows).encode())


class _Parquet(RowWriter):
    def __init__(self, shape: TableShape, file: BinaryIO) -> None:
        super().__init__(shape, file)
        self._arrow = pyarrow = load_pyarrow()
        types = {
            INTEGER: pyarrow.int64(),
            FLAG: pyarrow.bool_(),
            FLOAT: pyarrow.float64(),
            MOMENT: pyarrow.timestamp("us", tz="UTC"),
        }
        self._schema = pyarrow.schema(
            [
                pyarrow.field(name, types.get(one.kind, pyarrow.string()), nullable=one.is_nullable)
                for name, one in shape.columns.items()
            ]
        )
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._groups: list[Any] = []

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = [
            self._arrow.array(
                [row[one.name] if isinstance(row[one.name], datetime) else text_of(row[one.name]) for row in rows],
                one.type,
            )
            for one in self._schema
        ]
        self._groups.append(self._arrow.record_batch(columns, schema=self._schema))
        held = sum(group.nbytes for group in self._groups)
        if held >= ROW_GROUP_BYTES or sum(group.num_rows for group in self._groups) >= ROW_GROUP_ROWS:
            self._write_group()

    def _write_group(self) -> None:
        if self._groups:
            self._writer.write_table(self._arrow.Table.from_batches(self._groups, self._schema))
            self._groups = []

    def finish(self) -> None:
        self._write_group()
        self._writer.close()


_WRITERS: Mapping[ExportFormat, type[RowWriter]] = {"csv": _Csv, "jsonl": _JsonLines, "parquet": _Parquet}


def load_pyarrow() -> Any:
    """The package pyarrow, which only Parquet needs.

    Raises:
        ConfigurationError: It is not installed.
    """
    try:
        import_module("pyarrow.parquet")
        return import_module("pyarrow")
    except ImportError as error:
        raise ConfigurationError(
            "Parquet needs pyarrow, which is not installed: pip install 'session-lifecycle[parquet]'"
        ) from error


def row_writer(table: ExportTable, file_format: ExportFormat, file: BinaryIO) -> RowWriter:
    """Writes the rows of a table into a file that is open. CSV begins with the names of the columns.

    Raises:
        ConfigurationError: Parquet needs pyarrow, which is not installed.
    """
    return _WRITERS[file_format](SHAPES[table], file)


class _Hashed(io.RawIOBase):
    """A file that is only written to, from its beginning to its end, and its checksum."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._at = 0
        self.checksum = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def write(self, content: Any) -> int:
        written = self._file.write(content)
        self.checksum.update(content)
        self._at += written
        return written


class Export(Protocol):
    """Yields rows: `SessionMaintenanceDb.export`."""

    def __call__(self, table: Any) -> AsyncGenerator[ExportBatch]:
        """The batches of the tables."""
        ...


@dataclass
class _TableFile:
    """The file of one table while it is written."""

    path: Path
    rows: int = 0
    bytes: int = 0
    sha256: str = ""

    def entry(self) -> dict[str, Any]:
        return {"file": self.path.name, "rows": self.rows, "bytes": self.bytes, "sha256": self.sha256}


@dataclass
class _OpenFile:
    """The writer of the table at hand."""

    table: ExportTable
    entry: _TableFile
    file: BinaryIO
    hashed: _Hashed = field(init=False)
    writer: RowWriter = field(init=False)

    def begin(self, file_format: ExportFormat) -> None:
        self.hashed = _Hashed(self.file)
        self.writer = row_writer(self.table, file_format, self.hashed)  # type: ignore[arg-type]  # all that a writer uses

    def finish(self) -> None:
        self.writer.finish()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.entry.bytes, self.entry.sha256 = self.hashed.tell(), self.hashed.checksum.hexdigest()


async def export_to_folder(
    export: Export,
    folder: Path,
    file_format: ExportFormat = "jsonl",
    on_progress: Callable[[str, int], object] = lambda _table, _rows: None,
) -> dict[str, Any]:
    """Writes a complete export: a file for each table, and last the manifest. Returns the manifest.

    An interrupted export has no manifest, and an import refuses it.

    Args:
        export: `db.maintenance.export`.
        folder: The folder; it is made, or is empty.
        file_format: The format of the files. Only `jsonl` and `parquet` can be imported.
        on_progress: Called after each batch with the table and the rows of it so far.

    Raises:
        ConfigurationError: The folder is not empty, or Parquet needs pyarrow, which is not installed.
    """
    if file_format == "parquet":
        load_pyarrow()
    _make_empty(folder)
    entries: dict[ExportTable, _TableFile] = {
        table: _TableFile(folder / f"{table}.{file_format}") for table in EXPORT_TABLES
    }
    async with aclosing(export("all")) as batches:
        following = await anext(batches, None)
        for table, entry in entries.items():
            with entry.path.open("xb") as file:
                opened = _OpenFile(table, entry, file)
                opened.begin(file_format)
                while following is not None and following.table == table:
                    opened.writer.write(following.rows)
                    entry.rows += len(following.rows)
                    on_progress(table, entry.rows)
                    following = await anext(batches, None)
                opened.finish()
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "library": __version__,
        "schema_revision": HEAD,
        "exported_at": text_of(datetime.now(UTC)),
        "file_format": file_format,
        "tables": {table: entry.entry() for table, entry in entries.items()},
    }
    write_whole(folder / MANIFEST, f"{json.dumps(manifest, indent=2)}\n".encode())
    return manifest


def _make_empty(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = next(folder.iterdir(), None) is None
    except OSError as error:
        raise ConfigurationError(f"the folder {folder} cannot be made or read: {error}") from error
    if not is_empty:
        raise ConfigurationError(f"the folder {folder} is not empty: give one that is empty, or that does not exist")


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that is there as a whole, or not at all."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


# Reading a complete export


class ExportFolder:
    """A complete export, to be read.

    Attributes:
        path: The folder.
        file_format: The format of its files.
    """

    def __init__(self, path: Path) -> None:
        """Reads the manifest.

        Raises:
            InvalidValueError: The folder is none of a complete export, or of another version.
        """
        self.path = path
        manifest = self._manifest()
        self.file_format: str = manifest["file_format"]
        self.tables: Mapping[str, Mapping[str, Any]] = manifest["tables"]

    def _manifest(self) -> dict[str, Any]:
        path = self.path / MANIFEST
        try:
            manifest = json.loads(path.read_bytes())
        except FileNotFoundError:
            expected = f"the folder of a complete export, with a {MANIFEST}: an interrupted export has none"
            raise InvalidValueError("path", str(self.path), expected) from None
        except NotADirectoryError:
            raise InvalidValueError("path", str(self.path), "the folder of a complete export, not a file") from None
        except (OSError, ValueError, RecursionError) as error:
            raise InvalidValueError("path", str(path), f"a manifest that can be read ({error})") from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise InvalidValueError("path", str(path), f"a manifest with the format {FORMAT!r}")
        for name, found, known in (
            ("version", manifest.get("version"), [FORMAT_VERSION]),
            ("schema_revision", manifest.get("schema_revision"), [HEAD]),
            ("file_format", manifest.get("file_format"), ["jsonl", "parquet"]),
        ):
            if found not in known:
                raise InvalidValueError(f"manifest.{name}", found, f"one of {', '.join(map(str, known))}")
        entries = manifest.get("tables")
        if not isinstance(entries, dict) or set(entries) != set(EXPORT_TABLES):
            raise InvalidValueError("manifest.tables", entries, f"the tables {', '.join(EXPORT_TABLES)}")
        for table, entry in entries.items():
            _check_entry(table, entry)
        return manifest

    def check(self, table: str) -> None:
        """Compares the file of a table with its checksum.

        Raises:
            InvalidValueError: The file is missing, or differs.
        """
        entry = self.tables[table]
        path = self.path / entry["file"]
        checksum = hashlib.sha256()
        try:
            with path.open("rb") as file:
                while block := file.read(1_000_000):
                    checksum.update(block)
        except OSError as error:
            raise InvalidValueError("path", str(path), f"a file that can be read ({error})") from None
        if checksum.hexdigest() != entry["sha256"]:
            expected = f"the SHA-256 {entry['sha256']} of the manifest: the file was changed after the export"
            raise InvalidValueError(str(path), checksum.hexdigest(), expected)

    def lines(self, table: ExportTable) -> Iterator[Sequence[tuple[int, str]]]:
        """The rows of a table as lines of JSON with their numbers, some at once.

        Raises:
            InvalidValueError: A line is too long, or is no UTF-8.
        """
        path = self.path / self.tables[table]["file"]
        numbered = enumerate(
            self._parquet_lines(table, path) if self.file_format == "parquet" else _json_lines(path), 1
        )
        while batch := list(islice(numbered, LINES_AT_ONCE)):
            yield batch

    @staticmethod
    def _parquet_lines(table: ExportTable, path: Path) -> Iterator[str]:
        shape = SHAPES[table]
        parquet = load_pyarrow().parquet
        with parquet.ParquetFile(path) as file:
            if file.schema_arrow.names != list(shape.columns):
                expected = f"the columns {', '.join(shape.columns)}"
                raise InvalidValueError(f"{path}: columns", ", ".join(file.schema_arrow.names), expected)
            for batch in file.iter_batches(LINES_AT_ONCE):
                for row in batch.to_pylist():
                    yield json_line(shape, row)


def _check_entry(table: str, entry: Any) -> None:
    """Refuses the manifest's entry of a table: its file is in the folder, and has a checksum and a number of rows."""
    if (
        not isinstance(entry, dict)
        or not isinstance(entry.get("rows"), int)
        or not re.fullmatch(r"[0-9a-f]{64}", str(entry.get("sha256")))
        or not re.fullmatch(r"[a-z_]+\.(jsonl|parquet)", str(entry.get("file")))
    ):
        raise InvalidValueError(f"manifest.tables.{table}", entry, "its file, rows and sha256")


def _json_lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number in range(1, 2**63):
            line = file.readline(LONGEST_LINE + 1)
            if not line:
                return
            if len(line) > LONGEST_LINE:
                raise InvalidValueError(f"{path}:{number}", f"{len(line)} bytes", f"at most {LONGEST_LINE:,} bytes")
            try:
                yield line.decode().strip()
            except UnicodeDecodeError as error:
                raise InvalidValueError(f"{path}:{number}", str(error), "UTF-8") from None
