"""Merging: what several buckets answer, merged, is what one plain list of all rows answers."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from session_lifecycle.buckets import activity, merging, places
from session_lifecycle.models import CostByModelRow, TelemetryKey
from session_lifecycle.models.fields import exact_sum, model_key
from session_lifecycle.models.reports import UsageQuestion
from session_lifecycle.pages import PageRows
from session_lifecycle.statements.sessions.records import ORDERS
from session_lifecycle.statements.shared.paging import Position

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
BUCKETS = 4
FIXED = [[0, 0, 0, 0, 0], [0, 0, 1, 0, 1], [6, 2, 7, 6, 7], [14, 2, 15, 6, 7], [14, 2, 31, 22, 39]]
money = st.decimals(min_value=0, max_value=10**9, places=18)


class Row(NamedTuple):
    """A row of a page, by the names of a position."""

    position_0: Any
    position_1: Any
    position_2: Any = None


def after(row: Any, position: Any, names: Sequence[str], *, descending: bool) -> bool:
    """Whether a row comes after another one, nulls last."""
    ours, theirs = ([getattr(one, name) for name in names] for one in (row, position))
    if (ours[0] is None) != (theirs[0] is None):
        return ours[0] is None
    first, second = (tuple(one[1:] if one[0] is None else one) for one in (ours, theirs))
    return first < second if descending else first > second


@given(
    st.sets(st.tuples(st.none() | st.integers(0, 3), st.integers(0, 5), st.sampled_from("abé")), max_size=40),
    st.booleans(),
    st.integers(1, 7),
    st.integers(0, 9),
)
def test_pages_of_buckets_are_the_pages_of_one_list(
    keys: set[tuple[Any, int, str]], descending: bool, limit: int, offset: int
) -> None:
    order = ORDERS["ended_at"]._replace(row_names=())
    rows = [Row(*key) for key in keys]
    with_value = sorted((row for row in rows if row.position_0 is not None), reverse=descending)
    without = sorted((row for row in rows if row.position_0 is None), key=lambda row: row[1:], reverse=descending)
    plain = [*with_value, *without]

    def page(after_row: Row | None, offset: int) -> PageRows:
        answers = []
        for bucket in range(BUCKETS):
            # A user is in one bucket, as every position is.
            of_bucket = [row for row in plain if row.position_1 % BUCKETS == bucket]
            left = [
                row
                for row in of_bucket
                if after_row is None or after(row, after_row, order.position_names, descending=descending)
            ]
            answers.append(PageRows(left[: offset + limit + 1], len(of_bucket), BEGAN))
        return merging.merge_pages(answers, order, descending=descending, offset=offset, limit=limit)

    assert page(None, offset) == PageRows(plain[offset : offset + limit + 1], len(plain), BEGAN)
    walked: list[Row] = []
    last: Row | None = None
    while True:
        found = page(last, 0)
        walked += found.rows[:limit]
        if len(found.rows) <= limit:
            break
        last = walked[-1]
    assert walked == plain


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=40), st.booleans(), st.integers(1, 5))
def test_runs_with_one_number_in_several_buckets_are_met_once(
    found: list[tuple[int, int]], descending: bool, limit: int
) -> None:
    """`record_no` is unique in a bucket only; the walk goes through the runs of one number bucket by bucket."""
    of_buckets = [sorted(set(found[bucket::BUCKETS]), reverse=descending) for bucket in range(BUCKETS)]
    plain = sorted(
        ((*key, bucket) for bucket, keys in enumerate(of_buckets) for key in keys),
        reverse=descending,
    )
    walked: list[tuple[int, int, int]] = []
    position: Position | None = None
    while True:
        answers = []
        for bucket, keys in enumerate(of_buckets):
            here = activity.in_bucket(position, bucket, descending=descending)
            left = [
                key
                for key in keys
                if here is None or (key < (here.value, *here.key) if descending else key > (here.value, *here.key))
            ]
            rows = [merging.NumberedRow(Row(*key), bucket) for key in left[: limit + 1]]
            answers.append(PageRows(rows, None, BEGAN))
        merged = merging.merge_pages(answers, activity.RUN_ORDER, descending=descending, offset=0, limit=limit)
        page = [tuple(getattr(row, name) for name in activity.RUN_ORDER.position_names) for row in merged.rows]
        walked += page[:limit]
        if len(page) <= limit:
            break
        value, *key = walked[-1]
        position = Position(value, tuple(key), BEGAN)
    assert walked == plain


@given(st.lists(st.lists(money, min_size=1, max_size=9), min_size=1, max_size=5))
def test_sums_are_exact(amounts: list[list[Decimal]]) -> None:
    of_buckets = [
        merging.added({"cost": one, "events": 1, "of": {"cost": one}} for one in bucket) for bucket in amounts
    ]
    every = [one for bucket in amounts for one in bucket]
    found = merging.added(of_buckets)
    assert Fraction(found["cost"]) == sum(map(Fraction, every)) == Fraction(found["of"]["cost"])
    assert found["events"] == len(every)


def cost_row(model: str, cost: Decimal) -> CostByModelRow:
    whole = dict.fromkeys(CostByModelRow.model_fields.keys() - {"model", "cost_usd", "plan_cost_usd"}, 1)
    return CostByModelRow(model=model, cost_usd=cost, **whole)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["m", "M", "n", "unknown"]), money), max_size=20))
def test_costs_of_a_model_in_all_spellings_are_one_row(used: list[tuple[int, str, Decimal]]) -> None:
    def rows_of(chosen: list[tuple[int, str, Decimal]]) -> list[CostByModelRow]:
        found: dict[str, list[tuple[str, Decimal]]] = {}
        for _, model, cost in chosen:
            found.setdefault(model_key(model), []).append((model, cost))
        rows = []
        for spelt in found.values():
            row = cost_row(min(model for model, _ in spelt), exact_sum(cost for _, cost in spelt))
            whole = {name: len(spelt) for name, figure in row if figure == 1 and isinstance(figure, int)}
            rows.append(row.model_copy(update=whole))
        return merging.by_cost(rows, lambda row: row.model)

    answers = [rows_of([one for one in used if one[0] == bucket]) for bucket in range(BUCKETS)]
    merged = merging.merge_rows(answers, lambda row: model_key(row.model), ["model"], lambda row: row.model)
    assert [row.model_dump() for row in merged] == [row.model_dump() for row in rows_of(used)]


@given(st.lists(st.lists(st.sampled_from(["m", "M", "n", "N", "é", "É"]), max_size=5), max_size=4))
def test_names_come_once(names: list[list[str]]) -> None:
    every = [name for found in names for name in found]
    assert merging.merge_names(names) == sorted(set(every))
    least: dict[str, str] = {}
    for name in sorted(every, reverse=True):
        least[model_key(name)] = name
    assert merging.merge_models(names) == sorted(least.values())
    keys = [[TelemetryKey(provider=None, model=name, client="c") for name in found] for found in names]
    assert [one.model for one in merging.merge_telemetry_keys(keys)] == sorted(least.values())


def test_telemetry_keys_have_none_last() -> None:
    keys = [
        TelemetryKey(provider=provider, model=model, client="c")
        for provider in ("a", "b", None)
        for model in ("m", None)
    ]
    assert merging.merge_telemetry_keys([keys[::-2], keys[::2], keys[::-1]]) == keys


durations = st.lists(st.tuples(st.integers(0, 3), st.sampled_from("abc"), st.integers(0, 10**12)), max_size=40)


class Listed(NamedTuple):
    """A row of `listed_durations`."""

    key: str
    duration_us: Decimal
    lasted: int


@given(durations)
def test_percentiles_are_those_of_all_durations(found: list[tuple[int, str, int]]) -> None:
    listings = [
        [
            Listed(key, Decimal(lasted), times)
            for (key, lasted), times in Counter(one[1:] for one in found if one[0] == bucket).items()
        ]
        for bucket in range(BUCKETS)
    ]
    together, by_key = merging.merge_durations(listings)
    keys = Counter(key for _, key, _ in found)
    assert [(row.key, row.durations) for row in by_key] == sorted(keys.items(), key=lambda one: (-one[1], one[0]))
    for row in (together, *by_key):
        ordered = sorted(float(lasted) for _, key, lasted in found if row.key in {None, key})
        assert row.durations == len(ordered)
        for name, fraction in (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99)):
            if not ordered:
                assert getattr(row, name) is None
                continue
            # https://www.postgresql.org/docs/current/functions-aggregate.html: percentile_cont
            place = fraction * (len(ordered) - 1)
            low, high = ordered[int(place)], ordered[min(int(place) + 1, len(ordered) - 1)]
            assert getattr(row, name) == low + (place - int(place)) * (high - low)


class Group:
    """A row of the report of usage."""

    def __init__(self, **columns: Any) -> None:
        self.columns = columns

    def __getattr__(self, name: str) -> Any:
        return self.columns[name]


used = st.lists(
    st.tuples(st.integers(0, 3), st.none() | st.integers(1, 2), st.sampled_from(["m", "M", "n"]), money), max_size=20
)


@given(used, st.sampled_from(["cost_usd", "dataset", "model"]))
def test_groups_of_usage_add_up(events: list[tuple[int, int | None, str, Decimal]], order_by: str) -> None:
    question = UsageQuestion(group_by=("dataset", "model"), order_by=order_by)
    figures = ["cost_usd", "events"]

    def answer(chosen: list[tuple[int, int | None, str, Decimal]]) -> tuple[Group, list[Group]]:
        costs: dict[tuple[int | None, str], list[Decimal]] = {}
        spellings: dict[str, str] = {}
        for _, dataset, model, cost in chosen:
            costs.setdefault((dataset, model_key(model)), []).append(cost)
            spellings[model_key(model)] = min(model, spellings.get(model_key(model), model))
        groups = [
            Group(
                dataset_id=None if dataset is None else UUID(int=dataset),
                model_key=model,
                model=spellings[model],
                cost_usd=exact_sum(of_group),
                events=len(of_group),
            )
            for (dataset, model), of_group in costs.items()
        ]
        total = Group(cost_usd=exact_sum(one[3] for one in chosen), events=len(chosen))
        return total, groups

    def sort_key(group: Any) -> Any:
        key = [merging.none_last(group.dataset_id), group.model_key]
        first = {"cost_usd": [-Fraction(group.cost_usd)], "dataset": [], "model": [group.model_key]}[order_by]
        return [*first, *key]

    answers = [answer([one for one in events if one[0] == bucket]) for bucket in range(BUCKETS)]
    total, merged = merging.merge_usage(answers, question, figures)
    plain_total, plain = answer(events)
    assert total._asdict() == plain_total.columns
    assert [row._asdict() for row in merged] == [group.columns for group in sorted(plain, key=sort_key)]


def test_the_hash_of_users_is_fixed_for_ever() -> None:
    """The bucket of a user must never change, so these are the answers of every version."""
    assert places.HASH_NAME == "blake2b-64"
    users = [UUID(int=number) for number in (0, 1, 2, 3, 2**128 - 1)]
    assert [[places.hashed(count)(user) for user in users] for count in (1, 2, 8, 16, 64)] == FIXED
    spread = Counter(places.hashed(16)(UUID(int=number)) for number in range(16_000))
    assert set(spread) == set(range(16))
    assert all(800 < users < 1200 for users in spread.values())
