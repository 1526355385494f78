"""`cost_by_user_agent`: the type of an agent in SQL is `SessionRecord.agent_type`."""

from collections import defaultdict
from decimal import Decimal
from itertools import product
from typing import Any
from uuid import UUID

from session_lifecycle import SessionDatabase, SessionListFilters, Touch, UsageEvent, Viewer
from session_lifecycle.models import Item
from support.usage import A

B = UUID(int=2)
PREFIXES = ("claude-code-", "codex-", "claude-code", "codex", "Codex-", "x-codex-")
METADATA: tuple[dict[str, Any], ...] = (
    {}, {"agent_type": "Z"}, {"agent_type": ""}, {"agent_type": None}, {"agent_type": 5}, {"agent_type": ["a"]},
    {"other": "agent_type"},
)  # fmt: skip


async def test_the_rule_is_the_same_in_python_and_in_sql(session_database: SessionDatabase) -> None:
    items: list[Item] = []
    for number, (prefix, metadata, name, user) in enumerate(product(PREFIXES, METADATA, (None, "coder"), (A, B))):
        session_id = f"{prefix}{number}"
        items.append(Touch(session_id=session_id, user_id=user, agent_name=name, metadata=metadata))
        items.append(UsageEvent(session_id=session_id, user_id=user, tokens_in=number, cost_usd=Decimal(number) / 8))
    await session_database.lifecycle.record(items)
    viewer = Viewer(A, (), [B])
    page = await session_database.lifecycle.list_session_rows(SessionListFilters(viewer=viewer, limit=500))
    expected: dict[tuple[UUID, str | None], list[Any]] = defaultdict(lambda: [0, Decimal(0), 0])
    for row in page.sessions:
        sums = expected[row.record.user_id, row.record.agent_type]
        sums[0] += 1
        sums[1] += row.record.cost_usd
        sums[2] += row.record.tokens_in
    assert {kind for _, kind in expected} == {None, "Z", "coder", "claude-code", "codex"}
    rows = await session_database.reports.cost_by_user_agent(viewer)
    found = {(row.user_id, row.agent_type): [row.session_count, row.cost_usd, row.tokens_in] for row in rows}
    assert found == expected
    assert [row.cost_usd for row in rows] == sorted((row.cost_usd for row in rows), reverse=True)
    stats = await session_database.lifecycle.aggregate_stats(viewer)
    assert sum(row.cost_usd for row in rows) == stats.total_spend_usd
    assert {row.user_id for row in await session_database.reports.cost_by_user_agent(A)} == {A}


async def test_ties_go_by_user_and_type_with_none_last(session_database: SessionDatabase) -> None:
    for user in (B, A):
        await session_database.lifecycle.record(
            [Touch(session_id=name, user_id=user) for name in ("plain", "codex-1", "claude-code-1")]
        )
    rows = await session_database.reports.cost_by_user_agent(Viewer(A, (), [B]))
    assert [(row.user_id, row.agent_type) for row in rows] == list(product((A, B), ("claude-code", "codex", None)))
