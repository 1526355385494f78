"""LiteLLM's calls in the books: logs of its callbacks played again, and calls against a stand-in of their APIs."""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

with pytest.MonkeyPatch.context() as patch:
    patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else the import asks the network for prices
    import litellm
    from litellm.exceptions import InternalServerError
    from litellm.router import Router

from session_lifecycle import SessionDatabase, SessionRecorder
from session_lifecycle.errors import BudgetExceededError
from session_lifecycle.integrations.budget_check import BudgetCheck
from session_lifecycle.integrations.litellm import BudgetRefusedError, SessionLogger, counts_of
from support import books
from support.books import Event, RunRow
from support.budget_checks import assert_checked, assert_settled
from support.budgets import limit, reserved
from support.eventually import eventually
from support.model_server import ModelServer
from support.scripts import refusal_without
from support.transcripts import SHARED, rows
from support.usage import A

pytestmark = [
    # LiteLLM makes models of types that Pydantic warns of when it first streams.
    pytest.mark.filterwarnings("ignore:Items? .* on TypedDict class:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
]
LOGS = pytest.mark.skipif(not SHARED.is_dir(), reason="the logs are not beside the project")
NOW = datetime(2026, 11, 21, tzinfo=UTC)
GPT, ASKED, CLAUDE = ("openai", "gpt-5-2025-08-07"), ("openai", "gpt-5"), ("anthropic", "claude-sonnet-4-5")
GPT_PARTS, CLAUDE_PARTS, NOTHING = (1024, 64, 0, 48), (5000, 2000, 500, 20), ((0, 0), (0, 0, 0, 0))


def as_object(value: Any) -> Any:
    if isinstance(value, dict):
        return SimpleNamespace(**{name: as_object(inner) for name, inner in value.items()})
    return value


async def play(logger: SessionLogger, lines: list[dict[str, Any]], *, objects: bool) -> None:
    """Plays the lines of a log. Calls begin with the ids that later lines name."""
    ids = [line["kw"]["litellm_call_id"] for line in lines if "kw" in line] or ["made-up-call"]
    for line in lines:
        method = line["method"]
        if method == "log_pre_api_call":
            first: dict[str, Any] = {"litellm_call_id": ids.pop(0), "custom_llm_provider": "openai"}
            told = next(
                (one for one in lines if one.get("kw", {}).get("litellm_call_id") == first["litellm_call_id"]), {}
            )
            if told:
                first["litellm_params"] = {"metadata": told["kw"].get("litellm_metadata")}
                first |= {"litellm_trace_id": told["slo"]["trace_id"], "model": told["kw"]["model"]}
                first["custom_llm_provider"] = told["slo"]["custom_llm_provider"]
            logger.log_pre_api_call(first.get("model"), [], first)
        elif method.endswith(("success_event", "failure_event")) and "kw" in line:
            said = line["kw"]
            kwargs = {name: said[name] for name in ("litellm_call_id", "model", "stream") if name in said}
            kwargs["litellm_params"] = {"metadata": said.get("litellm_metadata")}
            kwargs["standard_logging_object"] = line["slo"]
            if "exception" in said:
                failure = RuntimeError(said["exception"]["str"])
                failure.status_code = said["exception"]["status_code"]  # type: ignore[attr-defined]
                kwargs["exception"] = failure
            response = as_object(line.get("resp")) if objects else line.get("resp")
            await getattr(logger, method)(kwargs=kwargs, response_obj=response, start_time=NOW, end_time=NOW)


async def replay(db: SessionDatabase, name: str) -> None:
    """Plays a log that is kept beside the project, twice: the second time adds nothing."""
    lines = [json.loads(line) for line in (SHARED / "payloads" / f"litellm-{name}.jsonl").read_text().splitlines()]
    seen = []
    for objects in (False, True):
        async with db.recorder() as recorder:
            await play(SessionLogger(recorder, user_id=A), lines, objects=objects)
        assert recorder.snapshot().failures == 0
        seen.append((await books.events(db), await books.runs(db), await books.steps(db)))
    assert seen[0] == seen[1]


TR1 = {"tr1": RunRow("s1", "main", "completed")}


@LOGS
@pytest.mark.parametrize(
    ("name", "key", "expected"),
    [
        ("chat-tools", "43659e95-f573-42b1-ab51-de8f93ab3335", (*GPT, (1200, 80), GPT_PARTS)),
        ("anthropic-invoke", "1a32e872-bee4-43c1-903d-1d0ea5bcded9", (*CLAUDE, (7120, 64), CLAUDE_PARTS)),
        ("chat-stream", "d8a7806a-8269-46bf-acd1-98b2089181d7", (*ASKED, *NOTHING, False)),
        ("responses", "063a5e60-048f-4f21-a1a2-8779e8e041c6", (*GPT, (1200, 80), GPT_PARTS)),
    ],
    ids=["H27", "H28", "H29", "H33"],
)
async def test_H27_H28_H29_H33(session_database: SessionDatabase, name: str, key: str, expected: Any) -> None:
    await replay(session_database, name)
    assert await books.events(session_database) == {key: Event("s1", "tr1", "main", *expected)}
    assert await books.runs(session_database) == TR1


@LOGS
async def test_H30_and_H35_with_neither_session_nor_trace(session_database: SessionDatabase) -> None:
    await replay(session_database, "chat-nousage-stream")
    await replay(session_database, "unknown-model")
    invented, unpriced = "db96a3ba-621c-4913-8b99-45f4b45cb642", "b5a6e15f-a266-45ef-be80-be022698dc1d"
    assert await books.events(session_database) == {
        "06beb513-c8ed-4c88-bd8f-82c90e2db14c": Event(invented, invented, None, *ASKED, (12, 6), (0, 0, 0, 0)),
        "5df2a95a-edc7-4a0c-91f9-cef6a0c7075b": Event(
            unpriced, unpriced, None, "openai", "my-private-model", (1200, 80), GPT_PARTS
        ),
    }
    assert {one.status for one in (await books.runs(session_database)).values()} == {"completed"}
    sql = "SELECT cost_usd FROM session_lifecycle.session_usage_events WHERE model = 'my-private-model'"
    assert await rows(session_database, sql) == [(None,)]


@LOGS
async def test_H31_an_error(session_database: SessionDatabase) -> None:
    await replay(session_database, "chat-err500")
    assert await books.events(session_database) == {
        "c4345b20-c4bc-42dc-81b2-52fafdf08202": Event("s1", "tr1", "main", *ASKED, *NOTHING, errored=True)
    }
    assert await books.runs(session_database) == {"tr1": RunRow("s1", "main", "failed")}
    assert "had an error" not in await books.texts(session_database)


@LOGS
async def test_H32_a_cancelled_stream_is_closed_with_the_recorder(session_database: SessionDatabase) -> None:
    await replay(session_database, "chat-cancel-stream")
    [(key, found)] = (await books.events(session_database)).items()
    assert (key, found.provider, found.counts, found.measured) == ("made-up-call", "openai", (0, 0), False)
    assert [one.status for one in (await books.runs(session_database)).values()] == ["cancelled"]


@LOGS
async def test_H34_fallbacks_of_a_router_are_one_run(session_database: SessionDatabase) -> None:
    await replay(session_database, "router-fallback")
    run = "d324f510-69ad-4b2d-86f4-120e147209ff"
    assert await books.events(session_database) == {
        "f3a51d8a-83f0-4394-84a1-e613e2970d97": Event(run, run, None, *ASKED, *NOTHING, errored=True),
        "47531cf4-def5-476d-b0c3-8daa37daebb7": Event(run, run, None, *CLAUDE, (7120, 64), CLAUDE_PARTS),
    }
    assert await books.runs(session_database) == {run: RunRow(run, None, "completed")}


def test_counts_by_whichever_names() -> None:
    responses = {"usage": {"input_tokens": 10, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 4}}}
    assert counts_of(responses) == {"tokens_in": 10, "tokens_out": 3, "cache_read_tokens": 4}
    message = {"type": "message", "usage": {"input_tokens": 10, "cache_read_input_tokens": 4, "output_tokens": 3}}
    assert counts_of(message) == {"tokens_in": 14, "tokens_out": 3, "cache_read_tokens": 4}
    assert counts_of({}, {"prompt_tokens": 10, "completion_tokens": 3}) == {"tokens_in": 10, "tokens_out": 3}
    tools = {"prompt_tokens": 10, "prompt_tokens_details": {"web_search_requests": 2}}
    assert counts_of({"usage": tools, "service_tier": "flex"}) == {
        "tokens_in": 10,
        "web_searches": 2,
        "service_tier": "flex",
    }


# Against the stand-in


@pytest.fixture(autouse=True)
def _callbacks() -> Iterator[None]:
    yield
    forget_callbacks()


def forget_callbacks() -> None:
    """LiteLLM copies its callbacks into other lists with the first call, and looks there from then on."""
    for name in ("callbacks", "success_callback", "failure_callback", "_async_success_callback"):
        setattr(litellm, name, [])
    for name in ("_async_failure_callback", "input_callback", "_async_input_callback"):
        setattr(litellm, name, [])


class Calls:
    """Calls of models at the stand-in, with a callback that records them."""

    def __init__(self, db: SessionDatabase, recorder: SessionRecorder, server: ModelServer, **more: Any) -> None:
        self.db, self.recorder, self.server = db, recorder, server
        self.logger = SessionLogger(recorder, **{"user_id": A, **more})
        litellm.callbacks = [self.logger]

    async def __call__(self, words: str, **more: Any) -> Any:
        asked = {"messages": [{"role": "user", "content": words}], "max_retries": 0}
        return await litellm.acompletion(**{"model": "openai/gpt-5", **self.place(), **asked, **more})

    def place(self) -> dict[str, str]:
        return {"api_base": self.server.openai, "api_key": "none"}

    async def told(self, count: int) -> None:
        """Waits until LiteLLM has told the ends of so many calls."""

        async def are_told() -> bool:
            return len(self.logger.ended) >= count

        await eventually(are_told, within_seconds=20)
        await self.recorder.flush()


@asynccontextmanager
async def opened(db: SessionDatabase, **more: Any) -> AsyncGenerator[Calls]:
    async with ModelServer() as server, db.recorder() as recorder:
        yield Calls(db, recorder, server, **more)


NAMED = {"metadata": {"session_id": "s1", "trace_id": "r1", "agent": "main"}}


async def test_plain_streams_tools_and_other_calls(session_database: SessionDatabase) -> None:
    async with opened(session_database) as calls:
        function = {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}
        await calls("[[tools]]", tools=[{"type": "function", "function": function}], **NAMED)
        async for _ in await calls("hello", stream=True, stream_options={"include_usage": True}, **NAMED):
            pass
        await calls("hello", model="anthropic/claude-sonnet-4-5", api_base=calls.server.url, **NAMED)
        await litellm.aresponses(model="openai/gpt-5", input="hello", **calls.place(), **NAMED)
        await litellm.aembedding(model="openai/text-embedding-3-small", input=["hello"], **calls.place(), **NAMED)
        await calls.told(5)
        found = await books.events(session_database)
        served = sorted((counts, parts) for _, counts, parts in books.served(calls.server).values())
        assert sorted((one.counts, one.parts) for one in found.values()) == served
        assert {(one.session, one.run, one.agent) for one in found.values()} == {("s1", "r1", "main")}
        assert await books.runs(session_database) == {"r1": RunRow("s1", "main", "completed")}
        assert calls.recorder.snapshot().failures == 0


async def test_errors_retries_no_usage_and_cancelled_calls(session_database: SessionDatabase) -> None:
    async with opened(session_database) as calls:
        for number, words in enumerate(("[[err500]]", "[[once429:a]]", "[[nousage]]")):
            named = {"metadata": {"session_id": "s1", "trace_id": f"r{number}"}}
            try:
                await calls(words, max_retries=2, **named)
            except InternalServerError:
                assert words == "[[err500]]"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(calls("[[slow]]", metadata={"session_id": "s1", "trace_id": "r3"}), 0.4)
        await calls.told(3)
        await asyncio.sleep(0.3)
    found = {one.run: one for one in (await books.events(session_database)).values()}
    assert found == {
        "r0": Event("s1", "r0", None, *ASKED, *NOTHING, errored=True),
        "r1": Event("s1", "r1", None, *GPT, (1200, 80), GPT_PARTS),
        "r2": Event("s1", "r2", None, *GPT, *NOTHING, measured=False),
        "r3": Event("s1", "r3", None, *ASKED, *NOTHING, measured=False),
    }
    statuses = {run: one.status for run, one in (await books.runs(session_database)).items()}
    assert statuses == {"r0": "failed", "r1": "completed", "r2": "completed", "r3": "cancelled"}


async def test_a_router_falls_back_in_one_run(session_database: SessionDatabase) -> None:
    async with opened(session_database) as calls:
        models = [
            {"model_name": "a", "litellm_params": {"model": "openai/gpt-5", **calls.place()}},
            {
                "model_name": "b",
                "litellm_params": {
                    "model": "anthropic/claude-sonnet-4-5",
                    "api_base": calls.server.url,
                    "api_key": "none",
                },
            },
        ]
        router = Router(model_list=models, fallbacks=[{"a": ["b"]}], num_retries=0)
        await router.acompletion(model="a", messages=[{"role": "user", "content": "[[once429:a]]"}], max_retries=0)
        await calls.told(2)
        found = list((await books.events(session_database)).values())
        assert sorted((one.model, one.errored, one.counts) for one in found) == [
            ("claude-sonnet-4-5", False, (7120, 64)),
            ("gpt-5", True, (0, 0)),
        ]
        assert [one.status for one in (await books.runs(session_database)).values()] == ["completed"]


@pytest.mark.parametrize("way", ["fallback", "retry of a stream", "the caller's id again"])
async def test_calls_with_one_id_are_an_event_each(session_database: SessionDatabase, way: str) -> None:
    """LiteLLM's own fallbacks and retries keep the id of the first call, and so does a caller of the proxy."""
    async with opened(session_database) as calls:
        asked: Any = {"messages": [{"role": "user", "content": "[[once500:a]]"}], **calls.place(), **NAMED}
        fall: Any = {**asked, "model": "openai/gpt-4o", "fallbacks": ["openai/gpt-5"], "max_retries": 0}
        claude = {"model": "anthropic/claude-sonnet-4-5", "api_base": calls.server.url}
        if way == "fallback":
            await litellm.acompletion(**fall)
        elif way == "retry of a stream":
            async for _ in await litellm.acompletion(**{**asked, **claude}, num_retries=2, stream=True):
                pass
        else:
            for _ in range(2):
                await calls("hello", litellm_call_id="c1", **NAMED)

        async def are_told() -> bool:
            await calls.recorder.flush()
            return len(await books.events(session_database)) == 2

        await eventually(are_told, within_seconds=20)
        told = sorted((one.model, one.counts) for one in (await books.events(session_database)).values())
        answered = [(one.served_model, (one.tokens_in, one.tokens_out)) for one in calls.server.answered]
        refused = [(one.model, (0, 0)) for one in calls.server.served if one.status != 200]
        assert told == sorted(answered + refused)
        assert await books.runs(session_database) == {"r1": RunRow("s1", "main", "completed")}
        assert calls.recorder.snapshot().failures == 0


async def test_a_retry_whose_answer_is_never_told_is_unmeasured(session_database: SessionDatabase) -> None:
    """LiteLLM reports the first failure of such a call. It does not report the answer that follows."""
    async with opened(session_database) as calls:
        claude = {"model": "anthropic/claude-sonnet-4-5", "api_base": calls.server.url, "num_retries": 2}
        await calls("[[once500:a]]", **claude, **NAMED)
        await calls.told(1)
        await asyncio.sleep(0.5)
    found = sorted((one.errored, one.measured) for one in (await books.events(session_database)).values())
    assert found == [(False, False), (True, True)]


async def test_a_run_whose_last_call_failed_is_failed_at_once(session_database: SessionDatabase) -> None:
    async with opened(session_database) as calls:
        models = [
            {"model_name": name, "litellm_params": {"model": f"openai/{model}", **calls.place()}}
            for name, model in (("a", "gpt-5"), ("b", "gpt-4o"))
        ]
        router = Router(model_list=models, fallbacks=[{"a": ["b"]}], num_retries=0)
        with pytest.raises(litellm.BadRequestError):
            await router.acompletion(model="a", messages=[{"role": "user", "content": "[[err400]]"}])
        await calls.told(2)
        assert [one.errored for one in (await books.events(session_database)).values()] == [True, True]
        assert [one.status for one in (await books.runs(session_database)).values()] == ["failed"]


async def test_calls_in_a_run_block_belong_to_it(session_database: SessionDatabase) -> None:
    async with opened(session_database, user_id=None) as calls:

        async def work(number: int) -> None:
            async with calls.recorder.session(f"s{number}", A, quiet=True) as session:
                with session.run(run_id=f"r{number}"):
                    await calls("hello")
                    await calls.told(1)

        await asyncio.gather(work(0), work(1))
        await calls.told(2)
        places = sorted((one.session, one.run) for one in (await books.events(session_database)).values())
        assert places == [("s0", "r0"), ("s1", "r1")]
        assert {one.measured for one in (await books.events(session_database)).values()} == {True}


async def test_calls_without_async(session_database: SessionDatabase) -> None:
    async with opened(session_database) as calls:
        asked: Any = {"messages": [{"role": "user", "content": "hello"}], **calls.place(), **NAMED}
        await asyncio.to_thread(litellm.completion, model="openai/gpt-5", **asked)
        await calls.told(1)
        assert [one.counts for one in (await books.events(session_database)).values()] == [(1200, 80)]


async def test_an_answer_of_litellms_own_cache_is_not_counted(session_database: SessionDatabase) -> None:
    async with session_database.recorder() as recorder:
        logger = SessionLogger(recorder, user_id=A)
        kwargs = {"litellm_call_id": "c1", "cache_hit": True, "model": "gpt-5"}
        response = {"model": "gpt-5", "usage": {"prompt_tokens": 5}}
        await logger.async_log_success_event(kwargs, response, NOW, NOW)
        await recorder.flush()
        assert await books.events(session_database) == {}


@pytest.mark.parametrize("call_type", ["adecisions", "compact_responses", "acompact_responses"])
async def test_a_call_of_a_kind_that_few_use(session_database: SessionDatabase, call_type: str) -> None:
    async with session_database.recorder() as recorder:
        logger = SessionLogger(recorder, user_id=A)
        kwargs = {"litellm_call_id": "c1", "call_type": call_type, "model": "gpt-5"}
        logger.log_pre_api_call("gpt-5", None, kwargs)
        response = {"model": "gpt-5", "usage": {"input_tokens": 5, "output_tokens": 2}}
        await logger.async_log_success_event(kwargs, response, NOW, NOW)
        await recorder.flush()
        assert [one.counts for one in (await books.events(session_database)).values()] == [(5, 2)]


async def test_the_owner_by_the_metadata_as_on_the_proxy(session_database: SessionDatabase) -> None:
    """The proxy loads the callback by the path of a module and a name."""
    get_instance_fn = pytest.importorskip("litellm.proxy.types_utils.utils").get_instance_fn
    assert get_instance_fn("session_lifecycle.integrations.litellm.SessionLogger") is SessionLogger
    async with opened(
        session_database, user_id=None, owner_of=lambda metadata: metadata.get("user_api_key_user_id")
    ) as calls:
        await calls("hello", metadata={"session_id": "s1", "user_api_key_user_id": str(A)})
        await calls("hello", metadata={"session_id": "s1"})
        await calls.told(1)
        await asyncio.sleep(0.5)
        assert [one.session for one in (await books.events(session_database)).values()] == ["s1"]
        assert calls.recorder.snapshot().failures >= 1, "no owner is known"


async def test_content_by_choice_and_objects_that_are_broken(session_database: SessionDatabase) -> None:
    async with opened(session_database) as calls:
        await calls("apricot", **NAMED)
        await calls.told(1)
        told = await books.texts(session_database)
        assert "apricot" not in told
        assert "Tartu" not in told
        calls.logger.content = True
        await calls("apricot", **NAMED)
        await calls.told(2)
        assert await books.messages(session_database) == [
            ("r1", "user", "apricot"),
            ("r1", "assistant", calls.server.answer),
        ]
        await calls.logger.async_log_success_event({"litellm_call_id": "x", "litellm_params": 7}, 7, NOW, NOW)
        await calls.recorder.flush()
        assert (await books.events(session_database))["x"].measured is False


async def test_a_call_that_a_budget_refuses_raises(session_database: SessionDatabase) -> None:
    async with opened(session_database) as calls:

        async def ask(budgets: Any, name: str, **more: Any) -> Any:
            forget_callbacks()
            calls.logger = SessionLogger(calls.recorder, user_id=A, budgets=budgets)
            litellm.callbacks = [calls.logger]
            return await calls("hello", model=f"openai/{name}", **NAMED, **more)

        async def plain(budgets: Any, name: str) -> None:
            await ask(budgets, name)
            await calls.told(1)

        async def stream(budgets: Any, name: str) -> None:
            async for _ in await ask(budgets, name, stream=True, stream_options={"include_usage": True}):
                pass
            await calls.told(1)

        error = litellm.BudgetExceededError
        await assert_checked(calls.db, calls.recorder, calls.server, plain, error, others=[stream])
        await limit(calls.db, limit_usd=None, limit_tokens=1)
        with pytest.raises(BudgetRefusedError) as caught:
            await ask(calls.db.budgets, "gpt-5")
        assert isinstance(caught.value, BudgetExceededError)
        assert caught.value.budget_ids == ("b",)
        assert "would be exceeded" in caught.value.message
        await calls.recorder.flush()
        # LiteLLM tells what was refused as a failure. No model was called, so there is no event of it.
        await asyncio.sleep(0.3)
        assert len(await books.events(calls.db)) == len(calls.server.served)


async def test_a_router_asks_for_each_model_and_a_cached_answer_reserves_nothing(
    session_database: SessionDatabase,
) -> None:
    async with opened(session_database) as calls:
        await limit(calls.db, limit_usd=1)

        def needs(model: str | None, _request: Any) -> Any:
            return {"cost_usd": 2 if model == "gpt-5" else "0.5"}

        forget_callbacks()
        calls.logger = SessionLogger(calls.recorder, user_id=A, budgets=BudgetCheck(calls.db.budgets, needs=needs))
        litellm.callbacks = [calls.logger]
        models = [
            {"model_name": name, "litellm_params": {"model": f"openai/{model}", **calls.place()}}
            for name, model in (("large", "gpt-5"), ("small", "gpt-4o-mini"))
        ]
        router = litellm.Router(model_list=models, fallbacks=[{"large": ["small"]}], num_retries=0)
        said: Any = [{"role": "user", "content": "hello"}]
        await router.acompletion(model="large", messages=said)
        assert [one.model for one in calls.server.served] == ["gpt-4o-mini"]
        await calls.told(2)
        await assert_settled(calls.db, calls.recorder)

        # An answer of LiteLLM's own cache, which it asks after the callback: what was reserved returns.
        details = {"litellm_call_id": "c1", "call_type": "acompletion", "model": "gpt-4o-mini"}
        asked = {"litellm_logging_obj": SimpleNamespace(model_call_details=details), "model": "openai/gpt-4o-mini"}
        await calls.logger.async_pre_call_deployment_hook({**asked, "litellm_call_id": "c1"}, None)
        assert await reserved(calls.db) > 0
        now = datetime.now(UTC)
        await calls.logger.async_log_success_event(details | {"cache_hit": True}, {}, now, now)

        async def is_free() -> bool:
            await calls.recorder.flush()
            return bool(await reserved(calls.db) == 0)

        await eventually(is_free)
        assert len(await books.events(calls.db)) == 1


async def test_a_fallback_with_the_id_of_the_call_that_failed_is_asked_for_too(
    session_database: SessionDatabase,
) -> None:
    async with opened(session_database) as calls:
        await limit(calls.db, limit_usd=1)

        def needs(model: str | None, _request: Any) -> Any:
            return {"cost_usd": "0.8" if model == "gpt-4o" else 2}

        forget_callbacks()
        calls.logger = SessionLogger(calls.recorder, user_id=A, budgets=BudgetCheck(calls.db.budgets, needs=needs))
        litellm.callbacks = [calls.logger]
        for words, error in (("hello", None), ("[[err500]]", "would be exceeded")):
            with pytest.raises(Exception, match=error) if error else nullcontext():
                await calls(words, model="openai/gpt-4o", fallbacks=["openai/gpt-5"], **NAMED)
            await calls.told(len(calls.server.served))
            await assert_settled(calls.db, calls.recorder)
        assert [one.model for one in calls.server.served] == ["gpt-4o", "gpt-4o"]
        events = (await books.events(session_database)).values()
        assert sorted((one.counts, one.errored) for one in events) == [((0, 0), True), ((1200, 80), False)]


def test_without_the_package_the_import_names_the_extra() -> None:
    refusal = refusal_without("litellm", "litellm")
    assert "pip install 'session-lifecycle[litellm]'" in refusal
