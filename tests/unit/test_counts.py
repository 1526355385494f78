"""Usage as providers tell it, as counts of ours."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from genai_prices import extract_usage
from hypothesis import given
from hypothesis import strategies as st

from session_lifecycle import UsageEvent
from session_lifecycle.integrations.counts import (
    anthropic_counts,
    fitted,
    google_counts,
    number,
    openai_chat_counts,
    openai_embedding_counts,
    openai_responses_counts,
    tier_counts,
)
from session_lifecycle.models.usage_classes import WHOLES

CHAT: dict[str, Any] = {
    "prompt_tokens": 1200,
    "completion_tokens": 80,
    "total_tokens": 1280,
    "prompt_tokens_details": {"cached_tokens": 1024, "cache_write_tokens": 64, "audio_tokens": 30},
    "completion_tokens_details": {"reasoning_tokens": 48, "audio_tokens": 7, "accepted_prediction_tokens": 3},
}
RESPONSES: dict[str, Any] = {
    "input_tokens": 1200,
    "input_tokens_details": {"cached_tokens": 1024, "cache_write_tokens": 64},
    "output_tokens": 80,
    "output_tokens_details": {"reasoning_tokens": 48},
    "total_tokens": 1280,
}
ANTHROPIC: dict[str, Any] = {
    "input_tokens": 120,
    "cache_creation_input_tokens": 2000,
    "cache_creation": {"ephemeral_5m_input_tokens": 1500, "ephemeral_1h_input_tokens": 500},
    "cache_read_input_tokens": 5000,
    "output_tokens": 64,
    "output_tokens_details": {"thinking_tokens": 20},
    "server_tool_use": {"web_search_requests": 2},
    "service_tier": "priority",
}
GOOGLE: dict[str, Any] = {
    "prompt_token_count": 1500,
    "cached_content_token_count": 1024,
    "candidates_token_count": 60,
    "thoughts_token_count": 20,
    "tool_use_prompt_token_count": 30,
    "total_token_count": 1610,
    "prompt_tokens_details": [
        {"modality": "TEXT", "token_count": 1100},
        {"modality": "AUDIO", "token_count": 300},
        {"modality": "VIDEO", "token_count": 100},
    ],
    "cache_tokens_details": [{"modality": "AUDIO", "token_count": 200}, {"modality": "VIDEO", "token_count": 40}],
    "candidates_tokens_details": [{"modality": "IMAGE", "token_count": 50}],
    "traffic_type": "ON_DEMAND_FLEX",
}
ANTHROPIC_COUNTS = {
    "tokens_in": 7120,
    "tokens_out": 64,
    "cache_read_tokens": 5000,
    "cache_write_tokens": 2000,
    "cache_write_1h_tokens": 500,
    "reasoning_tokens": 20,
    "web_searches": 2,
    "service_tier": "priority",
}


def as_objects(value: Any) -> Any:
    """The same, as objects of a client."""
    if isinstance(value, dict):
        return SimpleNamespace(**{name: as_objects(inner) for name, inner in value.items()})
    return [as_objects(inner) for inner in value] if isinstance(value, list) else value


def camel(value: Any) -> Any:
    """The same by the names of Google's JSON."""
    if isinstance(value, dict):
        return {
            name.split("_")[0] + "".join(part.capitalize() for part in name.split("_")[1:]): camel(inner)
            for name, inner in value.items()
        }
    return [camel(inner) for inner in value] if isinstance(value, list) else value


SHAPES = pytest.mark.parametrize("shape", [lambda value: value, as_objects], ids=["dict", "object"])


@SHAPES
def test_every_provider_as_inclusive_counts(shape: Any) -> None:
    assert openai_chat_counts(shape(CHAT)) == {
        "tokens_in": 1200,
        "tokens_out": 80,
        "cache_read_tokens": 1024,
        "cache_write_tokens": 64,
        "audio_tokens_in": 30,
        "reasoning_tokens": 48,
        "audio_tokens_out": 7,
    }
    searches = [{"type": "web_search_call", "action": {"type": kind}} for kind in ("search", "open_page")]
    assert openai_responses_counts(shape(RESPONSES), [*shape(searches), shape({"type": "web_search_call"})]) == {
        "tokens_in": 1200,
        "tokens_out": 80,
        "cache_read_tokens": 1024,
        "cache_write_tokens": 64,
        "reasoning_tokens": 48,
        "web_searches": 2,
    }
    assert openai_embedding_counts(shape({"prompt_tokens": 8, "total_tokens": 8})) == {"tokens_in": 8}
    assert anthropic_counts(shape(ANTHROPIC)) == ANTHROPIC_COUNTS
    google = {
        "tokens_in": 1530,
        "tokens_out": 80,
        "cache_read_tokens": 1024,
        "reasoning_tokens": 20,
        "audio_tokens_in": 300,
        "cache_read_audio_tokens": 200,
        "video_tokens_in": 60,
        "image_tokens_out": 50,
        "service_tier": "flex",
    }
    assert google_counts(shape(GOOGLE)) == google
    assert google_counts(shape(camel(GOOGLE))) == google


def test_images_and_transcriptions_of_openai() -> None:
    images = {
        "input_tokens": 50,
        "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
        "output_tokens": 1056,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": 1056},
    }
    assert openai_responses_counts(images) == {
        "tokens_in": 50,
        "image_tokens_in": 40,
        "tokens_out": 1056,
        "image_tokens_out": 1056,
    }
    transcription = {"type": "tokens", "input_tokens": 14, "input_token_details": {"audio_tokens": 14}}
    assert openai_responses_counts({**transcription, "output_tokens": 45}) == {
        "tokens_in": 14,
        "audio_tokens_in": 14,
        "tokens_out": 45,
    }
    assert openai_responses_counts({"type": "duration", "seconds": 3.5}) == {}


@pytest.mark.parametrize(
    "writes",
    [
        {"cache_creation_input_tokens": 0},
        {"cache_creation_input_tokens": None},
        {"cache_creation_input_tokens": 2000},
    ],
)
def test_anthropics_writes_are_told_as_a_sum_by_time_or_both(writes: dict[str, Any]) -> None:
    assert anthropic_counts({**ANTHROPIC, **writes}) == ANTHROPIC_COUNTS


@SHAPES
def test_what_a_compaction_used_is_in_no_sum_of_anthropics(shape: Any) -> None:
    """A message among the iterations is in the sums, and an advisor is another model."""
    whole = {"input_tokens": 7, "output_tokens": 3, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 0}
    iterations = [{"type": kind, **whole} for kind in ("message", "compaction", "advisor_message", "compaction")]
    plain = anthropic_counts(ANTHROPIC)
    counts = anthropic_counts(shape({**ANTHROPIC, "iterations": iterations}))
    grown = {name: counts[name] - plain[name] for name in ("tokens_in", "tokens_out", "cache_read_tokens")}
    assert grown == {"tokens_in": 24, "tokens_out": 6, "cache_read_tokens": 10}
    assert anthropic_counts({**ANTHROPIC, "iterations": "odd"}) == plain


def test_anthropics_writes_without_the_split() -> None:
    counts = anthropic_counts({**ANTHROPIC, "cache_creation": None})
    assert (counts.get("tokens_in"), counts.get("cache_write_tokens")) == (7120, 2000)
    assert "cache_write_1h_tokens" not in counts


def test_googles_output_is_what_the_total_has_beside_the_input() -> None:
    """Google ADK's LiteLlm counts thoughts among the candidates; some answers leave thoughts out of both."""
    litellm = {"prompt_token_count": 1200, "candidates_token_count": 80, "thoughts_token_count": 48}
    assert google_counts({**litellm, "total_token_count": 1280}).get("tokens_out") == 80
    assert google_counts({**litellm, "thoughts_token_count": None, "total_token_count": 1328}).get("tokens_out") == 128
    assert google_counts(litellm).get("tokens_out") == 128


@pytest.mark.parametrize("usage", [None, {}, 7, "", [], {"prompt_tokens_details": 3}, {"cache_creation": []}, object()])
def test_no_usage_is_nothing(usage: Any) -> None:
    for counts in (openai_chat_counts, openai_responses_counts, anthropic_counts, google_counts):
        assert counts(usage) == {}


def test_zeros_are_nothing() -> None:
    assert anthropic_counts({"input_tokens": 0, "output_tokens": 0, "service_tier": "standard"}) == {}
    assert openai_chat_counts({"prompt_tokens": 0, "completion_tokens": 0}) == {}


@pytest.mark.parametrize(
    ("value", "count"),
    [
        *((12, 12), (12.0, 12), (0, 0), (-1, 0), (True, 0), (None, 0), ("12", 0), (1.5, 0), (float("nan"), 0)),
        *((float("inf"), 0), (10**12, 10**12), (10**12 + 1, 0)),
    ],
)
def test_what_is_no_count_counts_as_not_told(value: Any, count: int) -> None:
    assert number(value) == count


@pytest.mark.parametrize(
    ("word", "tier"),
    [
        *((word, None) for word in (None, "default", "standard", "auto", "scale", "of tomorrow", 7, "ON_DEMAND")),
        *(("batch", "batch"), ("flex", "flex"), ("PRIORITY", "priority"), ("fast", "fast")),
        *(("ON_DEMAND_PRIORITY", "priority"), (SimpleNamespace(value="flex"), "flex")),
    ],
)
def test_service_tiers(word: Any, tier: str | None) -> None:
    assert tier_counts(word).get("service_tier") == tier


def test_anthropics_fast_mode() -> None:
    assert (
        anthropic_counts({"input_tokens": 1, "speed": "fast", "service_tier": "standard"}).get("service_tier") == "fast"
    )


def test_a_part_above_its_whole_is_cut() -> None:
    assert openai_chat_counts({"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 11}}) == {
        "tokens_in": 10,
        "cache_read_tokens": 10,
    }
    assert fitted(tokens_in=10, cache_read_tokens=6, cache_write_tokens=6, cache_write_1h_tokens=5) == {
        "tokens_in": 10,
        "cache_read_tokens": 6,
        "cache_write_tokens": 4,
        "cache_write_1h_tokens": 4,
    }


def test_audio_that_finds_no_room_beside_the_cache_was_read_from_it() -> None:
    assert fitted(tokens_in=1000, cache_read_tokens=900, audio_tokens_in=600) == {
        "tokens_in": 1000,
        "cache_read_tokens": 900,
        "audio_tokens_in": 600,
        "cache_read_audio_tokens": 500,
    }


ANYTHING = st.one_of(st.none(), st.booleans(), st.integers(-5, 20), st.integers(10**12 - 1, 10**12 + 1), st.floats())


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(WHOLES, ANYTHING)))
def test_whatever_is_told_makes_an_event(told: dict[str, Any]) -> None:
    counts = fitted(**told)
    event = UsageEvent(session_id="s1", user_id=uuid4(), measured=bool(counts), **counts)
    assert (event.tokens_in, event.tokens_out) == (number(told.get("tokens_in")), number(told.get("tokens_out")))


NAMES = {
    "tokens_in": "input_tokens",
    "tokens_out": "output_tokens",
    "cache_read_tokens": "cache_read_tokens",
    "cache_write_tokens": "cache_write_tokens",
    "reasoning_tokens": "output_reasoning_tokens",
    "audio_tokens_in": "input_audio_tokens",
    "audio_tokens_out": "output_audio_tokens",
}


@pytest.mark.parametrize(
    ("counts", "body", "provider", "flavor"),
    [
        (openai_chat_counts, CHAT, "openai", "chat"),
        (openai_responses_counts, RESPONSES, "openai", "responses"),
        (anthropic_counts, ANTHROPIC, "anthropic", "default"),
    ],
)
def test_as_the_price_catalogue_reads_it(counts: Any, body: dict[str, Any], provider: str, flavor: str) -> None:
    models = {"openai": "gpt-5", "anthropic": "claude-sonnet-4-5"}
    read = extract_usage({"model": models[provider], "usage": body}, provider_id=provider, api_flavor=flavor).usage
    ours = counts(body)
    for name, theirs in NAMES.items():
        found = getattr(read, theirs, None)
        if found is not None:
            assert ours.get(name, 0) == found, name


def test_the_module_imports_the_standard_library_only() -> None:
    program = (
        "import sys; import session_lifecycle.integrations.counts; "
        "print([n for n in sys.modules if n.startswith(('pydantic', 'sqlalchemy', 'session_lifecycle.models'))])"
    )
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout == "[]\n"
