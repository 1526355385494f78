"""Rows of files: JSON Lines, a JSON document, or CSV whose first line names the columns, each of which may be
compressed; or Parquet.

One row is held at a time, but for a JSON document, and the group of rows that Parquet has compressed together.
"""

import csv
import gzip
import json
import os
import zlib
from collections.abc import Iterator
from datetime import date, time
from pathlib import Path
from typing import Any, NamedTuple, TextIO
from uuid import UUID

from session_lifecycle.errors import ConfigurationError, InvalidValueError

PARQUET = ".parquet"
SUFFIXES = (".csv", ".json", ".jsonl", ".ndjson", PARQUET)
COMPRESSED = ".gz"
"""What follows the suffix of a file that gzip has compressed."""
MOST_ARRAY_BYTES = 1_000_000_000
"""The largest JSON document that is read: an array is held as a whole."""
_LONGEST_CELL = 64_000_000
_ROWS_AT_ONCE = 1_000


class FileRow(NamedTuple):
    """A row of a file."""

    where: str
    """The file and the number of the line, or of the row in an array."""
    fields: dict[str, Any]
    """The fields; in CSV all are texts."""
    error: InvalidValueError | None = None
    """Why the line is no row; its fields are empty then."""


def files_below(place: Path) -> Iterator[Path]:
    """The file itself, or the files of a folder and below. What is not there or may not be read is left out."""
    if os.path.isfile(place):  # noqa: PTH113 - `Path.is_file` raises where its folder may not be read
        yield place
    for folder, _, names in os.walk(place):
        for name in names:
            yield Path(folder, name)


def files_in(path: Path) -> list[Path]:
    """The files at a path, in the order of their names: the file itself, or the files of a folder and below.

    Raises:
        InvalidValueError: There are none.
    """
    found = sorted(one for one in files_below(path) if one == path or _kind(one) in SUFFIXES)
    if not found:
        expected = f"a file, or a folder with files named *{', *'.join(SUFFIXES)}, or so with {COMPRESSED} at the end"
        raise InvalidValueError("path", str(path), expected)
    return found


def _kind(path: Path) -> str:
    """The suffix that says what is in the file, whether it is compressed or not."""
    name = path.name.lower()
    return Path(name.removesuffix(COMPRESSED)).suffix


def rows_of_file(path: Path) -> Iterator[FileRow]:
    """The rows of a file.

    Raises:
        InvalidValueError: The file is too large for a JSON document, is no UTF-8, or cannot be decompressed.
        ConfigurationError: The file is in Parquet, and pyarrow is not installed.
    """
    if path.suffix.lower() == PARQUET:
        yield from _parquet_rows(path)
        return
    try:
        with _opened(path) as file:
            if _kind(path) == ".csv":
                yield from _csv_rows(path, file)
            elif _is_document(path, file):
                yield from _document_rows(path, file)
            else:
                yield from _json_lines(path, file)
    except UnicodeDecodeError as error:
        raise InvalidValueError(str(path), str(error), "a file in UTF-8") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidValueError(str(path), str(error), "a complete file of gzip") from None
    except OSError as error:
        raise InvalidValueError(str(path), error.strerror, "a file that can be read") from None


def _opened(path: Path) -> TextIO:
    if path.suffix.lower() == COMPRESSED:
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _is_document(path: Path, file: TextIO) -> bool:
    """Whether the file is one JSON document, and not JSON Lines: an array, or an object over several lines."""
    while (character := file.read(1)) and character.isspace():
        pass
    is_document = character == "[" or (
        # The first line of JSON Lines is an object by itself.
        _kind(path) == ".json" and character == "{" and not _is_json(character + file.readline())
    )
    file.seek(0)
    return is_document


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _csv_rows(path: Path, file: TextIO) -> Iterator[FileRow]:
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.DictReader(file)
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row:
                error = InvalidValueError("line", f"{len(row)} columns", "as many cells as the first line has names")
                yield FileRow(where, {}, error)
            else:
                yield FileRow(where, dict(row))
    except csv.Error as error:
        raise InvalidValueError(f"{path}:{reader.line_num}", str(error), "a line of CSV") from None


def _document_rows(path: Path, file: TextIO) -> Iterator[FileRow]:
    expected = f"a JSON document of at most {MOST_ARRAY_BYTES:,} bytes; JSON Lines may have any size"
    if (size := path.stat().st_size) > MOST_ARRAY_BYTES:
        raise InvalidValueError(str(path), f"{size:,} bytes", expected)
    text = file.read(MOST_ARRAY_BYTES + 1)
    if len(text) > MOST_ARRAY_BYTES:  # a compressed file may be many times as large
        raise InvalidValueError(str(path), f"more than {MOST_ARRAY_BYTES:,} characters", expected)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidValueError(str(path), str(error), "a JSON array of objects, an object, or JSON Lines") from None
    for number, row in enumerate(document if isinstance(document, list) else [document], 1):
        yield from _object_rows(f"{path}:{number}", row)


def _json_lines(path: Path, file: TextIO) -> Iterator[FileRow]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            yield FileRow(where, {}, InvalidValueError("line", f"{len(line.strip())} characters", "a JSON object"))
            continue
        yield from _object_rows(where, row)


def _object_rows(where: str, row: Any) -> Iterator[FileRow]:
    """The row; or where an API answered with a page, which has its rows in `data`, those."""
    if not isinstance(row, dict):
        yield FileRow(where, {}, InvalidValueError("line", f"a {type(row).__name__}", "a JSON object"))
    elif isinstance(page := row.get("data"), list):
        for number, one in enumerate(page, 1):
            yield from _object_rows(f"{where}, data {number}", one)
    else:
        yield FileRow(where, row)


def _parquet_rows(path: Path) -> Iterator[FileRow]:
    try:
        from pyarrow import ArrowException, Table, parquet, schema
    except ImportError as error:
        raise ConfigurationError(
            "Parquet needs pyarrow, which is not installed: pip install 'session-lifecycle[parquet]'"
        ) from error

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = schema([_in_microseconds(column) for column in file.schema_arrow])
            for batch in file.iter_batches(_ROWS_AT_ONCE):
                for row in Table.from_batches([batch]).cast(columns, safe=False).to_pylist():
                    number += 1
                    yield FileRow(f"{path}:{number}", {name: _as_in_json(value) for name, value in row.items()})
    except UnicodeDecodeError as error:
        raise InvalidValueError(f"{path}:{number}", str(error), "texts in UTF-8") from None
    except OSError as error:
        raise InvalidValueError(str(path), error.strerror or str(error), "a file that can be read") from None
    except ArrowException as error:
        raise InvalidValueError(str(path), str(error), "a complete file of Parquet") from None
    except (OverflowError, ValueError) as error:
        # A time of a year that Python does not have, or nanoseconds inside a list or a map.
        raise InvalidValueError(f"{path}:{number}", str(error), "values that Python can hold") from None


def _in_microseconds(column: Any) -> Any:
    """The column of Arrow, without nanoseconds, which Python does not have."""
    import pyarrow as pa

    kind = column.type
    if getattr(kind, "unit", None) != "ns":
        return column
    if pa.types.is_timestamp(kind):
        return column.with_type(pa.timestamp("us", kind.tz))
    return column.with_type(pa.duration("us") if pa.types.is_duration(kind) else pa.time64("us"))


def _as_in_json(value: Any) -> Any:
    """The value as other files have it. ClickHouse writes texts as bytes; a map is a list of pairs."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, dict):
        return {name: _as_in_json(one) for name, one in value.items()}
    if isinstance(value, list):
        pairs = [one for one in value if isinstance(one, tuple)]
        if pairs:
            return {_as_in_json(name): _as_in_json(one) for name, one in pairs}
        return [_as_in_json(one) for one in value]
    return value.isoformat() if isinstance(value, date | time) else value
