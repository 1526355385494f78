"""Positions: how far each transcript has been read, and what its reader remembered there.

They are small files in the state directory of this user, beside the spool: they are about files of this machine, and
losing them is harmless. A transcript that is read again from its beginning changes nothing, as all its items have keys.
So a position saves work and decides nothing, and no row of the database has to know the paths of a machine.

This module imports the standard library only: a hook command imports it.
"""

import json
import os
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from session_lifecycle.integrations.transcripts import Fields
from session_lifecycle.writing import spool_directory as directory

_HEAD_BYTES = 1024


def default_directory() -> Path:
    """The directory of positions: beside the default spool."""
    return directory.default_path().expanduser().with_name("positions")


class Positions:
    """The positions of one reading: of one program's files into one place, with the same choices."""

    def __init__(self, path: Path, reading: str) -> None:
        """Makes no file yet.

        Args:
            path: The directory.
            reading: What is read into what. Positions of another reading are not these.
        """
        self._path = path
        self._reading = reading

    def find(self, transcript: Path, file: BinaryIO) -> Fields | None:
        """The position in this transcript: `end`, `number` and `state`; None where it begins or was replaced."""
        try:
            found = json.loads(self._file(transcript).read_bytes())
        except (OSError, ValueError):
            return None
        if not isinstance(found, dict) or [found.get("reading"), found.get("path")] != [self._reading, str(transcript)]:
            return None
        if found.get("head") is None or found["head"] != _head(file, found.get("end")):
            return None
        return found

    def keep(self, transcript: Path, file: BinaryIO, *, end: int, number: int, state: Fields) -> Fields:
        """The position as `save` takes it."""
        found: Fields = {
            "reading": self._reading,
            "path": str(transcript),
            "end": end,
            "number": number,
            "state": state,
        }
        found["head"] = _head(file, end)
        # A copy, because the reader goes on with its state.
        copied: Fields = json.loads(json.dumps(found))
        return copied

    def save(self, position: Fields) -> None:
        """Remembers a position.

        Raises:
            OSError: The file cannot be written.
            ConfigurationError: The directory is not the current user's alone.
        """
        directory.make(self._path)
        file = self._file(Path(position["path"]))
        new = file.with_suffix(f".{os.getpid()}")
        try:
            new.write_text(json.dumps(position), encoding="utf-8")
            new.replace(file)
        finally:
            with suppress(FileNotFoundError):
                new.unlink()

    def _file(self, transcript: Path) -> Path:
        # Two transcripts of one checksum lose each other's position, and nothing else. `hashlib` loads for 10 ms.
        names = f"{self._reading}\n{transcript}".encode(errors="surrogateescape")
        return self._path / f"{zlib.crc32(names):08x}{zlib.adler32(names):08x}.json"


def _head(file: BinaryIO, end: Any) -> int | None:
    """A checksum of the beginning of what was read; None where the file is shorter than that."""
    if not isinstance(end, int) or os.fstat(file.fileno()).st_size < end:
        return None
    place = file.tell()
    file.seek(0)
    head = file.read(min(end, _HEAD_BYTES))
    file.seek(place)
    return zlib.crc32(head)
