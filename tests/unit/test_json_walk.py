"""A payload of any shape ends as JSON within its budget, and nothing of the host's is consumed (rule R26)."""

import dataclasses
import gc
import json
import tracemalloc
from collections import UserDict, deque
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, RootModel, SecretStr, ValidationError
from pydantic_core import to_json

from session_lifecycle.models import Message, Run, Step, Touch
from session_lifecycle.models.fields import CUT
from session_lifecycle.models.json_payloads import (
    CONTAINER_VALUES,
    CONTAINS_ITSELF,
    METADATA_BYTES,
    PAYLOAD_VALUES,
    TOO_LARGE,
    TOO_MANY,
    folded,
    json_size,
    safe_json,
    text_of,
)

USER = UUID(int=1)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Colour(str, Enum):  # noqa: UP042 - the older kind of text enum, whose text is Colour.RED
    RED = "red"


class Level(IntEnum):
    LOW = 1


class Shape(Enum):
    BOX = ("a", 1)


@dataclasses.dataclass
class Node:
    child: Any = None


class Answer(BaseModel):
    text: str = "hi"
    token: SecretStr = SecretStr("hunter2")
    hidden: str = Field(default="hunter2", exclude=True)
    stream: Any = None


class Page(BaseModel, extra="allow"):
    data: list[int]

    def __iter__(self) -> Any:
        pytest.fail("a page asked for the next one")


class Names(RootModel[list[str]]):
    pass


class Proxy:
    """As the proxies of Flask, Django and wrapt: it has the class of what it stands for."""

    def __init__(self, target: Any) -> None:
        self._target = target

    @property
    def __class__(self) -> type:
        if self._target is None:
            raise RuntimeError("outside of a request")
        return type(self._target)

    @__class__.setter
    def __class__(self, _: type) -> None:
        raise TypeError

    def __iter__(self) -> Iterator[Any]:
        return iter(self._target)

    def __str__(self) -> str:
        return str(self._target)


class Defaults(Mapping[Any, Any]):
    """A mapping that has a value for every key. It iterates the keys that it was given, without an end if none."""

    def __init__(self, *keys: Any) -> None:
        self._keys = keys

    def __getitem__(self, key: Any) -> Any:
        return 0

    def __iter__(self) -> Iterator[Any]:
        return iter(self._keys) if self._keys else count()

    def __len__(self) -> int:
        return len(self._keys)


class Broken:
    def __str__(self) -> str:
        raise ZeroDivisionError


class BrokenMapping(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise OSError

    def __iter__(self) -> Iterator[str]:
        yield "a"

    def __len__(self) -> int:
        return 1


class Endless(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        return 1

    def __iter__(self) -> Iterator[str]:
        number = 0
        while True:
            number += 1
            yield str(number)

    def __len__(self) -> int:
        return 1


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise ZeroDivisionError


def shared(depth: int, leaf: Any = 1) -> Any:
    value = leaf
    for _ in range(depth):
        value = [value, value]
    return value


def values_in(copy: Any) -> int:
    match copy:
        case dict():
            return 1 + sum(map(values_in, copy.values()))
        case list():
            return 1 + sum(map(values_in, copy))
        case _:
            return 1


def as_json(value: Any) -> Any:
    """The value after a way through JSON, as strict as Postgres reads it."""
    return json.loads(to_json(value), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (Colour.RED, "red"),
        (Level.LOW, 1),
        (Shape.BOX, ["a", 1]),
        ({Colour.RED: Colour.RED, Shape.BOX: 1}, {"red": "red", '["a",1]': 1}),
        (Text("a"), "a"),
        (b"\xff\x00a", "\ufffd\ufffda"),
        (bytearray(b"a"), "a"),
        (memoryview(b"a"), "a"),
        (10**700, hex(10**700)),
        (-(10**100), str(-(10**100))),
        (1 << 1_000_000, "… a number of 1000001 bits"),
        (Broken(), "… a Broken that raises ZeroDivisionError"),
        ([1, Broken(), 2], [1, "… a Broken that raises ZeroDivisionError", 2]),
        ({Broken(): 1}, {"… a Broken that raises ZeroDivisionError": 1}),
        (BrokenMapping(), "… a BrokenMapping that raises OSError"),
        (UserDict({"a": {1}}), {"a": [1]}),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset({"b", "a", 1}), ["a", "b", 1]),
        (deque([1, [2]]), [1, [2]]),
        ({"a": 1}.values(), [1]),
        ({"a": 1}.keys(), ["a"]),
        (Node(Node(1)), {"child": {"child": 1}}),
        (int, "<class 'int'>"),
        (Answer(), {"text": "hi", "token": "**********", "stream": None}),
        (Names(["a"]), ["a"]),
        (Page.model_validate({"data": [1], "more": True}), {"data": [1], "more": True}),
        (object(), "<object object>"),
        (Decimal("0.10"), "0.10"),
        (Path("/a"), "/a"),
        (USER, str(USER)),
        (NOON, "2026-01-01T12:00:00Z"),
        (date(2026, 1, 1), "2026-01-01"),
        (time(12), "12:00:00"),
        (timedelta(days=1), "P1D"),
        (ValueError("no"), "no"),
        (ValueError(["no"]), ["ValueError", ["no"]]),
        (range(3), "range(0, 3)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_X20_a_value_is_kept_as_its_nearest_json(value: Any, kept: Any) -> None:
    assert safe_json(value) == kept
    assert as_json(safe_json(value)) == kept


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ({1: "a", "1": "b"}, {"1 (int)": "a", "1": "b"}),
        ({"1": "b", 1: "a"}, {"1": "b", "1 (int)": "a"}),
        ({2.5: 1, "2.5": 2}, {"2.5 (float)": 1, "2.5": 2}),
        ({None: 1, "None": 2}, {"None (NoneType)": 1, "None": 2}),
        ({True: 1, "True": 2}, {"True (bool)": 1, "True": 2}),
        ({float("nan"): 1, float("nan"): 2, float("nan"): 3}, {"nan": 1, "nan (float)": 2, "nan (float 2)": 3}),
        ({"a\x00": 1, "a\x00\x00"[:2]: 2, "a\ufffd": 3}, {"a\ufffd": 2, "a\ufffd (str)": 3}),
        ({Colour.RED: 1}, {"red": 1}),
        ({Shape.BOX: 1, '["a",1]': 2}, {'["a",1] (Shape)': 1, '["a",1]': 2}),
    ],
)
def test_X20_keys_that_have_one_text_stay_apart(value: Any, kept: Any) -> None:
    assert safe_json(value) == kept


@pytest.mark.parametrize(
    ("mapping", "kept"),
    [
        (Defaults(1), {"1": 0}),
        (Defaults(1, "1", None), {"1 (int)": 0, "1": 0, "None": 0}),
        (Defaults(b"1", "1", 1), {"1 (bytes)": 0, "1": 0, "1 (int 2)": 0}),
    ],
)
def test_X20_a_mapping_that_has_a_value_for_every_key_is_not_asked_for_its_keys(mapping: Any, kept: Any) -> None:
    assert safe_json(mapping) == kept


def test_X19_a_mapping_without_an_end_ends_within_the_budget() -> None:
    for most_bytes in (1_000, 100_000):
        assert len(to_json(safe_json(Defaults(), most_bytes))) < most_bytes + 100


@pytest.mark.parametrize(
    ("target", "kept", "text"),
    [
        ("hello", "hello", "hello"),
        (5, "5", "5"),
        ([1, "a"], [1, "a"], "1\na"),
        (None, "… a Proxy that raises RuntimeError", "… a Proxy that raises RuntimeError"),
    ],
)
def test_X20_a_proxy_is_kept_as_what_it_stands_for(target: Any, kept: Any, text: str) -> None:
    proxy = Proxy(target)
    message = Message(
        message_id="m",
        user_id=USER,
        session_id="s",
        role="user",
        content=proxy,
        created_at=NOON,
        metadata={"a": proxy},
    )
    assert (message.content, message.metadata) == (text, {"a": kept})
    run = Run(run_id="r", user_id=USER, started_at=NOON, input=proxy, error=proxy)
    assert (run.input, run.error) == (kept, text)


def test_X20_nothing_of_the_hosts_is_consumed() -> None:
    numbers = iter([1, 2])
    squares = (number * number for number in (1, 2))
    lines = map(str, [1, 2])
    run = Run(
        run_id="r",
        user_id=USER,
        started_at=NOON,
        input=[numbers, {"a": squares}],
        output=Node(lines),
        metadata={"answer": Answer(stream=numbers)},
    )
    assert as_json(run.input) == [
        "<list_iterator object>",
        {"a": "<generator object test_X20_nothing_of_the_hosts_is_consumed.<locals>.<genexpr>>"},
    ]
    assert (list(numbers), list(squares), list(lines)) == ([1, 2], [1, 4], ["1", "2"])


def test_X19_a_container_in_itself_is_marked_and_one_beside_itself_is_kept() -> None:
    inner: list[Any] = [1]
    cyclic: list[Any] = [inner, inner]
    cyclic.append(cyclic)
    mapping: dict[str, Any] = {}
    mapping["self"] = {"again": mapping}
    node = Node()
    node.child = [node]
    answer = Answer()
    answer.stream = answer
    assert safe_json(cyclic) == [[1], [1], CONTAINS_ITSELF]
    assert safe_json(mapping) == {"self": {"again": CONTAINS_ITSELF}}
    assert safe_json(node) == {"child": [CONTAINS_ITSELF]}
    assert safe_json(answer)["stream"] == CONTAINS_ITSELF


@pytest.mark.parametrize(
    "value",
    [
        shared(60),
        {"a": shared(60, {"b": 1})},
        Node(shared(60)),
        deque([shared(60)]),
        ValueError(shared(60)),
        Endless(),
        shared(60, "x" * 100_000),
        ["é" * 150_000] * 1_000,
        [Text("é" * 150_000)] * 1_000,
        ["\x00" * 100_000] * 10_000,
        [{"k" * 100_000: 1}] * 10_000,
        [[1 << 300_000]] * 10_000,
        [b"\xff" * 1_000_000] * 1_000,
    ],
    ids=lambda value: type(value).__name__,
)
def test_X19_a_budget_of_values_and_bytes_ends_the_walk(value: Any) -> None:
    kept = safe_json(value, most_bytes=1_000_000)
    assert json_size(kept) < 4_000_000
    assert values_in(kept) <= PAYLOAD_VALUES
    assert any(mark in to_json(kept).decode() for mark in (TOO_MANY, TOO_LARGE, CUT))
    assert safe_json(kept, most_bytes=1_000_000) == kept


def test_X19_a_text_that_is_named_often_is_held_once() -> None:
    text = "\x00é" * 75_000
    gc.collect()
    tracemalloc.start()
    try:
        kept = safe_json([text] * 1_000)
        size = json_size(kept)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 90_000_000
    assert peak < 5_000_000


def test_X19_what_is_within_the_budget_is_kept_whole() -> None:
    numbers = list(range(PAYLOAD_VALUES - CONTAINER_VALUES))
    assert safe_json(numbers) == numbers
    assert safe_json([*numbers, 1]) == [*numbers, TOO_MANY]


def test_X19_metadata_that_is_shared_is_refused_before_it_is_copied() -> None:
    with pytest.raises(ValidationError, match="at most 65536 bytes"):
        Touch(session_id="s", user_id=USER, metadata={"a": shared(25)})
    cyclic: dict[str, Any] = {}
    cyclic["a"] = cyclic
    with pytest.raises(ValidationError, match="levels of nesting"):
        Touch(session_id="s", user_id=USER, metadata=cyclic)
    with pytest.raises(ValidationError, match="what JSON can hold"):
        Touch(session_id="s", user_id=USER, metadata=BrokenMapping())


def test_X19_metadata_is_taken_up_to_its_limit_in_bytes_and_no_further() -> None:
    for length in range(METADATA_BYTES - 30, METADATA_BYTES):
        metadata = {"a": ["x" * length, 1], "é": {}}
        is_small = len(to_json(metadata)) <= METADATA_BYTES
        try:
            assert Touch(session_id="s", user_id=USER, metadata=metadata).metadata == metadata
        except ValidationError:
            assert not is_small
        else:
            assert is_small


def test_X20_no_payload_is_refused() -> None:
    for odd in (Broken(), b"\xff", 1 << 100_000, Node(iter([])), Colour.RED, {1: 2}, float("nan"), {NOON}):
        run = Run(run_id="r", user_id=USER, started_at=NOON, input=odd, output=[odd], error=odd, metadata={"a": odd})
        step = Step(
            step_id="t",
            run_id="r",
            user_id=USER,
            kind="tool",
            started_at=NOON,
            inputs=odd,
            output=odd,
            prompt=odd,
            errors=odd,
            metadata={"a": odd},
        )
        assert Run.model_validate_json(run.model_dump_json()) == run
        assert Step.model_validate_json(step.model_dump_json()) == step


ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=5)
    | st.binary(max_size=5)
    | st.datetimes()
    | st.decimals()
    | st.uuids()
    | st.integers(4299, 5000).map(lambda digits: 10**digits)
    | st.sampled_from([Colour.RED, Level.LOW, Shape.BOX, Broken(), BrokenMapping(), object, Node, Answer()]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner)
        | st.frozensets(st.integers() | st.text(max_size=2), max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=()), max_size=2) | st.integers() | st.floats() | st.none(),
            inner,
            max_size=4,
        )
        | st.builds(Node, inner)
        | st.builds(lambda value: iter([value]), inner)
    ),
    max_leaves=20,
)


@settings(max_examples=300, derandomize=True, database=None)
@given(ODD)
def test_X20_every_value_ends_as_json(value: Any) -> None:
    kept = safe_json(value)
    assert as_json(kept) == kept
    assert "\\u0000" not in to_json(kept).decode()
    assert safe_json(kept) == kept
    assert json_size(kept) == len(to_json(kept))
    assert isinstance(text_of(value), str)


@pytest.mark.parametrize(
    ("content", "search"),
    [
        ("İstanbul", "istanbul"),
        ("ISTANBUL", "İstanbul"),
        ("\u0131\u015f\u0131k", "I\u015eIK"),
        ("\uff26\uff35\uff2c\uff2c\u3000width", "full width"),
        ("10\u00a0000\u202f€", "10 000 €"),
        ("Donau\u00addampf\u00adschiff", "donaudampfschiff"),
        ("zero\u200bwidth\u2060joined\ufeff", "zerowidthjoined"),
        ("Straße", "STRASSE"),
        ("ﬁne", "FINE"),
        ("e\u0301te\u0301", "ÉTÉ"),
        ("\u1e9e", "ss"),
        ("\u1fb3", "\u03b1\u03b9"),
        ("①", "1"),
        ("\ufe0f❤\ufe0f", "❤"),
    ],
)
def test_X18_search_folds_by_nfkc_and_case(content: str, search: str) -> None:
    assert folded(content) == folded(search)


@settings(max_examples=300, derandomize=True, database=None)
@given(st.text(max_size=20))
def test_X18_folding_is_stable(text: str) -> None:
    once = folded(text)
    assert folded(once) == once
    assert folded(text.upper()) == folded(text.upper().lower()) or not text.isascii()
