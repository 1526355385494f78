"""Live: streams of what changes, on a real socket and a real database."""

import asyncio
import gc
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import asyncpg
import httpx
import pytest
from sqlalchemy import NullPool, QueuePool, text
from sqlalchemy.ext.asyncio import create_async_engine

from session_lifecycle import SessionDatabase, SessionListFilters, SessionStatus, Touch, UsageEvent, Viewer
from session_lifecycle.errors import ConfigurationError, DatabaseUnavailableError
from session_lifecycle.postgres import notes as notes_module
from session_lifecycle.postgres.engines import asyncpg_url
from session_lifecycle.web import feed as feed_module
from session_lifecycle.web import look as look_module
from session_lifecycle.web.feed import LiveFeed
from session_lifecycle.web.look import FeedEvent
from support.eventually import eventually
from support.live import live_host
from support.pgbouncer import pgbouncer
from support.statements import noted
from support.usage import A
from support.web import AGENT, D1, PREFIX, B, refuses

__all__ = ["pgbouncer"]

NOTES = pytest.mark.parametrize("notes", [True, False], ids=["notes", "polling"])
LISTENING = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'
"""
END_LISTENERS = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname = current_database() AND query LIKE 'LISTEN%'
"""
Change = Callable[[SessionDatabase], Awaitable[Any]]


async def touch(db: SessionDatabase, session_id: str, user: UUID = A, **more: Any) -> None:
    await db.lifecycle.record([Touch(session_id=session_id, user_id=user, **more)])


async def past_the_first_look() -> None:
    """Whoever begins to listen looks once, for what happened before. What happens now needs a note."""
    await asyncio.sleep(4 * feed_module.PAUSE_SECONDS)


async def asked(db: SessionDatabase, sql: str) -> Any:
    async with db.engine.connect() as connection:
        return await connection.scalar(text(sql))


@NOTES
async def test_a_stream_shows_what_changes_as_the_list_has_it(session_database: SessionDatabase, notes: bool) -> None:
    db = session_database
    await db.migrate(notes=notes)
    async with live_host(db) as host, host.stream() as stream:
        await eventually(lambda: host.feed.is_listening or not notes)
        assert stream.response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert stream.response.headers["x-accel-buffering"] == "no"
        assert "no-store" in stream.response.headers["cache-control"]
        await db.lifecycle.accumulate_usage("s/1\n", A, "gpt-4o", 120, 40)
        event = await stream.next(within_seconds=5)
        async with httpx.AsyncClient(base_url=host.url + PREFIX, headers={"X-User": "a"}) as client:
            [row] = (await client.get("/sessions")).json()["sessions"]
        assert (event.name, event.data) == ("session", row)
        assert list(event.data) == list(row)


async def quiet_use(db: SessionDatabase) -> None:
    await db.lifecycle.record([UsageEvent(session_id="s", user_id=A, model="m", tokens_in=1, touch=False)])


async def bound(db: SessionDatabase) -> None:
    async with db.engine.begin() as connection:
        await db.bind(connection).lifecycle.accumulate_usage("s", A, "gpt-4o", 1, 1)


async def own_sql(db: SessionDatabase) -> None:
    async with db.engine.begin() as connection:
        await connection.execute(text("UPDATE session_lifecycle.session_records SET title = 'other'"))


# Each is a change of the session `s` that some stream must hear of: what is done, and the event.
CHANGES: dict[str, tuple[Change, str]] = {
    "usage": (lambda db: db.lifecycle.accumulate_usage("s", A, "gpt-4o", 1, 1), "session"),
    "use that is no activity": (quiet_use, "session"),
    "title": (lambda db: db.lifecycle.update_session("s", A, title="Mended"), "session"),
    "end": (lambda db: db.lifecycle.end_session("s", A, SessionStatus.FAILED), "session"),
    "host's transaction": (bound, "session"),
    "host's own SQL": (own_sql, "session"),
    "deleted": (lambda db: db.maintenance.delete_session("s", A), "gone"),
    "erased": (lambda db: db.maintenance.erase_user(A), "gone"),
    "pruned": (lambda db: db.maintenance.prune_sessions(timedelta(days=1)), "gone"),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_every_way_of_changing_a_session_sends_a_note(session_database: SessionDatabase, name: str) -> None:
    db = session_database
    change, expected = CHANGES[name]
    await db.migrate(notes=True)
    await touch(db, "s", at=datetime.now(UTC) - timedelta(days=30))
    # Nothing is looked after without a note.
    async with LiveFeed(db, look_seconds=1000) as feed, await feed.open(viewer=Viewer(A)) as stream:
        await eventually(lambda: feed.is_listening)
        await past_the_first_look()
        await change(db)
        event = await asyncio.wait_for(anext(stream), 10)
    assert event is not None
    assert event.name == expected
    assert event.key == (A, "s")
    if expected == "gone":
        assert json.loads(event.data) == {"user_id": str(A), "session_id": "s"}


async def test_notes_that_are_off_send_nothing(session_database: SessionDatabase, session_database_url: str) -> None:
    db, heard = session_database, []
    listener = await asyncpg.connect(session_database_url)
    await listener.add_listener(notes_module.CHANNEL, lambda *note: heard.append(note[-1]))
    try:
        for on in (False, True, False):
            await db.migrate(notes=on)
            await db.migrate()  # leaves it as it is
            for change, _ in CHANGES.values():
                await touch(db, f"s-{on}", B)
                await change(db)
            await listener.execute("SELECT 1")
            assert bool(heard) is on
            heard.clear()
        with pytest.raises(ConfigurationError, match="sends no notes"):
            async with db.listening():
                pass
    finally:
        await listener.close()


async def test_a_note_has_ids_and_no_content_and_one_transaction_sends_few(
    session_database: SessionDatabase, session_database_url: str
) -> None:
    db, heard = session_database, []
    await db.migrate(notes=True)
    listener = await asyncpg.connect(session_database_url)
    await listener.add_listener(notes_module.CHANNEL, lambda *note: heard.append(note[-1]))
    try:
        await db.lifecycle.record([Touch(session_id=f"secret-{n}", user_id=A, title="secret") for n in range(50)])
        await listener.execute("SELECT 1")
        assert heard == [f"session_lifecycle\n{A}"]
        heard.clear()
        users = [UUID(int=number) for number in range(1000, 1300)]
        await db.lifecycle.record([Touch(session_id="s", user_id=user, dataset_id=D1) for user in users])
        await listener.execute("SELECT 1")
        assert set(heard) == {"session_lifecycle\n*"}
    finally:
        await listener.close()


async def test_a_transaction_that_is_rolled_back_is_not_heard(session_database: SessionDatabase) -> None:
    db = session_database
    await db.migrate(notes=True)
    async with db.listening() as notes:
        async with db.engine.connect() as connection:
            await db.bind(connection).lifecycle.accumulate_usage("s", A, "gpt-4o", 1, 1)
            await connection.rollback()
        await db.lifecycle.accumulate_usage("s", B, "gpt-4o", 1, 1)
        assert await asyncio.wait_for(notes.next(), 10) == frozenset({B})


async def test_two_schemas_of_one_database_do_not_hear_each_other(session_database_url: str) -> None:
    async with (
        SessionDatabase.connect(session_database_url) as one,
        SessionDatabase.connect(session_database_url, schema='other: "é" *') as other,
    ):
        for db in (one, other):
            await db.migrate(notes=True)
        async with one.listening() as notes, other.listening() as other_notes:
            await touch(other, "s", B)
            await touch(one, "s", A)
            assert await asyncio.wait_for(notes.next(), 10) == frozenset({A})
            assert await asyncio.wait_for(other_notes.next(), 10) == frozenset({B})


@NOTES
async def test_a_stranger_gets_no_event(session_database: SessionDatabase, notes: bool) -> None:
    """Not of a new session, not of a change, not of an end; and not as `gone`, which would say that it was there."""
    db = session_database
    await db.migrate(notes=notes)
    async with (
        live_host(db, look_seconds=0.5) as host,
        host.stream("stranger", recent=50) as stranger,
        host.stream("auditor") as auditor,
        host.stream("b") as through_dataset,
    ):
        await db.lifecycle.accumulate_usage("hidden", A, "gpt-4o", 1, 1)
        await auditor.until("hidden")
        await db.maintenance.delete_session("hidden", A)
        await auditor.until("hidden", "gone")
        await touch(db, "shared", A, dataset_id=D1)
        assert [event.session_id for event in await through_dataset.until("shared")] == ["shared"]
        await touch(db, "own", UUID(int=3))
        assert [event.session_id for event in await stranger.until("own")] == ["own"]


@NOTES
async def test_a_session_that_is_shared_no_more_is_gone(session_database: SessionDatabase, notes: bool) -> None:
    db = session_database
    await db.migrate(notes=notes)
    await touch(db, "shared", A, dataset_id=D1)
    async with live_host(db, look_seconds=1000) as host, host.stream("b", recent=5) as stream:
        await eventually(lambda: host.feed.is_listening or not notes)
        assert (await stream.next()).session_id == "shared"
        await past_the_first_look()
        await db.lifecycle.update_session("shared", A, dataset_id=None)
        event = await stream.next()
        assert (event.name, event.data) == ("gone", {"user_id": str(A), "session_id": "shared"})
        await db.lifecycle.update_session("shared", A, title="secret")
        await touch(db, "mine", B)
        assert (await stream.next()).session_id == "mine"


async def test_an_agents_sessions_and_the_filters_choose(session_database: SessionDatabase) -> None:
    db = session_database
    await db.migrate(notes=True)
    async with live_host(db) as host, host.stream(status="running", agent_name="coder") as stream:
        await touch(db, "other", A, agent_name="reviewer")
        await touch(db, "of-agent", AGENT, agent_name="coder")
        assert (await stream.next()).session_id == "of-agent"
        await db.lifecycle.end_session("of-agent", AGENT, SessionStatus.COMPLETED)
        event = await stream.next()
        assert (event.name, event.session_id) == ("gone", "of-agent"), "the filters reach it no more"


async def test_a_session_that_becomes_abandoned_is_an_event(session_database: SessionDatabase) -> None:
    """Nobody writes then, so no note comes."""
    db = session_database
    await db.migrate(notes=True)
    late = datetime.now(UTC) - timedelta(seconds=1800 - 3)
    async with live_host(db, look_seconds=0.5) as host:
        await touch(db, "s", at=late)
        async with host.stream(recent=1) as stream:
            assert (await stream.next()).data["effective_status"] == "running"
            assert (await stream.next()).data["effective_status"] == "abandoned"


@NOTES
async def test_a_stream_goes_on_after_the_last_event(session_database: SessionDatabase, notes: bool) -> None:
    """What happened in between comes: the last state of each session, and what is gone; and nothing twice."""
    db = session_database
    await db.migrate(notes=notes)
    async with live_host(db) as host:
        async with host.stream() as stream:
            await touch(db, "kept")
            await touch(db, "deleted")
            seen = await stream.until("deleted")
        await eventually(lambda: host.feed.streams == 0)
        await db.lifecycle.accumulate_usage("kept", A, "m", 5, 5)
        await db.lifecycle.accumulate_usage("kept", A, "m", 5, 5)
        await db.maintenance.delete_session("deleted", A)
        await touch(db, "new")
        async with host.stream(after=seen[-1].id) as stream:
            found = [await stream.next() for _ in range(3)]
            assert {(event.name, event.session_id) for event in found} == {
                ("session", "kept"),
                ("gone", "deleted"),
                ("session", "new"),
            }
            assert next(event for event in found if event.session_id == "kept").data["tokens_in"] == 10
            await touch(db, "last")
            assert (await stream.next()).session_id == "last"


async def test_a_stream_that_cannot_go_on_says_so(session_database: SessionDatabase) -> None:
    db = session_database
    await touch(db, "s")
    async with live_host(db) as host:
        for unknown in ("another-process.7", "1.99999999999999999999999", ".", "x" * 5000):
            async with host.stream(after=unknown, recent=5) as stream:
                assert (await stream.next()).name == "look_again"
                assert (await stream.next()).session_id == "s"


async def test_a_slow_stream_is_told_to_look_again_and_keeps_no_events(
    session_database: SessionDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = session_database
    await db.migrate(notes=True)
    monkeypatch.setattr(look_module, "MOST_EVENTS", 10)
    async with (
        LiveFeed(db) as feed,
        await feed.open(viewer=Viewer(A)) as slow,
        await feed.open(viewer=Viewer(A)) as fast,
    ):
        await eventually(lambda: feed.is_listening)
        for number in range(30):
            await touch(db, f"s-{number}")
            if number % 5 == 4:
                while (event := await asyncio.wait_for(anext(fast), 10)) is None or event.key != (A, f"s-{number}"):
                    assert event is None or event.name == "session"
        event = await anext(slow)
        assert event is not None
        assert event.name == "look_again"
        await touch(db, "next")
        event = await asyncio.wait_for(anext(slow), 10)
        assert event is not None
        assert event.key == (A, "next")
        # The events of a look are bounded by their bytes, too.
        monkeypatch.setattr(look_module, "MOST_EVENT_BYTES", 100)
        await touch(db, "large")
        while (event := await asyncio.wait_for(anext(fast), 10)) is None or event.name != "look_again":
            pass


async def test_of_a_session_that_changes_often_a_feed_keeps_one_event(session_database: SessionDatabase) -> None:
    def tokens_in(event: FeedEvent) -> int:
        return int(json.loads(event.data)["tokens_in"])

    def kept() -> int:
        gc.collect()
        return sum(isinstance(one, FeedEvent) and one.key == (A, "busy") for one in gc.get_objects())

    db = session_database
    await db.migrate(notes=True)
    async with (
        LiveFeed(db) as feed,
        await feed.open(viewer=Viewer(A)) as fast,
        await feed.open(viewer=Viewer(A)) as slow,
    ):
        for number in range(5):
            await db.lifecycle.record([UsageEvent(session_id="busy", user_id=A, model="m", tokens_in=1)])
            while (event := await asyncio.wait_for(anext(fast), 10)) is None or tokens_in(event) <= number:
                pass
        del event
        assert kept() == 1
        # The slow stream has missed nothing that is still so.
        event = await anext(slow)
        assert event is not None
        assert tokens_in(event) == 5


async def test_more_changes_than_a_look_reads_are_one_word(session_database: SessionDatabase) -> None:
    db = session_database
    await db.migrate(notes=True)
    async with LiveFeed(db) as feed, await feed.open(viewer=Viewer(A)) as stream:
        await touch(db, "first")
        event = await asyncio.wait_for(anext(stream), 10)
        assert event is not None
        assert event.key == (A, "first")
        await db.lifecycle.record(
            [Touch(session_id=f"s-{number}", user_id=A) for number in range(feed_module.WINDOW + 1)]
        )
        event = await asyncio.wait_for(anext(stream), 10)
        assert event is not None
        assert event.name == "look_again"


async def test_what_was_overtaken_is_not_called_gone(
    session_database: SessionDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = session_database
    await db.migrate(notes=True)
    monkeypatch.setattr(feed_module, "WINDOW", 3)
    async with LiveFeed(db) as feed, await feed.open(viewer=Viewer(A)) as stream:
        for number in range(6):
            await touch(db, f"s-{number}")
            event = await asyncio.wait_for(anext(stream), 10)
            assert event is not None
            assert (event.name, event.key) == ("session", (A, f"s-{number}"))
        # A change that nobody has read yet, of a session that is followed no more: it may be seen no more.
        await touch(db, "unread")
        for number in range(3):
            await touch(db, f"t-{number}")
            await asyncio.sleep(2 * feed_module.PAUSE_SECONDS)
        event = await asyncio.wait_for(anext(stream), 10)
        assert event is not None
        assert event.name == "look_again"


async def test_one_connection_listens_for_all_streams_and_none_is_held(session_database: SessionDatabase) -> None:
    db = session_database
    await db.migrate(notes=True)
    async with live_host(db) as host:
        assert await asked(db, LISTENING) == 0, "nothing is open before there is a stream"
        async with host.stream(), host.stream(), host.stream("b"), host.stream("auditor") as last:
            await eventually(lambda: host.feed.is_listening)
            await touch(db, "s")
            await last.until("s")
            assert await asked(db, LISTENING) == 1
            assert cast("QueuePool", db.engine.pool).checkedout() == 0, "a stream that waits holds no connection"
        await eventually(lambda: host.feed.streams == 0)

        async def nobody_listens() -> bool:
            return bool(await asked(db, LISTENING) == 0)

        await eventually(nobody_listens)


async def test_streams_of_one_viewer_share_the_reads(session_database: SessionDatabase) -> None:
    db = session_database
    await db.migrate(notes=True)
    async with LiveFeed(db, look_seconds=1000) as feed:
        streams = [await feed.open(viewer=Viewer(A)) for _ in range(20)]
        others = [await feed.open(viewer=Viewer(UUID(int=number))) for number in range(100, 110)]
        await eventually(lambda: feed.is_listening)
        await asyncio.sleep(3 * feed_module.PAUSE_SECONDS)
        async with noted(db) as statements:
            await touch(db, "s")
            for stream in streams:
                event = await asyncio.wait_for(anext(stream), 10)
                assert event is not None
                assert event.key == (A, "s")
        assert len([sql for sql, _ in statements if "session_records" in sql and "record_v1" not in sql]) <= 2
        for stream in (*streams, *others):
            stream.close()


async def test_a_lost_connection_is_replaced_and_nothing_is_missed(session_database: SessionDatabase) -> None:
    db = session_database
    await db.migrate(notes=True)
    async with live_host(db, look_seconds=1000) as host, host.stream() as stream:
        await eventually(lambda: host.feed.is_listening)
        for number in range(3):
            assert await asked(db, END_LISTENERS) >= 1
            await eventually(lambda: not host.feed.is_listening)
            await touch(db, f"unheard-{number}")
            assert [event.session_id for event in await stream.until(f"unheard-{number}")] == [f"unheard-{number}"]
            await eventually(lambda: host.feed.is_listening)
            await touch(db, f"heard-{number}")
            await stream.until(f"heard-{number}")
        assert await asked(db, LISTENING) == 1


async def test_notes_that_are_switched_off_meanwhile_are_noticed(
    session_database: SessionDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = session_database
    await db.migrate(notes=True)
    monkeypatch.setattr(notes_module, "CHECK_SECONDS", 0.2)
    async with live_host(db, look_seconds=1000) as host, host.stream() as stream:
        await eventually(lambda: host.feed.is_listening)
        await db.migrate(notes=False)
        await eventually(lambda: not host.feed.is_listening)
        await touch(db, "polled")
        assert (await stream.next()).session_id == "polled"


async def test_behind_a_pooler_the_feed_polls(
    session_database: SessionDatabase, session_database_url: str, pgbouncer: Callable[[str], str]
) -> None:
    """Through a pgbouncer in transaction mode no note arrives, on our engine or on the host's."""
    await session_database.migrate(notes=True)
    url = pgbouncer(session_database_url)
    engine = create_async_engine(asyncpg_url(url), poolclass=NullPool, connect_args={"statement_cache_size": 0})
    for db in (SessionDatabase.connect(url, pgbouncer=True), SessionDatabase.from_engine(engine)):
        async with db, live_host(db, look_seconds=1000) as host, host.stream() as stream:
            await touch(session_database, "s")
            assert (await stream.next()).session_id == "s"
            assert not host.feed.is_listening
            assert await asked(session_database, LISTENING) == 0
    await engine.dispose()


async def test_many_viewers_are_polled_by_one_question(session_database: SessionDatabase) -> None:
    db = session_database
    async with LiveFeed(db, look_seconds=1000) as feed:
        viewers = [UUID(int=number) for number in range(100, 120)]
        streams = [await feed.open(viewer=Viewer(user)) for user in viewers]
        await touch(db, "before", viewers[0])
        await asyncio.sleep(2.5 * feed_module.POLL_SECONDS)  # the first question is about everybody
        async with noted(db) as statements:
            await touch(db, "s", viewers[3])
            event = await asyncio.wait_for(anext(streams[3]), 10)
            assert event is not None
            assert event.key == (viewers[3], "s")
        assert len(statements) < len(viewers)
        for stream in streams:
            stream.close()


async def test_the_stream_ends_with_its_time_and_with_the_feed(session_database: SessionDatabase) -> None:
    db = session_database
    async with live_host(db, stream_seconds=0.5) as host:
        async with host.stream() as stream:
            assert await stream.ended()
        async with host.stream() as stream:
            await host.feed.close()
            assert await stream.ended()
        await eventually(lambda: host.feed.streams == 0)
        async with httpx.AsyncClient(base_url=host.url + PREFIX, headers={"X-User": "a"}) as client:
            answer = await client.get("/events")
            refuses(answer, 503)
            assert answer.headers["retry-after"] == "5"


async def test_there_is_a_most_of_streams_and_a_client_that_goes_makes_room(session_database: SessionDatabase) -> None:
    async with live_host(session_database, most_streams=2) as host:
        async with host.stream(), host.stream(), httpx.AsyncClient(base_url=host.url + PREFIX) as client:
            refuses(await client.get("/events", headers={"X-User": "a"}), 503)
        await eventually(lambda: host.feed.streams == 0)
        async with host.stream():
            assert host.feed.streams == 1


async def test_refusals_come_before_the_stream(session_database: SessionDatabase) -> None:
    async with live_host(session_database) as host, httpx.AsyncClient(base_url=host.url + PREFIX) as client:
        assert (await client.get("/events")).status_code == 401
        as_user = {"X-User": "a"}
        refuses(await client.get("/events", params={"status": "odd"}, headers=as_user), 422, "status")
        refuses(await client.get("/events", params={"recent": 51}, headers=as_user), 422, "recent")
        refuses(
            await client.get("/events", params={"min_tokens": 2, "max_tokens": 1}, headers=as_user), 422, "max_tokens"
        )
        assert host.feed.streams == 0


async def test_a_database_that_is_away_is_503_and_no_stream_stays_counted() -> None:
    async with SessionDatabase.connect("postgresql://nobody@127.0.0.1:1/nothing") as db, LiveFeed(db) as feed:
        with pytest.raises(DatabaseUnavailableError):
            await feed.open(viewer=Viewer(A))
        assert feed.streams == 0


@pytest.mark.parametrize(
    ("options", "name"), [({"most_streams": 0}, "most_streams"), ({"stream_seconds": -1}, "stream_seconds"),
                          ({"look_seconds": 0}, "look_seconds")],
)  # fmt: skip
async def test_a_feed_refuses_what_it_cannot_do(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        LiveFeed(SessionDatabase.connect("postgresql://nobody@localhost/nothing"), **options)


async def test_filters_that_were_used_before_keep_no_viewer(session_database: SessionDatabase) -> None:
    """The window, the page and whoever asked before do not count."""
    db = session_database
    await touch(db, "of-a", A)
    await touch(db, "of-b", B)
    filters = SessionListFilters(viewer=Viewer(A), limit=1, offset=3, order_by="cost_usd", since=datetime.now(UTC))
    assert (await db.lifecycle.list_session_rows(filters)).sessions == []
    async with LiveFeed(db) as feed, await feed.open(filters, viewer=Viewer(B), recent=9) as stream:
        event = await anext(stream)
        assert event is not None
        assert event.key == (B, "of-b")


def test_a_feed_works_in_one_event_loop_after_another(session_database_url: str) -> None:
    db = SessionDatabase.connect(session_database_url)
    feed = LiveFeed(db)

    async def follow(session_id: str) -> Any:
        stream = await feed.open(viewer=Viewer(A))
        await touch(db, session_id)
        event = await asyncio.wait_for(anext(stream), 10)
        return event and event.key  # the stream is not closed: its loop ends

    assert [asyncio.run(follow(name)) for name in ("one", "two")] == [(A, "one"), (A, "two")]
