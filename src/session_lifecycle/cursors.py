"""Pages as they are answered, and cursors: where a page ended, as text that is good for the same question only."""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import UUID

from session_lifecycle.errors import InvalidValueError
from session_lifecycle.models import TOTAL_BOUND
from session_lifecycle.models.pages import PageFilters
from session_lifecycle.statements.pages import Order, Position

_EXPECTED = "the next_cursor of a page under the same filters"
_READ: dict[type, Callable[[Any], Any]] = {
    datetime: datetime.fromisoformat,
    Decimal: Decimal,
    UUID: UUID,
    int: int,
    str: str,
}


def answered_page(rows: Sequence[Any], order: Order, filters: PageFilters) -> tuple[Sequence[Any], dict[str, Any]]:
    """The rows of a page, and what a `Page` says beside them.

    Args:
        rows: What the statement gave, as `statements.pages` makes it.
        order: What they are ordered by.
        filters: What was asked.
    """
    found = [row for row in rows if row.place is not None]
    page, has_more = found[: filters.limit], len(found) > filters.limit
    total = rows[0].total
    is_bound = filters.total == "bounded" and total > TOTAL_BOUND
    return page, {
        "total": TOTAL_BOUND if is_bound else total,
        "total_is_lower_bound": is_bound,
        "limit": filters.limit,
        "offset": filters.offset,
        "has_more": has_more,
        "next_cursor": _write_cursor(page[-1], order, filters) if has_more else None,
    }


def read_position(filters: PageFilters, order: Order) -> Position | None:
    """Where the page before ended; None for the first page.

    Raises:
        InvalidValueError: The cursor is none of ours, or of another question.
    """
    if filters.cursor is None:
        return None
    try:
        encoded = filters.cursor + "=" * (-len(filters.cursor) % 4)
        fingerprint, as_of, *texts = json.loads(base64.b64decode(encoded, altchars=b"-_", validate=True))
        if fingerprint == _fingerprint(filters):
            value, *key = (
                None if text is None else _READ[kind](text) for text, kind in zip(texts, order.kinds, strict=True)
            )
            return Position(value, tuple(key), datetime.fromisoformat(as_of))
    except (binascii.Error, InvalidOperation, UnicodeError, ValueError, TypeError, AttributeError) as error:
        raise InvalidValueError("cursor", filters.cursor, _EXPECTED) from error
    raise InvalidValueError("cursor", filters.cursor, _EXPECTED)


def _write_cursor(row: Any, order: Order, filters: PageFilters) -> str:
    values = [getattr(row, name) for name in order.position_names]
    parts = [_fingerprint(filters), *map(_written, [row.as_of, *values])]
    return base64.urlsafe_b64encode(json.dumps(parts, ensure_ascii=False).encode()).decode().rstrip("=")


def _written(value: Any) -> str | None:
    if value is None:
        return None
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _fingerprint(filters: PageFilters) -> str:
    return hashlib.sha256(json.dumps(filters.question(), sort_keys=True).encode()).hexdigest()[:16]
