"""Rows of the reference's two tables, as items: `session_records` with a session's totals, and `session_model_usage`.

The reference kept sums and no events. Each sum becomes one usage event, so that our totals are those of the session:

- An event for each model. Its time is the row's `updated_at`, within the session's life.
- An event without a model for what the session has beyond its models: usage that named none.
- What the models have beyond an ended session came after the end, because only their rows went on growing then: it is
  late. Of a running session, it is left out.
- A difference of floats that is no amount, below a billionth of a dollar, goes to the model that cost most.

The keys say what an event stands for, and its revision is the second of the session's last change. So another import
replaces what has grown since, and changes nothing else.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from session_lifecycle.errors import InvalidValueError
from session_lifecycle.integrations.foreign_import import (
    ForeignRow,
    amount_of,
    made,
    moment_of,
    uuid_of,
    whole_of,
)
from session_lifecycle.models import End, Item, SessionStatus, Touch, UsageEvent
from session_lifecycle.models.fields import exact_sum

NOISE_USD = Decimal("0.000000001")
MOST_ERRORS = 50_000
"""Errors of one session, each of which becomes an event. All are recorded in one transaction."""
_LONGEST_NAME = 400
_OURS = "rolled_up"
"""A column that only this library's table has."""


@dataclass
class _Sum:
    """What a model used, or what is left over."""

    tokens_in: int
    tokens_out: int
    cost_usd: Decimal

    def __bool__(self) -> bool:
        return bool(self.tokens_in or self.tokens_out or self.cost_usd)

    def minus(self, other: "_Sum") -> "_Sum":
        cost = exact_sum([self.cost_usd, -other.cost_usd])
        return _Sum(self.tokens_in - other.tokens_in, self.tokens_out - other.tokens_out, cost)

    def above_zero(self) -> "_Sum":
        return _Sum(max(0, self.tokens_in), max(0, self.tokens_out), max(Decimal(0), self.cost_usd))

    def below_zero(self) -> "_Sum":
        return _Sum(max(0, -self.tokens_in), max(0, -self.tokens_out), max(Decimal(0), -self.cost_usd))

    def take(self, most: "_Sum") -> "_Sum":
        """Takes away what there is of `most`, and returns it."""
        taken = _Sum(
            min(self.tokens_in, most.tokens_in),
            min(self.tokens_out, most.tokens_out),
            min(self.cost_usd, most.cost_usd),
        )
        left = self.minus(taken)
        self.tokens_in, self.tokens_out, self.cost_usd = left.tokens_in, left.tokens_out, left.cost_usd
        return taken


@dataclass
class _Model:
    name: str
    updated_at: datetime
    used: _Sum


class _Session:
    """A row of `session_records`, read."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        if _OURS in row:
            expected = "the reference's table: this is one of this library, which `move` and `export` read"
            raise InvalidValueError("session_records", f"a table with the column {_OURS}", expected)
        self.session_id = row.get("session_id")
        user_id = uuid_of(row.get("user_id"))
        if user_id is None:
            raise InvalidValueError("user_id", row.get("user_id"), "the text of a UUID")
        self.user_id = user_id
        self.dataset_id = row.get("dataset_id") or None
        if self.dataset_id is not None and uuid_of(self.dataset_id) is None:
            raise InvalidValueError("dataset_id", self.dataset_id, "the text of a UUID")
        self.status = row.get("status")
        if self.status not in tuple(SessionStatus):
            raise InvalidValueError("status", self.status, f"one of {', '.join(SessionStatus)}")
        self.started_at = moment_of("started_at", row.get("started_at"))
        self.last_activity_at = moment_of("last_activity_at", row.get("last_activity_at"))
        ended_at = row.get("ended_at")
        self.has_ended = self.status != SessionStatus.RUNNING
        self.ended_at = moment_of("ended_at", ended_at) if ended_at is not None else self.last_activity_at
        self.used = _sum(row)
        self.errors = whole_of("error_count", row.get("error_count"))
        if self.errors > MOST_ERRORS:
            raise InvalidValueError("error_count", self.errors, f"at most {MOST_ERRORS:,}: each error is one event")
        self.last_model = row.get("last_model") or None
        self.agent_name = row.get("agent_id") or None

    @property
    def last_use_at(self) -> datetime:
        """The latest time at which usage counts."""
        return self.ended_at if self.has_ended else max(self.started_at, self.last_activity_at)


def reference_row(session: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> ForeignRow:
    """The items of a session and its models, in the order in which they must be recorded.

    Raises:
        InvalidValueError: A field of one of the rows is refused.
    """
    row = _Session(session)
    by_model = [
        _Model(str(one.get("model")), moment_of("updated_at", one.get("updated_at")), _sum(one)) for one in models
    ]
    beyond = row.used
    for model in by_model:
        beyond = beyond.minus(model.used)
    late = _settle(by_model, beyond)
    latest = max([row.started_at, row.last_activity_at, row.ended_at, *(one.updated_at for one in by_model)])
    events = _Events(row, min(int(latest.timestamp()), 2**31 - 1))
    items: list[Item] = [
        made(Touch, **events.key, dataset_id=row.dataset_id, agent_name=row.agent_name, at=row.started_at),
        made(Touch, **events.key, at=row.last_activity_at),
        *events.of_errors(),
    ]
    if rest := _beyond_models(by_model, row.used):
        items.append(events.of("rest", rest, at=row.last_use_at))
    # The model of the latest use is the session's last one.
    for model in sorted(by_model, key=lambda one: one.name == row.last_model):
        at = min(max(model.updated_at, row.started_at), row.last_use_at)
        at = row.last_use_at if model.name == row.last_model else at
        items.append(events.of("model", model.used, model=model.name, at=at))
    if row.last_model is not None and all(model.name != row.last_model for model in by_model):
        items.append(events.of("last-model", _Sum(0, 0, Decimal(0)), model=row.last_model, at=row.last_use_at))
    keys: set[str] = set()
    if row.has_ended:
        items.append(made(End, **events.key, status=row.status, at=row.ended_at))
        for model, used in late:
            event = events.of("late", used, model=model.name, at=_after(row.ended_at, model.updated_at))
            keys.add(str(event.idempotency_key))
            items.append(event)
    where = f"session {row.session_id!r} of user {row.user_id}"
    totals = (row.used.tokens_in, row.used.tokens_out, row.used.cost_usd)
    return ForeignRow(where, items, totals, frozenset(keys))


class _Events:
    """Makes the usage events of a session."""

    def __init__(self, row: _Session, revision: int) -> None:
        self.key = {"user_id": row.user_id, "session_id": row.session_id}
        self._row = row
        self._revision = revision

    def of(self, what: str, used: _Sum, *, at: datetime, model: str | None = None) -> UsageEvent:
        name = model or ""
        name = name if len(name) <= _LONGEST_NAME else hashlib.sha256(name.encode()).hexdigest()
        event: UsageEvent = made(
            UsageEvent,
            **self.key,
            model=model,
            tokens_in=used.tokens_in,
            tokens_out=used.tokens_out,
            # A sum of the reference is a cost that was given, also where it is 0.
            cost_usd=used.cost_usd,
            idempotency_key=f"reference:{what}:{name}",
            revision=self._revision,
            at=at,
            touch=False,
        )
        return event

    def of_errors(self) -> Iterator[UsageEvent]:
        for number in range(1, self._row.errors + 1):
            yield made(
                UsageEvent,
                **self.key,
                errored=True,
                cost_usd=0,
                idempotency_key=f"reference:error:{number}",
                at=self._row.last_use_at,
                touch=False,
            )


def _settle(by_model: Sequence[_Model], beyond: _Sum) -> list[tuple[_Model, _Sum]]:
    """Takes from the models what they have beyond their session, the last changed first. Returns what was taken.

    A difference of floats is given to the model that cost most, or taken from it.
    """
    if not by_model:
        return []
    dearest = max(by_model, key=lambda one: one.used.cost_usd)
    noise = beyond.cost_usd
    if 0 < abs(noise) < NOISE_USD and exact_sum([dearest.used.cost_usd, noise]) >= 0:
        dearest.used.cost_usd = exact_sum([dearest.used.cost_usd, noise])
        beyond.cost_usd = Decimal(0)
    excess = beyond.below_zero()
    taken: list[tuple[_Model, _Sum]] = []
    for model in sorted(by_model, key=lambda one: one.updated_at, reverse=True):
        if not excess:
            break
        if part := model.used.take(excess):
            excess = excess.minus(part)
            taken.append((model, part))
    return taken


def _beyond_models(by_model: Sequence[_Model], used: _Sum) -> _Sum:
    rest = used
    for model in by_model:
        rest = rest.minus(model.used)
    return rest.above_zero()


def _after(ended_at: datetime, updated_at: datetime) -> datetime:
    """A time after the end: usage at the end itself counts."""
    return max(updated_at, ended_at + timedelta(microseconds=1))


def _sum(row: Mapping[str, Any]) -> _Sum:
    cost = amount_of("cost_usd", row.get("cost_usd"))
    return _Sum(
        whole_of("tokens_in", row.get("tokens_in")), whole_of("tokens_out", row.get("tokens_out")), cost or Decimal(0)
    )
