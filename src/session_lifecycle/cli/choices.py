"""The options by which reads choose: as whom, in which window, which sessions, runs and events, which page.

Every command loads this module before it knows its options, so nothing here loads the library at import. The texts of a
`Literal` are those of the library; a test compares them.
"""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

import typer

from session_lifecycle.cli.output import print_note

if TYPE_CHECKING:
    from session_lifecycle import Viewer
    from session_lifecycle.models.pages import Page

UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
Status = Literal["running", "waiting", "completed", "failed", "abandoned"]
SessionOrder = Literal[
    "last_activity_at", "started_at", "ended_at", "cost_usd", "tokens_in", "tokens_out", "error_count"
]
SummaryOrder = Literal[SessionOrder, "last_prompt_at"]
Total = Literal["exact", "bounded", "none"]
ServiceTier = Literal["standard", "batch", "flex", "priority", "fast"]


def moment(text: str) -> datetime:
    """A time in UTC: an ISO 8601 time, which is in UTC where it has no zone, or how long ago, as in `90m` or `7d`."""
    if (ago := _duration(text)) is not None:
        return datetime.now(UTC) - ago
    try:
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"got {text!r}, expected a time as 2026-01-31T12:00:00Z, or how long ago as 90m, 24h, 7d or 2w"
        ) from None


def budget_window(text: str) -> str | timedelta:
    """The window of a budget: a name that the library checks, or a duration, as in `90m` or `7d`."""
    return _duration(text) or text


def _duration(text: str) -> timedelta | None:
    found = re.fullmatch(r"(\d{1,5})([mhdw])", text, re.ASCII)
    return None if found is None else timedelta(**{UNITS[found[2]]: int(found[1])})


def amount(text: str) -> Decimal:
    """An amount of USD."""
    try:
        return Decimal(text)
    except InvalidOperation:
        raise typer.BadParameter(f"got {text!r}, expected an amount of USD as 0.25") from None


def tag(text: str) -> tuple[str, str]:
    """A name and a value, from NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"got {text!r}, expected NAME=VALUE")
    return name, value


def json_object(text: str) -> dict[str, Any]:
    """An object of JSON."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise typer.BadParameter(f"got {text!r}, expected a JSON object")
    return found


Time = Annotated[
    datetime | None,
    typer.Option(
        parser=moment,
        metavar="TIME",
        help="When it happened, as 2026-01-31T12:00:00Z (UTC without a zone). Default: now.",
        show_default=False,
    ),
]
Tags = Annotated[
    list[Any] | None,
    typer.Option("--tag", parser=tag, metavar="NAME=VALUE", help="Only with this tag. Repeat for several."),
]
Metadata = Annotated[
    Any, typer.Option(parser=json_object, metavar="JSON", help="Only with these keys and values.", show_default=False)
]


@dataclass(frozen=True)
class Seen:
    """As whom a command reads."""

    user: Annotated[
        list[UUID] | None,
        typer.Option(
            "--user",
            metavar="ID",
            help="Read as this user, who sees their own sessions. Repeat for several. "
            "Default: as the auditor, who sees the sessions of all users.",
            show_default=False,
        ),
    ] = None

    def viewer(self) -> "Viewer":
        """The viewer of the read."""
        from session_lifecycle import Viewer

        return Viewer.of_users(self.user) if self.user else Viewer.auditor()


@dataclass(frozen=True)
class Window:
    """A window of time `[since, until)`."""

    since: Annotated[
        datetime | None,
        typer.Option(
            parser=moment,
            metavar="TIME",
            help="At this time or later: 2026-01-31T12:00:00Z (UTC without a zone), or how long ago: 90m, 24h, 7d, 2w.",
            show_default=False,
        ),
    ] = None
    until: Annotated[
        datetime | None,
        typer.Option(parser=moment, metavar="TIME", help="Before this time.", show_default=False),
    ] = None

    def fields(self) -> dict[str, Any]:
        """The window as the library's filters take it."""
        return {"since": self.since, "until": self.until}


@dataclass(frozen=True)
class PageChoice:
    """Which rows of all that match."""

    limit: Annotated[int, typer.Option(min=1, max=500, help="Maximum number of rows.")] = 50
    cursor: Annotated[
        str | None,
        typer.Option(help="Go on after the page that named this cursor, under the same options.", show_default=False),
    ] = None
    total: Annotated[
        Total, typer.Option(help="How all rows are counted: all of them, at most 10,000, or not at all.")
    ] = "exact"
    ascending: Annotated[bool, typer.Option("--ascending", help="Least or earliest first.")] = False

    def fields(self) -> dict[str, Any]:
        """The page as the library's filters take it."""
        return {"limit": self.limit, "cursor": self.cursor, "total": self.total, "descending": not self.ascending}


def print_next(page: "Page") -> None:
    """Says on standard error how to get the next page, if there is one."""
    if page.next_cursor is not None:
        print_note(f"more follow: --cursor {page.next_cursor}")


@dataclass(frozen=True)
class Origin:
    """The agent and the dataset of what is read."""

    agent: Annotated[str | None, typer.Option(metavar="NAME", help="Only of this agent.", show_default=False)] = None
    dataset: Annotated[
        UUID | None, typer.Option(metavar="ID", help="Only of sessions in this dataset.", show_default=False)
    ] = None

    def fields(self) -> dict[str, Any]:
        """The choice as the library's filters take it."""
        return {"agent_name": self.agent, "dataset_id": self.dataset}


@dataclass(frozen=True)
class SessionChoice:
    """Which sessions."""

    status: Annotated[Status | None, typer.Option(help="Only with this effective status.", show_default=False)] = None
    agent: Annotated[
        list[str] | None,
        typer.Option("--agent", metavar="NAME", help="Only of this agent. Repeat for several.", show_default=False),
    ] = None
    dataset: Annotated[UUID | None, typer.Option(metavar="ID", help="Only in this dataset.", show_default=False)] = None
    without_dataset: Annotated[bool, typer.Option("--without-dataset", help="Only in no dataset.")] = False
    prefix: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Only with an id that begins so.", show_default=False)
    ] = None
    excluded_prefix: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Only with an id that does not begin so.", show_default=False)
    ] = None
    min_cost: Annotated[Any, typer.Option(parser=amount, metavar="USD", help="At least this cost.")] = None
    max_cost: Annotated[Any, typer.Option(parser=amount, metavar="USD", help="At most this cost.")] = None
    min_tokens: Annotated[int | None, typer.Option(help="At least so many tokens, in and out.")] = None
    max_tokens: Annotated[int | None, typer.Option(help="At most so many tokens, in and out.")] = None
    min_errors: Annotated[int | None, typer.Option(help="At least so many errors.")] = None
    max_errors: Annotated[int | None, typer.Option(help="At most so many errors.")] = None
    min_seconds: Annotated[float | None, typer.Option(help="At least so many seconds long.")] = None
    max_seconds: Annotated[float | None, typer.Option(help="At most so many seconds long.")] = None
    metadata: Metadata = None
    tag: Tags = None
    tool: Annotated[str | None, typer.Option(metavar="NAME", help="Only where a run called this tool.")] = None
    annotation: Annotated[str | None, typer.Option(metavar="NAME", help="Only with this annotation.")] = None
    annotation_label: Annotated[str | None, typer.Option(metavar="LABEL", help="With this label.")] = None
    annotator: Annotated[str | None, typer.Option(metavar="NAME", help="By this annotator.")] = None
    min_score: Annotated[float | None, typer.Option(help="With at least this score.")] = None
    max_score: Annotated[float | None, typer.Option(help="With at most this score.")] = None

    def fields(self) -> dict[str, Any]:
        """The choice as the library's filters take it."""
        agents = self.agent or []
        return {
            "status_filter": self.status,
            # One agent has an index.
            **({"agent_name": agents[0]} if len(agents) == 1 else {"agent_names": agents}),
            "dataset_id": self.dataset,
            "without_dataset": self.without_dataset,
            "session_id_prefix": self.prefix,
            "excluded_session_id_prefix": self.excluded_prefix,
            "min_cost_usd": self.min_cost,
            "max_cost_usd": self.max_cost,
            "min_duration_s": self.min_seconds,
            "max_duration_s": self.max_seconds,
            "metadata": self.metadata or {},
            "tags": dict(self.tag or []),
            **{name: getattr(self, name) for name in _AS_THEY_ARE},
        }


_AS_THEY_ARE = (
    "min_tokens",
    "max_tokens",
    "min_errors",
    "max_errors",
    "tool",
    "annotation",
    "annotation_label",
    "annotator",
    "min_score",
    "max_score",
)


@dataclass(frozen=True)
class RunChoice:
    """Which runs."""

    project: Annotated[str | None, typer.Option(metavar="NAME", help="Only of this project.")] = None
    session: Annotated[str | None, typer.Option(metavar="ID", help="Only of this session.")] = None
    provider: Annotated[str | None, typer.Option(metavar="NAME", help="Only of this provider.")] = None
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Only of this model.")] = None
    client: Annotated[str | None, typer.Option(metavar="NAME", help="Only of this client.")] = None

    def fields(self) -> dict[str, Any]:
        """The choice as the library's filters take it."""
        return {
            "project": self.project,
            "session_id": self.session,
            "provider": self.provider,
            "model": self.model,
            "client": self.client,
        }


@dataclass(frozen=True)
class UsageChoice:
    """Which usage events."""

    agent: Annotated[str | None, typer.Option(metavar="NAME", help="Only of sessions of this agent.")] = None
    dataset: Annotated[UUID | None, typer.Option(metavar="ID", help="Only of sessions in this dataset.")] = None
    session: Annotated[str | None, typer.Option(metavar="ID", help="Only of this session.")] = None
    run: Annotated[str | None, typer.Option(metavar="ID", help="Only of this run.")] = None
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Only of this model.")] = None
    provider: Annotated[str | None, typer.Option(metavar="NAME", help="Only of this provider.")] = None
    client: Annotated[str | None, typer.Option(metavar="NAME", help="Only of runs of this client.")] = None
    kind: Annotated[Literal["llm", "embedding"] | None, typer.Option(help="Only of this kind.")] = None
    billing: Annotated[Literal["api", "plan"] | None, typer.Option(help="Only billed so.")] = None
    service_tier: Annotated[ServiceTier | None, typer.Option(help="Only of this service tier.")] = None
    tag: Tags = None

    def fields(self) -> dict[str, Any]:
        """The choice as the library's filters take it."""
        return {
            "agent_name": self.agent,
            "dataset_id": self.dataset,
            "session_id": self.session,
            "run_id": self.run,
            "model": self.model,
            "provider": self.provider,
            "client": self.client,
            "kind": self.kind,
            "billing": self.billing,
            "service_tier": self.service_tier,
            "tags": dict(self.tag or []),
        }
