"""The tables of commands. No cell is cut: where a terminal is too narrow, a cell goes on in the next line.

Money is exact, in USD. Times are UTC.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from rich.table import Table
from rich.text import Text

from session_lifecycle.cli.output import shown, utc
from session_lifecycle.models import (
    Budget,
    BudgetUse,
    CostByModelRow,
    EffectiveStatus,
    RunPage,
    SessionDetail,
    SessionListPage,
    SessionRecord,
    SessionRowWithStatus,
    SessionStats,
    SummaryPage,
    UsageEventPage,
    UsageFigures,
    UsageReport,
)
from session_lifecycle.models.fields import exact_sum
from session_lifecycle.models.pages import Page
from session_lifecycle.models.reports import OF_TAG

STYLES = {
    EffectiveStatus.RUNNING: "green",
    EffectiveStatus.WAITING: "magenta",
    EffectiveStatus.COMPLETED: "cyan",
    EffectiveStatus.FAILED: "red",
    EffectiveStatus.ABANDONED: "yellow",
}
MONEY_DECIMALS = 6
"""The fewest decimals of money. It has more where it needs them."""
_FIELDS_OF_GROUPS = {
    "agent": "agent_name",
    "user": "user_id",
    "dataset": "dataset_id",
    "session": "session_id",
    "run": "run_id",
}
_TIMES = ("hour", "day", "week", "month")


def cell(value: object, style: str = "") -> Text:
    """A cell of a table: the value in the words of all tables."""
    return Text(shown(_in_words(value)), style)


def _in_words(value: object) -> str:
    match value:
        case None:
            words = ""
        case bool():
            words = "yes" if value else "no"
        case Decimal():
            words = money(value)
        case int():
            words = f"{value:,}"
        case datetime():
            words = utc(value)
        case Mapping():
            words = ", ".join(f"{name}={one}" for name, one in value.items())
        case tuple() | list():
            words = ", ".join(map(str, value))
        case _:
            words = str(value)
    return words


def money(amount: Decimal) -> str:
    """An amount with all its digits, at least `MONEY_DECIMALS` of them after the point."""
    whole, _, decimals = f"{amount:,f}".partition(".")
    return f"{whole}.{decimals.rstrip('0'):0<{MONEY_DECIMALS}}"


def _table(title: str, texts: Sequence[str], numbers: Sequence[str] = (), footer: Sequence[object] = ()) -> Table:
    """A table without rows: columns of texts on the left, columns of numbers on the right."""
    table = Table(title=Text(shown(title)), show_footer=bool(footer))
    for number, heading in enumerate((*texts, *numbers)):
        table.add_column(
            heading,
            cell(footer[number]) if footer else "",
            justify="left" if number < len(texts) else "right",
            overflow="fold",
        )
    return table


def figures_table(title: str, figures: Mapping[str, object]) -> Table:
    """A table of figures by name, one row a figure, in their order."""
    table = Table(title=Text(shown(title)), show_header=False)
    table.add_column("figure", overflow="fold")
    table.add_column("value", justify="right", overflow="fold")
    for name, value in figures.items():
        table.add_row(cell(name), cell(value))
    return table


def _of(title: str, rows: Sequence[Any], page: Page) -> str:
    if page.total is None:
        return f"{title} ({len(rows)})"
    return f"{title} ({len(rows)} of {page.total}{' or more' if page.total_is_lower_bound else ''})"


def sessions_table(page: SessionListPage, names: Mapping[UUID, str] | None = None) -> Table:
    """A table of a page of sessions, one row a session, in the order of the page.

    Args:
        page: The page.
        names: Names to show in place of user ids.
    """
    table = _table(
        _of("Sessions", page.sessions, page),
        ("session", "owner", "agent", "last activity", "status", "last model"),
        ("tokens in", "tokens out", "cost USD", "errors", "late"),
    )
    for row in page.sessions:
        record, status = row.record, row.effective_status
        table.add_row(
            cell(record.session_id),
            cell((names or {}).get(record.user_id, record.user_id)),
            cell(record.agent_name),
            cell(record.last_activity_at),
            cell(status, STYLES[status]),
            *map(cell, (record.last_model, record.tokens_in, record.tokens_out, record.cost_usd)),
            *map(cell, (record.error_count, record.late_events)),
        )
    return table


def summaries_table(page: SummaryPage) -> Table:
    """A table of a page of session summaries, one row a session, in the order of the page."""
    table = _table(
        _of("Sessions", page.sessions, page),
        ("session", "owner", "agent", "last activity", "status", "first message"),
        ("runs", "messages", "tokens", "cost USD"),
    )
    for one in page.sessions:
        record, status = one.record, one.effective_status
        table.add_row(
            *map(cell, (record.session_id, record.user_id, record.agent_name, record.last_activity_at)),
            cell(status, STYLES[status]),
            *map(cell, (one.first_message, one.runs_count, one.messages_count, one.tokens_total, one.cost_usd)),
        )
    return table


def record_table(record: SessionRecord, status: EffectiveStatus | None = None) -> Table:
    """A table of one session, one row a field, without fields that say nothing."""
    fields = dict(record)
    # The status of a read says more than the stored status.
    fields["status"] = record.status if status is None else status
    return figures_table("Session", {name: value for name, value in fields.items() if value not in (None, {}, 0)})


def row_table(row: SessionRowWithStatus) -> Table:
    """A table of one session with its effective status, one row a field."""
    return record_table(row.record, row.effective_status)


def detail_tables(detail: SessionDetail, *, messages: bool) -> list[Table]:
    """The tables of a session: its fields and figures, its runs, and its messages where they are asked for."""
    summary = detail.summary
    counts = {
        name: getattr(summary, f"{name}_count") for name in ("runs", "threads", "steps", "messages", "errors")
    } | {"providers": summary.providers, "models": summary.models, "agents": summary.agents}
    tables = [
        record_table(summary.record, summary.effective_status),
        figures_table("Figures", {name: value for name, value in counts.items() if value != ()}),
    ]
    if detail.runs:
        tables.append(_runs(f"Runs ({len(detail.runs)} of {summary.runs_count})", detail.runs))
    if messages:
        said = _table(
            f"Messages ({len(detail.messages)} of {summary.messages_count})", ("created", "role", "run", "content")
        )
        for one in detail.messages:
            said.add_row(*map(cell, (one.created_at, one.role, one.run_id, one.content)))
        tables.append(said)
    return tables


def runs_table(page: RunPage) -> Table:
    """A table of a page of runs, one row a run, in the order of the page."""
    return _runs(_of("Runs", page.runs, page), page.runs)


def _runs(title: str, runs: Sequence[Any]) -> Table:
    table = _table(
        title,
        ("run", "session", "owner", "agent", "model", "status", "started"),
        ("duration", "tokens", "cost USD", "errors"),
    )
    for run in runs:
        duration = None if run.duration_ms is None else timedelta(milliseconds=run.duration_ms)
        table.add_row(
            *map(cell, (run.run_id, run.session_id, run.user_id, run.agent_name, run.model, run.status)),
            *map(cell, (run.started_at, duration, run.tokens_total, run.cost_usd, run.errors_count)),
        )
    return table


def events_table(page: UsageEventPage) -> Table:
    """A table of a page of usage events, one row an event, in the order of the page."""
    table = _table(
        _of("Usage events", page.events, page),
        ("at", "session", "owner", "run", "model", "key", "price"),
        ("tokens in", "tokens out", "cost USD"),
    )
    for event in page.events:
        table.add_row(
            *map(cell, (event.at, event.session_id, event.user_id, event.run_id, event.model, event.idempotency_key)),
            *map(cell, (event.price_source or "unpriced", event.tokens_in, event.tokens_out, event.cost_usd)),
        )
    return table


def budgets_table(budgets: Sequence[Budget]) -> Table:
    """A table of budgets, one row a budget, in their order."""
    table = _table(
        f"Budgets ({len(budgets)})",
        ("budget", "user", "session", "agent", "dataset", "window", "time zone"),
        ("limit USD", "limit tokens"),
    )
    for one in budgets:
        table.add_row(
            *map(cell, (one.budget_id, one.user_id, one.session_id, one.agent_name, one.dataset_id)),
            *map(cell, (one.window, one.timezone, one.limit_usd, one.limit_tokens)),
        )
    return table


def budget_table(use: BudgetUse) -> Table:
    """A table of a budget and what is used of it, one row a field, without fields that say nothing."""
    fields = dict(use.budget) | {name: value for name, value in use if name != "budget" and value is not False}
    return figures_table("Budget", {name: value for name, value in fields.items() if value is not None})


def stats_table(stats: SessionStats) -> Table:
    """A table of the figures over all sessions, one row a figure."""
    return figures_table(
        "Figures",
        {
            "sessions": stats.sessions,
            **{f"  {status}": getattr(stats, status.value) for status in EffectiveStatus},
            "success rate": f"{stats.success_rate:.1%}",
            "spend USD": stats.total_spend_usd,
            "average spend USD": stats.avg_spend_per_session_usd,
            "tokens in": stats.tokens_in,
            "tokens out": stats.tokens_out,
            "agent time": f"{stats.agent_time_s:,.0f} s",
            "unpriced events": stats.unpriced_events,
            "late events": f"{stats.late_events:,} ({money(stats.late_cost_usd)} USD)",
        },
    )


def usage_table(figures: UsageFigures) -> Table:
    """A table of the figures over usage events, one row a figure, without those that are zero.

    Events, tokens and cost always have a row.
    """
    always = ("cost_usd", "events", "tokens_in", "tokens_out")
    return figures_table("Usage", {name: value for name, value in figures if value or name in always})


def costs_table(rows: Sequence[CostByModelRow]) -> Table:
    """A table of the cost by model in USD, in the order of `rows`, with sums in the footer."""
    footer = (
        "all",
        None,
        *(sum(getattr(row, name) for row in rows) for name in ("events", "tokens_in", "tokens_out")),
        exact_sum(row.cost_usd for row in rows),
    )
    table = _table("Cost by model", ("model",), ("sessions", "events", "tokens in", "tokens out", "cost USD"), footer)
    for row in rows:
        table.add_row(
            *map(cell, (row.model, row.session_count, row.events, row.tokens_in, row.tokens_out)),
            _cost(row.cost_usd, row.unpriced_events),
        )
    return table


def report_table(report: UsageReport, by: Sequence[str]) -> Table:
    """A table of the cost by the dimensions, one row a group, with the figures over all groups in the footer."""
    total = report.total
    footer = (
        "all",
        *(None for _ in by[1:]),
        *(total.sessions, total.events, total.tokens_in, total.tokens_out, total.cost_usd),
    )
    title = f"Cost by {', '.join(by)}"
    table = _table(title, by, ("sessions", "events", "tokens in", "tokens out", "cost USD"), footer)
    for row in report.rows:
        table.add_row(
            *(cell(_group(row, dimension)) for dimension in by),
            *map(cell, (row.sessions, row.events, row.tokens_in, row.tokens_out)),
            _cost(row.cost_usd, row.unpriced_events),
        )
    return table


def _group(row: Any, dimension: str) -> object:
    if dimension in _TIMES:
        return row.starts_at
    if dimension.startswith(OF_TAG):
        return row.tags[dimension.removeprefix(OF_TAG)]
    return getattr(row, _FIELDS_OF_GROUPS.get(dimension, dimension))


def _cost(amount: Decimal, unpriced_events: int) -> Text:
    return cell(money(amount) + (" (unpriced)" if unpriced_events else ""))
