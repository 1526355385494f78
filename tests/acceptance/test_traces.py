"""Rows of the traces table: a trace is a run, a span a step, and a model span a usage event keyed by its id."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError

from session_lifecycle import Run, RunFilters, Step, SummaryFilters, UsageEvent
from session_lifecycle.models import Item, RunDetail, SessionSummary
from support.world import World

A = UUID(int=1)


def clock(text: str) -> datetime:
    """A time of the day of the traces."""
    return datetime.fromisoformat(f"2026-01-01T{text}+00:00").astimezone(UTC)


def trace(run_id: str, session: str | None, started: str, ended: str | None = None, **more: Any) -> Run:
    end = None if ended is None else clock(ended)
    return Run(run_id=run_id, user_id=A, session_id=session, started_at=clock(started), ended_at=end, **more)


def model_span(session: str, run_id: str, key: str, at: str, cost: str, tokens: tuple[int, int] = (0, 0)) -> UsageEvent:
    return UsageEvent(
        session_id=session,
        user_id=A,
        model="m",
        tokens_in=tokens[0],
        tokens_out=tokens[1],
        cost_usd=Decimal(cost),
        run_id=run_id,
        idempotency_key=key,
        at=clock(at),
        key_scope="user",
    )


async def trace_the_table(world: World) -> None:
    await world.record(
        trace("t1", "A", "10:00:00", "10:00:02", reported_cost_usd=0.5, reported_tokens=100, quality_score=0.5),
        model_span("A", "t1", "a", "10:00:00", "0.2", (10, 20)),
        model_span("A", "t1", "b", "10:00:01", "0.1", (0, 5)),
        trace("t2", "A", "10:00:05", "10:00:06.5"),
        model_span("A", "t2", "c", "10:00:06", "0.25", (30, 0)),
        Step(step_id="without figures", run_id="t2", user_id=A, kind="span", started_at=clock("10:00:06")),
        trace("t3", "A", "10:00:10", quality_score=0.9),
        trace("b", "B", "09:00:00", "11:00:00", project="mastra"),
        trace("c", "C", "12:00:00", project="default"),
        trace("n", "N", "08:00:00", "07:59:59", project=""),
        trace("x1", "X", "13:00:00", "13:00:01", project="openclaw", reported_cost_usd=1),
        trace("x2", "X", "13:00:10", "13:00:12", project="mastra", reported_cost_usd=2),
    )


def figures(summary: SessionSummary) -> tuple[int, float, Decimal]:
    return summary.runs_count, summary.total_duration_ms, summary.cost_usd


def run_figures(run: RunDetail) -> tuple[float | None, Decimal, int]:
    return run.duration_ms, run.cost_usd, run.tokens_total


async def test_T01_a_session_is_the_sum_of_its_runs(world: World) -> None:
    await trace_the_table(world)
    summary = await world.summary("A")
    assert figures(summary) == (3, 3500.0, Decimal("0.75"))
    assert (summary.tokens_in, summary.tokens_out) == (40, 25)
    assert (summary.tokens_total, summary.tokens_unattributed) == (130, 65)
    assert (summary.first_seen, summary.last_seen) == (clock("10:00:00"), clock("10:00:10"))
    assert summary.wall_duration_ms == 10_000.0


async def test_T02_quality_is_the_mean_of_the_given_scores(world: World) -> None:
    await trace_the_table(world)
    assert (await world.summary("A")).quality_score == 0.7
    assert (await world.summary("B")).quality_score is None


async def test_T03_the_list_is_by_what_was_seen_last(world: World) -> None:
    await trace_the_table(world)
    assert await world.summarised() == ["X", "C", "B", "A", "N"]


async def test_T04_the_default_project_is_the_project_without_a_name(world: World) -> None:
    await trace_the_table(world)
    assert await world.summarised(project="default") == await world.summarised(project="") == ["C", "A", "N"]


async def test_T05_a_project_limits_sessions_and_figures(world: World) -> None:
    await trace_the_table(world)
    found = await world.summaries(project="mastra")
    assert [summary.session_id for summary in found] == ["X", "B"]
    assert figures(found[0]) == (1, 2000.0, Decimal(2))
    assert found[1].total_duration_ms == 7_200_000.0


async def test_T06_without_a_project_every_run_counts(world: World) -> None:
    await trace_the_table(world)
    assert figures(await world.summary("X", project="openclaw")) == (1, 1000.0, Decimal(1))
    summary = await world.summary("X")
    assert figures(summary) == (2, 3000.0, Decimal(3))
    assert summary.wall_duration_ms == 12_000.0


async def test_T07_the_name_of_a_project_is_matched_literally(world: World) -> None:
    await trace_the_table(world)
    assert await world.summarised(project="Mastra") == await world.summarised(project="nope") == []


@pytest.mark.parametrize("bad", [{"limit": 0}, {"limit": 501}, {"offset": -1}])
def test_T08_a_limit_out_of_bounds_is_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match=next(iter(bad))):
        SummaryFilters(**bad)
    with pytest.raises(ValidationError, match=next(iter(bad))):
        RunFilters(**bad)


async def test_T09_there_is_no_detail_without_a_run_in_the_project(world: World) -> None:
    await trace_the_table(world)
    assert await world.activity.get_session_detail("nope", A) is None
    assert await world.activity.get_session_detail("X", A, project="default") is None


async def test_T10_the_runs_of_a_detail_add_up_to_its_header(world: World) -> None:
    await trace_the_table(world)
    detail = await world.detail("A")
    assert [run_figures(run) for run in detail.runs] == [
        (2000.0, Decimal("0.5"), 100),
        (1500.0, Decimal("0.25"), 30),
        (None, 0, 0),
    ]
    header = detail.summary
    assert header.total_duration_ms == sum(run.duration_ms or 0 for run in detail.runs)
    assert header.cost_usd == sum(run.cost_usd for run in detail.runs)
    assert header.tokens_total == sum(run.tokens_total for run in detail.runs)


async def test_T11_a_detail_has_a_project_and_flags_negative_durations(world: World) -> None:
    await trace_the_table(world)
    detail = await world.detail("X", project="mastra")
    assert [run.run_id for run in detail.runs] == ["x2"]
    assert figures(detail.summary) == (1, 2000.0, Decimal(2))
    summary = await world.summary("N")
    assert (summary.total_duration_ms, summary.wall_duration_ms, summary.flags) == (0.0, 0.0, ("negative_duration",))


async def test_T12_durations_are_exact(world: World) -> None:
    await world.record(trace("t", "s", "10:00:00.000900", "10:00:00.001100"))
    summary = await world.summary()
    assert (summary.total_duration_ms, summary.wall_duration_ms) == (0.2, 0.2)
    detail = await world.detail()
    assert detail.runs[0].duration_ms == 0.2


async def test_T13_money_is_exact(world: World) -> None:
    await world.record(
        trace("t", "small", "10:00:00"),
        *(model_span("small", "t", key, "10:00:00", "4e-9") for key in "ab"),
        *(trace(f"t{number}", "ten", "10:00:00", reported_cost_usd=0.1) for number in range(10)),
    )
    assert (await world.summary("small")).cost_usd == Decimal("8e-9")
    assert (await world.summary("ten")).cost_usd == Decimal(1)


def test_T14_a_negative_cost_is_refused() -> None:
    with pytest.raises(ValidationError, match="cost_usd"):
        model_span("s", "t", "a", "10:00:00", "-0.1")


LAST_SPAN: list[Item] = [
    trace("t", "S2", "10:00:02"),
    Step(step_id="other", run_id="t", user_id=A, kind="span", started_at=clock("10:00:02"), ended_at=clock("10:00:09")),
    # It names a session of its own, and counts in its trace's session.
    model_span("S2", "t", "other", "10:00:09", "0.5", (1, 2)),
]


async def trace_of_three_spans(world: World) -> None:
    """Records two child spans that each name a session, and between them the root, which names none."""
    await world.record(
        trace("t", "S1", "10:00:01"),
        Step(step_id="child", run_id="t", user_id=A, kind="span", started_at=clock("10:00:01")),
    )
    await world.record(trace("t", None, "10:00:00", "10:00:03"))
    await world.record(*LAST_SPAN)


async def assert_is_in_s1(world: World) -> None:
    assert await world.summarised() == await world.summarised(project="default") == ["S1"]
    summary = await world.summary("S1")
    assert figures(summary) == (1, 3000.0, Decimal("0.5"))
    assert (summary.tokens_total, summary.last_seen) == (3, clock("10:00:09"))


async def test_T15_a_trace_belongs_to_the_session_first_named(world: World) -> None:
    await trace_of_three_spans(world)
    await assert_is_in_s1(world)


async def test_T16_the_last_span_again_changes_nothing(world: World) -> None:
    await trace_of_three_spans(world)
    await world.record(*LAST_SPAN)
    await assert_is_in_s1(world)


@pytest.mark.parametrize("session", ["S3", "", None])
async def test_T17_the_trace_again_with_another_session_changes_nothing(world: World, session: str | None) -> None:
    await trace_of_three_spans(world)
    again = model_span(session or "t", "t", "other", "10:00:09", "0.5", (1, 2))
    await world.record(trace("t", session, "10:00:00", "10:00:03"), again)
    await assert_is_in_s1(world)


async def test_T18_spans_arrive_in_any_order(world: World) -> None:
    for second in ("05", "01"):
        await world.record(
            trace("t", "s", f"10:00:{second}"),
            Step(step_id=second, run_id="t", user_id=A, kind="span", started_at=clock(f"10:00:{second}")),
        )
    assert (await world.summary()).first_seen == clock("10:00:01")


async def test_T19_the_sum_that_an_agent_gives_is_a_report(world: World) -> None:
    await world.record(
        trace("t", "s", "10:00:00", reported_cost_usd=0.01, reported_tokens=150),
        model_span("s", "t", "a", "10:00:00", "0.006", (0, 50)),
    )
    summary = await world.summary()
    assert (summary.cost_usd, summary.tokens_total, summary.tokens_out) == (Decimal("0.01"), 150, 50)


async def test_T20_any_name_may_be_a_project(world: World) -> None:
    await world.record(trace("t", "s", "10:00:00", project="Prod"))
    detail = await world.detail(project="Prod")
    assert [run.project for run in detail.runs] == ["Prod"]


async def test_T21_an_evaluation_may_arrive_later(world: World) -> None:
    await world.record(trace("t", "s", "10:00:00", "10:00:01"))
    await world.record(trace("t", "s", "10:00:00", "10:00:01", quality_score=0.7))
    assert (await world.summary()).quality_score == 0.7


async def test_T23_a_span_without_a_cost_is_priced(world: World) -> None:
    await world.record(
        trace("t", "s", "10:00:00"),
        UsageEvent(
            session_id="s",
            user_id=A,
            model="gpt-4o-mini",
            tokens_in=1000,
            tokens_out=500,
            run_id="t",
            idempotency_key="a",
            at=clock("10:00:00"),
        ),
    )
    summary = await world.summary()
    assert (summary.cost_usd, summary.tokens_total) == (Decimal("0.00045"), 1500)
    [event] = (await world.detail()).runs[0].events
    assert (event.cost_usd, event.model, event.tokens_in) == (Decimal("0.00045"), "gpt-4o-mini", 1000)


async def test_T26_a_page_and_a_detail_are_one_statement_each(world: World) -> None:
    start = clock("10:00:00")
    await world.record(
        *(
            Run(
                run_id=f"t{number}",
                user_id=A,
                session_id="s",
                started_at=start + timedelta(seconds=number),
                reported_cost_usd=1,
            )
            for number in range(300)
        )
    )
    await world.record(*(trace(f"of {number}", f"s{number}", "09:00:00") for number in range(20)))
    filters = SummaryFilters(user_id=A)
    await world.activity.list_session_summaries(filters)
    assert len(await world.statements(world.activity.list_session_summaries(filters))) == 1
    assert figures(await world.summary())[::2] == (300, Decimal(300))
    assert len(await world.statements(world.activity.get_session_detail("s", A))) == 1
