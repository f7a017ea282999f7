"""Names of providers: LiteLLM's, ours, and what an operator writes on a deployment."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import litellm
import pytest

from uc_litellm_plugin import settings
from uc_litellm_plugin.catalog import Catalog

SEED = (settings.shipped("sql") / "0003_seed.sql").read_text("utf-8")
_ROW = re.compile(r"^    \('(\w+)', '[^']+', '\{([^}]+)\}',", re.MULTILINE)
_PREFERRED = re.compile(r"'(\[[^']*\])'")

# Our names, each with LiteLLM's for it, as every installation starts with them.
PROVIDERS = {name: tuple(names.split(",")) for name, names in _ROW.findall(SEED)}
OURS = {litellms: ours for ours, names in PROVIDERS.items() for litellms in names}
PREFERRED = sorted({name for names in _PREFERRED.findall(SEED) for name in json.loads(names)})
# An enumeration in some releases, names in others.
LITELLMS = sorted({str(getattr(each, "value", each)) for each in litellm.provider_list})
# No longer among LiteLLM's providers; its row keeps the keys that users stored for it.
GONE = {"anyscale"}


PRICES = {"input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6}


def catalog(*params: dict[str, Any], **info: Any) -> Catalog:
    """A catalog over deployments with these parameters."""
    made = [{"model_name": "group", "litellm_params": each, "model_info": {"id": f"dep-{n}", **info}}
            for n, each in enumerate(params)]  # fmt: skip
    router = SimpleNamespace(
        model_list=made, model_names={"group"}, model_group_alias={}, get_model_list=lambda model_name: made
    )
    return Catalog(lambda: router, lambda name: OURS.get(name, name))


def test_the_seed_was_read() -> None:
    """The patterns above find the rows."""
    assert len(PROVIDERS) == 14
    assert PREFERRED == ["anthropic", "deepinfra", "openai", "openrouter", "together"]
    assert len(LITELLMS) > 100


@pytest.fixture
def priced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first deployment has a price."""
    monkeypatch.setitem(litellm.model_cost, "dep-0", dict(PRICES))


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("name", LITELLMS)
def test_every_provider_of_litellms(name: str) -> None:
    """A deployment of any of LiteLLM's providers gets our name for it, or keeps its own."""
    made, ours = catalog({"model": f"{name}/some-model", **PRICES}), OURS.get(name, name)
    assert made.providers() == {name: ours, ours: ours}
    (candidate,) = made.candidates("group")
    assert (candidate.provider, candidate.litellm_provider) == (ours, name)


@pytest.mark.parametrize("name", LITELLMS)
def test_a_name_that_is_told_apart(name: str) -> None:
    """`custom_llm_provider` says the same as a prefix does."""
    assert catalog({"model": "some-model", "custom_llm_provider": name}).providers()[name] == OURS.get(name, name)


@pytest.mark.parametrize("name", PREFERRED)
def test_a_preferred_provider_can_be_reached(name: str) -> None:
    """Each provider that a level of the seed prefers is the name of one that LiteLLM can call."""
    reaching = [litellms for litellms in LITELLMS if OURS.get(litellms, litellms) == name]
    assert reaching
    assert name in PROVIDERS


def test_no_name_is_twice() -> None:
    """One name of LiteLLM's is one provider of ours, and every name in the seed is one of LiteLLM's."""
    names = [each for names in PROVIDERS.values() for each in names]
    assert len(names) == len(set(names))
    assert set(names) - set(LITELLMS) == GONE


def test_none_takes_anothers_name() -> None:
    """A provider that keeps LiteLLM's name is not mistaken for another of ours."""
    taken = {name for name in LITELLMS if name not in OURS and name in PROVIDERS}
    assert taken == set()


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("name", ["openai", "together_ai", "xai"])
def test_the_operators_word_stands(name: str) -> None:
    """`model_info.uc_provider` overrides what LiteLLM's name would give, and the name of LiteLLM's leads there, too."""
    made = catalog({"model": f"{name}/some-model", **PRICES}, uc_provider="mine")
    assert made.providers() == {name: "mine", "mine": "mine"}
    assert [each.provider for each in made.candidates("group")] == ["mine"]
