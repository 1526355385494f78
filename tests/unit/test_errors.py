"""How the errors show a value that was refused, and a cause."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from session_lifecycle import InvalidValueError
from session_lifecycle.errors import described
from session_lifecycle.models import SessionStatus


class Broken:
    """A value without a repr."""

    def __repr__(self) -> str:
        raise RuntimeError("broken")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Decimal("1.50"), "1.50"),
        (datetime(2030, 1, 2, 3, tzinfo=UTC), "2030-01-02T03:00:00+00:00"),
        (datetime(2030, 1, 2, 3), "2030-01-02T03:00:00"),  # noqa: DTZ001 - it is what is refused
        (date(2030, 1, 2), "2030-01-02"),
        (timedelta(days=-1), "-1 day, 0:00:00"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (SessionStatus.FAILED, "'failed'"),
        ("a text", "'a text'"),
        ("ä\n", r"'\xe4\n'"),
        (None, "None"),
        ("a" * 100, f"'{'a' * 79}… (102 characters)"),
        (Broken(), "a Broken whose repr raises RuntimeError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_refusal_shows_the_value(value: Any, shown: str) -> None:
    assert str(InvalidValueError("field", value, "something else")) == f"field: got {shown}, expected something else"


@pytest.mark.parametrize(
    ("cause", "text"),
    [(TimeoutError(), "TimeoutError"), (OSError(2, "gone"), "FileNotFoundError: [Errno 2] gone")],
)
def test_a_cause_without_text_is_its_class_alone(cause: Exception, text: str) -> None:
    assert described(cause) == text
