"""One database in several event loops, threads and processes (R23): each call works, or nothing is sent."""

import asyncio
import threading

import asyncpg
import pytest

from session_lifecycle import SessionDatabase, SessionListFilters, Settings
from support.eventually import eventually
from support.scripts import run_script
from support.usage import A

CONNECTIONS = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'session-lifecycle'
"""


async def use(db: SessionDatabase) -> int:
    """Writes and reads. Returns the session's tokens after the call."""
    receipt = await db.lifecycle.accumulate_usage("s", A, "m", 1)
    page = await db.lifecycle.list_session_rows(SessionListFilters(user_id=A))
    assert page.sessions[0].record.tokens_in >= receipt.session_tokens_in
    return receipt.session_tokens_in


async def count_connections(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        counted: int = await connection.fetchval(CONNECTIONS)
        return counted
    finally:
        await connection.close()


async def until_closed(url: str) -> None:
    async def are_closed() -> bool:
        return await count_connections(url) == 0

    await eventually(are_closed, within_seconds=10)


def test_R23_X28_every_asyncio_run_has_a_pool_of_its_own_and_leaves_no_connection(session_database_url: str) -> None:
    db = SessionDatabase.connect(session_database_url)
    for number in range(1, 4):
        assert asyncio.run(use(db)) == number
        asyncio.run(until_closed(session_database_url))

    async def use_and_close() -> int:
        async with db:
            return await use(db)

    assert asyncio.run(use_and_close()) == 4
    assert asyncio.run(use(db)) == 5  # closing is no end: the next call opens again


def test_R23_X28_a_database_made_inside_one_loop_works_in_the_next(session_database_url: str) -> None:
    async def make() -> SessionDatabase:
        db = SessionDatabase.connect(session_database_url, read_url=session_database_url)
        assert db.engine is db.engine
        await use(db)
        return db

    db = asyncio.run(make())
    assert asyncio.run(use(db)) == 2


def test_X28_the_engine_outside_a_loop_is_the_next_loops(session_database_url: str) -> None:
    db = SessionDatabase.connect(session_database_url)
    engine = db.engine

    async def same() -> bool:
        return db.engine is engine

    assert asyncio.run(same())
    assert not asyncio.run(same())


@pytest.mark.parametrize("closes", [True, False], ids=["closed", "the loop ends"])
@pytest.mark.parametrize("has_pool", [True, False], ids=["beside a pool", "alone"])
def test_X28_connections_of_the_engine_outside_a_loop_are_closed(
    session_database_url: str, has_pool: bool, closes: bool
) -> None:
    """A host lends its transactions on that engine, so no call of this library enters the loop."""
    db = SessionDatabase.connect(session_database_url)

    async def lend() -> None:
        if has_pool:
            await use(db)
        engine = await asyncio.to_thread(lambda: db.engine)  # there is no loop in that thread
        assert not has_pool or engine is not db.engine
        async with engine.begin() as connection:
            await db.bind(connection).lifecycle.ensure_and_touch_session("s", A)
        assert await count_connections(session_database_url) == 1 + has_pool
        if closes:
            await db.close()
            await until_closed(session_database_url)

    asyncio.run(lend())
    asyncio.run(until_closed(session_database_url))
    assert asyncio.run(use(db)) > 0


async def test_R23_X28_event_loops_of_several_threads_use_one_database_at_once(session_database_url: str) -> None:
    async def call() -> None:
        for _ in range(10):
            await use(db)

    async with SessionDatabase.connect(session_database_url, settings=Settings(pool_size=2)) as db:
        await asyncio.gather(call(), *(asyncio.to_thread(lambda: asyncio.run(call())) for _ in range(4)))
        assert await use(db) == 51
    await until_closed(session_database_url)


async def test_X28_closing_ends_the_connections_of_a_loop_in_another_thread(session_database_url: str) -> None:
    db = SessionDatabase.connect(session_database_url)
    used, over = threading.Event(), threading.Event()

    async def wait() -> None:
        await use(db)
        used.set()
        await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=asyncio.run, args=(wait(),))
    thread.start()
    await asyncio.to_thread(used.wait)
    assert await count_connections(session_database_url) > 0
    await db.close()
    await until_closed(session_database_url)
    over.set()
    await asyncio.to_thread(thread.join)


def test_X28_connections_of_a_loop_that_was_closed_by_hand_are_given_back(session_database_url: str) -> None:
    said = run_script(
        """
        import gc
        db = SessionDatabase.connect(URL)
        for _ in range(3):
            loop = asyncio.new_event_loop()
            loop.run_until_complete(db.lifecycle.accumulate_usage("s", A, "m", 1))
            loop.close()
        async def count():
            await db.lifecycle.aggregate_stats(A)
            gc.collect()
            await asyncio.sleep(0.3)
            async with db.engine.connect() as connection:
                sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'session-lifecycle'"
                print((await connection.exec_driver_sql(sql + " AND datname = current_database()")).scalar())
        asyncio.run(count())
        """,
        session_database_url,
    )
    assert said == "1"


FORK = """
loop = asyncio.new_event_loop()
db = SessionDatabase.connect(URL)
async def use():
    receipt = await db.lifecycle.accumulate_usage("s", A, "m", 1)
    async with db.engine.connect() as connection:
        return receipt.session_tokens_in, (await connection.exec_driver_sql("SELECT pg_backend_pid()")).scalar()
before = loop.run_until_complete(use())
child = os.fork()
if child == 0:
    {in_child}
    sys.stdout.flush()
    os._exit(0) if {exits_hard} else sys.exit(0)
_, code = os.waitpid(child, 0)
after = loop.run_until_complete(use())
print("same backend", before[1] == after[1], "tokens", after[0], "code", code)
loop.run_until_complete(db.close())
loop.close()
"""


@pytest.mark.parametrize("exits_hard", [True, False])
@pytest.mark.parametrize(
    ("in_child", "tokens"),
    [
        ("asyncio.run(use())", 3),
        ("loop.run_until_complete(use())", 3),  # the very loop of the parent, as with `gunicorn --preload`
        ("loop.run_until_complete(db.close())", 2),
        ("import gc; del db, use; gc.collect()", 2),
    ],
)
def test_R23_X28_a_forked_child_has_a_pool_of_its_own_and_leaves_the_parents_alone(
    session_database_url: str, in_child: str, tokens: int, exits_hard: bool
) -> None:
    said = run_script(FORK.format(in_child=in_child, exits_hard=exits_hard), session_database_url)
    assert said == f"same backend True tokens {tokens} code 0"


HOST = """
from sqlalchemy import NullPool, text
from sqlalchemy.ext.asyncio import create_async_engine
async_url = URL.replace("postgresql://", "postgresql+asyncpg://")
engine = create_async_engine(async_url{options})
db = SessionDatabase.from_engine(engine)
async def use():
    return (await db.lifecycle.accumulate_usage("s", A, "m", 1)).session_tokens_in
async def read():
    return (await db.lifecycle.aggregate_stats(A)).tokens_in
async def bound():
    async with engine.connect() as connection:
        return await db.bind(connection).lifecycle.accumulate_usage("s", A, "m", 1)
async def by_host():
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
def attempt(call):
    try:
        print(asyncio.run(call()), end=" ")
    except Exception as error:
        print(type(error).__name__, end=" ")
"""


@pytest.mark.parametrize(
    ("options", "calls", "expected"),
    [
        ("", "attempt(use); attempt(use); attempt(read)", "1 ConfigurationError ConfigurationError"),
        ("", "attempt(read); attempt(read); attempt(use)", "0 ConfigurationError ConfigurationError"),
        ("", "attempt(by_host); attempt(use); attempt(read)", "None ConfigurationError ConfigurationError"),
        ("", "attempt(use); attempt(bound)", "1 ConfigurationError"),
        (", pool_pre_ping=True", "attempt(by_host); attempt(use)", "None ConfigurationError"),
        (", poolclass=NullPool", "attempt(use); attempt(use); attempt(read)", "1 2 2"),
        ("", "attempt(use); asyncio.run(engine.dispose(close=False)); attempt(use); attempt(read)", None),
    ],
)
def test_R23_X28_a_hosts_engine_in_another_loop_raises_before_anything_is_sent(
    session_database_url: str, options: str, calls: str, expected: str | None
) -> None:
    said = run_script(HOST.format(options=options) + calls, session_database_url)
    if expected is None:  # disposed: a new pool, in which the third loop finds the connection of the second
        expected = "1 2 ConfigurationError"
    assert said.split() == expected.split()
    written = sum(word.isdigit() for word in expected.split()[: calls.count("attempt(use)")])
    assert asyncio.run(stored_tokens(session_database_url)) <= written


async def stored_tokens(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        counted: int = await connection.fetchval(
            "SELECT coalesce(sum(tokens_in), 0)::bigint FROM session_lifecycle.session_records"
        )
        return counted
    finally:
        await connection.close()


def test_X28_a_hosts_engine_in_a_forked_child_raises_until_it_is_disposed(session_database_url: str) -> None:
    said = run_script(
        HOST.format(options="")
        + """
loop = asyncio.new_event_loop()
loop.run_until_complete(use())
child = os.fork()
if child == 0:
    attempt(use)
    engine.sync_engine.dispose(close=False)
    attempt(use)
    sys.stdout.flush()
    os._exit(0)
os.waitpid(child, 0)
print(loop.run_until_complete(use()))
loop.run_until_complete(engine.dispose())
""",
        session_database_url,
    )
    assert said == "ConfigurationError 2 3"


async def test_X28_rolling_up_in_two_loops_does_not_share_a_lock(session_database: SessionDatabase) -> None:
    async def roll_up() -> None:
        async with session_database.rolling_up(every=0.001) as rolling_up:
            await eventually(lambda: rolling_up.snapshot().runs >= 5)
            assert rolling_up.snapshot().failures == 0

    await asyncio.gather(roll_up(), asyncio.to_thread(asyncio.run, roll_up()))


async def test_X28_a_background_roll_up_is_closed_from_another_loop(session_database: SessionDatabase) -> None:
    async with session_database.rolling_up(every=60) as rolling_up:
        with pytest.raises(Exception, match="another event loop"):
            await asyncio.to_thread(asyncio.run, rolling_up.__aenter__())
        await asyncio.to_thread(asyncio.run, rolling_up.close())
        async with asyncio.timeout(5):
            await rolling_up.close()
