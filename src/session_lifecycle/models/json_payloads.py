"""The types of text and JSON fields that hold what the host gives.

A payload is made safe for Postgres, and is never refused for its content. The `metadata` of a session (`JsonObject`) is
refused instead of changed.
"""

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any
from unicodedata import normalize

from pydantic import BeforeValidator
from pydantic_core import to_jsonable_python

from session_lifecycle.models.fields import storable
from session_lifecycle.models.refusals import refused

METADATA_BYTES = 65_536
METADATA_DEPTH = 32
PAYLOAD_DEPTH = 100
LARGEST = 10**100
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
TOO_DEEP = f"… deeper than {PAYLOAD_DEPTH} levels"


def safe_text(text: str) -> str:
    """The text, with U+FFFD in place of NUL and lone surrogates, which Postgres cannot hold."""
    if "\x00" not in text and text.isascii():
        return text
    # UTF-16 joins a high and a low surrogate to the character they encode. Only lone surrogates are replaced.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\x00", REPLACEMENT)


def folded(text: str) -> str:
    """The text as a search compares it: case-folded by Unicode and composed (NFC). No database locale changes it."""
    return normalize("NFC", text.casefold())


def safe_json(value: Any, depth: int = PAYLOAD_DEPTH) -> Any:
    """A copy of the value that holds only JSON types. A later change of the original does not change the copy.

    A value of another type is replaced by what Pydantic serialises it to, or else by its `str`. A number that is not
    finite, or is 10^100 or larger, is replaced by its `str`. A value below `depth` levels is replaced by a mark.
    """
    if depth == 0:
        return TOO_DEEP
    safe: Any
    match value:
        case None | bool():
            safe = value
        case str():
            safe = safe_text(str(value))
        case int() | float():
            safe = value if -LARGEST < value < LARGEST else str(value)
        case Mapping():
            safe = {safe_text(str(key)): safe_json(member, depth - 1) for key, member in value.items()}
        case list() | tuple():
            safe = [safe_json(member, depth - 1) for member in value]
        case _:
            safe = safe_json(to_jsonable_python(value, fallback=str), depth - 1)
    return safe


def _safe_text(value: Any) -> Any:
    return safe_text(value) if isinstance(value, str) else value


def _metadata(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise refused("json_object")
    return safe_json(value)


def _json_object(value: Any) -> Any:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise refused("json_object")
    plain = _plain_json(value, METADATA_DEPTH)
    if len(json.dumps(plain, ensure_ascii=False).encode()) > METADATA_BYTES:
        raise refused("json_size", limit=METADATA_BYTES)
    return plain


def _plain_json(value: Any, depth: int) -> Any:
    """A copy that holds only JSON types, or a refusal. A later change of the original does not change the copy."""
    if depth == 0:
        raise refused("json_depth", limit=METADATA_DEPTH)
    match value:
        case None | bool():
            return value
        case str():
            return storable(value)
        case int() | float():
            return _plain_number(value)
        case Mapping():
            return {_plain_key(key): _plain_json(member, depth - 1) for key, member in value.items()}
        case list() | tuple():
            return [_plain_json(member, depth - 1) for member in value]
        case _:
            raise refused("json_value")


def _plain_number(value: float) -> float:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise refused("json_number")
    elif abs(value) >= 10**100:
        raise refused("json_number")
    return value


def _plain_key(key: Any) -> str:
    if not isinstance(key, str):
        raise refused("json_object")
    return storable(key)


SafeText = Annotated[str, BeforeValidator(_safe_text)]
JsonPayload = Annotated[Any, BeforeValidator(safe_json)]
MetadataPayload = Annotated[dict[str, Any], BeforeValidator(_metadata)]
JsonObject = Annotated[dict[str, Any], BeforeValidator(_json_object)]
