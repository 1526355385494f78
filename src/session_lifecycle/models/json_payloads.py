"""The types of text and JSON fields that hold what the host gives.

One walk makes a copy of a value that holds only JSON types, within a budget of values and bytes. A payload is made safe
for Postgres, and is never refused for its content. The `metadata` of a session (`JsonObject`) is refused instead of
changed.
"""

import dataclasses
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, ValuesView
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time, timedelta
from enum import Enum
from itertools import islice
from types import NoneType
from typing import Annotated, Any, LiteralString
from unicodedata import normalize

from pydantic import AfterValidator, BaseModel, BeforeValidator, RootModel
from pydantic_core import PydanticCustomError, to_json, to_jsonable_python

from session_lifecycle.models.fields import CUT, LONG_LABEL_CHARACTERS, beginning, cut, safe_text, storable
from session_lifecycle.models.refusals import refused

METADATA_BYTES = 65_536
METADATA_DEPTH = 32
PAYLOAD_DEPTH = 100
PAYLOAD_VALUES = 200_000
# A list or mapping takes more time and memory than a text or number: it counts as so many values.
CONTAINER_VALUES = 3
PAYLOAD_BYTES = 100_000_000
"""The largest `payload_limit_bytes`: no payload is ever larger."""
LARGEST = 10**100
# Longer texts are looked at once, however often a value contains them.
LONG_TEXT = 1_000
# Python may refuse to write a longer number in decimal: the host can lower that limit to 640 digits.
DECIMAL_BITS = 2_000
HEXADECIMAL_BITS = 400_000
FOLDED_CHARACTERS = 25_000_000

TOO_DEEP = f"… deeper than {PAYLOAD_DEPTH} levels"
TOO_MANY = "… too many values"
TOO_LARGE = "… too large"
CONTAINS_ITSELF = "… contains itself"

# Where the blocks of content of known sources have their text, in this order.
_TEXT_OF_BLOCK = ("text", "thinking", "reasoning", "refusal", "content", "parts", "value")
# An address in the text of an object would be another one in every process.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
# The code points that Unicode calls Default_Ignorable_Code_Point (DerivedCoreProperties.txt): soft hyphens, joiners,
# direction marks, variation selectors.
_IGNORABLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def folded(text: str) -> str:
    """The text as a search compares it, whatever the database's locale.

    Folded by NFKC and case, as Unicode's NFKC_Casefold does: full width, ligatures, no-break spaces and soft hyphens
    make no difference. Nor does the dot of an i, so that an i is found with Turkish letters.
    """
    if not text.isascii():
        text = normalize("NFKC", _IGNORABLE.sub("", normalize("NFKC", text)).casefold())
        text = normalize("NFKC", text.replace("i\u0307", "i").replace("\u0131", "i"))
    else:
        text = text.lower()
    return text[:FOLDED_CHARACTERS]


class _Walk:
    """One walk through a value. It ends within its budget, whatever the value contains and its code does."""

    def __init__(self, *, most_bytes: int, depth: int, refuses: bool) -> None:
        self._values = PAYLOAD_VALUES
        self._most_bytes = self._bytes = most_bytes
        self._depth = depth
        self._refuses = refuses
        """Whether what JSON cannot hold is refused; otherwise it is replaced."""
        self._path: set[int] = set()
        self._long_texts: dict[int, tuple[str, str, int]] = {}

    def copy(self, value: Any, level: int = 0) -> Any:
        """A copy that holds only JSON types. A later change of the value does not change the copy."""
        if level == self._depth:
            return self._replaced("json_depth", TOO_DEEP)
        self._values -= 1
        plain = _PLAIN.get(type(value))
        if plain is not None:
            return plain(self, value)
        try:
            return self._of_other_class(value, level)
        except PydanticCustomError:
            raise
        except Exception as error:  # noqa: BLE001 - the host's code may raise anything, and a payload is kept
            return self._replaced("json_value", f"{CUT} a {type(value).__name__} that raises {type(error).__name__}")

    def _of_other_class(self, value: Any, level: int) -> Any:
        match value:
            case list() | tuple():
                return self._container(value, value, level)
            case dict() | Mapping():
                return self._container(value, value.items(), level, value)
            # By its type: a proxy (of Flask, Django, wrapt) says that it is a text, and has no text of its own.
            case _ if issubclass(type(value), str | int | float):
                return self._of_subclass(value, level)
            case _ if self._refuses:
                raise refused("json_value")
            case _:
                return self._of_host(value, level)

    def _of_subclass(self, value: Any, level: int) -> Any:
        """The copy of a text or number of the host's own class, without calling the methods of that class."""
        if isinstance(value, Enum) and not isinstance(value, str):
            return self.copy(value.value, level + 1)
        if isinstance(value, str):
            return self.text(str.__str__(value))
        return self.number(int.__int__(value) if isinstance(value, int) else float.__float__(value))

    def _of_host(self, value: Any, level: int) -> Any:
        match value:
            case Enum() | RootModel():
                copy = self.copy(value.value if isinstance(value, Enum) else value.root, level + 1)
            case deque() | ValuesView():
                copy = self._container(value, value, level)
            case AbstractSet():
                copy = self._container(value, value, level)
                if isinstance(copy, list):
                    # A set has another order in every process, and the copies of one set must be equal.
                    copy.sort(key=to_json)
            case BaseModel():
                copy = self._container(value, _members_of_model(value), level, ())
            case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
                copy = self._container(value, _members_of_dataclass(value), level, ())
            case BaseException() if not all(isinstance(part, str | int | float | None) for part in value.args):
                # The text of the error would contain all that its arguments contain.
                copy = self._container(value, (type(value).__name__, *value.args), level)
            case _:
                copy = self.text(_text_of_object(value, max(self._bytes, 0)))
        return copy

    def _container(self, container: Any, members: Iterable[Any], level: int, keys: Iterable[Any] | None = None) -> Any:
        """The copy of a container, which is on the path to all that it contains. `keys` are those of a mapping."""
        if id(container) in self._path:
            return self._replaced("json_depth", CONTAINS_ITSELF)
        self._values -= CONTAINER_VALUES - 1
        self._spend(2)
        self._path.add(id(container))
        try:
            return self._sequence(members, level) if keys is None else self._mapping(members, level, keys)
        finally:
            self._path.remove(id(container))

    def _sequence(self, members: Iterable[Any], level: int) -> list[Any]:
        copies: list[Any] = []
        for member in members:
            if self._values <= 0 or self._bytes <= 0:
                return [*copies, self._mark_of_rest()]
            self._bytes -= 1 if copies else 0
            copies.append(self.copy(member, level + 1))
        return copies

    def _mapping(self, members: Iterable[tuple[Any, Any]], level: int, keys: Iterable[Any]) -> dict[str, Any]:
        copies: dict[str, Any] = {}
        met: dict[str, int] = {}
        texts: set[str] | None = None
        for key, member in members:
            if self._values <= 0 or self._bytes <= 0:
                return {**copies, CUT: self._mark_of_rest()}
            text = self._key(key, level)
            name = text
            if texts is None and not isinstance(key, str):
                # The mapping is not asked: one that has a value for every key says that it contains every name.
                texts = {str.__str__(one) for one in islice(keys, self._values + 1) if issubclass(type(one), str)}
            # Two keys that have one text, such as 1 and "1", stay two. The key that is a text keeps its name.
            while name in copies or (texts and not isinstance(key, str) and name in texts):
                met[text] = met.get(text, 0) + 1
                kind = type(key).__name__
                name = f"{text} ({kind})" if met[text] == 1 else f"{text} ({kind} {met[text]})"
            self._bytes -= 2 if copies else 1
            copies[name] = self.copy(member, level + 1)
        return copies

    def _key(self, key: Any, level: int) -> str:
        if type(key) is str:
            return self.text(key)
        if self._refuses:
            if not isinstance(key, str):
                raise refused("json_object")
            return self.text(str.__str__(key))
        copy = self.copy(key, level + 1)
        if isinstance(copy, dict | list):
            return to_json(copy).decode()
        if isinstance(copy, str):
            return copy
        self._spend(2)  # the quotes
        return str(copy)

    def text(self, text: str) -> str:
        is_long = len(text) > LONG_TEXT
        if is_long and id(text) in self._long_texts:
            _, safe, size = self._long_texts[id(text)]
        else:
            safe = storable(text) if self._refuses else safe_text(text)
            size = len(to_json(safe))
            if is_long:
                # The text is kept beside its copy, so that no other text gets its id.
                self._long_texts[id(text)] = (text, safe, size)
        room = max(self._bytes, 0)
        self._spend(size)
        return safe if size <= room else beginning(safe, room) + CUT

    def constant(self, value: bool | None) -> bool | None:
        self._spend(4)
        return value

    def number(self, number: float) -> float | str:
        if -LARGEST < number < LARGEST:
            self._spend(len(repr(number)))
            return number
        if self._refuses:
            raise refused("json_number")
        bits = number.bit_length() if isinstance(number, int) else 0
        if bits > HEXADECIMAL_BITS:
            return self.text(f"{CUT} a number of {bits} bits")
        return self.text(hex(int(number)) if bits > DECIMAL_BITS else str(number))

    def _replaced(self, kind: LiteralString, mark: str) -> str:
        """The mark that stands for a value, unless this walk refuses such values."""
        if self._refuses:
            raise refused(kind, limit=self._depth)
        return mark

    def _spend(self, size: int) -> None:
        self._bytes -= size
        if self._refuses and self._bytes < 0:
            raise refused("json_size", limit=self._most_bytes)

    def _mark_of_rest(self) -> str:
        """The mark that stands for the rest of a container, after the budget is spent."""
        if self._refuses:
            raise refused("json_size", limit=self._most_bytes)
        return TOO_LARGE if self._bytes <= 0 else TOO_MANY


_PLAIN: dict[type, Callable[[_Walk, Any], Any]] = {
    str: _Walk.text,
    int: _Walk.number,
    float: _Walk.number,
    bool: _Walk.constant,
    NoneType: _Walk.constant,
}
"""How a value of one of JSON's own classes is copied. Their subclasses have code of the host."""


def _text_of_object(value: Any, room: int) -> str:
    match value:
        case datetime() | date() | time() | timedelta():
            return str(to_jsonable_python(value))
        case bytes() | bytearray() | memoryview():
            return bytes(value[:room]).decode(errors="replace")
        case _:
            return _ADDRESS.sub("", str(value))


def _members_of_model(model: BaseModel) -> Iterator[tuple[str, Any]]:
    fields = type(model).model_fields
    # A host's model may iterate something else: a page of a client that asks for its next page.
    for name, member in {**vars(model), **(model.__pydantic_extra__ or {})}.items():
        if name not in fields or not fields[name].exclude:
            yield name, member


def _members_of_dataclass(value: Any) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(value):
        yield field.name, getattr(value, field.name)


def safe_json(value: Any, most_bytes: int = PAYLOAD_BYTES) -> Any:
    """A copy of the value that holds only JSON types, of about `most_bytes` as JSON at most. It never fails.

    What JSON or Postgres cannot hold is replaced by its nearest value: an enum by its value, a model or dataclass by
    its fields, another object by its `str`, a number that is not finite or is 10^100 or larger by its text. Marks stand
    for what is below `PAYLOAD_DEPTH` levels, for what is beyond `PAYLOAD_VALUES` values, and for a container in itself.
    Nothing but a list, tuple, deque, set and mapping is iterated, so a generator of the host is not consumed.
    """
    if value is None:
        return None
    return _Walk(most_bytes=most_bytes, depth=PAYLOAD_DEPTH, refuses=False).copy(value)


def json_size(value: Any) -> int:
    """The size of a copy that `safe_json` made, in bytes of JSON, without writing the JSON."""
    size = 0
    long_texts: dict[int, int] = {}
    rest = [value]
    while rest:
        one = rest.pop()
        match one:
            case str() if len(one) > LONG_TEXT:
                if id(one) not in long_texts:
                    long_texts[id(one)] = len(to_json(one))
                size += long_texts[id(one)]
            case dict():
                # Braces, a colon for each member, and a comma between two members.
                size += 2 * len(one) + (1 if one else 2)
                rest.extend(one)
                rest.extend(one.values())
            case list():
                size += len(one) + (1 if one else 2)
                rest.extend(one)
            case _:
                size += len(to_json(one))
    return size


def text_of(value: Any) -> str:
    """The value as text: None as the empty text, blocks of content as their texts, all else as JSON. It never fails."""
    if issubclass(type(value), str):
        return safe_text(str.__str__(value))
    return "" if value is None else _text_of(safe_json(value))


def _text_of(content: Any) -> str:
    match content:
        case None:
            return ""
        case str():
            return content
        case list():
            return "\n".join(text for text in map(_text_of, content) if text)
        case dict():
            for name in _TEXT_OF_BLOCK:
                if content.get(name) is not None:
                    return _text_of(content[name])
            if isinstance(content.get("type"), str):
                return f"[{content['type']}]"
        case _:
            pass
    return to_json(content).decode()


def _metadata(value: Any) -> Any:
    if value is None:
        return None
    safe = safe_json(value)
    if not isinstance(safe, dict):
        raise refused("json_object")
    return safe


def _json_object(value: Any) -> Any:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise refused("json_object")
    return _Walk(most_bytes=METADATA_BYTES, depth=METADATA_DEPTH, refuses=True).copy(value)


def _safe_label(value: Any) -> Any:
    return safe_text(value) if issubclass(type(value), str) else value


SafeText = Annotated[str, BeforeValidator(text_of)]
OptionalSafeText = Annotated[str | None, BeforeValidator(lambda value: None if value is None else text_of(value))]
LongLabel = Annotated[
    str,
    BeforeValidator(_safe_label),
    AfterValidator(lambda text: cut(text, 4 * LONG_LABEL_CHARACTERS, LONG_LABEL_CHARACTERS)),
]
"""A name or an address that is no identity: made safe, and cut where it is too long."""
JsonPayload = Annotated[Any, BeforeValidator(safe_json)]
MetadataPayload = Annotated[dict[str, Any], BeforeValidator(_metadata)]
JsonObject = Annotated[dict[str, Any], BeforeValidator(_json_object)]
