"""The bodies of requests that write: read within a bound and checked, after the host has let the request pass."""

import json
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, TypeVar

from pydantic import ValidationError

from session_lifecycle.errors import InvalidValueError
from session_lifecycle.models.fields import Value
from session_lifecycle.models.refusals import Withheld, refusal
from session_lifecycle.web.framework import Request
from session_lifecycle.web.problems import RequestRefusedError

MOST_BYTES = 256 * 1024
"""The most bytes of a body about one session."""
Body = TypeVar("Body", bound=Value)


async def read_body(request: Request, most_bytes: int) -> bytes:
    """The body of a request.

    Raises:
        RequestRefusedError: The body is no JSON by its type, or has more than `most_bytes`.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestRefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be application/json")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most_bytes:
            raise RequestRefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body may have at most {most_bytes:,} bytes"
            )
    return bytes(body)


def checked_body(model: type[Body], body: bytes) -> Body:
    """The body as a checked value.

    Raises:
        InvalidValueError: The body is no JSON object, or a field is refused.
    """
    try:
        # Pydantic's reader refuses a body for a lone surrogate, which a text has that JavaScript has cut.
        given = json.loads(body)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise InvalidValueError("body", Withheld(f"{len(body)} bytes"), "a JSON object")
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise refusal(error, model) from error


def body_of(model: type[Body], *, optional: bool = False) -> Callable[[Request], Awaitable[Body]]:
    """The dependency that gives the body of a request.

    Args:
        model: What the body is.
        optional: Whether the body may be left out, and every field with it.
    """

    async def read(request: Request) -> Body:
        body = await read_body(request, MOST_BYTES)
        return model() if optional and not body else checked_body(model, body)

    return read


def documented_body(schema: dict[str, Any], example: Any, *, required: bool = True) -> dict[str, Any]:
    """What OpenAPI says of a body, for a route's `openapi_extra`.

    FastAPI documents only bodies that it reads itself, which it does before it asks the host.
    """
    content = {"schema": inlined(schema), "example": example}
    return {"requestBody": {"required": required, "content": {"application/json": content}}}


def inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with every definition in place of its references."""
    definitions = schema.get("$defs", {})

    def inline(part: Any) -> Any:
        if isinstance(part, list):
            return [inline(one) for one in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return inline(definitions[part["$ref"].rpartition("/")[2]])
        return {name: inline(one) for name, one in part.items() if name != "$defs"}

    found: dict[str, Any] = inline(schema)
    return found
