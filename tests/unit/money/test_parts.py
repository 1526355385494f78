"""What each part of a response costs, row by row of the money table: the bundled figures, exact.

A row's number stands in the names of its tests. `None` as a cost: the response is unpriced. The comment beside it has
what `calc_price` of genai-prices says, if that is another answer.
"""

from decimal import Decimal
from typing import Any

import genai_prices
import pytest
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st

from session_lifecycle.errors import InvalidValueError
from session_lifecycle.models.usage_classes import WHOLES, excess, shares
from session_lifecycle.pricing.catalogue import PriceCatalogue
from support.prices import AT, MILLION, SONNET, cost, price, usd, within


def test_the_figures_are_those_of_this_version() -> None:
    assert genai_prices.__version__ == "0.2.3"
    assert not get_snapshot().from_auto_update


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
        assert sum(left.get(part, 0) for part in within(field)) == count
    assert (excess(counts) is None) == (min(left.values(), default=0) >= 0)


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
