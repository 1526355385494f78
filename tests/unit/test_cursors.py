"""A cursor that no page gave is refused by our own error, whatever it holds (finding X48)."""

import base64
import json
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from session_lifecycle import InvalidValueError, SessionListFilters
from session_lifecycle.pages import answered_page, page_rows, read_position
from session_lifecycle.statements.activity.runs import RUN_ORDER
from session_lifecycle.statements.sessions.records import ORDERS
from session_lifecycle.statements.shared.paging import Order, Position

USER = UUID(int=1)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
TIME = NOON.isoformat()
ALL_ORDERS = {**ORDERS, "runs": RUN_ORDER}
VALUES: dict[type, Any] = {datetime: NOON, Decimal: Decimal("1.5"), int: 7, str: "s", UUID: USER}


# Of the bad values below those that a value of this kind may have.
GOOD: dict[type, list[Any]] = {Decimal: [str(2**63)]}


def is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode("utf-8", "surrogatepass")).decode().rstrip("=")


def cursor_of(values: list[Any], order: Order, **question: Any) -> str:
    """The cursor that a page writes whose last row has these values."""
    filters = SessionListFilters(user_id=USER, limit=1, total="none", **question)
    row = SimpleNamespace(**dict(zip(order.position_names, values, strict=True)), place=1, total=None, as_of=NOON)
    cursor = answered_page(page_rows([row, row]), order, filters)[1]["next_cursor"]
    assert isinstance(cursor, str)
    return cursor


def fingerprint() -> str:
    cursor = cursor_of([VALUES[kind] for kind in RUN_ORDER.kinds], RUN_ORDER)
    part = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))[0]
    assert isinstance(part, str)
    return part


FINGERPRINT = fingerprint()


def read(cursor: Any, order: Order) -> Position | None:
    return read_position(SessionListFilters(user_id=USER).model_copy(update={"cursor": cursor}), order)


def refuses(cursor: Any, order: Order) -> bool:
    try:
        read(cursor, order)
    except InvalidValueError as error:
        return error.field == "cursor"
    return False


@pytest.mark.parametrize("order", ALL_ORDERS.values(), ids=ALL_ORDERS)
def test_X48_the_cursor_of_a_page_is_read(order: Order) -> None:
    values = [VALUES[kind] for kind in order.kinds]
    assert read(cursor_of(values, order), order) == Position(values[0], tuple(values[1:]), NOON)
    assert order.has_nulls == (not refuses(cursor_of([None, *values[1:]], order), order))
    assert refuses(cursor_of(values, order, owner_id=USER), order)
    assert refuses(cursor_of([values[0], None, *values[2:]], order), order)


@pytest.mark.parametrize(
    "bad",
    [
        5, 1.5, True, [], {}, [0, [1], 0], ["a"], "", "nan", "NaN", "sNaN", "Infinity", "-inf", "1e999999", "1e-999999",
        "9" * 5_000, "0x10", " 7", "7 ", "+7", "1_0", str(2**63), "2026-01-01T12:00:00", "2026-01-01",
        "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "12:00", "\ud800", "a\x00", "{" + "0" * 32 + "}",
    ],
    ids=lambda bad: ascii(bad)[:20],
)  # fmt: skip
def test_X48_a_value_of_another_kind_is_refused(bad: Any) -> None:
    for order in ALL_ORDERS.values():
        kinds = [datetime, *order.kinds]
        parts = [FINGERPRINT, *(str(VALUES[kind]) if kind is not datetime else TIME for kind in kinds)]
        assert not refuses(encoded(json.dumps(parts, ensure_ascii=False)), order)
        for place, kind in enumerate(kinds, start=1):
            if bad in GOOD.get(kind, []) or (kind is str and is_text(bad)):
                continue
            wrong = [*parts[:place], bad, *parts[place + 1 :]]
            assert refuses(encoded(json.dumps(wrong)), order), kind
            assert refuses(encoded(json.dumps(wrong, ensure_ascii=False)), order), kind


@pytest.mark.parametrize(
    "cursor",
    [
        "", "x", "=" * 5, "é", "\ud800", "a b", encoded("null"), encoded("5"), encoded("{}"), encoded('"text"'),
        encoded("NaN"), encoded("[" * 10_000), encoded("[" * 10_000 + "]" * 10_000), encoded('{"a":' * 5_000),
        encoded("9" * 10_000), encoded(f'["{FINGERPRINT}"]'), encoded("[" + "1," * 1_000 + "1]"), encoded("\ud800"),
        "A" * 10_000_000, 5, None, b"x", ["x"], object(),
    ],
    ids=lambda cursor: f"{type(cursor).__name__}",
)  # fmt: skip
def test_X48_what_is_no_cursor_is_refused(cursor: Any) -> None:
    for order in ALL_ORDERS.values():
        assert (cursor is None and read(cursor, order) is None) or refuses(cursor, order)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
    | st.sampled_from([TIME, "7", "1.5", str(USER), "s"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=500, derandomize=True, database=None)
@given(st.sampled_from(sorted(ALL_ORDERS)), st.lists(JUNK, min_size=2, max_size=5) | JUNK, st.booleans())
def test_X48_junk_is_refused_or_is_a_position(name: str, junk: Any, knows_the_question: bool) -> None:
    order = ALL_ORDERS[name]
    parts = [FINGERPRINT, *junk] if knows_the_question and isinstance(junk, list) else junk
    cursor = encoded(json.dumps(parts))
    if not refuses(cursor, order):
        position = read(cursor, order)
        assert position is not None
        for kind, value in zip(order.kinds, (position.value, *position.key), strict=True):
            assert isinstance(value, kind) or (value is None and order.has_nulls)


@settings(max_examples=300, derandomize=True, database=None)
@given(st.sampled_from(sorted(ALL_ORDERS)), st.binary(max_size=60) | st.text(max_size=60))
def test_X48_bytes_are_refused(name: str, junk: bytes | str) -> None:
    cursor = base64.urlsafe_b64encode(junk).decode() if isinstance(junk, bytes) else junk
    assert refuses(cursor, ALL_ORDERS[name])
