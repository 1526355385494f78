"""What a response costs, row by row: the figures of the bundled catalogue of genai-prices, exact.

A row's number stands in the names of its tests. `None` as a cost: the response is unpriced. The comment beside it has
what `calc_price` of genai-prices says, if that is another answer.
"""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, FloatOperation, Inexact, localcontext
from typing import Any

import genai_prices
import pytest
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from session_lifecycle.errors import InvalidValueError
from session_lifecycle.models.prices import Price, PriceOverride
from session_lifecycle.models.usage_classes import WHOLES, excess, shares
from session_lifecycle.pricing.catalogue import PriceCatalogue
from session_lifecycle.pricing.classes import CLASSES

AT = datetime(2026, 11, 1, 12, tzinfo=UTC)
MILLION = 1_000_000
SONNET = "anthropic.claude-sonnet-4-5-20250929-v1:0"


@pytest.fixture(scope="module")
def catalogue() -> PriceCatalogue:
    loaded = PriceCatalogue()
    asyncio.run(loaded.load())
    return loaded


def with_overrides(*overrides: PriceOverride) -> PriceCatalogue:
    loaded = PriceCatalogue(overrides)
    asyncio.run(loaded.load())
    return loaded


def price(
    catalogue: PriceCatalogue, model: str, provider: str | None, tokens_in: int = 0, tokens_out: int = 0, **use: Any
) -> Price | None:
    use = {"at": AT, **use}
    return catalogue.price(model=model, provider=provider, tokens_in=tokens_in, tokens_out=tokens_out, **use)


def cost(catalogue: PriceCatalogue, model: str, provider: str | None, *counts: int, **use: Any) -> Decimal | None:
    found = price(catalogue, model, provider, *counts, **use)
    return None if found is None else found.cost_usd


def usd(expected: str | None) -> Decimal | None:
    return None if expected is None else Decimal(expected)


def own(pattern: str, price_in: str | float = 1, price_out: str | float = 2, **fields: Any) -> PriceOverride:
    prices: dict[str, Any] = {"input_usd_per_million": price_in, "output_usd_per_million": price_out, **fields}
    return PriceOverride(model_pattern=pattern, **prices)


def test_the_figures_are_those_of_this_version() -> None:
    assert genai_prices.__version__ == "0.2.3"
    assert not get_snapshot().from_auto_update


# ---- parts


def test_M01_plain_and_cached_tokens(catalogue: PriceCatalogue) -> None:
    assert cost(catalogue, "gpt-4o-mini", "openai", 1000, 500) == Decimal("0.00045")
    assert cost(catalogue, "gpt-4o", "openai", 1000, 500, cache_read_tokens=400) == Decimal("0.007")


def test_M02_cache_reads_and_writes(catalogue: PriceCatalogue) -> None:
    use = {"cache_read_tokens": 6000, "cache_write_tokens": 3000}
    assert cost(catalogue, "claude-sonnet-4-5", "anthropic", 10_000, 500, **use) == Decimal("0.02355")


@pytest.mark.parametrize(
    ("one_hour", "written", "counts", "expected"),
    [
        (100_000, 100_000, (100_000, 0), "0.6"),
        (900, 900, (1000, 10), "0.00585"),
        (400, 900, (1000, 10), "0.004725"),
        (0, 900, (1000, 10), "0.003825"),
    ],
)
def test_M03_M05_writes_for_an_hour(
    catalogue: PriceCatalogue, one_hour: int, written: int, counts: tuple[int, int], expected: str
) -> None:
    use = {"cache_write_tokens": written, "cache_write_1h_tokens": one_hour}
    assert cost(catalogue, "claude-sonnet-4-5", "anthropic", *counts, **use) == Decimal(expected)


def test_M04_a_write_for_an_hour_without_a_price_is_unpriced(catalogue: PriceCatalogue) -> None:
    name = ("anthropic/claude-sonnet-4.5", "openrouter", 1000, 10)
    assert cost(catalogue, *name, cache_write_tokens=900, cache_write_1h_tokens=400) is None  # 0.003825
    assert cost(catalogue, *name, cache_write_tokens=900) == Decimal("0.003825")


def test_M06_audio_and_images_of_a_realtime_model(catalogue: PriceCatalogue) -> None:
    assert cost(catalogue, "gpt-realtime", "openai", 1000, 0, audio_tokens_in=900) == Decimal("0.0292")
    use = {
        "audio_tokens_in": 700,
        "image_tokens_in": 100,
        "cache_read_tokens": 400,
        "cache_read_audio_tokens": 300,
        "audio_tokens_out": 150,
    }
    assert cost(catalogue, "gpt-realtime", "openai", 1000, 200, **use) == Decimal("0.02426")


@pytest.mark.parametrize(
    ("model", "use", "expected"),
    [
        ("gpt-audio", {"audio_tokens_out": 482}, "0.0319905"),
        ("gpt-4o-audio-preview", {}, "0.0059625"),
        ("gpt-4o-audio-preview", {"audio_tokens_out": 482}, None),  # 0.0059625
        ("gpt-4o-audio-preview", {"audio_tokens_in": 10}, None),  # 0.0059625
    ],
)
def test_M07_audio_out(catalogue: PriceCatalogue, model: str, use: dict[str, int], expected: str | None) -> None:
    assert cost(catalogue, model, "openai", 17, 592, **use) == usd(expected)


@pytest.mark.parametrize(
    ("model", "counts", "use", "expected"),
    [
        ("gemini-2.5-flash", (MILLION, 0), {"audio_tokens_in": MILLION}, "1"),
        (
            "gemini-2.5-flash",
            (1000, 100),
            {"audio_tokens_in": 600, "cache_read_tokens": 500, "cache_read_audio_tokens": 300},
            "0.000646",
        ),
        ("gemini-2.5-pro", (1000, 100), {"audio_tokens_in": 600}, None),  # 0.00225
    ],
)
def test_M08_audio_in(
    catalogue: PriceCatalogue, model: str, counts: tuple[int, int], use: dict[str, int], expected: str | None
) -> None:
    assert cost(catalogue, model, "google", *counts, **use) == usd(expected)


def test_M09_cached_audio_needs_its_own_price(catalogue: PriceCatalogue) -> None:
    use = {"audio_tokens_in": 600, "cache_read_tokens": 200, "cache_read_audio_tokens": 200}
    assert cost(catalogue, "gpt-audio", "openai", 1000, 0, **use) is None  # 0.0202
    use = {"audio_tokens_in": 600, "cache_read_tokens": 500, "cache_read_audio_tokens": 300}
    assert cost(catalogue, "gpt-realtime-mini", "openai", 1000, 0, **use) == Decimal("0.003222")


@pytest.mark.parametrize(
    ("model", "provider", "use", "expected"),
    [
        ("gemini-2.5-flash", "google", {"image_tokens_in": 258}, "0.0003"),
        ("claude-sonnet-4-5", "anthropic", {"image_tokens_in": 800}, "0.003"),
        (
            "gpt-image-1",
            "openai",
            {"image_tokens_in": 600, "cache_read_tokens": 300, "cache_read_image_tokens": 200},
            "0.006125",
        ),
        (
            "gemini-2.5-flash",
            "google",
            {"image_tokens_in": 500, "cache_read_tokens": 400, "cache_read_image_tokens": 300},
            "0.000192",
        ),
        # Cached images are cached input, so they need the price of cached input.
        ("gpt-4-turbo", "openai", {"image_tokens_in": 9, "cache_read_tokens": 9, "cache_read_image_tokens": 9}, None),
    ],
)
def test_M10_images_in_are_input_where_no_price_says_more(
    catalogue: PriceCatalogue, model: str, provider: str, use: dict[str, int], expected: str | None
) -> None:
    assert cost(catalogue, model, provider, 1000, 0, **use) == usd(expected)


def test_M11_images_out(catalogue: PriceCatalogue) -> None:
    use = {"image_tokens_out": 1290}
    assert cost(catalogue, "gemini-2.5-flash-image", "google", 10, 1290, **use) == Decimal("0.038703")
    assert cost(catalogue, "gpt-4o", "openai", 10, 100, image_tokens_out=50) is None  # 0.001025


def test_M12_video_and_images_of_an_embedding_model(catalogue: PriceCatalogue) -> None:
    use = {"video_tokens_in": 900, "image_tokens_in": 50}
    assert cost(catalogue, "gemini-embedding-2", "google", 1000, 0, **use) == Decimal("0.0108325")


@pytest.mark.parametrize(
    ("model", "provider", "counts", "searches", "expected"),
    [
        ("claude-sonnet-4-5", "anthropic", (1000, 500), 3, "0.0405"),
        ("gemini-2.5-flash", "google", (1000, 500), 1, "0.03655"),
        ("gpt-5", "openai", (1000, 500), 2, "0.02625"),
        ("claude-sonnet-4-5", "anthropic", (0, 0), 2, "0.02"),
        (f"global.{SONNET}", "aws", (1000, 500), 1, None),  # 0.0105
    ],
)
def test_M13_M05_web_searches(
    catalogue: PriceCatalogue, model: str, provider: str, counts: tuple[int, int], searches: int, expected: str | None
) -> None:
    assert cost(catalogue, model, provider, *counts, web_searches=searches) == usd(expected)


def test_M14_a_price_per_request(catalogue: PriceCatalogue) -> None:
    found = price(catalogue, "sonar-pro", "perplexity", 1000, 500)
    assert found is not None
    assert found.cost_usd == Decimal("0.0245")
    assert found.unit_prices["requests_kcount"] == "14"


def test_M15_reasoning_is_output_where_no_price_says_more(catalogue: PriceCatalogue) -> None:
    assert cost(catalogue, "o3", "openai", 100, 1000, reasoning_tokens=900) == Decimal("0.0082")
    use = {"reasoning_tokens": 800}
    assert cost(catalogue, "sonar-deep-research", "perplexity", 1000, 1000, **use) == Decimal("0.006")


@pytest.mark.parametrize(
    ("model", "provider", "use", "expected"),
    [
        ("gpt-4-turbo", "openai", {"cache_read_tokens": 0}, "0.01"),
        ("gpt-4-turbo", "openai", {"cache_read_tokens": 600}, None),  # 0.01
        ("deepseek-v3.2", "deepseek", {"cache_read_tokens": 600}, None),  # 0.0002288
        ("amazon.nova-pro-v1:0", "aws", {"cache_read_tokens": 600}, "0.00044"),
        ("amazon.nova-pro-v1:0", "aws", {"cache_write_tokens": 600}, None),  # 0.0008
    ],
)
def test_M16_a_cached_part_without_a_price_is_unpriced(
    catalogue: PriceCatalogue, model: str, provider: str, use: dict[str, int], expected: str | None
) -> None:
    assert cost(catalogue, model, provider, 1000, 0, **use) == usd(expected)


@pytest.mark.parametrize(
    ("use", "field", "expected"),
    [
        ({"tokens_in": 5, "audio_tokens_in": 6}, "audio_tokens_in", "at most tokens_in (5)"),
        ({"tokens_in": 5, "video_tokens_in": 6}, "video_tokens_in", "at most tokens_in (5)"),
        ({"image_tokens_out": 1}, "image_tokens_out", "at most tokens_out (0)"),
        (
            {"tokens_in": 9, "cache_write_tokens": 5, "cache_write_1h_tokens": 6},
            "cache_write_1h_tokens",
            "at most cache_write_tokens (5)",
        ),
        (
            {"tokens_in": 9, "cache_read_tokens": 5, "audio_tokens_in": 4, "cache_read_audio_tokens": 5},
            "cache_read_audio_tokens",
            "at most audio_tokens_in (4)",
        ),
        (
            {"tokens_in": 9, "cache_read_tokens": 4, "image_tokens_in": 5, "cache_read_image_tokens": 5},
            "cache_read_image_tokens",
            "at most cache_read_tokens (4)",
        ),
        (
            {
                "tokens_in": 99,
                "cache_read_tokens": 5,
                "audio_tokens_in": 9,
                "image_tokens_in": 9,
                "cache_read_audio_tokens": 3,
                "cache_read_image_tokens": 3,
            },
            "cache_read_image_tokens",
            "cache_read_audio_tokens and cache_read_image_tokens that are together at most cache_read_tokens (5)",
        ),
        (
            {"tokens_in": 1000, "cache_read_tokens": 800, "audio_tokens_in": 900},
            "audio_tokens_in",
            (
                "cache_read_tokens and audio_tokens_in that are together at most tokens_in (1000), "
                "with what counts in two of them taken once"
            ),
        ),
        (
            {"tokens_in": 5, "cache_read_tokens": 3, "cache_write_tokens": 3},
            "cache_write_tokens",
            "cache_read_tokens and cache_write_tokens that are together at most tokens_in (5)",
        ),
        (
            {"tokens_out": 10, "reasoning_tokens": 6, "audio_tokens_out": 5},
            "audio_tokens_out",
            "reasoning_tokens and audio_tokens_out that are together at most tokens_out (10)",
        ),
        ({"web_searches": -1}, "web_searches", "a count that is not negative"),
        ({"tokens_in": 5, "cache_write_1h_tokens": -1}, "cache_write_1h_tokens", "a count that is not negative"),
        ({"service_tier": "turbo"}, "service_tier", "one of standard, batch, flex, priority, fast"),
        ({"service_tier": "default"}, "service_tier", "one of standard, batch, flex, priority, fast"),
    ],
)
def test_M17_parts_larger_than_their_whole_are_refused_by_name(
    catalogue: PriceCatalogue, use: dict[str, Any], field: str, expected: str
) -> None:
    with pytest.raises(InvalidValueError) as refused:
        catalogue.price(model="gpt-4o", provider="openai", at=AT, **use)
    assert (refused.value.field, refused.value.expected) == (field, expected)
    assert refused.value.value == use[field]


@given(st.fixed_dictionaries({field: st.integers(0, 40) for field in WHOLES}))
def test_M17_shares_count_every_token_once(counts: dict[str, int]) -> None:
    left = shares(counts)
    for field, count in counts.items():
        assert sum(left.get(part, 0) for part in _within(field)) == count
    assert (excess(counts) is None) == (min(left.values(), default=0) >= 0)


def _within(whole: str) -> list[str]:
    """The count itself and everything that is a part of it, each once."""
    return [part for part in WHOLES if part == whole or _is_inside(part, whole)]


def _is_inside(part: str, whole: str) -> bool:
    return any(one == whole or _is_inside(one, whole) for one in WHOLES[part])


# ---- length of the input


@pytest.mark.parametrize(
    ("model", "provider", "counts", "use", "expected"),
    [
        pytest.param("gemini-2.5-pro", "google", (200_000, 1000), {}, "0.26", id="M20"),
        pytest.param("gemini-2.5-pro", "google", (200_001, 1000), {}, "0.5150025", id="M20"),
        pytest.param("gemini-2.5-pro", "google", (200_000, 0), {"cache_read_tokens": 200_000}, "0.025", id="M21"),
        pytest.param("gemini-2.5-pro", "google", (200_001, 0), {"cache_read_tokens": 200_000}, "0.0500025", id="M21"),
        pytest.param(
            "claude-haiku-5-5",
            "anthropic",
            (100_000, 1000),
            {"cache_write_tokens": 50_000, "cache_write_1h_tokens": 20_000},
            "0.01325",
            id="M22",
        ),
        pytest.param(
            "claude-haiku-5-5",
            "anthropic",
            (100_001, 1000),
            {"cache_write_tokens": 50_000, "cache_write_1h_tokens": 20_000},
            "0.0662505",
            id="M22",
        ),
        pytest.param("grok-4.20", "x-ai", (199_999, 0), {}, "0.24999875", id="M23"),
        pytest.param("grok-4.20", "x-ai", (200_000, 0), {}, "0.5", id="M23"),
        pytest.param("gpt-5.4", "openai", (272_000, 0), {}, "0.68", id="M24"),
        pytest.param("gpt-5.4", "openai", (272_001, 0), {}, "1.360005", id="M24"),
        pytest.param(
            "gpt-5.4", "openai", (272_000, 0), {"service_tier": "flex", "cache_read_tokens": 100_000}, "0.228", id="M24"
        ),
        pytest.param(
            "gpt-5.4",
            "openai",
            (272_001, 0),
            {"service_tier": "flex", "cache_read_tokens": 100_000},
            "0.4550025",
            id="M24",
        ),
    ],
)
def test_M20_to_M24_the_whole_input_chooses_the_price(
    catalogue: PriceCatalogue, model: str, provider: str, counts: tuple[int, int], use: dict[str, Any], expected: str
) -> None:
    assert cost(catalogue, model, provider, *counts, **use) == Decimal(expected)


# ---- time of use


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("2025-06-09T23:59:59.999999+00:00", "10"),
        ("2025-06-10T00:00:00+00:00", "2"),
        ("2025-06-10T01:00:00+02:00", "10"),
    ],
)
def test_M25_a_price_starts_at_midnight_utc(catalogue: PriceCatalogue, at: str, expected: str) -> None:
    assert cost(catalogue, "o3", "openai", MILLION, 0, at=datetime.fromisoformat(at)) == Decimal(expected)


@pytest.mark.parametrize(
    ("at", "use", "expected"),
    [
        ("2026-07-29T23:59:59+00:00", {}, "0.007"),
        ("2026-07-30T00:00:00+00:00", {}, "0.0014"),
        ("2026-11-01T12:00:00+00:00", {"cache_write_tokens": 400, "cache_read_tokens": 300}, "0.001366"),
    ],
)
def test_M26_a_price_change_names_other_parts(
    catalogue: PriceCatalogue, at: str, use: dict[str, int], expected: str
) -> None:
    at_time = datetime.fromisoformat(at)
    assert cost(catalogue, "gpt-5.6-luna", "openai", 1000, 1000, at=at_time, **use) == Decimal(expected)


@pytest.mark.parametrize(
    ("at", "expected"),
    [("00:29:59", "0.000645"), ("00:30:00", "0.00129"), ("16:29:59", "0.00129"), ("16:30:00", "0.000645")],
)
def test_M27_a_price_by_the_time_of_day(catalogue: PriceCatalogue, at: str, expected: str) -> None:
    use: dict[str, Any] = {"at": datetime.fromisoformat(f"2026-11-01T{at}+00:00"), "cache_read_tokens": 400}
    assert cost(catalogue, "deepseek-chat", "deepseek", 1000, 1000, **use) == Decimal(expected)


# ---- service tiers


@pytest.mark.parametrize(
    ("tier", "expected"),
    [("standard", "12.5"), ("batch", "6.25"), ("priority", "21.25"), ("fast", "21.25"), ("flex", None)],  # flex: 12.5
)
def test_M28_each_tier_has_its_own_price(catalogue: PriceCatalogue, tier: str, expected: str | None) -> None:
    assert cost(catalogue, "gpt-4o", "openai", MILLION, MILLION, service_tier=tier) == usd(expected)


@pytest.mark.parametrize(("at", "expected"), [("2026-10-13T23:59:59", None), ("2026-10-14T00:00:00", "6.25")])
def test_M29_a_tier_has_a_start(catalogue: PriceCatalogue, at: str, expected: str | None) -> None:
    use = {"at": datetime.fromisoformat(f"{at}+00:00"), "service_tier": "batch"}
    assert cost(catalogue, "gpt-4o", "openai", MILLION, MILLION, **use) == usd(expected)


def test_M30_what_a_tier_does_not_name_keeps_its_price(catalogue: PriceCatalogue) -> None:
    use = {
        "service_tier": "batch",
        "cache_write_tokens": 100_000,
        "cache_write_1h_tokens": 100_000,
        "web_searches": 1,
    }
    assert cost(catalogue, "claude-sonnet-4-5", "anthropic", 100_000, 1000, **use) == Decimal("0.3175")
    assert cost(catalogue, "claude-opus-5", "anthropic", 1000, 1000, service_tier="fast") == Decimal("0.06")


@pytest.mark.parametrize(
    ("model", "provider", "counts", "use", "expected"),
    [
        ("gemini-2.5-flash", "google", (1000, 0), {"cache_read_tokens": 400}, "0.000102"),
        ("openai/gpt-oss-120b", "groq", (1000, 100), {"cache_read_tokens": 400}, "0.000105"),
        ("gpt-3.5-turbo-1106", "openai", (1000, 1000), {}, "0.003"),
        ("mistral-large-4", "mistral", (1000, 1000), {"cache_read_tokens": 400}, "0.001274"),
        ("gpt-5", "openai", (1000, 1000), {"service_tier": "flex", "cache_read_tokens": 500}, "0.00534375"),
    ],
)
def test_M31_tiers_of_several_providers(
    catalogue: PriceCatalogue, model: str, provider: str, counts: tuple[int, int], use: dict[str, Any], expected: str
) -> None:
    assert cost(catalogue, model, provider, *counts, **{"service_tier": "batch", **use}) == Decimal(expected)


@pytest.mark.parametrize(
    ("model", "provider", "tier"),
    [
        ("gpt-4o", "azure", "batch"),
        ("claude-sonnet-4-5", "google", "batch"),
        ("claude-sonnet-4-5", "anthropic", "priority"),
        ("mistral-large-4", "mistral", "flex"),
        ("anthropic/claude-sonnet-4.5", "openrouter", "batch"),
        ("text-embedding-3-small", "openai", "batch"),
        # Siblings: another tier of a host, OpenAI's own word for fast at Anthropic, and no provider at all.
        ("gpt-4o", "azure", "priority"),
        ("claude-opus-5", "google", "fast"),
        ("text-embedding-3-small", None, "batch"),
        ("meta-llama/llama-3.3-70b-instruct:free", "openrouter", "batch"),
    ],
)
def test_M32_a_tier_that_the_own_entry_lacks_is_unpriced(
    catalogue: PriceCatalogue, model: str, provider: str | None, tier: str
) -> None:
    assert cost(catalogue, model, provider, 1000, 0) is not None
    assert cost(catalogue, model, provider, 1000, 0, service_tier=tier) is None


def test_M33_the_standard_tier_is_the_default(catalogue: PriceCatalogue) -> None:
    said = price(catalogue, "gpt-4o", "openai", 1000, 1000, service_tier="standard")
    assert said == price(catalogue, "gpt-4o", "openai", 1000, 1000)


# ---- who bills, by which name


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        pytest.param("ollama", "deepseek-r1", id="M34"),
        pytest.param("self-hosted", "gpt-4o", id="M34"),
        pytest.param("vllm", "llama-3.3-70b-versatile", id="M34"),
        pytest.param("acme-gateway", "gpt-4o-mini", id="M34"),
        pytest.param("anthropic", "gpt-4o-mini", id="M34"),
        pytest.param("openai", "anthropic/claude-3-5-haiku-20241022", id="M34"),
        pytest.param("mistral", "command-r", id="M34"),
        pytest.param("groq", "claude-sonnet-4-5", id="M34"),
        pytest.param("openai_like", "gpt-4o", id="M35"),
        pytest.param("custom_openai", "gpt-4o", id="M35"),
        pytest.param("openai-compatible", "gpt-4o", id="M35"),
        pytest.param("my-openai-proxy", "gpt-4o", id="M35"),
        pytest.param("not-anthropic", "claude-sonnet-4-5", id="M35"),
        pytest.param("vertex-clone", "gemini-2.5-pro", id="M35"),
        # Siblings.
        pytest.param("lm-studio", "gpt-oss-120b", id="M34 another host of one's own"),
        pytest.param("openai", "azure/gpt-4o", id="M34 the prefix contradicts"),
        pytest.param("anthropic", "bedrock/anthropic.claude-3-haiku-20240307-v1:0", id="M34 the prefix contradicts"),
        pytest.param("openai", "acme/gpt-4o", id="M34 not the maker's prefix"),
        pytest.param("google", "acme/claude-opus-5", id="M34 not the maker's prefix"),
        pytest.param("aws", "acme.claude-3-haiku-20240307-v1:0", id="M34 not the maker's prefix"),
        pytest.param("deepseek", "deepseek-r1:70b", id="M34 the tag of another host"),
        pytest.param("aws.sagemaker", "meta.llama3-3-70b-instruct-v1:0", id="M34 rented by the hour"),
        pytest.param("sagemaker", "meta.llama3-3-70b-instruct-v1:0", id="M34 rented by the hour"),
        pytest.param("my-bedrock", "meta.llama3-3-70b-instruct-v1:0", id="M35 another"),
        pytest.param("mistral-clone", "mistral-large-latest", id="M35 another"),
        pytest.param("github copilot clone", "gpt-4o", id="M35 another"),
    ],
)
def test_M34_M35_a_provider_that_is_named_is_believed(catalogue: PriceCatalogue, provider: str, model: str) -> None:
    assert cost(catalogue, model, provider, 1000, 1000) is None


@pytest.mark.parametrize(
    ("model", "provider", "expected", "entry"),
    [
        ("gpt-oss-120b", "groq", "0.00075", "groq/openai/gpt-oss-120b"),
        ("gpt-oss-120b", "together", "0.00075", "together/openai/gpt-oss-120b"),
        ("gpt-oss-120b", "fireworks", "0.00075", "fireworks/gpt-oss-120b"),
        ("gpt-oss-120b", "ovhcloud", "0.00056", "ovhcloud/gpt-oss-120b"),
        ("openai/gpt-oss-120b", "cerebras", "0.0011", "cerebras/gpt-oss-120b"),
        ("gpt-4o", "openrouter", "0.0125", "openrouter/openai/gpt-4o"),
        # Siblings.
        ("openai/gpt-oss-120b", "fireworks", "0.00075", "fireworks/gpt-oss-120b"),
        ("openai/gpt-oss-120b", "ovhcloud", "0.00056", "ovhcloud/gpt-oss-120b"),
        ("gpt-4o-2024-08-06", "openrouter", "0.0125", "openrouter/openai/gpt-4o"),
        ("meta-llama/llama-3.3-70b-versatile", "groq", "0.00138", "groq/llama-3.3-70b-versatile"),
        ("openai/gpt-4o", "azure", "0.0125", "azure/gpt-4o"),
        ("anthropic/claude-opus-5", "google", "0.03", "google/claude-opus-5"),
        ("openai/gpt-oss-120b", "cloudflare", "0.0011", "cloudflare/@cf/openai/gpt-oss-120b"),
        ("nova-micro-v1:0", "aws", "0.000175", "aws/amazon.nova-micro-v1:0"),
        ("amazon/nova-micro-v1:0", "aws", "0.000175", "aws/amazon.nova-micro-v1:0"),
        ("llama3-3-70b-instruct-v1:0", "bedrock", "0.00144", "aws/meta.llama3-3-70b-instruct-v1:0"),
    ],
)
def test_M36_the_makers_prefix_may_be_missing_or_too_much(
    catalogue: PriceCatalogue, model: str, provider: str, expected: str, entry: str
) -> None:
    found = price(catalogue, model, provider, 1000, 1000)
    assert found is not None
    assert (found.cost_usd, found.source) == (Decimal(expected), f"genai-prices 0.2.3:{entry}")


_AZURE = "az.ai.openai azure.ai.openai az.ai.inference azure.ai.inference azure_ai azure_openai azure-openai"
_GOOGLE = (
    "google gcp.vertex_ai gcp.gemini gcp.gen_ai vertex_ai vertex_ai_beta google_vertexai google_genai google-gla "
    "google-vertex gemini google.generative-ai google.vertex.chat"
)
_AWS = "aws aws.bedrock bedrock bedrock_converse amazon_bedrock amazon-bedrock"


@pytest.mark.parametrize(
    ("model", "providers", "expected", "entry"),
    [
        pytest.param(
            "gpt-4o",
            ["OpenAI", " openai ", "OPENAI", "openai_responses", "openai.responses", "openai.chat"],
            "0.0125",
            "openai/gpt-4o",
            id="M37",
        ),
        pytest.param("gpt-4o", ["azure", *_AZURE.split(), "Azure OpenAI"], "0.0125", "azure/gpt-4o", id="M37"),
        pytest.param("gemini-2.5-pro", _GOOGLE.split(), "0.01125", "google/gemini-2.5-pro", id="M38"),
        pytest.param(f"us.{SONNET}", [*_AWS.split(), "Amazon Bedrock"], "0.0198", f"aws/regional.{SONNET}", id="M38"),
        pytest.param(
            "claude-sonnet-4-5", ["Anthropic", "anthropic.messages"], "0.018", "anthropic/claude-sonnet-4-5", id="M38"
        ),
        pytest.param("grok-4.20", ["x-ai", "x_ai", "xai", "xai.chat"], "0.00375", "x-ai/grok-4.20", id="M39"),
        pytest.param(
            "mistral-large-latest",
            ["mistral", "mistral_ai", "mistralai", "mistral.chat"],
            "0.008",
            "mistral/mistral-large",
            id="M39",
        ),
        pytest.param(
            "openai/gpt-oss-120b",
            ["together_ai", "together-ai", "togetherai", "togetherai.chat"],
            "0.00075",
            "together/openai/gpt-oss-120b",
            id="M39",
        ),
        pytest.param(
            "accounts/fireworks/models/gpt-oss-120b",
            ["fireworks_ai", "fireworks-ai", "fireworks"],
            "0.00075",
            "fireworks/gpt-oss-120b",
            id="M39",
        ),
        pytest.param("command-r", ["cohere_chat", "cohere"], "0.00075", "cohere/command-r", id="M39"),
        pytest.param(
            "llama-3.3-70b-versatile",
            ["Groq", "groq.chat", "\tGROQ\n"],
            "0.00138",
            "groq/llama-3.3-70b-versatile",
            id="M39",
        ),
    ],
)
def test_M37_M38_M39_a_provider_has_many_names(
    catalogue: PriceCatalogue, model: str, providers: list[str], expected: str, entry: str
) -> None:
    found = {provider: price(catalogue, model, provider, 1000, 1000) for provider in providers}
    said = {provider: one and (one.cost_usd, one.source) for provider, one in found.items()}
    assert said == dict.fromkeys(providers, (Decimal(expected), f"genai-prices 0.2.3:{entry}"))


@pytest.mark.parametrize(
    ("model", "provider", "expected"),
    [
        pytest.param("gpt-4o", None, "0.0125", id="M40"),
        pytest.param("claude-3-5-haiku-20241022", None, "0.0048", id="M40"),
        pytest.param("gemini-2.5-flash", None, "0.0028", id="M40"),
        pytest.param("mistral-large-latest", None, "0.008", id="M40"),
        pytest.param("command-r", None, "0.00075", id="M40"),
        pytest.param("ft:gpt-4o-mini-2024-07-18:acme::AbC1", "openai", "0.0015", id="M40"),
        pytest.param("llama-3.3-70b-versatile", None, "0.00138", id="M41"),
        pytest.param("llama-3.1-8b-instant", None, "0.00013", id="M41"),
        pytest.param("phi-4-reasoning-plus", None, None, id="M42"),
        pytest.param("Qwen/Qwen2.5-72B-Instruct", None, None, id="M42"),
        pytest.param("meta-llama/llama-3.3-70b-instruct", None, None, id="M42"),
        pytest.param("qwen/qwen3-coder", None, None, id="M42"),
        pytest.param("acme/gpt-4o", None, None, id="M42"),
        pytest.param("my-gpt-4o", None, None, id="M42"),
        # Siblings.
        pytest.param("perplexity/sonar", None, "0.014", id="M40 the prefix is no part of the name"),
        pytest.param("acme/claude-sonnet-4-5", None, None, id="M42 another"),
        pytest.param("acme/gemini-2.0-flash", None, None, id="M42 another"),
        pytest.param("my-gemini-2.0-flash", None, None, id="M42 another"),
        pytest.param("my-claude-3-haiku", None, None, id="M42 another"),
        pytest.param("deepseek-r1:latest", None, None, id="M42 the tag of another host"),
    ],
)
def test_M40_M41_M42_without_a_provider(
    catalogue: PriceCatalogue, model: str, provider: str | None, expected: str | None
) -> None:
    assert cost(catalogue, model, provider, 1000, 1000) == usd(expected)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("text-embedding-3-small", "0.02"),
        ("text-embedding-3-large", "0.13"),
        ("text-embedding-ada-002", "0.1"),
        ("mistral-embed", "0.1"),
        ("gemini-embedding-001", "0.15"),
        ("voyage-3", "0.06"),
    ],
)
def test_M41_an_embedding_model_without_a_provider(catalogue: PriceCatalogue, model: str, expected: str) -> None:
    assert cost(catalogue, model, None, MILLION, 0) == Decimal(expected)


_ARN = "arn:aws:bedrock:us-east-1:123456789012"


@pytest.mark.parametrize("provider", [None, "aws.bedrock"])
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        pytest.param(f"us.{SONNET}", "0.0198", id="M43"),
        pytest.param(f"eu.{SONNET}", "0.0198", id="M43"),
        pytest.param(SONNET, "0.0198", id="M43"),
        pytest.param(f"global.{SONNET}", "0.018", id="M43"),
        pytest.param("amazon.nova-micro-v1:0", "0.000175", id="M43"),
        pytest.param("us.meta.llama3-3-70b-instruct-v1:0", "0.00144", id="M43"),
        pytest.param("bedrock/us-east-1/anthropic.claude-3-haiku-20240307-v1:0", "0.0015", id="M43"),
        pytest.param(f"bedrock/converse/us.{SONNET}", "0.0198", id="M43"),
        pytest.param(
            "arn:aws:bedrock:us-east-1::foundation-model/anthropic.claude-3-5-sonnet-20240620-v1:0", "0.018", id="M44"
        ),
        pytest.param(f"{_ARN}:inference-profile/us.{SONNET}", "0.0198", id="M44"),
        pytest.param(
            f"bedrock/arn:aws:bedrock:eu-west-1:123456789012:inference-profile/eu.{SONNET}", "0.0198", id="M44"
        ),
        pytest.param(f"{_ARN}:application-inference-profile/46u2vhiyo6z5", None, id="M44"),
        pytest.param(f"{_ARN}:provisioned-model/abcdefghijkl", None, id="M44"),
        pytest.param(
            f"{_ARN}:custom-model/anthropic.claude-3-haiku-20240307-v1:0/abc123def456", None, id="M44"
        ),  # 0.0015
        # Siblings.
        pytest.param(f"{_ARN}:inference-profile/global.{SONNET}", "0.018", id="M44 global"),
        pytest.param(f"bedrock/converse/us-east-1/{SONNET}", "0.0198", id="M43 both routes"),
        pytest.param("bedrock/us-east-1/1-month-commitment/anthropic.claude-3-haiku-20240307-v1:0", None, id="M43"),
        pytest.param(f"{_ARN}:imported-model/abc", None, id="M44 imported"),
        pytest.param(f"{_ARN}:custom-model-deployment/amazon.nova-micro-v1:0", None, id="M44 deployed"),
        pytest.param(f"bedrock/{_ARN}:provisioned-model/amazon.nova-micro-v1:0", None, id="M44 by a name it contains"),
        pytest.param(f"{_ARN}:prompt-router/{SONNET}".replace("bedrock", "sagemaker"), None, id="M44 another service"),
        pytest.param(f"arn:aws-us-gov:bedrock:us-gov-west-1::foundation-model/{SONNET}", None, id="M44 GovCloud"),
    ],
)
def test_M43_M44_names_of_bedrock(
    catalogue: PriceCatalogue, model: str, provider: str | None, expected: str | None
) -> None:
    assert cost(catalogue, model, provider, 1000, 1000) == usd(expected)


_PUBLISHERS = "projects/p1/locations/us-central1/publishers"


@pytest.mark.parametrize("provider", [None, "gcp.vertex_ai"])
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (f"{_PUBLISHERS}/google/models/gemini-2.5-pro", "0.01125"),
        ("publishers/google/models/gemini-2.5-pro", "0.01125"),
        ("models/gemini-2.5-pro", "0.01125"),
        ("projects/p1/locations/global/publishers/anthropic/models/claude-opus-5", "0.03"),
        ("projects/p1/locations/us-east5/publishers/anthropic/models/claude-opus-5", None),  # 0.03
        ("projects/p1/locations/us-central1/endpoints/1234567890", None),
        # Siblings.
        ("publishers/anthropic/models/claude-opus-5", "0.03"),
        ("projects/p1/locations/eu/publishers/anthropic/models/claude-haiku-4-5", None),
        ("projects/p1/locations/us-central1/models/gemini-2.5-pro", None),
        ("tunedModels/gemini-2.5-pro", None),
        ("gemini/models/gemini-2.5-pro", "0.01125"),
        (f"vertex_ai/{_PUBLISHERS}/google/models/gemini-2.5-pro", "0.01125"),
    ],
)
def test_M45_names_of_vertex(catalogue: PriceCatalogue, model: str, provider: str | None, expected: str | None) -> None:
    found = price(catalogue, model, provider, 1000, 1000)
    assert (found and found.cost_usd) == usd(expected)
    assert found is None or ":google/" in found.source


@pytest.mark.parametrize(
    ("model", "provider", "expected"),
    [
        ("azure/gpt-4o", None, "0.0125"),
        ("azure/global/gpt-4o-2024-08-06", None, "0.0125"),
        ("azure/global-standard/gpt-4o-2024-08-06", None, "0.0125"),
        ("azure/eu/gpt-4o", None, None),
        ("azure/us/gpt-4o-2024-08-06", None, None),
        ("eu/gpt-4o", "azure", None),
        ("my-gpt-4o-deployment", "azure", None),
        # Siblings.
        ("azure_ai/global/gpt-4o", None, "0.0125"),
        ("global/gpt-4o", "azure", "0.0125"),
        ("azure/eu/o4-mini", None, None),
        ("azure/us/claude-sonnet-4-5", None, None),
        ("my-o4-mini", "azure", None),
        ("global/gpt-4o", "openai", None),
    ],
)
def test_M46_names_of_azure(catalogue: PriceCatalogue, model: str, provider: str | None, expected: str | None) -> None:
    assert cost(catalogue, model, provider, 1000, 1000) == usd(expected)


_FREE = "meta-llama/llama-3.3-70b-instruct:free"


@pytest.mark.parametrize(
    ("model", "provider", "use", "expected"),
    [
        (_FREE, "openrouter", {}, "0"),
        (f"openrouter/{_FREE}", None, {}, "0"),
        ("acme/brand-new:free", "openrouter", {}, "0"),
        (_FREE, "openrouter", {"web_searches": 1}, None),
        (_FREE, None, {}, None),
        ("llama-3.3-70b-versatile:free", "groq", {}, None),
        ("openai/gpt-4o:extended", "openrouter", {}, "0.024"),
        ("openai/gpt-4o:online", "openrouter", {}, None),
        ("openai/gpt-4o:nitro", "openrouter", {}, None),
        # Siblings.
        (" ACME/Brand-New:FREE ", "OpenRouter", {}, "0"),
        (_FREE, "openrouter", {"cache_read_tokens": 500}, "0"),
        (":free", "openrouter", {}, None),
        ("claude-3-haiku:free", "anthropic", {}, None),
        ("claude-sonnet-4-5:online", None, {}, None),
        ("openai/gpt-4o:floor", "openrouter", {}, None),
        ("gpt-4o:nitro", "openrouter", {}, None),
    ],
)
def test_M47_variants_of_openrouter(
    catalogue: PriceCatalogue, model: str, provider: str | None, use: dict[str, int], expected: str | None
) -> None:
    assert cost(catalogue, model, provider, 1000, 1000, **use) == usd(expected)


def test_M48_names_are_compared_without_case_and_outer_spaces(catalogue: PriceCatalogue) -> None:
    names = [(" GPT-4o ", "OpenAI"), ("gpt-4o\t", None), ("gpt-4o", " openai ")]
    assert [cost(catalogue, *name, 1000, 1000) for name in names] == [Decimal("0.0125")] * 3
    for pattern in ("gpt-4o*", "GPT-4O*", " Gpt-4o* "):
        assert cost(with_overrides(own(pattern)), " GPT-4o ", None, 1000, 1000) == Decimal("0.003")


# ---- the host's own prices


def test_M49_every_part_by_the_hosts_own_price() -> None:
    catalogue = PriceCatalogue(
        [
            own(
                "acme/*",
                cache_read_usd_per_million="0.1",
                cache_write_usd_per_million="1.25",
                cache_write_1h_usd_per_million=2,
                audio_in_usd_per_million=10,
                cache_read_audio_usd_per_million="0.5",
                image_in_usd_per_million=3,
                reasoning_usd_per_million=4,
                audio_out_usd_per_million=20,
                web_search_usd_per_thousand=5,
            )
        ]
    )
    use = {
        "cache_read_tokens": 200,
        "cache_read_audio_tokens": 50,
        "cache_write_tokens": 300,
        "cache_write_1h_tokens": 100,
        "audio_tokens_in": 150,
        "image_tokens_in": 80,
        "reasoning_tokens": 100,
        "audio_tokens_out": 40,
        "web_searches": 2,
    }
    assert cost(catalogue, "acme/large", None, 1000, 500, **use) == Decimal("0.01397")


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (
            {"cache_read_tokens": 200, "cache_write_tokens": 300, "image_tokens_in": 80, "reasoning_tokens": 100},
            "0.002",
        ),
        ({"cache_write_tokens": 100, "cache_write_1h_tokens": 100}, None),
        ({"audio_tokens_in": 10}, None),
        ({"audio_tokens_out": 10}, None),
        ({"image_tokens_out": 10}, None),
        ({"web_searches": 1}, None),
        ({"video_tokens_in": 10}, "0.002"),
        ({"cache_read_tokens": 9, "image_tokens_in": 9, "cache_read_image_tokens": 9}, "0.002"),
        ({"cache_read_tokens": 9, "audio_tokens_in": 9, "cache_read_audio_tokens": 9}, None),
    ],
)
def test_M50_what_an_override_does_not_price(use: dict[str, int], expected: str | None) -> None:
    catalogue = with_overrides(own("claude-*", 1, 2))
    assert cost(catalogue, "claude-sonnet-4-5", "anthropic", 1000, 500, **use) == usd(expected)


def test_M50_cached_images_are_priced_as_cached_input() -> None:
    catalogue = PriceCatalogue([own("x", cache_read_usd_per_million=100, image_in_usd_per_million=1000)])
    use = {"cache_read_tokens": 10, "image_tokens_in": 10, "cache_read_image_tokens": 10}
    assert cost(catalogue, "x", None, 10, 0, **use) == Decimal("0.001")


@pytest.mark.parametrize(
    ("model", "tier", "expected"),
    [
        ("gpt-4o", "standard", "10"),
        ("gpt-4o", "batch", "5"),
        ("gpt-4o", "priority", "21.25"),
        ("gpt-4o", "flex", None),
        ("in-house-7b", "batch", None),
        ("in-house-7b", "standard", "3"),
    ],
)
def test_M51_an_override_is_for_one_tier(model: str, tier: str, expected: str | None) -> None:
    overrides = own("gpt-4o", 2, 8), own("gpt-4o", 1, 4, service_tier="batch"), own("in-house-7b")
    assert cost(with_overrides(*overrides), model, None, MILLION, MILLION, service_tier=tier) == usd(expected)


@pytest.mark.parametrize(("at", "expected"), [("2026-05-31T23:59:59.999999", "2"), ("2026-06-01T00:00:00", "1")])
def test_M52_the_latest_override_wins_and_the_first_among_equals(at: str, expected: str) -> None:
    june = datetime(2026, 6, 1, tzinfo=UTC)
    overrides = own("gpt-4o*", 2, 8), own("gpt-4o*", 1, 4, valid_from=june), own("gpt-4o-mini", 9, 9, valid_from=june)
    at_time = datetime.fromisoformat(f"{at}+00:00")
    assert cost(PriceCatalogue(overrides), "gpt-4o-mini", None, MILLION, 0, at=at_time) == Decimal(expected)


@pytest.mark.parametrize(
    ("provider", "use", "expected"),
    [
        ("self-hosted", {}, "0"),
        (" Self-Hosted ", {}, "0"),
        ("openai", {}, "0.0125"),
        ("self-hosted", {"audio_tokens_in": 10}, None),
        ("self_hosted", {}, "0"),
        ("self-hosted.chat", {}, "0"),
        ("my-self-hosted", {}, None),
        (None, {}, "0.0125"),
    ],
)
def test_M53_an_override_is_for_one_provider(provider: str | None, use: dict[str, int], expected: str | None) -> None:
    catalogue = with_overrides(own("*", 0, 0, provider="self-hosted"))
    assert cost(catalogue, "gpt-4o", provider, 1000, 1000, **use) == usd(expected)


@pytest.mark.parametrize(
    ("given", "provider", "model", "is_meant"),
    [
        ("azure", "az.ai.openai", "gpt-4o", True),
        ("Azure OpenAI", "azure", "gpt-4o", True),
        ("azure", None, "azure/gpt-4o", True),
        ("azure", "openai", "azure/gpt-4o", False),
        ("azure", None, "gpt-4o", False),
        ("google", None, "models/gemini-2.5-pro", True),
        ("aws.bedrock", None, f"{_ARN}:provisioned-model/abcdefghijkl", True),
        ("openai", "openai.chat", "gpt-4o", True),
        ("openai.chat", "openai", "gpt-4o", False),
        ("acme", None, "acme/gpt-4o", True),
    ],
)
def test_M53_the_provider_of_an_override_has_many_names(
    given: str, provider: str | None, model: str, is_meant: bool
) -> None:
    found = price(with_overrides(own("*", provider=given)), model, provider, 1000, 1000)
    assert (found is not None and found.source == "override:*") is is_meant


@pytest.mark.parametrize(
    "given",
    [
        {"service_tier": "turbo"},
        {"service_tier": None},
        {"provider": ""},
        {"web_search_usd_per_thousand": -1},
        {"audio_in_usd_per_million": True},
        {"audio_out_usd_per_million": "NaN"},
    ],
)
def test_M53_a_wrong_override_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        own("x", **given)


def test_M54_a_tier_without_a_price_gets_one_by_an_override(catalogue: PriceCatalogue) -> None:
    use: dict[str, Any] = {"at": datetime(2026, 10, 1, tzinfo=UTC), "service_tier": "batch"}
    assert cost(catalogue, "gpt-4o", "openai", MILLION, MILLION, **use) is None
    batch = own("gpt-4o", "1.25", 5, service_tier="batch")
    assert cost(with_overrides(batch), "gpt-4o", "openai", MILLION, MILLION, **use) == Decimal("6.25")


# ---- exactness


@pytest.mark.parametrize("traps", [[], [Inexact, FloatOperation]])
@pytest.mark.parametrize("places", [3, 6])
def test_M58_M61_the_hosts_decimal_context_does_not_matter(
    catalogue: PriceCatalogue, places: int, traps: list[Any]
) -> None:
    cached = {"cache_read_tokens": 1}
    with localcontext(prec=places) as context:
        for trap in traps:
            context.traps[trap] = True
        override = own("x", "0.123456789012", 0.1)
        got = [
            cost(catalogue, "gpt-4o-mini", "openai", 999_999_999_999, 0),
            cost(catalogue, "gpt-4o-mini", "openai", 1, 0),
            cost(catalogue, "amazon.nova-micro-v1:0", "aws", 1, 0, **cached),
            cost(catalogue, "deepseek-v4-pro", "deepseek", 1, 0, at=datetime(2026, 8, 16, 12, tzinfo=UTC), **cached),
            cost(PriceCatalogue([override]), "x", None, 1_000_001, 3),
        ]
        texts = price(PriceCatalogue([override]), "x", None, 1, 1)
    assert got == [
        Decimal("149999.99999985"),
        Decimal("0.00000015"),
        Decimal("0.00000000875"),
        Decimal("0.000000003625"),
        Decimal("0.123457212468789012"),
    ]
    assert texts is not None
    assert texts.unit_prices["input_mtok"] == "0.123456789012"


# ---- embeddings


@pytest.mark.parametrize(
    ("model", "provider", "counts", "use", "expected"),
    [
        ("text-embedding-3-small", "openai", (8191, 0), {}, "0.00016382"),
        ("gemini-embedding-001", None, (8191, 0), {}, "0.00122865"),
        ("text-embedding-3-small", None, (8191, 5), {}, None),  # 0.00016382
        ("gemini-embedding-2", None, (1000, 0), {"service_tier": "batch", "audio_tokens_in": 1000}, "0.00325"),
        ("mistral-embed", None, (1000, 0), {"service_tier": "batch"}, "0.00005"),
    ],
)
def test_M62_embeddings(
    catalogue: PriceCatalogue,
    model: str,
    provider: str | None,
    counts: tuple[int, int],
    use: dict[str, Any],
    expected: str | None,
) -> None:
    assert cost(catalogue, model, provider, *counts, **use) == usd(expected)


# ---- the kinds that the rows are cases of

_ENTRIES = [
    (provider.id, model.id)
    for provider in get_snapshot().providers
    for model in provider.models
    if provider.find_model(model.id) is model
]
_BILLED_AS = {
    "image_tokens_in": "tokens_in",
    "cache_read_image_tokens": "cache_read_tokens",
    "video_tokens_in": "tokens_in",
    "reasoning_tokens": "tokens_out",
}
"""The only classes that need no price of their own."""


@given(entry=st.sampled_from(_ENTRIES))
def test_X02_no_class_is_billed_as_another_one(catalogue: PriceCatalogue, entry: tuple[str, str]) -> None:
    provider, model = get_snapshot().find_provider_model(entry[1], None, entry[0], None)
    listed = {key for key, value in vars(model.get_prices(AT)).items() if value is not None}
    is_free = entry[0] == "openrouter" and entry[1].endswith(":free")
    for field, one in CLASSES.items():
        other = CLASSES[_BILLED_AS.get(field, field)]
        is_priced = bool(listed & {one.price_key, other.price_key}) or (is_free and field != "web_searches")
        everything = {field, *(whole for whole in WHOLES if _is_inside(field, whole))}
        found = price(catalogue, model.id, provider.id, **dict.fromkeys(everything, 7))
        assert (found is not None) is is_priced


_NAMES = st.sampled_from([model for _, model in _ENTRIES])
_PROVIDERS = st.sampled_from([*(one.id for one in get_snapshot().providers), "ollama", "my-openai", "litellm", "x"])


@given(model=_NAMES, provider=_PROVIDERS)
def test_X03_a_named_provider_is_the_one_that_bills(catalogue: PriceCatalogue, model: str, provider: str) -> None:
    found = price(catalogue, model, provider, 1000)
    assert found is None or found.source.startswith(f"genai-prices 0.2.3:{provider}/")


@given(model=_NAMES, provider=st.none() | _PROVIDERS, around=st.sampled_from(["", " ", "\t", "\n "]))
def test_X04_names_are_compared_without_case_and_outer_spaces(
    catalogue: PriceCatalogue, model: str, provider: str | None, around: str
) -> None:
    said = f"{around}{model.upper()}{around}", provider and f"{around}{provider.upper()}{around}"
    assert price(catalogue, *said, 1000) == price(catalogue, model, provider, 1000)


@given(model=_NAMES)
def test_X04_without_a_provider_everyone_who_has_the_name_agrees(catalogue: PriceCatalogue, model: str) -> None:
    found = price(catalogue, model, None, 1000)
    owners = [one for one in get_snapshot().providers if any(model == own.id for own in one.models)]
    has_maker = any(one.model_match and one.model_match.is_match(model.lower()) for one in get_snapshot().providers)
    if found is not None and "/" not in model and not has_maker:
        costs = {cost(catalogue, model, one.id, 1000) for one in owners}
        assert costs == {found.cost_usd}


# ---- against genai-prices itself


def test_the_classes_are_those_of_genai_prices() -> None:
    from genai_prices.data_units import unit_data

    assert list(CLASSES) == list(WHOLES)
    for field, one in CLASSES.items():
        unit = unit_data[one.usage_key]
        assert (one.field, one.price_key, one.per) == (field, unit["price_key"], unit["per"])
        for whole in one.wholes:
            of_whole = unit_data[CLASSES[whole].usage_key]["dimensions"]
            assert of_whole.items() < unit["dimensions"].items()
        assert one.override_field in PriceOverride.model_fields
    prices = {name for name in PriceOverride.model_fields if "_usd_per_" in name}
    assert prices == {one.override_field for one in CLASSES.values()}


_MANY_PRICES = [
    entry
    for entry in _ENTRIES
    if len(set(vars(get_snapshot().find_provider_model(entry[1], None, entry[0], None)[1].get_prices(AT)))) > 3
]


@st.composite
def _counts_that_fit(draw: st.DrawFn) -> dict[str, int]:
    left = {field: draw(st.integers(0, 200_000)) for field in WHOLES}
    return {field: sum(left[part] for part in _within(field)) for field in WHOLES}


@given(entry=st.sampled_from(_MANY_PRICES), counts=_counts_that_fit())
def test_where_every_used_part_has_its_own_price_calc_price_agrees(
    catalogue: PriceCatalogue, entry: tuple[str, str], counts: Mapping[str, int]
) -> None:
    provider, model = get_snapshot().find_provider_model(entry[1], None, entry[0], None)
    listed = {key for key, value in vars(model.get_prices(AT)).items() if value is not None}
    # A part without a price of its own is taken out of the use, and out of everything that it is a part of.
    left = {field: share for field, share in shares(counts).items() if CLASSES[field].price_key in listed}
    used = {field: sum(left.get(part, 0) for part in _within(field)) for field in WHOLES}
    usage = genai_prices.Usage(**{CLASSES[field].usage_key: count for field, count in used.items()})
    ours = price(catalogue, model.id, provider.id, **used)
    assert ours is not None
    assert ours.source == f"genai-prices 0.2.3:{provider.id}/{model.id}"
    with localcontext(prec=60):
        theirs = model.calc_price(usage, provider, genai_request_timestamp=AT).total_price
        # A price of OpenRouter's has 17 decimals: 0.08333333333333334 USD per million. Costs are kept to 18.
        assert ours.cost_usd == theirs.quantize(Decimal("1E-18"))
