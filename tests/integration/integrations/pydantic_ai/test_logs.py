"""Logs of the capability's hooks, played again."""

import pytest

from session_lifecycle import SessionDatabase
from session_lifecycle.integrations.pydantic_ai import SessionCapability
from support import books
from support.books import Event, RunRow
from support.pydantic_ai_replay import play, read
from support.transcripts import SHARED
from support.usage import A

LOGS = pytest.mark.skipif(not SHARED.is_dir(), reason="the logs are not beside the project")
GPT, CLAUDE = ("openai", "gpt-5-2025-08-07"), ("anthropic", "claude-sonnet-4-5")
GPT_PARTS, CLAUDE_PARTS, NOTHING = (1024, 64, 0, 48), (5000, 2000, 500, 20), ((0, 0), (0, 0, 0, 0))


async def replay(db: SessionDatabase, name: str) -> None:
    """Plays a log that is kept beside the project, twice: the second time adds nothing."""
    lines = read(SHARED / "payloads" / f"pydantic-ai-{name}.jsonl")
    seen = []
    for _ in range(2):
        async with db.recorder() as recorder:
            await play(SessionCapability(recorder, user_id=A), lines)
        assert recorder.snapshot().failures == 0
        seen.append((await books.events(db), await books.runs(db), await books.steps(db)))
    assert seen[0] == seen[1]


@LOGS
async def test_H10_tools(session_database: SessionDatabase) -> None:
    await replay(session_database, "responses-tools")
    run = "01a1fbaa-8baa-736a-a053-a5908ded4431"
    assert await books.events(session_database) == {
        "resp_local0121": Event("conv-1", run, "main", *GPT, (1200, 80), GPT_PARTS),
        "resp_local0122": Event("conv-1", run, "main", *GPT, (1300, 81), GPT_PARTS),
        "resp_local0123": Event("conv-1", run, "main", *GPT, (1400, 82), GPT_PARTS),
    }
    assert await books.runs(session_database) == {run: RunRow("conv-1", "main", "completed")}
    assert await books.steps(session_database) == {
        (run, "call_local0121"): ("get_weather", "completed"),
        (run, "call_local0122"): ("get_time", "completed"),
    }


@LOGS
async def test_H11_inclusive_counts_of_anthropic(session_database: SessionDatabase) -> None:
    await replay(session_database, "anthropic-tools")
    run = "01a1fbaa-8c5c-7320-a551-49fac98822fb"
    assert await books.events(session_database) == {
        "msg_local0125": Event("conv-1", run, "main", *CLAUDE, (7120, 64), CLAUDE_PARTS),
        "msg_local0126": Event("conv-1", run, "main", *CLAUDE, (7121, 65), CLAUDE_PARTS),
        "msg_local0127": Event("conv-1", run, "main", *CLAUDE, (7122, 66), CLAUDE_PARTS),
    }
    assert await books.runs(session_database) == {run: RunRow("conv-1", "main", "completed")}
    assert set((await books.steps(session_database)).values()) == {
        ("get_weather", "completed"),
        ("get_time", "completed"),
    }


@LOGS
async def test_H12_a_conversation_of_its_own(session_database: SessionDatabase) -> None:
    await replay(session_database, "anthropic-stream")
    assert await books.events(session_database) == {
        "msg_local0128": Event("…9c2437a1", "…94980cdb", "main", *CLAUDE, (7120, 64), CLAUDE_PARTS)
    }
    assert await books.runs(session_database) == {"…94980cdb": RunRow("…9c2437a1", "main", "completed")}


@LOGS
async def test_H13_no_usage(session_database: SessionDatabase) -> None:
    await replay(session_database, "chat-nousage-stream")
    assert await books.events(session_database) == {
        "chatcmpl-local0118": Event("…3b3d4f21", "…6dfb7469", "main", *GPT, *NOTHING, measured=False)
    }
    assert await books.runs(session_database) == {"…6dfb7469": RunRow("…3b3d4f21", "main", "completed")}


@LOGS
async def test_H14_streams_that_were_cut_off(session_database: SessionDatabase) -> None:
    await replay(session_database, "anthropic-cancel-stream")
    counts = ((7120, 3), (5000, 2000, 500, 0))
    assert await books.events(session_database) == {
        "msg_local0130": Event("…28d6613f", "…4040e5e8", "main", *CLAUDE, *counts, partial=True),
        "msg_local0131": Event("…4571db40", "…087c5291", "main", *CLAUDE, *counts, partial=True),
    }
    assert await books.runs(session_database) == {
        "…4040e5e8": RunRow("…28d6613f", "main", "cancelled"),
        "…087c5291": RunRow("…4571db40", "main", "cancelled"),
    }


@LOGS
async def test_H15_a_cancelled_call(session_database: SessionDatabase) -> None:
    await replay(session_database, "responses-cancel")
    assert await books.events(session_database) == {
        "…1a184091:1": Event("…f410dc71", "…1a184091", "main", "openai", "gpt-5", *NOTHING, measured=False)
    }
    assert await books.runs(session_database) == {"…1a184091": RunRow("…f410dc71", "main", "cancelled")}


@LOGS
async def test_H16_a_tool_that_fails(session_database: SessionDatabase) -> None:
    await replay(session_database, "responses-tool-error")
    assert await books.events(session_database) == {
        "resp_local0144": Event("…223c1442", "…a19f0089", "bad", *GPT, (1200, 80), GPT_PARTS)
    }
    assert await books.runs(session_database) == {"…a19f0089": RunRow("…223c1442", "bad", "failed")}
    assert await books.steps(session_database) == {("…a19f0089", "call_local0144"): ("get_bad", "failed")}
