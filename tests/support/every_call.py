"""Every public call with its arguments and with what it writes, and rounds in which all of them are made at once."""

import asyncio
import atexit
import hashlib
import inspect
import json
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple
from uuid import UUID, uuid4

import asyncpg

from session_lifecycle import (
    DatabaseUnavailableError,
    End,
    Message,
    RecorderClosedError,
    Run,
    RunFilters,
    SessionActivityDb,
    SessionBudgetsDb,
    SessionDatabase,
    SessionLifecycleDb,
    SessionLifecycleError,
    SessionListFilters,
    SessionMaintenanceDb,
    SessionRecorder,
    SessionReportsDb,
    Step,
    SummaryFilters,
    Touch,
)
from session_lifecycle.maintenance.export_files import FORMAT
from session_lifecycle.models import Budget, Item, PriceOverride
from session_lifecycle.models.transfer import EXPORT_TABLES, FORMAT_VERSION
from session_lifecycle.models.usage_filters import UsageEventFilters
from session_lifecycle.postgres.schema_check import HEAD
from session_lifecycle.settings import DEFAULT_SCHEMA
from session_lifecycle.writing.session_block import SessionBlock
from session_lifecycle.writing.synchronous import SynchronousRecorder, SynchronousSessionBlock
from support.eventually import eventually
from support.usage import usage

PUBLIC: dict[str, type] = {
    "database": SessionDatabase,
    "lifecycle": SessionLifecycleDb,
    "activity": SessionActivityDb,
    "reports": SessionReportsDb,
    "maintenance": SessionMaintenanceDb,
    "budgets": SessionBudgetsDb,
    "recorder": SessionRecorder,
    "synchronous": SynchronousRecorder,
    "block": SessionBlock,
    "synchronous block": SynchronousSessionBlock,
}
NO_CALLS = {
    # They send nothing, or only end what the rounds have begun.
    *("database." + name for name in ("bind", "buckets", "close", "connect", "embedded", "from_engine")),
    *("database." + name for name in ("listening", "metrics", "recorder", "rolling_up", "session")),
    *("database." + name for name in ("roles_on", "synchronous_recorder")),
    *("recorder." + name for name in ("close", "forget_parent", "open", "session", "snapshot", "submit_threadsafe")),
    *("synchronous." + name for name in ("close", "finish", "forget_parent", "session", "snapshot")),
    "recorder.lose",
    # They hand items over, as `submit` does, and return at once.
    *(
        f"{block}.{name}"
        for block in ("block", "synchronous block")
        for name in ("attempt", "begin", "child", "finish", "message", "run")
    ),
    "synchronous.ask",  # what its session blocks make of their calls
    "recorder.write",  # the step of `record` after its arguments are checked
}
PRICES = [PriceOverride(model_pattern="priced", input_usd_per_million=1, output_usd_per_million=1)]
DAYS_AGO = timedelta(days=3)
OLD = timedelta(days=1)


@dataclass
class Caller:
    """A database, and a recorder for each user, which stays the same in every event loop."""

    db: SessionDatabase
    give_up_after: float = 30
    """How many seconds a recorder goes on without the database."""
    lost: set[UUID] = field(default_factory=set)
    """Whose items `on_lost` got."""
    _recorders: dict[UUID, SessionRecorder] = field(default_factory=dict)
    _synchronous: dict[UUID, SynchronousRecorder] = field(default_factory=dict)
    # The default executor has too few threads for calls that wait, and `asyncio.run` waits for all of them.
    _threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(32))

    def recorder(self, user: UUID) -> SessionRecorder:
        if user not in self._recorders:
            self._recorders[user] = self.db.recorder(give_up_after=self.give_up_after, on_lost=self._note)
        return self._recorders[user]

    def synchronous(self, user: UUID) -> SynchronousRecorder:
        if user not in self._synchronous:
            self._synchronous[user] = self.db.synchronous_recorder(give_up_after=self.give_up_after, on_lost=self._note)
        return self._synchronous[user]

    async def in_thread(self, call: Callable[[], object]) -> object:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def close_recorders(self) -> None:
        for recorder in self._recorders.values():
            await recorder.close()
        for synchronous in self._synchronous.values():
            await self.in_thread(synchronous.close)
        self._recorders.clear()
        self._synchronous.clear()

    def _note(self, items: Sequence[Item], error: SessionLifecycleError) -> None:
        assert str(error)
        self.lost.update(item.user_id for item in items)


class Call(NamedTuple):
    """A public call, with arguments."""

    run: Callable[[Caller, UUID], Awaitable[object]]
    written: str | None = None
    """SQL: how much of what the call writes for user $1 stands in the tables, from 0 to 1. None: it writes nothing."""
    waits: bool = True
    """Whether the call asks the database something and waits for the answer."""


def _sessions(condition: str) -> str:
    return f"(SELECT count(*) FROM session_lifecycle.session_records WHERE user_id = $1 AND {condition})::float8"


def _rows(table: str, condition: str = "true") -> str:
    return f"(SELECT count(*) FROM session_lifecycle.{table} WHERE user_id = $1 AND {condition})::float8"


NEW = _sessions("session_id = 'new'")
USED = (
    _sessions("session_id = 'new' AND tokens_in = 1") + " + 10 * " + _sessions("session_id = 'new' AND tokens_in > 1")
)
ENDED = _sessions("session_id = 'open' AND status = 'completed'")
REOPENED = _sessions("session_id = 'ended' AND status = 'running'")
TWO = _sessions("session_id IN ('new', 'newer')") + " / 2"
GONE = "1 - " + _sessions("session_id = 'ended'")
ALL_GONE = "1 - " + _sessions("true") + " / 2"
RESERVED = _rows("session_reservations")
RELEASED = "1 - " + RESERVED


async def _enter(caller: Caller, user: UUID) -> None:
    async with caller.db.session("new", user):
        pass


async def _submit(caller: Caller, user: UUID) -> None:
    recorder = caller.recorder(user)
    await recorder.open()
    recorder.submit(Touch(session_id="new", user_id=user))
    await recorder.flush()


def _in_thread(call: Callable[[SynchronousRecorder, UUID], object]) -> Callable[[Caller, UUID], Awaitable[object]]:
    return lambda caller, user: caller.in_thread(lambda: call(caller.synchronous(user), user))


def _submit_and_flush(recorder: SynchronousRecorder, user: UUID) -> None:
    recorder.submit(Touch(session_id="new", user_id=user))
    recorder.flush()


async def _export(caller: Caller, _user: UUID) -> None:
    async with aclosing(caller.db.maintenance.export("sessions")) as batches:
        async for _ in batches:
            pass


def _export_of(user: UUID) -> Path:
    """The folder of an export that has nothing but the tombstone of this user."""
    folder = Path(tempfile.mkdtemp(prefix="session-lifecycle-export-"))
    tombstone = json.dumps({"user_id": str(user), "erased_at": "2026-01-01T00:00:00Z"})
    tables = {}
    for table in EXPORT_TABLES:
        content = f"{tombstone}\n" if table == "tombstones" else ""
        (folder / f"{table}.jsonl").write_text(content)
        checksum = hashlib.sha256(content.encode()).hexdigest()
        tables[table] = {"file": f"{table}.jsonl", "rows": len(content.splitlines()), "sha256": checksum}
    manifest = {"format": FORMAT, "version": FORMAT_VERSION, "schema_revision": HEAD, "file_format": "jsonl"}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "tables": tables}))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _two(user: UUID) -> list[Item]:
    return [Touch(session_id="new", user_id=user), usage(session_id="newer", user_id=user)]


CALLS: dict[str, Call] = {
    "database.check": Call(lambda on, user: on.db.check()),
    "database.diagnose": Call(lambda on, user: on.db.diagnose()),
    "database.measure": Call(lambda on, user: on.db.measure()),
    "database.migrate": Call(lambda on, user: on.db.migrate()),
    "database.migration_sql": Call(lambda on, user: on.db.migration_sql(), waits=False),
    "lifecycle.ensure_and_touch_session": Call(
        lambda on, user: on.db.lifecycle.ensure_and_touch_session("new", user), NEW
    ),
    "lifecycle.accumulate_usage": Call(
        lambda on, user: on.db.lifecycle.accumulate_usage("new", user, "m", 1, cost_usd=1), USED
    ),
    "lifecycle.accumulate_usage, keyed": Call(
        lambda on, user: on.db.lifecycle.accumulate_usage("new", user, "m", 1, cost_usd=1, idempotency_key="k"), USED
    ),
    "lifecycle.end_session": Call(lambda on, user: on.db.lifecycle.end_session("open", user, "completed"), ENDED),
    "lifecycle.reopen_session": Call(lambda on, user: on.db.lifecycle.reopen_session("ended", user), REOPENED),
    "lifecycle.record": Call(lambda on, user: on.db.lifecycle.record(_two(user)), TWO),
    "lifecycle.update_session": Call(
        lambda on, user: on.db.lifecycle.update_session("ended", user, title="t"), _sessions("title = 't'")
    ),
    "lifecycle.annotate_session": Call(
        lambda on, user: on.db.lifecycle.annotate_session("ended", user, "quality", score=1),
        _rows("session_annotations"),
    ),
    "lifecycle.list_annotations": Call(lambda on, user: on.db.lifecycle.list_annotations("ended", user)),
    "lifecycle.get_family_figures": Call(lambda on, user: on.db.lifecycle.get_family_figures("ended", user)),
    "lifecycle.get_session_row": Call(lambda on, user: on.db.lifecycle.get_session_row("ended", user)),
    "lifecycle.list_session_rows": Call(
        lambda on, user: on.db.lifecycle.list_session_rows(SessionListFilters(user_id=user))
    ),
    "lifecycle.aggregate_stats": Call(lambda on, user: on.db.lifecycle.aggregate_stats(user)),
    "lifecycle.cost_by_model": Call(lambda on, user: on.db.lifecycle.cost_by_model(user)),
    "activity.find_lineage": Call(lambda on, user: on.db.activity.find_lineage(user, "call")),
    "activity.list_session_summaries": Call(
        lambda on, user: on.db.activity.list_session_summaries(SummaryFilters(user_id=user))
    ),
    "activity.get_session_detail": Call(lambda on, user: on.db.activity.get_session_detail("ended", user)),
    "activity.get_recent_activity": Call(lambda on, user: on.db.activity.get_recent_activity("ended", user)),
    "activity.list_threads": Call(lambda on, user: on.db.activity.list_threads("ended", user)),
    "activity.list_runs": Call(lambda on, user: on.db.activity.list_runs(RunFilters(user_id=user))),
    "activity.list_usage_events": Call(
        lambda on, user: on.db.activity.list_usage_events(UsageEventFilters(user_id=user))
    ),
    "activity.list_models": Call(lambda on, user: on.db.activity.list_models(user)),
    "activity.list_clients": Call(lambda on, user: on.db.activity.list_clients(user)),
    "activity.list_agents": Call(lambda on, user: on.db.activity.list_agents(user)),
    "activity.chat_history": Call(lambda on, user: on.db.activity.chat_history("ended", user)),
    "reports.usage": Call(lambda on, user: on.db.reports.usage(user, group_by=["model"])),
    "reports.spend": Call(lambda on, user: on.db.reports.spend(user)),
    "reports.usage_timeseries": Call(
        lambda on, user: on.db.reports.usage_timeseries(
            user, since=datetime(2026, 1, 1, tzinfo=UTC), until=datetime(2026, 1, 9, tzinfo=UTC)
        )
    ),
    "reports.tokens_by_class": Call(lambda on, user: on.db.reports.tokens_by_class(user)),
    "reports.cost_by_agent": Call(lambda on, user: on.db.reports.cost_by_agent(user)),
    "reports.cost_by_user": Call(lambda on, user: on.db.reports.cost_by_user(user)),
    "reports.cost_by_user_agent": Call(lambda on, user: on.db.reports.cost_by_user_agent(user)),
    "reports.session_durations": Call(lambda on, user: on.db.reports.session_durations(user)),
    "reports.run_durations": Call(lambda on, user: on.db.reports.run_durations(user)),
    "reports.telemetry": Call(lambda on, user: on.db.reports.telemetry(user)),
    "reports.list_telemetry_keys": Call(lambda on, user: on.db.reports.list_telemetry_keys(user)),
    "maintenance.reprice": Call(
        lambda on, user: on.db.maintenance.reprice("priced"),
        _rows("session_usage_events", "model = 'priced' AND cost_usd IS NOT NULL"),
    ),
    "maintenance.roll_up": Call(
        lambda on, user: on.db.maintenance.roll_up(), _rows("rolled_up_sessions", "session_id = 'ended'")
    ),
    "maintenance.prune_sessions": Call(
        lambda on, user: on.db.maintenance.prune_sessions(OLD, user_ids=[user]), ALL_GONE
    ),
    "maintenance.prune_payloads": Call(
        lambda on, user: on.db.maintenance.prune_payloads(OLD, user_ids=[user]), "1 - " + _rows("session_messages")
    ),
    "maintenance.delete_session": Call(lambda on, user: on.db.maintenance.delete_session("ended", user), GONE),
    "maintenance.erase_user": Call(lambda on, user: on.db.maintenance.erase_user(user, tombstone=True), ALL_GONE),
    "maintenance.erase_user, anonymised": Call(
        lambda on, user: on.db.maintenance.erase_user(user, usage="anonymise"), ALL_GONE
    ),
    "maintenance.reconcile": Call(
        lambda on, user: on.db.maintenance.reconcile(repair=True), _sessions("session_id = 'ended' AND tokens_in = 1")
    ),
    "maintenance.export": Call(_export),
    "maintenance.import_export": Call(
        lambda on, user: on.db.maintenance.import_export(_export_of(user)), _rows("session_tombstones")
    ),
    "budgets.set_budget": Call(
        lambda on, user: on.db.budgets.set_budget(_budget(user, 7)), _rows("session_budgets", "limit_usd = 7")
    ),
    "budgets.delete_budget": Call(
        lambda on, user: on.db.budgets.delete_budget(str(user)), "1 - " + _rows("session_budgets")
    ),
    "budgets.get_budget": Call(lambda on, user: on.db.budgets.get_budget(str(user), user)),
    "budgets.list_budgets": Call(lambda on, user: on.db.budgets.list_budgets(user)),
    "budgets.would_exceed": Call(lambda on, user: on.db.budgets.would_exceed("new", user, "m", 1, cost_usd=1)),
    "budgets.reserve": Call(
        lambda on, user: on.db.budgets.reserve("new", user, "m", 1, cost_usd=1, idempotency_key="k"), RESERVED
    ),
    "budgets.release": Call(lambda on, user: on.db.budgets.release("new", user, "held"), RELEASED),
    "recorder.ensure_and_touch_session": Call(
        lambda on, user: on.recorder(user).ensure_and_touch_session("new", user), NEW
    ),
    "recorder.accumulate_usage": Call(
        lambda on, user: on.recorder(user).accumulate_usage("new", user, "m", 1, cost_usd=1), USED
    ),
    "recorder.accumulate_usage, keyed": Call(
        lambda on, user: on.recorder(user).accumulate_usage("new", user, "m", 1, cost_usd=1, idempotency_key="k"), USED
    ),
    "recorder.end_session": Call(lambda on, user: on.recorder(user).end_session("open", user, "completed"), ENDED),
    "recorder.reopen_session": Call(lambda on, user: on.recorder(user).reopen_session("ended", user), REOPENED),
    "recorder.record": Call(lambda on, user: on.recorder(user).record(_two(user)), TWO),
    "recorder.submit": Call(_submit, NEW),
    "recorder.flush": Call(lambda on, user: on.recorder(user).flush(), waits=False),
    "synchronous.ensure_and_touch_session": Call(
        _in_thread(lambda recorder, user: recorder.ensure_and_touch_session("new", user)), NEW
    ),
    "synchronous.accumulate_usage": Call(
        _in_thread(lambda recorder, user: recorder.accumulate_usage("new", user, "m", 1, cost_usd=1)), USED
    ),
    "synchronous.end_session": Call(
        _in_thread(lambda recorder, user: recorder.end_session("open", user, "completed")), ENDED
    ),
    "synchronous.reopen_session": Call(
        _in_thread(lambda recorder, user: recorder.reopen_session("ended", user)), REOPENED
    ),
    "synchronous.record": Call(_in_thread(lambda recorder, user: recorder.record(_two(user))), TWO),
    "synchronous.submit": Call(_in_thread(_submit_and_flush), NEW),
    "synchronous.flush": Call(_in_thread(lambda recorder, user: recorder.flush()), waits=False),
    "block.usage": Call(lambda on, user: on.db.session("new", user).usage("m", 1, cost_usd=1), USED),
    "block.touch": Call(lambda on, user: on.db.session("new", user).touch(), NEW),
    "block.end": Call(lambda on, user: on.db.session("open", user).end("completed"), ENDED),
    "block.would_exceed": Call(lambda on, user: on.db.session("new", user).would_exceed(cost_usd=1)),
    "block.reserve": Call(
        lambda on, user: on.db.session("new", user).reserve(cost_usd=1, idempotency_key="k"), RESERVED
    ),
    "block.release": Call(lambda on, user: on.db.session("new", user).release("held"), RELEASED),
    "block, entered and left": Call(_enter, _sessions("session_id = 'new' AND status = 'completed'")),
    "synchronous block.usage": Call(
        _in_thread(lambda recorder, user: recorder.session("new", user).usage("m", 1, cost_usd=1)), USED
    ),
    "synchronous block.touch": Call(_in_thread(lambda recorder, user: recorder.session("new", user).touch()), NEW),
    "synchronous block.would_exceed": Call(
        _in_thread(lambda recorder, user: recorder.session("new", user).would_exceed(cost_usd=1))
    ),
    "synchronous block.reserve": Call(
        _in_thread(lambda recorder, user: recorder.session("new", user).reserve(cost_usd=1, idempotency_key="k")),
        RESERVED,
    ),
    "synchronous block.release": Call(
        _in_thread(lambda recorder, user: recorder.session("new", user).release("held")), RELEASED
    ),
    "synchronous block.end": Call(
        _in_thread(lambda recorder, user: recorder.session("open", user).end("completed")), ENDED
    ),
}


def public_calls() -> set[str]:
    """The names of all public calls, found by looking."""
    found = {
        f"{role}.{name}"
        for role, owner in PUBLIC.items()
        for name, member in inspect.getmembers(owner)
        if not name.startswith("_") and (inspect.isfunction(member) or inspect.ismethod(member))
    }
    return found - NO_CALLS


class Round:
    """The calls, all of them at once, each for a user of its own."""

    def __init__(
        self,
        caller: Caller,
        url: str,
        names: Iterable[str] = CALLS,
        *,
        schema: str = DEFAULT_SCHEMA,
        new_user: Callable[[], UUID] = uuid4,
    ) -> None:
        """Calls nothing yet.

        Args:
            caller: On whose database the calls are made.
            url: The URL of the database without the faults.
            names: Which calls of `CALLS`.
            schema: Where the tables are.
            new_user: Makes the user of a call.
        """
        self._caller = caller
        self._url = url
        self._schema = schema
        self.calls = {name: CALLS[name] for name in names}
        self._users = {name: new_user() for name in self.calls}
        self.tasks: dict[str, asyncio.Task[object]] = {}
        self.outcomes: dict[str, object] = {}
        """What each call returned, or its error."""
        self.stored: dict[str, float] = {}
        """How much of what each call writes stands in the tables."""

    async def prepare(self) -> None:
        """Stores two old sessions for each call: `ended`, with everything a session has, and `open`.

        A call about budgets has a budget, too.
        """
        async with SessionDatabase.connect(self._url) as db:
            await self.prepare_on(db)

    async def prepare_on(self, db: SessionDatabase) -> None:
        """`prepare`, on this database."""
        later = "maintenance.roll_up"
        users = [(name, user) for name, user in self._users.items() if name != later]
        await db.lifecycle.record([item for name, user in users for item in _things(name, user)])
        for name, owner in users:
            if name.endswith(("_budget", "_budgets", ".would_exceed", ".reserve", ".release")):
                await db.budgets.set_budget(_budget(owner, 10))
            if name.endswith(".release"):
                await db.budgets.reserve("new", owner, cost_usd=1, idempotency_key="held")
        # A job skips what another one has locked, so the sessions of the other calls are rolled up before.
        await db.maintenance.roll_up()
        if later in self._users:
            await db.lifecycle.record(_things(later, self._users[later]))
        if (user := self._users.get("maintenance.reconcile")) is not None:
            connection = await asyncpg.connect(self._url)
            await connection.execute(self._here(SPOIL), user)
            await connection.close()

    def _here(self, sql: str) -> str:
        """The SQL over the tables of the round."""
        return sql.replace(f"{DEFAULT_SCHEMA}.", f"{self._schema}.")

    def begin(self) -> None:
        """Begins all calls; none has run yet when this returns."""
        for name, call in self.calls.items():
            self.tasks[name] = asyncio.ensure_future(self._call(call, self._users[name]))

    async def _call(self, call: Call, user: UUID) -> object:
        return await call.run(self._caller, user)

    def cancel(self) -> None:
        """Cancels every call that can be: the thread of a synchronous one goes on."""
        for name, task in self.tasks.items():
            if not name.startswith("synchronous"):
                task.cancel()

    @property
    def waiting(self) -> int:
        """How many calls wait for an answer of the database, as far as this process knows."""
        return sum(not self.tasks[name].done() for name, call in self.calls.items() if call.waits)

    async def end(self, within_seconds: float) -> None:
        """Waits until each call has ended, and notes what it left in the tables. Raises if one does not end in time."""
        _, late = await asyncio.wait(self.tasks.values(), timeout=within_seconds)
        names = [name for name, task in self.tasks.items() if task in late]
        assert not names, f"no answer within {within_seconds} s: {names}"
        for name, task in self.tasks.items():
            self.outcomes[name] = asyncio.CancelledError() if task.cancelled() else task.exception() or task.result()
        await self._caller.close_recorders()
        connection = await asyncpg.connect(self._url)
        try:
            # What the server has begun for a connection that is gone, it still ends.
            async def is_idle() -> bool:
                return bool(await connection.fetchval(BUSY) == 0)

            await eventually(is_idle, within_seconds=within_seconds)
            for name, call in self.calls.items():
                if call.written is not None:
                    self.stored[name] = await connection.fetchval(
                        "SELECT " + self._here(call.written), self._users[name]
                    )

            # Others may be calling at the same time, so this is not said at once.
            async def no_transaction_is_open() -> bool:
                return bool(await connection.fetchval(IN_TRANSACTION) == 0)

            await eventually(no_transaction_is_open, within_seconds=within_seconds)
        finally:
            await connection.close()

    def complaints(self) -> list[str]:
        """What a call said that is not so, or raised that is no error of ours; empty where all is well."""
        found = []
        for name, outcome in self.outcomes.items():
            allowed = self._allowed(name, outcome)
            stored = self.stored.get(name)
            # A migration does not know yet that there is nothing to do.
            is_read = CALLS[name].written is None and name != "database.migrate"
            says_wrong = is_read and getattr(outcome, "may_have_written", False)
            if allowed is None or (stored is not None and stored not in allowed) or says_wrong:
                found.append(f"{name}: {outcome!r}, stored: {stored}, expected: {allowed}")
        return found

    def _allowed(self, name: str, outcome: object) -> set[float] | None:
        """How much may stand in the tables after this outcome; None where there is no such outcome."""
        if isinstance(outcome, asyncio.CancelledError | RecorderClosedError):
            return {0, 1}
        if isinstance(outcome, DatabaseUnavailableError):
            return {0, 1} if outcome.may_have_written else {0}
        if isinstance(outcome, BaseException):
            return {0} if isinstance(outcome, SessionLifecycleError) else None
        # Nobody waits for an item that was submitted.
        return {0} if self._users[name] in self._caller.lost else {1}

    def failed(self) -> dict[str, BaseException]:
        """The errors, by the calls that raised them."""
        return {name: outcome for name, outcome in self.outcomes.items() if isinstance(outcome, BaseException)}


SPOIL = """
    UPDATE session_lifecycle.session_records SET tokens_in = 7 WHERE user_id = $1 AND session_id = 'ended'
"""
# A statement that was parsed, and whose client says no more, counts as active: it keeps its locks.
BUSY = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'active'
"""
IN_TRANSACTION = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'
"""


def _budget(user: UUID, limit_usd: int) -> Budget:
    return Budget(budget_id=str(user), user_id=user, limit_usd=limit_usd)


def _things(name: str, user: UUID) -> list[Item]:
    at = datetime.now(UTC) - DAYS_AGO
    model = "priced" if name == "maintenance.reprice" else "m"
    key = {"session_id": "ended", "user_id": user}
    return [
        Touch(**key, at=at, agent_name="a"),
        usage(**key, at=at, model=model, cost_usd=None, idempotency_key="old"),
        Run(**key, run_id="r", started_at=at, ended_at=at, parent_tool_call_id="call", input={"a": 1}),
        Step(user_id=user, run_id="r", step_id="st", kind="tool", started_at=at, ended_at=at, output="o"),
        Message(**key, message_id="me", role="user", content="c", created_at=at),
        End(**key, status="completed", at=at),
        Touch(session_id="open", user_id=user, at=at),
    ]


async def complaints_of_a_round(caller: Caller, url: str) -> list[str]:
    """Makes all calls in the running event loop, without a fault; returns what is wrong, errors of ours included."""
    round_ = Round(caller, url)
    await round_.prepare()
    round_.begin()
    await round_.end(within_seconds=60)
    return round_.complaints() + [f"{name}: {error!r}" for name, error in round_.failed().items()]
