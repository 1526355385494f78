"""The report by several dimensions, compared with a count of the stored rows in plain Python."""

import decimal
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from random import Random
from typing import Any, get_args
from zoneinfo import ZoneInfo

import pytest
import pytest_asyncio

from session_lifecycle import InvalidValueError, SessionDatabase, UsageEvent, Viewer
from session_lifecycle.models import UsageEventFilters, UsageFigures, UsageFilters, UsageReport, UsageRow
from session_lifecycle.models.fields import exact_sum
from session_lifecycle.models.reports import BUCKETS, FIGURES, OwnDimension
from session_lifecycle.models.usage import RARE_CLASSES
from support.ledger import D1, HOUR, NOON, VIEWERS, A, B, C, Row, fill_ledger, model_key, seen_by, stored_events
from support.world import World

AUDITOR = Viewer.auditor()
BERLIN = ZoneInfo("Europe/Berlin")
SINCE, UNTIL = NOON - 60 * HOUR, NOON + 25 * HOUR
TOKENS = ("tokens_in", "tokens_out", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")


@pytest_asyncio.fixture
async def ledger(session_database: SessionDatabase) -> SessionDatabase:
    await fill_ledger(session_database, Random(2))
    return session_database


def begin(row: Row, bucket: str) -> datetime:
    """The beginning of the bucket of Berlin in which the event was used."""
    at: datetime = row["at"]
    if bucket == "hour":
        return at.replace(minute=0, second=0, microsecond=0)
    local = at.astimezone(BERLIN)
    day = local.replace(hour=0, minute=0, second=0, microsecond=0)
    if bucket == "week":
        day -= timedelta(days=local.weekday())
    return (day.replace(day=1) if bucket == "month" else day).astimezone(UTC)


# The fields of a row that a dimension has, from a stored row.
KEYS: dict[str, Callable[[Row], dict[str, Any]]] = {
    "model": lambda row: {"model": model_key(row)},
    "provider": lambda row: {"provider": row["provider"] or "unknown"},
    "agent": lambda row: {"agent_name": row["agent_name"] or "unknown"},
    "user": lambda row: {"user_id": row["user_id"]},
    "dataset": lambda row: {"dataset_id": row["dataset_id"]},
    "client": lambda row: {"client": row["client"] or "Unknown"},
    "kind": lambda row: {"kind": row["kind"]},
    "billing": lambda row: {"billing": row["billing"]},
    "service_tier": lambda row: {"service_tier": row["service_tier"]},
    "session": lambda row: {"user_id": row["user_id"], "session_id": row["session_id"]},
    "run": lambda row: {"user_id": row["user_id"], "run_id": row["run_id"]},
    # All sessions of the ledger were active long ago.
    "status": lambda row: {"status": "failed" if row["session_status"] == "failed" else "abandoned"},
    **{bucket: lambda row, bucket=bucket: {"starts_at": begin(row, bucket)} for bucket in BUCKETS},  # type: ignore[misc]
}
TAGS = ("team", "odd 'name' %s:", "model", "of nobody")
KEYS_OF_TAGS: dict[str, Callable[[Row], dict[str, Any]]] = {
    f"tag:{name}": lambda row, name=name: {f"tag {name}": row["tags"].get(name)}  # type: ignore[misc]
    for name in TAGS
}


def is_measurement(row: Row) -> bool:
    costs = (row["cost_usd"] or 0, row["plan_cost_usd"] or 0)
    return bool(row["tokens_in"] or row["tokens_out"] or any(costs) or row["parts"] or not row["measured"])


def figures_of(rows: Sequence[Row], details: Sequence[str] = ()) -> dict[str, Any]:
    """The figures over some rows, each added up in plain Python."""
    late, counted = ([row for row in rows if row["late"] is late] for late in (True, False))
    used = [row for row in counted if is_measurement(row)]
    plan = [row for row in used if row["billing"] == "plan"]
    unpriced = [row for row in counted if row["measured"] and row["cost_usd"] is None]
    return {
        "cost_usd": exact_sum(row["cost_usd"] or Decimal(0) for row in counted),
        "events": len(used),
        "sessions": len({(row["user_id"], row["session_id"]) for row in used}),
        "runs": len({(row["user_id"], row["run_id"]) for row in used if row["run_id"]}),
        **{name: sum(row[name] for row in counted) for name in TOKENS},
        **{name: sum((row["parts"] or {}).get(name, 0) for row in counted) for name in RARE_CLASSES},
        "unpriced_events": len(unpriced),
        "unmeasured_events": len([row for row in counted if not row["measured"]]),
        "partial_events": len([row for row in used if row["partial"]]),
        "late_events": len(late),
        "late_cost_usd": exact_sum(row["cost_usd"] or Decimal(0) for row in late),
        "plan_events": len(plan),
        "plan_tokens_in": sum(row["tokens_in"] for row in plan),
        "plan_tokens_out": sum(row["tokens_out"] for row in plan),
        "plan_cost_usd": exact_sum(row["plan_cost_usd"] or Decimal(0) for row in plan),
        "plan_unpriced_events": len([row for row in plan if row["measured"] and row["plan_cost_usd"] is None]),
        "details": {name: sum(row["details"].get(name, 0) for row in counted) for name in details},
    }


def figures(found: UsageFigures) -> dict[str, Any]:
    return {name: getattr(found, name) for name in UsageFigures.model_fields}


def group_of(row: UsageRow, group_by: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    """The fields that say which group a row is about, with the model's name without case."""
    found = {name: value for name, value in row if name not in UsageFigures.model_fields and name != "ends_at"}
    if row.model is not None:
        found["model"] = model_key({"model": row.model})
    tags = found.pop("tags")
    assert list(tags) == [one.removeprefix("tag:") for one in group_by if one.startswith("tag:")]
    found |= {f"tag {name}": value for name, value in tags.items()}
    return tuple(sorted((name, value) for name, value in found.items() if value is not None))


def expected_groups(
    rows: Sequence[Row], group_by: Sequence[str], details: Sequence[str] = ()
) -> dict[tuple[tuple[str, Any], ...], dict[str, Any]]:
    keys = KEYS | KEYS_OF_TAGS
    groups: dict[tuple[tuple[str, Any], ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["late"] or is_measurement(row) or not row["details"].keys().isdisjoint(details):
            key = {name: value for one in group_by for name, value in keys[one](row).items() if value is not None}
            groups[tuple(sorted(key.items()))].append(row)
    return {key: figures_of(found, details) for key, found in groups.items()}


def test_every_dimension_is_counted_here() -> None:
    assert KEYS.keys() == set(get_args(OwnDimension))


GROUPINGS: list[tuple[str, ...]] = [
    *((dimension,) for dimension in (*KEYS, *KEYS_OF_TAGS)),
    tuple(KEYS_OF_TAGS),
    ("tag:team", "day", "model"),
    ("user", "agent"),
    ("provider", "model"),
    ("model", "day", "client"),
    ("dataset", "run", "kind", "billing", "service_tier", "hour"),
    ("session", "status", "user"),
    ("week", "month")[:1],
]


@pytest.mark.parametrize("viewer", VIEWERS)
async def test_X24_a_report_has_the_figures_of_each_combination(ledger: SessionDatabase, viewer: str) -> None:
    stored = seen_by(VIEWERS[viewer], await stored_events(ledger))
    within = [row for row in stored if SINCE <= row["at"] < UNTIL]
    details = ("pages", "odd 'name' %s", "not there")
    for group_by in GROUPINGS:
        report = await ledger.reports.usage(
            VIEWERS[viewer],
            group_by=group_by,
            since=SINCE,
            until=UNTIL,
            timezone="Europe/Berlin",
            details=details,
        )
        expected = expected_groups(within, group_by, details)
        assert {group_of(row, group_by): figures(row) for row in report.rows} == expected, group_by
        assert len(report.rows) == len(expected)
        assert not report.has_more
        assert figures(report.total) == figures_of(within, details)
        assert [row.cost_usd for row in report.rows] == sorted((row.cost_usd for row in report.rows), reverse=True)
        assert all((row.ends_at is None) == (row.starts_at is None) for row in report.rows)
    assert bool(within) == (viewer != "nobody")


FILTERS: list[tuple[dict[str, Any], Callable[[Row], bool]]] = [
    ({"session_id": "s0", "owner_id": B}, lambda row: (row["user_id"], row["session_id"]) == (B, "s0")),
    ({"run_id": "r0"}, lambda row: row["run_id"] == "r0"),
    ({"model": "GPT-4O", "provider": "azure"}, lambda row: (model_key(row), row["provider"]) == ("gpt-4o", "azure")),
    ({"client": "Unknown", "kind": "llm"}, lambda row: (row["client"], row["kind"]) == (None, "llm")),
    (
        {"billing": "plan", "service_tier": "batch"},
        lambda row: (row["billing"], row["service_tier"]) == ("plan", "batch"),
    ),
    ({"dataset_id": D1, "agent_name": "coder"}, lambda row: (row["dataset_id"], row["agent_name"]) == (D1, "coder")),
    ({"tags": {"team": "red", "odd 'name' %s:": "1"}}, lambda row: row["tags"].get("team") == "red"),
    ({"tags": {"team": ""}}, lambda row: row["tags"].get("team") == ""),
]


async def test_X24_a_report_takes_the_filters_of_the_list(ledger: SessionDatabase) -> None:
    stored = await stored_events(ledger)
    for chosen, chooses in FILTERS:
        rows = [row for row in stored if chooses(row)]
        filters = UsageFilters(**chosen)
        report = await ledger.reports.usage(
            AUDITOR, group_by=("user", "day"), since=SINCE, until=UNTIL, filters=filters
        )
        within = [row for row in rows if SINCE <= row["at"] < UNTIL]
        assert figures(report.total) == figures_of(within), chosen
        assert sum(row.events for row in report.rows) == report.total.events > 0
        ever = await ledger.reports.usage(AUDITOR, filters=filters)
        assert figures(ever.total) == figures_of(rows)
        page = await ledger.activity.list_usage_events(UsageEventFilters(viewer=AUDITOR, limit=1, **chosen))
        assert page.total == len(rows)


async def test_X24_without_dimensions_one_row_has_everything(ledger: SessionDatabase) -> None:
    report = await ledger.reports.usage(VIEWERS["shared"])
    [row] = report.rows
    assert figures(row) == figures(report.total) == figures_of(seen_by(VIEWERS["shared"], await stored_events(ledger)))
    assert group_of(row, ()) == ()
    nothing = await ledger.reports.usage(VIEWERS["nobody"], group_by=("model",))
    assert not nothing.rows
    assert nothing.total.cost_usd == nothing.total.events == 0
    empty = await ledger.reports.usage(AUDITOR, group_by=("day",), since=NOON, until=NOON)
    assert (empty.rows, empty.total) == ([], nothing.total)


async def test_X24_R18_the_total_covers_the_groups_beyond_the_limit(ledger: SessionDatabase) -> None:
    every = await ledger.reports.usage(AUDITOR, group_by=("session", "kind"))
    assert not every.has_more
    for limit in (1, len(every.rows) - 1):
        report = await ledger.reports.usage(AUDITOR, group_by=("session", "kind"), limit=limit)
        assert (report.rows, report.total, report.has_more) == (every.rows[:limit], every.total, True)
    report = await ledger.reports.usage(AUDITOR, group_by=("session", "kind"), limit=len(every.rows))
    assert (report.rows, report.has_more) == (every.rows, False)
    assert UsageReport.model_validate_json(report.model_dump_json()) == report


async def test_X24_rows_are_in_the_order_that_is_asked_for(ledger: SessionDatabase) -> None:
    for figure in FIGURES:
        report = await ledger.reports.usage(AUDITOR, group_by=("provider", "client"), order_by=figure)
        keys = [(-getattr(row, figure), row.provider, row.client) for row in report.rows]
        assert keys == sorted(keys), figure
    report = await ledger.reports.usage(AUDITOR, group_by=("provider", "client"), order_by="client")
    names = [(str(row.client), str(row.provider)) for row in report.rows]
    assert names == sorted(names)
    assert len(names) == len(set(names)) > 3
    days = await ledger.reports.usage(AUDITOR, group_by=("model", "day"), since=SINCE, until=UNTIL, order_by="day")
    moments = [(row.starts_at, model_key({"model": row.model})) for row in days.rows]
    assert moments == sorted(moments, key=str)
    assert days.rows[0].starts_at is not None


async def test_X24_tags_are_dimensions_like_any_other(ledger: SessionDatabase) -> None:
    """The rows are in the order of the tag, and those of sessions without it come last."""
    report = await ledger.reports.usage(AUDITOR, group_by=("kind", "tag:team"), order_by="tag:team")
    found = [(row.tags["team"], row.kind) for row in report.rows]
    assert found == [(team, kind) for team in ("", "blue", "red", None) for kind in ("embedding", "llm")]
    assert exact_sum(row.cost_usd for row in report.rows) == report.total.cost_usd
    assert UsageReport.model_validate_json(report.model_dump_json()) == report
    # The agent that may be seen by a data set alone has no tag.
    seen = await ledger.reports.usage(VIEWERS["by a data set"], group_by=["tag:team"])
    assert {row.tags["team"] for row in seen.rows} == {"", "blue", None}
    await ledger.lifecycle.update_session("s2", C, tags={"team": "green"})
    after = await ledger.reports.usage(AUDITOR, group_by=["tag:team"])
    assert {row.tags["team"] for row in after.rows} == {"", "green", "red", None}
    many = [f"tag:{number}" for number in range(64)]
    [row] = (await ledger.reports.usage(AUDITOR, group_by=many)).rows
    assert (row.tags, row.events) == ({str(number): None for number in range(64)}, report.total.events)


async def test_X24_the_other_reports_are_short_forms(ledger: SessionDatabase) -> None:
    reports = ledger.reports
    window: dict[str, Any] = {"since": SINCE, "until": UNTIL}
    for viewer in VIEWERS.values():
        by_model = await reports.usage(viewer, group_by=("model",), order_by="model", **window)
        spend = await reports.spend(viewer, **window)
        assert spend.model_dump() == {name: getattr(by_model.total, name) for name in type(spend).model_fields}
        classes = await reports.tokens_by_class(viewer, **window)
        used = {row.model: (row.tokens_in, row.tokens_out) for row in by_model.rows if row.tokens_in or row.tokens_out}
        assert {model: (one.tokens_in, one.tokens_out) for model, one in classes.by_model.items()} == used
        series = await reports.usage_timeseries(viewer, group_by="model", timezone="Asia/Tokyo", **window)
        by_day = await reports.usage(viewer, group_by=("day", "model"), timezone="Asia/Tokyo", order_by="day", **window)
        points = {(one.starts_at, one.ends_at, one.group): one for one in series if one.events}
        rows = {(row.starts_at, row.ends_at, row.model): row for row in by_day.rows if row.events}
        assert points.keys() == rows.keys()
        assert [point.cost_usd for point in points.values()] == [rows[key].cost_usd for key in points]
        stats = await ledger.lifecycle.aggregate_stats(viewer)
        assert (await reports.usage(viewer)).total.cost_usd == stats.total_spend_usd


async def test_X04_names_of_models_that_differ_in_case_are_one_model_in_every_report(
    session_database: SessionDatabase,
) -> None:
    """Every bucket and group shows the same spelling."""
    await session_database.lifecycle.record(
        [
            UsageEvent(session_id="s", user_id=A, model=model, tokens_in=1, cost_usd=1, at=NOON + number * 24 * HOUR)
            for number, model in enumerate(["gpt-4o", "GPT-4o", " gpt-4O ", None, "UNKNOWN"])
        ]
    )
    window: dict[str, Any] = {"since": NOON, "until": NOON + 120 * HOUR}
    report = await session_database.reports.usage(A, group_by=("model", "day"), order_by="day", **window)
    assert [row.model for row in report.rows] == ["GPT-4o"] * 3 + ["UNKNOWN"] * 2
    points = await session_database.reports.usage_timeseries(A, group_by="model", **window)
    assert {point.group for point in points} == {"GPT-4o", "UNKNOWN"}
    assert list((await session_database.reports.tokens_by_class(A)).by_model) == ["GPT-4o", "UNKNOWN"]
    assert [row.model for row in await session_database.lifecycle.cost_by_model(A)] == ["GPT-4o", "UNKNOWN"]


async def test_X09_M63_embeddings_are_apart(session_database: SessionDatabase) -> None:
    lifecycle, at = session_database.lifecycle, datetime(2026, 11, 1, 12, tzinfo=UTC)
    await lifecycle.accumulate_usage("s", A, "text-embedding-3-small", 1_000_000, kind="embedding", at=at)
    await lifecycle.accumulate_usage("s", A, "gpt-4o-mini", 1_000, 500, at=at)
    report = await session_database.reports.usage(A, group_by=("kind",))
    found = [(row.kind, row.cost_usd, row.tokens_in, row.tokens_out) for row in report.rows]
    assert found == [("embedding", Decimal("0.02"), 1_000_000, 0), ("llm", Decimal("0.00045"), 1_000, 500)]
    assert report.total.cost_usd == Decimal("0.02045")
    row = await lifecycle.get_session_row("s", A)
    assert row is not None
    assert row.record.cost_usd == Decimal("0.02045")


async def test_X11_details_are_summed_by_session_run_and_model(ledger: SessionDatabase) -> None:
    stored = await stored_events(ledger)
    for dimension in ("session", "run", "model"):
        report = await ledger.reports.usage(AUDITOR, group_by=(dimension,), details=["pages"])
        assert sum(row.details["pages"] for row in report.rows) == report.total.details["pages"]
        assert {row.details.keys() == {"pages"} for row in report.rows} == {True}
    assert report.total.details["pages"] == sum(row["details"].get("pages", 0) for row in stored if not row["late"])
    assert (await ledger.reports.usage(AUDITOR)).total.details == {}


async def test_X01_sums_do_not_depend_on_the_hosts_context(ledger: SessionDatabase) -> None:
    expected = await ledger.reports.usage(AUDITOR, group_by=("model",))
    classes = await ledger.reports.tokens_by_class(AUDITOR)
    with decimal.localcontext(decimal.Context(prec=3, traps=[decimal.Inexact, decimal.FloatOperation])):
        assert await ledger.reports.usage(AUDITOR, group_by=("model",)) == expected
        assert await ledger.reports.tokens_by_class(AUDITOR) == classes
    assert len(expected.total.cost_usd.as_tuple().digits) > 28


async def test_X24_days_have_23_hours_when_the_clocks_change(ledger: SessionDatabase) -> None:
    report = await ledger.reports.usage(
        AUDITOR, group_by=("day",), since=SINCE, until=UNTIL, timezone="Europe/Berlin", order_by="day"
    )
    lengths = {(row.ends_at - row.starts_at) / HOUR for row in report.rows if row.ends_at and row.starts_at}
    assert lengths == {23, 24}
    assert all(before.ends_at == after.starts_at for before, after in pairwise(report.rows))


async def test_R18_a_report_is_one_statement(session_database: SessionDatabase) -> None:
    world = World(session_database)
    await world.use("gpt-4o", 1)
    asked = session_database.reports.usage(A, group_by=("model", "client", "status"), details=["x"])
    assert len(await world.statements(asked)) == 1


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"group_by": ("model", "model")}, "group_by"),
        ({"group_by": ("day", "month"), "since": SINCE, "until": UNTIL}, "group_by"),
        ({"group_by": ("colour",)}, "group_by.0"),
        ({"group_by": "model"}, "group_by"),
        ({"group_by": ("tag:",)}, "group_by.0"),
        ({"group_by": ("tag:a", "team")}, "group_by.1"),
        ({"group_by": ("tag:a", "tag:a")}, "group_by"),
        ({"group_by": ("tag:" + "a" * 101,)}, "group_by.0"),
        ({"group_by": ("tag:a\0",)}, "group_by.0"),
        ({"group_by": [f"tag:{number}" for number in range(65)]}, "group_by"),
        ({"group_by": ("tag:a",), "order_by": "tag:b"}, "order_by"),
        ({"group_by": ("day",), "until": UNTIL}, "since"),
        ({"group_by": ("day",), "since": SINCE}, "until"),
        ({"group_by": ("hour",), "since": SINCE, "until": SINCE + 10_001 * HOUR}, "group_by"),
        ({"since": UNTIL, "until": SINCE}, "until"),
        ({"order_by": "colour"}, "order_by"),
        ({"order_by": "model"}, "order_by"),
        ({"order_by": "details"}, "order_by"),
        ({"limit": 0}, "limit"),
        ({"limit": 10_001}, "limit"),
        ({"timezone": "Europe/Atlantis"}, "timezone"),
        ({"details": [f"d{number}" for number in range(65)]}, "details"),
        ({"details": "pages"}, "details"),
        ({"filters": UsageEventFilters(viewer=AUDITOR)}, "filters"),
        ({"filters": UsageFilters().model_copy(update={"kind": "x"})}, "kind"),
    ],
)
async def test_X24_wrong_arguments_are_refused_by_name(
    session_database: SessionDatabase, asked: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidValueError) as refused:
        await session_database.reports.usage(A, **asked)
    assert refused.value.field == field
