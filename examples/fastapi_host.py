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


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """The app's engine, and our sessions on it."""
    url = os.environ["SESSION_LIFECYCLE_DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://")
    engine = create_async_engine(url)
    app.state.sessions = SessionDatabase.from_engine(engine)
    await app.state.sessions.migrate()
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE IF NOT EXISTS answers (user_id uuid, answer text)"))
    yield
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


def viewer(x_user_id: Annotated[UUID, Header()]) -> Viewer:
    """Who asks. Stands for the app's own authentication, which also knows agents and data sets."""
    return Viewer(x_user_id)


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
async def answer(session_id: str, said: str, x_user_id: Annotated[UUID, Header()], db: Sessions) -> dict[str, str]:
    """The app's row and the session's usage, in one transaction of the app's: both or neither."""
    async with db.engine.begin() as connection:
        await connection.execute(text("INSERT INTO answers VALUES (:user, :said)"), {"user": x_user_id, "said": said})
        receipt = await db.bind(connection).lifecycle.accumulate_usage(
            session_id, x_user_id, "gpt-4o-mini", tokens_in=len(said), tokens_out=1
        )
        if "rollback" in said:
            raise HTTPException(409)
    return {"outcome": receipt.outcome}
