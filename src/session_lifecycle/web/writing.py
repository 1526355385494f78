"""The routes that change one session: its title, metadata, tags and sharing, its end, its annotations."""

from http import HTTPStatus
from typing import Annotated, Any, cast
from uuid import UUID

from pydantic import Field

from session_lifecycle.database import SessionDatabase
from session_lifecycle.models import (
    End,
    EndOutcome,
    ReopenOutcome,
    SessionAnnotation,
    SessionChanges,
    SessionRowWithStatus,
    SessionStatus,
    Viewer,
)
from session_lifecycle.models.annotations import AnnotationName, OptionalComment
from session_lifecycle.models.fields import AwareTime, FiniteFloat, Id, OptionalName, OptionalTitle, Value
from session_lifecycle.models.json_payloads import JsonObject
from session_lifecycle.models.sessions import EndStatus, Tags
from session_lifecycle.web.answers import SESSION, documented, written
from session_lifecycle.web.bodies import body_of, documented_body
from session_lifecycle.web.dependencies import (
    Asker,
    Database,
    Dependency,
    OwnSession,
    bring,
    may_share_through,
    no_session,
)
from session_lifecycle.web.framework import APIRouter, Depends, Response
from session_lifecycle.web.problems import RequestRefusedError, described
from session_lifecycle.web.routes import SessionRoute

PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: {"description": "The host's authentication refuses the request."},
    **described(
        HTTPStatus.FORBIDDEN,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.SERVICE_UNAVAILABLE,
    ),
}


class SessionPatch(Value):
    """What `PATCH /sessions/{session_id}` takes. A field that is given replaces what is there; null empties it."""

    title: OptionalTitle = None
    metadata: JsonObject = Field(default_factory=dict)
    tags: Tags = Field(default_factory=dict)
    dataset_id: Id | None = None
    """What the session is shared through; null: nothing."""


class EndOfSession(Value):
    """What `POST /sessions/{session_id}/end` takes."""

    status: EndStatus = SessionStatus.COMPLETED
    at: AwareTime | None = None
    reason: OptionalTitle = None


class ReopeningOfSession(Value):
    """What `POST /sessions/{session_id}/reopen` takes."""

    at: AwareTime | None = None


class AnnotationOfSession(Value):
    """What `POST /sessions/{session_id}/annotations` takes. The same name and annotator replaces."""

    name: AnnotationName
    score: FiniteFloat | None = None
    label: OptionalName = None
    comment: OptionalComment = None
    annotator: OptionalName = None
    at: AwareTime | None = None


_Ended = documented(
    None,
    "EndedSession",
    last={
        "session_id": str,
        "status": SessionStatus,
        "ended_at": AwareTime | None,
        "already_ended": bool,
        "outcome": EndOutcome,
    },
)
_Reopened = documented(
    None,
    "ReopenedSession",
    last={
        "session_id": str,
        "status": SessionStatus,
        "ended_at": AwareTime | None,
        "already_running": bool,
        "outcome": ReopenOutcome,
    },
)

_WRITING = APIRouter(route_class=SessionRoute)


def writing_router(db: SessionDatabase, *, writer: Dependency) -> APIRouter:
    """The routes that change one session. A session that is only shared with the writer may not be changed.

    Args:
        db: The database. The host opens and closes it.
        writer: The host's dependency that gives a `Viewer`, or raises the host's own error, such as 401 or 403. The
            sessions of its user and of its agents may be changed, and shared through its datasets.

    Example:
        app.include_router(writing_router(db, writer=current_viewer), prefix="/api/v1")
    """
    router = APIRouter()
    router.include_router(_WRITING, dependencies=bring(db, writer))
    return router


async def _row(db: SessionDatabase, writer: Viewer, session_id: str, owner_id: UUID) -> SessionRowWithStatus:
    row = await db.lifecycle.get_session_row(session_id, writer, owner_id=owner_id)
    if row is None:
        raise no_session()
    return row


@_WRITING.patch(
    "/sessions/{session_id}",
    tags=["sessions"],
    responses=PROBLEMS,
    response_model=SESSION,
    openapi_extra=documented_body(
        SessionPatch.model_json_schema(), {"title": "Mend the build", "tags": {"customer": "acme"}, "dataset_id": None}
    ),
)
async def update_session(
    db: Database, writer: Asker, own: OwnSession, patch: Annotated[SessionPatch, Depends(body_of(SessionPatch))]
) -> Response:
    """Replaces the title, the metadata, the tags, or what the session is shared through.

    A field that is given replaces what is there, and null empties it. A field that is not given stays. The change is no
    activity of the session. A session can be shared through a data set that the writer may read.
    """
    if not may_share_through(writer, patch.dataset_id):
        raise RequestRefusedError(HTTPStatus.FORBIDDEN, "only a data set that you may read can share the session")
    changes = cast("SessionChanges", {name: getattr(patch, name) for name in patch.model_fields_set})
    record = await db.lifecycle.update_session(own.record.session_id, own.record.user_id, **changes)
    if record is None:
        raise no_session()
    return written(await _row(db, writer, record.session_id, record.user_id))


@_WRITING.post(
    "/sessions/{session_id}/end",
    tags=["sessions"],
    responses=PROBLEMS,
    response_model=_Ended,
    openapi_extra=documented_body(
        EndOfSession.model_json_schema(), {"status": "completed", "reason": "the task is done"}, required=False
    ),
)
async def end_session(
    db: Database,
    writer: Asker,
    own: OwnSession,
    end: Annotated[EndOfSession, Depends(body_of(EndOfSession, optional=True))],
) -> Response:
    """Ends the session as `completed`, or as `failed`. The first end stays, so the call can be repeated."""
    session_id, owner_id = own.record.session_id, own.record.user_id
    item = End(session_id=session_id, user_id=owner_id, status=end.status, at=end.at, reason=end.reason)
    [outcome] = await db.lifecycle.record([item])
    record = (await _row(db, writer, session_id, owner_id)).record
    return written(
        {
            "session_id": session_id,
            "status": record.status,
            "ended_at": record.ended_at,
            "already_ended": outcome is EndOutcome.ALREADY_ENDED,
            "outcome": outcome,
        }
    )


@_WRITING.post(
    "/sessions/{session_id}/reopen",
    tags=["sessions"],
    responses=PROBLEMS,
    response_model=_Reopened,
    openapi_extra=documented_body(
        ReopeningOfSession.model_json_schema(), {"at": "2026-01-05T10:00:00+00:00"}, required=False
    ),
)
async def reopen_session(
    db: Database,
    writer: Asker,
    own: OwnSession,
    reopening: Annotated[ReopeningOfSession, Depends(body_of(ReopeningOfSession, optional=True))],
) -> Response:
    """Makes an ended session running again. Its totals stay. The call can be repeated."""
    session_id, owner_id = own.record.session_id, own.record.user_id
    outcome = await db.lifecycle.reopen_session(session_id, owner_id, at=reopening.at)
    record = (await _row(db, writer, session_id, owner_id)).record
    return written(
        {
            "session_id": session_id,
            "status": record.status,
            "ended_at": record.ended_at,
            "already_running": outcome is ReopenOutcome.ALREADY_RUNNING,
            "outcome": outcome,
        }
    )


@_WRITING.post(
    "/sessions/{session_id}/annotations",
    tags=["sessions"],
    responses=PROBLEMS,
    response_model=documented(SessionAnnotation),
    openapi_extra=documented_body(
        AnnotationOfSession.model_json_schema(), {"name": "quality", "score": 0.9, "annotator": "reviewer"}
    ),
)
async def annotate_session(
    db: Database,
    own: OwnSession,
    annotation: Annotated[AnnotationOfSession, Depends(body_of(AnnotationOfSession))],
) -> Response:
    """Annotates the session. The same name and annotator replaces, so the call can be repeated."""
    made = await db.lifecycle.annotate_session(
        own.record.session_id,
        own.record.user_id,
        annotation.name,
        score=annotation.score,
        label=annotation.label,
        comment=annotation.comment,
        annotator=annotation.annotator,
        at=annotation.at,
    )
    if made is None:
        raise no_session()
    return written(made)
