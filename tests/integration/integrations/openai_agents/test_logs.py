"""Logs of hooks and spans of OpenAI Agents, played again."""

import pytest

from session_lifecycle import SessionDatabase
from session_lifecycle.integrations.openai_agents import SessionHooks
from support import books
from support.books import Event, RunRow
from support.openai_agents_replay import Spans, play, read
from support.transcripts import SHARED
from support.usage import A

LOGS = pytest.mark.skipif(not SHARED.is_dir(), reason="the logs are not beside the project")
GPT, ASKED = ("openai", "gpt-5-2025-08-07"), ("openai", "gpt-5")
PARTS, NOTHING = (1024, 64, 0, 48), ((0, 0), (0, 0, 0, 0))


async def replay(db: SessionDatabase, name: str, spans: Spans = "all") -> None:
    """Plays a log that is kept beside the project, twice: the second time adds nothing."""
    lines = read(SHARED / "payloads" / f"openai-agents-{name}.jsonl")
    seen = []
    for _ in range(2):
        async with db.recorder() as recorder:
            await play(SessionHooks(recorder, user_id=A), lines, spans=spans)
        assert recorder.snapshot().failures == 0
        seen.append((await books.events(db), await books.runs(db), await books.steps(db)))
    assert seen[0] == seen[1]


@LOGS
async def test_H01_tools(session_database: SessionDatabase) -> None:
    await replay(session_database, "responses-tools")
    run = "trace_88a1943bff664f4c84f47fddf595de61"
    assert await books.events(session_database) == {
        "resp_local0056": Event("thread-1", run, "main", *GPT, (1200, 80), PARTS),
        "resp_local0057": Event("thread-1", run, "main", *GPT, (1300, 81), PARTS),
        "resp_local0058": Event("thread-1", run, "main", *GPT, (1400, 82), PARTS),
    }
    assert await books.runs(session_database) == {run: RunRow("thread-1", "main", "completed")}
    assert await books.steps(session_database) == {
        (run, "call_local0056"): ("get_weather", "completed"),
        (run, "call_local0057"): ("get_time", "completed"),
    }


@LOGS
async def test_H02_an_agent_that_is_a_tool(session_database: SessionDatabase) -> None:
    await replay(session_database, "responses-agent-as-tool")
    run, child = "trace_685f665de2364f4eb955e09638554cae", "de2bab"
    assert await books.events(session_database) == {
        "resp_local0062": Event("thread-1", run, "parent", *GPT, (1200, 80), PARTS),
        "resp_local0063": Event("thread-1", child, "child", *GPT, (1200, 80), PARTS),
        "resp_local0064": Event("thread-1", child, "child", *GPT, (1300, 81), PARTS),
        "resp_local0065": Event("thread-1", child, "child", *GPT, (1400, 82), PARTS),
        "resp_local0066": Event("thread-1", run, "parent", *GPT, (1300, 81), PARTS),
    }
    assert await books.runs(session_database) == {
        run: RunRow("thread-1", "parent", "completed"),
        child: RunRow("thread-1", "child", "completed", run, "call_local0062"),
    }
    assert await books.steps(session_database) == {
        (run, "call_local0062"): ("ask_child", "completed"),
        (child, "call_local0063"): ("get_time", "completed"),
        (child, "call_local0064"): ("get_weather", "completed"),
    }


@LOGS
async def test_H03_a_usage_that_is_told_twice(session_database: SessionDatabase) -> None:
    await replay(session_database, "responses-rawusage")
    run = "trace_27bedb23a80e4702b849b69dddc9422e"
    assert await books.events(session_database) == {
        "resp_local0083": Event("thread-1", run, "main", *GPT, (1200, 80), PARTS)
    }
    assert await books.runs(session_database) == {run: RunRow("thread-1", "main", "completed")}


@LOGS
async def test_H04_zeros_are_no_usage(session_database: SessionDatabase) -> None:
    await replay(session_database, "responses-nousage")
    run = "trace_eafaf6c3b280457297bd2d591de7a59c"
    assert await books.events(session_database) == {
        "resp_local0076": Event("thread-1", run, "main", *GPT, *NOTHING, measured=False)
    }
    assert await books.runs(session_database) == {run: RunRow("thread-1", "main", "completed")}


@LOGS
async def test_H05_an_error_that_only_spans_tell(session_database: SessionDatabase) -> None:
    await replay(session_database, "responses-err500")
    run = "trace_afce1ba6512f4a8799bbe7448615f43d"
    assert await books.events(session_database) == {
        f"{run}:39d49c": Event("thread-1", run, "main", *ASKED, *NOTHING, errored=True)
    }
    assert await books.runs(session_database) == {run: RunRow("thread-1", "main", "failed")}


@LOGS
@pytest.mark.parametrize(
    ("log", "run", "turn"),
    [
        ("responses-cancel-stream", "trace_a8abfe3f14cc418d8b3cc744d9a9d993", "c87370"),
        ("chat-cancel-stream", "trace_4531cda7268648ee996a348ca99e0bc0", "bdc22d"),
    ],
)
async def test_H06_H07_cancelled_streams(session_database: SessionDatabase, log: str, run: str, turn: str) -> None:
    await replay(session_database, log)
    assert await books.events(session_database) == {
        f"{run}:{turn}": Event("thread-1", run, "main", *ASKED, *NOTHING, measured=False)
    }
    assert await books.runs(session_database) == {run: RunRow("thread-1", "main", "cancelled")}


@LOGS
async def test_H08_an_id_that_is_no_key(session_database: SessionDatabase) -> None:
    await replay(session_database, "chat-stream-include-usage")
    run = "trace_d067168727dc4badb2feb871df3bdc32"
    assert await books.events(session_database) == {
        "req_chat_0088": Event("thread-1", run, "main", *ASKED, (1200, 80), PARTS)
    }
    assert await books.runs(session_database) == {run: RunRow("thread-1", "main", "completed")}


@LOGS
async def test_H09_three_responses_without_usage(session_database: SessionDatabase) -> None:
    await replay(session_database, "chat-tools-stream")
    run = "trace_f0156d58e7244edb98197217bb6bdf40"
    assert await books.events(session_database) == {
        f"req_chat_00{number}": Event("thread-1", run, "main", *ASKED, *NOTHING, measured=False)
        for number in (78, 79, 80)
    }
    assert await books.runs(session_database) == {run: RunRow("thread-1", "main", "completed")}
    assert await books.steps(session_database) == {
        (run, "call_local0078"): ("get_weather", "completed"),
        (run, "call_local0079"): ("get_time", "completed"),
    }


@LOGS
@pytest.mark.parametrize("spans", ["ends", "none"])
@pytest.mark.parametrize(
    ("log", "count"),
    [
        ("responses-tools", 3),
        ("responses-agent-as-tool", 5),
        ("responses-rawusage", 1),
        ("chat-stream-include-usage", 1),
    ],
)
async def test_H01_H02_H03_H08_less_is_told_of_spans(
    session_database: SessionDatabase, log: str, count: int, spans: Spans
) -> None:
    await replay(session_database, log, spans)
    events = (await books.events(session_database)).values()
    assert len(events) == count
    assert {one.parts for one in events} == {PARTS}
    expected = ASKED if spans == "none" or log.startswith("chat") else GPT
    assert {(one.provider, one.model) for one in events} == {expected}
    assert {one.status for one in (await books.runs(session_database)).values()} == {"completed"}
    assert {end for _, end in (await books.steps(session_database)).values()} <= {"completed"}
    agents = sorted(one.agent or "" for one in events)
    assert agents == (["main"] * count if count != 5 else [*["child"] * 3, *["parent"] * 2])


@LOGS
@pytest.mark.parametrize(
    ("log", "status", "flags"),
    [
        ("responses-err500", "failed", (True, True)),
        ("responses-cancel-stream", "cancelled", (False, False)),
        ("chat-cancel-stream", "cancelled", (False, False)),
    ],
)
async def test_H05_H06_H07_only_ends_of_spans_are_told(
    session_database: SessionDatabase, log: str, status: str, flags: tuple[bool, bool]
) -> None:
    await replay(session_database, log, "ends")
    [event] = (await books.events(session_database)).values()
    assert (event.measured, event.errored) == flags
    assert [one.status for one in (await books.runs(session_database)).values()] == [status]


@LOGS
@pytest.mark.parametrize("spans", ["all", "ends"])
async def test_H02_the_hooks_of_the_child_are_not_called(session_database: SessionDatabase, spans: Spans) -> None:
    lines = read(SHARED / "payloads" / "openai-agents-responses-agent-as-tool.jsonl")
    lines = [line for line in lines if line.get("agent") != "child"]
    async with session_database.recorder() as recorder:
        await play(SessionHooks(recorder, user_id=A), lines, spans=spans)
    assert recorder.snapshot().failures == 0
    events = await books.events(session_database)
    counts = [(1200, 80), (1200, 80), (1300, 81), (1400, 82), (1300, 81)]
    assert {key: (one.counts, one.parts) for key, one in events.items()} == {
        f"resp_local00{number}": (one, PARTS) for number, one in enumerate(counts, 62)
    }
    if spans == "all":
        run, child = await books.runs(session_database)
        assert (await books.runs(session_database))[child] == RunRow(
            "thread-1", "child", "completed", run, "call_local0062"
        )
