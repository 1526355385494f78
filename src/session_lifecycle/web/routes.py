"""`SessionRoute`: the class of our routes. Any session id fits into a path, and an error becomes a problem.

A HEAD is answered as the GET of its path, as RFC 9110 asks, which proxies and checks of uptime rely on. The server
leaves the body out.
"""

import re
from collections.abc import Callable, Coroutine
from string import ascii_letters, digits
from typing import Any
from urllib.parse import quote, unquote

from session_lifecycle.errors import SessionLifecycleError
from session_lifecycle.web.framework import (
    APIRoute,
    Match,
    Receive,
    Request,
    RequestValidationError,
    Response,
    Scope,
    Send,
)
from session_lifecycle.web.problems import RequestRefusedError, problem_of

_KEPT_ENCODED = f"/%{ascii_letters}{digits}-._~{''.join(map(chr, range(32)))}\x7f"
_KEPT = re.compile(f"%(?={'|'.join(f'{ord(one):02X}' for one in _KEPT_ENCODED)})", re.IGNORECASE)


class SessionRoute(APIRoute):
    """A route that is matched with the path as it was sent, and that answers our errors itself."""

    answers_head = True
    """Whether a HEAD is answered as a GET. A stream has no end, so its HEAD would wait."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether the route answers the request, and with which parameters of the path.

        A server decodes the path. There, the slash of an id looks like a slash between segments, so the path as it was
        sent decides, and its parameters are decoded one by one.
        """
        if scope["type"] != "http":
            return Match.NONE, {}
        match, found = super().matches({**self._as_get(scope), "path": _readable(sent_path(scope)), "root_path": ""})
        if match is not Match.NONE:
            decoded = {
                name: unquote(value) if isinstance(value, str) else value
                for name, value in found["path_params"].items()
                if name not in scope.get("path_params", {})
            }
            found["path_params"] = {**found["path_params"], **decoded}
        return match, found

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers the request. FastAPI refuses a HEAD, so it is shown a GET."""
        await super().handle(self._as_get(scope), receive, send)

    def _as_get(self, scope: Scope) -> Scope:
        is_head = self.answers_head and scope["method"] == "HEAD" and "GET" in (self.methods or ())
        return {**scope, "method": "GET"} if is_head else scope

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of the route; its errors are answered here, so that a host need not install anything."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except (SessionLifecycleError, RequestValidationError, RequestRefusedError) as error:
                return problem_of(error)

        return answer


def sent_path(scope: Scope) -> str:
    """The path below the application's root, with its percent signs."""
    path: str = scope["path"]
    sent: str = scope.get("raw_path", b"").decode("latin-1")
    if unquote(sent) != path:  # a server need not tell, and a middleware may have changed the path
        sent = quote(path)
    root: str = scope.get("root_path", "")
    segments = sent.split("/")
    below = 1 + root.count("/")
    if not root or unquote("/".join(segments[:below])) != root:
        return sent
    return "/".join(["", *segments[below:]])


def _readable(sent: str) -> str:
    """The path as a host writes it in a prefix: decoded, but for what no client must encode, slashes and percent signs.

    So an id whose first letter is encoded is not the name of a route.
    """
    return unquote(_KEPT.sub("%25", sent))
