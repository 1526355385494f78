"""A web app with its own engine and transactions, which shows its users their sessions.

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
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from session_lifecycle import DatabaseUnavailableError, InvalidValueError, SessionDatabase, SessionListFilters, Viewer
from session_lifecycle.roles import SessionRoles

CREATE_ANSWERS = "CREATE TABLE IF NOT EXISTS answers (user_id uuid, answer text, PRIMARY KEY (user_id, answer))"
COUNT_ANSWERS = "SELECT count(*) FROM answers WHERE user_id = :user"
ADD_ANSWER = "INSERT INTO answers VALUES (:user, :said) ON CONFLICT DO NOTHING RETURNING answer"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Opens the app's engine and the session database on it."""
    url = os.environ["SESSION_LIFECYCLE_DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://")
    # A request holds one connection, so as many requests run at once. The others wait.
    engine = create_async_engine(url, pool_size=5, max_overflow=0, pool_timeout=10)
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
    """Answers 422: the caller sent a value that the library refuses."""
    return JSONResponse({"detail": str(error)}, 422)


@app.exception_handler(DatabaseUnavailableError)
async def unavailable(_request: Request, _error: Exception) -> JSONResponse:
    """Answers 503 without the error's text, which is for the log only."""
    return JSONResponse({"detail": "try again later"}, 503)


def sessions(request: Request) -> SessionDatabase:
    """The app's session database."""
    db: SessionDatabase = request.app.state.sessions
    return db


async def session(db: Annotated[SessionDatabase, Depends(sessions)]) -> AsyncGenerator[AsyncSession]:
    """The request's own session: all its statements share one connection and one transaction."""
    async with AsyncSession(db.engine) as own, own.begin():
        yield own


def roles(
    db: Annotated[SessionDatabase, Depends(sessions)], own: Annotated[AsyncSession, Depends(session)]
) -> SessionRoles:
    """The library's calls inside the request's session.

    Without `bind`, a read would take a second connection while the request holds its first. When every request of a
    full pool does that, all of them wait for each other.
    """
    return db.bind(own)


def user(x_user_id: Annotated[UUID, Header()]) -> UUID:
    """The caller's user id. A real app authenticates the caller: a header alone proves nothing."""
    return x_user_id


User = Annotated[UUID, Depends(user)]


def viewer(user_id: User) -> Viewer:
    """The caller as a viewer. An app that knows the caller's agents and data sets passes them here."""
    return Viewer(user_id)


Session = Annotated[AsyncSession, Depends(session)]
Roles = Annotated[SessionRoles, Depends(roles)]
Asker = Annotated[Viewer, Depends(viewer)]


@app.get("/sessions")
async def list_sessions(
    own: Session, bound: Roles, user_id: User, asker: Asker, cursor: str | None = None
) -> dict[str, Any]:
    """A page of the caller's sessions, with the cursor of the next page, and the number of the caller's answers."""
    answers = (await own.execute(text(COUNT_ANSWERS), {"user": user_id})).scalar_one()
    page = await bound.lifecycle.list_session_rows(SessionListFilters(viewer=asker, cursor=cursor))
    rows = [row.to_dict() for row in page.sessions]
    return {"sessions": rows, "total": page.total, "next": page.next_cursor, "answers": answers}


@app.get("/sessions/{session_id}")
async def get_session(session_id: str, bound: Roles, asker: Asker) -> dict[str, Any]:
    """One session. Answers 404 if it does not exist or the caller may not see it."""
    found = await bound.lifecycle.get_session_row(session_id, asker)
    if found is None:
        raise HTTPException(404)
    return found.to_dict()


@app.post("/sessions/{session_id}/answers")
async def answer(session_id: str, said: str, user_id: User, own: Session, bound: Roles) -> dict[str, str]:
    """Writes the session's usage and the app's row in one transaction of the app: both or neither."""
    receipt = await bound.lifecycle.accumulate_usage(
        session_id, user_id, "gpt-4o-mini", tokens_in=len(said), tokens_out=1
    )
    added = await own.execute(text(ADD_ANSWER), {"user": user_id, "said": said})
    if added.first() is None:
        raise HTTPException(409, "said before")  # rolls the usage back as well
    return {"outcome": receipt.outcome}
