"""What the readers of transcripts share: whole lines of a growing file, times, texts, and the items they make.

A transcript is a file of JSON objects, one a line, that a coding agent appends to. A reader takes its lines in order
and makes items of them, in the shape that `Spool.append` takes. What a reader makes depends on the lines alone: the
same lines give the same items, with the same keys, whenever they are read.

This module imports the standard library only: a hook command imports it.
"""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, NamedTuple

LONGEST_CALL = timedelta(hours=1)
"""A model call that has no answer after this time is recorded without usage."""
MOST_LINE_BYTES = 64_000_000
Fields = dict[str, Any]
"""An item, as `Spool.append` takes it."""
_REVISIONS_BEGIN = datetime(2020, 1, 1, tzinfo=UTC)


class BadLineError(ValueError):
    """A line is not what its program writes. The message has no content of the line."""


class Line(NamedTuple):
    """A line of a transcript, without the line end."""

    text: bytes
    number: int
    """Its number in the file, from 1."""
    end: int
    """The position after it, in bytes."""


def whole_lines(file: BinaryIO, *, number: int = 0) -> Iterator[Line]:
    """The lines from the file's position on. A last line that is half written is left out: it waits.

    Lines end at a line feed only: texts hold U+2028 and other characters that Python counts as ends of lines.

    Args:
        file: The file, at the beginning of a line.
        number: The number of lines before that.

    Raises:
        BadLineError: Never; a line that is too long comes with an empty text.
    """
    end = file.tell()
    while text := file.readline(MOST_LINE_BYTES):
        size = len(text)
        is_whole = text.endswith(b"\n")
        if not is_whole and size == MOST_LINE_BYTES:
            text = b"?"  # refused like every other line that is no JSON
            while more := file.readline(MOST_LINE_BYTES):
                size += len(more)
                if is_whole := more.endswith(b"\n"):
                    break
        elif not is_whole:
            is_whole = _is_complete(text)
        if not is_whole:
            return
        number += 1
        end += size
        yield Line(text, number, end)


def _is_complete(text: bytes) -> bool:
    """Whether the last line of a file, which has no line end, is a whole JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def parsed(text: bytes) -> Fields | None:
    """The JSON object of a line; None for an empty line.

    Raises:
        BadLineError: The line is no JSON object.
    """
    if not text.strip():
        return None
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadLineError(f"this is no JSON ({type(error).__name__})") from None
    if not isinstance(line, dict):
        raise BadLineError("this is no JSON object")
    return line


def field(line: Mapping[str, Any], name: str) -> str:
    """A field that is text and not empty.

    Raises:
        BadLineError: It is not.
    """
    value = line.get(name)
    if not isinstance(value, str) or not value:
        raise BadLineError(f"{name} is no text")
    return value


def mapping(value: Any) -> Mapping[str, Any]:
    """The value, where it is a JSON object; else an empty one."""
    return value if isinstance(value, dict) else {}


def moment(line: Mapping[str, Any], name: str = "timestamp") -> datetime:
    """The time of a line.

    Raises:
        BadLineError: It has none.
    """
    try:
        at = datetime.fromisoformat(field(line, name))
    except ValueError:
        raise BadLineError(f"{name} is no time") from None
    if at.tzinfo is None:
        raise BadLineError(f"{name} has no time zone")
    return at


def count(usage: Mapping[str, Any], name: str) -> int:
    """A count; 0 where it is not given.

    Raises:
        BadLineError: It is no whole number, or below 0.
    """
    value = usage.get(name)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BadLineError(f"{name} is no count")
    return value


def revision_of(at: datetime) -> int:
    """The revision of what a transcript says at this time: a later line replaces an earlier one, in any order.

    It is above the revisions that a hook gives.
    """
    return max(2, int((at - _REVISIONS_BEGIN).total_seconds()))


def text_of(content: Any) -> str:
    """The text of a message's content, which is text or a list of blocks."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = (mapping(block).get("text") for block in content)
    return "\n".join(text for text in texts if isinstance(text, str))


def given(**fields: Any) -> Fields:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}
