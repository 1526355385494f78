"""What a row of the reference's tables may say."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from session_lifecycle import InvalidValueError
from session_lifecycle.integrations.reference_rows import MOST_ERRORS, reference_row

AT = datetime(2026, 2, 1, tzinfo=UTC)


def session(**fields: Any) -> dict[str, Any]:
    known = {"session_id": "s", "user_id": UUID(int=1), "status": "running", "started_at": AT, "last_activity_at": AT}
    return {**known, "tokens_in": 1, "tokens_out": 2, "cost_usd": 0.5, "error_count": 0, **fields}


def test_a_count_of_errors_is_as_many_events_and_bounded() -> None:
    two = reference_row(session(error_count=2), [])
    assert [item.idempotency_key for item in two.items if getattr(item, "errored", False)] == [  # type: ignore[union-attr]
        "reference:error:1", "reference:error:2",
    ]  # fmt: skip
    with pytest.raises(InvalidValueError, match="error_count: got 2147483647, expected at most 50,000"):
        reference_row(session(error_count=2**31 - 1), [])
    assert MOST_ERRORS == 50_000
