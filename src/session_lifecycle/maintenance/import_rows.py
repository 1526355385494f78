"""What a row of an export must be: read from a line of JSON, refused with its field, its value and what is expected."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from math import isfinite
from typing import Any, Literal, NamedTuple, NoReturn
from uuid import UUID

from session_lifecycle.errors import InvalidValueError, shortened
from session_lifecycle.models import RunStatus, SessionStatus
from session_lifecycle.models.fields import model_key
from session_lifecycle.models.messages import MessageRole
from session_lifecycle.models.refusals import shown
from session_lifecycle.statements.maintenance.export import (
    FLAG,
    FLOAT,
    INTEGER,
    JSON,
    MOMENT,
    MONEY,
    TEXT,
    UUID_,
    ExportColumn,
    Kind,
    TableShape,
)

_MOST_DIGITS = 1000
# Postgres reads the line itself. So a text has a form that Python and Postgres read as the same value.
_AMOUNT = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_TIME = re.compile(r"[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){1,2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})")
_COUNTS = {
    *("tokens_in", "tokens_out", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens", "error_count"),
    *("events", "unpriced_events", "unmeasured_events", "late_events", "revision", "record_no", "limit_tokens"),
    *("reported_tokens", "events_tokens_in", "events_tokens_out"),
}
"""Numbers that are never negative. No amount of money is, either."""
_WORDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "sessions": {"status": tuple(SessionStatus)},
    "runs": {"status": tuple(RunStatus)},
    "messages": {"role": tuple(MessageRole)},
    "usage_events": {"key_scope": ("session", "user", "run"), "billing": ("api", "plan")},
    "budgets": {"on_unpriced": ("refuse", "admit"), "calendar": ("hour", "day", "week", "month")},
}
"""The words of columns that have few."""


class ImportRow(NamedTuple):
    """A row of an export that may be imported."""

    line: int
    text: str
    """The line of JSON, as Postgres reads it."""
    values: dict[str, Any]
    """The values by column; JSON as Python reads it, with its numbers as they are written."""
    key: tuple[Any, ...]

    @property
    def user_id(self) -> UUID | None:
        """The user whose row it is; None for a row that belongs to no user."""
        found: UUID | None = self.values.get("user_id")
        return found


def read_row(shape: TableShape, line: int, text: str, fields: Mapping[str, Any]) -> ImportRow:
    """The row of a line, whose fields `fields_of` has read.

    Raises:
        InvalidValueError: The fields are not the columns of the table, or a value is refused.
    """
    # Both would end as an error of Postgres about the whole batch.
    if "\\u" in text and any("\x00" in one or not _is_utf_8(one) for one in _texts(fields)):
        raise InvalidValueError("line", f"{len(text)} characters", "text without the character NUL and lone surrogates")
    if fields.keys() != shape.columns.keys():
        _refuse_names(shape, fields)
    values = {
        name: None if (value := fields[name]) is None and one.is_nullable else _value(name, one, value)
        for name, one in shape.columns.items()
    }
    _check_words(shape, values)
    for check in _CHECKS.get(shape.name, ()):
        check(values)
    return ImportRow(line, text, values, key_of(shape, values))


def key_of(shape: TableShape, values: Mapping[str, Any]) -> tuple[Any, ...]:
    """The key of a row. Keys compare as Postgres orders them."""
    return tuple(model_key(values["model"]) if name == "model_key" else values[name] for name in shape.key)


def stored_values(shape: TableShape, row: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a row of the database, as `ImportRow.values` has them."""
    return {
        name: json.loads(value, parse_float=Decimal)
        if shape.columns[name].kind is JSON and value is not None
        else value.astimezone(UTC)
        if isinstance(value, datetime)
        else value
        for name, value in row.items()
    }


def difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> InvalidValueError | None:
    """The first column in which a row of an export differs from the one that the database has; None: no column."""
    for name, value in found.items():
        if value != expected[name]:
            stands = shortened(shown(name, expected[name]))
            return InvalidValueError(name, shown(name, value), f"{stands}, because the database has the row with it")
    return None


def fields_of(text: str) -> dict[str, Any]:
    """The fields of a line.

    Raises:
        InvalidValueError: The line is no JSON object.
    """
    try:
        fields = _DECODER.decode(text)
    except (ValueError, RecursionError):
        raise InvalidValueError("line", f"{len(text)} characters", "a JSON object") from None
    if not isinstance(fields, dict):
        raise InvalidValueError("line", f"a {type(fields).__name__}", "a JSON object")
    return fields


def user_of(fields: Mapping[str, Any]) -> UUID | None:
    """The user of a row, whatever else is wrong with it; None where it names none."""
    return _uuid(fields.get("user_id"))


def _no_constant(word: str) -> Any:
    raise ValueError(word)


def _number(text: str) -> Decimal:
    try:
        read = Decimal(text)
    except InvalidOperation:  # an exponent beyond all of Decimal's
        raise ValueError(text) from None
    if abs(read.adjusted()) >= _MOST_DIGITS:
        raise ValueError(text)
    return read


_DECODER = json.JSONDecoder(parse_float=_number, parse_constant=_no_constant)


def _is_utf_8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for name, one in value.items():
                yield name
                yield from _texts(one)
        case list():
            for one in value:
                yield from _texts(one)
        case _:
            return


def _refuse_names(shape: TableShape, fields: Mapping[str, Any]) -> NoReturn:
    if (unknown := next((name for name in fields if name not in shape.columns), None)) is not None:
        raise InvalidValueError(unknown, fields[unknown], f"no field of that name: {shape.name} has none")
    missing = next(name for name in shape.columns if name not in fields)
    raise InvalidValueError(missing, "nothing", "a value or null: the field is missing")


def _value(name: str, column: ExportColumn, value: Any) -> Any:
    """A value that is not null, or null where the column has none."""
    kind = column.kind
    if value is None:
        raise InvalidValueError(name, None, _EXPECTED[kind])
    read = _READERS[kind](value)
    if read is None:
        raise InvalidValueError(name, shown(name, value), _EXPECTED[kind])
    if (kind is MONEY or (kind is INTEGER and name in _COUNTS)) and read < 0:
        raise InvalidValueError(name, value, f"{_EXPECTED[kind]} of at least 0")
    return read


def _uuid(value: Any) -> UUID | None:
    try:
        read = UUID(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return read if str(read) == str(value).lower() else None


def _integer(value: Any) -> int | None:
    return value if type(value) is int and -(2**63) <= value < 2**63 else None


def _money(value: Any) -> Decimal | None:
    # As text only: a number of JSON was a float in some program before.
    if not isinstance(value, str) or len(value) > _MOST_DIGITS or not _AMOUNT.fullmatch(value):
        return None
    try:
        return _number(value)
    except ValueError:
        return None


def _moment(value: Any) -> datetime | None:
    try:
        is_time = isinstance(value, str) and _TIME.fullmatch(value)
        return datetime.fromisoformat(value).astimezone(UTC) if is_time else None
    except (ValueError, OverflowError):
        return None


def _float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return None
    try:
        read = float(value)
    except OverflowError:
        return None
    return read if isfinite(read) and bool(read) is bool(value) else None


_READERS: Mapping[Kind, Callable[[Any], Any]] = {
    UUID_: _uuid,
    TEXT: lambda value: value if isinstance(value, str) else None,
    INTEGER: _integer,
    MONEY: _money,
    MOMENT: _moment,
    FLAG: lambda value: value if isinstance(value, bool) else None,
    FLOAT: _float,
    JSON: lambda value: value,
}
_EXPECTED: Mapping[Kind, str] = {
    UUID_: "the text of a UUID",
    TEXT: "text",
    INTEGER: "a whole number",
    MONEY: "an amount as decimal text",
    MOMENT: "the ISO 8601 text of a time with its zone",
    FLAG: "true or false",
    FLOAT: "a number",
    JSON: "a JSON value",
}


def _check_words(shape: TableShape, values: Mapping[str, Any]) -> None:
    for name, words in _WORDS.get(shape.name, {}).items():
        if values[name] is not None and values[name] not in words:
            raise InvalidValueError(name, values[name], f"one of {', '.join(words)}")


# The constraints of the tables that no single column decides. The database has them, too, and would refuse the batch.


def _check_end(values: Mapping[str, Any]) -> None:
    if (values["status"] == "running") != (values["ended_at"] is None):
        raise InvalidValueError("ended_at", values["ended_at"], "a time exactly where the session has ended")


def _check_event(values: Mapping[str, Any]) -> None:
    if values["cache_read_tokens"] + values["cache_write_tokens"] > values["tokens_in"]:
        raise InvalidValueError("cache_read_tokens", values["cache_read_tokens"], "a part of tokens_in")
    if values["reasoning_tokens"] > values["tokens_out"]:
        raise InvalidValueError("reasoning_tokens", values["reasoning_tokens"], "a part of tokens_out")
    if values["billing"] == "plan" and values["cost_usd"] != 0:
        raise InvalidValueError("cost_usd", values["cost_usd"], "0 under a plan")
    if values["billing"] == "api" and values["plan_cost_usd"] is not None:
        raise InvalidValueError("plan_cost_usd", values["plan_cost_usd"], "null, because the event is under no plan")


def _check_budget(values: Mapping[str, Any]) -> None:
    def given(*names: str) -> int:
        return sum(values[name] is not None for name in names)

    if not given("user_id", "agent_name", "dataset_id") or (given("session_id") and not given("user_id")):
        raise InvalidValueError("user_id", values["user_id"], "a user, an agent or a dataset; a session has a user")
    if not given("limit_usd", "limit_tokens"):
        raise InvalidValueError("limit_usd", values["limit_usd"], "a limit in USD or in tokens")
    if given("calendar", "rolling_us") > 1 or (values["rolling_us"] is not None and values["rolling_us"] <= 0):
        raise InvalidValueError("rolling_us", values["rolling_us"], "a length above 0, or null beside a calendar")


_CHECKS: Mapping[str, tuple[Callable[[Mapping[str, Any]], None], ...]] = {
    "sessions": (_check_end,),
    "usage_events": (_check_event,),
    "budgets": (_check_budget,),
}
Parent = Literal["sessions", "runs"]
PARENTS: Mapping[str, Parent] = {
    "session_models": "sessions",
    "usage_events": "sessions",
    "messages": "sessions",
    "annotations": "sessions",
    "steps": "runs",
}
"""The table of the row to which each row of a table belongs, by the first columns of its key."""
