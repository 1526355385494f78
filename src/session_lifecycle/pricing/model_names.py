"""Who bills, by which name: the entries of the catalogue that the names of a model and of a provider mean."""

import re
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING

from session_lifecycle.pricing.classes import TOKEN_PRICE_KEYS

if TYPE_CHECKING:
    from genai_prices.types import MatchLogic, ModelInfo, Provider

Entry = tuple["Provider", "ModelInfo"]
"""A model, and the provider that bills it."""
NameResolver = Callable[[str, str | None], tuple[Entry, ...]]
"""Returns the entries that a model's name and a provider's name mean.

It returns none where they mean none, and several where no provider is named and each of several has the model.
"""

_CACHED_NAMES = 1024

# Names of providers that the catalogue does not have: OpenTelemetry's gen_ai.provider.name and gen_ai.system
# (https://opentelemetry.io/docs/specs/semconv/registry/attributes/gen-ai/), LiteLLM's prefixes
# (https://docs.litellm.ai/docs/providers), and the names that LangChain, Pydantic AI and Vercel's AI SDK give.
# SageMaker rents machines by the hour, so it is not the `aws` of the catalogue, which is Bedrock.
_ALIASES = {
    alias: provider
    for provider, aliases in {
        "aws": "aws-bedrock bedrock bedrock-converse amazon-bedrock",
        "azure": "az-ai-openai azure-ai-openai az-ai-inference azure-ai-inference azure-ai azure-openai azure-text "
        "azure-ai-foundry",
        "cohere": "cohere-chat",
        "fireworks": "fireworks-ai",
        "google": "gcp-vertex-ai gcp-gemini gcp-gen-ai vertex-ai vertex-ai-beta vertex gemini google-vertexai "
        "google-vertex google-vertex-ai google-genai google-gla google-gemini google-ai google-ai-studio "
        "google-anthropic-vertex",
        "mistral": "mistral-ai mistralai",
        "moonshotai": "moonshot moonshot-ai",
        "openai": "openai-responses text-completion-openai",
        "perplexity": "perplexity-ai",
        "sagemaker": "aws-sagemaker",
        "together": "together-ai togetherai",
        "voyageai": "voyage voyage-ai",
        "x-ai": "xai grok",
    }.items()
    for alias in aliases.split()
}
_AS_DASH = str.maketrans(" _.", "---")

# What may stand before the name of a model without making it another model.
_GEOGRAPHIES = frozenset({"global", "us", "us-gov", "eu", "apac", "au", "ca", "in", "jp"})

_BEDROCK_ROUTE = re.compile(r"(?:[a-z]{2}-[a-z]+-\d|converse|invoke)/")
_BEDROCK_ARN = re.compile(r"arn:aws:bedrock:[a-z0-9-]*:\d*:(?:foundation-model|inference-profile)/([^/]+)")
_GOOGLE_RESOURCE = re.compile(r"(?:(?:projects/[^/]+/locations/([^/]+)/)?publishers/([^/]+)/)?models/([^/]+)")
_AZURE_GLOBAL = re.compile(r"^global(?:-standard)?/")
_COMPACT_DATE = re.compile(r"-(20\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=[-:]|$)")


class PricedNames:
    """The names that an override is for: a pattern of models, and a provider or None for any.

    Names of models are compared without case and outer spaces.
    """

    def __init__(self, pattern: str, provider: str | None) -> None:
        self._pattern = _folded(pattern)
        self._provider = None if provider is None else provider_names(provider)[0]

    def match(self, model: str, provider: str | None) -> bool:
        """Whether the override is for the model of the provider.

        The pattern is compared with the model's name and with what follows each `/` in it. If no provider is named,
        the prefix of the model's name is the provider.
        """
        return self._is_billed_by(model, provider) and any(
            fnmatchcase(name, self._pattern) for name in _names_of(_folded(model))
        )

    def _is_billed_by(self, model: str, provider: str | None) -> bool:
        if self._provider is None:
            return True
        names = provider_names(provider) if provider and provider.strip() else _providers_of_prefix(_folded(model))
        return self._provider in names


def _folded(name: str) -> str:
    return name.strip().lower()


def _names_of(model: str) -> Iterator[str]:
    yield model
    while "/" in model:
        model = model.partition("/")[2]
        yield model


@lru_cache(_CACHED_NAMES)
def provider_names(name: str) -> tuple[str, ...]:
    """What a provider's name means, the closest first: the whole name, then what stands before its first `.`.

    An alias means the provider that it is an alias of.
    """
    name = _folded(name)
    whole, head = (part.translate(_AS_DASH) for part in (name, name.partition(".")[0]))
    if whole in _ALIASES or whole == head:
        return (_ALIASES.get(whole, whole),)
    return whole, _ALIASES.get(head, head)


def _providers_of_prefix(model: str) -> tuple[str, ...]:
    """The provider that the beginning of a model's name says: `azure/…`, an ARN, a resource of Google's; or nothing."""
    if model.startswith("arn:"):
        return ("aws",)
    if model.startswith(("projects/", "publishers/", "models/")):
        return ("google",)
    prefix, slash, _ = model.partition("/")
    return provider_names(prefix)[:1] if slash else ()


def name_resolver(providers: "list[Provider]") -> NameResolver:
    """Resolves names among these providers, and keeps the latest answers.

    `DataSnapshot.find_provider_model` is not used: it keeps an answer for every name, without a bound.
    """
    return lru_cache(_CACHED_NAMES)(_Names(providers).resolve)


class _Names:
    """The names in one state of the catalogue."""

    def __init__(self, providers: "list[Provider]") -> None:
        self._providers = providers
        self._by_id = {one.id.lower().translate(_AS_DASH): one for one in providers}
        self._listing: dict[str, set[str]] = {}
        self._longer: dict[str, dict[str, list[str]]] = {}
        self._families: set[tuple[str, str]] = set()
        for provider in providers:
            longer = self._longer[provider.id] = {}
            for name in (name for model in provider.models for name in _whole_names(model)):
                self._listing.setdefault(name, set()).add(provider.id)
                for shorter in list(_names_of(name))[1:]:
                    longer.setdefault(shorter, []).append(name)
                organisation, slash, rest = name.removeprefix("@cf/").partition("/")
                if slash and organisation != provider.id:
                    self._families.add((organisation, _family(rest)))
        self._by_parts = {one.id for one in providers if any(not _is_whole(model.match) for model in one.models)}
        bedrock = self._by_id.get("aws")
        words = {word for one in (bedrock.models if bedrock else ()) for word in one.id.split(".")[:-1]}
        self._bedrock_makers = sorted(word for word in words - {"global", "regional"} if word.isalpha())
        self._bedrock_words = _GEOGRAPHIES.union(self._bedrock_makers)

    def resolve(self, model: str, provider: str | None) -> tuple[Entry, ...]:
        """The entries that the names mean.

        A provider that is named, or that the model's prefix names, is the only one that is asked. Without either, the
        model's maker is asked, and then every provider. A name `organisation/model` whose organisation is no provider
        names weights that anyone hosts, so without a provider it means none.
        """
        name = _folded(model)
        if provider and provider.strip():
            owner = self._first(provider_names(provider))
            return self._of(owner, self._spellings(owner, name)) if owner else ()
        if owner := self._first(_providers_of_prefix(name)):
            # The prefix says the provider, so it is the name without it that counts first.
            return self._of(owner, self._spellings(owner, name)[::-1])
        for maker in self._providers:
            if maker.model_match is not None and maker.model_match.is_match(name):
                if found := self._listed(maker, name):
                    return (found,)
                # The catalogue, too, only takes the first maker that claims a name.
                break
        if "/" in name:
            return ()
        having = self._listing.get(name, set()) | self._by_parts
        entries = [
            found for one in self._providers if one.id in having and (found := self._listed(one, name, fallback=False))
        ]
        # The first entry is the one that an event is priced by: a maker's own rather than a host's copy of it.
        return tuple(sorted(entries, key=lambda entry: bool(entry[0].fallback_model_providers)))

    def _first(self, names: tuple[str, ...]) -> "Provider | None":
        return next((self._by_id[name] for name in names if name in self._by_id), None)

    def _spellings(self, owner: "Provider", name: str) -> list[str]:
        """The name as given, and then without each prefix that names the provider itself."""
        spellings = [name]
        while (prefix := spellings[-1].partition("/"))[1] and self._first(provider_names(prefix[0])[:1]) is owner:
            spellings.append(prefix[2])
        return spellings

    def _of(self, owner: "Provider", spellings: list[str]) -> tuple[Entry, ...]:
        """The provider's entry for one of the spellings, with or without the maker's prefix."""
        name = min(spellings, key=len)
        if owner.id == "openrouter" and name.removesuffix(":free") not in {name, ""}:
            return (_free(owner, name),)
        for spelling in spellings:
            if found := self._listed(owner, spelling):
                return (found,)
        plain = _own_spelling(owner, name)
        if plain is None:
            return ()
        organisation, slash, rest = plain.partition("/")
        is_made_by_it = slash and (organisation, _family(rest)) in self._families
        for spelling in (plain, rest) if is_made_by_it else (plain,):
            if found := self._listed(owner, spelling) or self._only_one_with_prefix(owner, spelling):
                return (found,)
        return ()

    def _only_one_with_prefix(self, owner: "Provider", name: str) -> Entry | None:
        """The provider's entry of this name behind a maker's prefix; None if there are several such entries."""
        longer = self._longer[owner.id].get(name, [])
        if owner.id == "aws":
            longer = [f"{maker}.{name}" for maker in self._bedrock_makers]
        found = [entry for one in longer if (entry := self._listed(owner, one))]
        return found[0] if found and all(entry[1] is found[0][1] for entry in found) else None

    def _listed(self, provider: "Provider", name: str, *, fallback: bool = True) -> Entry | None:
        """The provider's entry of this name, if the whole name is explained.

        Some of the catalogue's rules look for a part of a name, so they match `my-claude-3-haiku`, which is not
        Anthropic's, and `deepseek-r1:70b`, which is Ollama's.
        """
        model = provider.find_model(name, all_providers=self._providers if fallback else None)
        if model is None:
            return None
        if name == model.id.lower():
            return provider, model
        # The catalogue looks for gpt-5.2-2025-12-11 where it does not find gpt-5.2-20251211.
        dashed = _COMPACT_DATE.sub(r"-\1-\2-\3", name)
        start, end = _explained(model.match, name) or _explained(model.match, dashed) or (len(name), len(name))
        if start and not name.startswith(model.id.lower()) and not self._is_of_bedrock(provider, name[:start]):
            return None
        # The names of Bedrock (…-v1:0) and of fine-tuned models (ft:gpt-4o:acme::AbC1) hold a colon of their own.
        has_variant = ":" in name[end:] and provider.id != "aws" and not name.startswith("ft:")
        return None if has_variant else (provider, model)

    def _is_of_bedrock(self, provider: "Provider", prefix: str) -> bool:
        """Whether the beginning of a name says a geography or a maker in Bedrock's way: `us.anthropic.`."""
        return provider.id == "aws" and prefix.endswith(".") and self._bedrock_words.issuperset(prefix[:-1].split("."))


def _own_spelling(owner: "Provider", name: str) -> str | None:
    """The model's name out of a name in the provider's own form; None where the catalogue has no price for the form."""
    match owner.id:
        case "aws":
            while route := _BEDROCK_ROUTE.match(name):
                name = name[route.end() :]
            if name.startswith("arn:"):
                # Other kinds of resource are rented by the hour, or do not say their model.
                resource = _BEDROCK_ARN.fullmatch(name)
                return resource and resource[1]
        case "google":
            if resource := _GOOGLE_RESOURCE.fullmatch(name):
                location, publisher, model = resource.groups()
                # Regions of Claude cost 10 % more, and the catalogue has the global price
                # (https://docs.cloud.google.com/vertex-ai/generative-ai/pricing).
                return None if publisher == "anthropic" and location not in {None, "global"} else model
        case "azure":
            # Data zones cost more, and the catalogue has Azure's global prices.
            return _AZURE_GLOBAL.sub("", name)
        case _:
            pass
    return name


def _free(owner: "Provider", name: str) -> Entry:
    """A model of OpenRouter that is free by its name: no token costs anything. The catalogue lists some, unpriced."""
    from genai_prices.types import ClauseEquals, ModelInfo, ModelPrice

    prices = ModelPrice(**dict.fromkeys(TOKEN_PRICE_KEYS, Decimal(0)))
    return owner, ModelInfo(id=name, match=ClauseEquals(name), prices=prices)


def _family(name: str) -> str:
    """The letters that a model's name begins with: the models of one maker share them (gpt-4o, gpt-oss-120b)."""
    return "".join(re.findall(r"^[a-z]+", name))


def _is_whole(rule: "MatchLogic") -> bool:
    """Whether the rule compares whole names, and no part of a name."""
    from genai_prices import types

    if isinstance(rule, types.ClauseOr):
        return all(isinstance(one, types.ClauseEquals) for one in rule.or_)
    return isinstance(rule, types.ClauseEquals)


def _whole_names(model: "ModelInfo") -> Iterable[str]:
    """The names that the catalogue's rule has whole, and the id, in lower case."""
    from genai_prices import types

    rules = model.match.or_ if isinstance(model.match, types.ClauseOr) else [model.match]
    return {model.id.lower(), *(one.equals.lower() for one in rules if isinstance(one, types.ClauseEquals))}


def _explained(rule: "MatchLogic", name: str) -> tuple[int, int] | None:
    """From where to where the rule explains the name; None if it does not match."""
    from genai_prices import types

    if not rule.is_match(name):
        return None
    match rule:
        case types.ClauseOr() | types.ClauseAnd():
            clauses = rule.or_ if isinstance(rule, types.ClauseOr) else rule.and_
            spans = [span for one in clauses if (span := _explained(one, name))]
            return min(start for start, _ in spans), max(end for _, end in spans)
        case types.ClauseRegex():
            found = re.search(rule.regex, name)
            return found.span() if found else None
        case types.ClauseEndsWith():
            start, length = len(name) - len(rule.ends_with), len(rule.ends_with)
        case types.ClauseContains():
            start, length = name.index(rule.contains.lower()), len(rule.contains)
        case types.ClauseStartsWith():
            start, length = 0, len(rule.starts_with)
        case types.ClauseEquals():
            start, length = 0, len(name)
    return start, start + length
