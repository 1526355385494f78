"""Prices that depend on the time of use and on the service tier, row by row of the money table.

A row's number stands in the names of its tests. `None` as a cost: the response is unpriced. The comment beside it has
what `calc_price` of genai-prices says, if that is another answer.
"""

from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest

from session_lifecycle.pricing.catalogue import PriceCatalogue
from support.prices import MILLION, cost, price, usd


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
