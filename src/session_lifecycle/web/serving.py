"""The app of `session-lifecycle serve`: the routes under `/api/v1`, the pages under `/`, and a door before both.

The door is for one person on one machine. The terminal shows a link with a token that works once; it is exchanged for a
cookie that scripts cannot read and that no other site's request carries. The name in the header `Host` must be one of
this machine, because a page of somebody else can give its own name the address of this machine (DNS rebinding).
"""

from collections.abc import Callable
from hmac import compare_digest
from http.cookies import CookieError, SimpleCookie
from secrets import token_urlsafe
from typing import Annotated
from urllib.parse import parse_qs

from session_lifecycle.database import SessionDatabase
from session_lifecycle.maintenance.metrics import CONTENT_TYPE
from session_lifecycle.models import Viewer
from session_lifecycle.web.dependencies import Dependency
from session_lifecycle.web.feed import LiveFeed
from session_lifecycle.web.framework import (
    ASGIApp,
    Depends,
    FastAPI,
    PlainTextResponse,
    Receive,
    Request,
    Response,
    Scope,
    Send,
)
from session_lifecycle.web.reading import session_router

API_PATH = "/api/v1"
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_NOBODY = "Open the link that the terminal shows. Each link works once, and the terminal shows the next one."
_ELSEWHERE = "This server answers to the names of this machine only."


def serving_app(db: SessionDatabase, *, viewer: Dependency, feed: LiveFeed) -> FastAPI:
    """The routes that read, the pages, and the metrics, which only the auditor sees. Nothing of it writes.

    Args:
        db: The database. The caller opens and closes it.
        viewer: The dependency that gives the `Viewer`.
        feed: What the routes and the pages stream.
    """
    from session_lifecycle.web.dashboard import dashboard_app

    # FastAPI's own pages of the API load their scripts from another site.
    app = FastAPI(title="session-lifecycle", docs_url=None, redoc_url=None, openapi_url=f"{API_PATH}/openapi.json")
    app.include_router(session_router(db, viewer=viewer, feed=feed), prefix=API_PATH)
    found = db.metrics()

    @app.get("/metrics", include_in_schema=False)
    async def metrics(asker: Annotated[Viewer, Depends(viewer)]) -> Response:
        if not asker.sees_all:
            return PlainTextResponse("The metrics are about everybody, and for the auditor only.", 403)
        return Response(await found.text(), media_type=CONTENT_TYPE)

    app.mount("/", dashboard_app(db, viewer=viewer, api_path=API_PATH, feed=feed))
    return app


class Door:
    """An ASGI app that lets a request through to another one, or answers it: 401, or 421 for a name of elsewhere."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        names: frozenset[str],
        port: int,
        needs_token: bool,
        on_token: Callable[[str], object] = lambda _token: None,
    ) -> None:
        """Makes the first token.

        Args:
            app: What is behind the door.
            names: The names that a request may give to the server, without the port; in small letters.
            port: The port, which the cookie is named after: browsers do not keep cookies of two ports apart.
            needs_token: Whether the cookie is asked for.
            on_token: Called with every token, when it begins to work.
        """
        self._app = app
        self._names = names
        self._cookie = f"session_lifecycle_{port}"
        self._needs_token = needs_token
        self._on_token = on_token
        self._secret = token_urlsafe(32)
        self._token = ""
        if needs_token:
            self._new_token()

    def _new_token(self) -> None:
        self._token = token_urlsafe(24)
        self._on_token(self._token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http" and (answer := self._answer(Request(scope))) is not None:
            await answer(scope, receive, send)
        elif scope["type"] == "http":
            await self._app(scope, receive, send)
        # Nothing here speaks WebSocket: a server refuses what is not answered.

    def _answer(self, request: Request) -> Response | None:
        """The door's own answer; None: the request goes through."""
        if _name(request.headers.get("host", "")) not in self._names:
            return PlainTextResponse(_ELSEWHERE, 421)
        if not self._needs_token:
            return None
        given = parse_qs(request.url.query).get("token", [""])[0]
        if given and request.method == "GET" and compare_digest(given.encode(), self._token.encode()):
            self._new_token()
            # To the root and nowhere else: a path may begin with the name of another site.
            headers = {"Location": "/", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
            answer = Response(status_code=303, headers=headers)
            answer.set_cookie(self._cookie, self._secret, httponly=True, samesite="strict", path="/")
            return answer
        if any(compare_digest(one.encode(), self._secret.encode()) for one in _cookies(request, self._cookie)):
            return None
        return PlainTextResponse(_NOBODY, 401, headers={"Cache-Control": "no-store"})


def _name(host: str) -> str:
    """The name in a header `Host`, without the port."""
    name, colon, port = host.rpartition(":")
    is_with_port = bool(colon) and port.isascii() and port.isdigit()
    return (name if is_with_port else host).lower()


def _cookies(request: Request, name: str) -> list[str]:
    """The values of the cookie, in all headers."""
    found = []
    for header in request.headers.getlist("cookie"):
        try:
            cookie = SimpleCookie(header)
        except CookieError:
            continue  # a header that cannot be read has no cookie of ours
        if name in cookie:
            found.append(cookie[name].value)
    return found
