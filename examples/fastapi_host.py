"""A web app with an engine and transactions of its own, which shows its users their sessions.

Run: SESSION_LIFECYCLE_DATABASE_URL=postgresql://… uvicorn --app-dir examples fastapi_host:app
"""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from session_lifecycle import (
    DatabaseUnavailableError,
    InvalidValueError,
    SessionDatabase,
    SessionListFilters,
    Viewer,
)

CREATE_ANSWERS = "CREATE TABLE IF NOT EXISTS answers (user_id uuid, answer text, PRIMARY KEY (user_id, answer))"
ADD_ANSWER = "INSERT INTO answers VALUES (:user, :said) ON CONFLICT DO NOTHING"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """The app's engine, and our sessions on it."""
    url = os.environ["SESSION_LIFECYCLE_DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://")
    engine = create_async_engine(url)
    try:
        app.state.sessions = SessionDatabase.from_engine(engine)
        await app.state.sessions.migrate()
        async with engine.begin() as connection:
            await connection.execute(text(CREATE_ANSWERS))
        yield
    finally:
        await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.exception_handler(InvalidValueError)
async def refused(_request: Request, error: Exception) -> JSONResponse:
    """What we refuse is the caller's to correct."""
    return JSONResponse({"detail": str(error)}, 422)


@app.exception_handler(DatabaseUnavailableError)
async def unavailable(_request: Request, _error: Exception) -> JSONResponse:
    """The database is away; what it said is for the log, not for the caller."""
    return JSONResponse({"detail": "try again later"}, 503)


def sessions(request: Request) -> SessionDatabase:
    """The app's sessions."""
    db: SessionDatabase = request.app.state.sessions
    return db


def user(x_user_id: Annotated[UUID, Header()]) -> UUID:
    """Who calls. Stands for the app's own authentication: a header alone proves nothing."""
    return x_user_id


User = Annotated[UUID, Depends(user)]


def viewer(user_id: User) -> Viewer:
    """Who asks. An app that knows their agents and data sets says so here."""
    return Viewer(user_id)


Sessions = Annotated[SessionDatabase, Depends(sessions)]
Asker = Annotated[Viewer, Depends(viewer)]


@app.get("/sessions")
async def list_sessions(db: Sessions, asker: Asker, cursor: str | None = None) -> dict[str, Any]:
    """A page of the asker's sessions, and how to go on."""
    page = await db.lifecycle.list_session_rows(SessionListFilters(viewer=asker, cursor=cursor))
    return {"sessions": [row.to_dict() for row in page.sessions], "total": page.total, "next": page.next_cursor}


@app.get("/sessions/{session_id}")
async def get_session(session_id: str, db: Sessions, asker: Asker) -> dict[str, Any]:
    """One session; one that is not visible looks like one that is not there."""
    found = await db.lifecycle.get_session_row(session_id, asker)
    if found is None:
        raise HTTPException(404)
    return found.to_dict()


@app.post("/sessions/{session_id}/answers")
async def answer(session_id: str, said: str, user_id: User, db: Sessions) -> dict[str, str]:
    """The session's usage and the app's row, in one transaction of the app's: both or neither."""
    async with db.engine.begin() as connection:
        receipt = await db.bind(connection).lifecycle.accumulate_usage(
            session_id, user_id, "gpt-4o-mini", tokens_in=len(said), tokens_out=1
        )
        added = await connection.execute(text(ADD_ANSWER), {"user": user_id, "said": said})
        if not added.rowcount:
            raise HTTPException(409, "said before")  # what was counted above is undone
    return {"outcome": receipt.outcome}
