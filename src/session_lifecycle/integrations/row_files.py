"""Rows of files: JSON Lines, a JSON array, or CSV whose first line names the columns. One row is held at a time."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from session_lifecycle.errors import InvalidValueError

SUFFIXES = (".csv", ".json", ".jsonl", ".ndjson")
MOST_ARRAY_BYTES = 1_000_000_000
"""The largest JSON array that is read: an array is held as a whole."""
_LONGEST_CELL = 64_000_000


class FileRow(NamedTuple):
    """A row of a file."""

    where: str
    """The file and the number of the line, or of the row in an array."""
    fields: dict[str, Any]
    """The fields; in CSV all are texts."""
    error: InvalidValueError | None = None
    """Why the line is no row; its fields are empty then."""


def files_in(path: Path) -> list[Path]:
    """The files at a path, in the order of their names: the file itself, or the files of a folder and below.

    Raises:
        InvalidValueError: There are none.
    """
    found = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES)
    if not found:
        raise InvalidValueError("path", str(path), f"a file, or a folder with files named *{', *'.join(SUFFIXES)}")
    return found


def rows_of_file(path: Path) -> Iterator[FileRow]:
    """The rows of a file.

    Raises:
        InvalidValueError: The file is too large for an array, or is no UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                yield from _csv_rows(path, file)
            elif _first_character(file) == "[":
                yield from _array_rows(path, file)
            else:
                yield from _json_lines(path, file)
    except UnicodeDecodeError as error:
        raise InvalidValueError(str(path), str(error), "a file in UTF-8") from None
    except OSError as error:
        raise InvalidValueError(str(path), error.strerror, "a file that can be read") from None


def _first_character(file: TextIO) -> str:
    while (character := file.read(1)) and character.isspace():
        pass
    file.seek(0)
    return character


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


def _array_rows(path: Path, file: TextIO) -> Iterator[FileRow]:
    size = path.stat().st_size
    if size > MOST_ARRAY_BYTES:
        expected = f"a JSON array of at most {MOST_ARRAY_BYTES:,} bytes; JSON Lines may have any size"
        raise InvalidValueError(str(path), f"{size:,} bytes", expected)
    try:
        rows = json.load(file)
    except (ValueError, RecursionError) as error:
        raise InvalidValueError(str(path), str(error), "a JSON array of objects") from None
    for number, row in enumerate(rows, 1):
        yield _object_row(f"{path}:{number}", row)


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
        yield _object_row(where, row)


def _object_row(where: str, row: Any) -> FileRow:
    if isinstance(row, dict):
        return FileRow(where, row)
    return FileRow(where, {}, InvalidValueError("line", f"a {type(row).__name__}", "a JSON object"))
