"""What our routes take from the host: the database and the viewer; and the session that a path names."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any, NoReturn
from uuid import UUID

from session_lifecycle.database import SessionDatabase
from session_lifecycle.errors import ConfigurationError
from session_lifecycle.models import SessionRowWithStatus, Viewer
from session_lifecycle.web.framework import APIRoute, Depends, Path, Query, Request
from session_lifecycle.web.problems import RequestRefusedError

NO_SESSION = "there is no session with this id"
Dependency = Callable[..., Any]
"""A dependency of the host, as FastAPI takes it: a function, a method or a class, with parameters of its own."""


def bring(db: SessionDatabase, viewer: Dependency) -> list[Any]:
    """The dependencies of a whole router. They ask the host first, so that a refusal of the host costs nothing more.

    Args:
        db: The database that the router's routes use.
        viewer: The host's dependency that gives the `Viewer`, or raises the host's own error, such as 401.
    """

    async def name_viewer(request: Request) -> None:
        request.state.session_viewer_dependency = viewer

    async def bring_to_request(request: Request, asker: Annotated[Any, Depends(viewer)]) -> None:
        if not isinstance(asker, Viewer):
            raise ConfigurationError(f"viewer: the host's dependency gave a {type(asker).__name__}, expected a Viewer")
        request.state.session_database = db
        request.state.session_viewer = Viewer.checked(asker, "viewer")

    return [Depends(name_viewer), Depends(bring_to_request)]


async def _database(request: Request) -> SessionDatabase:
    db: SessionDatabase | None = getattr(request.state, "session_database", None)
    return await _refuse_parameters(request) if db is None else db


async def _asker(request: Request) -> Viewer:
    viewer: Viewer | None = getattr(request.state, "session_viewer", None)
    return await _refuse_parameters(request) if viewer is None else viewer


async def _refuse_parameters(request: Request) -> NoReturn:
    """Raises FastAPI's refusal of a parameter of the host's dependency, such as a header that is missing.

    FastAPI does not call that dependency then. It goes on to ours, which cannot go on without a viewer, and would name
    the parameter at the end. So the host's dependency is solved alone.
    """

    async def nothing() -> None: ...

    path = "".join(f"/{{{name}}}" for name in request.path_params) or "/"
    asked_alone = [Depends(request.state.session_viewer_dependency)]
    alone = APIRoute(path, nothing, dependencies=asked_alone, dependency_overrides_provider=request.app)
    await alone.get_route_handler()(request)
    raise ConfigurationError("viewer: the host's dependency was not called")


Database = Annotated[SessionDatabase, Depends(_database)]
Asker = Annotated[Viewer, Depends(_asker)]
SessionIdOfPath = Annotated[
    str, Path(description="The id of the session, percent-encoded: any text fits, also a slash.", examples=["chat-1"])
]
OwnerId = Annotated[
    UUID | None,
    Query(description="The owner, where several users have a session with this id. Default: see rule R15."),
]


async def _found(
    db: Database, asker: Asker, session_id: SessionIdOfPath, owner_id: OwnerId = None
) -> SessionRowWithStatus:
    row = await db.lifecycle.get_session_row(session_id, asker, owner_id=owner_id)
    if row is None:
        raise no_session()
    return row


def no_session() -> RequestRefusedError:
    """The refusal of a session that does not exist, or that the viewer may not see: both look the same."""
    return RequestRefusedError(HTTPStatus.NOT_FOUND, NO_SESSION)


async def _own(found: Annotated[SessionRowWithStatus, Depends(_found)], asker: Asker) -> SessionRowWithStatus:
    if not may_write_for(asker, found.record.user_id):
        raise RequestRefusedError(HTTPStatus.FORBIDDEN, "only the owner of the session may change it")
    return found


def may_write_for(writer: Viewer, user_id: UUID) -> bool:
    """Whether sessions of this user may be written: those of the writer and of the writer's agents."""
    return writer.sees_all or user_id in writer.owner_ids


def may_share_through(writer: Viewer, dataset_id: UUID | None) -> bool:
    """Whether a session may be shared through the dataset: only through one that the writer may read."""
    return dataset_id is None or writer.sees_all or dataset_id in writer.permitted_dataset_ids


FoundSession = Annotated[SessionRowWithStatus, Depends(_found)]
"""The session that the path names, which the viewer may see."""
OwnSession = Annotated[SessionRowWithStatus, Depends(_own)]
"""The session that the path names, which the writer may change."""
