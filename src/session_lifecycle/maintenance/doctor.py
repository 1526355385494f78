"""The job `diagnose`: looks at the server, the schema, the role and the data, and says what to do."""

import shlex
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from session_lifecycle._version import __version__
from session_lifecycle.entities import quoted
from session_lifecycle.errors import ConfigurationError, SchemaError, SessionLifecycleError, shortened
from session_lifecycle.maintenance.reconcile import Reconciler
from session_lifecycle.models import Viewer
from session_lifecycle.models.doctor import DatabaseFigures, DoctorReport, Finding, Severity
from session_lifecycle.postgres import permissions
from session_lifecycle.postgres.migrations import is_direct
from session_lifecycle.postgres.pool_execution import PoolExecution
from session_lifecycle.postgres.row_level_security import NOT_SIGNED, row_level_security
from session_lifecycle.postgres.schema_check import (
    SEARCH_INDEX,
    UPGRADE_COMMAND,
    check_everything,
    take_inventory,
)
from session_lifecycle.pricing.catalogue import PriceCatalogue
from session_lifecycle.settings import Settings
from session_lifecycle.statements.maintenance import doctor, reconcile
from session_lifecycle.statements.maintenance.reconcile import SessionKey
from session_lifecycle.statements.reports import costs
from session_lifecycle.statements.shared.visibility import scopes
from session_lifecycle.statements.shared.window import ends_of
from session_lifecycle.writing.spool import Spool
from session_lifecycle.writing.spool_directory import default_path, exists

OLDEST_SERVER = 15
SAMPLE_SESSIONS = 500
MOST_MODELS = 100_000
DAYS_OF_UNPRICED = 7

MOST_SKEW_SECONDS = 5.0
REFUSED_SKEW_SECONDS = 240.0
"""Rule R09 refuses a time that is five minutes ahead of the database."""
MOST_IDLE_SECONDS = 60.0
MOST_LAG_SECONDS = 3600.0
FEW_SESSIONS = 1000
"""Fewer sessions that wait for a roll-up cost no reader anything."""
BLOATED_BYTES = 50_000_000
BLOATED_TIMES = 3.0
MANY_DEAD_ROWS = 10_000
LARGE_TABLE_BYTES = 1_000_000
"""A smaller table is read as a whole in no time, whatever the planner thinks of it."""

ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE

Findings = AsyncIterator[Finding]


class Doctor:
    """Implements `SessionDatabase.diagnose` and `measure`."""

    def __init__(self, execution: PoolExecution, settings: Settings, prices: PriceCatalogue) -> None:
        self._execution = execution
        self._settings = settings
        self._prices = prices
        self._schema = execution.schema
        self._figures: DatabaseFigures | None = None
        self._spool: Path | None = None
        self._role: permissions.DatabaseRole | None = None

    async def diagnose(self, *, full: bool, spool: Path | None, role: permissions.DatabaseRole | None) -> DoctorReport:
        """Makes all checks. A check that the role may not make is a finding."""
        self._spool, self._role = spool, role
        findings: list[Finding] = []
        async with self._execution.connection() as connection:
            before = time.time()
            server = (await connection.execute(doctor.SERVER)).one()
            skew = server.clock - (before + time.time()) / 2
            findings += [*_of_server(server), *_of_clock(skew)]
            inventory = await take_inventory(connection, self._schema)
            serves = await self._add(findings, "schema", lambda: self._of_schema(connection))
            await self._add(findings, "transactions", lambda: self._of_transactions(connection, server))
            await self._add(findings, "pooler", lambda: _of_pooler(connection))
            if inventory.revision is not None:
                await self._add(findings, "indexes", lambda: self._of_indexes(connection))
                await self._add(findings, "tables", lambda: self._of_tables(connection))
                await self._add(findings, "permissions", lambda: self._of_role(connection))
        if serves:
            await self._add(findings, "roll_up", self._of_roll_up)
            await self._add(findings, "prices", self._of_prices)
            await self._add(findings, "ledger", lambda: self._of_ledger(full=full))
        await self._add(findings, "spool", self._of_spool)
        order = list(Severity)
        return DoctorReport(
            library_version=__version__,
            server_version=server.version,
            revision=inventory.revision,
            figures=self._figures,
            findings=tuple(sorted(findings, key=lambda one: order.index(one.severity))),
        )

    async def measure(self) -> DatabaseFigures:
        """Reads the figures."""
        [(sessions, lag)] = await self._execution.fetch(doctor.waiting_for_roll_up(self._settings.abandon_after))
        [(changes,)] = await self._execution.fetch(doctor.changes_to_compact())
        auditor = Viewer.auditor()
        seen = scopes(auditor)
        parameters = {**seen.parameters(), "since": None, "until": None, "row_limit": MOST_MODELS}
        statement = costs.cost_by_model(seen.kinds, ends_of(None, None))
        models = await self._execution.fetch(statement, parameters, viewer=auditor)
        unpriced = [row.unpriced_events for row in models if row.unpriced_events]
        sample, mismatches = await self._sample()
        async with self._execution.connection() as connection:
            idle = (await connection.execute(doctor.IDLE_TRANSACTIONS, {"most": 1})).first()
        return DatabaseFigures(
            sessions_to_roll_up=sessions,
            roll_up_lag_seconds=max(lag, 0.0),
            roll_up_changes=changes,
            unpriced_events=sum(unpriced),
            unpriced_models=len(unpriced),
            drift_sample_sessions=sample,
            drift_sample_mismatches=mismatches,
            idle_in_transaction_seconds=0.0 if idle is None else idle.seconds,
        )

    async def _sample(self) -> tuple[int, int]:
        """How many sessions of a random stretch were compared with the ledger, and how many rows of them differ."""
        fetch = self._execution.fetch
        keys = await fetch(reconcile.sessions(SessionKey(uuid4(), ""), SAMPLE_SESSIONS))
        keys = keys or await fetch(reconcile.sessions(None, SAMPLE_SESSIONS))
        if not keys:
            return 0, 0
        first, last = SessionKey(*keys[0]), SessionKey(*keys[-1])
        between = reconcile.sessions_between(first, last)
        wrong = len(await fetch(reconcile.session_mismatches(), between))
        return len(keys), wrong + len(await fetch(reconcile.model_mismatches(), between))

    async def _add(self, findings: list[Finding], check: str, look: Callable[[], Findings]) -> bool:
        """Adds what a check finds. Returns whether it found nothing but notes."""
        before = len(findings)
        try:
            async for finding in look():
                findings.append(finding)  # noqa: PERF401 - what was found before an error stays
        except ConfigurationError as error:
            do = "session-lifecycle db roles --check operator"
            findings.append(Finding(check=check, severity=WARNING, says=f"could not be checked: {error}", do=do))
        return all(one.severity is NOTE for one in findings[before:])

    async def _of_schema(self, connection: AsyncConnection) -> Findings:
        try:
            advice = await check_everything(connection, self._schema)
        except SchemaError as error:
            says, _, do = str(error).rpartition(": ")
            yield Finding(check="schema", severity=ERROR, says=says, do=do.removeprefix("run ").strip("`"))
            return
        if advice:
            trigrams = (await connection.execute(doctor.TRIGRAMS)).one()
            says = f"index {SEARCH_INDEX} is missing, so a search reads all messages it may find"
            if not trigrams.is_there:
                says += "; the extension pg_trgm is not created"
                if not trigrams.is_available:
                    says += " and not installed on the server"
            create = "" if trigrams.is_there else 'psql -c "CREATE EXTENSION pg_trgm" && '
            # Where the server does not have the extension, the database is as good as it can be there.
            severity = WARNING if trigrams.is_available else NOTE
            yield Finding(check="search", severity=severity, says=says, do=f"{create}{UPGRADE_COMMAND}")

    async def _of_transactions(self, connection: AsyncConnection, server: Row[Any]) -> Findings:
        for one in await connection.execute(doctor.IDLE_TRANSACTIONS, {"most": doctor.MOST_NAMES}):
            if one.seconds > MOST_IDLE_SECONDS:
                yield Finding(
                    check="transactions",
                    severity=WARNING,
                    says=f"process {one.pid} ({shortened(one.application)}) has been idle in a transaction for "
                    f"{one.seconds:.0f} s: it holds its locks, and no dead row of since can be removed",
                    do=f"SELECT pg_terminate_backend({one.pid})",
                )
        for one in await connection.execute(doctor.PREPARED_TRANSACTIONS, {"most": doctor.MOST_NAMES}):
            if one.seconds > MOST_IDLE_SECONDS:
                literal = "'{}'".format(one.gid.replace("'", "''"))
                yield Finding(
                    check="transactions",
                    severity=WARNING,
                    says=f"transaction {shortened(one.gid)} was prepared {one.seconds:.0f} s ago and holds its locks",
                    do=f"ROLLBACK PREPARED {literal}",
                )
        if not server.sees_others:
            yield Finding(
                check="transactions",
                severity=NOTE,
                says=f"role {server.role} sees its own transactions only",
                do=f"GRANT pg_read_all_stats TO {quoted(server.role)}",
            )

    async def _of_indexes(self, connection: AsyncConnection) -> Findings:
        for name in (await connection.execute(doctor.INVALID_INDEXES, {"schema": self._schema})).scalars():
            yield Finding(
                check="indexes",
                severity=ERROR,
                says=f"index {name} is invalid: its build was interrupted, no read uses it and every write keeps it",
                do=f"DROP INDEX CONCURRENTLY {quoted(self._schema)}.{quoted(name)}; then {UPGRADE_COMMAND}",
            )
        asked = {
            "schema": self._schema,
            "least_bytes": BLOATED_BYTES,
            "times": BLOATED_TIMES,
            "most": doctor.MOST_NAMES,
        }
        for one in await connection.execute(doctor.BLOATED_INDEXES, asked):
            yield Finding(
                check="bloat",
                severity=WARNING,
                says=f"index {one.name} takes {one.bytes:,} bytes where about {one.expected_bytes:,} would do",
                do=f"REINDEX INDEX CONCURRENTLY {quoted(self._schema)}.{quoted(one.name)}",
            )

    async def _of_tables(self, connection: AsyncConnection) -> Findings:
        asked = {"schema": self._schema, "least_bytes": LARGE_TABLE_BYTES}
        for one in await connection.execute(doctor.TABLE_HEALTH, asked):
            place = f"{quoted(self._schema)}.{quoted(one.name)}"
            if one.is_without_statistics:
                yield Finding(
                    check="statistics",
                    severity=WARNING,
                    says=f"table {one.name} has rows and no statistics, as after a restore, so plans are guesses",
                    do=f"ANALYZE {place}",
                )
            if one.dead > MANY_DEAD_ROWS and one.dead > one.live:
                yield Finding(
                    check="vacuum",
                    severity=WARNING,
                    says=f"table {one.name} has {one.dead:,} dead rows and {one.live:,} live ones",
                    do=f"VACUUM (ANALYZE) {place}",
                )

    async def _of_role(self, connection: AsyncConnection) -> Findings:
        if self._role is not None:
            report = await permissions.check_role(connection, self._schema, self._role)
            for severity, what, rights, do in (
                (ERROR, "lacks", report.missing, f"session-lifecycle db roles --role {self._role}"),
                (WARNING, "does not need", report.excess, permissions.revoke_advice(report, self._schema)),
            ):
                if rights:
                    yield Finding(
                        check="permissions",
                        severity=severity,
                        says=f"role {report.role} as a {report.checked_as} {what}: {', '.join(rights)}",
                        do=do,
                    )
        state = await row_level_security(connection, self._schema, self._settings)
        do = "session-lifecycle db rls enable"
        if state.is_walled_in and not self._settings.row_level_security:
            do = "set SESSION_LIFECYCLE_ROW_LEVEL_SECURITY=true and the key where this role reads"
        for problem in state.problems:
            is_of_key = problem.startswith(NOT_SIGNED)
            do_this = "set SESSION_LIFECYCLE_ROW_LEVEL_SECURITY_KEY to the key of `db rls enable`" if is_of_key else do
            yield Finding(check="row_level_security", severity=ERROR, says=problem, do=do_this)
        if state.is_walled_in and not state.problems:
            # The reads of jobs have no viewer, so such a role sees nothing by them, and their figures are 0.
            yield Finding(
                check="row_level_security",
                severity=NOTE,
                says=f"role {state.role} is walled in: sessions to roll up and drift from the ledger were not sought",
                do="session-lifecycle doctor as a trusted role",
            )

    async def _of_roll_up(self) -> Findings:
        self._figures = figures = await self.measure()
        if figures.sessions_to_roll_up >= FEW_SESSIONS and figures.roll_up_lag_seconds > MOST_LAG_SECONDS:
            many = "or more " if figures.sessions_to_roll_up == doctor.MOST_SESSIONS else ""
            yield Finding(
                check="roll_up",
                severity=WARNING,
                says=f"{figures.sessions_to_roll_up:,} {many}sessions wait to be rolled up, the oldest for "
                f"{figures.roll_up_lag_seconds:,.0f} s, so reports read them one by one",
                do="session-lifecycle roll-up",
            )
        elif figures.roll_up_changes == doctor.MOST_CHANGES:
            yield Finding(
                check="roll_up",
                severity=WARNING,
                says=f"{doctor.MOST_CHANGES:,} or more changes wait to be put into the roll-ups",
                do="session-lifecycle roll-up",
            )

    async def _of_prices(self) -> Findings:
        await self._prices.load()
        now = datetime.now(UTC)
        for one in await self._execution.fetch(doctor.unpriced_of_late(DAYS_OF_UNPRICED)):
            named = f"model {shortened(one.model)}" if one.model else "no model"
            of_provider = f" of provider {shortened(one.provider)}" if one.provider else ""
            price = self._prices.price(
                model=one.model, provider=one.provider or None, at=now, tokens_in=1, tokens_out=1
            )
            if price is not None:
                do = f"session-lifecycle reprice --model {shlex.quote(one.model)}"
            elif one.model is None:
                do = "have the runtime name the model of its usage events"
            else:
                given = f", provider={one.provider!r}" if one.provider else ""
                override = f"PriceOverride(model_pattern={one.model!r}{given}, …)"
                do = f"in Python: SessionDatabase.connect(…, prices=[{override}]), then db.maintenance.reprice()"
            yield Finding(
                check="prices",
                severity=WARNING,
                says=f"{one.events:,} events of the last {DAYS_OF_UNPRICED} days are unpriced: {named}{of_provider}",
                do=do,
            )

    async def _of_ledger(self, *, full: bool) -> Findings:
        if full:
            report = await Reconciler(self._execution, repair=False).reconcile()
            looked_at, wrong = report.sessions_looked_at, report.mismatch_count
        elif self._figures is not None:
            looked_at, wrong = self._figures.drift_sample_sessions, self._figures.drift_sample_mismatches
        else:
            return
        if wrong:
            yield Finding(
                check="ledger",
                severity=ERROR,
                says=f"{wrong:,} totals differ from the ledger in {looked_at:,} sessions that were compared",
                do="session-lifecycle reconcile --repair",
            )

    async def _of_spool(self) -> Findings:
        path = self._spool or default_path()
        if not exists(path):
            return
        try:
            with Spool(path) as spool:
                found = spool.status()
        except SessionLifecycleError as error:
            yield Finding(check="spool", severity=ERROR, says=str(error), do=f"ls -la {path}")
            return
        at = "" if self._spool is None else f" --path {path}"
        if found.poison:
            yield Finding(
                check="spool",
                severity=WARNING,
                says=f"{found.poison:,} items of the spool were refused and set aside",
                do=f"session-lifecycle spool poison{at}",
            )
        if found.items and not found.is_draining:
            yield Finding(
                check="spool",
                severity=WARNING,
                says=f"{found.items:,} items wait in the spool, and nobody delivers them",
                do=f"session-lifecycle spool drain{at}",
            )
        if found.bytes > found.max_bytes * 0.8:
            yield Finding(
                check="spool",
                severity=WARNING,
                says=f"the spool has {found.bytes:,} of its {found.max_bytes:,} bytes",
                do=f"session-lifecycle spool drain{at}",
            )


async def _of_pooler(connection: AsyncConnection) -> Findings:
    if not await is_direct(connection):
        yield Finding(
            check="pooler",
            severity=NOTE,
            says="a pooler that shares connections stands before the server: pass pgbouncer=True to "
            "SessionDatabase.connect, and migrate on a direct connection, so that indexes are built beside writers",
            do=None,
        )


def _of_server(server: Row[Any]) -> list[Finding]:
    found: list[Finding] = []

    def add(check: str, severity: Severity, says: str, do: str | None) -> None:
        found.append(Finding(check=check, severity=severity, says=says, do=do))

    if server.version_number < OLDEST_SERVER * 10_000:
        add(
            "version",
            ERROR,
            f"the server is PostgreSQL {server.version}, expected {OLDEST_SERVER} or newer",
            "pg_upgrade",
        )
    for name in ("fsync", "full_page_writes"):
        if getattr(server, name) != "on":
            add(
                "durability",
                ERROR,
                f"{name} is off: a crash of the machine can destroy the database",
                f"ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf()",
            )
    if server.synchronous_commit in {"off", "local"}:
        add(
            "durability",
            WARNING,
            f"synchronous_commit is {server.synchronous_commit}: what a call has acknowledged can be lost",
            "ALTER SYSTEM SET synchronous_commit = on; SELECT pg_reload_conf()",
        )
    for name in ("autovacuum", "track_counts"):
        if getattr(server, name) != "on":
            add(
                "vacuum",
                WARNING,
                f"{name} is off: dead rows stay, and statistics grow old",
                f"ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf()",
            )
    if server.server_encoding != "UTF8":
        add(
            "encoding",
            ERROR,
            f"the encoding of the database is {server.server_encoding}, expected UTF8",
            "CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0, and move the data there",
        )
    if server.is_replica:
        add("replica", NOTE, "the server is a replica, which takes no writes", None)
    return found


def _of_clock(skew_seconds: float) -> list[Finding]:
    """Findings on how far the clock of the server is ahead of this machine's."""
    if abs(skew_seconds) <= MOST_SKEW_SECONDS:
        return []
    which = "ahead of" if skew_seconds > 0 else "behind"
    return [
        Finding(
            check="clock",
            severity=ERROR if abs(skew_seconds) > REFUSED_SKEW_SECONDS else WARNING,
            says=f"the clock of the server is {abs(skew_seconds):,.0f} s {which} the clock of this machine: times "
            "that a program gives look late or early, and five minutes ahead they are refused",
            do="timedatectl set-ntp true",
        )
    ]
