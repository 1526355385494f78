"""Errors as pages: the same statuses and sentences as `application/problem+json`, in words for a reader."""

import json
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlencode

from session_lifecycle.errors import InvalidValueError, SessionLifecycleError
from session_lifecycle.web.framework import AnyHTTPException, Request, RequestValidationError, Response
from session_lifecycle.web.pages.guest import Unsent, host_answers
from session_lifecycle.web.pages.visit import visit_of
from session_lifecycle.web.problems import RequestRefusedError, problem_of, title
from session_lifecycle.web.routes import SessionRoute

_STATUSES = frozenset(HTTPStatus)
_WORDS = {
    401: ("Who is asking?", "Sign in to see this page."),
    403: ("Not yours to change", None),
    404: ("Nothing here", "The page does not exist, or you may not see it."),
    422: ("This address asks for something that does not exist", None),
    500: ("Something went wrong", "The server's log says what."),
    503: ("The database does not answer", "Nothing is lost. This page comes back when the database does."),
}


class PageRoute(SessionRoute):
    """A route of a page. A parameter without a text is the same as none, and an error is answered as a page."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of the route."""
        handle = super(SessionRoute, self).get_route_handler()

        async def answer(request: Request) -> Response:
            # A form sends each of its fields, also those that nobody filled.
            given = parse_qsl(request.scope["query_string"].decode("latin-1"))
            request.scope["query_string"] = urlencode(given).encode()
            try:
                return await handle(request)
            except (SessionLifecycleError, RequestValidationError, RequestRefusedError) as error:
                return problem_page(request, error)

        return answer


def problem_page(request: Request, error: Exception) -> Response:
    """The page that says what an error means. It has no text of the driver and no stack trace."""
    if isinstance(error, AnyHTTPException):
        if error.status_code < HTTPStatus.BAD_REQUEST or error.status_code in {204, 304}:
            return Response(status_code=error.status_code, headers=error.headers)
        problem: dict[str, Any] = {"status": error.status_code, "detail": None}
        headers = dict(error.headers or {})
    else:
        said = problem_of(error)
        problem = json.loads(bytes(said.body))
        headers = {"Retry-After": said.headers["retry-after"]} if "retry-after" in said.headers else {}
    return _page(request, problem, headers)


async def problem_page_handler(request: Request, error: Exception) -> Response:
    """The exception handler of the app for paths without a page, and for the host's refusals."""
    return problem_page(request, error)


async def broken_page_handler(request: Request, error: Exception) -> Response:
    """The exception handler of the app for every other error. The host answers one that it has a handler for."""
    return Unsent() if host_answers(request, error) else problem_page(request, error)


def _page(request: Request, problem: dict[str, Any], headers: dict[str, str]) -> Response:
    status = problem["status"]
    # A host may refuse with a status that HTTP does not name.
    name = title(HTTPStatus(status)) if status in _STATUSES else "Refused"
    headline, sentence = _WORDS.get(status, (name, None))
    visit = visit_of(request)
    try:
        _ = visit.zone
    except InvalidValueError:  # the time zone in the address is what is refused
        request.scope["query_string"] = b""
        visit = visit_of(Request(request.scope, request.receive))
    sentence = sentence or problem["detail"]
    return visit.answer("problem.html", status, headers, headline=headline, sentence=sentence, problem=problem)
