"""The provider and the model of the catalogue that a name means, and the aliases of providers."""

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, Provider

Resolved = tuple["Provider", "ModelInfo"]
NameResolver = Callable[[str, str | None], Resolved | None]
"""Returns the provider and the model that a model's name and a provider's name mean; None where they mean none."""

_CACHED_NAMES = 1024

# Names of providers that the catalogue does not have: OpenTelemetry's gen_ai.provider.name and gen_ai.system
# (https://opentelemetry.io/docs/specs/semconv/registry/attributes/gen-ai/) and LiteLLM's prefixes
# (https://docs.litellm.ai/docs/providers). They are in lower case, with `-` in place of `_` and `.`.
_ALIASES = {
    alias: provider
    for provider, aliases in {
        "aws": "aws-bedrock bedrock bedrock-converse amazon-bedrock sagemaker",
        "azure": "az-ai-openai azure-ai-openai az-ai-inference azure-ai-inference azure-ai azure-openai azure-text",
        "google": "gcp-vertex-ai gcp-gemini gcp-gen-ai vertex-ai vertex-ai-beta vertex gemini models google-vertexai",
        "x-ai": "x-ai xai",
        "mistral": "mistral-ai mistralai",
        "fireworks": "fireworks-ai",
        "together": "together-ai",
        "moonshotai": "moonshot moonshot-ai",
        "cohere": "cohere-chat",
        "openai": "openai-responses text-completion-openai",
    }.items()
    for alias in aliases.split()
}


def matches_pattern(model: str, pattern: str) -> bool:
    """Whether the pattern matches the model's name, or the part of the name after any `/` in it. Case matters."""
    return any(fnmatchcase(name, pattern) for name in _names_of(model))


def _names_of(model: str) -> Iterator[str]:
    yield model
    while "/" in model:
        model = model.partition("/")[2]
        yield model


def name_resolver(providers: "list[Provider]") -> NameResolver:
    """Resolves names among these providers, and keeps the latest answers.

    `DataSnapshot.find_provider_model` is not used: it keeps an answer for every name, without a bound.
    """
    return lru_cache(_CACHED_NAMES)(partial(_resolve, providers))


def _resolve(providers: "list[Provider]", model: str, provider: str | None) -> Resolved | None:
    by_id = {one.id: one for one in providers}
    for candidate, name in _candidates(by_id, model.strip().lower(), provider):
        found = candidate.find_model(name, all_providers=providers)
        if found is not None and not _is_accidental(candidate, found, name, providers):
            return candidate, found
    return None


def _candidates(by_id: "dict[str, Provider]", model: str, provider: str | None) -> "Iterator[tuple[Provider, str]]":
    """Providers with a name that each may have for the model, the preferred ones first."""
    names = [model]  # the name as given, and then without each prefix that names a provider
    prefixed: list[tuple[Provider, str]] = []
    while (prefix := names[-1].partition("/"))[1] and (owner := _provider(by_id, prefix[0])):
        names.append(prefix[2])
        prefixed.append((owner, prefix[2]))
        if owner.id == "aws" and "/" in prefix[2]:  # LiteLLM writes bedrock/us-east-1/... and bedrock/converse/...
            prefixed.append((owner, prefix[2].rpartition("/")[2]))
    if provider and (named := _provider(by_id, provider, loosely=True)):
        yield from ((named, name) for name in names)
    yield from prefixed
    for name in names:
        for maker in by_id.values():
            if maker.model_match is not None and maker.model_match.is_match(name):
                yield maker, name
                # The catalogue, too, only takes the first maker that claims a name.
                break


def _provider(by_id: "dict[str, Provider]", name: str, *, loosely: bool = False) -> "Provider | None":
    """The provider with this name or alias. With `loosely`, also a provider whose own rule matches the name."""
    name = name.strip().lower()
    alias = _ALIASES.get(name.replace("_", "-").replace(".", "-"), name)
    if (found := by_id.get(alias)) or not loosely:
        return found
    return next((one for one in by_id.values() if one.provider_match and one.provider_match.is_match(name)), None)


def _is_accidental(provider: "Provider", found: "ModelInfo", name: str, providers: "list[Provider]") -> bool:
    """Whether the catalogue found the model only because its name occurs within another name.

    Some of the catalogue's rules only look for a part of a name, so they match `my-claude-3-haiku`, which is not
    Anthropic's. If the catalogue finds the same model without the first word of the name, the first word was not
    recognised, and the match is accidental. It is not accidental if the name begins with the model's id, or if makers
    begin names with that word: open-mistral-7b, text-davinci.
    """
    word, dash, rest = name.partition("-")
    if not dash or word in {"open", "text"} or "." in word or "/" in word or name.startswith(found.id.lower()):
        return False
    return provider.find_model(rest, all_providers=providers) is found
