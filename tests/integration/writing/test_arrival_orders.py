"""Copies of one event in every order of arrival: partial and final, revised and late, in one session or in several."""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import combinations, permutations
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest

from session_lifecycle import End, SessionDatabase, Touch, UsageEvent
from session_lifecycle.models import PriceOverride
from support.lifecycle_model import PRICES, Model, content, rank
from support.stored_rows import ask
from support.usage import outcomes

NOW = datetime.now(UTC)
MINUTE = timedelta(minutes=1)
ENDED = {"ended late": NOW - 30 * MINUTE, "ended early": NOW - 60 * MINUTE}
"""When the sessions ended that have."""
COUNTERS = "late_events, late_cost_usd, cost_usd, tokens_in, tokens_out, unpriced_events, further_totals::text"
TOTALS = f"SELECT session_id, {COUNTERS} FROM session_records WHERE user_id = :user ORDER BY session_id"
BY_MODEL = """
    SELECT session_id, model, events, cost_usd, tokens_in, further_totals::text FROM session_model_usage
    WHERE user_id = :user AND events > 0 ORDER BY session_id, model_key
"""
LEDGER = """
    SELECT session_id, late, revision, partial, billing, tokens_in, tokens_out, cost_usd, plan_cost_usd, parts::text
    FROM session_usage_events WHERE user_id = :user ORDER BY session_id, event_id
"""


def drawn(random: Random, scope: str, sessions: Sequence[str], most: int) -> list[UsageEvent]:
    """Copies of one event."""
    fields: dict[str, Any] = {"user_id": UUID(int=1), "model": "priced", "idempotency_key": "k", "key_scope": scope}
    fields |= random.choice([{}, {"billing": "plan"}, {"web_searches": 2}, {"model": "unpriced"}])
    copies = []
    for _ in range(random.randrange(2, most + 1)):
        revision, partial = random.choice([0, 0, 1]), random.random() < 0.5
        counts = random.choice([(5, 1), (5, 3), (10, 3), (7, 9)]) if partial else (10 + revision, 5)
        at = NOW - random.choice([10, 45, 90, 91, 92]) * MINUTE
        where = {"session_id": random.choice(sessions), "at": at, "revision": revision, "partial": partial}
        copies.append(UsageEvent(**fields, **where, tokens_in=counts[0], tokens_out=counts[1]))
    return copies


def has_one_answer(copies: Sequence[UsageEvent]) -> bool:
    """Whether the rules say what the totals are.

    A conflict is the caller's fault, and a copy that says the same as one before it in its session changes nothing.
    Copies in several sessions are those of a conversation and its forks: the earliest is the whole one, and where
    sessions have ended all are equal. An earlier copy with a lower revision or count does not move what is there.
    """
    for one, other in combinations(copies, 2):
        is_repeated = one.session_id == other.session_id and one.at != other.at
        if rank(one) == rank(other) and (content(one) != content(other) or is_repeated):
            return False
    sessions = {copy.session_id for copy in copies}
    if len(sessions) == 1:
        return True
    first, second, *_ = sorted(copies, key=lambda copy: copy.at or NOW)
    ranks = {rank(copy) for copy in copies}
    is_whole = rank(first) == max(ranks) and sessions.isdisjoint(ENDED)
    return first.at != second.at and (len(ranks) == 1 or is_whole)


def outcomes_in_model(copies: Sequence[UsageEvent]) -> list[str]:
    model = Model(NOW)
    for item in beginnings(UUID(int=1)):
        model.record(item)
    return [model.record(copy)[0] for copy in copies]


def exact(value: Any) -> Any:
    """The value, or the object whose JSON it is."""
    return json.loads(value, parse_float=Decimal) if isinstance(value, str) and value.startswith("{") else value


def beginnings(user: UUID) -> Iterator[Touch | End]:
    for session_id, ended_at in ENDED.items():
        yield Touch(session_id=session_id, user_id=user, at=NOW - 200 * MINUTE)
        yield End(session_id=session_id, user_id=user, status="completed", at=ended_at)


@pytest.mark.parametrize(
    ("scope", "sessions"),
    [
        ("session", ["ended early"]),
        ("session", ["open"]),
        ("user", ["ended early"]),
        ("user", ["open", "other"]),
        ("user", ["open", *ENDED]),
    ],
)
async def test_R06_X08_X51_every_order_of_arrival_gives_the_same_totals(
    session_database_url: str, scope: str, sessions: list[str]
) -> None:
    prices = [
        PriceOverride(model_pattern=model, input_usd_per_million=into, output_usd_per_million=out)
        for model, (into, out) in PRICES.items()
    ]
    random = Random(51)
    async with SessionDatabase.connect(session_database_url, prices=prices) as db:
        tried = 0
        while tried < 12:
            copies = drawn(random, scope, sessions, 3)
            if not has_one_answer(copies):
                continue
            tried += 1
            expected: Any = None
            for order in permutations(copies):
                user = uuid4()
                own = [copy.model_copy(update={"user_id": user}) for copy in order]
                await db.lifecycle.record([*beginnings(user)])
                receipts = [receipt for copy in own for receipt in await db.lifecycle.record([copy])]
                assert outcomes(receipts) == outcomes_in_model(order)
                found = [
                    [[*map(exact, row)] for row in await ask(db, sql, user=user)] for sql in (TOTALS, BY_MODEL, LEDGER)
                ]
                # A session that only later copies name need not exist.
                found[0] = [row for row in found[0] if any(row[1:])]
                assert expected in (None, found), order
                expected = found
        assert (await db.maintenance.reconcile()).mismatches == []
