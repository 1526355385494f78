"""The time limit of attempts: whoever is open for too long is closed, and nothing else is remembered."""

import threading
from typing import Any

import pytest

from session_lifecycle.writing import attempt
from session_lifecycle.writing.quiet import QuietWriter
from session_lifecycle.writing.session_trace import SessionTrace
from support.usage import A


def trace(items: list[Any], **more: Any) -> SessionTrace:
    return SessionTrace(QuietWriter(items.append, lambda *_: None), "s", A, **more)


@pytest.mark.parametrize("left_open", [0, 1, 300])
def test_closed_attempts_are_not_remembered_until_their_deadlines(left_open: int) -> None:
    session = trace([])
    still_open = [session.attempt("open") for _ in range(left_open)]
    most = 0
    for _ in range(3000):
        session.attempt("m").usage("m", 1)
        entries: list[Any] = attempt._watch._entries  # noqa: SLF001 - what is remembered # pyright: ignore[reportPrivateUsage]
        most = max(most, len(entries))
    assert left_open < most <= max(attempt.FEW_ENTRIES, 2 * left_open)
    for one in still_open:
        one.discard()


def test_a_shorter_deadline_comes_first_and_a_closed_one_changes_nothing() -> None:
    items: list[Any] = []
    closed = threading.Event()
    longer = trace(items, attempt_timeout=3600)
    still_open, answered = longer.attempt("open"), longer.attempt("answered")
    answered.usage("answered", 1)
    late = trace(items, attempt_timeout=0.01).attempt("late", on_cancelled=closed.set)
    assert closed.wait(30)
    assert (late.is_open, still_open.is_open) == (False, True)
    assert [(item.model, item.measured) for item in items] == [("answered", True), ("late", False)]
    still_open.discard()


def test_an_attempt_is_open_until_what_its_end_records_is_handed_over() -> None:
    """Who finds nothing open flushes or closes the recorder, perhaps while another thread closes the attempt."""
    handed_over: list[bool] = []
    writer = QuietWriter(lambda _: handed_over.append(bool(writer.open)), lambda *_: None)
    run = SessionTrace(writer, "s", A).run("agent")
    run.begin()
    handed_over.clear()
    run.attempt("m", on_cancelled=run.finish).cancel()
    assert handed_over == [True, True]
    assert not writer.open
