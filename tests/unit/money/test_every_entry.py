"""What holds for every entry of the catalogue: classes, names, exact sums, and the answers of `calc_price`."""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, FloatOperation, Inexact, localcontext
from functools import cache
from typing import Any

import genai_prices
import pytest
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st

from session_lifecycle.models.prices import PriceOverride
from session_lifecycle.models.usage_classes import WHOLES, shares
from session_lifecycle.pricing.catalogue import PriceCatalogue
from session_lifecycle.pricing.classes import CLASSES
from support.prices import AT, cost, is_inside, own, price, within


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


@cache
def _entries() -> list[tuple[str, str]]:
    """All entries, which are found when the first test asks: every worker of a test run imports this module."""
    return [
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


@given(entry=st.deferred(lambda: st.sampled_from(_entries())))
def test_X02_no_class_is_billed_as_another_one(catalogue: PriceCatalogue, entry: tuple[str, str]) -> None:
    provider, model = get_snapshot().find_provider_model(entry[1], None, entry[0], None)
    listed = {key for key, value in vars(model.get_prices(AT)).items() if value is not None}
    is_free = entry[0] == "openrouter" and entry[1].endswith(":free")
    for field, one in CLASSES.items():
        other = CLASSES[_BILLED_AS.get(field, field)]
        is_priced = bool(listed & {one.price_key, other.price_key}) or (is_free and field != "web_searches")
        everything = {field, *(whole for whole in WHOLES if is_inside(field, whole))}
        found = price(catalogue, model.id, provider.id, **dict.fromkeys(everything, 7))
        assert (found is not None) is is_priced


_NAMES = st.deferred(lambda: st.sampled_from([model for _, model in _entries()]))
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


def _many_prices() -> list[tuple[str, str]]:
    return [
        entry
        for entry in _entries()
        if len(set(vars(get_snapshot().find_provider_model(entry[1], None, entry[0], None)[1].get_prices(AT)))) > 3
    ]


@st.composite
def _counts_that_fit(draw: st.DrawFn) -> dict[str, int]:
    left = {field: draw(st.integers(0, 200_000)) for field in WHOLES}
    return {field: sum(left[part] for part in within(field)) for field in WHOLES}


@given(entry=st.deferred(lambda: st.sampled_from(_many_prices())), counts=_counts_that_fit())
def test_where_every_used_part_has_its_own_price_calc_price_agrees(
    catalogue: PriceCatalogue, entry: tuple[str, str], counts: Mapping[str, int]
) -> None:
    provider, model = get_snapshot().find_provider_model(entry[1], None, entry[0], None)
    listed = {key for key, value in vars(model.get_prices(AT)).items() if value is not None}
    # A part without a price of its own is taken out of the use, and out of everything that it is a part of.
    left = {field: share for field, share in shares(counts).items() if CLASSES[field].price_key in listed}
    used = {field: sum(left.get(part, 0) for part in within(field)) for field in WHOLES}
    usage = genai_prices.Usage(**{CLASSES[field].usage_key: count for field, count in used.items()})
    ours = price(catalogue, model.id, provider.id, **used)
    assert ours is not None
    assert ours.source == f"genai-prices 0.2.3:{provider.id}/{model.id}"
    with localcontext(prec=60):
        theirs = model.calc_price(usage, provider, genai_request_timestamp=AT).total_price
        # A price of OpenRouter's has 17 decimals: 0.08333333333333334 USD per million. Costs are kept to 18.
        assert ours.cost_usd == theirs.quantize(Decimal("1E-18"))
