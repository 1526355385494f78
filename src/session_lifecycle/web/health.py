"""The routes that say how the service is. They ask for no viewer."""

import logging
from http import HTTPStatus

from session_lifecycle.database import SessionDatabase
from session_lifecycle.errors import SessionLifecycleError
from session_lifecycle.web.answers import documented
from session_lifecycle.web.dependencies import Database
from session_lifecycle.web.framework import APIRouter, Depends, Request
from session_lifecycle.web.problems import RequestRefusedError, described
from session_lifecycle.web.routes import SessionRoute

_logger = logging.getLogger(__name__)

_HEALTH = APIRouter(route_class=SessionRoute)


def health_router(db: SessionDatabase) -> APIRouter:
    """`/health` and `/ready` alone, which ask for no viewer. `session_router` has them too."""

    async def bring_database(request: Request) -> None:
        request.state.session_database = db

    router = APIRouter()
    router.include_router(_HEALTH, dependencies=[Depends(bring_database)])
    return router


@_HEALTH.get("/health", tags=["health"], response_model=documented(None, "Health", last={"status": str}))
async def get_health() -> dict[str, str]:
    """The process answers. The database is not asked."""
    return {"status": "ok"}


@_HEALTH.get(
    "/ready",
    tags=["health"],
    response_model=documented(None, "Ready", last={"status": str}),
    responses=described(HTTPStatus.SERVICE_UNAVAILABLE),
)
async def get_ready(db: Database) -> dict[str, str]:
    """The database answers, and its schema has everything that this version uses."""
    try:
        await db.check()
    except SessionLifecycleError as error:
        _logger.warning("not ready: %s", error)
        raise RequestRefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "not ready") from error
    return {"status": "ready"}
