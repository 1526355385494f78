"""The routes that read: sessions, summaries, threads, messages, runs, usage and figures."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, get_args
from uuid import UUID

from session_lifecycle.database import SessionDatabase
from session_lifecycle.models import (
    CostByModelRow,
    CostByUserAgentRow,
    EffectiveStatus,
    LedgerEvent,
    Message,
    RunDetail,
    RunFilters,
    RunPage,
    SessionListFilters,
    SessionListPage,
    SessionStats,
    SessionSummary,
    Step,
    SummaryFilters,
    SummaryPage,
    TelemetrySummary,
    ThreadPage,
    UsageEventFilters,
    UsageEventPage,
    UsageFilters,
    UsageReport,
)
from session_lifecycle.models.pages import Page
from session_lifecycle.models.reports import MOST_ROWS, OwnDimension
from session_lifecycle.models.session_details import MOST_MESSAGES
from session_lifecycle.models.sessions import SessionRecord
from session_lifecycle.web.answers import NOT_MODIFIED, SESSION, answer, documented, list_of, page_of
from session_lifecycle.web.dependencies import (
    Asker,
    Database,
    Dependency,
    FoundSession,
    OwnerId,
    SessionIdOfPath,
    bring,
    no_session,
)
from session_lifecycle.web.filters import (
    Asked,
    AskedPeriod,
    Range,
    asked_runs,
    asked_runs_of_session,
    asked_sessions,
    asked_summaries,
    asked_usage,
    asked_usage_of_session,
)
from session_lifecycle.web.framework import APIRouter, Depends, Query, Request, Response
from session_lifecycle.web.health import health_router
from session_lifecycle.web.live import LiveFeed, live_router
from session_lifecycle.web.problems import described
from session_lifecycle.web.routes import SessionRoute

UserEmails = Callable[[Sequence[UUID]], Awaitable[Mapping[UUID, str]]]
UNKNOWN_EMAIL = "unknown"
_FAILURES = described(HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.SERVICE_UNAVAILABLE)
_ALL: dict[int | str, dict[str, Any]] = {
    401: {"description": "The host's authentication refuses the request."},
    **described(HTTPStatus.UNPROCESSABLE_ENTITY),
    **_FAILURES,
}
_LIST = NOT_MODIFIED | _ALL
_ONE = _LIST | described(HTTPStatus.NOT_FOUND)
_AGENT_INFO = ("agent_source", "agent_session_name", "origin_function")
"""What a session's metadata says of its agent, beside `agent_type`, by the names of the keys."""

_Page = page_of(SessionListPage, "SessionPage", sessions=SESSION)
_RunPage = page_of(RunPage, "RunPage", runs=RunDetail)
_WithAgent = documented(
    SessionRecord,
    "SessionWithAgentInfo",
    last={"effective_status": EffectiveStatus, "agent_type": str | None, **dict.fromkeys(_AGENT_INFO, str | None)},
)
_Recent = documented(
    SessionRecord,
    "SessionWithRecentActivity",
    last={
        "effective_status": EffectiveStatus,
        "label": str | None,
        "msg_count": int,
        "tool_calls": int,
        "qas": list[Message],
        "traces": list[Step],
        "has_payloads": bool,
    },
)
_CostByUserAgent = documented(
    None,
    "CostByUserAgent",
    last={
        "user_id": UUID,
        "user_email": str,
        "agent_type": str | None,
        "session_count": int,
        "tokens_in": int,
        "tokens_out": int,
        "tokens_total": int,
        "cost_usd": float,
        "cache_read_tokens": int,
        "cache_write_tokens": int,
        "reasoning_tokens": int,
        "unpriced_events": int,
    },
)

_READING = APIRouter(route_class=SessionRoute)


def session_router(
    db: SessionDatabase, *, viewer: Dependency, user_emails: UserEmails | None = None, feed: LiveFeed | None = None
) -> APIRouter:
    """The routes that read, and those of health. No route of it writes.

    A query parameter that a route does not have is ignored, because it may be one of the host's dependency, such as an
    API key, which only the host knows.

    Args:
        db: The database. The host opens and closes it.
        viewer: The host's dependency that gives the `Viewer` of a request, or raises the host's own error, such as 401.
            The routes of health do not ask it.
        user_emails: Finds the e-mail addresses of users for `/sessions/cost-by-user-agent`; None: all are `unknown`.
        feed: What `/events` streams; None: there is no such route.

    Example:
        app.include_router(session_router(db, viewer=current_viewer), prefix="/api/v1")
    """

    async def bring_emails(request: Request) -> None:
        request.state.session_user_emails = user_emails

    router = APIRouter()
    router.include_router(_READING, dependencies=[*bring(db, viewer), Depends(bring_emails)])
    router.include_router(health_router(db))
    if feed is not None:
        router.include_router(live_router(db, viewer=viewer, feed=feed))
    return router


def _page(asked: Asked[Any], page: Page, **rows: Any) -> dict[str, Any]:
    """A page: its rows first, then the fields of every page in the reference's order, then others."""
    fields = {name: getattr(page, name) for name in ("total", "limit", "offset", "has_more")}
    fields["next_cursor"] = asked.next_cursor(page)
    return rows | fields | {"total_is_lower_bound": page.total_is_lower_bound}


@_READING.get("/sessions", tags=["sessions"], responses=_LIST, response_model=_Page)
async def list_sessions(
    request: Request,
    db: Database,
    viewer: Asker,
    asked: Annotated[Asked[SessionListFilters], Depends(asked_sessions)],
) -> Response:
    """A page of the sessions that the viewer sees, last active in the window."""
    page = await db.lifecycle.list_session_rows(asked.seen_by(viewer))
    return answer(request, _page(asked, page, sessions=page.sessions))


@_READING.get(
    "/sessions/with-agent-info",
    tags=["sessions"],
    responses=_LIST,
    response_model=page_of(SessionListPage, "SessionWithAgentInfoPage", sessions=_WithAgent),
)
async def list_sessions_with_agent_info(
    request: Request,
    db: Database,
    viewer: Asker,
    asked: Annotated[Asked[SessionListFilters], Depends(asked_sessions)],
) -> Response:
    """A page of sessions as `/sessions` has it, each with its agent.

    The fields come from the keys of these names in the session's metadata, where they are text. Without one,
    `agent_type` is the name of the agent, else the prefix of the session's id, `claude-code` or `codex`.
    """
    page = await db.lifecycle.list_session_rows(asked.seen_by(viewer))
    sessions = [
        {
            **row.to_dict(),
            "agent_type": row.record.agent_type,
            **{name: _text(row.record.metadata.get(name)) for name in _AGENT_INFO},
        }
        for row in page.sessions
    ]
    return answer(request, _page(asked, page, sessions=sessions))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


@_READING.get(
    "/sessions/stats",
    tags=["figures"],
    responses=_LIST,
    response_model=documented(SessionStats, first={"range": Range | None}),
)
async def get_stats(request: Request, db: Database, viewer: Asker, period: AskedPeriod) -> Response:
    """Figures over all sessions that the viewer sees, last active in the window. Money is USD."""
    stats = await db.lifecycle.aggregate_stats(viewer, since=period.since, until=period.until)
    return answer(request, {"range": period.range, **dict(stats)})


@_READING.get(
    "/sessions/cost-by-model",
    tags=["figures"],
    responses=_LIST,
    response_model=list_of(documented(CostByModelRow)),
)
async def list_cost_by_model(request: Request, db: Database, viewer: Asker, period: AskedPeriod) -> Response:
    """The cost of each model over the sessions last active in the window, the most expensive first."""
    return answer(request, await db.lifecycle.cost_by_model(viewer, since=period.since, until=period.until))


@_READING.get(
    "/sessions/cost-by-user-agent",
    tags=["figures"],
    responses=_LIST,
    response_model=list_of(_CostByUserAgent),
)
async def list_cost_by_user_agent(request: Request, db: Database, viewer: Asker, period: AskedPeriod) -> Response:
    """The cost of each user's sessions with each type of agent, last active in the window, the most expensive first.

    `user_email` is `unknown` where the host does not tell it.
    """
    rows: list[CostByUserAgentRow] = await db.reports.cost_by_user_agent(viewer, since=period.since, until=period.until)
    find: UserEmails | None = request.state.session_user_emails
    emails = {} if find is None else await find(sorted({row.user_id for row in rows}))
    found = [
        {
            "user_id": row.user_id,
            "user_email": emails.get(row.user_id, UNKNOWN_EMAIL),
            "agent_type": row.agent_type,
            "session_count": row.session_count,
            "tokens_in": row.tokens_in,
            "tokens_out": row.tokens_out,
            "tokens_total": row.tokens_in + row.tokens_out,
            "cost_usd": row.cost_usd,
        }
        | {name: getattr(row, name) for name in _CostByUserAgent.model_fields if hasattr(row, name)}
        for row in rows
    ]
    return answer(request, found)


@_READING.get("/sessions/{session_id}", tags=["sessions"], responses=_ONE, response_model=_Recent)
async def get_session(
    request: Request, db: Database, viewer: Asker, session_id: SessionIdOfPath, owner_id: OwnerId = None
) -> Response:
    """One session, with its label, the number of its messages and tool calls, and the last 20 of each.

    `qas` are messages and `traces` are tool calls, the oldest first. The label is the first 120 characters of the
    user's first message, else of the name of the first run.
    """
    found = await db.activity.get_recent_activity(session_id, viewer, owner_id=owner_id)
    if found is None:
        raise no_session()
    recent = {
        "label": found.label,
        "msg_count": found.messages_count,
        "tool_calls": found.tool_calls_count,
        "qas": found.messages,
        "traces": found.tool_calls,
        "has_payloads": found.has_payloads,
    }
    return answer(request, found.session.to_dict() | recent)


@_READING.get(
    "/sessions/{session_id}/threads", tags=["sessions"], responses=_ONE, response_model=documented(ThreadPage)
)
async def list_threads(
    request: Request,
    db: Database,
    viewer: Asker,
    found: FoundSession,
    limit: Annotated[int, Query(ge=1, le=500, description="The most threads of the page.")] = 50,
    after: Annotated[str | None, Query(description="The id of a thread: the page begins with the next one.")] = None,
    before: Annotated[str | None, Query(description="The id of a thread: the page ends with the one before.")] = None,
) -> Response:
    """A page of the session's threads, oldest first, and the summary of the session."""
    page = await db.activity.list_threads(
        found.record.session_id, viewer, owner_id=found.record.user_id, limit=limit, after=after, before=before
    )
    if page is None:
        raise no_session()
    return answer(request, page)


@_READING.get(
    "/sessions/{session_id}/messages",
    tags=["sessions"],
    responses=_ONE,
    response_model=documented(None, "Messages", last={"messages": list[Message]}),
)
async def list_messages(
    request: Request,
    db: Database,
    viewer: Asker,
    found: FoundSession,
    limit: Annotated[int, Query(ge=1, le=MOST_MESSAGES, description="The most messages.")] = 100,
    max_characters: Annotated[int | None, Query(ge=0, description="The most characters of all together.")] = None,
    exclude_run_id: Annotated[str | None, Query(description="Without the messages of this run.")] = None,
) -> Response:
    """The newest messages of the session that fit, oldest first."""
    messages = await db.activity.chat_history(
        found.record.session_id,
        viewer,
        owner_id=found.record.user_id,
        limit=limit,
        max_characters=max_characters,
        exclude_run_id=exclude_run_id,
    )
    return answer(request, {"messages": messages})


@_READING.get(
    "/sessions/{session_id}/runs",
    tags=["sessions"],
    responses=_ONE,
    response_model=_RunPage,
)
async def list_runs_of_session(
    request: Request,
    db: Database,
    viewer: Asker,
    found: FoundSession,
    asked: Annotated[Asked[RunFilters], Depends(asked_runs_of_session)],
) -> Response:
    """A page of the session's runs by their start, each with its steps, messages and usage events."""
    of_session = {"session_id": found.record.session_id, "owner_id": found.record.user_id}
    page = await db.activity.list_runs(asked.seen_by(viewer).model_copy(update=of_session))
    return answer(request, _page(asked, page, runs=page.runs) | {"has_payloads": page.has_payloads})


@_READING.get(
    "/sessions/{session_id}/usage",
    tags=["sessions"],
    responses=_ONE,
    response_model=page_of(UsageEventPage, "UsageEventPage", events=LedgerEvent),
)
async def list_usage_of_session(
    request: Request,
    db: Database,
    viewer: Asker,
    found: FoundSession,
    asked: Annotated[Asked[UsageEventFilters], Depends(asked_usage_of_session)],
) -> Response:
    """A page of the session's usage events by their time of use, with every column of the ledger."""
    of_session = {"session_id": found.record.session_id, "owner_id": found.record.user_id}
    page = await db.activity.list_usage_events(asked.seen_by(viewer).model_copy(update=of_session))
    return answer(request, _page(asked, page, events=page.events))


@_READING.get(
    "/summaries",
    tags=["sessions"],
    responses=_LIST,
    response_model=page_of(SummaryPage, "SummaryPage", sessions=SessionSummary),
)
async def list_summaries(
    request: Request,
    db: Database,
    viewer: Asker,
    asked: Annotated[Asked[SummaryFilters], Depends(asked_summaries)],
) -> Response:
    """A page of sessions, each with figures over its runs, steps and messages."""
    page = await db.activity.list_session_summaries(asked.seen_by(viewer))
    return answer(request, _page(asked, page, sessions=page.sessions))


@_READING.get("/runs", tags=["runs"], responses=_LIST, response_model=_RunPage)
async def list_runs(
    request: Request, db: Database, viewer: Asker, asked: Annotated[Asked[RunFilters], Depends(asked_runs)]
) -> Response:
    """A page of runs by their start, each with its steps, messages and usage events."""
    page = await db.activity.list_runs(asked.seen_by(viewer))
    return answer(request, _page(asked, page, runs=page.runs) | {"has_payloads": page.has_payloads})


@_READING.get("/models", tags=["runs"], responses=_LIST, response_model=list[str])
async def list_models(
    request: Request,
    db: Database,
    viewer: Asker,
    prefix: Annotated[str, Query(description="The name begins with this text, in any case.", examples=["gpt"])] = "",
) -> Response:
    """The models of runs that have ended, each once, sorted."""
    return answer(request, await db.activity.list_models(viewer, prefix))


@_READING.get("/clients", tags=["runs"], responses=_LIST, response_model=list[str])
async def list_clients(request: Request, db: Database, viewer: Asker) -> Response:
    """The clients of runs that have ended, each once, sorted. A run without a client has the client `Unknown`."""
    return answer(request, await db.activity.list_clients(viewer))


@_READING.get("/agents", tags=["sessions"], responses=_LIST, response_model=list[str])
async def list_agents(request: Request, db: Database, viewer: Asker) -> Response:
    """The agents of sessions and runs, each once, sorted."""
    return answer(request, await db.activity.list_agents(viewer))


@_READING.get("/usage", tags=["figures"], responses=_LIST, response_model=documented(UsageReport))
async def report_usage(
    request: Request,
    db: Database,
    viewer: Asker,
    period: AskedPeriod,
    filters: Annotated[UsageFilters, Depends(asked_usage)],
    group_by: Annotated[
        list[str] | None,
        Query(
            description=f"The dimensions: {', '.join(get_args(OwnDimension))}, or `tag:` and the name of a tag. A "
            "dimension of time needs both ends of the window, which every range but `all` has.",
            examples=[["model", "day"]],
        ),
    ] = None,
    order_by: Annotated[str, Query(description="A figure, greatest first, or one of `group_by`.")] = "cost_usd",
    limit: Annotated[int, Query(ge=1, le=MOST_ROWS, description="The most rows.")] = 1000,
    timezone: Annotated[
        str, Query(description="The time zone whose clocks begin hours, days, weeks and months.")
    ] = "UTC",
    details: Annotated[list[str] | None, Query(description="Further counts of the events to add up.")] = None,
) -> Response:
    """Usage and spend in the window, by the time of use, one row for each combination of the dimensions."""
    until = period.until
    if until is None and period.range not in {None, "all"}:
        until = datetime.now(UTC)
    report = await db.reports.usage(
        viewer,
        group_by=group_by or (),
        since=period.since,
        until=until,
        filters=filters,
        order_by=order_by,
        limit=limit,
        timezone=timezone,
        details=details or (),
    )
    return answer(request, report)


@_READING.get("/telemetry", tags=["runs"], responses=_LIST, response_model=documented(TelemetrySummary))
async def get_telemetry(
    request: Request,
    db: Database,
    viewer: Asker,
    period: AskedPeriod,
    provider: Annotated[str | None, Query(description="Runs of this provider.", examples=["openai"])] = None,
    model: Annotated[str | None, Query(description="In upper or lower case.", examples=["gpt-4o-mini"])] = None,
    client: Annotated[str | None, Query(description="`Unknown`: runs without a client.")] = None,
) -> Response:
    """Figures over the runs that ended in the window."""
    return answer(
        request,
        await db.reports.telemetry(
            viewer, provider=provider, model=model, client=client, since=period.since, until=period.until
        ),
    )
