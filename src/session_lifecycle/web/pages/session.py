"""One session: its figures, and one view of it at a time, in pages.

The head takes two reads: the session, and the figures of it with its descendants. Each view takes one read more, but
`usage` three. The views of runs read no payloads; `run` reads those of one run.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

from session_lifecycle.models import RunFilters, SessionRowWithStatus, UsageEventFilters, UsageFilters
from session_lifecycle.models.fields import AwareTime
from session_lifecycle.models.session_details import MOST_MESSAGES
from session_lifecycle.web.dependencies import may_write_for, no_session
from session_lifecycle.web.framework import APIRouter, Query, Response
from session_lifecycle.web.pages.problems import PageRoute
from session_lifecycle.web.pages.visit import AskedVisit, Visit
from session_lifecycle.web.pages.waterfall import STEPS_SHOWN, has_errors, waterfall

router = APIRouter(route_class=PageRoute)

RUNS_SHOWN = 20
MESSAGES_SHOWN = 50
TOOL_CALLS_SHOWN = 100
THREADS_SHOWN = 20
EVENTS_SHOWN = 50
GROUPS_SHOWN = 20
ANNOTATIONS_SHOWN = 50
STEPS_OF_RUN = 100
MOST_CHARACTERS = 20_000
"""The most characters of one message or payload. A page that has more says so."""
_MOMENT = timedelta(microseconds=1)
_LAST_MOMENT = datetime.max.replace(tzinfo=UTC) - _MOMENT
View = Literal["timeline", "transcript", "tools", "threads", "usage", "annotations"]
VIEWS: dict[View, str] = {
    "timeline": "Timeline",
    "transcript": "Transcript",
    "tools": "Tool calls",
    "threads": "Threads",
    "usage": "Usage and cost",
    "annotations": "Annotations",
}
DONE = {
    "end": "The session is ended.",
    "reopen": "The session runs again.",
    "annotate": "The annotation is saved.",
    "edit": "Title and tags are saved.",
}
"""What a page says after a form was sent."""
SessionId = Annotated[str, Query(alias="id", min_length=1, max_length=512, description="The id of the session.")]
Owner = Annotated[UUID | None, Query(alias="owner", description="The owner; none: see rule R15.")]
Offset = Annotated[int, Query(ge=0, le=2**31, description="How many are left out at the beginning.")]


@dataclass(frozen=True)
class Text:
    """A text for a page."""

    text: str
    is_cut: bool


async def find_session(visit: Visit, session_id: str, owner: UUID | None) -> SessionRowWithStatus:
    """The session.

    Raises:
        RequestRefusedError: There is none that the viewer may see.
    """
    found = await visit.db.lifecycle.get_session_row(session_id, visit.viewer, owner_id=owner)
    if found is None:
        raise no_session()
    return found


def address_of(visit: Visit, session_id: str, owner: UUID, **more: Any) -> str:
    """The address of a session's page. The id is a parameter, because a path cannot have every text."""
    return visit.address.to("/session", id=session_id, owner=owner, **more)


@router.get("/session")
async def session(
    visit: AskedVisit,
    session_id: SessionId,
    owner: Owner = None,
    view: View = "timeline",
    offset: Offset = 0,
    cursor: Annotated[str | None, Query(description="The `next_cursor` of the page before, of usage.")] = None,
    after: Annotated[str | None, Query(max_length=1_000, description="A thread: the page begins after it.")] = None,
    before: Annotated[str | None, Query(max_length=1_000, description="A thread: the page ends before it.")] = None,
    done: Annotated[str | None, Query(max_length=20, description="What a form did.")] = None,
) -> Response:
    """One session, in one view."""
    found = await find_session(visit, session_id, owner)
    record = found.record
    family = await visit.db.lifecycle.get_family_figures(record.session_id, visit.viewer, owner_id=record.user_id)
    match view:
        case "timeline":
            shown = await _timeline(visit, found, offset)
        case "transcript":
            shown = await _transcript(visit, found, offset)
        case "tools":
            shown = await _tools(visit, found)
        case "threads":
            shown = await _threads(visit, found, after, before)
        case "usage":
            shown = await _usage(visit, found, cursor)
        case "annotations":
            shown = await _annotations(visit, found, offset)
    return visit.answer(
        f"session/{view}.html",
        view=view,
        offset=offset,
        done=DONE.get(done or ""),
        **_head(visit, found, await visit.names_of([record.user_id])),
        family=family,
        **shown,
    )


@router.get("/session/run")
async def run_of_session(
    visit: AskedVisit,
    session_id: SessionId,
    run: Annotated[str, Query(min_length=1, max_length=1_000, description="The id of the run.")],
    start: Annotated[AwareTime, Query(description="When the run started.")],
    owner: Owner = None,
    offset: Offset = 0,
) -> Response:
    """One run with its steps, in pages, and with its payloads."""
    found = await find_session(visit, session_id, owner)
    record = found.record
    # No report takes the id of a run. Its start finds it, and those that started in the same moment.
    page = await visit.db.activity.list_runs(
        RunFilters(
            viewer=visit.viewer,
            session_id=record.session_id,
            owner_id=record.user_id,
            since=start,
            until=min(start, _LAST_MOMENT) + _MOMENT,
            include_open=True,
            limit=500,
            total="none",
            steps_limit=STEPS_OF_RUN,
            steps_offset=offset,
        )
    )
    detail = next((one for one in page.runs if one.run_id == run), None)
    if detail is None:
        raise no_session()
    return visit.answer(
        "session/run.html",
        view="timeline",
        done=None,
        family=None,
        offset=offset,
        run=detail,
        steps_shown=STEPS_OF_RUN,
        has_payloads=page.has_payloads,
        timeline=waterfall([detail], datetime.now(UTC), offset),
        **_head(visit, found, await visit.names_of([record.user_id])),
    )


def _head(visit: Visit, found: SessionRowWithStatus, names: dict[UUID, str]) -> dict[str, Any]:
    """What every view of a session shows."""
    record = found.record

    def address(**more: Any) -> str:
        return address_of(visit, record.session_id, record.user_id, **more)

    return {
        "row": found,
        "record": record,
        "owner_name": names[record.user_id],
        "views": VIEWS,
        "address": address,
        "may_write": visit.dashboard.writable and may_write_for(visit.viewer, record.user_id),
        "cut": cut,
        "payload": payload_text,
        "has_errors": has_errors,
    }


async def _timeline(visit: Visit, found: SessionRowWithStatus, offset: int) -> dict[str, Any]:
    record = found.record
    detail = await visit.db.activity.get_session_detail(
        record.session_id,
        visit.viewer,
        owner_id=record.user_id,
        limit=RUNS_SHOWN,
        offset=offset,
        payloads=False,
        steps_limit=STEPS_SHOWN,
    )
    if detail is None:  # deleted since
        raise no_session()
    return {
        "detail": detail,
        "summary": detail.summary,
        "timeline": waterfall(detail.runs, datetime.now(UTC)),
        "page_size": RUNS_SHOWN,
    }


async def _transcript(visit: Visit, found: SessionRowWithStatus, offset: int) -> dict[str, Any]:
    record = found.record
    # The newest messages that fit, the oldest of them first: a page is their beginning.
    asked = offset + MESSAGES_SHOWN
    wanted = min(asked, MOST_MESSAGES - 1)
    history = await visit.db.activity.chat_history(
        record.session_id, visit.viewer, owner_id=record.user_id, limit=wanted + 1
    )
    has_earlier = len(history) > wanted
    messages = history[has_earlier:]
    return {
        "messages": messages[: max(0, len(messages) - offset)],
        "has_earlier": has_earlier and asked <= wanted,
        "is_beyond": has_earlier and asked > wanted,
        "page_size": MESSAGES_SHOWN,
    }


async def _tools(visit: Visit, found: SessionRowWithStatus) -> dict[str, Any]:
    record = found.record
    recent = await visit.db.activity.get_recent_activity(
        record.session_id, visit.viewer, owner_id=record.user_id, limit=TOOL_CALLS_SHOWN
    )
    if recent is None:
        raise no_session()
    return {"recent": recent}


async def _threads(visit: Visit, found: SessionRowWithStatus, after: str | None, before: str | None) -> dict[str, Any]:
    record = found.record
    page = await visit.db.activity.list_threads(
        record.session_id, visit.viewer, owner_id=record.user_id, limit=THREADS_SHOWN, after=after, before=before
    )
    if page is None:
        raise no_session()
    return {
        "page": page,
        "has_earlier": after is not None or (before is not None and page.has_more),
        "has_later": before is not None or page.has_more,
    }


async def _usage(visit: Visit, found: SessionRowWithStatus, cursor: str | None) -> dict[str, Any]:
    record = found.record
    events = await visit.db.activity.list_usage_events(
        UsageEventFilters.of_call(
            viewer=visit.viewer,
            session_id=record.session_id,
            owner_id=record.user_id,
            limit=EVENTS_SHOWN,
            cursor=cursor,
            total="bounded",
        )
    )
    filters = UsageFilters(session_id=record.session_id, owner_id=record.user_id)
    by_model = await visit.db.reports.usage(visit.viewer, group_by=["model"], filters=filters, limit=GROUPS_SHOWN)
    by_run = await visit.db.reports.usage(visit.viewer, group_by=["run"], filters=filters, limit=GROUPS_SHOWN)
    return {"events": events, "by_model": by_model, "by_run": by_run}


async def _annotations(visit: Visit, found: SessionRowWithStatus, offset: int) -> dict[str, Any]:
    record = found.record
    listed = await visit.db.lifecycle.list_annotations(
        record.session_id, visit.viewer, owner_id=record.user_id, limit=ANNOTATIONS_SHOWN + 1, offset=offset
    )
    return {
        "annotations": listed[:ANNOTATIONS_SHOWN],
        "has_more": len(listed) > ANNOTATIONS_SHOWN,
        "page_size": ANNOTATIONS_SHOWN,
    }


def cut(text: str) -> Text:
    """A text with at most as many characters as a page shows."""
    return Text(text[:MOST_CHARACTERS], len(text) > MOST_CHARACTERS)


def payload_text(value: Any) -> Text:
    """A payload as text: as JSON in lines, but for text."""
    return cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2, default=str))
