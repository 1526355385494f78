"""A made-up fleet of agents: the models and agents of every demo, and sessions with a history that goes on.

A session is played turn by turn. The history plays it in the past, at once; the fleet that moves plays it now, in real
time. Everything goes through public calls.

`demo` loads this module before it knows its options, so nothing here loads the library at import.
"""

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, UUID, uuid5

if TYPE_CHECKING:
    from session_lifecycle import SessionDatabase, SessionRecorder
    from session_lifecycle.models import Item

PROVIDERS = {
    "gpt-4o": "openai",
    "gpt-4o-mini": "openai",
    "claude-sonnet-4-5": "anthropic",
    "gemini-2.5-flash": "google",
    "in-house-7b": None,
}
"""The provider of each model. The last model has no price."""
MODELS = tuple(PROVIDERS)
AGENTS = ("researcher", "coder", "reviewer")
CLIENTS = {"researcher": "Notebook", "coder": "Claude Code", "reviewer": "Cursor"}
PEOPLE = ("ann", "ben", "chloe", "dev")
TEAMS = ("search", "billing", "mobile")
CUSTOMERS = ("acme", "globex", "initech", "umbrella")
TASKS = (
    ("Mend the flaky login test", "The test waited for a fixed time. It now waits for the event, and passed 50 times."),
    ("Why does the nightly build fail?", "A cache key has no version of the compiler. I added it; the build is green."),
    (
        "Compare three vector indexes",
        "On our corpus the second one is 1.8 times as fast at the same recall. Notes follow.",
    ),
    ("Draft the release notes", "Eleven changes, two of them breaking. Each has a line and a link to its request."),
    ("Review the retry logic", "Retries have no jitter, so clients come back together. One line mends that."),
    ("Summarise last week's incidents", "Three incidents, one cause: a pool without a limit. I propose a limit of 40."),
    ("Port the importer to the new API", "Done, with the old behaviour kept behind a flag. 14 tests are new."),
    ("Find duplicate customers", "312 pairs are likely duplicates. The list has a score and a reason for each pair."),
    ("Explain this stack trace", "The list is empty at the first call, so `max` raises. Give it a default."),
    ("Translate the onboarding page", "German and Spanish are done. Two sentences need a decision about the tone."),
)
FOLLOW_UPS = ("Go on.", "And the second case?", "Show me the difference.", "Please run the tests.", "Shorter, please.")
TOOLS = ("read_file", "search", "run_tests", "write_file", "query_database")
FAILURES = ("TimeoutError: no answer in 30 s", "AssertionError: expected 3, got 2", "PermissionError: read-only")
HISTORY = timedelta(days=21)
RECENTLY = timedelta(hours=3)
ACTORS = 6
"""How many sessions of a fleet that moves run at once."""
_BATCH = 1000


def person_id(name: str) -> UUID:
    """The id of a person of the fleet. It is the same in every run."""
    return uuid5(NAMESPACE_URL, f"https://session-lifecycle.example/people/{name}")


SHARED = uuid5(NAMESPACE_URL, "https://session-lifecycle.example/datasets/shared")
"""The dataset through which some sessions are shared."""


@dataclass
class Story:
    """One session of the fleet. Each method answers what is recorded of one moment."""

    chance: random.Random
    user_id: UUID = field(init=False)
    session_id: str = field(init=False)
    turns: int = field(init=False)
    ending: str = field(init=False)

    def __post_init__(self) -> None:
        chance = self.chance
        self.agent = chance.choice(AGENTS)
        self.user_id = person_id(chance.choice(PEOPLE))
        self.session_id = f"{self.agent}-{chance.getrandbits(40):010x}"
        self.task, self.answer = chance.choice(TASKS)
        self.model = chance.choices(MODELS, weights=(5, 6, 8, 4, 1))[0]
        self.turns = chance.choices((1, 2, 3, 4, 6, 9), weights=(3, 5, 5, 3, 2, 1))[0]
        self.ending = chance.choices(("completed", "failed", "silent", "waiting"), weights=(78, 9, 9, 4))[0]
        self._turn = 0

    def begin(self, at: datetime) -> "list[Item]":
        """The session is new."""
        from session_lifecycle import Touch

        chance = self.chance
        return [
            Touch(
                session_id=self.session_id,
                user_id=self.user_id,
                agent_name=self.agent,
                dataset_id=SHARED if chance.random() < 0.3 else None,
                title=self.task,
                tags={"team": chance.choice(TEAMS)}
                | ({"customer": chance.choice(CUSTOMERS)} if chance.random() < 0.6 else {}),
                metadata={"branch": f"work/{chance.randint(100, 999)}"} if self.agent == "coder" else {},
                at=at,
            )
        ]

    def ask(self, at: datetime) -> "list[Item]":
        """A person asks, and a run begins."""
        from session_lifecycle import Message, Run

        self._turn += 1
        self._began = at
        run_id = self._run_id
        prompt = self.task if self._turn == 1 else self.chance.choice(FOLLOW_UPS)
        return [
            Run(**self._run(), started_at=at, input={"prompt": prompt}),
            Message(**self._message("prompt"), run_id=run_id, role="user", content=prompt, created_at=at),
        ]

    def reply(self, at: datetime) -> "list[Item]":
        """The run calls tools and models, and ends with a reply."""
        from session_lifecycle import Message, Run, Step, UsageEvent

        chance, began, run_id = self.chance, self._began, self._run_id
        has_failed = self.ending == "failed" and self._turn == self.turns
        tools = chance.randint(0, 4)
        calls = [began + (at - began) * (number + 1) / (tools + 2) for number in range(tools)]
        steps: list[Item] = [
            Step(
                step_id=f"{run_id}-tool-{number}",
                run_id=run_id,
                user_id=self.user_id,
                kind="tool",
                name=(name := chance.choice(TOOLS)),
                started_at=called,
                ended_at=called + (at - began) / (tools + 3),
                inputs={"path": f"src/part_{chance.randint(1, 30)}.py"} if "file" in name else {"query": self.task},
                output={"lines": chance.randint(1, 400)},
                errors=[chance.choice(FAILURES)] if chance.random() < 0.06 else None,
            )
            for number, called in enumerate(calls)
        ]
        tokens_in = int(chance.lognormvariate(8.6, 0.8)) + 2_000 * self._turn
        used: list[Item] = [
            UsageEvent(
                session_id=self.session_id,
                user_id=self.user_id,
                run_id=run_id,
                model=self.model,
                provider=PROVIDERS[self.model],
                tokens_in=tokens_in,
                cache_read_tokens=int(tokens_in * chance.choice((0, 0.4, 0.7))),
                tokens_out=int(chance.lognormvariate(6, 0.9)),
                errored=has_failed,
                measured=True,
                idempotency_key=f"{run_id}-response",
                at=at,
            )
            if chance.random() < 0.97
            else UsageEvent(
                session_id=self.session_id, user_id=self.user_id, run_id=run_id, model=self.model, measured=False, at=at
            )
        ]
        reply = self.answer if self._turn == self.turns else f"Step {self._turn} is done. {self.answer}"
        ended: dict[str, Any] = {"output": {"reply": reply}}
        if has_failed:
            ended = {"status": "failed", "error": chance.choice(FAILURES)}
        return [
            *steps,
            *used,
            Run(**self._run(), started_at=began, ended_at=at, **ended),
            Message(**self._message("reply"), run_id=run_id, role="assistant", content=reply, created_at=at),
        ]

    def end(self, at: datetime) -> "list[Item]":
        """The session ends; or nobody says so, or it waits for somebody."""
        from session_lifecycle import End, SessionStatus, Touch

        if self.ending == "silent":
            return []
        if self.ending == "waiting":
            return [Touch(session_id=self.session_id, user_id=self.user_id, waiting=True, at=at)]
        reason = "a tool failed" if self.ending == "failed" else None
        status = SessionStatus(self.ending)
        return [End(session_id=self.session_id, user_id=self.user_id, status=status, reason=reason, at=at)]

    @property
    def _run_id(self) -> str:
        return f"{self.session_id}-run-{self._turn}"

    def _run(self) -> dict[str, Any]:
        return {
            "run_id": self._run_id,
            "user_id": self.user_id,
            "session_id": self.session_id,
            "agent_name": self.agent,
            "client": CLIENTS[self.agent],
            "provider": PROVIDERS[self.model],
            "model": self.model,
            "name": "turn",
        }

    def _message(self, name: str) -> dict[str, Any]:
        return {
            "message_id": f"{self._run_id}-{name}",
            "user_id": self.user_id,
            "session_id": self.session_id,
        }


def starts(since: datetime, until: datetime, chance: random.Random) -> Iterator[datetime]:
    """When sessions begin: by day more than by night, and fewer at weekends."""
    hour = since
    while hour < until:
        busy = 0.7 if 8 <= hour.hour < 18 else 0.05
        busy *= 0.3 if hour.isoweekday() > 5 else 1
        if until - hour < RECENTLY:
            busy = 2  # at any hour somebody who looks finds something of today
        for _ in range(int(busy + chance.random())):
            begin = hour + timedelta(seconds=chance.uniform(0, 3600))
            if begin < until:
                yield begin
        hour += timedelta(hours=1)


def past_session(began: datetime, now: datetime, chance: random.Random) -> "list[Item]":
    """All that happened in a session that began then. It is left where it is now."""
    story = Story(chance)
    if story.ending == "waiting" and now - began > timedelta(days=1):
        story.ending = "completed"  # somebody has answered
    items = story.begin(began)
    at = began
    for _ in range(story.turns):
        asked = at + timedelta(seconds=chance.uniform(1, 240))
        replied = asked + timedelta(seconds=chance.lognormvariate(3, 0.8))
        if replied > now:
            return items
        items += [*story.ask(asked), *story.reply(replied)]
        at = replied
    if (ended := at + timedelta(seconds=chance.uniform(1, 60))) < now:
        items += story.end(ended)
    return items


async def record_history(db: "SessionDatabase") -> int:
    """Records what the fleet did in the last weeks, or since its last session. Returns the number of sessions."""
    from session_lifecycle import SessionListFilters, Viewer

    now = datetime.now(UTC)
    newest = await db.primary.lifecycle.list_session_rows(
        SessionListFilters(viewer=Viewer.auditor(), limit=1, total="none")
    )
    since = now - HISTORY
    if newest.sessions:
        since = max(since, newest.sessions[0].record.last_activity_at)
    chance = random.Random(since.isoformat())
    sessions = [past_session(began, now, chance) for began in starts(since, now, chance)]
    async with db.recorder(max_batch=_BATCH) as recorder:
        await asyncio.gather(*map(recorder.record, sessions))
    for items in sessions[::4]:
        first_item: Any = items[0]
        await db.lifecycle.annotate_session(
            first_item.session_id,
            first_item.user_id,
            "quality",
            score=round(chance.uniform(0.4, 1), 2),
            label=chance.choice(("good", "fair")),
            comment=chance.choice((None, "Checked by hand.")),
            annotator="reviewer",
        )
    await set_budgets(db)
    await db.maintenance.roll_up()
    return len(sessions)


async def set_budgets(db: "SessionDatabase") -> None:
    """Sets the budgets of the fleet: one with room, one that is nearly used, one that is used up."""
    from session_lifecycle.models import Budget

    for budget in (
        Budget(budget_id="coders-month", agent_name="coder", limit_usd=10, window="month"),
        Budget(budget_id="ann-week", user_id=person_id("ann"), limit_usd=2, window="week"),
        Budget(budget_id="shared-day", dataset_id=SHARED, limit_tokens=500_000, window="day"),
        Budget(budget_id="reviewers-total", agent_name="reviewer", limit_usd=1, window="total"),
    ):
        await db.budgets.set_budget(budget)


async def keep_moving(db: "SessionDatabase", *, pause_seconds: float = 2.0) -> None:
    """Has some sessions run at once, one after another, until it is cancelled."""
    async with db.recorder() as recorder, asyncio.TaskGroup() as group:
        for _ in range(ACTORS):
            group.create_task(_play(recorder, random.Random(), pause_seconds))


async def _play(recorder: "SessionRecorder", chance: random.Random, pause_seconds: float) -> None:
    from session_lifecycle.errors import DatabaseUnavailableError

    async def pause() -> datetime:
        await asyncio.sleep(pause_seconds * chance.uniform(0.5, 2))
        return datetime.now(UTC)

    while True:
        story = Story(chance)
        try:
            await recorder.record(story.begin(await pause()))
            for _ in range(story.turns):
                await recorder.record(story.ask(await pause()))
                await recorder.record(story.reply(await pause()))
            if items := story.end(await pause()):
                await recorder.record(items)
        except DatabaseUnavailableError:
            await pause()  # the next session tries again
