"""Prices: exact, the host's override before the catalogue, and no price rather than a wrong one."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from typing import Any

import pytest
from pydantic import ValidationError

from session_lifecycle.errors import ConfigurationError, InvalidValueError
from session_lifecycle.models.prices import Price, PriceOverride
from session_lifecycle.pricing.catalogue import PriceCatalogue

AT = datetime(2025, 11, 1, 12, tzinfo=UTC)


@pytest.fixture
async def catalogue() -> PriceCatalogue:
    catalogue = PriceCatalogue()
    await catalogue.load()
    return catalogue


def priced(catalogue: PriceCatalogue, model: str | None, provider: str | None = None, **given: Any) -> Price | None:
    parts = dict.fromkeys(("cache_read_tokens", "cache_write_tokens", "reasoning_tokens"), 0)
    use: dict[str, Any] = {"at": AT, "tokens_in": 1000, "tokens_out": 500, **parts, **given}
    return catalogue.price(model=model, provider=provider, **use)


def override(pattern: str = "*", **given: Any) -> PriceOverride:
    fields: dict[str, Any] = {"input_usd_per_million": "1", "output_usd_per_million": 2, **given}
    return PriceOverride(**{"model_pattern": pattern, **fields})


def test_importing_the_module_does_not_load_the_catalogue() -> None:
    program = (
        "import sys, session_lifecycle.pricing.catalogue; "
        "sys.exit(any(m.startswith('genai_prices') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_plain_response_costs_exactly_what_it_should(catalogue: PriceCatalogue) -> None:
    price = priced(catalogue, "gpt-4o-mini")
    assert price is not None
    assert price.cost_usd == Decimal("0.00045")
    assert type(price.cost_usd) is Decimal
    assert price.source.startswith("genai-prices ")
    assert price.source.endswith(":openai/gpt-4o-mini")
    assert price.unit_prices == {"input_mtok": "0.15", "output_mtok": "0.6", "cache_read_mtok": "0.075"}
    assert json.loads(json.dumps(price.unit_prices)) == price.unit_prices


def test_cached_parts_are_part_of_the_input(catalogue: PriceCatalogue) -> None:
    parts: dict[str, Any] = {
        "tokens_in": 10_000,
        "cache_read_tokens": 6_000,
        "cache_write_tokens": 3_000,
        "reasoning_tokens": 100,
    }
    price = priced(catalogue, "claude-3-5-haiku-20241022", **parts)
    assert price is not None  # 1000 x 0.8 + 6000 x 0.08 + 3000 x 1 + 500 x 4
    assert price.cost_usd == Decimal("0.00628")


def test_a_long_input_is_priced_by_its_tier(catalogue: PriceCatalogue) -> None:
    price = priced(catalogue, "gemini-2.5-pro", tokens_in=200_001, tokens_out=0)
    assert price is not None
    assert price.cost_usd == Decimal("0.5000025")
    assert price.unit_prices["input_mtok"] == "1.25 (2.5 above 200000 input tokens)"


def test_the_time_of_use_chooses_the_price(catalogue: PriceCatalogue) -> None:
    before = priced(catalogue, "o3", at=datetime(2025, 6, 1, tzinfo=UTC))
    after = priced(catalogue, "o3", at=datetime(2025, 6, 20, tzinfo=UTC))
    assert before is not None
    assert after is not None
    assert before.cost_usd == 5 * after.cost_usd


def test_the_hosts_decimal_context_does_not_matter(catalogue: PriceCatalogue) -> None:
    with localcontext(prec=3):
        price = priced(catalogue, "gpt-4o-mini", tokens_in=123_456_789_012_345, tokens_out=0)
        own = priced(PriceCatalogue([override()]), "x", tokens_in=123_456_789_012_345, tokens_out=0)
    assert price is not None
    assert own is not None
    assert price.cost_usd == Decimal("18518518.35185175")
    assert own.cost_usd == Decimal("123456789.012345")


@pytest.mark.parametrize(
    ("model", "provider", "expected"),
    [
        ("anthropic/claude-3-5-haiku-20241022", None, "anthropic/claude-3-5-haiku"),
        ("openai/gpt-4o-mini", None, "openai/gpt-4o-mini"),
        ("azure/gpt-4o", None, "azure/gpt-4o"),
        ("bedrock/anthropic.claude-3-haiku-20240307-v1:0", None, "aws/"),
        ("bedrock/us-east-1/anthropic.claude-3-haiku-20240307-v1:0", None, "aws/"),
        ("vertex_ai/gemini-2.5-flash", None, "google/gemini-2.5-flash"),
        ("gemini/gemini-2.5-flash", None, "google/gemini-2.5-flash"),
        ("models/gemini-2.5-flash", None, "google/gemini-2.5-flash"),
        ("openrouter/anthropic/claude-sonnet-4.5", None, "openrouter/anthropic/claude-sonnet-4.5"),
        ("xai/grok-4", None, "x-ai/grok-4-0709"),
        ("groq/llama-3.3-70b-versatile", None, "groq/llama-3.3-70b-versatile"),
        ("GPT-4o-mini", "OpenAI", "openai/gpt-4o-mini"),
        ("gpt-4o", "az.ai.openai", "azure/gpt-4o"),
        ("gpt-4o", "azure.ai.openai", "azure/gpt-4o"),
        ("anthropic.claude-3-haiku-20240307-v1:0", "aws.bedrock", "aws/"),
        ("gemini-2.5-flash", "gcp.vertex_ai", "google/gemini-2.5-flash"),
        ("gemini-2.5-flash", "gcp.gemini", "google/gemini-2.5-flash"),
        ("grok-4", "x_ai", "x-ai/grok-4-0709"),
        ("mistral-large-latest", "mistral_ai", "mistral/mistral-large"),
    ],
)
def test_names_of_providers_are_understood(
    catalogue: PriceCatalogue, model: str, provider: str | None, expected: str
) -> None:
    price = priced(catalogue, model, provider)
    assert price is not None
    assert price.source.partition(":")[2].startswith(expected)


@pytest.mark.parametrize("provider", [None, "openai", "google", "aws.bedrock", "azure", "openrouter", "nobody"])
@pytest.mark.parametrize(
    "model",
    [None, "", "/", "no-such-model", "unknown", "test", "my-model", "acme/gpt-4o", "my-claude-3-haiku", "my-gpt-4o"],
)
def test_an_unknown_model_is_unpriced(catalogue: PriceCatalogue, model: str | None, provider: str | None) -> None:
    assert priced(catalogue, model, provider) is None


def test_a_model_known_without_a_price_is_unpriced_not_free(catalogue: PriceCatalogue) -> None:
    assert priced(catalogue, "gpt-4.1", "github-copilot") is None
    assert priced(catalogue, "whisper-1", "openai") is None


def test_the_hosts_price_comes_first_and_needs_no_catalogue() -> None:
    price = priced(PriceCatalogue([override("gpt-4o*", input_usd_per_million=0.1)]), "azure/gpt-4o-mini")
    assert price is not None
    assert price.cost_usd == Decimal("0.0011")
    assert price.source == "override:gpt-4o*"
    assert price.unit_prices["cache_read_mtok"] == "0.1"


def test_each_part_has_its_own_price() -> None:
    prices = {"cache_read": "0.1", "cache_write": "10", "reasoning": "100"}
    own = override("acme/*", **{f"{part}_usd_per_million": value for part, value in prices.items()})
    parts: dict[str, Any] = {"cache_read_tokens": 200, "cache_write_tokens": 300, "reasoning_tokens": 50}
    price = priced(PriceCatalogue([own]), "acme/large", **parts)
    assert price is not None  # 500 x 1 + 200 x 0.1 + 300 x 10 + 450 x 2 + 50 x 100
    assert price.cost_usd == Decimal("0.00942")


def test_the_latest_price_in_force_wins_and_the_first_among_equals() -> None:
    january, december = datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 12, 1, tzinfo=UTC)
    catalogue = PriceCatalogue(
        [
            override("a*"),
            override("ab*", valid_from=january),
            override("abc*", valid_from=january),
            override("abcd*", valid_from=december),
        ]
    )
    sources = [
        price.source
        for at in (datetime(2024, 1, 1, tzinfo=UTC), january, AT, december)
        if (price := priced(catalogue, "abcde", at=at))
    ]
    assert sources == ["override:a*", "override:ab*", "override:ab*", "override:abcd*"]


def test_only_beyond_18_places_a_cost_is_rounded() -> None:
    exact = priced(PriceCatalogue([override(input_usd_per_million="0.000000000001")]), "x", tokens_in=1, tokens_out=0)
    rounded = priced(
        PriceCatalogue([override(input_usd_per_million="0.0000000000016")]), "x", tokens_in=1, tokens_out=0
    )
    assert exact is not None
    assert rounded is not None
    assert exact.cost_usd == Decimal("1e-18")
    assert rounded.cost_usd == Decimal("2e-18")


@pytest.mark.parametrize("value", [-1, "NaN", "Infinity", float("nan"), True, None])
def test_a_value_that_is_no_price_is_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        override(input_usd_per_million=value)


@pytest.mark.parametrize(
    "given", [{"valid_from": datetime.fromisoformat("2025-01-01")}, {"model": "x"}, {"model_pattern": ""}]
)
def test_a_wrong_override_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        override(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"at": datetime.fromisoformat("2025-01-01")},
        {"tokens_in": -1},
        {"cache_read_tokens": 600, "cache_write_tokens": 401},
        {"reasoning_tokens": 501},
    ],
)
def test_counts_that_contradict_themselves_are_refused(catalogue: PriceCatalogue, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError):
        priced(catalogue, "gpt-4o-mini", **given)


def test_a_catalogue_that_is_not_loaded_raises() -> None:
    with pytest.raises(ConfigurationError, match="load"):
        priced(PriceCatalogue(), "gpt-4o-mini")
