"""The proxy's configuration as `serve` runs it: the shipped one, with a mock where no provider key is set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .errors import SettingsError
from .settings import shipped

MOCK_ANSWER = "This is LiteLLM's mock: set {key} in the environment or in .env and start again for the real model."
MOCK_EMBEDDING = [0.0] * 8

_FROM_ENVIRONMENT = "os.environ/"

Config = dict[str, Any]
Deployment = dict[str, Any]


def write_effective(file: Path, environ: Mapping[str, str]) -> None:
    """Write the shipped configuration, fitted to the provider keys of the environment.

    Parameters
    ----------
    file
        Where to; its directory is made. No package of ours may lie beside it, LiteLLM would import that one.
    """
    config = read(shipped("config") / "litellm.yaml")
    config["model_list"] = fit(config["model_list"], environ)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(config, sort_keys=False)
        file.write_text(f"# Made by `uc-litellm serve` from its own litellm.yaml at every start.\n{text}", "utf-8")
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}; set UC_STATE_DIR to a directory of your own") from error


def read(file: Path) -> Config:
    """A proxy configuration from YAML."""
    try:
        config = yaml.safe_load(file.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}; name a configuration of the LiteLLM proxy") from error
    except (yaml.YAMLError, ValueError) as error:  # PyYAML's own for a value such as 2026-02-30.
        raise SettingsError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(config, dict):
        raise SettingsError(f"{file} is no configuration of the LiteLLM proxy: the top level must be a mapping")
    return config


def fit(deployments: list[Deployment], environ: Mapping[str, str]) -> list[Deployment]:
    """Keep what has its key; mock the first of a model group none of whose deployments has one.

    A mock beside real deployments would answer, and charge, a part of the real calls: so it is left out.
    """
    answered = {each["model_name"] for each in deployments if _missing_key(each, environ) is None}
    fitted = []
    for deployment in deployments:
        key, name = _missing_key(deployment, environ), deployment["model_name"]
        if key is None:
            fitted.append(deployment)
        elif name not in answered:
            answered.add(name)
            fitted.append(_mock(deployment, key))
    return fitted


def mocked(config: Config) -> list[str]:
    """The names of the models that a mock answers."""
    deployments = config.get("model_list") or []
    return sorted({each["model_name"] for each in deployments if "mock_response" in each["litellm_params"]})


def _missing_key(deployment: Deployment, environ: Mapping[str, str]) -> str | None:
    key = str(deployment["litellm_params"].get("api_key", ""))
    name = key.removeprefix(_FROM_ENVIRONMENT)
    return name if key.startswith(_FROM_ENVIRONMENT) and not environ.get(name) else None


def _mock(deployment: Deployment, key: str) -> Deployment:
    embedding = (deployment.get("model_info") or {}).get("mode") == "embedding"
    answer = MOCK_EMBEDDING if embedding else MOCK_ANSWER.format(key=key)
    # The key is a placeholder, so that a call which passes the mock by cannot get through to the provider.
    params = {**deployment["litellm_params"], "api_key": "not-set", "mock_response": answer}
    return {**deployment, "litellm_params": params}
