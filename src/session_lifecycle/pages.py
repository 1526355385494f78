"""Pages as a caller gets them, and cursors.

A cursor is a text that says where a page ended. It is valid for the same question only, so it carries a fingerprint of
the question.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from session_lifecycle.errors import InvalidValueError
from session_lifecycle.models import TOTAL_BOUND
from session_lifecycle.models.fields import storable
from session_lifecycle.models.pages import PageFilters
from session_lifecycle.statements.shared.paging import Position

_EXPECTED = "the next_cursor of a page under the same filters"
# A cursor holds two ids at most, and JSON and base64 make a text eight times as long at most.
_MOST_CHARACTERS = 32_768
# Further digits than any figure that we store or add up has.
_MOST_DIGITS = 1_000


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not text")
    return storable(value)


def _time(value: Any) -> datetime:
    time = datetime.fromisoformat(_text(value))
    if time.utcoffset() is None:
        raise ValueError("no time zone")
    time.astimezone(UTC)  # raises OverflowError beyond the years of UTC, where the driver would
    return time


def _figure(value: Any) -> Decimal:
    figure = Decimal(_text(value))
    if not figure.is_finite() or abs(figure.adjusted()) > _MOST_DIGITS or len(figure.as_tuple().digits) > _MOST_DIGITS:
        raise ValueError("not a figure")
    return figure


def _count(value: Any) -> int:
    count = int(_text(value))
    if not -(2**63) <= count < 2**63:
        raise ValueError("not a count")
    return count


_READERS: dict[type, Callable[[Any], Any]] = {
    datetime: _time,
    Decimal: _figure,
    UUID: lambda value: UUID(_text(value)),
    int: _count,
    str: _text,
}


class PageOrder(Protocol):
    """What a cursor must know of an order. `Order` has it."""

    @property
    def has_nulls(self) -> bool:
        """Whether the first value of a position may be null."""
        ...

    @property
    def kinds(self) -> tuple[type, ...]:
        """The Python types of a position's values."""
        ...

    @property
    def position_names(self) -> tuple[str, ...]:
        """The names of a position's values in a row."""
        ...


class PageRows(NamedTuple):
    """The rows of a page and one row more, and the number of rows on all pages."""

    rows: Sequence[Any]
    total: int | None
    """None where it was not counted; more than `TOTAL_BOUND` where a bounded count stopped."""
    as_of: datetime
    """The clock of the statement."""


def page_rows(rows: Sequence[Any]) -> PageRows:
    """The rows of a page, from those of a statement that `beside_total` built."""
    # An empty page is one row without a place: it has the total only.
    return PageRows([row for row in rows if row.place is not None], rows[0].total, rows[0].as_of)


def answered_page(found: PageRows, order: PageOrder, filters: PageFilters) -> tuple[Sequence[Any], dict[str, Any]]:
    """The rows of a page, and the other fields of a `Page`.

    Args:
        found: The rows and their total.
        order: The order of the rows.
        filters: The filters of the call.
    """
    page, has_more = found.rows[: filters.limit], len(found.rows) > filters.limit
    total = found.total
    exceeds_bound = filters.total == "bounded" and total is not None and total > TOTAL_BOUND
    return page, {
        "total": TOTAL_BOUND if exceeds_bound else total,
        "total_is_lower_bound": exceeds_bound,
        "limit": filters.limit,
        "offset": filters.offset,
        "has_more": has_more,
        "next_cursor": _cursor_after(page[-1], found.as_of, order, filters) if has_more else None,
    }


def whole_answer(rows: Sequence[Any], field: str, given: Any, narrower: str, most: int) -> Sequence[Any]:
    """The rows of an answer that takes no limit, from a statement with a limit of one row more than `most`.

    Args:
        rows: The rows that the statement gave.
        field: The argument that can make the answer smaller.
        given: Its value.
        narrower: What it should be instead.
        most: The most rows of the answer.

    Raises:
        InvalidValueError: There are more rows than one answer may have.
    """
    if len(rows) > most:
        raise InvalidValueError(field, given, f"{narrower}: at most {most:,} rows in one answer")
    return rows


def read_position(filters: PageFilters, order: PageOrder) -> Position | None:
    """The position where the previous page ended, from the cursor; None for the first page.

    Raises:
        InvalidValueError: The cursor is malformed, or belongs to another question.
    """
    if filters.cursor is None:
        return None
    fingerprint = _question_fingerprint(filters)
    try:
        position = _position(filters.cursor, order, fingerprint)
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise InvalidValueError("cursor", filters.cursor, _EXPECTED) from error
    # Only what `_cursor` writes is a cursor, so nobody has to think of all other ways to write its values.
    if _cursor(fingerprint, position) != filters.cursor:
        raise InvalidValueError("cursor", filters.cursor, _EXPECTED)
    return position


def _position(cursor: str, order: PageOrder, fingerprint: str) -> Position:
    """The position in a cursor. Raises one of the errors that `read_position` expects."""
    if len(_text(cursor)) > _MOST_CHARACTERS:
        raise ValueError("too long")
    decoded = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    of_question, as_of, *texts = json.loads(decoded)
    if of_question != fingerprint:
        raise ValueError("of another question")
    may_be_null = [order.has_nulls, *(False for _ in order.kinds[1:])]
    value, *key = (
        None if text is None and nullable else _READERS[kind](text)
        for text, kind, nullable in zip(texts, order.kinds, may_be_null, strict=True)
    )
    return Position(value, tuple(key), _time(as_of))


def _cursor(fingerprint: str, position: Position) -> str:
    parts = [fingerprint, *map(_cursor_text, [position.as_of, position.value, *position.key])]
    return base64.urlsafe_b64encode(json.dumps(parts, ensure_ascii=False).encode()).decode().rstrip("=")


def _cursor_after(row: Any, as_of: datetime, order: PageOrder, filters: PageFilters) -> str:
    """The cursor of the page that follows this row."""
    value, *key = (getattr(row, name) for name in order.position_names)
    return _cursor(_question_fingerprint(filters), Position(value, tuple(key), as_of))


def _cursor_text(value: Any) -> str | None:
    if value is None:
        return None
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _question_fingerprint(filters: PageFilters) -> str:
    return hashlib.sha256(json.dumps(filters.question(), sort_keys=True).encode()).hexdigest()[:16]
