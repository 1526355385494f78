"""The output of commands: tables, reports, messages.

A name in the database is anybody's text. It is printed as `rich.text.Text`, which is not read as markup, and without
control characters, which a terminal would obey.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from uuid import UUID

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from session_lifecycle.models import (
    CostByModelRow,
    EffectiveStatus,
    PruneReport,
    RollUpReport,
    SessionListPage,
    SessionStats,
)
from session_lifecycle.models.fields import exact_sum

PLAIN_WIDTH = 140
STYLES = {
    EffectiveStatus.RUNNING: "green",
    EffectiveStatus.WAITING: "magenta",
    EffectiveStatus.COMPLETED: "cyan",
    EffectiveStatus.FAILED: "red",
    EffectiveStatus.ABANDONED: "yellow",
}


def shown(value: object) -> str:
    """The text of a value on one line, with an escape in place of each character that cannot be seen."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(value)
    )


def _cell(value: object, style: str = "") -> Text:
    return Text(shown(value), style)


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
            _cell(record.session_id),
            _cell(names.get(record.user_id, record.user_id)),
            _cell(record.agent_name or ""),
            _cell(status, STYLES[status]),
            _cell(record.last_model or ""),
            _cell(f"{record.tokens_in:,}"),
            _cell(f"{record.tokens_out:,}"),
            _cell(_usd(record.cost_usd)),
            _cell(record.error_count),
            _cell(record.late_events),
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
        table.add_row(_cell(name), _cell(value))
    return table


def costs_table(rows: Sequence[CostByModelRow]) -> Table:
    """A table of the cost by model in USD, in the order of `rows`, with sums in the footer."""
    table = Table(title="Cost by model", show_footer=True)
    table.add_column("model", "all")
    table.add_column("sessions", justify="right")
    table.add_column("events", f"{sum(row.events for row in rows):,}", justify="right")
    table.add_column("tokens in", f"{sum(row.tokens_in for row in rows):,}", justify="right")
    table.add_column("tokens out", f"{sum(row.tokens_out for row in rows):,}", justify="right")
    table.add_column("cost USD", _usd(exact_sum(row.cost_usd for row in rows)), justify="right")
    for row in rows:
        unpriced = " (unpriced)" if row.unpriced_events else ""
        table.add_row(
            _cell(row.model),
            _cell(f"{row.session_count:,}"),
            _cell(f"{row.events:,}"),
            _cell(f"{row.tokens_in:,}"),
            _cell(f"{row.tokens_out:,}"),
            _cell(_usd(row.cost_usd) + unpriced),
        )
    return table


def _usd(amount: Decimal) -> str:
    return f"{amount:,.6f}"


def print_progress(report: PruneReport | RollUpReport) -> None:
    """Prints how many sessions a job has processed so far, on standard error."""
    print_note(f"{report.sessions} sessions so far")


def print_report(heading: str, report: BaseModel) -> None:
    """Prints the heading and the report's fields on one line of standard output, without fields that are None."""
    fields = ", ".join(
        f"{name} {value}" for name, value in report if value is not None and not isinstance(value, tuple)
    )
    print_line(f"{heading}: {fields}")


def print_line(line: str) -> None:
    """Prints a line on standard output."""
    _print(line)


def print_note(line: str) -> None:
    """Prints a line on standard error."""
    _print(line, stderr=True)


def print_error(message: str) -> None:
    """Prints an error message on standard error. It may have several lines, as the log of a server has."""
    for line in f"error: {message}".splitlines():
        _print(line, style="red", stderr=True)


def _print(line: str, style: str = "", *, stderr: bool = False) -> None:
    Console(stderr=stderr, soft_wrap=True, highlight=False).print(_cell(line, style))


def standard_output() -> Console:
    """A console on standard output. Without a terminal it is `PLAIN_WIDTH` wide, which is enough for the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)
