"""The spool and a database: everything acknowledged arrives, once, whatever dies or goes away in between."""

import asyncio
import logging
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.engine import make_url

from session_lifecycle import (
    ConfigurationError,
    SchemaError,
    SessionDatabase,
    Settings,
    Spool,
    SpoolError,
    SpoolFullError,
    Touch,
)
from session_lifecycle.models import Item
from session_lifecycle.writing.spool_drain import spooled_fields
from support.eventually import eventually
from support.faulty_proxy import FaultyProxy
from support.scripts import run_script
from support.usage import A, usage

SUPPORT = Path(__file__).parents[2] / "support"
EVENTS = "SELECT count(*), count(DISTINCT idempotency_key) FROM session_lifecycle.session_usage_events"


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(tmp_path / "spool") as spool:
        yield spool


@pytest_asyncio.fixture
async def proxy(session_database_url: str) -> AsyncIterator[FaultyProxy]:
    proxy = FaultyProxy(make_url(session_database_url).port or 5432, 0.0)
    async with proxy.running():
        yield proxy


@pytest_asyncio.fixture
async def far(session_database_url: str, proxy: FaultyProxy) -> AsyncIterator[SessionDatabase]:
    """The database behind a proxy that can be switched off."""
    url = make_url(session_database_url).set(host="127.0.0.1", port=proxy.port)
    settings = Settings(connect_timeout_seconds=2, retries=0)
    async with SessionDatabase.connect(url.render_as_string(hide_password=False), settings=settings) as db:
        yield db


async def events(db: SessionDatabase) -> tuple[int, int]:
    async with db.engine.connect() as connection:
        count, keys = (await connection.execute(text(EVENTS))).one()
        return count, keys


def keyed(number: int, **fields: Any) -> dict[str, Any]:
    return spooled_fields(usage(idempotency_key=f"k{number}", **fields))


async def test_a_reopening_is_delivered_in_its_place(session_database: SessionDatabase, spool: Spool) -> None:
    ids = {"session_id": "s", "user_id": str(A)}
    end = {"kind": "end", **ids, "status": "completed"}
    spool.append([keyed(1), end, {"kind": "reopen", **ids}, keyed(2), {"kind": "reopen", **ids, "session_id": ""}, end])
    assert await spool.drain(session_database) == (5, 1, 0, None)
    found = await session_database.lifecycle.get_session_row("s", A)
    assert found is not None
    assert (found.effective_status, found.record.tokens_in, found.record.late_events) == ("completed", 2, 0)
    spool.append([{"kind": "reopen", **ids}])
    async with session_database.recorder(spool=spool) as recorder:
        await recorder.flush()
    found = await session_database.lifecycle.get_session_row("s", A)
    assert found is not None
    assert found.effective_status == "running"


async def test_items_are_delivered_in_order_and_deleted(session_database: SessionDatabase, spool: Spool) -> None:
    ids = {"session_id": "s", "user_id": str(A)}
    spool.append([{"kind": "touch", **ids, "agent_name": "coder"}, keyed(1)])
    end = {"kind": "end", **ids, "status": "failed"}
    spool.append([{"kind": "usage", **ids, "tokens_in": 2, "cost_usd": "1"}, end])
    assert await spool.drain(session_database, batch=3) == (4, 0, 0, None)
    found = await session_database.lifecycle.get_session_row("s", A)
    assert found is not None
    assert (found.record.agent_name, found.record.tokens_in, found.effective_status) == ("coder", 3, "failed")
    assert found.record.late_events == 0
    assert spool.status().items == 0
    assert await spool.drain(session_database.lifecycle) == (0, 0, 0, None)


async def test_a_recorder_takes_what_is_drained(session_database: SessionDatabase, spool: Spool) -> None:
    spool.append([keyed(number) for number in range(10)])
    async with session_database.recorder() as recorder:
        assert (await spool.drain(recorder, batch=4)).drained == 10
    assert await events(session_database) == (10, 10)


async def test_a_second_delivery_counts_nothing_twice(
    session_database: SessionDatabase, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The second item has no key of its own: the spool has given it one.
    spool.append([keyed(1), {"kind": "usage", "session_id": "s", "user_id": str(A), "tokens_in": 1, "cost_usd": "1"}])

    def die(*_: object) -> None:
        raise SpoolError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(spool, "settle", die)
        with pytest.raises(SpoolError, match="the disk is gone"):
            await spool.drain(session_database)
    assert await events(session_database) == (2, 2)
    assert await spool.drain(session_database) == (2, 0, 0, None)
    assert await events(session_database) == (2, 2)


async def test_poison_is_set_aside_with_its_reason_and_the_others_arrive(
    session_database: SessionDatabase, spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    soon = datetime.now(UTC) + timedelta(minutes=10)
    poison = {
        3: keyed(3) | {"tokens_in": -1},
        7: keyed(7, at=soon),  # only the database refuses it
        8: keyed(8) | {"unknown": "secret words"},
        11: {"kind": "usage", "session_id": "s"},
    }
    spool.append([poison.get(number) or keyed(number) for number in range(20)])
    with caplog.at_level(logging.ERROR):
        assert await spool.drain(session_database, batch=20) == (16, 4, 0, None)
    assert await events(session_database) == (16, 16)
    reasons = {one.position - 1: one.reason for one in spool.poison()}
    assert reasons.keys() == poison.keys()
    assert reasons[3].startswith("tokens_in: expected ")
    assert "five minutes ahead" in reasons[7]
    assert "secret words" not in caplog.text
    assert spool.status().poison == 4
    assert spool.retry_poison() == 4
    assert await spool.drain(session_database) == (0, 4, 0, None)


async def test_an_erased_user_is_poison_and_stops_nobody_else(session_database: SessionDatabase, spool: Spool) -> None:
    await session_database.maintenance.erase_user(A, tombstone=True)
    other = "00000000-0000-0000-0000-000000000002"
    spool.append([keyed(1), keyed(2) | {"user_id": other}])
    assert await spool.drain(session_database) == (1, 1, 0, None)


async def test_a_database_that_is_away_stops_the_drain(
    session_database: SessionDatabase, far: SessionDatabase, proxy: FaultyProxy, spool: Spool
) -> None:
    spool.append([keyed(number) for number in range(5)])
    async with proxy.refusing():
        report = await spool.drain(far)
    assert (report.drained, report.set_aside, report.left) == (0, 0, 5)
    assert report.stopped_by is not None
    assert (await spool.drain(far)).drained == 5
    assert await events(session_database) == (5, 5)


async def test_a_database_that_is_not_migrated_keeps_the_items(session_database: SessionDatabase, spool: Spool) -> None:
    spool.append([keyed(1)])
    async with session_database.engine.begin() as connection:
        await connection.execute(text("ALTER FUNCTION session_lifecycle.record_v1 RENAME TO gone"))
    with pytest.raises(SchemaError):
        await spool.drain(session_database)
    assert (spool.status().items, spool.status().poison) == (1, 0)


async def test_following_waits_for_items_and_for_the_database(
    session_database: SessionDatabase, far: SessionDatabase, proxy: FaultyProxy, spool: Spool
) -> None:
    following = asyncio.create_task(spool.drain(far, follow=True))
    spool.append([keyed(1)])
    await eventually(lambda: spool.status().items == 0)
    with pytest.raises(SpoolError, match="another drainer"):
        await spool.drain(session_database)
    async with proxy.refusing():
        spool.append([keyed(2)])
        await asyncio.sleep(1)
        assert spool.status().items == 1
    await eventually(lambda: spool.status().items == 0)
    assert await events(session_database) == (2, 2)
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
    assert not spool.status().is_draining


async def test_a_wrong_batch_is_refused(session_database: SessionDatabase, spool: Spool) -> None:
    for batch in (0, True, 10**6):
        with pytest.raises(ConfigurationError, match="batch"):
            await spool.drain(session_database, batch=batch)
    with pytest.raises(ConfigurationError, match="spool"):
        session_database.recorder(spool="here")  # type: ignore[arg-type]  # callers without a type checker


# The recorder with a spool


async def test_a_recorder_with_a_spool_delivers_what_is_submitted(
    session_database: SessionDatabase, spool: Spool
) -> None:
    async with session_database.recorder(spool=spool, max_pending=10) as recorder:
        for number in range(500):
            recorder.submit(usage(idempotency_key=f"k{number}"))
        await recorder.flush()
        assert await events(session_database) == (500, 500)
        assert recorder.snapshot().items == 500
        receipt = await recorder.accumulate_usage("s", A, "m", 1)
        assert receipt.session_tokens_in == 501
    assert spool.status().items == 0


async def test_a_recorder_with_a_spool_takes_items_while_the_database_is_away(
    session_database: SessionDatabase,
    far: SessionDatabase,
    proxy: FaultyProxy,
    spool: Spool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lost: list[Item] = []
    async with proxy.refusing():
        recorder = far.recorder(
            spool=spool, max_pending=10, give_up_after=0.5, on_lost=lambda items, _: lost.extend(items)
        )
        async with recorder:
            for number in range(1000):
                recorder.submit(usage(idempotency_key=f"k{number}"))
            await recorder.flush()
            assert recorder.snapshot().pending == 0
        with caplog.at_level(logging.WARNING):
            assert await recorder.close() == []
    assert "1000 items stay in the spool" in caplog.text
    assert (lost, recorder.snapshot().failures) == ([], 0)
    assert spool.status().items == 1000
    # A later process.
    async with session_database.recorder(spool=Spool(spool.path)) as later:
        await later.flush()
        await eventually(lambda: spool.status().items == 0)
    assert await events(session_database) == (1000, 1000)


async def test_two_recorders_share_a_spool_and_the_second_takes_over(
    session_database: SessionDatabase, spool: Spool
) -> None:
    first = session_database.recorder(spool=spool)
    second = session_database.recorder(spool=Spool(spool.path))
    async with second:
        async with first:
            first.submit(usage(idempotency_key="k1"))
            second.submit(usage(idempotency_key="k2"))
            await eventually(lambda: first.snapshot().items + second.snapshot().items == 2)
        second.submit(usage(idempotency_key="k3"))
        await eventually(lambda: spool.status().items == 0)
        await second.flush()
    assert await events(session_database) == (3, 3)


async def test_a_spool_that_is_full_lets_items_wait_in_memory_and_then_tells_the_loss(
    session_database: SessionDatabase, far: SessionDatabase, proxy: FaultyProxy, tmp_path: Path
) -> None:
    lost: list[tuple[Sequence[Item], Exception]] = []
    with Spool(tmp_path / "small", max_bytes=65_536) as small:
        async with proxy.refusing():
            recorder = far.recorder(
                spool=small,
                max_pending=20,
                drain_within=1,
                give_up_after=1,
                on_lost=lambda items, error: lost.append((items, error)),
            )
            await recorder.open()
            for number in range(300):
                recorder.submit(usage(idempotency_key=f"k{number}", model="m" * 400))
            await recorder.flush()
            await eventually(lambda: bool(lost))
        assert isinstance(lost[0][1], SpoolFullError)
        await recorder.flush()
        told = sum(len(items) for items, _ in lost)
        assert recorder.snapshot().failures == told
        await eventually(lambda: small.status().items == 0)
        await recorder.close()
        assert await events(session_database) == (300 - told, 300 - told)


async def test_items_are_redacted_before_they_are_put_into_the_spool(
    session_database_url: str, proxy: FaultyProxy, spool: Spool
) -> None:
    url = make_url(session_database_url).set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)

    def redact(item: Item) -> Item:
        return item.model_copy(update={"title": "hidden"}) if isinstance(item, Touch) else item

    db = SessionDatabase.connect(url, redact=redact)
    async with proxy.refusing(), db, db.recorder(spool=spool) as recorder:
        recorder.submit(Touch(session_id="s", user_id=A, title="secret words"))
    [kept] = spool.read(10)
    assert '"hidden"' in kept.item
    assert "secret words" not in kept.item


def test_a_script_that_ends_at_once_loses_nothing(session_database_url: str, tmp_path: Path) -> None:
    script = """
        spool = Spool(sys.argv[2])
        recorder = SessionDatabase.connect(URL, settings=Settings(connect_timeout_seconds=1)).synchronous_recorder(
            spool=spool, drain_within=float(sys.argv[3])
        )
        for number in range(300):
            recorder.submit(usage(idempotency_key=f"k{number}"))
    """
    away = make_url(session_database_url).set(host="127.0.0.1", port=1).render_as_string(hide_password=False)
    run_script(script, away, str(tmp_path / "spool"), "1")
    with Spool(tmp_path / "spool") as spool:
        assert spool.status().items == 300
        run_script(script, session_database_url, str(tmp_path / "spool"), "20")
        assert spool.status().items == 0


def test_a_forked_child_has_its_own_recorder_on_the_spool(session_database_url: str, tmp_path: Path) -> None:
    run_script(
        """
        recorder = SessionDatabase.connect(URL).synchronous_recorder(spool=Spool(sys.argv[2]))
        recorder.submit(usage(idempotency_key="parent"))
        child = os.fork()
        recorder.submit(usage(idempotency_key="child" if child == 0 else "parent-2"))
        recorder.close()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        with Spool(sys.argv[2]) as spool, SessionDatabase.connect(URL).synchronous_recorder(spool=spool) as last:
            last.flush()
            while spool.count():
                time.sleep(0.05)
        """,
        session_database_url,
        str(tmp_path / "spool"),
    )

    async def stored() -> tuple[int, int]:
        async with SessionDatabase.connect(session_database_url) as db:
            return await events(db)

    assert asyncio.run(stored()) == (3, 3)


# The storm


class Appenders:
    """Eight processes that append. Some are killed, and the next one goes on with keys of its own."""

    def __init__(self, path: Path, items: int) -> None:
        self.kills = 0
        self._chance = random.Random(1)
        self._path = path
        self._items = items
        self._running = {f"{number}-0": self._start(f"{number}-0") for number in range(8)}

    def _start(self, process: str) -> subprocess.Popen[bytes]:
        # The spool is small enough to be full again and again.
        numbers = [str(self._items // 8), "150000"]
        acknowledged = self._path / f"acknowledged-{process}"
        program = SUPPORT / "spool_process.py"
        return subprocess.Popen([sys.executable, program, self._path / "spool", acknowledged, process, *numbers])

    async def run(self, most_kills: int) -> None:
        """Returns when the last process has done its work."""
        while self._running:
            await asyncio.sleep(0.05)
            for process, program in list(self._running.items()):
                if program.poll() is not None:
                    assert program.returncode in {0, -9}
                    del self._running[process]
                    if program.returncode:
                        number, life = process.split("-")
                        following = f"{number}-{int(life) + 1}"
                        self._running[following] = self._start(following)
                elif self.kills < most_kills and self._chance.random() < 0.05:
                    program.kill()
                    self.kills += 1

    def stop(self) -> None:
        for program in self._running.values():
            program.kill()
            program.wait()

    def acknowledged(self) -> set[str]:
        return {line for file in self._path.glob("acknowledged-*") for line in file.read_text().splitlines()}


async def drain_again_and_again(spool: Spool, db: SessionDatabase) -> None:
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(random.uniform(0.5, 3)):
                await spool.drain(db, batch=random.choice((7, 100, 500)), follow=True)


async def fail_again_and_again(proxy: FaultyProxy) -> None:
    while True:
        await asyncio.sleep(random.uniform(0.5, 2))
        async with proxy.refusing():
            await asyncio.sleep(0.3)


async def storm(
    db: SessionDatabase, far: SessionDatabase, proxy: FaultyProxy, path: Path, *, items: int, kills: int
) -> None:
    """The processes, the drainer, the disk and the database fail again and again; at the end nothing is missing."""
    appenders = Appenders(path, items)
    with Spool(path / "spool") as spool:
        work = (drain_again_and_again(spool, far), fail_again_and_again(proxy))
        tasks = [asyncio.create_task(one) for one in work]
        try:
            await appenders.run(kills)
        finally:
            appenders.stop()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        report = await spool.drain(db)
        assert (report.left, report.set_aside, spool.status().poison) == (0, 0, 0)
    assert appenders.kills > kills // 2  # the work may end before the last of them
    acknowledged = appenders.acknowledged()
    assert len(acknowledged) >= items
    async with db.engine.connect() as connection:
        found = await connection.execute(text("SELECT idempotency_key FROM session_lifecycle.session_usage_events"))
        stored = list(found.scalars())
    assert len(stored) == len(set(stored))
    assert acknowledged <= set(stored)


async def test_every_acknowledged_item_is_counted_once(
    session_database: SessionDatabase, far: SessionDatabase, proxy: FaultyProxy, tmp_path: Path
) -> None:
    await storm(session_database, far, proxy, tmp_path, items=1_600, kills=6)


@pytest.mark.soak
async def test_every_one_of_many_acknowledged_items_is_counted_once(
    session_database: SessionDatabase, far: SessionDatabase, proxy: FaultyProxy, tmp_path: Path
) -> None:
    await storm(session_database, far, proxy, tmp_path, items=100_000, kills=60)
