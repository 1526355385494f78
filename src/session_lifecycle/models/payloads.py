"""Payloads: text and JSON of the host's that is kept as it is given, made safe for Postgres instead of refused."""

from collections.abc import Mapping
from typing import Annotated, Any
from unicodedata import normalize

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError, to_jsonable_python

PAYLOAD_DEPTH = 100
LARGEST = 10**100
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
TOO_DEEP = f"… deeper than {PAYLOAD_DEPTH} levels"


def safe_text(text: str) -> str:
    """The text with U+FFFD in the place of what Postgres cannot hold: NUL and lone surrogates."""
    if "\x00" not in text and text.isascii():
        return text
    # Two surrogates that make a character are that character.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\x00", REPLACEMENT)


def folded(text: str) -> str:
    """The text as a search compares it: without case by Unicode, composed; in every locale of a database the same."""
    return normalize("NFC", text.casefold())


def safe_json(value: Any, depth: int = PAYLOAD_DEPTH) -> Any:
    """A copy made only of what JSON has, so that nothing can change it afterwards.

    What JSON has no word for is told as Pydantic would serialise it, else by its `str`; so are numbers that are not
    finite, or too large. Below the depth a mark takes the place of what is there.
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
        raise PydanticCustomError("json_object", "a mapping with text keys")
    return safe_json(value)


SafeText = Annotated[str, BeforeValidator(_safe_text)]
JsonPayload = Annotated[Any, BeforeValidator(safe_json)]
MetadataPayload = Annotated[dict[str, Any], BeforeValidator(_metadata)]
