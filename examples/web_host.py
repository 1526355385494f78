"""A web app with a login, users and a data set, which shows its users their sessions on our pages.

Run: uvicorn --app-dir examples web_host:app
Then open http://127.0.0.1:8000 and sign in as ann or ben; the password is the name. Without an environment variable
SESSION_LIFECYCLE_DATABASE_URL, an embedded Postgres serves.
"""

import os
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated
from urllib.parse import parse_qs
from uuid import UUID

from fastapi import Cookie, Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from session_lifecycle import End, Message, Run, SessionDatabase, Step, Touch, UsageEvent, Viewer
from session_lifecycle.web.dashboard import dashboard_app
from session_lifecycle.web.reading import session_router

ANN, BEN, ANNS_AGENT = (UUID(int=number) for number in (0xA, 0xB, 0xC))
SHARED = UUID(int=0xD)
"""A data set: Ben shares sessions through it, and Ann may read it."""
# A real app has its users in a table, and keeps no password in plain text.
USERS = {"ann": (ANN, "ann"), "ben": (BEN, "ben")}
EMAILS = {ANN: "ann@example.com", BEN: "ben@example.com", ANNS_AGENT: "ann's agent"}
VIEWERS = {ANN: Viewer(ANN, [SHARED], [ANNS_AGENT]), BEN: Viewer(BEN, [SHARED])}
LOGIN = """<!doctype html><html lang="en"><title>Sign in</title><h1>Sign in</h1>
<form method="post"><label>Name <input name="name"></label>
<label>Password <input name="password" type="password"></label><button>Sign in</button></form></html>"""

logins: dict[str, UUID] = {}
"""Who is signed in, by the secret in the cookie. A real app keeps this where all its processes see it."""


def user(login: Annotated[str | None, Cookie()] = None) -> UUID:
    """The user who is signed in; everybody else is sent to the login."""
    if login not in logins:
        raise HTTPException(303, headers={"Location": "/login"})
    return logins[login]


def viewer(user_id: Annotated[UUID, Depends(user)]) -> Viewer:
    """What the user may see."""
    return VIEWERS[user_id]


async def emails(user_ids: Sequence[UUID]) -> Mapping[UUID, str]:
    """The names that the pages show for users."""
    return {user_id: EMAILS[user_id] for user_id in user_ids if user_id in EMAILS}


async def record_example(db: SessionDatabase) -> None:
    """Records three sessions. The same call again changes nothing."""
    now = datetime.now(UTC)
    for session_id, owner, dataset in (("build", ANN, None), ("review", ANNS_AGENT, None), ("report", BEN, SHARED)):
        if await db.lifecycle.get_session_row(session_id, owner):
            continue
        at = now - timedelta(minutes=9)
        run_id = f"{session_id}-1"
        await db.lifecycle.record(
            [
                Touch(session_id=session_id, user_id=owner, dataset_id=dataset, agent_name="coder",
                      title=f"The {session_id} of today", at=at),
                Run(run_id=run_id, user_id=owner, session_id=session_id, status="completed", started_at=at,
                    ended_at=at + timedelta(seconds=42)),
                Step(step_id=f"{run_id}-search", run_id=run_id, user_id=owner, kind="tool", name="search",
                     started_at=at + timedelta(seconds=5), ended_at=at + timedelta(seconds=12), output="3 results"),
                Message(message_id=f"{run_id}-q", user_id=owner, session_id=session_id, run_id=run_id, role="user",
                        created_at=at, content=f"What is new in the {session_id}?"),
                UsageEvent(session_id=session_id, user_id=owner, run_id=run_id, model="gpt-4o-mini", tokens_in=4_000,
                           tokens_out=600, idempotency_key=run_id, at=at + timedelta(seconds=40)),
            ]
        )  # fmt: skip
        if owner == BEN:
            done = End(session_id=session_id, user_id=owner, status="completed", at=at + timedelta(minutes=1))
            await db.lifecycle.record([done])


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncGenerator[None]:
    """Opens the session database, with something to look at."""
    async with db:
        await db.migrate()
        await record_example(db)
        yield


url = os.environ.get("SESSION_LIFECYCLE_DATABASE_URL")
db = SessionDatabase.connect(url) if url else SessionDatabase.embedded()
app = FastAPI(lifespan=lifespan)
app.include_router(session_router(db, viewer=viewer, user_emails=emails), prefix="/api/v1")
app.mount("/dashboard", dashboard_app(db, viewer=viewer, writable=True, user_emails=emails))


@app.get("/")
async def home() -> RedirectResponse:
    """The app's own page would be here."""
    return RedirectResponse("/dashboard/")


@app.get("/login")
async def ask_login() -> HTMLResponse:
    """The form to sign in."""
    return HTMLResponse(LOGIN)


@app.post("/login")
async def log_in(request: Request) -> RedirectResponse:
    """Signs the user in."""
    form = parse_qs((await request.body()).decode())
    name, password = form.get("name", [""])[0], form.get("password", [""])[0]
    user_id, expected = USERS.get(name, (None, ""))
    if user_id is None or not secrets.compare_digest(password.encode(), expected.encode()):
        raise HTTPException(401, "a wrong name or password")
    login = secrets.token_urlsafe(32)
    logins[login] = user_id
    answer = RedirectResponse("/dashboard/", 303)
    answer.set_cookie("login", login, httponly=True, samesite="lax")
    return answer
