"""What a row of the reference's tables may say."""

from typing import Any

import pytest

from session_lifecycle import InvalidValueError
from session_lifecycle.integrations.reference_rows import reference_row

AT = "2026-02-01T00:00:00Z"
KEY = {"session_id": "s", "user_id": "00000000-0000-0000-0000-000000000001"}
SESSION = {**KEY, "status": "running", "started_at": AT, "last_activity_at": AT, "tokens_in": 1, "cost_usd": 0.5}


def test_each_counted_error_is_an_event_and_their_number_is_bounded() -> None:
    items: list[Any] = list(reference_row({**SESSION, "error_count": 2}, []).items)
    errors = [one.idempotency_key for one in items if getattr(one, "errored", False)]
    assert errors == ["reference:error:1", "reference:error:2"]
    with pytest.raises(InvalidValueError, match="error_count: got 2147483647, expected at most 50,000"):
        reference_row({**SESSION, "error_count": 2**31 - 1}, [])
