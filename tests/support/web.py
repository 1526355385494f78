"""A host with our routes: its users are named by a header, and what they may see and write by a table."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import UUID

import httpx
from fastapi import FastAPI, Header, HTTPException

from session_lifecycle import SessionDatabase, Viewer
from session_lifecycle.web.feed import LiveFeed
from session_lifecycle.web.ingest import ingest_router
from session_lifecycle.web.reading import session_router
from session_lifecycle.web.writing import writing_router
from support.usage import A

B, C, D1, D2 = (UUID(int=number) for number in range(2, 6))
AGENT = UUID(int=6)
PREFIX = "/api/v1"
VIEWERS = {
    "a": Viewer(A, [D1], [AGENT]),
    "b": Viewer(B, [D1]),
    "stranger": Viewer(C),
    "auditor": Viewer.auditor(),
}
EMAILS = {A: "a@example.com"}


def viewer(x_user: Annotated[str | None, Header(description="The caller.")] = None) -> Viewer:
    """The host's authentication."""
    if x_user not in VIEWERS:
        raise HTTPException(401, "who are you?")
    return VIEWERS[x_user]


async def emails(user_ids: Any) -> Mapping[UUID, str]:
    """The host's table of users."""
    return {user_id: EMAILS[user_id] for user_id in user_ids if user_id in EMAILS}


def host_app(db: SessionDatabase, viewer: Callable[..., Viewer] = viewer, **bounds: int) -> FastAPI:
    """The host's app, with all our routers under a prefix. A stream of events ends with what it begins with."""
    app = FastAPI()
    feed = LiveFeed(db, stream_seconds=0)
    app.include_router(session_router(db, viewer=viewer, user_emails=emails, feed=feed), prefix=PREFIX)
    app.include_router(writing_router(db, writer=viewer), prefix=PREFIX)
    app.include_router(ingest_router(db, writer=viewer, **bounds), prefix=PREFIX)
    return app


class Host:
    """A client of the host's app."""

    def __init__(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        self.app = app
        self._client = client

    async def ask(self, method: str, path: str, user: str | None = "a", **more: Any) -> httpx.Response:
        headers = {**({} if user is None else {"X-User": user}), **more.pop("headers", {})}
        return await self._client.request(method, PREFIX + path, headers=headers, **more)

    async def get(self, path: str, user: str | None = "a", **parameters: Any) -> httpx.Response:
        return await self.ask("GET", path, user, params=parameters)

    async def found(self, path: str, user: str | None = "a", **parameters: Any) -> Any:
        """The JSON of an answer that must be 200."""
        answer = await self.get(path, user, **parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()


@asynccontextmanager
async def hosting(db: SessionDatabase, **bounds: int) -> AsyncGenerator[Host]:
    """A host on the database, without a network."""
    app = host_app(db, viewer, **bounds)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
        yield Host(app, client)


def refuses(answer: httpx.Response, status: int, field: str | None = None) -> dict[str, Any]:
    """The problem that an answer must be."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert problem.get("field") == field
    assert "Traceback" not in answer.text
    return problem
