"""The examples run as they stand."""

import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from session_lifecycle import SessionDatabase, Settings

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("name", "last_line"),
    [
        ("quickstart.py", "1 session, 0.00045 USD, success rate 100%"),
        ("agent_hook.py", "resp-1: duplicate, session at 0.01325 USD"),
    ],
)
def test_a_program_runs(session_database_url: str, name: str, last_line: str) -> None:
    environment = {**os.environ, "SESSION_LIFECYCLE_DATABASE_URL": session_database_url}
    ran = subprocess.run(
        [sys.executable, EXAMPLES / name], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == last_line


async def test_the_host_app_serves_its_users(
    session_database_url: str, session_database: SessionDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SESSION_LIFECYCLE_DATABASE_URL", session_database_url)
    monkeypatch.syspath_prepend(EXAMPLES)
    from fastapi_host import app, sessions  # type: ignore[import-not-found]

    ann, ben = ({"x-user-id": str(uuid4())} for _ in range(2))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://host") as client,
    ):
        answered = await client.post("/sessions/chat/answers", params={"said": "hello"}, headers=ann)
        assert answered.json() == {"outcome": "applied"}
        undone = await client.post("/sessions/chat/answers", params={"said": "hello"}, headers=ann)
        assert undone.status_code == 409
        refused = await client.post(f"/sessions/{'x' * 513}/answers", params={"said": "hello"}, headers=ann)
        assert (refused.status_code, "session_id" in refused.json()["detail"]) == (422, True)
        page = (await client.get("/sessions", headers=ann)).json()
        assert [(row["session_id"], row["tokens_in"]) for row in page["sessions"]] == [("chat", 5)]
        assert (await client.get("/sessions/chat", headers=ann)).json()["effective_status"] == "running"
        assert (await client.get("/sessions/chat", headers=ben)).status_code == 404
        assert (await client.get("/sessions", headers=ben)).json()["total"] == 0
        assert (await client.get("/sessions", params={"cursor": "none of ours"}, headers=ann)).status_code == 422
        assert (await client.get("/sessions")).status_code == 422  # nobody asks

        nowhere = SessionDatabase.connect("postgresql://127.0.0.1:1/x", settings=Settings(retries=0))
        monkeypatch.setitem(app.dependency_overrides, sessions, lambda: nowhere)
        away = await client.get("/sessions", headers=ann)
        assert (away.status_code, away.json()) == (503, {"detail": "try again later"})
    async with session_database.engine.connect() as connection:
        answers = await connection.exec_driver_sql("SELECT answer FROM answers")
        assert answers.scalars().all() == ["hello"]
