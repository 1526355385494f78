"""A long label is cut, an id is kept as it is, content and roles of other sources are read (rule R26, finding X16)."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from session_lifecycle import InvalidValueError
from session_lifecycle.models import (
    Message,
    Run,
    RunFilters,
    SessionListFilters,
    Step,
    SummaryFilters,
    Touch,
    UsageEvent,
)
from session_lifecycle.models.fields import ID_BYTES, LABEL_BYTES, LABEL_CHARACTERS, MODEL_BYTES, Value, cut
from session_lifecycle.models.maintenance import Pruning
from session_lifecycle.models.session_details import OneDetail

USER = UUID(int=1)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SESSION = {"session_id": "s", "user_id": USER}
VALID: dict[type[Value], dict[str, Any]] = {
    Touch: SESSION,
    UsageEvent: SESSION,
    Run: {"run_id": "r", "user_id": USER, "started_at": NOON},
    Step: {"step_id": "t", "run_id": "r", "user_id": USER, "kind": "task", "started_at": NOON},
    Message: {**SESSION, "message_id": "m", "role": "user", "content": "c", "created_at": NOON},
    SessionListFilters: {},
    SummaryFilters: {},
    RunFilters: {},
    OneDetail: {"session_id": "s"},
    Pruning: {"older_than": timedelta(days=1), "batch": 1, "dry_run": True},
}
LABELS = {"agent_name", "client", "kind", "model", "name", "project", "provider", "server_url", "title"}
IDS = {
    "message_id", "parent_run_id", "parent_step_id", "parent_tool_call_id", "root_run_id", "run_id", "step_id",
    "tool_call_id",
}  # fmt: skip


def fields(names: set[str]) -> list[tuple[type[Value], str]]:
    # The kind of a usage event is one of two words, and no label.
    return [
        (model, name)
        for model in VALID
        for name in model.model_fields
        if name in names and (model, name) != (UsageEvent, "kind")
    ]


def with_field(model: type[Value], name: str, value: Any) -> Any:
    return getattr(model.of_call(**{**VALID[model], name: value}), name)


@pytest.mark.parametrize(("model", "name"), fields(LABELS))
@pytest.mark.parametrize("character", ["x", "é", "漢", "🙂", "e\u0301"])
def test_X16_a_long_label_is_cut_with_a_mark(model: type[Value], name: str, character: str) -> None:
    given_label = character * 3_000
    kept = with_field(model, name, given_label)
    assert kept.endswith("…")
    assert given_label.startswith(kept[:-1])
    assert len(kept) > 100
    assert len(kept.encode()) <= {"name": 4_000, "server_url": 4_000, "title": 4_000, "model": MODEL_BYTES}.get(
        name, LABEL_BYTES
    )
    assert with_field(model, name, kept) == kept
    assert with_field(model, name, given_label) == kept


@pytest.mark.parametrize("character", ["x", "🙂", "\0", "\ud800"])
@pytest.mark.parametrize(
    ("recorded", "chosen"),
    [
        ((Touch, "agent_name"), (SessionListFilters, "agent_names")),
        ((Touch, "agent_name"), (SummaryFilters, "agent_names")),
        ((Touch, "agent_name"), (Pruning, "agent_names")),
        ((Step, "name"), (SessionListFilters, "tool")),
        ((Step, "name"), (SummaryFilters, "tool")),
    ],
)
def test_X16_a_long_label_is_found_by_the_text_that_was_given(
    recorded: tuple[type[Value], str], chosen: tuple[type[Value], str], character: str
) -> None:
    """Also one that is within the bound in characters, and beyond that in bytes."""
    for given_label in (character * 3_000, character * LABEL_CHARACTERS):
        try:
            kept = with_field(*recorded, given_label)
        except InvalidValueError:
            continue  # nothing has this label
        found = with_field(*chosen, [given_label] if chosen[1] == "agent_names" else given_label)
        assert found == ((kept,) if chosen[1] == "agent_names" else kept)


@pytest.mark.parametrize(("model", "name"), fields(LABELS))
def test_X16_a_label_within_its_bound_is_kept(model: type[Value], name: str) -> None:
    for label in ("x" * LABEL_CHARACTERS, "é" * LABEL_CHARACTERS, "🙂" * (LABEL_BYTES // 4)):
        assert with_field(model, name, label) == label


@pytest.mark.parametrize(("model", "name"), fields({"model"}))
def test_X16_a_path_of_a_model_is_kept_up_to_its_bound_in_bytes(model: type[Value], name: str) -> None:
    path = "/models/" + "x" * (MODEL_BYTES - 8)
    assert with_field(model, name, path) == path


@settings(max_examples=300, derandomize=True, database=None)
@given(st.text(max_size=40), st.integers(4, 30), st.integers(1, 30))
def test_X16_cutting_is_within_both_bounds_and_stable(text: str, most_bytes: int, characters: int) -> None:
    kept = cut(text, most_bytes, characters)
    assert len(kept) <= characters
    assert len(kept.encode()) <= most_bytes
    assert cut(kept, most_bytes, characters) == kept
    assert kept == text or (kept.endswith("…") and text.startswith(kept[:-1]))


@pytest.mark.parametrize(("model", "name"), fields(IDS))
def test_X16_an_id_is_kept_up_to_1500_bytes_and_refused_beyond(model: type[Value], name: str) -> None:
    for longest in ("x" * ID_BYTES, "é" * (ID_BYTES // 2)):
        assert with_field(model, name, longest) == longest
        with pytest.raises(InvalidValueError, match=f"^{name}: .*expected 1 to 1,500 bytes in UTF-8$"):
            with_field(model, name, longest + "x")


@pytest.mark.parametrize(("model", "name"), [*fields(IDS), *fields(LABELS - {"name", "server_url"})])
@pytest.mark.parametrize("bad", ["a\x00", "\ud800"])
def test_R19_a_label_or_id_that_is_no_text_is_refused(model: type[Value], name: str, bad: str) -> None:
    with pytest.raises(InvalidValueError, match=f"^{name}: "):
        with_field(model, name, bad)


def test_X16_a_name_or_address_is_made_safe() -> None:
    assert with_field(Run, "name", "a\x00\ud800") == "a\ufffd\ufffd"
    assert with_field(Step, "server_url", "a\x00\ud800") == "a\ufffd\ufffd"


@pytest.mark.parametrize(
    ("given_role", "role"),
    [
        ("developer", "system"),
        ("function", "tool"),
        ("model", "assistant"),
        ("ai", "assistant"),
        ("human", "user"),
        ("reasoning", "thought"),
        ("thinking", "thought"),
        ("user", "user"),
    ],
)
def test_X16_a_role_of_another_source_is_mapped(given_role: str, role: str) -> None:
    assert with_field(Message, "role", given_role) == role


def test_X16_an_unknown_role_is_refused() -> None:
    for role in ("narrator", None, 5):
        with pytest.raises(
            InvalidValueError, match=r"^role: .* expected one of user, assistant, system, tool, thought$"
        ):
            with_field(Message, "role", role)


class Block(BaseModel):
    type: str = "text"
    text: str


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("as it is", "as it is"),
        (None, ""),
        ([], ""),
        ("a\x00\ud800", "a\ufffd\ufffd"),
        (["a", "b"], "a\nb"),
        ([{"type": "text", "text": "a"}, {"type": "output_text", "text": "b", "annotations": []}], "a\nb"),
        (
            [{"type": "image_url", "image_url": {"url": "data:"}}, {"type": "text", "text": "what?"}],
            "[image_url]\nwhat?",
        ),
        ([{"type": "thinking", "thinking": "hm", "signature": "…"}], "hm"),
        ([{"type": "refusal", "refusal": "no"}], "no"),
        ([{"type": "tool_use", "id": "t", "name": "find", "input": {}}], "[tool_use]"),
        ([{"type": "tool_result", "content": [{"type": "text", "text": "found"}]}], "found"),
        ([{"type": "text", "text": {"value": "v", "annotations": []}}], "v"),
        ([{"type": "text", "text": ""}], ""),
        ({"role": "model", "parts": [{"text": "g"}]}, "g"),
        ([Block(text="a")], "a"),
        ((Block(text="a"),), "a"),
        ({"answer": 5}, '{"answer":5}'),
        (5, "5"),
        (b"a\xff", "a\ufffd"),
    ],
)
def test_X16_content_becomes_text(content: Any, text: str) -> None:
    message = Message.of_call(**{**VALID[Message], "content": content})
    assert message.content == text
    assert Message.model_validate_json(message.model_dump_json()) == message


def test_X16_content_that_contains_itself_becomes_text() -> None:
    block: dict[str, Any] = {"type": "tool_result"}
    block["content"] = [block]
    assert with_field(Message, "content", [block]) == "… contains itself"


def test_X16_an_error_of_any_class_becomes_text() -> None:
    assert with_field(Run, "error", ValueError("no answer")) == "no answer"
    assert with_field(Run, "error", None) is None


def test_X16_a_run_whose_id_is_longer_than_a_sessions_has_a_session() -> None:
    long = "r" * ID_BYTES
    root = Run(**{**VALID[Run], "run_id": long})
    assert root.session_id is not None
    assert len(root.session_id) == 512
    assert Run(**{**VALID[Run], "run_id": long}) == root
    assert Run(**{**VALID[Run], "run_id": f"{long[:-1]}s"}).session_id != root.session_id
    for parent in ("parent_run_id", "root_run_id", "parent_tool_call_id"):
        assert Run(**{**VALID[Run], "run_id": long, parent: "p"}).session_id is None
    assert Run(**{**VALID[Run], "run_id": "r" * 512}).session_id is None
