"""The functions of the schema, read from their files in `alembic/functions/`."""

import re
from dataclasses import dataclass
from functools import cache
from hashlib import md5
from pathlib import Path

from session_lifecycle.entities import quoted

BODY_TAG = "$body$"
STANDS_FOR = "-- Stands for the body "
"""Before the MD5 of the body in whose place Citus has another one. See `buckets/citus.py`."""
_HEADER = re.compile(r"^CREATE (?:OR REPLACE )?FUNCTION \{schema\}\.(\w+)\s*\(", re.MULTILINE)
_TYPE = re.compile(r"^(?:OUT |INOUT )?\w+ (?P<type>.+?)(?: DEFAULT .*)?$")


def directory() -> Path:
    """The folder of the migrations: inside an installed package, or at the top of a clone."""
    installed = Path(__file__).parents[1] / "_alembic"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "alembic"


@dataclass(frozen=True)
class FunctionFile:
    """One function: its name, the types of its arguments, and its source with `{schema}` in place of the schema."""

    name: str
    argument_types: str
    source: str

    @property
    def is_entry(self) -> bool:
        """Whether Python or a trigger calls the function: such a name carries a version."""
        return re.search(r"_v\d+$", self.name) is not None

    @property
    def only_reads(self) -> bool:
        """Whether the function says that it changes nothing."""
        return re.search(r"^LANGUAGE \w+ (STABLE|IMMUTABLE)\b", self.source, re.MULTILINE) is not None

    @property
    def argument_count(self) -> int:
        """How many arguments a caller passes."""
        return len(self.argument_types.split(", ")) if self.argument_types else 0

    @property
    def signature(self) -> str:
        """The name and the types of the arguments, without the schema."""
        return f"{self.name}({self.argument_types})"

    def create_sql(self, schema: str, *, replace: bool = False) -> str:
        """The statement that creates the function in this schema.

        Args:
            schema: The schema.
            replace: Whether the function may already be there.
        """
        tag = BODY_TAG
        while tag in schema:
            tag = f"{tag[:-1]}_$"
        sql = self.source.replace(BODY_TAG, tag).replace("{schema}", quoted(schema))
        return sql.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1) if replace else sql

    def body_md5(self, schema: str) -> str:
        """The MD5 of the body as `pg_proc.prosrc` holds it, in hexadecimal.

        A body that is parsed at its creation (`BEGIN ATOMIC`) is not text there: it is empty, and never differs.
        """
        _, *parts = self.source.split(BODY_TAG)
        body = parts[0].replace("{schema}", quoted(schema)) if parts else ""
        return md5(body.encode(), usedforsecurity=False).hexdigest()


@cache
def function_files() -> dict[str, FunctionFile]:
    """Every function by its name.

    Raises:
        ValueError: Two files have one name, or a file does not hold the function of its name.
    """
    found: dict[str, FunctionFile] = {}
    for path in sorted((directory() / "functions").rglob("*.sql")):
        source = path.read_text("utf-8")
        header = _HEADER.search(source)
        if path.stem in found or header is None or header[1] != path.stem:
            raise ValueError(f"{path}: expected the only definition of the function {path.stem}")
        found[path.stem] = FunctionFile(path.stem, _argument_types(source[header.end() :]), source)
    return found


def _argument_types(source: str) -> str:
    """The types of the arguments that a caller passes; the source begins behind the opening parenthesis."""
    arguments = source[: source.index(")")]
    passed = [argument.strip() for argument in arguments.split(",") if argument.strip()]
    types = (_TYPE.match(argument) for argument in passed if not argument.startswith("OUT "))
    return ", ".join(found["type"] for found in types if found is not None)
