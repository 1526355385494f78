"""A value is not trusted for its class: a subclass, or a value that Pydantic made without a check, is checked first."""

import copy
import pickle
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from session_lifecycle import End, InvalidValueError, Message, Run, SessionListFilters, Step, Touch, UsageEvent, Viewer
from session_lifecycle.models import PriceOverride
from session_lifecycle.models.usage_filters import UsageEventFilters
from session_lifecycle.pricing.catalogue import PriceCatalogue
from session_lifecycle.writing.calls import checked, checked_item

U, AT = UUID(int=1), datetime(2026, 1, 1, tzinfo=UTC)
ITEMS: dict[str, tuple[Any, str, Any]] = {
    "usage": (UsageEvent(session_id="s", user_id=U, tokens_in=1), "cost_usd", Decimal("NaN")),
    "touch": (Touch(session_id="s", user_id=U), "session_id", "x" * 3000),
    "end": (End(session_id="s", user_id=U, status="failed"), "status", "running"),
    "run": (Run(run_id="r", user_id=U, started_at=AT), "started_at", datetime(2026, 1, 1)),  # noqa: DTZ001 - refused
    "step": (Step(run_id="r", step_id="s", user_id=U, kind="tool", started_at=AT), "seq", True),
    "message": (
        Message(message_id="m", user_id=U, session_id="s", role="user", content="c", created_at=AT),
        "user_id",
        "nobody",
    ),
}


@pytest.mark.parametrize("name", ITEMS)
def test_X06_a_copy_with_other_fields_is_checked(name: str) -> None:
    item, field, wrong = ITEMS[name]
    with pytest.raises(InvalidValueError) as refused:
        checked([item, item.model_copy(update={field: wrong})])
    assert refused.value.field == f"items.1.{field}"
    with pytest.raises(InvalidValueError) as refused:
        checked([copy.copy(item.model_copy(update={field: wrong}))])
    assert refused.value.field == field


@pytest.mark.parametrize("name", ITEMS)
def test_X06_a_constructed_value_is_checked(name: str) -> None:
    item, field, wrong = ITEMS[name]
    made = type(item).model_construct(**{**dict(item), field: wrong})
    with pytest.raises(InvalidValueError, match=field):
        checked_item(pickle.loads(pickle.dumps(made)))  # noqa: S301 - our own bytes
    good = type(item).model_construct(**dict(item))
    assert checked_item(good) == item == good
    assert good.model_dump() == item.model_dump()
    with pytest.raises(InvalidValueError, match="the field is required"):
        checked_item(type(item).model_construct())


def test_X06_the_parts_of_a_constructed_event_are_read_from_its_details() -> None:
    fields: dict[str, Any] = {"session_id": "s", "user_id": U, "tokens_in": 10, "details": {"input_cached": 3}}
    assert checked_item(UsageEvent.model_construct(**fields)) == UsageEvent(**fields)
    given = checked_item(UsageEvent.model_construct(**fields, cache_read_tokens=0))
    assert given == UsageEvent(**fields, cache_read_tokens=0) != UsageEvent(**fields)
    # A field that nobody named, and that has a value all the same, keeps it.
    unnamed = checked_item(UsageEvent.model_construct({"session_id", "user_id"}, **fields))
    assert unnamed == UsageEvent(**fields)


def test_a_window_of_events_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ValueError, match="until"):
        UsageEventFilters(viewer=Viewer.auditor(), since=AT, until=AT - timedelta(seconds=1))


def test_X06_a_checked_value_is_not_looked_at_again() -> None:
    for item, _, _ in ITEMS.values():
        assert checked_item(item) is item
        assert checked_item(item.model_copy()) is not None


@pytest.mark.parametrize("name", ITEMS)
def test_X07_a_subclass_is_the_item_it_derives_from(name: str) -> None:
    item, field, wrong = ITEMS[name]
    kind = type(item)
    derived = type(f"My{kind.__name__}", (kind,), {})
    assert checked_item(derived(**dict(item))) == item
    # A subclass may have looser rules for a field.
    loose = type(f"Loose{kind.__name__}", (kind,), {"__annotations__": {field: Any}, field: None})
    with pytest.raises(InvalidValueError, match=field):
        checked_item(loose(**{**dict(item), field: wrong}))


def test_X06_filters_and_viewers_are_checked() -> None:
    filters = SessionListFilters(viewer=Viewer(U))
    with pytest.raises(InvalidValueError, match="limit"):
        SessionListFilters.checked(filters.model_copy(update={"limit": 10**9}), "filters")
    with pytest.raises(InvalidValueError, match="sees_all"):
        Viewer.of_caller(Viewer(U).model_copy(update={"sees_all": "no"}))
    with pytest.raises(InvalidValueError, match="a SessionListFilters"):
        SessionListFilters.checked(Viewer(U), "filters")


def test_X06_prices_are_checked() -> None:
    own = PriceOverride(model_pattern="m", input_usd_per_million=1, output_usd_per_million=1)
    with pytest.raises(InvalidValueError, match="audio_in_usd_per_million"):
        PriceCatalogue([own.model_copy(update={"audio_in_usd_per_million": Decimal("NaN")})])
    wrong: Any = "m"
    with pytest.raises(InvalidValueError, match="a PriceOverride"):
        PriceCatalogue([wrong])
