"""Every answer computed in plain Python from the stored rows.

It uses no stored sum, so it does not repeat an error of a roll-up.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any
from uuid import UUID

from sqlalchemy import Text, cast, func, select

from session_lifecycle import SessionDatabase, SessionListFilters, Viewer
from session_lifecycle.models import CostByAgentRow, CostByModelRow, CostByUserRow, SessionStats
from session_lifecycle.models.usage import RARE_CLASSES
from session_lifecycle.statements.maintenance.reconcile_roll_ups import NULL_FOR_ZERO
from session_lifecycle.statements.roll_ups.totals import MODEL_KEYS
from support.lifecycle_model import average
from support.stored_rows import table

Row = Mapping[str, Any]
Key = tuple[UUID, str]
TOKENS = ("tokens_in", "tokens_out", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")
# The totals that few sessions have; the rows keep them as one object.
FURTHER = (
    *("partial_events", "plan_events", "plan_tokens_in", "plan_tokens_out", "plan_cost_usd", "plan_unpriced_events"),
    *RARE_CLASSES,
)
BY_MODEL = ("cost_usd", *TOKENS, "events", "unpriced_events", *FURTHER)
OF_SESSION = (
    "cost_usd",
    "tokens_in",
    "tokens_out",
    "duration_us",
    "unpriced_events",
    "unmeasured_events",
    "late_events",
    "late_cost_usd",
    *FURTHER,
)
READ = (
    "session_records",
    "session_model_usage",
    "rolled_up_sessions",
    "session_roll_ups",
    "session_model_roll_ups",
    "session_roll_up_changes",
    "session_model_roll_up_changes",
)
# The roll-ups: buckets, the changes they do not hold yet, the column that divides a family, and the summed columns.
ROLL_UPS = (
    ("session_roll_ups", "session_roll_up_changes", "status", OF_SESSION),
    ("session_model_roll_ups", "session_model_roll_up_changes", "model", BY_MODEL),
)
ORIGIN = datetime(2000, 1, 1, tzinfo=UTC)
LENGTHS = {"hour": 1, "6 hours": 6, "36 hours": 36, "9 days": 216, "54 days": 1296, "324 days": 7776}
"""The lengths of buckets, in hours."""
NOBODY = UUID(int=0)
MICROSECOND = timedelta(microseconds=1)


def key_of(row: Row) -> Key:
    return row["user_id"], row["session_id"]


def expanded(row: Row) -> dict[str, Any]:
    """The row, with its further totals as columns."""
    rest = dict(row)
    further = rest.pop("further_totals", None) or {}
    if isinstance(further, str):
        further = json.loads(further, parse_float=Decimal, parse_int=Decimal)
    assert further.keys() <= set(FURTHER)
    return {**rest, **{name: Decimal(further.get(name, 0)) for name in FURTHER}}


def exact_sum(rows: Iterable[Row], column: str) -> Any:
    """The sum, to the last digit; zero for no rows."""
    with localcontext(prec=200):
        return sum((row[column] for row in rows), Decimal(0))


def duration_us(session: Row) -> int:
    lasted = (session["ended_at"] or session["last_activity_at"]) - session["started_at"]
    return int(max(timedelta(0), lasted) // MICROSECOND)


def reported(models: Iterable[Row]) -> list[dict[str, Any]]:
    """A session's usage by model as reports give it: each name once, without rows that revisions emptied."""
    by_name: dict[str, list[Row]] = defaultdict(list)
    for row in models:
        if row["events"] or row["tokens_in"] or row["tokens_out"] or row["cost_usd"]:
            by_name[row["model"].lower() or "unknown"].append(row)
    return [
        {
            "model": min(row["model"] or "unknown" for row in rows),
            **{column: exact_sum(rows, column) for column in BY_MODEL},
        }
        for rows in by_name.values()
    ]


@dataclass(frozen=True)
class Stored:
    """All rows behind the answers, from one snapshot; `now` is the database's clock in that snapshot."""

    now: datetime
    tables: Mapping[str, Sequence[Row]]

    @classmethod
    async def of(cls, db: SessionDatabase) -> "Stored":
        """The rows stored now, also while others write."""
        snapshot = db.engine.execution_options(isolation_level="REPEATABLE READ")
        async with snapshot.connect() as connection:
            now: datetime = (await connection.execute(select(func.statement_timestamp()))).scalar_one()
            tables: dict[str, Sequence[Row]] = {}
            for name in READ:
                # Read as text, because the driver would read JSON's numbers as floats.
                as_text = {"models", "further_totals"}
                columns = [cast(one, Text).label(one.name) if one.name in as_text else one for one in table(name).c]
                tables[name] = [expanded(dict(row)) for row in (await connection.execute(select(*columns))).mappings()]
            return cls(now, tables)

    @property
    def sessions(self) -> Sequence[Row]:
        return self.tables["session_records"]

    def models_of(self, sessions: Iterable[Row]) -> dict[Key, list[dict[str, Any]]]:
        """The usage by model of each session."""
        rows: dict[Key, list[Row]] = {key_of(session): [] for session in sessions}
        for row in self.tables["session_model_usage"]:
            if key_of(row) in rows:
                rows[key_of(row)].append(row)
        return {key: reported(models) for key, models in rows.items()}

    def visible(self, viewer: Viewer, since: datetime | None, until: datetime | None) -> list[Row]:
        return [
            session
            for session in self.sessions
            if (
                viewer.sees_all
                or session["user_id"] in viewer.owner_ids
                or session["dataset_id"] in viewer.permitted_dataset_ids
            )
            and (since is None or session["last_activity_at"] >= since)
            and (until is None or session["last_activity_at"] < until)
        ]

    def status(self, session: Row, abandon_after: timedelta) -> str:
        waiting_since = session["waiting_since"]
        if session["status"] == "running" and waiting_since and waiting_since >= session["last_activity_at"]:
            return "waiting"
        is_idle = session["last_activity_at"] < self.now - abandon_after
        return "abandoned" if session["status"] == "running" and is_idle else session["status"]

    def stats(
        self, viewer: Viewer, since: datetime | None, until: datetime | None, abandon_after: timedelta
    ) -> SessionStats:
        sessions = self.visible(viewer, since, until)
        counts = Counter(self.status(session, abandon_after) for session in sessions)
        counts["running"] += counts["waiting"]
        judged = len(sessions) - counts["running"]
        seconds = Fraction(sum(map(duration_us, sessions)), 1_000_000)
        tokens_in, tokens_out = (int(exact_sum(sessions, column)) for column in ("tokens_in", "tokens_out"))
        spend = exact_sum(sessions, "cost_usd")
        return SessionStats(
            sessions=len(sessions),
            total_spend_usd=spend,
            avg_spend_per_session_usd=average(spend, len(sessions)),
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            tokens_total=tokens_in + tokens_out,
            agent_time_s=float(seconds),
            avg_session_s=float(seconds / len(sessions)) if sessions else 0.0,
            success_rate=counts["completed"] / judged if judged else 1.0,
            **{status: counts[status] for status in ("completed", "failed", "abandoned", "running", "waiting")},
            **{
                name: exact_sum(sessions, name)
                for name in OF_SESSION
                if name in SessionStats.model_fields and name not in {"tokens_in", "tokens_out"}
            },
        )

    def cost_by_model(self, viewer: Viewer, since: datetime | None, until: datetime | None) -> list[CostByModelRow]:
        # A session has each name once, so counting rows counts sessions.
        models = [row for rows in self.models_of(self.visible(viewer, since, until)).values() for row in rows]
        # Names that differ in case only are one model, which has the spelling that comes first.
        spelt: dict[str, str] = {}
        for row in models:
            name = row["model"].lower()
            spelt[name] = min(row["model"], spelt.get(name, row["model"]))
        return self._costs(CostByModelRow, "model", lambda row: spelt[row["model"].lower()], models, BY_MODEL)

    def cost_by_agent(self, viewer: Viewer, since: datetime | None, until: datetime | None) -> list[CostByAgentRow]:
        sessions = self.visible(viewer, since, until)
        columns = ("cost_usd", *TOKENS, "unpriced_events")
        return self._costs(CostByAgentRow, "agent_name", lambda row: row["agent_name"] or "unknown", sessions, columns)

    def cost_by_user(self, viewer: Viewer, since: datetime | None, until: datetime | None) -> list[CostByUserRow]:
        sessions = self.visible(viewer, since, until)
        columns = ("cost_usd", *TOKENS, "unpriced_events")
        return self._costs(CostByUserRow, "user_id", lambda row: row["user_id"], sessions, columns)

    @staticmethod
    def _costs(
        kind: Callable[..., Any], name: str, of: Callable[[Row], Any], rows: Iterable[Row], columns: Iterable[str]
    ) -> list[Any]:
        grouped: dict[Any, list[Row]] = defaultdict(list)
        for row in rows:
            grouped[of(row)].append(row)
        counted = [
            {name: group, "session_count": len(members), **{column: exact_sum(members, column) for column in columns}}
            for group, members in grouped.items()
        ]
        return [kind(**row) for row in sorted(counted, key=lambda row: (-row["cost_usd"], row[name]))]

    def chosen(self, filters: SessionListFilters, abandon_after: timedelta) -> list[tuple[Key, str]]:
        """The sessions that the filters choose, each with its effective status, ordered by key."""
        return sorted(
            (key_of(session), status)
            for session in self.visible(filters.asker, filters.since, filters.until)
            for status in [self.status(session, abandon_after)]
            if filters.status_filter in {None, status}
            and filters.owner_id in {None, session["user_id"]}
            and filters.dataset_id in {None, session["dataset_id"]}
            and filters.agent_name in {None, session["agent_name"]}
        )

    def faults(self) -> list[str]:
        """Each difference between the sessions and the roll-ups: kept rows, shares by model, sums of buckets."""
        rolled_up = [session for session in self.sessions if session["rolled_up"]]
        models = self.models_of(rolled_up)
        kept = {key_of(row): dict(row) for row in self.tables["rolled_up_sessions"]}
        if kept.keys() != models.keys():
            return [f"kept or marked as rolled up, but not both: {sorted(kept.keys() ^ models.keys())}"]
        faults = []
        for session in rolled_up:
            row = kept[key_of(session)]
            models_kept = json.loads(row.pop("models"), parse_float=Decimal, parse_int=Decimal)
            share = [expanded({name: one.get(key, 0) for name, key in MODEL_KEYS.items()}) for one in models_kept]
            if row != {column: _kept(column, session[column]) for column in row}:
                faults.append(f"kept with other values: {row}, {session}")
            if _by_name(share) != _by_name(models[key_of(session)]):
                faults.append(f"kept with other usage by model: {share}, {models[key_of(session)]}")
        whole = [{**session, "duration_us": duration_us(session)} for session in rolled_up]
        by_model = [{**session, **row} for session in rolled_up for row in models[key_of(session)]]
        for (buckets, changes, name, figures), shares in zip(ROLL_UPS, (whole, by_model), strict=True):
            columns = ("sessions", *figures)
            # A bucket is kept together with its siblings. Where there is none of them, reads count the sessions.
            kept_places = {_siblings(_place(row)) for row in self.tables["session_roll_ups"]}
            begun = [{"sessions": 1, "starts_at": share["last_activity_at"], **share} for share in shares]
            in_buckets = [((*_place(row), row[name]), row) for row in self.tables[buckets]]
            to_come = [(place, row) for row in self.tables[changes] for place in _places(row, name)]
            kept_only = [
                [(place, row) for place, row in rows if _siblings(place) in kept_places]
                for rows in (in_buckets, to_come, [(place, row) for row in begun for place in _places(row, name)])
            ]
            found, expected = _sums(columns, [*kept_only[0], *kept_only[1]]), _sums(columns, kept_only[2])
            if len(kept_only[0]) < len(in_buckets):
                faults.append(f"{buckets}: buckets without siblings in session_roll_ups")
            faults += [
                f"{buckets} {place}: {found.get(place)}, expected {expected.get(place)}"
                for place in sorted(found.keys() | expected.keys(), key=repr)
                if found.get(place) != expected.get(place)
            ]
            faults += [f"a bucket without sessions: {row}" for row in self.tables[buckets] if row["sessions"] <= 0]
        return faults


def _by_name(models: Iterable[Row]) -> list[Row]:
    # Not by all values: equal numbers of another form, as 0 and 0.00, would come in another order.
    return sorted(models, key=lambda row: row["model"])


def _place(bucket: Row) -> tuple[Any, ...]:
    return tuple(bucket[column] for column in ("family", "user_id", "dataset_id", "level", "starts_at"))


def _kept(column: str, value: Any) -> Any:
    """The value of a session as `rolled_up_sessions` keeps it."""
    return None if column in NULL_FOR_ZERO and value == 0 else value


def _siblings(place: tuple[Any, ...]) -> tuple[Any, ...]:
    """What the buckets have in common that are kept together: the family and its owner, the level, the bucket above."""
    family, user, dataset, level, begin, *_ = place
    above = None if level == "324 days" else _begin(begin, 6 * LENGTHS[level])
    return family, user, dataset, level, above


def _begin(moment: datetime, hours: int) -> datetime:
    return ORIGIN + (moment - ORIGIN) // timedelta(hours=hours) * timedelta(hours=hours)


def _places(row: Row, name: str) -> Iterator[tuple[Any, ...]]:
    """The buckets that hold a session of this user, dataset and last activity."""
    at, user, dataset = row["starts_at"], row["user_id"], row["dataset_id"]
    families = [("all", NOBODY, NOBODY), ("user", user, NOBODY)]
    if dataset is not None:
        families += [("dataset", NOBODY, dataset), ("user_dataset", user, dataset)]
    for family in families:
        for level, hours in LENGTHS.items():
            yield *family, level, _begin(at, hours), row[name]


def _sums(columns: Sequence[str], rows: Iterable[tuple[tuple[Any, ...], Row]]) -> dict[tuple[Any, ...], list[Decimal]]:
    """The sums by bucket, without buckets whose sums are all zero."""
    grouped: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for place, row in rows:
        grouped[place].append(row)
    sums = {place: [exact_sum(members, column) for column in columns] for place, members in grouped.items()}
    return {place: figures for place, figures in sums.items() if any(figures)}
