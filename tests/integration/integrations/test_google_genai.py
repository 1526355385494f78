"""Google's GenAI client, recorded, against a stand-in of its API: the books equal what the stand-in served."""

import asyncio
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import httpx
import pytest
from google.genai import Client, errors, types
from google.oauth2.credentials import Credentials

from session_lifecycle import SessionDatabase
from session_lifecycle.errors import BudgetExceededError
from session_lifecycle.integrations.google_genai import recorded_genai
from support import books
from support.books import Event
from support.budget_checks import assert_checked
from support.model_server import ModelServer
from support.recorded_clients import RecordedClient, recorded_client
from support.scripts import refusal_without
from support.usage import A

pytestmark = [
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),  # the client's own
]
MODEL = "gemini-2.5-flash"
PARTS, NO_PARTS = (1024, 0, 0, 20), (0, 0, 0, 0)


def event(counts: tuple[int, int] = (1500, 80), parts: Any = PARTS, **more: Any) -> Event:
    return Event("s1", "r1", None, "google", MODEL, counts, parts, **more)


UNKNOWN = event((0, 0), NO_PARTS, measured=False)
CUT = event((1500, 21), partial=True)


def opened(db: SessionDatabase, **more: Any) -> AbstractAsyncContextManager[RecordedClient[Client]]:
    return recorded_client(
        db,
        lambda server: Client(api_key="none", http_options=types.HttpOptions(base_url=server.url)),
        partial(recorded_genai, **more),
        lambda client: client.aio.aclose(),
    )


async def test_plain_calls_streams_and_functions_that_the_client_runs(session_database: SessionDatabase) -> None:
    def get_weather(city: str) -> str:
        """The weather of a city."""
        return f"{city}: 7"

    async with opened(session_database) as made:
        await made.client.aio.models.generate_content(model=MODEL, contents="hello")
        async for _ in await made.client.aio.models.generate_content_stream(model=MODEL, contents="hello"):
            pass
        answer = await made.client.aio.models.generate_content(
            model=MODEL, contents="[[tools]] weather?", config=types.GenerateContentConfig(tools=[get_weather])
        )
        assert answer.text == made.server.answer
        await made.recorder.flush()
        assert await books.measured(made.db) == books.served(made.server)
        assert [one.counts for one in await made.events()] == [(1500, 80), (1500, 80), (1500, 80), (1510, 81)]
        assert made.recorder.snapshot().failures == 0


async def test_models_of_ones_own(session_database: SessionDatabase) -> None:
    """Tuned models and the endpoints of Vertex have no `models/` before their names."""
    async with opened(session_database) as made:
        endpoint = "projects/p/locations/europe-west4/endpoints/123"
        options = types.HttpOptions(base_url=made.server.url)
        credentials = Credentials(token="none")
        vertex = Client(
            vertexai=True, project="p", location="europe-west4", credentials=credentials, http_options=options
        )
        recorded_genai(vertex, made.recorder)
        await made.client.aio.models.generate_content(model="tunedModels/mine", contents="hello")
        await vertex.aio.models.generate_content(model=endpoint, contents="hello")
        async for _ in await vertex.aio.models.generate_content_stream(model=endpoint, contents="hello"):
            pass
        await vertex.aio.aclose()
        await made.recorder.flush()
        assert await books.measured(made.db) == books.served(made.server)
        assert [one.model for one in await made.events()] == ["mine", "123", "123"]


@pytest.mark.filterwarnings("ignore:The generate_images method is deprecated")
async def test_embeddings_of_vertex(session_database: SessionDatabase) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        embeddings = {"values": [0.5], "statistics": {"token_count": 4, "truncated": False}}
        return httpx.Response(200, json={"predictions": [{"embeddings": embeddings}] * 2})

    async with opened(session_database) as made:
        credentials = Credentials(token="none")
        with httpx.Client(transport=httpx.MockTransport(answer)) as http_client:
            options = types.HttpOptions(httpx_client=http_client)
            vertex = Client(
                vertexai=True, project="p", location="europe-west4", credentials=credentials, http_options=options
            )
            recorded_genai(vertex, made.recorder).models.embed_content(
                model="text-embedding-005", contents=["hello", "there"]
            )
            vertex.models.generate_images(model="imagen-4.0", prompt="hello")
        await made.recorder.flush()
        assert await made.events() == [event((8, 0), NO_PARTS)._replace(model="text-embedding-005")]


async def test_cut_cancelled_failed_and_unmeasured_calls(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:

        async def heard(words: str) -> None:
            async for _ in await made.client.aio.models.generate_content_stream(model=MODEL, contents=words):
                pass

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(heard("[[slow]]"), 0.4)
        assert await made.events() == [CUT]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(made.client.aio.models.generate_content(model=MODEL, contents="[[slow]]"), 0.4)
        with pytest.raises(errors.ServerError):
            await made.client.aio.models.generate_content(model=MODEL, contents="[[err500]]")
        await made.client.aio.models.generate_content(model=MODEL, contents="[[nousage]]")
        assert sorted(await made.events()) == sorted([CUT, UNKNOWN, event((0, 0), NO_PARTS, errored=True), UNKNOWN])


async def test_content_by_choice(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        await made.client.aio.models.generate_content(model=MODEL, contents="apricot")
        await made.recorder.flush()
        told = await books.texts(made.db)
        assert "apricot" not in told
        assert "Tartu" not in told
        recorded_genai(made.client, made.recorder, content=True)
        await made.client.aio.models.generate_content(model=MODEL, contents="apricot")
        async for _ in await made.client.aio.models.generate_content_stream(model=MODEL, contents="apricot"):
            pass
        assert await made.events() == [event()] * 3, "hooked up again, and recorded once"
        pair = [("r1", "user", "apricot"), ("r1", "assistant", made.server.answer)]
        assert await books.messages(made.db) == pair * 2


def test_a_synchronous_client_outside_every_run(session_database_url: str) -> None:
    with ModelServer() as server, SessionDatabase.connect(session_database_url).synchronous_recorder() as recorder:
        bare = Client(api_key="none", http_options=types.HttpOptions(base_url=server.url))
        client = recorded_genai(bare, recorder, user_id=A, session_id="s1", agent_name="helper")
        client.models.generate_content(model=MODEL, contents="hello")
        assert list(client.models.generate_content_stream(model=MODEL, contents="hello"))
        client.chats.create(model=MODEL).send_message("hello")
        cut = client.models.generate_content_stream(model=MODEL, contents="hello")
        next(iter(cut))
        del cut
        recorder.flush()
        assert recorder.snapshot().failures == 0

        async def look() -> tuple[Any, Any]:
            async with SessionDatabase.connect(session_database_url) as db:
                return await books.events(db), await books.runs(db)

        found, runs = asyncio.run(look())
        assert [one.counts for one in found.values()] == [(1500, 80)] * 3 + [(1500, 21)]
        assert [(one.agent, one.status) for one in runs.values()] == [
            *[("helper", "completed")] * 3,
            ("helper", "cancelled"),
        ]
        client.close()


def test_without_the_package_the_import_names_the_extra() -> None:
    refusal = refusal_without("google.genai", "google_genai")
    assert "pip install 'session-lifecycle[google-genai]'" in refusal


async def test_a_call_that_a_budget_refuses_is_not_sent(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:

        async def plain(budgets: Any, model: str) -> None:
            client = recorded_genai(made.client, made.recorder, budgets=budgets)
            await client.aio.models.generate_content(model=model, contents="hello")

        async def stream(budgets: Any, model: str) -> None:
            client = recorded_genai(made.client, made.recorder, budgets=budgets)
            assert [one async for one in await client.aio.models.generate_content_stream(model=model, contents="a")]

        async def in_a_thread(budgets: Any, model: str) -> None:
            client = recorded_genai(made.client, made.recorder, budgets=budgets)
            await asyncio.to_thread(lambda: client.models.generate_content(model=model, contents="hello"))

        async def stream_in_a_thread(budgets: Any, model: str) -> None:
            client = recorded_genai(made.client, made.recorder, budgets=budgets)
            await asyncio.to_thread(lambda: list(client.models.generate_content_stream(model=model, contents="a")))

        others = [stream, in_a_thread, stream_in_a_thread]
        await assert_checked(made.db, made.recorder, made.server, plain, BudgetExceededError, MODEL, others)
