"""How the errors show a value that was refused."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from session_lifecycle import InvalidValueError


class Broken:
    """A value without a repr."""

    def __repr__(self) -> str:
        raise RuntimeError("broken")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (datetime(2027, 1, 2, 3, tzinfo=UTC), "2027-01-02 03:00:00+00:00"),
        (datetime(2027, 1, 2, tzinfo=UTC).replace(tzinfo=None), "2027-01-02 00:00:00"),
        (timedelta(hours=-1), "-1 day, 23:00:00"),
        (Decimal("1.50"), "1.50"),
        (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        ("a text", "'a text'"),
        ("ä\n", r"'\xe4\n'"),
        (None, "None"),
        ([Decimal(1)], "[Decimal('1')]"),
        ("a" * 100, f"'{'a' * 79}… (102 characters)"),
        (Broken(), "a Broken whose repr raises RuntimeError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_refusal_shows_the_value(value: Any, shown: str) -> None:
    assert str(InvalidValueError("field", value, "something else")) == f"field: got {shown}, expected something else"
