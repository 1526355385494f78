"""The rules of the lifecycle in plain Python: a ledger, sessions, and every answer computed from them.

It is written from the rules, not from the SQL. It stores no totals, so it cannot forget to change one.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction
from typing import Any
from uuid import UUID

from session_lifecycle import End, SessionListFilters, SessionStatus, Touch, UsageEvent, Viewer
from session_lifecycle.models.usage import RARE_CLASSES

ABANDON_AFTER = timedelta(seconds=1800)
# USD per million tokens, input and output; every other model is unpriced.
PRICES = {"priced": (Decimal("0.37"), Decimal("1.01"))}
SEARCH_USD = Decimal("0.005")
"""USD for a web search by a model with a price. Audio has none, so its use is unpriced."""
PARTS = ("tokens_in", "tokens_out", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")
Key = tuple[UUID, str]
LifecycleItem = Touch | UsageEvent | End


@dataclass
class Session:
    """A session without its usage."""

    user_id: UUID
    session_id: str
    started_at: datetime
    last_activity_at: datetime
    dataset_id: UUID | None = None
    agent_name: str | None = None
    title: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    status: str = "running"
    ended_at: datetime | None = None
    last_model: str | None = None
    last_model_at: datetime | None = None
    tags: dict[str, str] = field(default_factory=dict)
    parent_session_id: str | None = None
    end_reason: str | None = None
    waiting_since: datetime | None = None

    @property
    def key(self) -> Key:
        return self.user_id, self.session_id


@dataclass
class Entry:
    """An event of the ledger, and the session that counts it."""

    event: UsageEvent
    session: Key
    late: bool
    in_ledger: bool
    at: datetime

    @property
    def price(self) -> Decimal | None:
        return price_of(self.event)

    @property
    def is_plan(self) -> bool:
        return self.event.billing == "plan"

    @property
    def cost(self) -> Decimal | None:
        """What the sums of costs count: the price of plan usage is no cost."""
        return Decimal(0) if self.is_plan else self.price


def price_of(event: UsageEvent) -> Decimal | None:
    if event.cost_usd is not None:
        return Decimal(event.cost_usd)
    if not event.measured:
        return None
    if not event.has_use:
        return Decimal(0)
    model = (event.model or "").lower()
    if model not in PRICES or event.audio_tokens_in or event.service_tier != "standard":
        return None
    into, out = PRICES[model]
    return (event.tokens_in * into + event.tokens_out * out) / 1_000_000 + event.web_searches * SEARCH_USD


def content(event: UsageEvent) -> tuple[Any, ...]:
    counts = (getattr(event, part) for part in (*PARTS, *RARE_CLASSES))
    model = None if event.model is None else event.model.lower()
    return (
        *(model, *counts, event.cost_usd, event.errored, event.measured),
        *(event.billing, event.kind, event.service_tier),
    )


def rank(event: UsageEvent) -> tuple[int, ...]:
    """Of the copies with one key, the one that counts: a lower bound gives way to larger counts and to final ones."""
    if not event.partial:
        return event.revision, 1
    return event.revision, 0, event.tokens_in, event.tokens_out


class Model:
    """Applies the rules. `now` is the database's clock."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.sessions: dict[Key, Session] = {}
        self.entries: list[Entry] = []
        self.by_key: dict[tuple[UUID, str | None, str], Entry] = {}

    # Writing

    def record(self, item: LifecycleItem) -> Any:
        """The outcome; for usage also the cost and the session's totals after it."""
        match item:
            case Touch():
                return self._touch(item)
            case End():
                return self._end(item)
            case UsageEvent():
                return self._use(item)

    def _touch(self, item: Touch) -> str:
        at, found = item.at or self.now, self.sessions.get((item.user_id, item.session_id))
        if found is None:
            self.sessions[item.user_id, item.session_id] = Session(
                *(item.user_id, item.session_id, at, at, item.dataset_id, item.agent_name, item.title),
                dict(item.metadata),
                tags=dict(item.tags),
                parent_session_id=item.parent_session_id,
                waiting_since=at if item.waiting else None,
            )
            return "created"
        if found.status != "running":
            return "terminal"
        self._activity(found, at, given=item.at is not None, waiting=item.waiting)
        found.dataset_id = found.dataset_id or item.dataset_id
        found.agent_name = found.agent_name or item.agent_name
        found.title = found.title or item.title
        found.parent_session_id = found.parent_session_id or item.parent_session_id
        found.metadata = {**item.metadata, **found.metadata}
        found.tags = {**item.tags, **found.tags}
        return "touched"

    @staticmethod
    def _activity(session: Session, at: datetime, *, given: bool, waiting: bool = False) -> None:
        since = session.waiting_since
        if waiting:
            session.waiting_since = max(since or at, at)
        elif since is not None and (at > since or (at == since and not given)):
            session.waiting_since = None  # what happens now is after all that is there
        session.last_activity_at = max(session.last_activity_at, at)
        session.started_at = min(session.started_at, at)

    def _end(self, item: End) -> str:
        found = self.sessions.get((item.user_id, item.session_id))
        if found is None:
            return "unknown"
        if found.status != "running":
            return "already_ended"
        found.status, found.ended_at = SessionStatus(item.status).value, item.at or self.now
        found.end_reason, found.waiting_since = item.reason, None
        return "ended"

    def reopen(self, user_id: UUID, session_id: str, at: datetime | None) -> str:
        found = self.sessions.get((user_id, session_id))
        if found is None:
            return "unknown"
        if found.status == "running":
            return "already_running"
        found.status, found.ended_at, found.end_reason = "running", None, None
        found.last_activity_at = max(found.last_activity_at, at or self.now)
        return "reopened"

    def update(self, user_id: UUID, session_id: str, changes: Mapping[str, Any]) -> dict[str, Any] | None:
        """The session with these fields replaced, without its effective status; None where there is none."""
        found = self.sessions.get((user_id, session_id))
        if found is None:
            return None
        for name, value in changes.items():
            setattr(found, name, {} if value is None and name in {"metadata", "tags"} else value)
        row = self.row(found)
        del row["effective_status"]
        return row

    def delete(self, user_id: UUID, session_id: str) -> bool:
        """Whether the session was there. Its events go with it, and so do their keys."""
        key = user_id, session_id
        self.entries = [entry for entry in self.entries if entry.session != key]
        self.by_key = {name: entry for name, entry in self.by_key.items() if entry.session != key}
        return self.sessions.pop(key, None) is not None

    def _use(self, event: UsageEvent) -> tuple[Any, ...]:
        named = (event.user_id, event.session_id)
        if event.is_nothing:
            return ("nothing", Decimal(0), *self.totals(named))
        at = event.at or self.now
        scope = None if event.key_scope == "user" else event.session_id
        key = None if event.idempotency_key is None else (event.user_id, scope, event.idempotency_key)
        held = self.by_key.get(key) if key else None
        # A key of the user's scope belongs to the session that names the earliest time of its use. A late event also
        # moves to a session where it is in time.
        moves = (
            held is not None
            and held.session != named
            and (at < held.at or (held.late and not self._is_late(named, event)))
        )
        counted_in = named if held is None or moves else held.session
        session = self.sessions.get(counted_in)
        late = self._is_late(counted_in, event)

        outcome = "frozen" if late else "applied"
        if held is not None:
            outcome = self._against(held, event, late=late, moves=moves)
            if outcome != "replaced" and not (outcome == "frozen" and held.late):
                return (outcome, held.price, *self.totals(counted_in))
            self.entries.remove(held)
        if session is None:
            session = self.sessions[counted_in] = Session(*counted_in, at, at, event.dataset_id)
        earliest = at if held is None or event.key_scope == "session" else min(at, held.at)
        entry = Entry(event, counted_in, late, bool(key or late or event.is_measurement), earliest)
        self.entries.append(entry)
        if key:
            self.by_key[key] = entry
        if not late:
            if event.touch:
                self._activity(session, at, given=event.at is not None)
            if counted_in == named:
                session.dataset_id = session.dataset_id or event.dataset_id
            if event.model and (session.last_model_at is None or at >= session.last_model_at):
                session.last_model, session.last_model_at = event.model, at
        return (outcome, entry.price, *self.totals(counted_in))

    def _is_late(self, key: Key, event: UsageEvent) -> bool:
        """Whether the event is from after the end of this session. Now is after any end, whatever the clock says."""
        ended_at = self.sessions[key].ended_at if key in self.sessions else None
        return ended_at is not None and (event.at is None or event.at > ended_at)

    @staticmethod
    def _against(held: Entry, event: UsageEvent, *, late: bool, moves: bool) -> str:
        new, old = rank(event), rank(held.event)
        if held.late and not late and new != old:
            return "replaced"  # usage from before the end wins over late usage, in any order of arrival
        if new < old:
            return "superseded"
        instead = "frozen" if late else "replaced"
        if new > old:
            return instead
        same = instead if moves else "duplicate"
        return same if content(event) == content(held.event) else "conflict"

    # Counting

    def counted(self, keys: Collection[Key]) -> list[Entry]:
        return [entry for entry in self.entries if entry.session in keys and not entry.late]

    def totals(self, key: Key) -> tuple[int, int, Decimal]:
        counted = self.counted({key})
        return (
            sum(entry.event.tokens_in for entry in counted),
            sum(entry.event.tokens_out for entry in counted),
            sum((entry.cost or Decimal(0) for entry in counted), Decimal(0)),
        )

    def figures(self, keys: Collection[Key]) -> dict[str, Any]:
        """The sums over the events of these sessions."""
        counted = self.counted(keys)
        late = [entry for entry in self.entries if entry.session in keys and entry.late]
        return {
            **{part: sum(getattr(entry.event, part) for entry in counted) for part in PARTS},
            "cost_usd": sum((entry.cost or Decimal(0) for entry in counted), Decimal(0)),
            "error_count": sum(entry.event.errored for entry in counted),
            "unpriced_events": sum(entry.cost is None and entry.event.measured for entry in counted),
            **further(counted),
            "unmeasured_events": sum(not entry.event.measured for entry in counted),
            "late_events": len(late),
            "late_cost_usd": sum((entry.cost or Decimal(0) for entry in late), Decimal(0)),
        }

    def status(self, session: Session) -> str:
        if session.status == "running" and session.waiting_since == session.last_activity_at:
            return "waiting"
        if session.status == "running" and self.now - session.last_activity_at > ABANDON_AFTER:
            return "abandoned"
        return session.status

    def row(self, session: Session) -> dict[str, Any]:
        """A session as a read returns it."""
        row = {name: value for name, value in vars(session).items() if name not in {"last_model_at", "waiting_since"}}
        return {**row, **self.figures({session.key}), "effective_status": self.status(session)}

    # Reading

    def visible(self, viewer: Viewer, since: datetime | None = None, until: datetime | None = None) -> list[Session]:
        return [
            session
            for session in self.sessions.values()
            if (
                viewer.sees_all
                or session.user_id in {viewer.user_id, *viewer.agent_user_ids}
                or session.dataset_id in viewer.permitted_dataset_ids
            )
            and (since is None or session.last_activity_at >= since)
            and (until is None or session.last_activity_at < until)
        ]

    def get(
        self, session_id: str, viewer: Viewer, *, prefer_other_owner: bool, owner_id: UUID | None
    ) -> dict[str, Any] | None:
        found = [
            session
            for session in self.visible(viewer)
            if session.session_id == session_id and owner_id in {None, session.user_id}
        ]

        def preference(session: Session) -> tuple[Any, ...]:
            own = session.user_id == viewer.user_id
            of_agents = session.user_id in viewer.agent_user_ids
            return own == prefer_other_owner, not (own or of_agents), -session.last_activity_at.timestamp()

        return self.row(min(found, key=lambda one: (*preference(one), one.user_id))) if found else None

    def rows(self, filters: SessionListFilters) -> list[dict[str, Any]]:
        """All rows that the filters choose, in order; pages are slices of this list."""
        rows = [self.row(session) for session in self.visible(filters.asker, filters.since, filters.until)]
        rows = [
            row
            for row in rows
            if filters.status_filter in {None, row["effective_status"]}
            and filters.owner_id in {None, row["user_id"]}
            and filters.dataset_id in {None, row["dataset_id"]}
            and filters.agent_name in {None, row["agent_name"]}
        ]
        column = filters.order_by if filters.order_by in ORDERS else "last_activity_at"

        def ordered(rows: Iterable[dict[str, Any]]) -> Sequence[dict[str, Any]]:
            return sorted(
                rows,
                key=lambda row: (row[column] or 0, row["user_id"], row["session_id"]),
                reverse=filters.descending,
            )

        return [
            *ordered(row for row in rows if row[column] is not None),
            *ordered(row for row in rows if row[column] is None),
        ]

    def stats(self, viewer: Viewer, since: datetime | None, until: datetime | None) -> dict[str, Any]:
        sessions = self.visible(viewer, since, until)
        figures = self.figures({session.key for session in sessions})
        statuses = [self.status(session) for session in sessions]
        names = ("completed", "failed", "abandoned", "running", "waiting")
        counts = {status: statuses.count(status) for status in names}
        counts["running"] += counts["waiting"]
        judged = len(sessions) - counts["running"]
        # Whole microseconds, since a sum of floats depends on its order.
        microseconds = sum(
            max(timedelta(0), (session.ended_at or session.last_activity_at) - session.started_at)
            // timedelta(microseconds=1)
            for session in sessions
        )
        return {
            **counts,
            "sessions": len(sessions),
            "total_spend_usd": figures["cost_usd"],
            "avg_spend_per_session_usd": average(figures["cost_usd"], len(sessions)),
            "tokens_in": figures["tokens_in"],
            "tokens_out": figures["tokens_out"],
            "tokens_total": figures["tokens_in"] + figures["tokens_out"],
            "agent_time_s": microseconds / 1_000_000,
            "avg_session_s": microseconds / (1_000_000 * len(sessions)) if sessions else 0.0,
            "success_rate": counts["completed"] / judged if judged else 1.0,
            **{name: figures[name] for name in OF_STATS},
        }

    def costs(self, viewer: Viewer, since: datetime | None, until: datetime | None) -> list[dict[str, Any]]:
        keys = {session.key for session in self.visible(viewer, since, until)}
        measured = [entry for entry in self.counted(keys) if entry.event.is_measurement]
        rows = []
        for model in {name_of(entry) for entry in measured}:
            entries = [entry for entry in measured if name_of(entry) == model]
            rows.append(
                {
                    "model": model,
                    "session_count": len({entry.session for entry in entries}),
                    "cost_usd": sum((entry.cost or Decimal(0) for entry in entries), Decimal(0)),
                    **{part: sum(getattr(entry.event, part) for entry in entries) for part in PARTS},
                    "events": len(entries),
                    "unpriced_events": sum(entry.cost is None and entry.event.measured for entry in entries),
                    **further(entries),
                }
            )
        return sorted(rows, key=lambda row: (-row["cost_usd"], row["model"]))


def name_of(entry: Entry) -> str:
    """The model's name without case, as reports group it."""
    return (entry.event.model or "unknown").lower()


def further(entries: Collection[Entry]) -> dict[str, Any]:
    """The figures that few events add to."""
    plan = [entry for entry in entries if entry.is_plan and entry.event.is_measurement]
    return {
        "partial_events": sum(entry.event.partial and entry.event.is_measurement for entry in entries),
        "plan_events": len(plan),
        "plan_tokens_in": sum(entry.event.tokens_in for entry in plan),
        "plan_tokens_out": sum(entry.event.tokens_out for entry in plan),
        "plan_cost_usd": sum((entry.price or Decimal(0) for entry in plan), Decimal(0)),
        "plan_unpriced_events": sum(entry.price is None and entry.event.measured for entry in plan),
        **{name: sum(getattr(entry.event, name) for entry in entries) for name in RARE_CLASSES},
    }


OF_STATS = (
    *("unpriced_events", "unmeasured_events", "late_events", "late_cost_usd", "partial_events"),
    *("plan_events", "plan_tokens_in", "plan_tokens_out", "plan_cost_usd", "plan_unpriced_events"),
)
ORDERS = ("last_activity_at", "started_at", "ended_at", "cost_usd", "tokens_in", "tokens_out", "error_count")


def average(total: Decimal, count: int) -> Decimal:
    if not count:
        return Decimal(0)
    with localcontext() as context:
        context.prec = 60
        exact = Fraction(total) / count
        return (Decimal(exact.numerator) / exact.denominator).quantize(Decimal("1e-10"), rounding=ROUND_HALF_EVEN)
