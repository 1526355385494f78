"""The bundled catalogue of genai-prices, loaded once."""

import pytest

from session_lifecycle.pricing.catalogue import PriceCatalogue
from support.prices import with_overrides


@pytest.fixture(scope="session")
def catalogue() -> PriceCatalogue:
    return with_overrides()
