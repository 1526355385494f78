"""Errors as `application/problem+json` (RFC 9457), for our routes and for the host's own.

`problem_handler` is for a host whose own routes call this library:

    app.add_exception_handler(SessionLifecycleError, problem_handler)

The routes of this package need no handler.
"""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from session_lifecycle.errors import (
    BudgetExceededError,
    DatabaseUnavailableError,
    InvalidValueError,
    RecorderClosedError,
    RecorderFullError,
    SchemaError,
    SessionLifecycleError,
    SpoolFullError,
    TransactionConflictError,
)
from session_lifecycle.models.refusals import Withheld, expectation, shown
from session_lifecycle.web.framework import JSONResponse, Request, RequestValidationError

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 5
"""How long a client should wait when the database is away."""
_BUSY = (TransactionConflictError, RecorderFullError, SpoolFullError)
_AWAY = (DatabaseUnavailableError, SchemaError, RecorderClosedError)

_logger = logging.getLogger(__name__)


class RequestRefusedError(Exception):
    """A request that our routes refuse for a reason of HTTP: no such session, no permission, a body too large."""

    def __init__(self, status: HTTPStatus, detail: str, **members: Any) -> None:
        self.status = status
        self.detail = detail
        self.members = members
        super().__init__(status, detail)


async def problem_handler(_request: Request, error: Exception) -> JSONResponse:
    """An exception handler for a host's app: the answer to an error of this library."""
    return problem_of(error)


def problem_of(error: Exception) -> JSONResponse:
    """The answer to an error, as `application/problem+json`. It has no text of the driver and no stack trace."""
    match error:
        case RequestRefusedError():
            is_away = error.status is HTTPStatus.SERVICE_UNAVAILABLE
            return _problem(
                error.status, error.detail, error.members, retry_after=RETRY_AFTER_SECONDS if is_away else None
            )
        case RequestValidationError() | InvalidValueError():
            refusal = _of_parameters(error) if isinstance(error, RequestValidationError) else error
            members = {"field": refusal.field, "expected": refusal.expected}
            return _problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(refusal), members)
        case BudgetExceededError():
            budgets = {"budget_ids": error.budget_ids}
            return _problem(HTTPStatus.TOO_MANY_REQUESTS, "a budget refuses the call", budgets)
        case SessionLifecycleError() if isinstance(error, _BUSY):
            return _problem(HTTPStatus.SERVICE_UNAVAILABLE, "too much is written at once; try again", retry_after=1)
        case SessionLifecycleError() if isinstance(error, _AWAY):
            return _away(error)
        case _:
            _logger.error("a request failed", exc_info=error)
            return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, "the server cannot answer; its log says why")


def _away(error: SessionLifecycleError) -> JSONResponse:
    _logger.warning("the database cannot serve a request: %s", error)
    members: dict[str, Any] = {}
    if isinstance(error, DatabaseUnavailableError):
        members["may_have_written"] = error.may_have_written
    detail = "the database cannot serve the request now; try again later"
    return _problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, members, retry_after=RETRY_AFTER_SECONDS)


def _of_parameters(error: RequestValidationError) -> InvalidValueError:
    """The first refusal of a parameter, in our words."""
    first = error.errors()[0]
    _source, *path = first["loc"]
    field = ".".join(map(str, path))
    found = Withheld("nothing") if first["type"] == "missing" else shown(field, first["input"])
    return InvalidValueError(field, found, expectation(first))


def _problem(
    status: HTTPStatus, detail: str, members: Mapping[str, Any] | None = None, *, retry_after: int | None = None
) -> JSONResponse:
    body = {"type": "about:blank", "title": title(status), "status": status.value, "detail": detail}
    headers = {"Cache-Control": "no-store"} | ({} if retry_after is None else {"Retry-After": str(retry_after)})
    return JSONResponse(body | dict(members or {}), status.value, headers=headers, media_type=MEDIA_TYPE)


def title(status: HTTPStatus) -> str:
    """The name of a status in RFC 9110, in every version of Python."""
    return {413: "Content Too Large", 422: "Unprocessable Content"}.get(status, status.phrase)


def described(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of a route's problems."""
    return {status.value: {"description": title(status), "content": {MEDIA_TYPE: _CONTENT}} for status in statuses}


_CONTENT: dict[str, Any] = {
    "schema": {
        "title": "Problem",
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "One sentence."},
            "field": {"type": "string", "description": "422: the parameter or field that is refused."},
            "expected": {"type": "string", "description": "422: the values that are accepted."},
            "may_have_written": {"type": "boolean", "description": "503: whether a write may have taken effect."},
        },
    },
    "example": {
        "type": "about:blank",
        "title": "Unprocessable Content",
        "status": 422,
        "detail": "range: got '90d', expected one of 24h, 7d, 30d, all",
        "field": "range",
        "expected": "one of 24h, 7d, 30d, all",
    },
}
