"""Pages as a caller gets them, and cursors.

A cursor is a text that says where a page ended. It is valid for the same question only, so it carries a fingerprint of
the question.
"""

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
from session_lifecycle.statements.shared.paging import Order, Position

_EXPECTED = "the next_cursor of a page under the same filters"
_READERS: dict[type, Callable[[Any], Any]] = {
    datetime: datetime.fromisoformat,
    Decimal: Decimal,
    UUID: UUID,
    int: int,
    str: str,
}


def answered_page(rows: Sequence[Any], order: Order, filters: PageFilters) -> tuple[Sequence[Any], dict[str, Any]]:
    """The rows of a page, and the other fields of a `Page`.

    Args:
        rows: The rows of a statement that `beside_total` built.
        order: The order of the rows.
        filters: The filters of the call.
    """
    # An empty page is one row without a place: it has the total only.
    placed = [row for row in rows if row.place is not None]
    page, has_more = placed[: filters.limit], len(placed) > filters.limit
    total = rows[0].total
    exceeds_bound = filters.total == "bounded" and total > TOTAL_BOUND
    return page, {
        "total": TOTAL_BOUND if exceeds_bound else total,
        "total_is_lower_bound": exceeds_bound,
        "limit": filters.limit,
        "offset": filters.offset,
        "has_more": has_more,
        "next_cursor": _write_cursor(page[-1], order, filters) if has_more else None,
    }


def read_position(filters: PageFilters, order: Order) -> Position | None:
    """The position where the previous page ended, from the cursor; None for the first page.

    Raises:
        InvalidValueError: The cursor is malformed, or belongs to another question.
    """
    if filters.cursor is None:
        return None
    try:
        encoded = filters.cursor + "=" * (-len(filters.cursor) % 4)
        fingerprint, as_of, *texts = json.loads(base64.b64decode(encoded, altchars=b"-_", validate=True))
        if fingerprint == _question_fingerprint(filters):
            value, *key = (
                None if text is None else _READERS[kind](text) for text, kind in zip(texts, order.kinds, strict=True)
            )
            return Position(value, tuple(key), datetime.fromisoformat(as_of))
    except (binascii.Error, InvalidOperation, UnicodeError, ValueError, TypeError, AttributeError) as error:
        raise InvalidValueError("cursor", filters.cursor, _EXPECTED) from error
    raise InvalidValueError("cursor", filters.cursor, _EXPECTED)


def _write_cursor(row: Any, order: Order, filters: PageFilters) -> str:
    values = [getattr(row, name) for name in order.position_names]
    parts = [_question_fingerprint(filters), *map(_cursor_text, [row.as_of, *values])]
    return base64.urlsafe_b64encode(json.dumps(parts, ensure_ascii=False).encode()).decode().rstrip("=")


def _cursor_text(value: Any) -> str | None:
    if value is None:
        return None
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _question_fingerprint(filters: PageFilters) -> str:
    return hashlib.sha256(json.dumps(filters.question(), sort_keys=True).encode()).hexdigest()[:16]
