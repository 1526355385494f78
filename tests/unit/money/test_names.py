"""Which provider and model a name means, row by row of the money table.

A row's number stands in the names of its tests. `None` as a cost: the response is unpriced. The comment beside it has
what `calc_price` of genai-prices says, if that is another answer.
"""

from decimal import Decimal

import pytest

from session_lifecycle.pricing.catalogue import PriceCatalogue
from support.prices import ARN, MILLION, SONNET, cost, own, price, usd, with_overrides


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
        pytest.param(f"{ARN}:inference-profile/us.{SONNET}", "0.0198", id="M44"),
        pytest.param(
            f"bedrock/arn:aws:bedrock:eu-west-1:123456789012:inference-profile/eu.{SONNET}", "0.0198", id="M44"
        ),
        pytest.param(f"{ARN}:application-inference-profile/46u2vhiyo6z5", None, id="M44"),
        pytest.param(f"{ARN}:provisioned-model/abcdefghijkl", None, id="M44"),
        pytest.param(
            f"{ARN}:custom-model/anthropic.claude-3-haiku-20240307-v1:0/abc123def456", None, id="M44"
        ),  # 0.0015
        # Siblings.
        pytest.param(f"{ARN}:inference-profile/global.{SONNET}", "0.018", id="M44 global"),
        pytest.param(f"bedrock/converse/us-east-1/{SONNET}", "0.0198", id="M43 both routes"),
        pytest.param("bedrock/us-east-1/1-month-commitment/anthropic.claude-3-haiku-20240307-v1:0", None, id="M43"),
        pytest.param(f"{ARN}:imported-model/abc", None, id="M44 imported"),
        pytest.param(f"{ARN}:custom-model-deployment/amazon.nova-micro-v1:0", None, id="M44 deployed"),
        pytest.param(f"bedrock/{ARN}:provisioned-model/amazon.nova-micro-v1:0", None, id="M44 by a name it contains"),
        pytest.param(f"{ARN}:prompt-router/{SONNET}".replace("bedrock", "sagemaker"), None, id="M44 another service"),
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
