"""`Visit`: one request for a page, with what the page needs; and the answers that pages give.

Every answer has the same headers: a policy that lets a page load from its own host alone, and no cache.
"""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path as FilePath
from typing import Annotated, Any
from urllib.parse import unquote
from uuid import UUID
from zoneinfo import ZoneInfo

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined

from session_lifecycle._version import __version__
from session_lifecycle.database import SessionDatabase
from session_lifecycle.errors import InvalidValueError
from session_lifecycle.models import Viewer
from session_lifecycle.models.reports import time_zone
from session_lifecycle.web.dependencies import Asker, Database
from session_lifecycle.web.framework import Depends, Request, Response
from session_lifecycle.web.pages.address import Address, encoded
from session_lifecycle.web.pages.guest import dashboard_of
from session_lifecycle.web.pages.wording import Wording, marks_of
from session_lifecycle.web.reading import UserEmails

ZONE_COOKIE = "session_lifecycle_zone"
THEME_COOKIE = "session_lifecycle_theme"
TOKEN_COOKIE = "session_lifecycle_token"  # noqa: S105 - the name of the cookie
THEMES = ("system", "light", "dark")
_UTC = ZoneInfo("UTC")


@dataclass(frozen=True)
class Dashboard:
    """What one `dashboard_app` was made with."""

    api_path: str
    has_feed: bool
    writable: bool
    frame_ancestors: str
    user_emails: UserEmails | None
    templates: Environment

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every page."""
        policy = (
            "default-src 'self'",
            "object-src 'none'",
            "base-uri 'none'",
            "form-action 'self'",
            f"frame-ancestors {self.frame_ancestors}",
        )
        return {
            "Content-Security-Policy": "; ".join(policy),
            "Cache-Control": "private, no-store",
            "Referrer-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
        }


@cache
def environment(templates: FilePath | None) -> Environment:
    """The templates: those of the host first, then ours. Every text in them is escaped.

    Raises:
        jinja2.TemplateSyntaxError: A template of the host that stands for one of ours is wrong.
    """
    ours = PackageLoader("session_lifecycle.web", "templates")
    loader = ours if templates is None else ChoiceLoader([FileSystemLoader(templates), ours])
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    for name in ours.list_templates():
        made.get_template(name)  # compiled now: the first visit would keep the event loop from others for 0.1 s
    return made


@dataclass(frozen=True)
class Visit:
    """One request for a page."""

    request: Request
    dashboard: Dashboard

    @property
    def db(self) -> SessionDatabase:
        """The database."""
        db: SessionDatabase = self.request.state.session_database
        return db

    @property
    def viewer(self) -> Viewer:
        """Who asks."""
        viewer: Viewer = self.request.state.session_viewer
        return viewer

    @cached_property
    def now(self) -> datetime:
        """When the page was asked for, UTC."""
        return datetime.now(UTC)

    @cached_property
    def address(self) -> Address:
        """The address of the page."""
        return Address.of(self.request, self.request.scope["path"].removeprefix(self.request.scope["root_path"]))

    @cached_property
    def zone(self) -> ZoneInfo:
        """The visitor's time zone: `tz` of the address, else that of the cookie, else UTC.

        Raises:
            InvalidValueError: There is no time zone of the name in the address.
        """
        asked = self.request.query_params.get("tz")
        if asked is not None:
            try:
                zone: ZoneInfo = time_zone(asked)
            except ValueError:
                raise InvalidValueError("tz", asked, "the name of an IANA time zone, such as Europe/Zurich") from None
            return zone
        return self._zone_of_cookie or _UTC

    @cached_property
    def _zone_of_cookie(self) -> ZoneInfo | None:
        try:
            zone: ZoneInfo = time_zone(unquote(self.request.cookies[ZONE_COOKIE]))
        except (KeyError, ValueError):
            return None  # a browser may send any cookie
        return zone

    @cached_property
    def wording(self) -> Wording:
        """How the visitor reads figures."""
        return Wording(self.zone, marks_of(self.request.headers.get("accept-language", "")))

    @cached_property
    def token(self) -> str:
        """The secret that a form sends back beside its cookie."""
        return self.request.cookies.get(TOKEN_COOKIE) or secrets.token_urlsafe(32)

    async def names_of(self, user_ids: Iterable[UUID]) -> dict[UUID, str]:
        """What the host calls these users; the beginning of the id where it does not say."""
        wanted = sorted(set(user_ids))
        find = self.dashboard.user_emails
        found = {} if find is None or not wanted else await find(wanted)
        return {user_id: found.get(user_id) or str(user_id)[:8] for user_id in wanted}

    def answer(
        self, template: str, status: int = 200, headers: dict[str, str] | None = None, **values: Any
    ) -> Response:
        """A page.

        Args:
            template: The name of its template.
            status: The status of the answer.
            headers: Further headers.
            **values: What the template shows.
        """
        theme = self.request.cookies.get(THEME_COOKIE)
        body = self.dashboard.templates.get_template(template).render(
            visit=self,
            at=self.address,
            say=self.wording,
            dashboard=self.dashboard,
            theme=theme if theme in THEMES else THEMES[0],
            themes=THEMES,
            version=__version__,
            stream=self._path_of_events,
            **values,
        )
        answer = Response(body, status, self.dashboard.headers | (headers or {}), "text/html")
        if self.dashboard.writable and TOKEN_COOKIE not in self.request.cookies:
            self.set_cookie(answer, TOKEN_COOKIE, self.token, same_site="strict")
        return answer

    def set_cookie(self, answer: Response, name: str, value: str, *, same_site: str = "lax") -> None:
        """Sets a cookie of the dashboard, which scripts cannot read."""
        answer.set_cookie(
            name,
            value,
            path=self.address.root or "/",
            secure=self.request.url.scheme == "https",
            httponly=True,
            samesite="strict" if same_site == "strict" else "lax",
        )

    def redirect(self, location: str) -> Response:
        """Sends the browser to another page after a form was sent."""
        return Response(status_code=303, headers=self.dashboard.headers | {"Location": location})

    @property
    def _path_of_events(self) -> str | None:
        """The path of the event stream, behind every proxy; None where the host has none."""
        if not self.dashboard.has_feed:
            return None
        scope = self.request.scope
        root: str = scope.get("app_root_path", scope["root_path"])
        return f"{encoded(root)}{self.dashboard.api_path}/events"


async def _visit(request: Request, _db: Database, _asker: Asker) -> Visit:
    return visit_of(request)


def visit_of(request: Request) -> Visit:
    """The visit that a request is, also one that the host refuses."""
    return Visit(request, dashboard_of(request))


AskedVisit = Annotated[Visit, Depends(_visit)]
