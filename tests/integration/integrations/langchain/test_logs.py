"""Callbacks of LangChain that were logged, played again."""

import json
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from session_lifecycle import SessionDatabase
from session_lifecycle.integrations.langchain import SessionCallbackHandler
from support.runtimes.langchain import COUNTS, NO_COUNTS, Fields
from support.transcripts import SHARED, events, everything, runs, steps
from support.usage import A

LOGS = SHARED / "payloads"
needs_logs = pytest.mark.skipif(not SHARED.is_dir(), reason="the logs are not beside the project")


class Replay:
    """Hands the lines of a log to a handler, as LangChain does."""

    def __init__(self, handler: SessionCallbackHandler) -> None:
        self.handler = handler
        self.outermost: list[str] = []

    def line(self, line: Fields) -> None:  # noqa: C901 - one case for each callback
        method, ids = line["method"], line.get("ids", {})
        run_id: Any = ids.get("run") or line.get("run")
        common = {"run_id": run_id, "parent_run_id": ids.get("parent"), "tags": ids.get("tags")}
        serialized = {"id": line.get("serialized_id"), "name": line.get("name")}
        match method:
            case "on_chain_start":
                if ids.get("parent") is None:
                    self.outermost.append(run_id)
                metadata = {"langgraph_node": line.get("node"), "langgraph_checkpoint_ns": line.get("ns")}
                self.handler.on_chain_start(None, {}, **common, metadata=metadata, name=line["name"])
            case "on_chat_model_start":
                told = {"invocation_params": line["invocation_params"], "name": line.get("name")}
                messages = [[HumanMessage("What is it?")]]
                self.handler.on_chat_model_start(serialized, messages, **common, metadata=ids["metadata"], **told)
            case "on_llm_end":
                self.handler.on_llm_end(self.result(line["response"]), **common)
            case "on_llm_error":
                is_left = line["error"]["exc"] == "builtins.GeneratorExit"
                error = GeneratorExit() if is_left else ServerError(line["error"].get("str"))
                self.handler.on_llm_error(error, **common, response=self.result(line.get("response")))
            case "on_tool_start":
                told = {"tool_call_id": line["tool_call_id"], "inputs": line["inputs"]}
                self.handler.on_tool_start(serialized, line["input_str"], **common, **told)
            case "on_tool_end":
                self.handler.on_tool_end(ToolMessage("7", **line["output"]), **common)
            case "done":
                for outermost in self.outermost:
                    self.handler.on_chain_end({}, run_id=outermost)  # type: ignore[arg-type]  # the log shortens it
            case "on_llm_new_token(usage)" | "drained" | "break" | "raised":
                pass
            case _:
                raise AssertionError(method)

    @staticmethod
    def result(told: Fields | None) -> LLMResult:
        if told is None:
            return LLMResult(generations=[])
        fields = {name: told[name] for name in ("usage_metadata", "response_metadata", "tool_calls") if name in told}
        message = AIMessage("It is 7.", id=told.get("msg_id"), **fields)
        return LLMResult(generations=[[ChatGeneration(message=message, generation_info=told.get("generation_info"))]])


class ServerError(Exception):
    status_code = 500


async def replay(db: SessionDatabase, log: list[Fields], **options: Any) -> None:
    async with db.recorder() as recorder:
        replaying = Replay(SessionCallbackHandler(recorder, user_id=A, **options))
        for line in log:
            replaying.line(line)
    assert recorder.snapshot().failures == 0


def lines_of(name: str) -> list[Fields]:
    return [json.loads(line) for line in (LOGS / f"langchain-{name}.jsonl").read_text().splitlines()]


OPENAI = (1200, 80, 1024, 64, 0, 48)
ROWS = [
    ("chat-invoke", "d94fb7d10fc6", "gpt-5-2025-08-07", OPENAI, True, False, "completed"),
    ("chat-stream-usage-on", "ccbfcc37feb4", "gpt-5-2025-08-07", OPENAI, True, False, "completed"),
    ("chat-stream-usage-off", "432e86b1e8f7", "gpt-5-2025-08-07", NO_COUNTS, False, False, "completed"),
    ("chat-cancel", "7ef215b2d719", "gpt-5", NO_COUNTS, False, False, "cancelled"),
    ("chat-err500", "4af471c559b9", "gpt-5", NO_COUNTS, True, True, "failed"),
    ("responses-invoke", "33fc78c4e580", "gpt-5-2025-08-07", OPENAI, True, False, "completed"),
    (
        "anthropic-invoke",
        "76fa32adc989",
        "claude-sonnet-4-5",
        (7120, 64, 5000, 2000, 500, 20),
        True,
        False,
        "completed",
    ),
    ("anthropic-nousage-stream", "1f82084983fa", "claude-sonnet-4-5", NO_COUNTS, False, False, "completed"),
    ("anthropic-cancel-stream", "746e60bc09a8", "claude-sonnet-4-5", NO_COUNTS, False, False, "cancelled"),
]


@needs_logs
@pytest.mark.parametrize("row", ROWS, ids=[f"H{number}" for number in range(17, 26)])
async def test_H17_and_H18_and_H19_and_H20_and_H21_and_H22_and_H23_and_H24_and_H25_captured_calls_of_a_model(
    session_database: SessionDatabase, row: tuple[str, str, str, tuple[int, ...], bool, bool, str]
) -> None:
    name, run_id, model, counts, measured, errored, status = row
    log = lines_of(name)
    await replay(session_database, log)
    provider = "anthropic" if name.startswith("anthropic") else "openai"
    expected = {run_id: (run_id, provider, model, *counts, measured, errored)}
    columns = f"run_id, provider, model, {COUNTS}, measured, errored"
    assert await events(session_database, columns) == expected
    assert await runs(session_database, "status, agent_name") == {run_id: (status, None)}
    before = [len(table) for table in await everything(session_database)]
    await replay(session_database, log)
    assert await events(session_database, columns) == expected
    assert [len(table) for table in await everything(session_database)] == before


@needs_logs
async def test_H26_a_captured_graph_with_tools(session_database: SessionDatabase) -> None:
    log = lines_of("langgraph-tools")
    for _ in range(2):
        await replay(session_database, log)
        run = "e9911cc31330"
        assert await events(session_database, f"session_id, run_id, model, {COUNTS}") == {
            "ab3400108428": ("thread-9", run, "gpt-5-2025-08-07", 1200, 80, 1024, 64, 0, 48),
            "1f1000166646": ("thread-9", run, "gpt-5-2025-08-07", 1300, 81, 1024, 64, 0, 48),
            "3d7f63fb5589": ("thread-9", run, "gpt-5-2025-08-07", 1400, 82, 1024, 64, 0, 48),
        }
        assert await runs(session_database, "status, agent_name, parent_run_id") == {
            run: ("completed", "main_agent", None)
        }
        assert await steps(session_database) == {
            (run, "call_local0068"): ("get_weather", "completed"),
            (run, "call_local0069"): ("get_time", "completed"),
        }
