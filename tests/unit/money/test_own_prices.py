"""The host's own prices, row by row of the money table.

A row's number stands in the names of its tests. `None` as a cost: the response is unpriced. The comment beside it has
what `calc_price` of genai-prices says, if that is another answer.
"""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from session_lifecycle.pricing.catalogue import PriceCatalogue
from support.prices import ARN, MILLION, cost, own, price, usd, with_overrides


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
        ("aws.bedrock", None, f"{ARN}:provisioned-model/abcdefghijkl", True),
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
        {"price_in": "1000000000.01"},
        {"price_out": "1E+90"},
        {"image_in_usd_per_million": "0." + "1" * 31},
        {"pattern": "[\x00x]"},
    ],
)
def test_M53_a_wrong_override_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        own(**{"pattern": "x", **given})


def test_R07_R19_a_price_is_exact_and_no_event_costs_more_than_it_holds() -> None:
    fine = "0." + "1" * 30
    catalogue = with_overrides(own("dear", 2000), own("fine", fine), own("search", 0, web_search_usd_per_thousand=10))
    found = price(catalogue, "fine", None, MILLION)
    assert found is not None
    assert found.unit_prices["input_mtok"] == fine
    assert cost(catalogue, "dear", None, 5 * 10**11) == 10**9
    assert cost(catalogue, "dear", None, 5 * 10**11 + 1) is None
    assert cost(catalogue, "search", None, 0, web_searches=10**11) == 10**9
    assert cost(catalogue, "search", None, 0, web_searches=10**12) is None


def test_M54_a_tier_without_a_price_gets_one_by_an_override(catalogue: PriceCatalogue) -> None:
    use: dict[str, Any] = {"at": datetime(2026, 10, 1, tzinfo=UTC), "service_tier": "batch"}
    assert cost(catalogue, "gpt-4o", "openai", MILLION, MILLION, **use) is None
    batch = own("gpt-4o", "1.25", 5, service_tier="batch")
    assert cost(with_overrides(batch), "gpt-4o", "openai", MILLION, MILLION, **use) == Decimal("6.25")
