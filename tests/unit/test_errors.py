"""How the errors show a value that was refused."""

from decimal import Decimal
from typing import Any

import pytest

from session_lifecycle import InvalidValueError


class Broken:
    """A value without a repr."""

    def __repr__(self) -> str:
        raise RuntimeError("broken")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Decimal("1.50"), "Decimal('1.50')"),
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
