"""Import of rows of other systems: each row becomes items with keys of their own, so another import changes nothing."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

from pydantic import ValidationError

from session_lifecycle.errors import InvalidValueError
from session_lifecycle.integrations.counts import MOST
from session_lifecycle.models import Item, UsageEvent, UsageOutcome, UsageReceipt
from session_lifecycle.models.refusals import refusal
from session_lifecycle.writing.spool import Records

ITEMS_AT_ONCE = 500
_MOST_EXPONENT, _LEAST_EXPONENT = 20, -60
_MOST_DIGITS = 20
Totals = tuple[int, int, Decimal]
"""Tokens in, tokens out, cost in USD."""
_UNEXPECTED = {UsageOutcome.CONFLICT, UsageOutcome.FROZEN, UsageOutcome.SUPERSEDED}


class ForeignRow(NamedTuple):
    """A row of another system, as items."""

    where: str
    """The row, as a person finds it: its file and line, or its key."""
    items: Sequence[Item]
    totals: Totals | None = None
    """The totals that its session must have afterwards; None: nobody knows."""
    late: frozenset[str] = frozenset()
    """The keys of events that are expected to be late."""


class RefusedForeignRow(NamedTuple):
    """A row that was not imported, or not as it is."""

    where: str
    field: str
    value: str
    expected: str

    def __str__(self) -> str:
        return f"{self.where}: {self.field}: got {self.value}, expected {self.expected}"


@dataclass
class ForeignReport:
    """What an import did so far."""

    rows: int = 0
    items: int = 0
    """Items that were recorded, or were there already."""
    new_events: int = 0
    """Usage events that changed a total."""
    skipped: int = 0
    """Rows with nothing to record."""
    refused: int = 0
    """Rows that were refused, or whose totals differ from those of the other system."""
    unmapped: Counter[str] = field(default_factory=Counter)
    """Fields that have no place here: how many rows had a value in each."""


class ForeignImport:
    """Records rows in batches, each in one transaction. Everything may be repeated: it changes nothing.

    Attributes:
        into: Records the items.
        report: What was done so far.
        refused: The latest refusals; `take_refused` empties it.
    """

    def __init__(self, into: Records) -> None:
        self.into = into
        self._waiting: list[ForeignRow] = []
        self.report = ForeignReport()
        self.refused: list[RefusedForeignRow] = []

    def take_refused(self) -> list[RefusedForeignRow]:
        """The refusals since the last call."""
        taken, self.refused = self.refused, []
        return taken

    def refuse(self, where: str, error: InvalidValueError) -> None:
        """Notes that a row is refused."""
        self.report.refused += 1
        value = str(error).removeprefix(f"{error.field}: got ").removesuffix(f", expected {error.expected}")
        self.refused.append(RefusedForeignRow(where, error.field, value, error.expected))

    async def add(self, row: ForeignRow) -> None:
        """Records the row with the next batch."""
        self.report.rows += 1
        if not row.items:
            self.report.skipped += 1
            return
        self._waiting.append(row)
        if sum(len(one.items) for one in self._waiting) >= ITEMS_AT_ONCE:
            await self.flush()

    async def flush(self) -> None:
        """Records the rows that wait.

        Raises:
            SessionLifecycleError: The database cannot take them. What was recorded before stays.
        """
        rows, self._waiting = self._waiting, []
        await self._record(rows)

    async def _record(self, rows: Sequence[ForeignRow]) -> None:
        """Bisects where the database refuses the items, until only the guilty rows are left."""
        if not rows:
            return
        try:
            receipts = await self.into.record([item for row in rows for item in row.items])
        except InvalidValueError as error:
            if len(rows) == 1:
                field_name = re.sub(r"^items\.\d+\.", "", error.field)
                self.refuse(rows[0].where, InvalidValueError(field_name, error.value, error.expected))
                return
            middle = len(rows) // 2
            await self._record(rows[:middle])
            await self._record(rows[middle:])
            return
        answers = iter(receipts)
        for row in rows:
            self._check(row, [next(answers) for _ in row.items])

    def _check(self, row: ForeignRow, receipts: Sequence[Any]) -> None:
        """Counts what a row did, and notes where the database keeps other totals than the row says."""
        self.report.items += len(row.items)
        totals: Totals | None = None
        for item, receipt in zip(row.items, receipts, strict=True):
            if not isinstance(receipt, UsageReceipt) or not isinstance(item, UsageEvent):
                continue
            self.report.new_events += receipt.outcome in {UsageOutcome.APPLIED, UsageOutcome.REPLACED}
            if receipt.outcome in _UNEXPECTED and item.idempotency_key not in row.late:
                expected = "applied: the database has the event with other content, or its session has ended"
                self.refuse(row.where, InvalidValueError("outcome", receipt.outcome.value, expected))
                return
            totals = (receipt.session_tokens_in, receipt.session_tokens_out, receipt.session_cost_usd)
        if row.totals is None or totals is None:
            return
        for name, found, theirs in zip(("tokens_in", "tokens_out", "cost_usd"), totals, row.totals, strict=True):
            if found != theirs:
                error = InvalidValueError(name, str(found), f"{theirs}, which is the total of the other system")
                self.refuse(row.where, error)
                return


def made(kind: type[Any], /, **fields: Any) -> Any:
    """An item with these fields.

    Raises:
        InvalidValueError: A field is refused.
    """
    try:
        return kind(**fields)
    except ValidationError as error:
        raise refusal(error, kind) from error


def owner(field_name: str, value: Any, default: UUID | None) -> UUID:
    """The user of a row: the text of a UUID, else the default.

    Raises:
        InvalidValueError: It is none, and there is no default.
    """
    found = uuid_of(value) or default
    if found is None:
        raise InvalidValueError(field_name, value, "the text of a UUID; give --user for rows of other users")
    return found


def uuid_of(value: Any) -> UUID | None:
    """The UUID of a text with 32 hexadecimal digits, with or without hyphens; None where it is none."""
    try:
        return UUID(value) if isinstance(value, str) else None
    except ValueError:
        return None


def moment_of(field_name: str, value: Any) -> datetime:
    """A time of another system. One without a zone is in UTC.

    Raises:
        InvalidValueError: It is no time.
    """
    try:
        found = datetime.fromisoformat(value.strip()) if isinstance(value, str) else None
        if found is not None:
            return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise InvalidValueError(field_name, value, "an ISO 8601 time; one without a zone is in UTC")


def value_of(fields: Mapping[str, Any], names: Iterable[str]) -> Any:
    """The first value that is not empty, of fields that are called so in one version of a system or another."""
    return next((fields[name] for name in names if fields.get(name) not in (None, "", {}, [])), None)


def amount_of(field_name: str, value: Any) -> Decimal | None:
    """An amount of money, which may be below 0; None where there is none. Such amounts can be added exactly.

    Raises:
        InvalidValueError: It is no finite number, or far beyond what an event can cost.
    """
    if value in (None, ""):
        return None
    try:
        # Also a bool has no text that is a number.
        found = Decimal(value if isinstance(value, Decimal) else str(value))
    except ArithmeticError:
        raise InvalidValueError(field_name, value, "a number") from None
    if not found:
        return Decimal(0)
    if not found.is_finite() or found.adjusted() > _MOST_EXPONENT or int(found.as_tuple().exponent) < _LEAST_EXPONENT:
        raise InvalidValueError(field_name, value, "a finite number of USD")
    return found


def whole_of(field_name: str, value: Any) -> int:
    """A count, which is a text in a cell of CSV; 0 where there is none.

    Raises:
        InvalidValueError: It is no whole number, below 0, or more than an event can have.
    """
    if value in (None, ""):
        return 0
    is_text = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _MOST_DIGITS
    found = int(value) if is_text else value
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= MOST:
        raise InvalidValueError(field_name, value, f"a whole number from 0 to {MOST:,}")
    return found
