"""Asks the price catalogue for the tests of the money table."""

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from session_lifecycle.models.prices import Price, PriceOverride
from session_lifecycle.models.usage_classes import WHOLES
from session_lifecycle.pricing.catalogue import PriceCatalogue

AT = datetime(2026, 11, 1, 12, tzinfo=UTC)
MILLION = 1_000_000
SONNET = "anthropic.claude-sonnet-4-5-20250929-v1:0"


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


def within(whole: str) -> list[str]:
    """The count itself and everything that is a part of it, each once."""
    return [part for part in WHOLES if part == whole or is_inside(part, whole)]


def is_inside(part: str, whole: str) -> bool:
    return any(one == whole or is_inside(one, whole) for one in WHOLES[part])


ARN = "arn:aws:bedrock:us-east-1:123456789012"
