"""Answers as JSON: what is written, its entity tag, and what OpenAPI says of it.

Money and durations are JSON numbers, ids are text, and times are ISO 8601 with an offset.
"""

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime
from decimal import Decimal
from functools import cache, reduce
from hashlib import sha256
from operator import or_
from types import GenericAlias, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel, Field, create_model

from session_lifecycle.models import EffectiveStatus, SessionRecord, SessionRowWithStatus
from session_lifecycle.web.framework import Request, Response

NOT_MODIFIED: dict[int | str, dict[str, Any]] = {
    304: {"description": "The answer is the one whose entity tag `If-None-Match` names."}
}
_EXAMPLES: dict[str, Any] = {
    "session_id": "chat-1",
    "user_id": "018f3a5e-0000-7000-8000-000000000001",
    "dataset_id": "018f3a5e-0000-7000-8000-00000000000d",
    "started_at": "2026-01-05T09:00:00+00:00",
    "last_activity_at": "2026-01-05T09:12:30.250000+00:00",
    "ended_at": "2026-01-05T09:12:30.250000+00:00",
    "tokens_in": 1200,
    "tokens_out": 340,
    "tokens_total": 1540,
    "cost_usd": 0.0064,
    "last_model": "gpt-4o-mini",
    "model": "gpt-4o-mini",
    "provider": "openai",
    "agent_name": "coder",
    "agent_type": "claude-code",
    "title": "Mend the build",
    "label": "Why does the build fail?",
    "client": "Cursor",
}


def answer(request: Request, value: Any) -> Response:
    """The value as the answer to a GET: with an entity tag, or without a body where the client has it already."""
    body = as_json(value)
    tag = f'"{sha256(body).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    known = {one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")}
    if known & {tag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


def written(value: Any) -> Response:
    """The value as the answer to a request that writes."""
    return Response(as_json(value), headers={"Cache-Control": "no-store"}, media_type="application/json")


def as_json(value: Any) -> bytes:
    """The value as JSON text in UTF-8."""
    return json.dumps(value, default=_plain, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    match value:
        case SessionRowWithStatus():
            return value.to_dict()
        case BaseModel():
            return dict(value)
        case datetime():
            return value.isoformat()
        case Decimal():
            return float(value)
        case UUID():
            return str(value)
        case _:
            raise TypeError(f"no JSON for a {type(value).__name__}")


def documented(
    value: type[BaseModel] | None,
    name: str | None = None,
    *,
    first: Mapping[str, Any] | None = None,
    last: Mapping[str, Any] | None = None,
    required: AbstractSet[str] | None = None,
) -> Any:
    """The model that OpenAPI shows for a value as `as_json` writes it: money is a number, and no field is missing.

    Args:
        value: The value; None: all fields are further fields.
        name: The name that OpenAPI shows; None: the value's own.
        first: Types of further fields before those of the value, by name.
        last: Types of further fields after them.
        required: The fields that are never missing; None: all.
    """
    if value is SessionRowWithStatus:
        return SESSION
    own = {} if value is None else {one: field.annotation for one, field in value.model_fields.items()}
    types = {**(first or {}), **own, **(last or {})}
    fields: dict[str, Any] = {
        one: (
            _in_json(kind),
            Field(
                default=... if required is None or one in required else None,
                examples=[_EXAMPLES[one]] if one in _EXAMPLES else None,
            ),
        )
        for one, kind in types.items()
    }
    shown = name or (value.__name__ if value is not None else "")
    return create_model(shown, __doc__=None if value is None else value.__doc__, __module__=__name__, **fields)


def list_of(model: Any) -> Any:
    """The type of a list of a model that is made at run time."""
    return GenericAlias(list, (model,))


def page_of(page: type[BaseModel], name: str, **row: Any) -> Any:
    """The model of a page: its rows first, then the fields of every page in the reference's order.

    Args:
        page: The page.
        name: The name that OpenAPI shows.
        **row: The model of one row, by the name of the rows.
    """
    rows = {one: list_of(model) for one, model in row.items()}
    beside = ("total", "limit", "offset", "has_more", "next_cursor", "total_is_lower_bound")
    others = [one for one in page.model_fields if one not in {*beside, *rows}]
    types = {one: page.model_fields[one].annotation for one in (*beside, *others)}
    return documented(None, name, first=rows, last=types)


_documented = cache(documented)


def _in_json(annotation: Any) -> Any:
    """The type of a field in JSON."""
    if annotation is Decimal:
        return float
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation if annotation.__module__ == __name__ else _documented(annotation)
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is None or origin is Literal:
        return annotation
    if origin is Annotated:
        return _in_json(parts[0])
    inner = tuple(map(_in_json, parts))
    return reduce(or_, inner) if origin in {Union, UnionType} else origin[inner]


SESSION = documented(SessionRecord, "Session", last={"effective_status": EffectiveStatus})
"""A session as `SessionRowWithStatus.to_dict` writes it."""
