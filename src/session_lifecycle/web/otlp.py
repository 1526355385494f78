"""A receiver of OTLP over HTTP, as a router for FastAPI: programs in any language send their spans to the sessions."""

import asyncio
import json
import zlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Annotated
from uuid import UUID

from session_lifecycle.errors import InvalidValueError, SessionLifecycleError
from session_lifecycle.integrations.otlp import (
    JSON,
    PROTOBUF,
    MalformedRequestError,
    answer,
    read_request,
    refusal,
    spans_of,
)
from session_lifecycle.integrations.span_books import SpanBatches, item_of
from session_lifecycle.integrations.span_reader import INPUT_WITHOUT_CACHE, Span
from session_lifecycle.models import Item
from session_lifecycle.web.framework import APIRouter, Depends, Request, Response
from session_lifecycle.web.problems import problem_of
from session_lifecycle.writing.protocol import SessionWriter

MAX_BODY_BYTES = 8 * 1024 * 1024
"""How large a body may be: that of a request, and what it is when it is decompressed."""


class _TooLargeError(Exception):
    pass


def otlp_router(
    writer: SessionWriter,
    user_id: Callable[..., UUID | str | Awaitable[UUID | str]],
    *,
    session_id: str | None = None,
    content: bool = False,
    max_body_bytes: int = MAX_BODY_BYTES,
    input_without_cache: Collection[str] = INPUT_WITHOUT_CACHE,
) -> APIRouter:
    """A router with `POST /v1/traces`, which records the spans of agents and of calls of models.

    It takes protobuf and JSON, plain and in gzip. Its answer comes when the spans are recorded, and tells as
    `partial_success` how many were not, and why. Sending a request again adds nothing. Spans of no agent are taken and
    not recorded.

    - 200: recorded, but for what `partial_success` says
    - 400: the body is no request of OTLP
    - 413: it is larger than `max_body_bytes`
    - 415: its content type or encoding is another one
    - 500: something in the set-up does not work; the log says what
    - 503: the database is away or not migrated, or too much is written at once; the sender tries again

    Args:
        writer: Writes the items: `db.lifecycle`.
        user_id: A dependency of FastAPI that authenticates the sender and returns the owner of the sessions. It raises
            `HTTPException` for others. Nothing in the spans decides it.
        session_id: The session of traces that name none; None: one of its own for each trace, with its id.
        content: Whether messages, and the inputs and outputs of tools, are recorded. The host's `redact` sees them
            first.
        max_body_bytes: How large a body may be, also when it is decompressed.
        input_without_cache: The names of instrumentation scopes whose input tokens do not include the cache.
    """
    router = APIRouter()
    batches = SpanBatches(
        key_scope="user", content=content, session_id=session_id, input_without_cache=input_without_cache
    )

    @router.post("/v1/traces")
    async def receive(request: Request, owner: Annotated[UUID | str, Depends(user_id)]) -> Response:
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if content_type not in {PROTOBUF, JSON}:
            return Response(status_code=415)
        if encoding not in {"identity", "gzip"}:
            return _refused(content_type, 415, f"content-encoding: got {encoding!r}, expected gzip or none")
        try:
            body = await _body(request, encoding, max_body_bytes)
            # Reading some megabytes would keep the event loop from everything else.
            found = await asyncio.to_thread(lambda: list(spans_of(read_request(body, content_type))))
        except _TooLargeError:
            return _refused(content_type, 413, f"the body is larger than {max_body_bytes} bytes")
        except (MalformedRequestError, zlib.error) as error:
            return _refused(content_type, 400, str(error))
        report = _Report(found.count(None))
        try:
            await _record(writer, batches, [span for span in found if span is not None], owner, report)
        except SessionLifecycleError as error:
            # All of it may be sent again: what is recorded by now counts once.
            problem = problem_of(error)
            refused = _refused(content_type, problem.status_code, json.loads(bytes(problem.body))["detail"])
            if "retry-after" in problem.headers:
                refused.headers["retry-after"] = problem.headers["retry-after"]
            return refused
        return Response(answer(content_type, report.rejected, report.message), media_type=content_type)

    return router


class _Report:
    """What was not recorded, and why."""

    def __init__(self, malformed: int) -> None:
        self.rejected = malformed
        self._reasons: list[str] = []
        if malformed:
            self._reasons.append("a span has no valid ids or times")

    @property
    def message(self) -> str:
        return "; ".join(self._reasons)

    def note(self, reason: InvalidValueError, *, rejected: int = 0) -> None:
        self.rejected += rejected
        text = f"{reason.field}: expected {reason.expected}"  # the value may be content
        if text not in self._reasons:
            self._reasons.append(text)


async def _record(
    writer: SessionWriter, batches: SpanBatches, spans: Sequence[Span], owner: UUID | str, report: _Report
) -> None:
    """Records the spans, each trace in a transaction of its own, so that one that is refused takes no other with it."""
    for trace in batches.traces(spans).values():
        try:
            items: list[Item] = []
            for entry in batches.entries(trace, lambda: owner, sender=str(owner)):
                item, refused = item_of(entry)
                if refused is not None:
                    report.note(refused)
                items.append(item)
            if items:
                await writer.record(items)
        except InvalidValueError as error:
            report.note(error, rejected=len(trace))


async def _body(request: Request, encoding: str, most: int) -> bytes:
    """The body, decompressed.

    Raises:
        _TooLargeError: It is larger than `most`.
        zlib.error: It is not in gzip.
    """
    unpacking = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16) if encoding == "gzip" else None
    body = bytearray()
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        # One byte more than may be, so that a small body that unpacks to a huge one is found before it is unpacked.
        body += chunk if unpacking is None else unpacking.decompress(chunk, most + 1 - len(body))
        if received > most or len(body) > most:
            raise _TooLargeError
    if unpacking is not None and (not unpacking.eof or unpacking.unused_data):
        raise zlib.error("the body is not one whole piece of gzip")
    return bytes(body)


def _refused(content_type: str, status: int, message: str) -> Response:
    return Response(refusal(content_type, message), status_code=status, media_type=content_type)
