"""OTLP: reads the spans of an export request, and writes its answer, in protobuf and in JSON.

https://opentelemetry.io/docs/specs/otlp/, as of version 1.10.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from session_lifecycle.integrations.span_reader import Span, error_of, moment
from session_lifecycle.models.fields import safe_text

try:
    from google.protobuf import json_format
    from google.protobuf.message import DecodeError, Message
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
        ExportTraceServiceRequest,
        ExportTraceServiceResponse,
    )
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan
    from opentelemetry.proto.trace.v1.trace_pb2 import SpanFlags, Status
except ImportError as error:
    raise ImportError(
        "opentelemetry-proto is missing: pip install 'session-lifecycle[web]'", name=error.name
    ) from error

PROTOBUF = "application/x-protobuf"
JSON = "application/json"
_IDS = frozenset({"traceId", "spanId", "parentSpanId"})
_TRACE_BYTES, _SPAN_BYTES = 16, 8
_YEAR_10000_NS = 253_402_300_800 * 1_000_000_000


class MalformedRequestError(ValueError):
    """The body is no export request."""


def read_request(body: bytes, content_type: str) -> ExportTraceServiceRequest:
    """Reads an export request.

    Args:
        body: The body, not compressed.
        content_type: `PROTOBUF` or `JSON`.

    Raises:
        MalformedRequestError: It is none.
    """
    request = ExportTraceServiceRequest()
    try:
        if content_type == PROTOBUF:
            request.ParseFromString(body)
        else:
            # Receivers ignore names they do not know. Ids are hexadecimal in OTLP, not base64 as in other JSON of
            # protobuf.
            # Python's JSON has NaN, which ends protobuf's reader in errors of its own.
            told = _with_ids(json.loads(body, parse_constant=_refuse_constant))
            if not isinstance(told, dict):
                raise TypeError(f"got {type(told).__name__}")  # noqa: TRY301 - it becomes one refusal with the others
            json_format.ParseDict(cast("dict[str, Any]", told), request, ignore_unknown_fields=True)
    except (DecodeError, json_format.ParseError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise MalformedRequestError(f"the body is no ExportTraceServiceRequest in {content_type}") from error
    return request


def _refuse_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


def _with_ids(value: Any) -> Any:
    """The value with ids as protobuf's reader takes them, and with texts that it takes.

    A text that JavaScript has cut may end in a lone surrogate. The other spans must not be lost for it.
    """
    if isinstance(value, str):
        return safe_text(value)
    if isinstance(value, dict):
        return {
            name: _id_in_base64(inner) if name in _IDS and isinstance(inner, str) else _with_ids(inner)
            for name, inner in cast("dict[str, Any]", value).items()
        }
    return [_with_ids(inner) for inner in value] if isinstance(value, list) else value


def _id_in_base64(text: str) -> str:
    return base64.b64encode(binascii.unhexlify(text)).decode()


def spans_of(request: ExportTraceServiceRequest) -> Iterator[Span | None]:
    """The spans of a request in their order; None in the place of one whose ids or times are no such."""
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield _span(span, scope.scope.name)


def _span(span: OtlpSpan, scope: str) -> Span | None:
    is_whole = len(span.trace_id) == _TRACE_BYTES and any(span.trace_id)
    is_whole = is_whole and len(span.span_id) == _SPAN_BYTES and any(span.span_id)
    is_whole = is_whole and len(span.parent_span_id) in {0, _SPAN_BYTES}
    # Clocks that are set back make spans that end before they begin.
    started_ns = span.start_time_unix_nano or span.end_time_unix_nano
    ended_ns = max(started_ns, span.end_time_unix_nano)
    if not is_whole or not 0 < started_ns <= ended_ns < _YEAR_10000_NS:
        return None
    attributes = _attributes(span.attributes)
    exceptions = [_attributes(event.attributes) for event in span.events if event.name == "exception"]
    has_failed = span.status.code == Status.STATUS_CODE_ERROR
    error, error_text = error_of(attributes, exceptions, span.status.message, has_failed=has_failed)
    known, remote = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK, SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
    return Span(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex() if any(span.parent_span_id) else None,
        is_parent_remote=bool(span.flags & known and span.flags & remote),
        name=span.name,
        scope=scope,
        started_at=moment(started_ns),
        ended_at=moment(ended_ns),
        attributes=attributes,
        error=error,
        error_text=error_text,
    )


def _attributes(pairs: Iterable[KeyValue]) -> Mapping[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(inner) for inner in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: _value(pair.value) for pair in value.kvlist_value.values}
    return None if kind is None else getattr(value, kind)


def answer(content_type: str, rejected: int, message: str) -> bytes:
    """The answer to a request of which everything but the rejected spans is recorded.

    Args:
        content_type: That of the request.
        rejected: How many spans are not recorded.
        message: Why, or a warning where none is rejected; empty: there is nothing to tell.
    """
    response = ExportTraceServiceResponse()
    if rejected or message:
        response.partial_success.rejected_spans = rejected
        response.partial_success.error_message = message
    return _written(response, content_type)


def refusal(content_type: str, message: str) -> bytes:
    """The body of an answer that is an error: a `google.rpc.Status`, which has its message in field 2."""
    if content_type == JSON:
        return json.dumps({"message": message}).encode()
    text = message.encode()
    return b"\x12" + _varint(len(text)) + text


def _varint(number: int) -> bytes:
    written = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits in each byte
        written.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*written, number])


def _written(message: Message, content_type: str) -> bytes:
    if content_type == JSON:
        return json_format.MessageToJson(message, indent=None).encode()
    return message.SerializeToString()
