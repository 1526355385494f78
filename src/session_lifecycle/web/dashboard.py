"""The pages."""

from session_lifecycle.database import SessionDatabase
from session_lifecycle.web.dependencies import Dependency
from session_lifecycle.web.feed import LiveFeed
from session_lifecycle.web.framework import FastAPI, PlainTextResponse, Response


def dashboard_app(
    db: SessionDatabase, *, viewer: Dependency, api_path: str = "/api/v1", feed: LiveFeed | None = None
) -> FastAPI:
    """The pages, as an app to mount."""
    del db, viewer, feed
    app = FastAPI()

    @app.get("/")
    async def overview() -> Response:
        return PlainTextResponse(f"sessions: {api_path}")

    return app
