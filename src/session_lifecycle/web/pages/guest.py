"""`GuestApp`: the app of the pages, a guest in the app of the host that mounts it.

Starlette gives a mounted app a `request.app` and exception handlers of its own. A dependency of the host expects those
of the host: it reads `request.app.state`, and it raises errors that the host has handlers for.
"""

from typing import Any

from session_lifecycle.web.framework import ASGIApp, FastAPI, Receive, Request, Response, Scope, Send

_HOST = "session_lifecycle.host"
_HANDLERS = "session_lifecycle.host_exception_handlers"
_DASHBOARD = "session_lifecycle.dashboard"


class GuestApp(FastAPI):
    """An app whose requests have the app that it is mounted in as their `request.app`."""

    def __init__(self, dashboard: Any, **options: Any) -> None:
        """Makes the app.

        Args:
            dashboard: What `dashboard_of` gives for each request of the app.
            **options: What FastAPI takes.
        """
        super().__init__(**options)
        self._dashboard = dashboard
        self.add_middleware(_AppOfTheHost)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Keeps what the host has in the scope, before this app puts its own there."""
        scope[_HOST] = scope.get("app", self)
        scope[_HANDLERS] = scope.get("starlette.exception_handlers", ({}, {}))[0]
        scope[_DASHBOARD] = self._dashboard
        await super().__call__(scope, receive, send)


class _AppOfTheHost:
    """Middleware: gives the scope the app of the host back."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = scope[_HOST]
        await self._app(scope, receive, send)


def dashboard_of(request: Request) -> Any:
    """What the `GuestApp` of a request was made with."""
    return request.scope[_DASHBOARD]


def host_answers(request: Request, error: Exception) -> bool:
    """Whether the host has an exception handler for this error."""
    handlers = request.scope[_HANDLERS]
    return any(kind in handlers for kind in type(error).__mro__)


class Unsent(Response):
    """An answer of which nothing is sent: Starlette raises the error on, and the host answers."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends nothing."""
