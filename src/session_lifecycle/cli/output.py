"""The output of commands: tables, reports, progress."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from uuid import UUID

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from session_lifecycle.models import (
    CostByModelRow,
    EffectiveStatus,
    PruneReport,
    RollUpReport,
    SessionListPage,
    SessionStats,
)

PLAIN_WIDTH = 140
STYLES = {
    EffectiveStatus.RUNNING: "green",
    EffectiveStatus.COMPLETED: "cyan",
    EffectiveStatus.FAILED: "red",
    EffectiveStatus.ABANDONED: "yellow",
}


def sessions_table(page: SessionListPage, names: Mapping[UUID, str]) -> Table:
    """A table of a page of sessions, one row a session, in the order of the page.

    Args:
        page: The page.
        names: Names to show in place of user ids.
    """
    table = Table(title=f"Sessions ({len(page.sessions)} of {page.total})")
    for heading in ("session", "owner", "agent", "status", "last model"):
        table.add_column(heading, no_wrap=True)
    for heading in ("tokens in", "tokens out", "cost USD", "errors", "late"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in page.sessions:
        record, status = row.record, row.effective_status
        table.add_row(
            record.session_id,
            names.get(record.user_id, str(record.user_id)),
            record.agent_name or "",
            f"[{STYLES[status]}]{status}[/]",
            record.last_model or "",
            f"{record.tokens_in:,}",
            f"{record.tokens_out:,}",
            _usd(record.cost_usd),
            str(record.error_count),
            str(record.late_events),
        )
    return table


def stats_table(stats: SessionStats) -> Table:
    """A table of the figures over all sessions, one row a figure."""
    table = Table(title="Figures", show_header=False)
    table.add_column("figure")
    table.add_column("value", justify="right")
    rows = {
        "sessions": f"{stats.sessions:,}",
        **{f"  {status}": f"{getattr(stats, status.value):,}" for status in EffectiveStatus},
        "success rate": f"{stats.success_rate:.1%}",
        "spend USD": _usd(stats.total_spend_usd),
        "average spend USD": _usd(stats.avg_spend_per_session_usd),
        "tokens in": f"{stats.tokens_in:,}",
        "tokens out": f"{stats.tokens_out:,}",
        "agent time": f"{stats.agent_time_s:,.0f} s",
        "unpriced events": f"{stats.unpriced_events:,}",
        "late events": f"{stats.late_events:,} ({_usd(stats.late_cost_usd)} USD)",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def costs_table(rows: Sequence[CostByModelRow]) -> Table:
    """A table of the cost by model in USD, in the order of `rows`, with sums in the footer."""
    table = Table(title="Cost by model", show_footer=True)
    table.add_column("model", "all")
    table.add_column("sessions", justify="right")
    table.add_column("events", f"{sum(row.events for row in rows):,}", justify="right")
    table.add_column("tokens in", f"{sum(row.tokens_in for row in rows):,}", justify="right")
    table.add_column("tokens out", f"{sum(row.tokens_out for row in rows):,}", justify="right")
    table.add_column("cost USD", _usd(sum((row.cost_usd for row in rows), Decimal(0))), justify="right")
    for row in rows:
        unpriced = " (unpriced)" if row.unpriced_events else ""
        table.add_row(
            row.model,
            f"{row.session_count:,}",
            f"{row.events:,}",
            f"{row.tokens_in:,}",
            f"{row.tokens_out:,}",
            _usd(row.cost_usd) + unpriced,
        )
    return table


def _usd(amount: Decimal) -> str:
    return f"{amount:,.6f}"


def print_progress(report: PruneReport | RollUpReport) -> None:
    """Prints how many sessions a job has processed so far, on standard error."""
    Console(stderr=True, soft_wrap=True).print(f"{report.sessions} sessions so far", highlight=False)


def print_report(heading: str, report: BaseModel) -> None:
    """Prints the heading and the report's fields on one line of standard output, without fields that are None."""
    fields = ", ".join(f"{name} {value}" for name, value in report if value is not None)
    Console(soft_wrap=True).print(f"{heading}: {fields}", markup=False, highlight=False)


def standard_output() -> Console:
    """A console on standard output. Without a terminal it is `PLAIN_WIDTH` wide, which is enough for the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)
