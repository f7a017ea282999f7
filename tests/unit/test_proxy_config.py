from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from uc_litellm_plugin import proxy_config
from uc_litellm_plugin.errors import SettingsError
from uc_litellm_plugin.settings import shipped

KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "OPENROUTER_API_KEY")


def effective(tmp_path: Path, *keys: str) -> proxy_config.Config:
    proxy_config.write_effective(tmp_path / "state" / "litellm.yaml", dict.fromkeys(keys, "sk-real"))
    return proxy_config.read(tmp_path / "state" / "litellm.yaml")


def test_without_keys_every_model_is_a_mock(tmp_path: Path) -> None:
    """On a fresh machine all models answer, and none with a key that could reach a provider."""
    config = effective(tmp_path)
    names = {each["model_name"] for each in config["model_list"]}
    assert set(proxy_config.mocked(config)) == names
    assert {each["litellm_params"]["api_key"] for each in config["model_list"]} == {"not-set"}
    assert config["litellm_settings"]["callbacks"] == ["uc_litellm_plugin.proxy_handler_instance"]


def test_with_all_keys_nothing_is_changed(tmp_path: Path) -> None:
    """With every key set the shipped configuration is served as it is; no key is written down."""
    shipped_config = yaml.safe_load((shipped("config") / "litellm.yaml").read_text())
    assert effective(tmp_path, *KEYS) == shipped_config
    assert "sk-real" not in (tmp_path / "state" / "litellm.yaml").read_text()


@pytest.mark.parametrize("key", KEYS)
def test_no_mock_beside_a_real_deployment(tmp_path: Path, key: str) -> None:
    """A model group is either real or a mock: a mock must not answer a part of the real calls."""
    groups: dict[str, set[bool]] = {}
    for each in effective(tmp_path, key)["model_list"]:
        groups.setdefault(each["model_name"], set()).add("mock_response" in each["litellm_params"])
    assert all(len(kinds) == 1 for kinds in groups.values())
    assert {False} in groups.values()


def test_an_embedding_mock_is_a_vector(tmp_path: Path) -> None:
    """LiteLLM's mock of an embedding takes a list of numbers, where others take text."""
    answers = {
        each["model_name"]: each["litellm_params"]["mock_response"] for each in effective(tmp_path)["model_list"]
    }
    assert isinstance(answers["text-embedding-3-small"], list)
    assert isinstance(answers["gpt-4o-mini"], str)


@pytest.mark.parametrize("text", ["- a list", "a: [", None])
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str | None) -> None:
    """A configuration that cannot be read is an error that names the file."""
    file = tmp_path / "mine.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SettingsError, match=r"mine\.yaml"):
        proxy_config.read(file)
