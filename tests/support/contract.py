"""The contract suite of `SessionLifecycleDb`: a class for each way in inherits it and gives `lifecycle`."""

import asyncio
from collections import Counter
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from session_lifecycle import (
    End,
    InvalidValueError,
    Message,
    Run,
    SessionLifecycleDb,
    SessionListFilters,
    SessionStatus,
    Step,
    Touch,
    UsageEvent,
    UsageReceipt,
    Viewer,
)
from session_lifecycle.models import Item
from session_lifecycle.writing import waves
from support.usage import outcomes, receipt_of, usage

A, B, C = (UUID(int=number) for number in (1, 2, 3))
D = UUID(int=11)
MINUTE = timedelta(minutes=1)
COMPLETED, FAILED = SessionStatus.COMPLETED, SessionStatus.FAILED


def event(**fields: Any) -> UsageEvent:
    return usage(**{"tokens_in": 10, **fields})


class SessionLifecycleContract:
    """Each test finds an empty, migrated database behind `lifecycle`, a fixture of the inheriting class."""

    async def test_a_session_lives_from_touch_to_end_and_again(self, lifecycle: SessionLifecycleDb) -> None:
        assert await lifecycle.end_session("s", A, COMPLETED) == "unknown"
        assert await lifecycle.reopen_session("s", A) == "unknown"
        assert await lifecycle.ensure_and_touch_session("s", A, agent_name="coder") == "created"
        assert await lifecycle.ensure_and_touch_session("s", A, D) == "touched"
        assert await lifecycle.reopen_session("s", A) == "already_running"
        assert await lifecycle.end_session("s", A, COMPLETED) == "ended"
        assert await lifecycle.end_session("s", A, FAILED) == "already_ended"
        assert await lifecycle.ensure_and_touch_session("s", A) == "terminal"
        found = await lifecycle.get_session_row("s", A)
        assert found is not None
        record = found.record
        assert (record.status, record.dataset_id, record.agent_name) == ("completed", D, "coder")
        assert record.ended_at is not None
        assert await lifecycle.reopen_session("s", A) == "reopened"
        found = await lifecycle.get_session_row("s", A)
        assert found is not None
        assert (found.effective_status, found.record.ended_at) == ("running", None)

    async def test_activity_finds_its_session_and_its_cost(self, lifecycle: SessionLifecycleDb) -> None:
        began = datetime(2026, 1, 1, tzinfo=UTC)
        child = Run(run_id="child", user_id=A, parent_run_id="root", started_at=began + MINUTE)
        step = Step(step_id="1", run_id="child", user_id=A, kind="task", started_at=began + 2 * MINUTE)
        assert await lifecycle.record([step, child]) == ["created", "created"]
        assert await lifecycle.get_session_row("root", A) is None
        root = Run(run_id="root", user_id=A, started_at=began, model="m", reported_cost_usd=2)
        message = Message(message_id="1", user_id=A, session_id="root", role="user", content="hi", created_at=began)
        assert await lifecycle.record([root, message, root]) == ["created", "created", "unchanged"]
        used = event(session_id="root", run_id="root", idempotency_key="k", at=began)
        receipt = await receipt_of(lifecycle, used)
        assert (receipt.outcome, receipt.cost_usd, receipt.session_cost_usd) == ("applied", Decimal(1), Decimal(2))
        # Recorded again, the run names a session; the thread moves there.
        named = Run(run_id="root", user_id=A, session_id="s", started_at=began, ended_at=began + 3 * MINUTE)
        assert await lifecycle.record([named, End(session_id="s", user_id=A, status=COMPLETED)]) == ["updated", "ended"]
        found = await lifecycle.get_session_row("s", A)
        assert found is not None
        record = found.record
        assert (record.started_at, record.last_activity_at) == (began, began + 3 * MINUTE)
        assert (record.cost_usd, record.status, record.late_cost_usd) == (Decimal(1), "completed", Decimal(0))

    async def test_X23_a_run_names_the_parent_of_its_session(self, lifecycle: SessionLifecycleDb) -> None:
        """The first that is named stays, whether by a run or by a touch, and a circle is refused as a whole."""

        def run(session_id: str, parent: str | None = None, **more: Any) -> Run:
            at = datetime(2026, 1, 1, tzinfo=UTC)
            named: dict[str, Any] = {
                "run_id": f"of {session_id}",
                "session_id": session_id,
                "parent_session_id": parent,
            }
            return Run(user_id=A, started_at=at, **named | more)

        async def parents() -> dict[str, str | None]:
            page = await lifecycle.list_session_rows(SessionListFilters(user_id=A))
            return {row.record.session_id: row.record.parent_session_id for row in page.sessions}

        touch = Touch(session_id="c", user_id=A, parent_session_id="another")
        assert await lifecycle.record([run("b", "a"), run("c", "b"), touch]) == ["created", "created", "touched"]
        assert await parents() == {"b": "a", "c": "b"}
        # A run that is there completes its session, and so does one without a parent before it.
        assert await lifecycle.record([run("b", "x"), run("d"), run("d", "c"), run("d", "b")]) == [
            "unchanged", "created", "unchanged", "unchanged",
        ]  # fmt: skip
        assert await parents() == {"b": "a", "c": "b", "d": "c"}
        # A run stays in the session that it named first, and speaks of that session.
        moved = [run("e"), run("f", "d", run_id="of e")]
        assert await lifecycle.record(moved) == ["created", "unchanged"]
        assert (await parents())["e"] == "d"
        for circle in ([run("a", "d")], [run("a", "z"), run("z", "d")], [run("a", "e", run_id="new")]):
            with pytest.raises(InvalidValueError, match="does not descend from this one") as refused:
                await lifecycle.record([run("new"), *circle])
            assert refused.value.field == "parent_session_id"
            assert await parents() == {"b": "a", "c": "b", "d": "c", "e": "d"}
        figures = await lifecycle.get_family_figures("b", A)
        assert figures is not None
        assert figures.with_descendants.sessions == 4

    async def test_a_receipt_has_the_cost_and_the_totals_after_the_call(self, lifecycle: SessionLifecycleDb) -> None:
        first = await lifecycle.accumulate_usage("s", A, "gpt-4o", 100, 50, 0.012, False)
        assert first == UsageReceipt(
            outcome="applied",
            cost_usd=Decimal("0.012"),
            session_tokens_in=100,
            session_tokens_out=50,
            session_cost_usd=Decimal("0.012"),
        )
        priced = await lifecycle.accumulate_usage("s", A, "gpt-4o-mini", 1000, 500)
        assert priced == UsageReceipt(
            outcome="applied",
            cost_usd=Decimal("0.00045"),
            session_tokens_in=1100,
            session_tokens_out=550,
            session_cost_usd=Decimal("0.01245"),
        )
        unpriced = await lifecycle.accumulate_usage("s", A, "no-such-model", 1, 1)
        assert unpriced == UsageReceipt(
            outcome="applied",
            cost_usd=None,
            session_tokens_in=1101,
            session_tokens_out=551,
            session_cost_usd=Decimal("0.01245"),
        )
        nothing = await lifecycle.accumulate_usage("s", A)
        assert nothing == UsageReceipt(
            outcome="nothing",
            cost_usd=Decimal(0),
            session_tokens_in=1101,
            session_tokens_out=551,
            session_cost_usd=Decimal("0.01245"),
        )

    async def test_a_key_counts_once_and_by_its_highest_revision(self, lifecycle: SessionLifecycleDb) -> None:
        steps = [
            (event(idempotency_key="k"), "applied", 10),
            (event(idempotency_key="k"), "duplicate", 10),
            (event(idempotency_key="k", tokens_in=11), "conflict", 10),
            (event(idempotency_key="k", tokens_in=30, revision=2, model="other"), "replaced", 30),
            (event(idempotency_key="k", tokens_in=20, revision=1), "superseded", 30),
            (event(idempotency_key="l"), "applied", 40),
        ]
        for item, outcome, tokens_in in steps:
            receipt = await receipt_of(lifecycle, item)
            assert (receipt.outcome, receipt.session_tokens_in) == (outcome, tokens_in)
        rows = await lifecycle.cost_by_model(A)
        assert [(row.model, row.tokens_in, row.events) for row in rows] == [("m", 10, 1), ("other", 30, 1)]

    async def test_a_batch_has_the_outcomes_of_its_items_one_after_another(self, lifecycle: SessionLifecycleDb) -> None:
        items: list[Item] = [
            Touch(session_id="s", user_id=A, dataset_id=D),
            event(idempotency_key="k"),
            event(idempotency_key="k"),
            event(idempotency_key="k", revision=1, tokens_in=12),
            event(session_id="t", user_id=B),
            End(session_id="s", user_id=A, status="failed"),
            End(session_id="s", user_id=A, status="completed"),
            event(idempotency_key="late"),
            Touch(session_id="s", user_id=A),
        ]
        first = ["created", "applied", "duplicate", "replaced", "applied", "ended", "already_ended"]
        assert outcomes(await lifecycle.record(items)) == [*first, "frozen", "terminal"]
        found = await lifecycle.get_session_row("s", A)
        assert found is not None
        assert (found.record.status, found.record.tokens_in, found.record.late_events) == ("failed", 12, 1)
        assert await lifecycle.record([]) == []

    async def test_a_batch_sent_again_changes_nothing(self, lifecycle: SessionLifecycleDb) -> None:
        batch = [event(session_id=str(number % 3), idempotency_key=str(number)) for number in range(30)]
        for outcome in ("applied", "duplicate"):
            assert set(outcomes(await lifecycle.record(batch))) == {outcome}
            assert (await lifecycle.aggregate_stats(A)).tokens_in == 300

    async def test_a_refused_call_writes_nothing_and_the_next_call_works(self, lifecycle: SessionLifecycleDb) -> None:
        ahead = datetime.now(UTC) + timedelta(hours=1)
        not_a_viewer: Any = "not a viewer"
        refused: dict[str, Awaitable[object]] = {
            "tokens_in": lifecycle.accumulate_usage("s", A, "m", -1),
            "session_id": lifecycle.ensure_and_touch_session(" ", A),
            "status": lifecycle.end_session("s", A, SessionStatus.RUNNING),
            "at": lifecycle.ensure_and_touch_session("s", A, at=ahead),
            "items.1.at": lifecycle.record([event(), event(at=ahead)]),
            "viewer": lifecycle.get_session_row("s", not_a_viewer),
        }
        for field, call in refused.items():
            with pytest.raises(InvalidValueError) as refusal:
                await call
            assert refusal.value.field == field
        assert (await lifecycle.aggregate_stats(Viewer.auditor())).sessions == 0
        assert (await lifecycle.accumulate_usage("s", A, "m", 1)).outcome == "applied"

    async def test_pages_figures_and_costs_agree(self, lifecycle: SessionLifecycleDb) -> None:
        now = datetime.now(UTC)
        await lifecycle.record(
            [
                event(session_id=f"s{number}", tokens_in=number, model=f"m{number % 2}", at=now - number * MINUTE)
                for number in range(1, 12)
            ]
        )
        walked, cursor = [], None
        while True:
            page = await lifecycle.list_session_rows(SessionListFilters(user_id=A, limit=4, cursor=cursor))
            walked += [row.record.session_id for row in page.sessions]
            if not page.has_more:
                break
            cursor = page.next_cursor
        assert walked == [f"s{number}" for number in range(1, 12)]
        stats, costs = await lifecycle.aggregate_stats(A), await lifecycle.cost_by_model(A)
        assert (stats.sessions, page.total, stats.tokens_in, stats.total_spend_usd) == (11, 11, 66, Decimal(11))
        assert sum(row.cost_usd for row in costs) == stats.total_spend_usd
        assert {row.model: row.tokens_in for row in costs} == {"m0": 30, "m1": 36}

    async def test_a_stranger_sees_nothing_by_any_read(self, lifecycle: SessionLifecycleDb) -> None:
        await lifecycle.record([Touch(session_id="s", user_id=A, dataset_id=D), event(), event(user_id=B)])
        for viewer in (Viewer(C), Viewer.of_users([]), Viewer(C, [UUID(int=99)])):
            assert await lifecycle.get_session_row("s", viewer) is None
            page = await lifecycle.list_session_rows(SessionListFilters(viewer=viewer))
            assert (page.sessions, page.total) == ([], 0)
            assert (await lifecycle.aggregate_stats(viewer)).tokens_in == 0
            assert await lifecycle.cost_by_model(viewer) == []
        for viewer, tokens_in in ((Viewer(C, [D]), 10), (Viewer(C, (), [B]), 10), (Viewer(C, [D], [B]), 20)):
            assert (await lifecycle.aggregate_stats(viewer)).tokens_in == tokens_in

    async def test_any_text_is_read_back_unchanged(self, lifecycle: SessionLifecycleDb) -> None:
        for session_id in ("'; DROP TABLE x; --", '%s :name $1 "q"', "\U0001d54f\u202e\x01\n", "x" * 512, "\\", "{}"):
            model = session_id[:100].strip()  # the outer spaces of a model's name do not count
            await lifecycle.accumulate_usage(session_id, A, model, 1, cost_usd=0)
            found = await lifecycle.get_session_row(session_id, A)
            assert found is not None
            assert (found.record.session_id, found.record.last_model) == (session_id, model)

    async def test_X21_a_batch_of_several_statements_is_recorded(
        self, lifecycle: SessionLifecycleDb, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(waves, "PART_BYTES", 1_000)
        at = datetime(2026, 1, 1, tzinfo=UTC)
        runs = [
            Run(run_id=f"r{number}", user_id=A, session_id="s", started_at=at, input="x" * 700) for number in range(5)
        ]
        uses = [event(run_id=f"r{number}", idempotency_key=str(number % 3), at=at) for number in range(5)]
        end = End(session_id="s", user_id=A, status="completed", at=at + MINUTE)
        receipts = await lifecycle.record([*runs, *uses, end])
        assert receipts[:5] == ["created"] * 5
        assert outcomes(receipts[5:10]) == ["applied"] * 3 + ["duplicate"] * 2
        assert receipts[10] == "ended"
        found = await lifecycle.get_session_row("s", A)
        assert found is not None
        assert (found.record.tokens_in, found.record.status) == (30, "completed")

    async def test_many_at_once_lose_and_double_nothing(self, lifecycle: SessionLifecycleDb) -> None:
        async def caller(number: int) -> Counter[str]:
            counted: Counter[str] = Counter()
            for turn in range(6):
                use = event(session_id=str((number + turn) % 3), idempotency_key=f"{number % 6}-{turn}")
                counted[(await receipt_of(lifecycle, use)).outcome] += 1
            return counted

        counted = sum(await asyncio.gather(*map(caller, range(12))), Counter[str]())
        assert counted == {"applied": 36, "duplicate": 36}
        stats = await lifecycle.aggregate_stats(A)
        assert (stats.sessions, stats.tokens_in, stats.total_spend_usd) == (3, 360, Decimal(36))
