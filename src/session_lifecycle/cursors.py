"""Cursors: where a page ended, as text that is good for the same question only."""

import base64
import binascii
import hashlib
import json
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import UUID

from session_lifecycle.errors import InvalidValueError
from session_lifecycle.models import SessionListFilters
from session_lifecycle.statements.sessions import DEFAULT_ORDER, ORDER_COLUMNS, Position

# What may differ between two pages of one walk.
_NOT_THE_QUESTION = {"cursor", "limit", "offset", "total"}
_EXPECTED = "the next_cursor of a page under the same filters"


def write_cursor(row: Any, as_of: datetime, filters: SessionListFilters) -> str:
    """The cursor of the page that ends with this row."""
    value = getattr(row, f"record_{_order_name(filters)}")
    parts = [
        _fingerprint(filters),
        as_of.isoformat(),
        str(row.record_user_id),
        row.record_session_id,
        value.isoformat() if isinstance(value, datetime) else None if value is None else str(value),
    ]
    return base64.urlsafe_b64encode(json.dumps(parts, ensure_ascii=False).encode()).decode().rstrip("=")


def read_cursor(cursor: str, filters: SessionListFilters) -> Position:
    """The position a cursor stands for.

    Raises:
        InvalidValueError: It is none of ours, or of another question.
    """
    try:
        parts = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        fingerprint, as_of, user_id, session_id, value = parts
        if fingerprint == _fingerprint(filters) and isinstance(session_id, str):
            return Position(_order_value(value, filters), UUID(user_id), session_id, datetime.fromisoformat(as_of))
    except (binascii.Error, InvalidOperation, UnicodeError, ValueError, TypeError, AttributeError) as error:
        raise InvalidValueError("cursor", cursor, _EXPECTED) from error
    raise InvalidValueError("cursor", cursor, _EXPECTED)


def _order_name(filters: SessionListFilters) -> str:
    return filters.order_by if filters.order_by in ORDER_COLUMNS else DEFAULT_ORDER


def _order_value(text: str | None, filters: SessionListFilters) -> Any:
    if text is None:
        return None
    kind = ORDER_COLUMNS[_order_name(filters)].type.python_type
    return datetime.fromisoformat(text) if kind is datetime else Decimal(text) if kind is Decimal else int(text)


def _fingerprint(filters: SessionListFilters) -> str:
    question = filters.model_dump(mode="json", exclude=_NOT_THE_QUESTION) | {"order_by": _order_name(filters)}
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:16]
