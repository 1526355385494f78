"""The forms of pages: those that change a session, where the host allows it, and the visitor's preferences.

A form that changes something is refused unless the page itself sent it: the browser says that it comes from the same
origin, and the form has the secret of the browser's cookie, which no other site can read.
"""

import secrets
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, cast
from urllib.parse import parse_qsl, urlsplit

from session_lifecycle.errors import InvalidValueError
from session_lifecycle.models import End, SessionChanges, SessionRowWithStatus
from session_lifecycle.models.fields import FiniteFloat, Value
from session_lifecycle.models.sessions import EndStatus
from session_lifecycle.web.dependencies import may_write_for
from session_lifecycle.web.framework import APIRouter, Depends, Request, Response
from session_lifecycle.web.pages.problems import PageRoute
from session_lifecycle.web.pages.session import Owner, SessionId, address_of, find_session
from session_lifecycle.web.pages.visit import THEME_COOKIE, THEMES, TOKEN_COOKIE, AskedVisit, Visit
from session_lifecycle.web.problems import RequestRefusedError

router = APIRouter(route_class=PageRoute)
preferences = APIRouter(route_class=PageRoute)

MOST_BYTES = 64 * 1024
"""The most bytes of a form."""
_KIND = "application/x-www-form-urlencoded"


class Grade(Value):
    """The score in a form."""

    score: FiniteFloat | None = None


class Ending(Value):
    """The status in a form."""

    status: EndStatus


async def _form(request: Request) -> Mapping[str, str]:
    """The fields of a form that are filled, without spaces around them."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _KIND:
        raise RequestRefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the body must be {_KIND}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise RequestRefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the form may have at most {MOST_BYTES:,} bytes"
            )
    return {name: text.strip() for name, text in parse_qsl(body.decode("utf-8", "replace")) if text.strip()}


def _is_from_here(request: Request) -> bool:
    """Whether the browser says that a page of the same origin sent the request."""
    if (fetched := request.headers.get("sec-fetch-site")) is not None:
        return fetched == "same-origin"
    origin = urlsplit(request.headers.get("origin", "")).netloc
    return bool(origin) and origin == request.headers.get("host")


async def _own_form(visit: AskedVisit, form: Annotated[Mapping[str, str], Depends(_form)]) -> Mapping[str, str]:
    cookie = visit.request.cookies.get(TOKEN_COOKIE, "")
    token = form.get("token", "")
    if not (_is_from_here(visit.request) and cookie and secrets.compare_digest(cookie.encode(), token.encode())):
        raise RequestRefusedError(HTTPStatus.FORBIDDEN, "the form is not from a page that this browser has open")
    return form


Form = Annotated[Mapping[str, str], Depends(_form)]
OwnForm = Annotated[Mapping[str, str], Depends(_own_form)]


async def _own_session(
    visit: AskedVisit, _form: OwnForm, session_id: SessionId, owner: Owner = None
) -> SessionRowWithStatus:
    """The session, which the viewer may change. The form is looked at first."""
    found = await find_session(visit, session_id, owner)
    if not may_write_for(visit.viewer, found.record.user_id):
        raise RequestRefusedError(HTTPStatus.FORBIDDEN, "only the owner of the session may change it")
    return found


OwnSession = Annotated[SessionRowWithStatus, Depends(_own_session)]


def _back(visit: Visit, own: SessionRowWithStatus, done: str, view: str | None = None) -> Response:
    return visit.redirect(address_of(visit, own.record.session_id, own.record.user_id, view=view, done=done))


@router.post("/session/end")
async def end(visit: AskedVisit, form: OwnForm, own: OwnSession) -> Response:
    """Ends the session."""
    status = Ending.of_call(status=form.get("status")).status
    of_session = {"session_id": own.record.session_id, "user_id": own.record.user_id}
    item = End.of_call(**of_session, status=status, reason=form.get("reason"))
    await visit.db.lifecycle.record([item])
    return _back(visit, own, "end")


@router.post("/session/reopen")
async def reopen(visit: AskedVisit, _form: OwnForm, own: OwnSession) -> Response:
    """Makes the session running again."""
    await visit.db.lifecycle.reopen_session(own.record.session_id, own.record.user_id)
    return _back(visit, own, "reopen")


@router.post("/session/annotate")
async def annotate(visit: AskedVisit, form: OwnForm, own: OwnSession) -> Response:
    """Annotates the session."""
    await visit.db.lifecycle.annotate_session(
        own.record.session_id,
        own.record.user_id,
        form.get("name", ""),
        score=Grade.of_call(score=_number("score", form.get("score"))).score,
        label=form.get("label"),
        comment=form.get("comment"),
        annotator=form.get("annotator"),
    )
    return _back(visit, own, "annotate", "annotations")


@router.post("/session/edit")
async def edit(visit: AskedVisit, form: OwnForm, own: OwnSession) -> Response:
    """Replaces the title and the tags of the session."""
    changes = cast("SessionChanges", {"title": form.get("title"), "tags": _tags(form.get("tags", ""))})
    await visit.db.lifecycle.update_session(own.record.session_id, own.record.user_id, **changes)
    return _back(visit, own, "edit")


def _number(field: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return float(text.replace(",", "."))
    except ValueError:
        raise InvalidValueError(field, text, "a number") from None


def _tags(text: str) -> dict[str, str]:
    """The tags of a form, one `name: text` in each line."""
    tags: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, separator, value = line.partition(":")
        if not separator or not name.strip():
            raise InvalidValueError("tags", line, "one tag in each line, as name: text")
        tags[name.strip()] = value.strip()
    return tags


@preferences.post("/preferences")
async def prefer(visit: AskedVisit, form: Form) -> Response:
    """Keeps the colours that the visitor wants, in a cookie, and goes back to the page."""
    theme = form.get("theme")
    if theme not in THEMES:
        raise InvalidValueError("theme", theme, f"one of {', '.join(THEMES)}")
    back = form.get("back", "")
    # Only a path of this dashboard: another one would send the visitor to another site. A browser leaves out tabs and
    # line breaks, and a line break would begin another header.
    inside = back.startswith(f"{visit.address.root}/") and not back.startswith(("//", "/\\"))
    inside = inside and back.isascii() and back.isprintable()
    answer = visit.redirect(back if inside else visit.address.to("/"))
    visit.set_cookie(answer, THEME_COOKIE, str(theme))
    return answer
