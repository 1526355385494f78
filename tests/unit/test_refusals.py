"""A refusal names field, value and what is expected, in our words (rule R19, finding X47).

`refusals.txt` beside this file has every sentence that a field can be refused with.
`python tests/unit/test_refusals.py` writes it again; read it aloud before committing it.
"""

import logging
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, ValidationError

from session_lifecycle import ConfigurationError, InvalidValueError, Settings
from session_lifecycle.models import (
    Budget,
    End,
    Message,
    Run,
    RunFilters,
    SessionListFilters,
    Step,
    SummaryFilters,
    Touch,
    UsageEvent,
    Viewer,
)
from session_lifecycle.models.annotations import Annotating, AnnotationsOfSession
from session_lifecycle.models.budgets import BudgetList, OneBudget, Releasing, Reserving
from session_lifecycle.models.fields import Value
from session_lifecycle.models.maintenance import Erasing, OwnedSession, Pruning, Reconciling, Repricing
from session_lifecycle.models.refusals import CONTENT, UNFORESEEN, refusal
from session_lifecycle.models.reports import Series, UsageQuestion
from session_lifecycle.models.run_filters import ModelPrefix, ToolCall
from session_lifecycle.models.run_telemetry import TelemetryFilters
from session_lifecycle.models.session_details import ChatHistory, OneDetail, RecentlyOfSession, ThreadsOfSession
from session_lifecycle.models.session_filters import OneSession, Window
from session_lifecycle.models.sessions import Reopen, SessionUpdate
from session_lifecycle.models.usage_filters import UsageEventFilters, UsageFilters


def nested(depth: int) -> dict[str, Any]:
    return {"a": nested(depth - 1)} if depth else {}


GOLDEN = Path(__file__).with_name("refusals.txt")
USER = UUID(int=1)
AT = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = "what the user said"
# A valid value of each model: each of its fields is then replaced by values that are refused.
VALID: dict[type[Value], dict[str, Any]] = {
    Touch: {"session_id": "s", "user_id": USER},
    UsageEvent: {"session_id": "s", "user_id": USER, "tokens_in": 5, "tokens_out": 5},
    End: {"session_id": "s", "user_id": USER, "status": "failed"},
    Reopen: {"session_id": "s", "user_id": USER},
    SessionUpdate: {"session_id": "s", "user_id": USER},
    Annotating: {"session_id": "s", "user_id": USER, "name": "quality"},
    Run: {"run_id": "r", "user_id": USER, "started_at": AT},
    Step: {"step_id": "t", "run_id": "r", "user_id": USER, "kind": "task", "started_at": AT},
    Message: {"message_id": "m", "user_id": USER, "session_id": "s", "role": "user", "content": "c", "created_at": AT},
    SessionListFilters: {},
    SummaryFilters: {},
    RunFilters: {},
    OneSession: {"session_id": "s"},
    AnnotationsOfSession: {"session_id": "s"},
    OneDetail: {"session_id": "s"},
    RecentlyOfSession: {"session_id": "s"},
    ThreadsOfSession: {"session_id": "s"},
    ChatHistory: {"session_id": "s"},
    ModelPrefix: {},
    ToolCall: {"user_id": USER, "tool_call_id": "t"},
    Window: {},
    Series: {"since": AT, "until": AT},
    UsageEventFilters: {},
    UsageFilters: {},
    UsageQuestion: {},
    TelemetryFilters: {},
    Repricing: {"batch": 1},
    Pruning: {"older_than": timedelta(days=1), "batch": 1, "dry_run": False},
    OwnedSession: {"session_id": "s", "user_id": USER},
    Erasing: {"user_id": USER},
    Reconciling: {"repair": False},
    Budget: {"budget_id": "b", "user_id": USER, "limit_usd": 1},
    OneBudget: {"budget_id": "b"},
    BudgetList: {},
    Reserving: {"idempotency_key": "k"},
    Releasing: {"session_id": "s", "user_id": USER, "idempotency_key": "k"},
}


class Missing:
    """As a missing value of pandas: it is neither equal to a value nor unequal."""

    def __eq__(self, _: object) -> Any:
        return self

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")


# By what a reader of the golden file sees of them.
BAD: dict[str, Any] = {
    "None": None,
    "True": True,
    "-1": -1,
    "0": 0,
    "1.5": 1.5,
    "10**15": 10**15,
    "10**30": 10**30,
    "not a number": math.nan,
    "infinity": math.inf,
    "Decimal('1E-31')": Decimal("1E-31"),
    "''": "",
    "' '": " ",
    "'word'": "word",
    "'a\\0b'": "a\0b",
    "a lone surrogate": "\ud800",
    "3000 x": "x" * 3000,
    "190 of four bytes": "\U0001f600" * 190,
    "bytes": b"bytes",
    "an object": object(),
    "a naive datetime": datetime(2026, 1, 1),  # noqa: DTZ001 - what is refused
    "a datetime before year 1 in UTC": datetime.min.replace(tzinfo=UTC).astimezone(UTC).replace(tzinfo=None),
    "a timedelta of 0": timedelta(0),
    "a timedelta of 10**6 days": timedelta(days=10**6),
    "a list of 5": [5],
    "a list of a word": ["word"],
    "a mapping": {"a": "b"},
    "a mapping with number keys": {1: 2},
    "a mapping with an object": {"a": object()},
    "a mapping of 70 numbers": {f"k{number}": number for number in range(70)},
    "a mapping 40 deep": nested(40),
    "a mapping of 70 kB": {"a": "x" * 70_000},
    "a mapping with infinity": {"a": math.inf},
}
# Rules about several fields.
INCONSISTENT: list[tuple[type[Value], dict[str, Any]]] = [
    (UsageEvent, {"cache_read_tokens": 6}),
    (UsageEvent, {"cache_read_tokens": 3, "cache_write_tokens": 3}),
    (UsageEvent, {"reasoning_tokens": 6}),
    (UsageEvent, {"measured": False}),
    (UsageEvent, {"revision": 1}),
    (Run, {"parent_run_id": "r"}),
    (Run, {"parent_session_id": "s"}),
    (Run, {"parent_session_id": "s", "session_id": "s"}),
    (Run, {"ended_at": AT, "status": "running"}),
    (Step, {"run_id": "r" * 1500, "step_id": "t" * 1101}),
    (Message, {"session_id": "\U0001f600" * 512, "message_id": "m" * 553}),
    (SessionListFilters, {"viewer": Viewer(USER), "user_id": USER}),
    (SessionListFilters, {"cursor": "x", "offset": 1}),
    (SessionListFilters, {"since": AT, "until": AT - timedelta(1)}),
    (SessionListFilters, {"without_dataset": True, "dataset_id": USER}),
    (SessionListFilters, {"min_tokens": 2, "max_tokens": 1}),
    (Window, {"since": AT, "until": AT - timedelta(1)}),
    (Touch, {"parent_session_id": "s"}),
    (SessionUpdate, {"parent_session_id": "s"}),
    (SummaryFilters, {"started_since": AT, "started_until": AT - timedelta(1)}),
    (SummaryFilters, {"order_by": "nothing"}),
    (SummaryFilters, {"since": AT, "until": AT - timedelta(1)}),
    (RunFilters, {"since": AT, "until": AT - timedelta(1)}),
    (ThreadsOfSession, {"after": "r", "before": "r"}),
    (Series, {"until": AT - timedelta(1)}),
    (Series, {"until": AT + timedelta(365 * 100), "bucket": "hour"}),
    (UsageEventFilters, {"since": AT, "until": AT - timedelta(1)}),
    (UsageQuestion, {"since": AT, "until": AT - timedelta(1)}),
    (UsageQuestion, {"group_by": ["day", "day"], "since": AT, "until": AT}),
    (UsageQuestion, {"group_by": ["day", "hour"], "since": AT, "until": AT}),
    (UsageQuestion, {"group_by": ["week"], "until": AT}),
    (UsageQuestion, {"group_by": ["hour"], "since": AT, "until": AT + timedelta(365 * 100)}),
    (UsageQuestion, {"order_by": "model"}),
    (Budget, {"user_id": None}),
    (Budget, {"user_id": None, "agent_name": "a", "session_id": "s"}),
    (Budget, {"limit_usd": None}),
    (Touch, {"no_such_field": 1}),
]


def refused(model: type[Value], fields: dict[str, Any]) -> InvalidValueError | None:
    try:
        model.of_call(**fields)
    except InvalidValueError as error:
        return error
    return None


def sentences() -> Iterator[str]:
    """Every sentence of every field, with the first value that is refused with it."""
    for model, valid in VALID.items():
        for field in model.model_fields:
            seen = set()
            for name, value in BAD.items():
                error = refused(model, {**valid, field: value})
                if error is not None and (error.field, error.expected) not in seen:
                    seen.add((error.field, error.expected))
                    yield f"{model.__name__}.{field} = {name}: {error.field}: expected {error.expected}"
            if model.model_fields[field].is_required():
                error = refused(model, {name: value for name, value in valid.items() if name != field})
                assert error is not None
                yield f"{model.__name__}.{field} left out: {error}"
    for model, wrong in INCONSISTENT:
        error = refused(model, {**VALID[model], **wrong})
        assert error is not None, (model, wrong)
        yield f"{model.__name__} with {', '.join(wrong)}: {error.field}: expected {error.expected}"


def test_X47_the_sentences_are_the_golden_ones() -> None:
    assert "\n".join(sentences()) + "\n" == GOLDEN.read_text("utf-8"), "run `python tests/unit/test_refusals.py`"


def test_X47_no_sentence_is_anothers() -> None:
    words = ("Input", "should", "valid", "instance of", "Value error", "type_error", "String", "{", "Decimal(")
    for sentence in GOLDEN.read_text("utf-8").splitlines():
        expected = sentence.partition("expected ")[2]
        assert expected
        assert not any(word in expected for word in (*words, UNFORESEEN)), sentence


@pytest.mark.parametrize("model", VALID, ids=lambda model: model.__name__)
def test_R19_every_bad_value_is_refused_by_name_or_taken(model: type[Value]) -> None:
    for field in model.model_fields:
        for value in (*BAD.values(), Missing()):
            error = refused(model, {**VALID[model], field: value})
            assert error is None or error.field.partition(".")[0] in {field, *model.model_fields}


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        (Touch, "metadata", [SECRET]),
        (Touch, "title", f"{SECRET}\x00"),
        (Run, "metadata", SECRET),
        (Step, "metadata", [SECRET]),
        (Message, "metadata", SECRET),
    ],
)
def test_X47_content_is_in_no_error(
    model: type[Value], field: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert field in CONTENT
    with pytest.raises(
        InvalidValueError, match=rf"^{field}: got (a list of 1 items|text of \d+ characters), "
    ) as raised:
        model.of_call(**{**VALID[model], field: value})
    with caplog.at_level(logging.ERROR):
        logging.getLogger("host").error("failed", exc_info=raised.value)
    assert "said" not in caplog.text
    assert "said" not in repr(raised.value)
    with pytest.raises(ValidationError) as by_hand:
        model(**{**VALID[model], field: value})
    assert "said" not in str(by_hand.value)


def test_a_refusal_inside_a_list_names_the_place() -> None:
    error = refused(SessionListFilters, {"permitted_dataset_ids": [USER, "word"]})
    assert str(error) == "permitted_dataset_ids.1: got 'word', expected a UUID or its text"


def test_a_refusal_without_a_model_names_the_bound_that_was_broken() -> None:
    class Anything(BaseModel):
        count: int

    with pytest.raises(ValidationError) as raised:
        Anything(count="many")
    assert str(refusal(raised.value)) == "count: got 'many', expected a whole number"


SETTINGS = {
    "database_url": 5,
    "read_database_url": 5,
    "database_schema": "pg_x",
    "abandon_after": timedelta(0),
    "pool_size": 0,
    "max_overflow": -1,
    "pool_timeout_seconds": 0,
    "connect_timeout_seconds": 0,
    "statement_timeout_seconds": "soon",
    "application_name": 5,
    "retries": 101,
    "payload_limit_bytes": 1,
    "row_level_security": "perhaps",
    "row_level_security_key": "a key that is too short",
    "payload_when_larger": "drop",
}


@pytest.mark.parametrize("name", Settings.model_fields)
def test_X47_a_refused_setting_is_named_in_our_words(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^setting {name}: got .*, expected (?!no setting)(?!.*Input)"):
        Settings.load(**{name: SETTINGS[name]})


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^setting no_such: got 1, expected no setting of that name$"):
        Settings.load(no_such=1)


if __name__ == "__main__":
    GOLDEN.write_text("\n".join(sentences()) + "\n", "utf-8")
