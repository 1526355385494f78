"""`GET /events`: server-sent events of what changes in the sessions that the viewer sees."""

from collections.abc import AsyncGenerator
from http import HTTPStatus
from random import SystemRandom
from typing import Annotated, Any, get_args

from session_lifecycle.database import SessionDatabase
from session_lifecycle.models import SessionListFilters
from session_lifecycle.web.dependencies import Asker, Dependency, bring
from session_lifecycle.web.feed import MOST_RECENT, LiveFeed, LiveStream, StreamsFullError
from session_lifecycle.web.filters import asked_changes
from session_lifecycle.web.framework import (
    APIRouter,
    Depends,
    Header,
    Query,
    Receive,
    Request,
    Response,
    Scope,
    Send,
    StreamingResponse,
)
from session_lifecycle.web.look import EventName, FeedEvent
from session_lifecycle.web.problems import RequestRefusedError, described
from session_lifecycle.web.routes import SessionRoute

__all__ = ["LiveFeed", "live_router"]

MEDIA_TYPE = "text/event-stream"
HEADERS = {
    "Cache-Control": "no-store, no-transform",
    # nginx would keep events until a buffer is full.
    "X-Accel-Buffering": "no",
}
RETRY_SECONDS = (1.0, 3.0)
"""When a client comes back that has lost its stream: between these, so that not all of them come at once."""
_SCHEMA: dict[str, Any] = {
    "title": "Event",
    "description": "One event of the stream.",
    "type": "object",
    "required": ["event", "id", "data"],
    "properties": {
        "event": {"type": "string", "enum": list(get_args(EventName))},
        "id": {"type": "string", "description": "What a stream can go on after, by the header Last-Event-ID."},
        "data": {"type": "string", "description": "JSON in one line."},
    },
}
_EXAMPLE = {
    "event": "gone",
    "id": "5f0c9a1be2d3.1",
    "data": '{"user_id":"018f3a5e-0000-7000-8000-000000000001","session_id":"chat-2"}',
}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A stream of events `session`, `gone` and `look_again`.",
        "content": {MEDIA_TYPE: {"schema": _SCHEMA, "example": _EXAMPLE}},
    },
    401: {"description": "The host's authentication refuses the request."},
    **described(HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.SERVICE_UNAVAILABLE),
}


class _StreamRoute(SessionRoute):
    """A route whose answer is a stream."""

    answers_head = False


_LIVE = APIRouter(route_class=_StreamRoute)
_random = SystemRandom()


def live_router(db: SessionDatabase, *, viewer: Dependency, feed: LiveFeed) -> APIRouter:
    """The route `/events`. `session_router` has it too, where it is given a feed.

    Args:
        db: The database of the feed.
        viewer: The host's dependency that gives the `Viewer` of a request, or raises the host's own error, such as 401.
            It is asked when a stream begins; the client comes back after the feed's `stream_seconds`.
        feed: The feed of this process.

    Example:
        feed = LiveFeed(db)
        app.include_router(live_router(db, viewer=current_viewer, feed=feed), prefix="/api/v1")
    """

    async def bring_feed(request: Request) -> None:
        request.state.session_feed = feed

    router = APIRouter()
    router.include_router(_LIVE, dependencies=[*bring(db, viewer), Depends(bring_feed)])
    return router


class _EventResponse(StreamingResponse):
    """A stream as an answer. However the answer ends, the stream is closed."""

    media_type = MEDIA_TYPE

    def __init__(self, stream: LiveStream) -> None:
        self._stream = stream
        super().__init__(_written(stream), headers=HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.close()


async def _written(stream: LiveStream) -> AsyncGenerator[str]:
    # At once, so that a proxy and the client see that the stream is open.
    yield f"retry: {round(_random.uniform(*RETRY_SECONDS) * 1000)}\n\n"
    async for event in stream:
        yield ": nothing new\n\n" if event is None else _event(event)


def _event(event: FeedEvent) -> str:
    # JSON has no line break of its own.
    return f"id: {event.id}\nevent: {event.name}\ndata: {event.data}\n\n"


@_LIVE.get("/events", tags=["live"], status_code=200, responses=_ANSWERS, response_class=_EventResponse)
async def stream_events(
    request: Request,
    viewer: Asker,
    filters: Annotated[SessionListFilters, Depends(asked_changes)],
    recent: Annotated[
        int, Query(ge=0, le=MOST_RECENT, description="How many of the newest sessions come first, the newest last.")
    ] = 10,
    last_event_id: Annotated[
        str | None, Header(description="The id of the last event that the client has. The stream goes on after it.")
    ] = None,
) -> Response:
    """What changes from now on in the sessions that the viewer sees, as server-sent events.

    `session` has a session that is new or has changed, as `/sessions` has it. `gone` has the `user_id` and the
    `session_id` of a session that was deleted, or that the filters or the viewer no longer reach. `look_again` says
    that changes were
    missed: read the list again. The stream follows the last active sessions.
    """
    feed: LiveFeed = request.state.session_feed
    try:
        stream = await feed.open(filters, viewer=viewer, after=last_event_id or None, recent=recent)
    except StreamsFullError as error:
        raise RequestRefusedError(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from error
    return _EventResponse(stream)
