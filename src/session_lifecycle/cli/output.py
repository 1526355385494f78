"""The output of commands: JSON, reports, messages. The tables are in `tables`.

A name in the database is anybody's text. It is printed as `rich.text.Text`, which is not read as markup, and without
control characters, which a terminal would obey.

Every command loads this module before it knows its options, so nothing here loads the library at import.
"""

import json
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console, RenderableType

    from session_lifecycle.models import PruneReport, RollUpReport

MOST_NAMED = 20
"""The most refused rows or lines that are named."""
UNBOUNDED_WIDTH = 100_000
"""The columns of an output that is no terminal: a table takes what it needs, and every row is one line."""


def shown(value: object) -> str:
    """The text of a value on one line, with an escape in place of each character that cannot be seen."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(value)
    )


def print_json(answer: Any) -> None:
    """Prints values, or a structure of them, as one line of JSON in ASCII. Decimals become text, so none is rounded."""
    from pydantic_core import to_jsonable_python

    line = json.dumps(to_jsonable_python(answer)).replace("\x7f", "\\u007f")
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def print_tables(*tables: "RenderableType") -> None:
    """Prints the tables on standard output."""
    console = standard_output()
    for table in tables:
        console.print(table)


def print_progress(report: "PruneReport | RollUpReport") -> None:
    """Prints how many sessions a job has processed so far, on standard error."""
    print_note(f"{report.sessions} sessions so far")


@contextmanager
def at_work(doing: str) -> Generator[None]:
    """Shows on a terminal that the command is at work, for a job that tells no progress."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status(doing) if console.is_terminal else nullcontext():
        yield


@contextmanager
def row_progress(doing: str) -> Generator[Callable[[str, int], None]]:
    """Shows on a terminal how far a job is; elsewhere a line for each ten thousand rows."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        told: dict[str, int] = {}

        def tell(what: str, rows: int) -> None:
            if rows // 10_000 > told.get(what, 0):
                told[what] = rows // 10_000
                print_note(f"{doing}: {what}: {rows} rows so far")

        yield tell
        return
    with console.status(doing) as status:
        yield lambda what, rows: status.update(f"{doing}: {what}: {rows} rows")


def print_report(heading: str, report: "BaseModel", *, as_json: bool = False) -> None:
    """Prints the heading and the report's fields on one line of standard output, without fields that are None.

    Fields that list the parts of a job are left out: they tell of its last part only.

    Args:
        heading: What was done.
        report: The report.
        as_json: Print the fields as JSON, those that are None too, and no heading.
    """
    fields = {name: value for name, value in report if not isinstance(value, tuple)}
    if as_json:
        print_json(fields)
    else:
        said = ", ".join(f"{name} {_in_words(value)}" for name, value in fields.items() if value is not None)
        print_line(f"{heading}: {said}")


def utc(time: datetime) -> str:
    """The time as tables and reports show it, in UTC to the second."""
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%S}Z"


def _in_words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return utc(value) if isinstance(value, datetime) else str(value)


def print_counts(heading: str, report: dict[str, Any], *, as_json: bool, more: dict[str, Any] | None = None) -> None:
    """Prints the heading and the counts of a transfer on one line, or the counts as JSON with `more`."""
    if as_json:
        print_json({**report, **(more or {})})
        return
    rows = report.get("rows")
    if isinstance(rows, dict):
        report = {**report, "rows": " ".join(f"{table}={number}" for table, number in rows.items())}
    print_line(f"{heading}: " + ", ".join(f"{name} {value}" for name, value in report.items()))


class FirstNamed:
    """Names the first of what a job refuses, on standard error."""

    def __init__(self, what: str) -> None:
        """Nothing is named yet.

        Args:
            what: What is refused, as `rows`.
        """
        self._what = what
        self._count = 0

    def add(self, one: object) -> None:
        """Names it, unless `MOST_NAMED` are named already."""
        self._count += 1
        if self._count <= MOST_NAMED:
            print_note(str(one))

    def finish(self) -> None:
        """Says how many more there were."""
        if self._count > MOST_NAMED:
            print_note(f"and {self._count - MOST_NAMED} more {self._what}")


def print_line(line: str) -> None:
    """Prints a line on standard output."""
    _print(line)


def print_note(line: str) -> None:
    """Prints a line on standard error."""
    _print(line, stderr=True)


def print_error(message: str) -> None:
    """Prints an error message on standard error. It may have several lines, as the log of a server has."""
    for line in f"error: {message}".splitlines():
        _print(line, style="red", stderr=True)


def _print(line: str, style: str = "", *, stderr: bool = False) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=stderr, soft_wrap=True, highlight=False).print(Text(shown(line), style))


def standard_output() -> "Console":
    """A console on standard output. Without a terminal it is as wide as the widest table."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=UNBOUNDED_WIDTH)
