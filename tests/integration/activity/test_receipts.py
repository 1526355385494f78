"""Receipts of a batch with runs: they are the same, whatever else is in the batch."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

from session_lifecycle import End, Message, Run, SessionDatabase, Touch, UsageEvent
from session_lifecycle.models import Item
from support.usage import A

BEGIN = datetime(2026, 3, 1, 12, tzinfo=UTC)
WAVES = 6


def of_a_run(user_id: UUID) -> Sequence[Item]:
    """A run is recorded twice. It reports a cost before its events, which cost more, come in several waves."""
    key = {"user_id": user_id, "run_id": "r"}
    at = [BEGIN + timedelta(minutes=number) for number in range(6)]
    report = {"started_at": BEGIN, "ended_at": at[5], "status": "completed", "reported_cost_usd": Decimal("0.1")}
    return [
        Run.model_validate({**key, "session_id": "s", **report}),
        Run.model_validate({**key, "agent_name": "planner", **report}),
        UsageEvent(**key, session_id="s", tokens_in=6, at=at[1], idempotency_key="1"),
        Touch(user_id=user_id, session_id="s", tags={"team": "b"}, at=at[2]),
        Message(user_id=user_id, session_id="s", message_id="m", role="user", content="z", created_at=at[3]),
        UsageEvent(**key, session_id="s", tokens_in=4, cost_usd=12, at=at[4], idempotency_key="2"),
    ]


def of_somebody(user_id: UUID, waves: int) -> Sequence[Item]:
    """A session with a run, which ends after so many waves."""
    report = {"started_at": BEGIN, "reported_cost_usd": Decimal(3)}
    begun = Run.model_validate({"user_id": user_id, "run_id": "r", "session_id": "s", **report})
    tags = [Touch(user_id=user_id, session_id="s", tags={"wave": str(wave)}) for wave in range(waves)]
    return [begun, *tags, End(user_id=user_id, session_id="s", status="completed")]


async def test_receipts_do_not_depend_on_what_others_have_in_the_batch(session_database: SessionDatabase) -> None:
    record = session_database.lifecycle.record
    alone = await record(of_a_run(A))
    assert str(alone[2].session_cost_usd) == "0"  # type: ignore[union-attr] # the third item is a usage event
    for waves in range(WAVES):
        mine, others = of_a_run(UUID(int=1000 + waves)), of_somebody(UUID(int=2000 + waves), waves)
        beside = [*others[:1], *mine[:3], *others[1:], *mine[3:]]
        answers = dict(zip(map(id, beside), await record(beside), strict=True))
        assert [answers[id(one)] for one in mine] == alone, waves
        of_others = await record(of_somebody(UUID(int=3000 + waves), waves))
        assert [answers[id(one)] for one in others] == of_others, waves
    assert (await session_database.maintenance.reconcile()).mismatch_count == 0
