"""`PriceOverride`, a price that the host passes in, and `Price`, the price of one response."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from session_lifecycle.models.refusals import refused


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise refused("price_type")
    return value


# Pydantic takes a float by its shortest decimal form and refuses infinity and NaN.
_UsdPerMillion = Annotated[Decimal, BeforeValidator(_no_bool), Field(ge=0, allow_inf_nan=False)]


class PriceOverride(BaseModel):
    """The host's own price of some models, in USD per million tokens. It goes in, and comes before the catalogue.

    Example:
        `PriceOverride(model_pattern="gpt-4o*", input_usd_per_million="2", output_usd_per_million="8")`

    Attributes:
        model_pattern: A pattern with case (`fnmatch.fnmatchcase`). It is compared with the model's name as given, and
            with what follows each `/` in the name: `gpt-4o*` matches `azure/gpt-4o`, `acme/*` matches `acme/large`.
        input_usd_per_million: The price of input that is neither read from a cache nor written to one.
        output_usd_per_million: The price of output that is not reasoning.
        cache_read_usd_per_million: `None`: the price of input.
        cache_write_usd_per_million: `None`: the price of input.
        reasoning_usd_per_million: `None`: the price of output.
        valid_from: The override is not used before this time. `None`: it is used at any time. Where several overrides
            match, the latest `valid_from` wins, and `None` counts as the earliest. Among equals the first given wins.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_pattern: str = Field(min_length=1)
    input_usd_per_million: _UsdPerMillion
    output_usd_per_million: _UsdPerMillion
    cache_read_usd_per_million: _UsdPerMillion | None = None
    cache_write_usd_per_million: _UsdPerMillion | None = None
    reasoning_usd_per_million: _UsdPerMillion | None = None
    valid_from: AwareDatetime | None = None

    def unit_prices(self) -> dict[str, Decimal]:
        """The five prices in USD per million tokens, under the catalogue's names. None of them is missing."""
        given, out = self.input_usd_per_million, self.output_usd_per_million
        read, write = self.cache_read_usd_per_million, self.cache_write_usd_per_million
        return {
            "input_mtok": given,
            "output_mtok": out,
            "cache_read_mtok": given if read is None else read,
            "cache_write_mtok": given if write is None else write,
            "output_reasoning_mtok": out if self.reasoning_usd_per_million is None else self.reasoning_usd_per_million,
        }


@dataclass(frozen=True, slots=True)
class Price:
    """The price of one response. It comes out of `PriceCatalogue`, and the ledger keeps it.

    Attributes:
        cost_usd: USD, exact. More than 18 decimal places are rounded half-even.
        source: `override:<pattern>`, or `genai-prices <version>:<provider>/<model id>`. When the host keeps the
            catalogue updated (`genai_prices.UpdatePrices`), the version is followed by `+` and the time of the update.
        unit_prices: The prices that were used, as decimal texts, ready for JSON: USD per million tokens, and for
            `requests_kcount` USD per thousand responses. A price that depends on the length of the input reads
            `3 (6 above 200000 input tokens)`.
    """

    cost_usd: Decimal
    source: str
    unit_prices: dict[str, str]
