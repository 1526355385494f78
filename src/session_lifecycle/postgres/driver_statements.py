"""Statements as the driver runs them: SQL, the values that it binds, and rows."""

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import BindParameter, Dialect, Row, Select
from sqlalchemy.engine import result_tuple
from sqlalchemy.sql import visitors

from session_lifecycle.entities import metadata

AnySelect = Select[*tuple[Any, ...]]


class DriverStatement:
    """A statement that is compiled once, for the driver.

    Attributes:
        sql: The text, with numbers in place of the values.
    """

    def __init__(self, statement: AnySelect, parameters: Mapping[str, Any], dialect: Dialect, schema: str) -> None:
        """Compiles the statement.

        Args:
            statement: The statement.
            parameters: The values of its bound parameters in the first call. Each later call names the same ones.
            dialect: The dialect of the engine.
            schema: The Postgres schema that holds the tables.
        """

        def write_constant(bound: BindParameter[Any]) -> None:
            # The planner knows a constant that is written in the text, also in a plan that it keeps for all values.
            bound.literal_execute = bound.key not in parameters

        with_constants = visitors.cloned_traverse(statement, {}, {"bindparam": write_constant})
        compiled = with_constants.params(parameters).compile(
            dialect=dialect,
            schema_translate_map={metadata.schema: schema},
            render_schema_translate=True,
            compile_kwargs={"render_postcompile": True},
        )
        self.sql = str(compiled)
        self._names: Sequence[str] = compiled.positiontup or ()
        # The driver's values are SQLAlchemy's: it reads JSON in a codec of the connection, and no type of our columns
        # has a reader of its own.
        self._row = result_tuple(statement.selected_columns.keys())

    def values(self, parameters: Mapping[str, Any]) -> list[Any]:
        """The values in the order of the text."""
        return [parameters[name] for name in self._names]

    def rows(self, records: Sequence[Any]) -> list[Row[*tuple[Any, ...]]]:
        """The rows, as SQLAlchemy would return them."""
        return [self._row(record) for record in records]


class DriverStatements:
    """The statements that were compiled, as long as others keep them."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._compiled: WeakKeyDictionary[AnySelect, DriverStatement] = WeakKeyDictionary()

    def get(self, statement: AnySelect, parameters: Mapping[str, Any], dialect: Dialect) -> DriverStatement:
        """The compiled statement."""
        found = self._compiled.get(statement)
        if found is None:
            found = self._compiled[statement] = DriverStatement(statement, parameters, dialect, self._schema)
        return found
