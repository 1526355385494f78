"""The query parameters of lists and reports as dependencies, which a host's own routes may use as well.

One of a host::

    @app.get("/mine")
    async def mine(asked: Annotated[Asked[SessionListFilters], Depends(asked_sessions)], viewer: ...):
        page = await db.lifecycle.list_session_rows(asked.seen_by(viewer))
        return {"sessions": [row.to_dict() for row in page.sessions], "next_cursor": asked.next_cursor(page)}

A value that they refuse raises `InvalidValueError`; `problems.problem_handler` answers it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

from pydantic_core import from_json

from session_lifecycle.errors import InvalidValueError
from session_lifecycle.models import (
    EffectiveStatus,
    RunFilters,
    SessionListFilters,
    SummaryFilters,
    UsageEventFilters,
    UsageFilters,
    Viewer,
)
from session_lifecycle.models.fields import AwareTime, Cost
from session_lifecycle.models.pages import MOST_PARTS, Page, PageFilters, Total
from session_lifecycle.models.session_filters import Window
from session_lifecycle.models.usage_classes import ServiceTier
from session_lifecycle.web.framework import Depends, Query

Range = Literal["24h", "7d", "30d", "all"]
DEFAULT_RANGE: Range = "30d"
_LENGTHS = {"24h": timedelta(hours=24), "7d": timedelta(days=7), "30d": timedelta(days=30)}
SessionOrder = Literal[
    "last_activity_at", "started_at", "ended_at", "cost_usd", "tokens_in", "tokens_out", "error_count"
]
SummaryOrder = Literal[SessionOrder, "last_prompt_at"]
Filters = TypeVar("Filters", bound=PageFilters)

_OfTags = Query(description="`name:text`, once for each tag that the session must have.", examples=[["customer:acme"]])
_OF_CURSOR = "the next_cursor of a page under the same filters"


@dataclass(frozen=True)
class Period:
    """The window of time that a request asks for, `[since, until)`."""

    range: Range | None
    """The range by its name; None where the request gives `since` or `until`."""
    since: datetime | None
    until: datetime | None


_Named = Annotated[
    Range | None,
    Query(
        alias="range",
        description=f"The time from now back; `all`: no limit. {DEFAULT_RANGE}, unless `since` or `until` is given.",
        examples=["7d"],
    ),
]
_NamedOfSession = Annotated[
    Range | None,
    Query(alias="range", description="The time from now back; `all`, unless it is given.", examples=["7d"]),
]
_Since = Annotated[
    AwareTime | None, Query(description="At this time or later, instead of `range`.", examples=["2026-01-05T00:00Z"])
]
_Until = Annotated[
    AwareTime | None, Query(description="Before this time, instead of `range`.", examples=["2026-01-06T00:00Z"])
]


async def asked_period(named: _Named = None, since: _Since = None, until: _Until = None) -> Period:
    """The window that `range`, or `since` and `until`, name."""
    return _period(named, since, until, DEFAULT_RANGE)


async def _period_of_session(named: _NamedOfSession = None, since: _Since = None, until: _Until = None) -> Period:
    """The window of a list that one session has: all time, unless another one is named."""
    return _period(named, since, until, "all")


def _period(named: Range | None, since: datetime | None, until: datetime | None, default: Range) -> Period:
    if since is None and until is None:
        named = named or default
        return Period(named, None if named == "all" else datetime.now(UTC) - _LENGTHS[named], None)
    if named is not None:
        raise InvalidValueError("range", named, "either range, or since and until, not both")
    Window.of_call(since=since, until=until)
    return Period(None, since, until)


AskedPeriod = Annotated[Period, Depends(asked_period)]
_PeriodOfSession = Annotated[Period, Depends(_period_of_session)]


@dataclass(frozen=True)
class Asked(Generic[Filters]):
    """The filters of a list that a request asks for. They name no viewer yet, so they find nothing."""

    filters: Filters
    range: Range | None = None

    def seen_by(self, viewer: Viewer) -> Filters:
        """The filters with the viewer."""
        return self.filters.model_copy(update={"viewer": viewer})

    def next_cursor(self, page: Page) -> str | None:
        """The cursor of the next page; None on the last one.

        A range begins at another time with each request. So the cursor has the beginning of the first page, which the
        next pages keep.
        """
        if page.next_cursor is None:
            return None
        since = self.filters.since
        begin = "" if since is None else (since - _EPOCH) // timedelta(microseconds=1)
        return f"{self.range or ''}.{begin}.{page.next_cursor}"


_EPOCH = datetime.fromtimestamp(0, UTC)


async def _asked_page(
    limit: Annotated[int, Query(ge=1, le=500, description="The most rows of the page.")] = 50,
    offset: Annotated[int, Query(ge=0, description="How many rows come before the page.")] = 0,
    cursor: Annotated[
        str | None, Query(description="The `next_cursor` of the page before, with the same other parameters.")
    ] = None,
    descending: Annotated[bool, Query(description="The newest or the largest first.")] = True,
    total: Annotated[
        Total, Query(description="How the rows of all pages are counted: all, at most 10,000, or not at all.")
    ] = "exact",
    owner_id: Annotated[UUID | None, Query(description="Only what this user owns.")] = None,
    dataset_id: Annotated[UUID | None, Query(description="Only what is shared through this data set.")] = None,
    agent_name: Annotated[str | None, Query(description="Only what is of this agent.", examples=["coder"])] = None,
) -> dict[str, Any]:
    """The parameters that all lists have beside the window, by the names of `PageFilters`."""
    return {
        "limit": limit,
        "offset": offset,
        "cursor": cursor,
        "descending": descending,
        "total": total,
        "owner_id": owner_id,
        "dataset_id": dataset_id,
        "agent_name": agent_name,
    }


def _read_cursor(cursor: str, period: Period) -> tuple[datetime | None, str]:
    """The beginning of the first page's window, and the cursor of the library."""
    try:
        named, begin, rest = cursor.split(".")
        since = _EPOCH + timedelta(microseconds=int(begin)) if begin else None
    except (ValueError, OverflowError):
        raise InvalidValueError("cursor", cursor, _OF_CURSOR) from None
    if named != (period.range or "") or (since is None) != (period.since is None):
        raise InvalidValueError("cursor", cursor, _OF_CURSOR)
    return since, rest


async def _session_conditions(
    status: Annotated[EffectiveStatus | None, Query(description="The effective status.", examples=["running"])] = None,
    session_id_prefix: Annotated[str | None, Query(description="The id begins with this text.")] = None,
    excluded_session_id_prefix: Annotated[
        str | None, Query(description="The id does not begin with this text.")
    ] = None,
    agent_names: Annotated[list[str] | None, Query(description="The agent is one of these.")] = None,
    without_dataset: Annotated[bool, Query(description="The session is in no data set.")] = False,
    min_cost_usd: Annotated[Cost | None, Query(description="USD.")] = None,
    max_cost_usd: Annotated[Cost | None, Query(description="USD.")] = None,
    min_tokens: Annotated[int | None, Query(ge=0, description="Of the input and output together.")] = None,
    max_tokens: Annotated[int | None, Query(ge=0, description="Of the input and output together.")] = None,
    min_errors: Annotated[int | None, Query(ge=0, description="Of the failed model calls.")] = None,
    max_errors: Annotated[int | None, Query(ge=0, description="Of the failed model calls.")] = None,
    min_duration_s: Annotated[float | None, Query(ge=0, description="Seconds.")] = None,
    max_duration_s: Annotated[float | None, Query(ge=0, description="Seconds.")] = None,
    metadata: Annotated[
        str | None,
        Query(
            description="A JSON object: the metadata has these keys with these values.",
            examples=['{"branch": "main"}'],
        ),
    ] = None,
    tags: Annotated[list[str] | None, _OfTags] = None,
    tool: Annotated[str | None, Query(description="A run of the session called this tool.")] = None,
    annotation: Annotated[str | None, Query(description="The session has an annotation of this name.")] = None,
    annotation_label: Annotated[str | None, Query(description="The label of that annotation.")] = None,
    annotator: Annotated[str | None, Query(description="Who made that annotation.")] = None,
    min_score: Annotated[float | None, Query(description="Of that annotation.")] = None,
    max_score: Annotated[float | None, Query(description="Of that annotation.")] = None,
) -> dict[str, Any]:
    """The parameters that all lists of sessions have, by the names of `SessionFilters`."""
    return {
        "status_filter": status,
        "session_id_prefix": session_id_prefix,
        "excluded_session_id_prefix": excluded_session_id_prefix,
        "agent_names": agent_names,
        "without_dataset": without_dataset,
        "min_cost_usd": min_cost_usd,
        "max_cost_usd": max_cost_usd,
        "min_tokens": min_tokens,
        "max_tokens": max_tokens,
        "min_errors": min_errors,
        "max_errors": max_errors,
        "min_duration_s": min_duration_s,
        "max_duration_s": max_duration_s,
        "metadata": _json_object(metadata),
        "tags": _by_name(tags),
        "tool": tool,
        "annotation": annotation,
        "annotation_label": annotation_label,
        "annotator": annotator,
        "min_score": min_score,
        "max_score": max_score,
    }


async def _run_choice(
    project: Annotated[str | None, Query(description="Runs of this project; `default`: of none.")] = None,
    provider: Annotated[str | None, Query(description="Runs of this provider.", examples=["openai"])] = None,
    model: Annotated[str | None, Query(description="In upper or lower case.", examples=["gpt-4o-mini"])] = None,
    client: Annotated[str | None, Query(description="`Unknown`: runs without a client.", examples=["Cursor"])] = None,
) -> dict[str, Any]:
    """The parameters that choose runs of a session, by the names of `RunChoice`."""
    return {"project": project, "provider": provider, "model": model, "client": client}


_SessionId = Annotated[str | None, Query(description="Only of the sessions with this id.", examples=["chat-1"])]
_Page = Annotated[dict[str, Any], Depends(_asked_page)]
_SessionConditions = Annotated[dict[str, Any], Depends(_session_conditions)]
_RunChoice = Annotated[dict[str, Any], Depends(_run_choice)]


async def asked_sessions(
    period: AskedPeriod,
    page: _Page,
    conditions: _SessionConditions,
    order_by: Annotated[SessionOrder, Query(description="What the page is ordered by.")] = "last_activity_at",
) -> Asked[SessionListFilters]:
    """The filters of a list of sessions."""
    return _asked(SessionListFilters, period, page, conditions, {"order_by": order_by})


async def asked_changes(
    conditions: _SessionConditions,
    owner_id: Annotated[UUID | None, Query(description="Only what this user owns.")] = None,
    dataset_id: Annotated[UUID | None, Query(description="Only what is shared through this data set.")] = None,
    agent_name: Annotated[str | None, Query(description="Only what is of this agent.")] = None,
) -> SessionListFilters:
    """The filters of a stream of changed sessions, which has no window and no pages."""
    of_session = {"owner_id": owner_id, "dataset_id": dataset_id, "agent_name": agent_name}
    return SessionListFilters.of_call(**_given(conditions | of_session))


async def asked_summaries(
    period: AskedPeriod,
    page: _Page,
    conditions: _SessionConditions,
    choice: _RunChoice,
    session_id: _SessionId = None,
    order_by: Annotated[SummaryOrder, Query(description="What the page is ordered by.")] = "last_activity_at",
    started_since: Annotated[AwareTime | None, Query(description="Started at this time or later.")] = None,
    started_until: Annotated[AwareTime | None, Query(description="Started before this time.")] = None,
    search: Annotated[str | None, Query(description="A message contains this text, in any case.")] = None,
    include_open: Annotated[bool, Query(description="Whether open runs count.")] = True,
    matching_only: Annotated[bool, Query(description="Whether the figures cover only the runs chosen.")] = False,
) -> Asked[SummaryFilters]:
    """The filters of a list of session summaries."""
    own = {
        "session_id": session_id,
        "order_by": order_by,
        "started_since": started_since,
        "started_until": started_until,
        "search": search,
        "include_open": include_open,
        "matching_only": matching_only,
    }
    return _asked(SummaryFilters, period, page, conditions, choice, own)


async def _steps_page(
    steps_limit: Annotated[
        int | None, Query(ge=1, le=MOST_PARTS, description="The most steps of each run; all, unless it is given.")
    ] = None,
    steps_offset: Annotated[
        int, Query(ge=0, description="How many steps of each run are left out at the beginning.")
    ] = 0,
) -> dict[str, Any]:
    """The parameters that choose the steps of each run, by the names of `RunFilters`."""
    return {"steps_limit": steps_limit, "steps_offset": steps_offset}


_IncludeOpen = Annotated[bool, Query(description="Whether open runs are listed.")]
_StepsPage = Annotated[dict[str, Any], Depends(_steps_page)]


async def asked_runs(
    period: AskedPeriod,
    page: _Page,
    choice: _RunChoice,
    steps: _StepsPage,
    session_id: _SessionId = None,
    include_open: _IncludeOpen = False,
) -> Asked[RunFilters]:
    """The filters of a list of runs. Its window is on the start of the runs."""
    return _asked(RunFilters, period, page, choice, steps, {"session_id": session_id, "include_open": include_open})


async def asked_runs_of_session(
    period: _PeriodOfSession, page: _Page, choice: _RunChoice, steps: _StepsPage, include_open: _IncludeOpen = True
) -> Asked[RunFilters]:
    """The filters of a list of the runs of one session, which the path names."""
    return _asked(RunFilters, period, page, choice, steps, {"include_open": include_open})


async def _usage_choice(
    run_id: Annotated[str | None, Query(description="Of this run.", examples=["run-1"])] = None,
    model: Annotated[str | None, Query(description="In upper or lower case; `unknown`: of none.")] = None,
    provider: Annotated[str | None, Query(description="`unknown`: of none.", examples=["openai"])] = None,
    client: Annotated[str | None, Query(description="Of the run; `Unknown`: of none.")] = None,
    kind: Annotated[Literal["llm", "embedding"] | None, Query(description="The kind of the model call.")] = None,
    billing: Annotated[Literal["api", "plan"] | None, Query(description="`plan`: under a subscription.")] = None,
    service_tier: Annotated[ServiceTier | None, Query(description="The tier that the response was billed in.")] = None,
    tags: Annotated[list[str] | None, _OfTags] = None,
) -> dict[str, Any]:
    """The parameters that choose usage events of a session, by the names of `UsageChoice`."""
    return {
        "run_id": run_id,
        "model": model,
        "provider": provider,
        "client": client,
        "kind": kind,
        "billing": billing,
        "service_tier": service_tier,
        "tags": _by_name(tags),
    }


_UsageChoice = Annotated[dict[str, Any], Depends(_usage_choice)]


async def asked_usage_of_session(
    period: _PeriodOfSession, page: _Page, choice: _UsageChoice
) -> Asked[UsageEventFilters]:
    """The filters of a list of the usage events of one session. Its window is on the time of use."""
    return _asked(UsageEventFilters, period, page, choice)


async def asked_usage(
    choice: _UsageChoice,
    session_id: _SessionId = None,
    owner_id: Annotated[UUID | None, Query(description="Only what this user owns.")] = None,
    dataset_id: Annotated[UUID | None, Query(description="Only what is shared through this data set.")] = None,
    agent_name: Annotated[str | None, Query(description="Only what is of this agent.")] = None,
) -> UsageFilters:
    """The filters of a report on usage."""
    of_session = {"session_id": session_id, "owner_id": owner_id, "dataset_id": dataset_id, "agent_name": agent_name}
    return UsageFilters.of_call(**_given(choice | of_session))


def _asked(kind: type[Filters], period: Period, *parts: Mapping[str, Any]) -> Asked[Filters]:
    fields: dict[str, Any] = {"since": period.since, "until": period.until}
    for part in parts:
        fields |= part
    if fields["cursor"] is not None:
        fields["since"], fields["cursor"] = _read_cursor(fields["cursor"], period)
    return Asked(kind.of_call(**_given(fields)), period.range)


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _json_object(text: str | None) -> Any:
    if text is None:
        return None
    try:
        found = from_json(text, allow_inf_nan=False)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InvalidValueError("metadata", text, "a JSON object")
    return found


def _by_name(pairs: list[str] | None) -> dict[str, str] | None:
    if not pairs:
        return None
    found: dict[str, str] = {}
    for pair in pairs:
        name, separator, text = pair.partition(":")
        if not separator or name in found:
            raise InvalidValueError("tags", pair, "name:text, and each name once")
        found[name] = text
    return found
