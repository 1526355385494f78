"""A fleet that was lived with for two weeks: sessions of every status, with all that they can have, and budgets."""

import random
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

from fastapi import FastAPI

from session_lifecycle import End, Message, Run, SessionDatabase, Step, Touch, UsageEvent, Viewer
from session_lifecycle.models import Budget, Item
from session_lifecycle.web.dashboard import dashboard_app
from session_lifecycle.web.live import LiveFeed, live_router
from support.usage import A
from support.web import AGENT, D1, PREFIX, VIEWERS, B

AGENTS = ("researcher", "coder", "reviewer", "support")
MODELS = (
    ("claude-sonnet-4-5", "anthropic"), ("gpt-4o", "openai"), ("gpt-4o-mini", "openai"), ("gemini-2.5-flash", "google"),
    ("in-house-7b", "in-house"),
)  # fmt: skip
TOOLS = ("search", "read_file", "run_tests", "edit_file", "fetch_page")
TITLES = (
    "Mend the nightly build", "Why do invoices round down?", "Summarise the incident of Tuesday",
    "Move the importer to the new API", "Find flaky tests", "Draft the release notes", "Answer ticket 4711",
    "Review the pull request on caching", "Plan the database upgrade", "Translate the onboarding mail",
)  # fmt: skip
FAMILY = "plan-the-upgrade"
SHOWN = "mend-the-build"
"""The session that has something on every view."""


def _session(number: int, now: datetime, chance: random.Random) -> Iterator[Item]:
    owner = (A, A, AGENT, B)[number % 4]
    age = timedelta(hours=chance.uniform(0, 48) if number % 3 else chance.uniform(0, 24 * 14))
    started = now - age - timedelta(minutes=40)
    session_id = f"{chance.choice(('chat', 'task', 'review'))}-{number}"
    model, provider = chance.choice(MODELS)
    agent = chance.choice(AGENTS)
    yield Touch(
        session_id=session_id, user_id=owner, dataset_id=D1 if owner == B else None, agent_name=agent, at=started,
        title=chance.choice(TITLES), tags={"customer": chance.choice(("acme", "globex", "initech"))},
        parent_session_id=FAMILY if owner == A and number % 8 == 0 else None,
    )  # fmt: skip
    at = started
    for turn in range(chance.randint(1, 4)):
        run_id = f"{session_id}-run-{turn}"
        ended = at + timedelta(seconds=chance.lognormvariate(2.5, 0.7))
        failed = chance.random() < 0.08
        yield Run(
            run_id=run_id, user_id=owner, session_id=session_id, agent_name=agent, model=model, provider=provider,
            client=chance.choice(("Cursor", "web", None)), started_at=at, ended_at=ended,
            status="failed" if failed else "completed",
        )  # fmt: skip
        yield Message(
            message_id=f"{run_id}-q", user_id=owner, session_id=session_id, run_id=run_id, role="user", created_at=at,
            content="And now the next part, please.",
        )  # fmt: skip
        for place in range(chance.randint(1, 4)):
            begun = at + (ended - at) * place / 5
            yield Step(
                step_id=f"{run_id}-{place}", run_id=run_id, user_id=owner, kind="tool", name=chance.choice(TOOLS),
                started_at=begun, ended_at=begun + (ended - at) / 6, seq=place,
            )  # fmt: skip
        tokens_in = chance.randint(800, 30_000)
        yield UsageEvent(
            session_id=session_id, user_id=owner, model=model, provider=provider, tokens_in=tokens_in, run_id=run_id,
            cache_read_tokens=tokens_in // 3, tokens_out=chance.randint(80, 2_500), errored=failed, at=ended,
            idempotency_key=run_id, measured=True,
        )  # fmt: skip
        at = ended + timedelta(minutes=chance.uniform(0.5, 6))
    ending = chance.choices(("completed", "failed", "silent"), (8, 1, 1))[0]
    if ending == "completed":
        yield End(session_id=session_id, user_id=owner, status="completed", at=at)
    elif ending == "failed":
        yield End(session_id=session_id, user_id=owner, status="failed", at=at, reason="the tests did not pass")


def _shown(now: datetime) -> Iterator[Item]:
    started = now - timedelta(minutes=14)
    common = {"session_id": SHOWN, "user_id": A}
    yield Touch(
        **common, agent_name="coder", title="Mend the nightly build", tags={"customer": "acme", "branch": "main"},
        at=started, metadata={"repository": "importer", "attempt": 2},
    )  # fmt: skip
    said = (
        ("user", "The nightly build is red since Tuesday. Find out why, and mend it."),
        ("thought", "The log names test_rates. The rates were rounded differently before the change."),
        ("assistant", "The build fails in test_rates: the new rounding is half-even. I will look at the callers."),
        ("user", "Keep half-even. Change the test."),
        ("assistant", "Done. All 412 tests pass, and the branch is pushed."),
    )
    for number, (role, content) in enumerate(said):
        yield Message(
            **common, message_id=f"m-{number}", run_id=f"turn-{1 if number < 3 else 2}", role=role, content=content,
            created_at=started + timedelta(minutes=2 * number),
        )  # fmt: skip
    for turn in (1, 2):
        at = started + timedelta(minutes=5 * (turn - 1))
        run_id = f"turn-{turn}"
        yield Run(
            **common, run_id=run_id, agent_name="coder", model="claude-sonnet-4-5", provider="anthropic",
            client="Cursor", name="Find the cause" if turn == 1 else "Change the test", started_at=at,
            ended_at=at + timedelta(minutes=4), status="completed", quality_score=0.9,
        )  # fmt: skip
        yield Run(
            **common, run_id=f"{run_id}-helper", parent_run_id=run_id, agent_name="reviewer", model="gpt-4o-mini",
            provider="openai", started_at=at + timedelta(seconds=100), ended_at=at + timedelta(seconds=170),
            status="failed" if turn == 1 else "completed", error="out of tokens" if turn == 1 else None,
        )  # fmt: skip
        for number, tool in enumerate(TOOLS):
            begun = at + timedelta(seconds=12 + 30 * number)
            yield Step(
                step_id=f"{run_id}-{tool}", run_id=run_id, user_id=A, kind="tool", name=tool, seq=number,
                started_at=begun, ended_at=begun + timedelta(seconds=8 + 5 * number),
                inputs={"path": f"src/{tool}.py", "line": 12 * number}, output=f"{tool}: 3 results",
                errors=["exit status 1"] if tool == "run_tests" and turn == 1 else None,
            )  # fmt: skip
        for number, (model, provider) in enumerate(MODELS[:2] + MODELS[4:]):
            yield UsageEvent(
                **common, run_id=run_id, model=model, provider=provider, tokens_in=18_000 - 4_000 * number,
                cache_read_tokens=9_000 - 3_000 * number, tokens_out=1_800, at=at + timedelta(minutes=1 + number),
                idempotency_key=f"{run_id}-{number}",
            )  # fmt: skip
    yield UsageEvent(
        **common, model="gpt-4o", measured=False, at=started + timedelta(minutes=12), idempotency_key="no usage"
    )


async def live_in(db: SessionDatabase, sessions: int = 160, *, now: datetime | None = None, seed: int = 7) -> None:
    """Records the fleet of users A and B and of A's agent. The same seed makes the same fleet."""
    now = now or datetime.now(UTC)
    chance = random.Random(seed)
    items = [
        Touch(session_id=FAMILY, user_id=A, title="Plan the database upgrade", agent_name="researcher",
              at=now - timedelta(days=3)),
        *(item for number in range(sessions) for item in _session(number, now, chance)),
        *_shown(now),
    ]  # fmt: skip
    for number, agent in enumerate(AGENTS):
        at = now - timedelta(minutes=1 + 3 * number)
        live, owner = f"live-{number}", (A, AGENT)[number % 2]
        model, provider = MODELS[number]
        items += [
            Touch(session_id=live, user_id=owner, agent_name=agent, title=TITLES[number + 4], at=at),
            UsageEvent(session_id=live, user_id=owner, model=model, provider=provider, tokens_in=4_000 * (number + 1),
                       tokens_out=700, at=at + timedelta(seconds=20), idempotency_key=live),
        ]  # fmt: skip
    items.append(
        Touch(session_id="live-waiting", user_id=A, agent_name="support", title="Answer ticket 4712", waiting=True,
              at=now - timedelta(minutes=50))
    )  # fmt: skip
    for first in range(0, len(items), 200):
        await db.lifecycle.record(items[first : first + 200])
    await db.lifecycle.annotate_session(
        SHOWN, A, "quality", score=0.9, label="resolved", comment="It found the cause at once.", annotator="ann"
    )
    await db.lifecycle.annotate_session(SHOWN, A, "tone", label="friendly", annotator="judge-model")
    budgets = (
        Budget(budget_id="acme-month", user_id=A, limit_usd=Decimal(20), window="month"),
        Budget(budget_id="agent-day", user_id=AGENT, limit_usd=Decimal("0.5"), limit_tokens=500_000, window="day"),
        Budget(budget_id="coder-all", user_id=A, agent_name="coder", limit_tokens=2_000_000),
        Budget(budget_id="trial", user_id=A, limit_usd=Decimal("0.25"), window=timedelta(days=7)),
    )
    for budget in budgets:
        await db.budgets.set_budget(budget)
    await db.budgets.reserve("live-1", AGENT, "gpt-4o", 20_000, 4_000, idempotency_key="in flight")


def lived_in_host(db: SessionDatabase) -> tuple[FastAPI, LiveFeed]:
    """A host that shows user A the pages below `/pages`, and its feed."""
    host, feed = FastAPI(), LiveFeed(db, look_seconds=0.5)
    host.include_router(live_router(db, viewer=viewer_a, feed=feed), prefix=PREFIX)
    pages = dashboard_app(db, viewer=viewer_a, api_path=PREFIX, feed=feed, writable=True, user_emails=_names)
    host.mount("/pages", pages)
    return host, feed


def viewer_a() -> Viewer:
    """User A, signed in."""
    return VIEWERS["a"]


async def _names(user_ids: Iterable[UUID]) -> Mapping[UUID, str]:
    return {user_id: USERS[user_id] for user_id in user_ids if user_id in USERS}


USERS: dict[UUID, str] = {A: "ann@example.com", B: "ben@example.com", AGENT: "ann's agent"}
