"""A browser on the pages of a host, what a page names, and sessions with a text in every field."""

from collections.abc import Mapping
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any, Self
from urllib.parse import urlencode
from uuid import UUID

import httpx
from fastapi import FastAPI

from session_lifecycle import Message, Run, SessionDatabase, Step, Touch, UsageEvent
from session_lifecycle.models import Budget, Item
from session_lifecycle.web.dashboard import dashboard_app
from support.usage import A
from support.web import D1, viewer

NOW = datetime.now(UTC)
ROOT = "/mounted/here"
VIEWS = ("timeline", "transcript", "tools", "threads", "usage", "annotations")
LISTS = ("/", "/sessions", "/live", "/budgets")
ODD_ID = "a/b?c=d&e #%f.."


class Browser:
    """A client of a host that has the pages below `ROOT`."""

    def __init__(self, db: SessionDatabase, user: str | None = "a", **options: Any) -> None:
        host = FastAPI()
        host.mount(ROOT, dashboard_app(db, viewer=viewer, **options))
        self.app = host
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=host, raise_app_exceptions=False),
            base_url="http://host",
            headers={} if user is None else {"X-User": user},
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def get(self, path: str, *, headers: dict[str, str] | None = None, **parameters: Any) -> httpx.Response:
        """The answer to a path below the root, or to a whole one."""
        whole = path if path.startswith(ROOT) else ROOT + path
        return await self._client.get(whole, params=parameters or None, headers=headers)

    async def page(self, path: str, **parameters: Any) -> str:
        """The text of a page that must be there."""
        answer = await self.get(path, **parameters)
        assert answer.status_code == 200, (path, answer.status_code, answer.text[-800:])
        return answer.text

    async def post(
        self, path: str, fields: Mapping[str, str] | None = None, *, headers: dict[str, str] | None = None, **more: str
    ) -> httpx.Response:
        """Sends a form, as a browser does from a page of the same origin unless headers say otherwise."""
        own = {"Origin": "http://host"} if headers is None else headers
        return await self._client.post(
            path if path.startswith(ROOT) else ROOT + path, data={**(fields or {}), **more}, headers=own
        )

    @property
    def token(self) -> str:
        """The secret in the browser's cookie."""
        return self._client.cookies["session_lifecycle_token"]

    def set_cookie(self, name: str, value: str) -> None:
        self._client.cookies.set(name, value, domain="host.local")


class Links(HTMLParser):
    """Everything that a page names: addresses, attributes that are code, elements that hold code."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fields: list[tuple[str, str]] = []
        self.code: list[str] = []
        self._element = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self._element = tag
        self.code += [f"{tag} {name}" for name in given if name.startswith("on") or name == "style"]
        self.links += [given[name] for name in ("href", "src") if name in given]
        if tag == "input" and "name" in given and (given.get("type") != "checkbox" or "checked" in given):
            self.fields.append((given["name"], given.get("value", "")))

    def handle_data(self, data: str) -> None:
        if self._element in {"script", "style"} and data.strip():
            self.code.append(f"{self._element}: {data}")

    @classmethod
    def of(cls, page: str) -> "Links":
        """What a page names."""
        links = cls()
        links.feed(page)
        return links


def session_page(session_id: str, owner: UUID | None = None, **more: Any) -> str:
    parameters = {"id": session_id, **({} if owner is None else {"owner": str(owner)}), **more}
    return f"/session?{urlencode(parameters)}"


def pages_of(session_id: str) -> list[str]:
    return [session_page(session_id, view=view) for view in VIEWS]


def items_with(text: str, session_id: str = "s", at: datetime = NOW) -> list[Item]:
    """A session with this text in every field that takes text."""
    short = text[:200]
    return [
        Touch(session_id=session_id, user_id=A, title=text, agent_name=short, tags={short[:100]: short},
              metadata={text: [text]}, at=at, dataset_id=D1),
        Run(run_id=f"{short}-r", user_id=A, session_id=session_id, name=text, agent_name=short, client=short,
            project=short, provider=short, model=short, error=text, input={text: text}, output=text, started_at=at,
            ended_at=at, status="failed"),
        Step(step_id=f"{short}-s", run_id=f"{short}-r", user_id=A, kind="tool", name=text, started_at=at, ended_at=at,
             inputs=text, output=text, prompt=text, errors=[text], metadata={text: text}),
        *(Message(message_id=f"{short}-{role}", user_id=A, session_id=session_id, run_id=f"{short}-r", role=role,
                  content=text, created_at=at) for role in ("user", "assistant", "thought", "system", "tool")),
        UsageEvent(session_id=session_id, user_id=A, model=short, provider=short, tokens_in=5, cost_usd=1, at=at,
                   run_id=f"{short}-r", idempotency_key=short),
    ]  # fmt: skip


async def record(db: SessionDatabase, text: str = "unseeable", session_id: str = "s") -> None:
    await db.lifecycle.record(items_with(text, session_id))
    await db.lifecycle.annotate_session(
        session_id, A, text[:200], label=text[:200], comment=text, annotator=text[:200], score=0.5
    )
    await db.budgets.set_budget(Budget(budget_id=text[:200], user_id=A, agent_name=text[:200], limit_usd=2))


CHANGES: dict[str, dict[str, str]] = {
    "/session/end": {"status": "failed", "reason": "enough"},
    "/session/reopen": {},
    "/session/annotate": {"name": "quality", "score": "0.5", "label": "good", "annotator": "ann", "comment": "yes"},
    "/session/edit": {"title": "Other", "tags": "customer: acme\nbranch: main"},
}
