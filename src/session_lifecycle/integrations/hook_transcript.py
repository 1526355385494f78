"""What the hook command reads of a transcript: the lines since the last time.

This module is loaded where an answer is complete, and imports the standard library only.
"""

from collections.abc import Callable
from pathlib import Path

from session_lifecycle.integrations.claude_code import ClaudeCodeReader
from session_lifecycle.integrations.positions import Positions
from session_lifecycle.integrations.transcripts import BadLineError, Fields, parsed, whole_lines

_MOST_READ_BYTES = 1_000_000
"""How much of a transcript one call reads. The next call, or an import, reads the rest."""


def read_new_lines(
    path: Path, positions: Positions, user_id: str, *, content: bool, on_bad_line: Callable[[BadLineError, str], object]
) -> tuple[list[Fields], Fields | None]:
    """The items of what a transcript has since the last time, and the position after that."""
    items: list[Fields] = []
    try:
        file = path.open("rb")
    except FileNotFoundError:  # a session without a transcript
        return [], None
    with file:
        found = positions.find(path, file)
        end, number, state = (found["end"], found["number"], found["state"]) if found else (0, 0, None)
        meta = None
        if state is None and (beside := path.with_suffix(".meta.json")).exists():
            meta = parsed(beside.read_bytes())
        reader = ClaudeCodeReader(user_id, state=state, content=content, meta=meta)
        file.seek(end)
        begin = end
        for line in whole_lines(file, number=number):
            try:
                fields = parsed(line.text)
                items += [] if fields is None else reader.read(fields)
            except BadLineError as error:
                on_bad_line(error, f"{path}:{line.number}")
            end, number = line.end, line.number
            if end - begin > _MOST_READ_BYTES:
                break
        if end == begin:
            return [], None
        return items, positions.keep(path, file, end=end, number=number, state=reader.state)
