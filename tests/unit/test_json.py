"""Every value, that which goes in and that which comes out, survives JSON both ways (finding X33)."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from random import Random
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from uuid import UUID

import pytest
from pydantic import BaseModel
from pydantic_core import to_json

from session_lifecycle import models
from session_lifecycle.models import Budget, End, Message, Run, RunStatus, SessionListFilters, UsageEvent, Viewer
from session_lifecycle.models.fields import COST_DECIMALS, Value
from session_lifecycle.models.usage import RARE_CLASSES

VALUES = sorted(
    (one for name in models.__all__ if isinstance(one := getattr(models, name), type) and issubclass(one, Value)),
    key=lambda one: one.__name__,
)
SAMPLES = 20
OF_TYPE: dict[Any, Callable[[Random], Any]] = {
    NoneType: lambda _: None,
    bool: lambda chance: chance.random() < 0.5,
    int: lambda chance: chance.randrange(10**9),
    float: lambda chance: chance.uniform(0, 10**9),
    str: lambda chance: "".join(chance.choices("aé\u00a0\U0001f600'\"\\\n", k=chance.randint(1, 9))) + "x",
    Any: lambda chance: chance.choice([None, True, 5, "text", [1, ["a"]], {"a": {"b": None}}]),
    Decimal: lambda chance: Decimal(chance.randrange(10**20)).scaleb(-chance.randint(11, 20)),
    UUID: lambda chance: UUID(int=chance.getrandbits(128)),
    datetime: lambda chance: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(microseconds=chance.randrange(10**15)),
    timedelta: lambda chance: timedelta(microseconds=chance.randrange(1, 10**14)),
}
# Rules about several fields are met by leaving these at their defaults.
AT_DEFAULT = {
    "cursor", "started_until", "until", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens", "revision",
    "measured", "order_by", "without_dataset", "min_cost_usd", "max_cost_usd", "min_tokens", "max_tokens",
    "min_duration_s", "max_duration_s", "min_score", "max_score", "min_errors", "max_errors", *RARE_CLASSES,
}  # fmt: skip
OF_FILTERS = {"user_id", "permitted_dataset_ids", "offset", "limit", "steps_limit"}


def sample(annotation: Any, chance: Random) -> Any:
    """A value of this annotation."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        found = sample(arguments[0], chance)
    elif origin in {Union, UnionType}:
        found = sample(chance.choice(arguments), chance)
    elif origin is Literal:
        found = chance.choice(arguments)
    elif origin in {list, tuple}:
        found = origin(sample(arguments[0], chance) for _ in range(chance.randrange(3)))
    elif origin is dict:
        found = {sample(arguments[0], chance): sample(arguments[1], chance) for _ in range(chance.randrange(3))}
    elif isinstance(annotation, type) and issubclass(annotation, StrEnum):
        found = chance.choice(list(annotation))
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        found = value_of(annotation, chance)
    else:
        found = OF_TYPE[annotation](chance)
    return found


def value_of(model: type[BaseModel], chance: Random) -> Any:
    if model is Viewer:
        ids = [UUID(int=chance.getrandbits(128)) for _ in range(3)]
        return Viewer(ids[0], ids[1:], ids[:2])
    left_out = AT_DEFAULT | (OF_FILTERS if "viewer" in model.model_fields else set())
    given = {
        name: sample(field.rebuild_annotation(), chance)
        for name, field in model.model_fields.items()
        if field.is_required() or name not in left_out
    }
    if issubclass(model, Run):
        # An ended run does not run, and no run is its own parent.
        ended = given["started_at"] + timedelta(seconds=1) if given["status"] != RunStatus.RUNNING else None
        given |= {"ended_at": ended, "parent_run_id": None}
        # Only a run that names its session names the parent.
        given["parent_session_id"] = "parent" if given["session_id"] and chance.random() < 0.5 else None
    if issubclass(model, End):
        given["status"] = "completed"
    if issubclass(model, Budget):
        # A budget counts somebody's usage and has a limit.
        given |= {"user_id": UUID(int=1), "limit_tokens": chance.randrange(10**9)}
        given["timezone"] = chance.choice(["UTC", "Europe/Berlin", "Asia/Kathmandu"])
    # Money may be given as text, but not as any text.
    given |= {name: "0.25" for name, one in given.items() if "_usd" in name and isinstance(one, str)}
    return model(**given)


@pytest.mark.parametrize("model", VALUES, ids=lambda model: model.__name__)
def test_X33_every_value_survives_json(model: type[Value]) -> None:
    chance = Random(model.__name__)
    for _ in range(SAMPLES):
        value = value_of(model, chance)
        assert model.model_validate_json(value.model_dump_json()) == value
        assert model.model_validate(value.model_dump(mode="json")) == value
        assert model.model_validate_json(to_json(value)) == value


def test_every_value_is_tried() -> None:
    assert len(VALUES) > 40


EVENT: dict[str, Any] = {"session_id": "s", "user_id": UUID(int=1), "tokens_in": 1}


@pytest.mark.parametrize("given", [1, 0.1, "0.1", "1e-7", Decimal("0.1"), "123456789.000000000000000000000000000001"])
def test_money_takes_int_float_decimal_and_text(given: Any) -> None:
    event = UsageEvent(**EVENT, cost_usd=given)
    assert type(event.cost_usd) is Decimal
    assert event.cost_usd == Decimal(str(given))
    assert UsageEvent.model_validate_json(event.model_dump_json()).cost_usd == event.cost_usd


def test_trailing_zeros_beyond_the_decimals_that_are_kept_are_none() -> None:
    event = UsageEvent(**EVENT, cost_usd=Decimal("0.1" + "0" * 40))
    assert str(event.cost_usd) == "0.1".ljust(2 + COST_DECIMALS, "0")


@pytest.mark.parametrize(
    ("make", "field", "member"),
    [
        (
            lambda text: Run(run_id="r", user_id=UUID(int=1), started_at=datetime.now(UTC), status=text),
            "status",
            "failed",
        ),
        (
            lambda text: Message(
                message_id="m",
                user_id=UUID(int=1),
                session_id="s",
                role=text,
                content="c",
                created_at=datetime.now(UTC),
            ),
            "role",
            "tool",
        ),
        (lambda text: SessionListFilters(status_filter=text), "status_filter", "abandoned"),
    ],
)
def test_enums_take_their_text(make: Callable[[str], Value], field: str, member: str) -> None:
    found = getattr(make(member), field)
    assert isinstance(found, StrEnum)
    assert found == member


def test_ids_and_times_take_their_text() -> None:
    event = UsageEvent(**{**EVENT, "user_id": str(UUID(int=1))}, at="2026-01-01T02:00:00+02:00")
    assert (event.user_id, event.at) == (UUID(int=1), datetime(2026, 1, 1, tzinfo=UTC))
    assert Viewer(str(UUID(int=1)), [str(UUID(int=2)), UUID(int=2)]) == Viewer(UUID(int=1), [UUID(int=2)])
