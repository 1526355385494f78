"""Any argument is either written or refused with the field's name; nothing in between."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from session_lifecycle import InvalidValueError, SessionDatabase, SessionListFilters, UsageEvent
from session_lifecycle.models.usage import RareUse
from session_lifecycle.testing import TemplateServer
from support.stored_rows import counts

A = UUID(int=1)
NASTY: list[Any] = [
    None, True, -1, 0, 1, 2**63, 10**400, 1.5, float("nan"), float("inf"), -0.0, 5e-324, 1e-31, 1e300,
    Decimal("NaN"), Decimal("sNaN"), Decimal("-0"), Decimal("1e-400"), Decimal("1e999999"), Decimal("Infinity"),
    "", " ", "\x00", "\ud800", "x" * 600, "\U0001d54f" * 200, "0.1", b"bytes",
    A, str(A), [], {}, object(), {"a": float("nan")},
    datetime.fromisoformat("2026-01-01"), datetime.fromisoformat("0001-01-01"),
    datetime.fromisoformat("9999-12-31T23:59:59.999999"), datetime.max.replace(tzinfo=UTC),
    datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
    datetime.max.replace(tzinfo=timezone(-timedelta(hours=12))),
    datetime.min.replace(tzinfo=UTC), datetime.now(UTC) + timedelta(hours=1),
]  # fmt: skip
WORDS = ["standard", "batch", "plan", "embedding", "PLAN", "free"]
SOME = (
    st.sampled_from(NASTY) | st.sampled_from(WORDS) | st.text(max_size=20) | st.integers() | st.floats() | st.decimals()
)
CALLS: dict[str, tuple[str, ...]] = {
    "ensure_and_touch_session": ("session_id", "user_id", "dataset_id", "agent_name", "at"),
    "accumulate_usage": (
        "session_id", "user_id", "model", "tokens_in", "tokens_out", "cost_usd", "errored", "provider",
        "cache_read_tokens", "cache_write_tokens", "reasoning_tokens", "idempotency_key", "at",
        *RareUse.__annotations__,
    ),
    "end_session": ("session_id", "user_id", "status", "at"),
    "reopen_session": ("session_id", "user_id", "at"),
    "update_session": ("session_id", "user_id", "title", "metadata", "tags", "dataset_id", "parent_session_id"),
    "annotate_session": ("session_id", "user_id", "name", "score", "label", "comment", "annotator", "at"),
    "record": ("items",),
    "get_session_row": ("session_id", "viewer", "permitted_dataset_ids", "prefer_other_owner", "owner_id"),
    "list_session_rows": ("filters",),
    "aggregate_stats": ("viewer", "permitted_dataset_ids", "since", "until"),
    "cost_by_model": ("viewer", "permitted_dataset_ids", "since", "until"),
}  # fmt: skip
GOOD: dict[str, Any] = {"session_id": "s", "name": "n", "user_id": A, "viewer": A, "status": "completed"}
READS = {"get_session_row", "list_session_rows", "aggregate_stats", "cost_by_model"}


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    name = draw(st.sampled_from(sorted(CALLS)))
    arguments = {field: GOOD[field] for field in CALLS[name] if field in GOOD}
    for field in draw(st.lists(st.sampled_from(CALLS[name]), min_size=1, max_size=3)):
        arguments[field] = draw(SOME)
    if name == "record" and draw(st.booleans()):
        arguments["items"] = [UsageEvent(session_id="s", user_id=A, model="m"), draw(SOME)]
    return name, {"items": [], "filters": None} | arguments if name in {"record", "list_session_rows"} else arguments


def test_bad_input_is_refused_by_name_and_writes_nothing(session_template_server: TemplateServer) -> None:
    database = "session_lifecycle_fuzz"
    with asyncio.Runner() as runner:
        runner.run(session_template_server.drop(database))
        runner.run(session_template_server.clone(database))
        db = SessionDatabase.connect(session_template_server.url_of(database))
        before = runner.run(counts(db))

        @settings(max_examples=300, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
        @given(calls())
        def fuzz(call: tuple[str, dict[str, Any]]) -> None:
            name, arguments = call
            arguments = {
                key: value for key, value in arguments.items() if not (key == "filters" and name != "list_session_rows")
            }
            arguments = {key: value for key, value in arguments.items() if not (key == "items" and name != "record")}
            nonlocal before
            refused: InvalidValueError | None = None
            try:
                runner.run(getattr(db.lifecycle, name)(**arguments))
            except InvalidValueError as error:
                refused = error
            assert refused is None or refused.field.split(".")[0] in {*CALLS[name], "viewer"}, refused
            after = runner.run(counts(db))
            if refused is not None or name in READS:
                assert after == before
            before = after

        try:
            fuzz()
            assert runner.run(db.lifecycle.ensure_and_touch_session("after the bad calls", A)) == "created"
        finally:
            runner.run(db.close())
            runner.run(session_template_server.drop(database))


@settings(max_examples=200, derandomize=True, database=None)
@given(field=st.sampled_from(sorted(set(SessionListFilters.model_fields) - {"viewer"})), bad=SOME)
def test_filters_are_built_or_refused_by_pydantic(field: str, bad: Any) -> None:
    refused: ValidationError | None = None
    try:
        SessionListFilters(**{"user_id": A, field: bad})
    except ValidationError as error:
        refused = error
    assert refused is None or field in str(refused)


@pytest.mark.parametrize("cursor", ["", "x", "W10", "e30", "bnVsbA", "WzEsMiwzLDQsNV0", "é", "\ud800", "=" * 5])
async def test_a_cursor_that_no_page_gave_is_refused(session_database: SessionDatabase, cursor: str) -> None:
    with pytest.raises((InvalidValueError, ValidationError), match="cursor"):
        await session_database.lifecycle.list_session_rows(SessionListFilters(user_id=A, cursor=cursor))
