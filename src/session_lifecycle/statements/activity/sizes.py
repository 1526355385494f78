"""How large an answer with the parts of runs is, measured before any of it is built (rule R25)."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    FromClause,
    Select,
    and_,
    false,
    func,
    literal,
    select,
    true,
    union_all,
)

from session_lifecycle.models import pages
from session_lifecycle.statements import tables
from session_lifecycle.statements.activity.run_figures import answered_steps, is_event_of, is_message_of
from session_lifecycle.statements.shared.json_rows import Column
from session_lifecycle.statements.shared.keys import Columns, same_run

PAYLOADS = {"input", "output", "inputs", "prompt", "errors"}
RUNS: Columns = tables.runs.__table__.c
STEPS: Columns = tables.steps.__table__.c


class Measure:
    """Whether an answer stays within the bounds. The statement computes it once."""

    def __init__(self, sizes: Sequence[Select[*tuple[Any, ...]]], *, payloads: bool) -> None:
        """Args:
        sizes: The sizes of the parts, each in the columns of `size`.
        payloads: Whether payloads are asked for.
        """
        each = union_all(*sizes).subquery("sizes")
        parts, text_bytes, stored_bytes = (func.coalesce(func.sum(column), 0) for column in each.c)
        is_within = and_(parts <= pages.MOST_PARTS, text_bytes <= pages.MOST_TEXT_BYTES)
        has_payloads = stored_bytes <= pages.MOST_STORED_BYTES if payloads else false()
        columns = (is_within.label("is_within"), has_payloads.label("has_payloads"))
        self._measure: CTE = select(*columns).cte("measure").prefix_with("MATERIALIZED")

    @property
    def is_within(self) -> ColumnElement[bool]:
        """Whether the answer is built. Where it is not, the caller is told to ask for less."""
        return select(self._measure.c.is_within).scalar_subquery()

    @property
    def has_payloads(self) -> ColumnElement[bool]:
        """Whether the answer has the payloads of runs and steps."""
        return select(self._measure.c.has_payloads).scalar_subquery()


def size(
    *,
    parts: Column | None = None,
    text: Column | None = None,
    payloads_of: Columns | None = None,
) -> Select[*tuple[Any, ...]]:
    """The size of some rows: their number, the bytes of a text in them, and the bytes of their payloads as stored.

    Measuring unpacks nothing: the bytes are in the header of a value.
    """
    nothing = literal(0, BigInteger)
    text_bytes = nothing if text is None else func.sum(func.octet_length(text))
    stored_bytes = nothing if payloads_of is None else func.sum(_stored_bytes(payloads_of))
    return select(
        (nothing if parts is None else parts).label("parts"),
        text_bytes.label("text_bytes"),
        stored_bytes.label("stored_bytes"),
    )


def sizes_of_runs(chosen: FromClause, *, limits_steps: bool) -> list[Select[*tuple[Any, ...]]]:
    """The sizes of some runs, `user_id, run_id, session_id`, with the steps that are answered, messages and events."""
    steps = answered_steps(chosen.c, limits_steps=limits_steps).correlate(chosen).lateral("answered")
    # Postgres looks up the messages of one run after another, because it does not know how few runs there are.
    messages = (
        size(parts=func.count(), text=tables.messages.content)
        .where(*is_message_of(chosen.c))
        .correlate(chosen)
        .lateral("messages")
    )
    return [
        size(text=tables.runs.error, payloads_of=RUNS).join(chosen, same_run(chosen.c, tables.runs)),
        size(parts=func.count(), payloads_of=steps.c).select_from(chosen.join(steps, true())),
        select(*(func.sum(column) for column in messages.c)).select_from(chosen.join(messages, true())),
        size(parts=func.count()).select_from(tables.usage_events).where(*is_event_of(chosen)),
    ]


def _stored_bytes(columns: Columns) -> ColumnElement[int]:
    names = sorted(PAYLOADS & set(columns.keys()))
    first, *others = (func.coalesce(func.pg_column_size(columns[name]), 0) for name in names)
    return sum(others, first)
