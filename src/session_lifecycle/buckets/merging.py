"""Merging: the answer of all buckets from the answers of each. Pure functions, exact to the last decimal."""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import accumulate
from math import ceil, floor
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

from session_lifecycle.models import SessionRowWithStatus, TelemetryKey, Viewer
from session_lifecycle.models.fields import Value, exact_sum, model_key
from session_lifecycle.models.reports import FIGURES, UsageQuestion
from session_lifecycle.pages import PageOrder, PageRows
from session_lifecycle.statements.reports.usage import MODEL_KEY, SPELLING, key_columns
from session_lifecycle.statements.shared.durations import PERCENTILES

AnyValue = TypeVar("AnyValue", bound=Value)


class MergedRow:
    """A row that is made of the rows of several buckets. It is read as a row of a statement is."""

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self._columns = columns

    def __getattr__(self, name: str) -> Any:
        try:
            return self._columns[name]
        except KeyError:
            raise AttributeError(name) from None

    def _asdict(self) -> dict[str, Any]:
        return dict(self._columns)


# Pages


class BucketOrder(NamedTuple):
    """An order whose key is unique in one bucket only: rows of one position are in the order of their buckets."""

    of_bucket: PageOrder

    @property
    def has_nulls(self) -> bool:
        return self.of_bucket.has_nulls

    @property
    def kinds(self) -> tuple[type, ...]:
        return (*self.of_bucket.kinds, int)

    @property
    def position_names(self) -> tuple[str, ...]:
        return (*self.of_bucket.position_names, "bucket_number")


class NumberedRow:
    """A row with the number of its bucket."""

    def __init__(self, row: Any, number: int) -> None:
        self._row = row
        self.bucket_number = number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._row, name)


def merge_pages(
    answers: Sequence[PageRows], order: PageOrder, *, descending: bool, offset: int, limit: int
) -> PageRows:
    """The rows of a page and one row more, after `offset` rows; the total is the sum of the totals.

    Args:
        answers: The first `offset + limit + 1` rows of each bucket.
        order: The order of the rows, nulls last in both directions.
        descending: The direction of the order.
        offset: How many rows are left out at the beginning.
        limit: The most rows of the page.
    """
    totals: list[int] = []
    with_value: list[tuple[tuple[Any, ...], Any]] = []
    without: list[tuple[tuple[Any, ...], Any]] = []
    is_counted = True
    for rows, total, _ in answers:
        is_counted = is_counted and total is not None
        totals.append(total or 0)
        for row in rows:
            value, *key = (getattr(row, name) for name in order.position_names)
            (without if value is None else with_value).append(((value, *key) if value is not None else tuple(key), row))
    ordered = [
        row for part in (with_value, without) for _, row in sorted(part, key=lambda one: one[0], reverse=descending)
    ]
    # The buckets of one question have one clock.
    as_of = answers[0].as_of
    return PageRows(ordered[offset : offset + limit + 1], sum(totals) if is_counted else None, as_of)


# One session of several


def preferred(
    found: Iterable[SessionRowWithStatus], viewer: Viewer, *, prefer_other_owner: bool = False
) -> SessionRowWithStatus | None:
    """The session that rule R15 prefers among those that each bucket prefers; None without any."""

    def rank(row: SessionRowWithStatus) -> int:
        owner = row.record.user_id
        if owner == viewer.user_id:
            return 3 if prefer_other_owner else 0
        return 1 if owner in viewer.owner_ids else 2

    by_owner = sorted(found, key=lambda row: row.record.user_id)
    latest = sorted(by_owner, key=lambda row: row.record.last_activity_at, reverse=True)
    return min(latest, key=rank, default=None)


# Figures


def added(figures: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sum of each figure; all mappings have the same names."""
    columns: defaultdict[str, list[Any]] = defaultdict(list)
    for one in figures:
        for name, figure in one.items():
            columns[name].append(figure)
    return {name: _sum(column) for name, column in columns.items()}


def _sum(column: Sequence[Any]) -> Any:
    if isinstance(column[0], Mapping):
        return added(column)
    return exact_sum(column) if any(isinstance(figure, Decimal) for figure in column) else sum(column)


def merge_rows(
    answers: Iterable[Iterable[AnyValue]],
    key: Callable[[AnyValue], Hashable],
    fields: Sequence[str],
    order: Callable[[AnyValue], Any],
) -> list[AnyValue]:
    """One row for each key with the sums of its figures, most expensive first.

    Args:
        answers: The rows of each bucket.
        key: The key of a row.
        fields: The fields that are no figures. Of a text that the rows of one key spell differently the least stays.
        order: By what rows of one cost are ordered.
    """
    groups: defaultdict[Hashable, list[AnyValue]] = defaultdict(list)
    for rows in answers:
        for row in rows:
            groups[key(row)].append(row)
    merged: list[AnyValue] = []
    for rows in groups.values():
        figures = added(row.model_dump(exclude=set(fields)) for row in rows)
        of_group = {name: _least(getattr(row, name) for row in rows) for name in fields}
        merged.append(type(rows[0])(**of_group, **figures))
    return by_cost(merged, order)


def _least(values: Iterable[Any]) -> Any:
    given = [value for value in values if value is not None]
    return min(given) if given else None


def by_cost(rows: Iterable[AnyValue], order: Callable[[AnyValue], Any]) -> list[AnyValue]:
    """The rows, most expensive first, ties by `order`."""
    return sorted(sorted(rows, key=order), key=attrgetter("cost_usd"), reverse=True)


def none_last(value: Any) -> tuple[bool, Any]:
    """A key that sorts None after every other value."""
    return value is None, value


# Names


def merge_names(answers: Iterable[Iterable[str]]) -> list[str]:
    """Each name once, sorted."""
    return sorted({name for names in answers for name in names})


def merge_models(answers: Iterable[Iterable[str]]) -> list[str]:
    """Each model once, in the least of its spellings, sorted."""
    spellings: dict[str, str] = {}
    for names in answers:
        for name in names:
            key = model_key(name)
            spellings[key] = min(name, spellings.get(key, name))
    return sorted(spellings.values())


def merge_telemetry_keys(answers: Iterable[Iterable[TelemetryKey]]) -> list[TelemetryKey]:
    """Each combination once, its model in the least of its spellings; by provider, model and client, None last."""
    models: dict[tuple[str | None, str | None, str], str | None] = {}
    for keys in answers:
        for one in keys:
            key = (one.provider, None if one.model is None else model_key(one.model), one.client)
            models[key] = _least([one.model, models.get(key)])
    merged = [TelemetryKey(provider=key[0], model=model, client=key[2]) for key, model in models.items()]
    return sorted(merged, key=lambda one: (none_last(one.provider), none_last(one.model), one.client))


# The report of usage


def merge_usage(
    answers: Sequence[tuple[Any, Sequence[Any]]], question: UsageQuestion, figures: Sequence[str]
) -> tuple[MergedRow, list[MergedRow]]:
    """The row over all groups and the rows of all groups, in the order of the question.

    A session or run belongs to one bucket, so the numbers of different sessions and runs add up.

    Args:
        answers: The row over all groups and the rows of the groups, of each bucket.
        question: What was asked.
        figures: The names of the figures of a row.
    """
    sums = {*figures, *(f"detail_{number}" for number in range(len(question.details)))}
    total = MergedRow(added({name: getattr(row, name) for name in sums} for row, _ in answers))
    keys = list(dict.fromkeys(name for one in question.group_by for name in key_columns(one, question)))
    groups: defaultdict[tuple[Any, ...], list[Any]] = defaultdict(list)
    spellings: dict[str, str] = {}
    for _, rows in answers:
        for row in rows:
            groups[tuple(getattr(row, name) for name in keys)].append(row)
            if MODEL_KEY in keys:
                model, spelling = getattr(row, MODEL_KEY), getattr(row, SPELLING)
                spellings[model] = min(spelling, spellings.get(model, spelling))
    merged: list[MergedRow] = []
    for key, rows in groups.items():
        columns = dict(zip(keys, key, strict=True))
        columns |= added({name: getattr(row, name) for name in sums} for row in rows)
        if MODEL_KEY in keys:
            columns[SPELLING] = spellings[columns[MODEL_KEY]]
        merged.append(MergedRow(columns))
    merged.sort(key=lambda row: [none_last(getattr(row, name)) for name in keys])
    if question.order_by in FIGURES:
        merged.sort(key=lambda row: getattr(row, question.order_by), reverse=True)
    else:
        first = key_columns(question.order_by, question)
        merged.sort(key=lambda row: [none_last(getattr(row, name)) for name in first])
    return total, merged


# Durations


def percentiles(durations: Mapping[float, int]) -> dict[str, float | None]:
    """Each percentile by its name, as `percentile_cont` of Postgres computes it; None without durations.

    Args:
        durations: How often each duration is there.
    """
    ordered = sorted(durations)
    passed = list(accumulate(durations[one] for one in ordered))
    if not ordered:
        return dict.fromkeys(PERCENTILES)

    def at(place: int) -> float:
        return ordered[bisect_right(passed, place)]

    def interpolated(fraction: float) -> float:
        # https://github.com/postgres/postgres/blob/REL_17_0/src/backend/utils/adt/orderedsetaggs.c: float8_lerp
        place = fraction * (passed[-1] - 1)
        first, second = at(floor(place)), at(ceil(place))
        return first + (place - floor(place)) * (second - first)

    return {name: interpolated(fraction) for name, fraction in PERCENTILES.items()}


def merge_durations(listings: Iterable[Iterable[Any]]) -> tuple[MergedRow, list[MergedRow]]:
    """The row over all durations, and a row for each key: most durations first, ties by key. As `durations_of`.

    Args:
        listings: The rows of `listed_durations`, of each bucket.
    """
    of_key: defaultdict[str, Counter[float]] = defaultdict(Counter)
    together: Counter[float] = Counter()
    for rows in listings:
        for row in rows:
            of_key[row.key][float(row.duration_us)] += row.lasted
            together[float(row.duration_us)] += row.lasted
    rows = [_durations_row(key, durations) for key, durations in sorted(of_key.items())]
    return _durations_row(None, together), sorted(rows, key=lambda row: row.durations, reverse=True)


def _durations_row(key: str | None, durations: Counter[float]) -> MergedRow:
    return MergedRow({"key": key, "durations": durations.total(), **percentiles(durations)})
