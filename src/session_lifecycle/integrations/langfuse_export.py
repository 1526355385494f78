"""Rows of Langfuse's exports, as items: a trace becomes a run, an observation a step, a generation a usage event.

Three shapes are read: enriched observations (`observations_v2/` of the export to blob storage), traces and observations
apart (`traces/`, `observations/`), and the same two as the API and the page export them, whose names are written
`likeThis` (https://langfuse.com/docs/api-and-data-platform/features/blob-storage-export-fields).
"""

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

from session_lifecycle.errors import InvalidValueError
from session_lifecycle.integrations.counts import Counts, fitted, number
from session_lifecycle.integrations.foreign_import import ForeignRow, amount_of, made, moment_of, owner, value_of
from session_lifecycle.models import Item, Run, Step, Touch, UsageEvent
from session_lifecycle.models.fields import exact_sum

_START = ("start_time", "startTime")
_END = ("end_time", "endTime")
_TRACE = ("trace_id", "traceId")
_USER = ("user_id", "userId")
_SESSION = ("session_id", "sessionId")
_PARENT = ("parent_observation_id", "parentObservationId")
_MODEL = ("provided_model_name", "providedModelName", "model")
_USAGE = ("usage_details", "usageDetails", "usage")
_COSTS = ("cost_details", "costDetails")
_COST = ("total_cost", "totalCost", "calculated_total_cost", "calculatedTotalCost")
_MESSAGE = ("status_message", "statusMessage")
_OF_SCORES = frozenset(("value", "data_type", "dataType", "string_value", "stringValue"))
UNMAPPED = (
    *("bookmarked", "completion_start_time", "completionStartTime", "environment", "model_parameters"),
    *("modelParameters", "prompt_id", "promptId", "prompt_name", "promptName", "public", "release", "scores"),
    *("tags", "tool_calls", "version"),
)
"""The fields that have no place here."""


class _Place(NamedTuple):
    """Where the observations of a trace belong."""

    user_id: UUID
    session_id: str


class LangfuseReader:
    """Makes items of the rows of one export. Traces come first: `note_trace` takes each row of a first reading."""

    def __init__(self, default_owner: UUID | None, *, content: bool = True) -> None:
        """Reads nothing yet.

        Args:
            default_owner: Who owns what names no user that is a UUID; None: it is refused.
            content: Whether what went into and out of observations is recorded.
        """
        self._default_owner = default_owner
        self._content = content
        self._places: dict[str, _Place] = {}
        self._begun: set[str] = set()
        """Traces whose run was made of a root observation."""

    def note_trace(self, row: Mapping[str, Any]) -> None:
        """Remembers where a trace belongs, for observations that do not say it themselves.

        Raises:
            InvalidValueError: A field is refused.
        """
        if is_trace(row):
            self._places[_id(row)] = self._place(row, _id(row))

    def row(self, where: str, row: Mapping[str, Any]) -> ForeignRow:
        """The items of a row.

        Raises:
            InvalidValueError: A field is refused, or the observation's trace is in no file.
        """
        if is_trace(row):
            return ForeignRow(where, self._of_trace(row))
        if is_observation(row):
            return ForeignRow(where, self._of_observation(row))
        return ForeignRow(where, [])

    def _place(self, row: Mapping[str, Any], trace_id: str) -> _Place:
        user_id = owner("user_id", value_of(row, _USER), self._default_owner)
        return _Place(user_id, str(value_of(row, _SESSION) or trace_id))

    def _of_trace(self, row: Mapping[str, Any]) -> list[Item]:
        trace_id = _id(row)
        place = self._places.get(trace_id) or self._place(row, trace_id)
        run = made(
            Run,
            **self._payloads(row),
            run_id=trace_id,
            user_id=place.user_id,
            session_id=place.session_id,
            name=row.get("name") or None,
            started_at=moment_of("timestamp", row.get("timestamp")),
            metadata=_object(row.get("metadata")) or None,
        )
        return [run]

    def _of_observation(self, row: Mapping[str, Any]) -> list[Item]:
        trace_id = value_of(row, _TRACE)
        if not isinstance(trace_id, str):
            raise InvalidValueError("trace_id", trace_id, "the id of the observation's trace")
        place = self._places.get(trace_id)
        if place is None:
            is_enriched = value_of(row, _USER) is not None or value_of(row, _SESSION) is not None
            if not is_enriched and self._default_owner is None:
                expected = "a trace that is in the export, or an observation with a user"
                raise InvalidValueError("trace_id", trace_id, expected)
            place = self._places.setdefault(trace_id, self._place(row, trace_id))
            self._begun.discard(trace_id)
        started_at = moment_of("start_time", value_of(row, _START))
        ended = value_of(row, _END)
        ended_at = None if ended is None else moment_of("end_time", ended)
        has_failed = row.get("level") == "ERROR"
        items: list[Item] = [made(Touch, user_id=place.user_id, session_id=place.session_id, at=started_at)]
        key = {"user_id": place.user_id, "run_id": trace_id}
        if "trace_name" in row and value_of(row, _PARENT) is None and trace_id not in self._begun:
            # No trace of its own is in an export of enriched observations: the root stands for it.
            self._begun.add(trace_id)
            status = {} if ended_at is None else {"status": "failed" if has_failed else "completed"}
            name = row.get("trace_name") or row.get("name") or None
            run = made(
                Run, **key, **status, session_id=place.session_id, name=name, started_at=started_at, ended_at=ended_at
            )
            items.append(run)
        payloads = self._payloads(row)
        step = made(
            Step,
            **key,
            step_id=_id(row),
            parent_step_id=value_of(row, _PARENT),
            kind=str(row.get("type") or "span").lower(),
            name=row.get("name") or None,
            started_at=started_at,
            ended_at=ended_at,
            inputs=payloads.get("input"),
            output=payloads.get("output"),
            errors=[value_of(row, _MESSAGE) or "error"] if has_failed else None,
            metadata=_object(row.get("metadata")) or None,
        )
        items.append(step)
        counts, cost = langfuse_counts(_object(value_of(row, _USAGE))), _cost(row)
        if counts or cost or (value_of(row, _MODEL) and str(row.get("type")).upper() in {"GENERATION", "EMBEDDING"}):
            event = made(
                UsageEvent,
                **key,
                **counts,
                session_id=place.session_id,
                model=value_of(row, _MODEL),
                cost_usd=cost,
                errored=has_failed,
                # A generation that Langfuse has no usage of came, and nobody knows what it used.
                measured=bool(counts or cost),
                kind="embedding" if str(row.get("type")).upper() == "EMBEDDING" else "llm",
                idempotency_key=_id(row),
                at=ended_at or started_at,
            )
            items.append(event)
        return items

    def _payloads(self, row: Mapping[str, Any]) -> dict[str, Any]:
        if not self._content:
            return {}
        return {name: value for name in ("input", "output") if (value := row.get(name)) not in (None, "")}


def langfuse_counts(usage: Mapping[str, Any]) -> Counts:
    """The counts of `usage_details`. Langfuse adds up the types of usage: none of them is a part of another.

    A type with `input` in its name is input, one with `output` is output
    (https://langfuse.com/docs/observability/features/token-and-cost-tracking). The names of the API before that,
    `promptTokens` and `completionTokens`, are read as well.
    """
    counts = {name.lower(): number(value) for name, value in usage.items()}

    def named(*parts: str, among: Iterable[str] = counts) -> list[str]:
        return [name for name in among if any(part in name for part in parts)]

    put_in, put_out = named("input", "prompttokens", "cache"), named("output", "completiontokens", "reasoning")
    read = named("cache_read", "cached", among=put_in)
    written = named("cache_creation", "cache_write", among=put_in)

    def total(names: Iterable[str]) -> int:
        return sum(counts[name] for name in names)

    return fitted(
        tokens_in=total(put_in),
        tokens_out=total(put_out),
        cache_read_tokens=total(read),
        cache_write_tokens=total(written),
        audio_tokens_in=total(named("audio", among=put_in)),
        reasoning_tokens=total(named("reasoning", among=put_out)),
        audio_tokens_out=total(named("audio", among=put_out)),
    )


def is_trace(row: Mapping[str, Any]) -> bool:
    """Whether the row is a trace: it has a time and no trace above it. So has the score of a session."""
    return "timestamp" in row and value_of(row, _TRACE) is None and not is_score(row)


def is_observation(row: Mapping[str, Any]) -> bool:
    """Whether the row is an observation. Scores are neither that nor a trace."""
    return value_of(row, _START) is not None


def is_score(row: Mapping[str, Any]) -> bool:
    """Whether the row is a score."""
    return not _OF_SCORES.isdisjoint(row) and not is_observation(row)


def unmapped_fields(row: Mapping[str, Any]) -> list[str]:
    """The fields of the row that have a value and no place here; for a row of another kind, its kind.

    Langfuse writes a manifest beside the files of each export to blob storage.
    """
    if not is_trace(row) and not is_observation(row):
        return ["score" if is_score(row) else "manifest" if "exportSource" in row else "unknown kind"]
    return [name for name in UNMAPPED if row.get(name) not in (None, "", [], {}, False)]


def _cost(row: Mapping[str, Any]) -> Decimal | None:
    """The cost of the observation: its total, or else the sum of its parts; None where Langfuse knows none."""
    costs = _object(value_of(row, _COSTS))
    total = amount_of("total_cost", value_of(row, _COST))
    if total is None:
        total = amount_of("cost_details.total", costs.get("total"))
    if total is None and costs:
        total = exact_sum(amount_of(f"cost_details.{name}", one) or Decimal(0) for name, one in costs.items())
    # Langfuse writes 0 where it has no price of the model.
    return total or None


def _id(row: Mapping[str, Any]) -> str:
    found = row.get("id")
    if not isinstance(found, str) or not found:
        raise InvalidValueError("id", found, "the id of the row")
    return found


def _object(value: Any) -> dict[str, Any]:
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}
