"""The route by which runtimes that are not Python record items: any mix of them, with an outcome for each."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, cast

from pydantic import BaseModel

from session_lifecycle.database import SessionDatabase
from session_lifecycle.errors import InvalidValueError
from session_lifecycle.models import Item, Receipt, UsageReceipt, Viewer
from session_lifecycle.models.fields import Value
from session_lifecycle.web.answers import documented, list_of, written
from session_lifecycle.web.bodies import checked_body, documented_body, inlined, read_body
from session_lifecycle.web.dependencies import Asker, Database, Dependency, bring, may_share_through, may_write_for
from session_lifecycle.web.framework import APIRouter, Depends, Request, Response
from session_lifecycle.web.problems import RequestRefusedError, described
from session_lifecycle.web.routes import SessionRoute
from session_lifecycle.writing.spool_drain import ITEM_KINDS, OWN_KIND, item_of_fields

MOST_ITEMS = 1_000
MOST_BYTES = 8 * 2**20
_KINDS = {name: kind for name, kind in ITEM_KINDS.items() if name != "reopen"}
_REFUSED = "refused"


class Batch(Value):
    """What `POST /ingest` takes."""

    items: list[dict[str, Any]]


def _schema_of(kind: str, model: type[BaseModel]) -> dict[str, Any]:
    """What OpenAPI says of an item of this kind."""
    schema = inlined(model.model_json_schema())
    properties, required = schema["properties"], {*schema.get("required", ()), "kind"} - {"user_id"}
    if (own := OWN_KIND.get(kind)) is not None:
        properties[own] = properties.pop("kind")
        required |= {own} if "default" not in properties[own] else set()
    if kind == "usage":
        properties["idempotency_key"] = {"type": "string", "minLength": 1, "maxLength": 512}
        required |= {"idempotency_key"}
    properties["kind"] = {"const": kind}
    return schema | {"title": kind, "required": sorted(required)}


_EXAMPLE = {
    "items": [
        {"kind": "touch", "session_id": "chat-1", "agent_name": "coder"},
        {
            "kind": "usage",
            "session_id": "chat-1",
            "model": "gpt-4o-mini",
            "tokens_in": 1200,
            "tokens_out": 340,
            "idempotency_key": "response-1",
        },
        {"kind": "end", "session_id": "chat-1", "status": "completed"},
    ]
}
_BODY = {
    "type": "object",
    "required": ["items"],
    "additionalProperties": False,
    "properties": {
        "items": {"type": "array", "items": {"oneOf": [_schema_of(kind, model) for kind, model in _KINDS.items()]}}
    },
}
_Result = documented(
    None,
    "IngestResult",
    last={
        "outcome": str,
        **{name: field.annotation for name, field in UsageReceipt.model_fields.items() if name != "outcome"},
        "status": int,
        "detail": str,
        "field": str,
        "expected": str,
    },
    required={"outcome"},
)
_INGEST = APIRouter(route_class=SessionRoute)


def ingest_router(
    db: SessionDatabase, *, writer: Dependency, most_items: int = MOST_ITEMS, most_bytes: int = MOST_BYTES
) -> APIRouter:
    """`POST /ingest`, by which runtimes record items.

    Args:
        db: The database. The host opens and closes it.
        writer: The host's dependency that gives a `Viewer`, or raises the host's own error, such as 401 or 403. Items
            of its user and of its agents are written, and sessions shared through its datasets.
        most_items: The most items of one request.
        most_bytes: The most bytes of one request.

    Example:
        app.include_router(ingest_router(db, writer=current_viewer), prefix="/api/v1")
    """

    async def bring_bounds(request: Request) -> None:
        request.state.session_ingest_bounds = most_items, most_bytes

    router = APIRouter()
    router.include_router(_INGEST, dependencies=[*bring(db, writer), Depends(bring_bounds)])
    return router


async def _batch(request: Request) -> Batch:
    most_items, most_bytes = request.state.session_ingest_bounds
    batch = checked_body(Batch, await read_body(request, most_bytes))
    if len(batch.items) > most_items:
        detail = f"items: got {len(batch.items):,}, expected at most {most_items:,} in one request"
        raise RequestRefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail, field="items")
    return batch


@_INGEST.post(
    "/ingest",
    tags=["ingest"],
    response_model=documented(None, "IngestAnswer", last={"results": list_of(_Result), "refused": int}),
    responses={
        401: {"description": "The host's authentication refuses the request."},
        **described(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            HTTPStatus.UNPROCESSABLE_ENTITY,
            HTTPStatus.INTERNAL_SERVER_ERROR,
            HTTPStatus.SERVICE_UNAVAILABLE,
        ),
    },
    openapi_extra=documented_body(_BODY, _EXAMPLE),
)
async def ingest(db: Database, writer: Asker, batch: Annotated[Batch, Depends(_batch)]) -> Response:
    """Records any mix of items, in their order. The same request can be sent again: nothing counts twice.

    Each item has a `kind`. The `kind` of a usage event is called `usage_kind`, and that of a step `step_kind`. An item
    without a `user_id` is of the writer. A usage event needs an `idempotency_key`. Without `at`, an item happens now.

    There is one result per item, in order. An item that is refused does not keep the others from being written: its
    outcome is `refused`, with the members of a problem. All items are one transaction, unless one is refused by the
    database.
    """
    results: list[Any] = [None] * len(batch.items)
    accepted: list[tuple[int, Item]] = []
    for position, fields in enumerate(batch.items):
        try:
            accepted.append((position, _item(fields, writer)))
        except InvalidValueError as error:
            results[position] = _refusal(error)
        except RequestRefusedError as error:
            results[position] = {"outcome": _REFUSED, "status": error.status, "detail": error.detail, **error.members}
    receipts = await _record(db, [item for _, item in accepted])
    for (position, _), receipt in zip(accepted, receipts, strict=True):
        results[position] = _result(receipt)
    return written({"results": results, "refused": sum(one["outcome"] == _REFUSED for one in results)})


def _item(given: Mapping[str, Any], writer: Viewer) -> Item:
    """The item with these fields, which the writer may write."""
    kind = given.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise InvalidValueError("kind", kind, f"one of {', '.join(_KINDS)}")
    of_writer = {} if writer.user_id is None else {"user_id": writer.user_id}
    try:
        item = cast("Item", item_of_fields({**of_writer, **given}))
    except InvalidValueError as error:
        if error.field != "kind":
            raise
        raise InvalidValueError(OWN_KIND.get(kind, "kind"), error.value, error.expected) from error
    if not may_write_for(writer, item.user_id):
        raise RequestRefusedError(HTTPStatus.FORBIDDEN, "not a user that you may write for", field="user_id")
    if not may_share_through(writer, getattr(item, "dataset_id", None)):
        raise RequestRefusedError(HTTPStatus.FORBIDDEN, "not a data set that you may read", field="dataset_id")
    return item


async def _record(db: SessionDatabase, items: Sequence[Item]) -> Sequence[Receipt | InvalidValueError]:
    """The receipt of each item, or why the database refuses it. A refused item is searched for by halves."""
    try:
        return await db.lifecycle.record(items)
    except InvalidValueError as error:
        if len(items) == 1:
            return [InvalidValueError(error.field.removeprefix("items.0."), error.value, error.expected)]
    middle = len(items) // 2
    return [*await _record(db, items[:middle]), *await _record(db, items[middle:])]


def _result(receipt: Receipt | InvalidValueError) -> dict[str, Any]:
    match receipt:
        case InvalidValueError():
            return _refusal(receipt)
        case UsageReceipt():
            return dict(receipt)
        case outcome:
            return {"outcome": outcome}


def _refusal(error: InvalidValueError) -> dict[str, Any]:
    return {
        "outcome": _REFUSED,
        "status": HTTPStatus.UNPROCESSABLE_ENTITY,
        "detail": str(error),
        "field": error.field,
        "expected": error.expected,
    }
