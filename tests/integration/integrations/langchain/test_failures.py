"""Failures of the adapter of LangChain: they are counted and logged, and the agent goes on."""

import importlib
import sys
from uuid import uuid4

import pytest
from langchain_core.messages import AIMessage

from session_lifecycle import SessionDatabase
from session_lifecycle.integrations.langchain import SessionCallbackHandler
from session_lifecycle.writing.recorder import SessionRecorder
from support.books import open_parts
from support.broken import Broken
from support.eventually import eventually
from support.model_server import ModelServer
from support.runtimes.langchain import Fake, answered, model_of, run_chain
from support.transcripts import events, runs
from support.usage import A


async def test_an_unknown_owner_is_told_and_disturbs_nobody(
    session_database: SessionDatabase, recorder: SessionRecorder
) -> None:
    model = Fake(responses=[AIMessage("It is 7.")])
    await run_chain(SessionCallbackHandler(recorder), model, "What is it?")
    await eventually(lambda: recorder.snapshot().failures == 1)
    await recorder.flush()
    assert await runs(session_database) == {}


async def test_a_broken_object_of_the_runtime_disturbs_nobody(
    session_database: SessionDatabase, recorder: SessionRecorder
) -> None:
    handler = SessionCallbackHandler(recorder, user_id=A)
    run_id = uuid4()
    handler.on_chat_model_start({}, [[]], run_id=run_id)
    handler.on_llm_end(Broken(), run_id=run_id)
    await recorder.flush()
    assert recorder.snapshot().failures == 1
    assert await events(session_database, "measured") == {str(run_id): (False,)}
    assert await runs(session_database) == {str(run_id): "completed"}
    for count in ("many", -1, True, 1.5):
        one = uuid4()
        handler.on_chat_model_start({}, [[]], run_id=one)
        handler.on_llm_end(answered(tokens_in=count, tokens_out=count), run_id=one)
    await recorder.flush()
    assert recorder.snapshot().failures == 1
    assert len(await events(session_database, "measured")) == 5


async def test_parts_whose_end_is_never_told_are_given_up(
    recorder: SessionRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("session_lifecycle.integrations.adapter.MOST_OPEN", 2)
    handler = SessionCallbackHandler(recorder, user_id=A)
    for _ in range(5):
        outer = uuid4()
        handler.on_chain_start(None, {}, run_id=outer, name="chain")
        handler.on_chat_model_start({}, [[]], run_id=uuid4(), parent_run_id=outer)
    assert open_parts(handler) == 4  # chains, and calls
    assert len(recorder.quiet.open) == 4


async def test_a_call_awaits_nothing_of_the_database(server: ModelServer) -> None:
    """Nothing listens at the address, and the runtime's calls go on."""
    async with SessionDatabase.connect("postgresql://nobody@127.0.0.1:9/nothing") as db:
        recorder = db.recorder(drain_within=0.1)
        async with recorder:
            handler = SessionCallbackHandler(recorder, user_id=A)
            answer = await model_of("chat", server).ainvoke("What is it?", config={"callbacks": [handler]})
            assert answer.text == server.answer
            assert recorder.snapshot().pending > 0


def test_without_langchain_the_import_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langchain_core.callbacks", None)
    monkeypatch.delitem(sys.modules, SessionCallbackHandler.__module__)
    with pytest.raises(ImportError, match=r"pip install 'session-lifecycle\[langchain\]'"):
        importlib.import_module(SessionCallbackHandler.__module__)
