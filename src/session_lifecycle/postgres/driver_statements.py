"""Statements as the driver runs them: SQL, the values that it binds, and rows."""

from collections import namedtuple
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import BindParameter, Select
from sqlalchemy.dialects.postgresql.asyncpg import PGCompiler_asyncpg, PGDialect_asyncpg

from session_lifecycle.entities import metadata

VIEWER_SETTING = "session_lifecycle.viewer"
"""The setting of a transaction that names the viewer to row-level security."""

AnySelect = Select[*tuple[Any, ...]]
KeptStatement = Callable[[], AnySelect]
"""Builds a statement. Its SQL is built once for each object, so the same object stands for it every time."""


class _Compiler(PGCompiler_asyncpg):
    """Binds the named values, and writes all others into the text.

    The planner knows a constant that is written in the text, also in a plan that it keeps for all values.
    """

    def visit_bindparam(self, bindparam: BindParameter[Any], *args: Any, **kwargs: Any) -> str:
        if bindparam.key not in kwargs["bound"]:
            kwargs["literal_binds"] = True
        text: str = super().visit_bindparam(bindparam, *args, **kwargs)  # type: ignore[no-untyped-call]  # it has no annotations
        return text


_DIALECT = PGDialect_asyncpg()
_DIALECT.statement_compiler = _Compiler


@lru_cache(maxsize=1000)
def _maker_of_rows(columns: tuple[str, ...]) -> Callable[[Iterable[Any]], Any]:
    """Makes a named tuple of a row of the driver. Most shapes of a statement have the same columns, and share a class.

    The driver's values are SQLAlchemy's: it reads JSON in a codec of the connection, and no type of our columns has a
    reader of its own. The rows are not, because SQLAlchemy's take eight times as long to look up a column by its name.
    """
    row: Any = namedtuple("Row", columns, rename=True)  # type: ignore[misc]  # noqa: PYI024 - only known here
    make: Callable[[Iterable[Any]], Any] = row._make
    return make


class DriverStatement:
    """A statement that is compiled once, for the driver.

    Attributes:
        sql: The text, with numbers in place of the values.
    """

    def __init__(self, statement: AnySelect, names: Collection[str], schema: str) -> None:
        """Compiles the statement.

        Args:
            statement: The statement.
            names: The names of the values that each call gives.
            schema: The Postgres schema that holds the tables.
        """
        compiled = statement.compile(
            dialect=_DIALECT,
            schema_translate_map={metadata.schema: schema},
            render_schema_translate=True,
            compile_kwargs={"bound": frozenset(names)},
        )
        self.sql = str(compiled)
        self._names: Sequence[str] = compiled.positiontup or ()
        self._sql_for_viewer: str | None = None
        self._row = _maker_of_rows(tuple(statement.selected_columns.keys()))

    @property
    def sql_for_viewer(self) -> str:
        """The text that sets the viewer of row-level security first. The last number stands for the viewer.

        A left join keeps its left side outside, so the function runs before the statement looks at a row. If it ever
        did not, the statement would see no row. Each row has `true` in front, and no row of the statement is a null.
        """
        if self._sql_for_viewer is None:
            viewer = f"pg_catalog.set_config('{VIEWER_SETTING}', ${len(self._names) + 1}::text, true)"
            marked = f"SELECT true AS is_row, answer.* FROM (\n{self.sql}\n) AS answer"  # noqa: S608 - our own SQL
            self._sql_for_viewer = (
                f"SELECT marked.* FROM {viewer} AS viewer LEFT JOIN LATERAL ({marked}) AS marked ON true"  # noqa: S608
            )
        return self._sql_for_viewer

    def values(self, parameters: Mapping[str, Any]) -> list[Any]:
        """The values in the order of the text."""
        return [parameters[name] for name in self._names]

    def rows(self, records: Iterable[Any]) -> list[Any]:
        """The rows as named tuples, whose fields are the columns of the statement."""
        return [self._row(record) for record in records]

    def rows_for_viewer(self, records: Iterable[Any]) -> list[Any]:
        """The rows of `sql_for_viewer`, as `rows` has them."""
        return [self._row(tuple(record)[1:]) for record in records if record[0]]


# For all databases of the process: compiling takes tens of milliseconds. As long as others keep the statement.
_compiled: WeakKeyDictionary[KeptStatement, dict[tuple[str, frozenset[str]], DriverStatement]] = WeakKeyDictionary()


def driver_statement(kept: KeptStatement, names: Collection[str], schema: str) -> DriverStatement:
    """The statement, built and compiled at most once for each schema and each choice of names."""
    # A value that has no name here is written into the text, so a call with more names has another text.
    key = (schema, frozenset(names))
    compiled = _compiled.setdefault(kept, {})
    found = compiled.get(key)
    if found is None:
        found = compiled[key] = DriverStatement(kept(), names, schema)
    return found
