"""Runs, steps, messages, usage and attempts of a session block, on every way to write them."""

import asyncio
import contextvars
import inspect
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.engine import make_url

from session_lifecycle import (
    ConfigurationError,
    InvalidValueError,
    RecorderClosedError,
    RecorderFullError,
    SessionDatabase,
    SessionLifecycleError,
    Settings,
    Spool,
    SpoolError,
    current_run,
    current_session,
    traced,
)
from session_lifecycle.models import Item
from session_lifecycle.writing.run_block import RunBlock
from session_lifecycle.writing.session_block import SessionBlock
from session_lifecycle.writing.spool_session import SpoolSession
from support.eventually import eventually
from support.faulty_proxy import FaultyProxy
from support.scripts import run_script
from support.usage import A

Block = SessionBlock | SpoolSession


@dataclass
class Way:
    """A way to write: how a session is opened, and what was told to `on_lost`."""

    open: Callable[..., Block]
    settle: Callable[[], Any]
    lost: list[tuple[Sequence[Item], SessionLifecycleError]] = field(default_factory=list)


@pytest_asyncio.fixture(params=["direct", "recorder", "recorder with spool", "spool"])
async def way(request: pytest.FixtureRequest, session_database: SessionDatabase, tmp_path: Path) -> AsyncIterator[Way]:
    lost: list[tuple[Sequence[Item], SessionLifecycleError]] = []

    def on_lost(items: Sequence[Item], error: SessionLifecycleError) -> None:
        lost.append((items, error))

    async def nothing() -> None:
        return

    spool = Spool(tmp_path / "spool")
    if request.param == "direct":
        yield Way(lambda *ids, **more: session_database.session(*ids, on_lost=on_lost, **more), nothing, lost)
    elif request.param == "spool":
        yield Way(
            lambda *ids, **more: spool.session(*ids, on_lost=on_lost, **more),
            lambda: spool.drain(session_database),
            lost,
        )
    else:
        with_spool = spool if "spool" in request.param else None
        async with session_database.recorder(on_lost=on_lost, spool=with_spool) as recorder:
            yield Way(recorder.session, recorder.flush, lost)
    spool.close()


async def rows(db: SessionDatabase, sql: str) -> list[tuple[Any, ...]]:
    async with db.engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(text(sql))]


async def runs(db: SessionDatabase, columns: str = "name, status") -> list[tuple[Any, ...]]:
    return await rows(db, f"SELECT {columns} FROM session_lifecycle.session_runs ORDER BY started_at, name")


async def events(
    db: SessionDatabase, columns: str = "model, tokens_in, measured, errored", order: str = "tokens_in, model"
) -> list[tuple[Any, ...]]:
    return await rows(db, f"SELECT {columns} FROM session_lifecycle.session_usage_events ORDER BY {order}")


async def sessions(db: SessionDatabase, columns: str = "session_id, status") -> list[tuple[Any, ...]]:
    return await rows(db, f"SELECT {columns} FROM session_lifecycle.session_records ORDER BY session_id")


async def test_a_run_with_all_its_parts(session_database: SessionDatabase, way: Way) -> None:
    async with way.open("s", A, agent_name="coder") as session:
        session.message("user", "hello")
        async with session.run("answer", input={"q": 1}) as run:
            run.message("ai", "hi", message_id="m1")
            with run.step("tool", "search", tool_call_id="call-1", inputs={"a": 1}) as step, run.step("task") as inner:
                step.output = [1]
            run.usage("gpt-4o", 120, 40, 0.5, cache_read_tokens=20, idempotency_key="response-1", web_searches=2)
            run.output = "done"
    await way.settle()
    assert way.lost == []
    columns = "run_id, session_id, name, status, agent_name, input, output, parent_run_id, ended_at >= started_at"
    assert await runs(session_database, columns) == [
        (run.run_id, "s", "answer", "completed", "coder", {"q": 1}, "done", None, True)
    ]
    steps = "SELECT kind, name, tool_call_id, inputs, output, parent_step_id, ended_at IS NOT NULL, is_error "
    assert await rows(session_database, f"{steps} FROM session_lifecycle.session_steps ORDER BY started_at") == [
        ("tool", "search", "call-1", {"a": 1}, [1], None, True, False),
        ("task", None, None, None, None, step.step_id, True, False),
    ]
    assert inner.run_id == run.run_id
    messages = "SELECT role, content, run_id FROM session_lifecycle.session_messages ORDER BY created_at"
    assert await rows(session_database, messages) == [("user", "hello", None), ("assistant", "hi", run.run_id)]
    usage = "model, tokens_in, tokens_out, cost_usd::float, cache_read_tokens, idempotency_key, run_id, parts"
    assert await events(session_database, usage) == [
        ("gpt-4o", 120, 40, 0.5, 20, "response-1", run.run_id, {"web_searches": 2})
    ]
    assert await sessions(session_database) == [("s", "completed")]


@pytest.mark.parametrize(
    ("error", "status", "session_status"),
    [(ZeroDivisionError("by zero"), "failed", "failed"), (asyncio.CancelledError(), "cancelled", "failed"),
     (KeyboardInterrupt(), "cancelled", "failed"), (GeneratorExit(), "cancelled", "failed")],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value,
)  # fmt: skip
async def test_an_exception_passes_as_it_is_and_marks_run_and_step(
    session_database: SessionDatabase, way: Way, error: BaseException, status: str, session_status: str
) -> None:
    async def live() -> None:
        async with way.open("s", A) as session:
            with session.run("outer") as run, run.step("tool"), run.attempt("m"):
                raise error

    caught: BaseException | None = None
    try:
        await live()
    except BaseException as raised:  # noqa: BLE001 - it is compared below
        caught = raised
    assert caught is error
    await way.settle()
    assert await runs(session_database) == [("outer", status)]
    [(told,)] = await runs(session_database, "error")
    assert told == ("ZeroDivisionError: by zero" if status == "failed" else "cancelled")
    [(errors,)] = await rows(session_database, "SELECT errors FROM session_lifecycle.session_steps")
    assert errors[0]["type"] == ("ZeroDivisionError" if status == "failed" else "cancelled")
    # A failing provider bills nothing; of a cancelled call nobody knows.
    assert await events(session_database) == [("m", 0, status == "failed", status == "failed")]
    assert await sessions(session_database) == [("s", session_status)]


async def test_runs_nest_by_context_in_tasks_and_threads(session_database: SessionDatabase, way: Way) -> None:
    async def child(session: Block, name: str) -> None:
        await asyncio.sleep(0)
        with session.run(name):
            await asyncio.sleep(0.01)
            found = current_run()
            assert found is not None
            with found.run(f"{name} below"):
                pass

    def in_thread(session: Block) -> None:
        with session.run("in a copy"):
            pass

    async with way.open("s", A) as session:
        with session.run("root") as root:
            await asyncio.gather(child(session, "one"), child(session, "two"))
            thread = threading.Thread(target=contextvars.copy_context().run, args=(in_thread, session))
            thread.start()
            thread.join()
            await asyncio.to_thread(in_thread, session)
            assert current_run() is root
        assert current_run() is None
        with session.run("alone"):
            pass
    await way.settle()
    named: dict[str, str] = {row[0]: row[1] for row in await runs(session_database, "run_id, name")}
    parents = await runs(session_database, "name, parent_run_id")
    assert sorted((name, named.get(parent)) for name, parent in parents) == sorted(
        [("alone", None), ("root", None), ("one", "root"), ("two", "root"), ("one below", "one"),
         ("two below", "two"), ("in a copy", "root"), ("in a copy", "root")]
    )  # fmt: skip


async def test_a_child_session_names_its_parent_and_its_runs_begin_anew(
    session_database: SessionDatabase, way: Way
) -> None:
    async with way.open("parent", A) as parent:
        with parent.run("outer"):
            async with parent.child("child", agent_name="helper") as child:
                with child.run("inner") as inner:
                    inner.usage("m", 10)
    async with way.open("named", A, parent_session_id="parent"):
        pass
    await way.settle()
    assert await sessions(session_database, "session_id, parent_session_id, agent_name") == [
        ("child", "parent", "helper"),
        ("named", "parent", None),
        ("parent", None, None),
    ]
    assert await sessions(session_database, "tokens_in, late_events") == [(10, 0), (0, 0), (0, 0)]
    assert await runs(session_database, "name, session_id, parent_run_id") == [
        ("outer", "parent", None),
        ("inner", "child", None),
    ]


async def test_callbacks_begin_and_finish_by_themselves(session_database: SessionDatabase, way: Way) -> None:
    session = way.open("s", A)
    async with session:
        run = session.run("r", run_id="r1")
        run.begin()
        run.begin()
        step = run.step("tool", step_id="t1").begin()
        step.finish("it broke", output={"a": 1}, metadata={"b": 2})
        step.finish()
        run.finish(status="failed", output=1, metadata={"k": "v"})
        run.finish("too late")
    await way.settle()
    assert await runs(session_database, "run_id, status, output, error, metadata") == [
        ("r1", "failed", 1, None, {"k": "v"})
    ]
    steps = "SELECT step_id, errors, output, metadata FROM session_lifecycle.session_steps"
    assert await rows(session_database, steps) == [("t1", [{"message": "it broke"}], {"a": 1}, {"b": 2})]


# Attempts


async def test_an_attempt_is_counted_once_by_what_closes_it(session_database: SessionDatabase, way: Way) -> None:
    async with way.open("s", A) as session:
        with session.run("r") as run:
            run.attempt("asked", "openai").usage("served", 10, idempotency_key="response-1")
            run.attempt("asked", "openai", idempotency_key="mine").usage(tokens_in=11)
            run.attempt("failed").fail(ValueError())
            run.attempt("cancelled").fail(asyncio.CancelledError())
            run.attempt("empty").usage()
            run.attempt("error").usage(errored=True)
            with run.attempt("left open"):
                pass
            never_closed = run.attempt("never closed")
            assert never_closed.is_open
        assert not never_closed.is_open
        of_session = session.attempt("of the session", kind="embedding")
    assert not of_session.is_open
    await way.settle()
    assert await events(session_database, "model, provider, tokens_in, measured, errored, kind", "model") == [
        ("asked", "openai", 11, True, False, "llm"),
        ("cancelled", None, 0, False, False, "llm"),
        ("empty", None, 0, False, False, "llm"),
        ("error", None, 0, True, True, "llm"),
        ("failed", None, 0, True, True, "llm"),
        ("left open", None, 0, False, False, "llm"),
        ("never closed", None, 0, False, False, "llm"),
        ("of the session", None, 0, False, False, "embedding"),
        ("served", "openai", 10, True, False, "llm"),
    ]
    keys = {key for (key,) in await events(session_database, "idempotency_key")}
    assert {"response-1", "mine"} <= keys
    assert len(keys) == 9
    assert way.lost == []


async def test_what_is_told_again_takes_the_place_of_what_was_told(session_database: SessionDatabase, way: Way) -> None:
    async with way.open("s", A) as session:
        with session.run("r") as run:
            growing, measured, empty = run.attempt("growing"), run.attempt("measured"), run.attempt("discarded")
            for tokens_out in (1, 2, 2):
                growing.usage(tokens_out=tokens_out, idempotency_key="response-1")
            measured.usage(tokens_out=7)
            measured.fail(ValueError())
            empty.discard()
            empty.cancel()
    await way.settle()
    assert await events(session_database, "model, tokens_out, errored, revision", "model") == [
        ("growing", 2, False, 1),
        ("measured", 7, False, 0),
    ]
    assert await sessions(session_database, "tokens_out, error_count") == [(9, 0)]


async def test_a_run_that_is_given_up_with_its_attempt_may_end_later(
    session_database: SessionDatabase, way: Way
) -> None:
    async with way.open("s", A) as session:
        left, late, ended = (session.run(name, run_id=name).begin() for name in ("left", "late", "ended"))
        for run in (left, late):
            run.attempt("m", on_cancelled=run.cancel).cancel()
        late.finish(output="after all")
        ended.finish(ValueError())
        ended.cancel()
    await way.settle()
    sql = "SELECT run_id, status::text, output FROM session_lifecycle.session_runs ORDER BY run_id"
    assert await rows(session_database, sql) == [
        ("ended", "failed", None),
        ("late", "completed", "after all"),
        ("left", "cancelled", None),
    ]


async def test_a_response_that_comes_late_takes_the_place_of_the_unknown(
    session_database: SessionDatabase, way: Way
) -> None:
    async with way.open("s", A) as session:
        with session.run("r") as run:
            attempt = run.attempt("m")
            again = run.attempt("m2")
        attempt.usage("served", 10, idempotency_key="response-1")
        attempt.usage("served", 10, idempotency_key="response-1")
        attempt.cancel()
        again.fail()
    await way.settle()
    assert await events(session_database, "model, tokens_in, measured, errored, revision", "model") == [
        ("m2", 0, True, True, 1),
        ("served", 10, True, False, 1),
    ]
    [(unmeasured,)] = await sessions(session_database, "unmeasured_events")
    assert unmeasured == 0


async def test_an_attempt_that_takes_too_long_is_closed(session_database: SessionDatabase, way: Way) -> None:
    async with way.open("s", A, attempt_timeout=0.05) as session:
        with session.run("r") as run:
            attempt = run.attempt("m")
            later = run.attempt("m2")
            await eventually(lambda: not (attempt.is_open or later.is_open))
            later.usage("m2", 7)
    await way.settle()
    assert await events(session_database, "model, tokens_in, measured", "model") == [("m", 0, False), ("m2", 7, True)]


async def test_refused_counts_leave_an_unmeasured_event(session_database: SessionDatabase, way: Way) -> None:
    async with way.open("s", A) as session:
        with session.run("r") as run:
            run.attempt("m").usage("m", -5)
            run.attempt("m").usage("m", 5, idempotency_key="k" * 600)
        await asyncio.sleep(0)
    await way.settle()
    assert await events(session_database) == [("m", 0, False, False)] * 2
    assert [type(error) for _, error in way.lost] == [InvalidValueError] * 2


async def test_recorded_again_nothing_is_doubled(session_database: SessionDatabase, way: Way) -> None:
    for _ in range(2):
        async with way.open("s", A) as session:
            with session.run("r", run_id="r1") as run:
                run.message("user", "hello", message_id="m1")
                with run.step("tool", step_id="t1"):
                    pass
                run.usage("m", 10, idempotency_key="response-1")
                run.attempt("m", idempotency_key="attempt-1")
        await way.settle()
    assert len(await runs(session_database)) == 1
    assert await events(session_database, "idempotency_key, tokens_in", "idempotency_key") == [
        ("attempt-1", 0),
        ("response-1", 10),
    ]
    for table in ("session_steps", "session_messages"):
        assert await rows(session_database, f"SELECT count(*) FROM session_lifecycle.{table}") == [(1,)]


# Trouble of ours stays ours


async def test_values_that_are_refused_are_told_and_never_raised(session_database: SessionDatabase, way: Way) -> None:
    class BrokenError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    async with way.open("s", A) as session:
        with session.run("r", run_id="x" * 9000, metadata={"a": object()}) as run:
            run.message("nobody", "text")
            run.message("user", object())
            run.usage("m", "many")  # type: ignore[arg-type]
            with run.step("tool") as step:
                step.output = object()
        with suppress(BrokenError), session.run("broken", model=3, input=object()):  # type: ignore[arg-type]
            raise BrokenError
    await way.settle()
    assert len(way.lost) >= 4
    assert all(isinstance(error, SessionLifecycleError) for _, error in way.lost)
    assert await sessions(session_database) == [("s", "completed")]


async def test_the_log_names_the_item_that_a_refused_value_was_of(
    session_database: SessionDatabase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    named = "tokens_in: expected a whole number from 0 to 1,000,000,000,000; UsageEvent, session_id 's', run_id 'r1'"
    spool = Spool(tmp_path / "spool")
    async with session_database.recorder() as recorder:
        for session in (recorder.session("s", A, quiet=True), spool.session("s", A)):
            caplog.clear()
            async with session, session.run("r", run_id="r1") as run:
                run.usage("m", tokens_in=-987654321, idempotency_key="k")
                run.message("nobody", "secret")
            await recorder.flush()
            assert f"{named}, idempotency_key 'k'" in caplog.text
            assert (
                "role: expected one of user, assistant, system, tool, thought; Message, session_id 's'" in caplog.text
            )
            assert "987654321" not in caplog.text
            assert "secret" not in caplog.text
    spool.close()


@pytest_asyncio.fixture
async def away(session_database_url: str) -> AsyncIterator[SessionDatabase]:
    """A database that cannot be reached."""
    url = make_url(session_database_url).set(host="127.0.0.1", port=1).render_as_string(hide_password=False)
    settings = Settings(connect_timeout_seconds=1, retries=0)
    async with SessionDatabase.connect(url, settings=settings) as db:
        yield db


async def work(session: Block) -> str:
    async with session:
        with session.run("r") as run, run.step("tool"):
            run.message("user", "hello")
            run.usage("m", 10)
            run.attempt("m")
            return "the host's result"


async def test_the_host_goes_on_while_the_database_is_away(away: SessionDatabase, tmp_path: Path) -> None:
    lost: list[Item] = []
    options: dict[str, Any] = {
        "on_lost": lambda items, _: lost.extend(items), "give_up_after": 0.2, "drain_within": 0.5, "max_pending": 5,
    }  # fmt: skip
    async with away.recorder(**options) as recorder:
        # Nothing waits for the database: the work is done before the event loop has run once.
        with pytest.raises(StopIteration) as end:
            work(recorder.session("s", A, quiet=True)).send(None)
        assert end.value.value == "the host's result"
    assert len(lost) == recorder.snapshot().failures == 9
    spool = Spool(tmp_path / "spool")
    async with away.recorder(spool=spool, **options) as recorder:
        with pytest.raises(StopIteration) as end:
            work(recorder.session("s", A)).send(None)
        assert end.value.value == "the host's result"
    assert (recorder.snapshot().failures, spool.status().items) == (0, 9)
    spool.close()
    lost.clear()
    assert await work(away.session("s", A, quiet=True, on_lost=options["on_lost"])) == "the host's result"
    assert len(lost) == 9


async def test_a_recorder_that_is_closed_or_full_costs_the_host_nothing(session_database: SessionDatabase) -> None:
    errors: list[SessionLifecycleError] = []

    def on_lost(_: Sequence[Item], error: SessionLifecycleError) -> None:
        errors.append(error)
        raise ZeroDivisionError

    recorder = session_database.recorder(on_lost=on_lost)
    assert await work(recorder.session("never opened", A, quiet=True)) == "the host's result"
    assert {type(error) for error in errors} == {RecorderClosedError}
    errors.clear()
    async with session_database.recorder(on_lost=on_lost, max_pending=2) as recorder:
        assert await work(recorder.session("full", A, quiet=True)) == "the host's result"
        await recorder.flush()
        assert {type(error) for error in errors} == {RecorderFullError}
    errors.clear()
    assert await work(recorder.session("closed", A, quiet=True)) == "the host's result"
    await asyncio.sleep(0)
    assert {type(error) for error in errors} == {RecorderClosedError}


async def test_a_spool_that_cannot_be_written_costs_the_host_nothing(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("this is a file")
    errors: list[SessionLifecycleError] = []
    session = Spool(tmp_path / "spool").session("s", A, on_lost=lambda _, error: errors.append(error))
    assert await work(session) == "the host's result"
    assert {type(error) for error in errors} <= {ConfigurationError, SpoolError}
    assert errors


async def test_open_attempts_are_closed_with_their_recorder(session_database: SessionDatabase) -> None:
    async with session_database.recorder() as recorder:
        session = recorder.session("s", A)
        session.begin()
        attempt = session.run("never finished").begin().attempt("m")
    assert not attempt.is_open
    assert await events(session_database) == [("m", 0, False, False)]
    assert await runs(session_database) == [("never finished", "running")]


def test_an_open_attempt_does_not_keep_the_program_from_ending(session_database_url: str) -> None:
    script = """
        recorder = SessionDatabase.connect(URL).synchronous_recorder()
        session = recorder.session("s", A, quiet=True).begin()
        run = session.run("r").begin()
        attempt = run.attempt("m")
        print("the end")
    """
    assert run_script(script, session_database_url) == "the end"

    async def stored() -> list[tuple[Any, ...]]:
        async with SessionDatabase.connect(session_database_url) as db:
            return await events(db)

    assert asyncio.run(stored()) == [("m", 0, False, False)]


async def test_a_forked_child_leaves_the_attempts_to_the_parent(
    session_database: SessionDatabase, session_database_url: str
) -> None:
    script = """
        recorder = SessionDatabase.connect(URL).synchronous_recorder()
        with recorder.session("s", A) as session, session.run("r") as run:
            attempt = run.attempt("m")
            if (child := os.fork()) == 0:
                recorder.close()
                os._exit(0)
            os.waitpid(child, 0)
            attempt.usage("m", 5)
        recorder.close()
    """
    await asyncio.to_thread(run_script, script, session_database_url)
    assert await events(session_database, "tokens_in, measured, revision") == [(5, True, 0)]


async def test_blocks_of_synchronous_code_have_the_same_names(session_database: SessionDatabase) -> None:
    def live(*, quiet: bool) -> None:
        with session_database_recorder.session(f"s-{quiet}", A, quiet=quiet) as session:
            with session.run("r") as run, run.step("tool"):
                run.usage("m", 10)
                run.message("user", "hello")
                helper()
            with session.child(f"c-{quiet}") as child, child.run("c"):
                pass

    @traced
    def helper() -> None:
        run = current_run()
        assert run is not None
        run.attempt("m")

    with await asyncio.to_thread(session_database.synchronous_recorder) as session_database_recorder:
        for quiet in (False, True):
            await asyncio.to_thread(live, quiet=quiet)
        await asyncio.to_thread(session_database_recorder.flush)
        assert await sessions(session_database, "session_id, status, parent_session_id") == [
            ("c-False", "completed", "s-False"),
            ("c-True", "completed", "s-True"),
            ("s-False", "completed", None),
            ("s-True", "completed", None),
        ]
        assert await runs(session_database) == [("r", "completed"), ("helper", "completed"), ("c", "completed")] * 2
        assert await events(session_database, "tokens_in, measured") == [(0, False)] * 2 + [(10, True)] * 2
        await asyncio.to_thread(session_database_recorder.close)


async def test_a_wrong_timeout_is_refused_at_once(session_database: SessionDatabase) -> None:
    for wrong in (0, -1, float("nan"), True):
        with pytest.raises(ConfigurationError, match="attempt_timeout"):
            session_database.session("s", A, attempt_timeout=wrong)


# traced


async def test_traced_functions_are_runs_or_steps_and_stay_as_they_are(
    session_database: SessionDatabase, way: Way
) -> None:
    @traced
    async def coroutine(number: int) -> int:
        await asyncio.sleep(0)
        return function(number) + 1

    @traced(name="sum", agent_name="adder")
    def function(number: int) -> int:
        return tool(number) + 1

    @traced(step="tool")
    def tool(number: int) -> int:
        if number < 0:
            raise ValueError("negative")
        return number

    assert (await coroutine(1), coroutine.__name__, inspect.iscoroutinefunction(coroutine)) == (3, "coroutine", True)
    async with way.open("s", A):
        assert await coroutine(1) == 3
        assert tool(1) == 1
        with pytest.raises(ValueError, match="negative"):
            await coroutine(-1)
    await way.settle()
    columns = "name, status, agent_name, parent_run_id IS NULL"
    assert await runs(session_database, columns) == [
        ("coroutine", "completed", None, True),
        ("sum", "completed", "adder", False),
        ("coroutine", "failed", None, True),
        ("sum", "failed", "adder", False),
    ]
    steps = "SELECT name, kind, is_error FROM session_lifecycle.session_steps ORDER BY started_at"
    assert await rows(session_database, steps) == [("tool", "tool", False), ("tool", "tool", True)]


async def test_traced_generators_are_runs_that_the_caller_is_not_in(
    session_database: SessionDatabase, way: Way
) -> None:
    seen: list[RunBlock | None] = []

    @traced
    def generator(most: int) -> Generator[int, str, str]:
        for number in range(most):
            seen.append(current_run())
            assert (yield number) in {None, "sent"}
        return "returned"

    @traced
    async def stream(most: int) -> AsyncGenerator[int]:
        for number in range(most):
            seen.append(current_run())
            yield number
        raise ZeroDivisionError

    async with way.open("s", A):
        running = generator(2)
        assert next(running) == 0
        assert current_run() is None
        assert running.send("sent") == 1
        with pytest.raises(StopIteration, match="returned"):
            next(running)
        with pytest.raises(ZeroDivisionError):
            assert [number async for number in stream(2)] == [0, 1]
        abandoned = stream(5)
        assert await anext(abandoned) == 0
        assert current_run() is None
        await abandoned.aclose()
    await way.settle()
    assert await runs(session_database) == [("generator", "completed"), ("stream", "failed"), ("stream", "cancelled")]
    assert len({run.run_id for run in seen if run is not None}) == 3
    assert list(generator(3)) == [0, 1, 2]


async def test_the_innermost_blocks_are_found(session_database: SessionDatabase) -> None:
    async with session_database.session("outer", A) as outer:
        with outer.run("a") as a:
            async with session_database.session("inner", UUID(int=2)) as inner:
                assert current_session() is inner
                assert current_run() is a
                with inner.run("b") as b:
                    assert current_run() is b
            assert current_session() is outer
    assert await runs(session_database, "name, session_id, parent_run_id") == [
        ("a", "outer", None),
        ("b", "inner", None),
    ]


async def test_a_session_that_writes_directly_has_everything_written_when_it_is_left(
    session_database: SessionDatabase, session_database_url: str
) -> None:
    proxy = FaultyProxy(make_url(session_database_url).port or 5432, 0.0)
    async with proxy.running():
        url = make_url(session_database_url).set(host="127.0.0.1", port=proxy.port)
        async with SessionDatabase.connect(url.render_as_string(hide_password=False)) as far:
            async with far.session("s", A) as session:
                for number in range(100):
                    with session.run(f"r{number}") as run:
                        run.usage("m", 1)
            found = await session_database.lifecycle.get_session_row("s", A)
    assert found is not None
    assert (found.record.tokens_in, found.record.late_events, found.effective_status) == (100, 0, "completed")
