"""An ASGI application that answers Prometheus. It needs no framework: `app.mount("/metrics", metrics_app(metrics))`."""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from session_lifecycle.maintenance.metrics import CONTENT_TYPE, DatabaseMetrics

Message = MutableMapping[str, Any]
Application = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]
Allows = Callable[[Mapping[str, Any]], Awaitable[bool]]


def metrics_app(metrics: DatabaseMetrics, *, allows: Allows) -> Application:
    """An ASGI application with the metrics in Prometheus's text format.

    GET and HEAD of every path below the mount answer 200; another method answers 405, a request that is not allowed
    403. The metrics have no user's data, and tell an attacker how busy a service is.

    Args:
        metrics: What `SessionDatabase.metrics` made.
        allows: Decides on each request by its ASGI scope, before anything is read.
    """

    async def app(
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        del receive
        if scope["type"] != "http":
            raise RuntimeError(f"metrics_app answers HTTP requests only, got {scope['type']!r}")
        if not await allows(scope):
            status, body = 403, b"forbidden\n"
        elif scope["method"] not in {"GET", "HEAD"}:
            status, body = 405, b"method not allowed\n"
        else:
            status, body = 200, (await metrics.text()).encode()
        kind = CONTENT_TYPE if status == 200 else "text/plain; charset=utf-8"  # noqa: PLR2004 - HTTP's number
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    return app
