"""docs/byok.md says what is so: its commands, its Python, its settings and its errors."""

from __future__ import annotations

import io
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.commands import Run
from tests.integration.vaults import canary, vault_of
from tests.unit.test_vault import NEW, OLD
from uc_litellm_plugin import sealing_keys
from uc_litellm_plugin.errors import VaultError
from uc_litellm_plugin.settings import ByokSettings
from uc_litellm_plugin.vault import Secret, Vault

DOCUMENT = (Path(__file__).parents[2] / "docs" / "byok.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)


def lines(block: str) -> list[str]:
    return [line for line in block.splitlines() if not line.startswith("#")]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sealing keys are made as the page has them: first the old one, then the new one."""
    keys = iter([OLD, NEW])
    monkeypatch.setattr(sealing_keys, "new_sealing_key", lambda: next(keys))


def test_the_commands_run(run: Run, nowhere: Path, made: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command runs, in order; after the rotation all keys are under the new sealing key, and open."""
    for number, name in enumerate(("ann-key", "spare-key")):
        (nowhere / name).write_text(f"{canary(number)}\n")
    run("vault", "key")
    users, rotation, hosts = blocks("sh")
    for line in [*lines(users), *lines(rotation)]:
        program, *args = shlex.split(line, comments=True)
        if "<" in args:
            monkeypatch.setattr(sys, "stdin", io.StringIO((nowhere / args.pop()).read_text()))
            args.remove("<")
        result = run(*args)
        assert (program, result.code) == ("uc-litellm", 0), f"{line}\n{result}"
    new = Vault(sealing_keys.KeyFile(nowhere / ".env", is_env=True).keys())
    assert new.key_ids == ("75b938297c98",)
    (found,) = run("vault", "verify", "--json").json
    assert (found["key_id"], found["state"], found["keys"]) == (new.newest, "opens", 2)
    listed = run("provider-keys", "list", "ann", "--json").json
    assert [(key["key_name"], key["is_default"], key["fallback"]) for key in listed] == [
        ("work", True, "never"),
        ("spare", False, "credits"),
    ]
    assert len(lines(hosts)) == 2


def test_the_commands_for_several_hosts(run: Run, nowhere: Path, made: None) -> None:
    """A key that was put last opens, and seals when it was promoted."""
    run("vault", "key")
    first, second = lines(blocks("sh")[2])
    assert run(*shlex.split(first, comments=True)[1:], "--json").json["key_ids"] == ["53dae81cfabf", "75b938297c98"]
    assert run(*shlex.split(second, comments=True)[1:], "--json").json["key_ids"] == ["75b938297c98", "53dae81cfabf"]


def test_the_key_service_works() -> None:
    """The example seals and opens, and asks its service once per sealing key."""
    asked: list[bytes] = []

    def unwrap(wrapped: bytes) -> str:
        asked.append(wrapped)
        return wrapped[::-1].decode()

    names: dict[str, Any] = {"wrapped": [NEW.encode()[::-1], OLD.encode()[::-1]], "unwrap": unwrap}
    exec(blocks("python")[0], names)
    service = names["service"]
    sealed = service.seal("ann", "openai", Secret(canary(1)))
    assert service.open("ann", "openai", sealed).reveal() == canary(1)
    assert vault_of(NEW).open("ann", "openai", sealed) == Secret(canary(1))
    assert len(asked) == 2


def table(heading: str) -> dict[str, str]:
    """First and second column of the first table after a heading."""
    rows = DOCUMENT.split(heading)[1].split("\n\n")[0]
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", rows, re.MULTILINE))


def test_the_settings_are_documented() -> None:
    """The table names every setting with its default."""
    shown = {"true": True, "false": False, "[]": frozenset()}
    stated = {name: text.strip(" `") for name, text in table("| setting of `byok` |").items()}
    defaults = ByokSettings().model_dump()  # type: ignore[call-arg]
    assert {name: shown.get(text, text) for name, text in stated.items()} == {
        name: value if isinstance(value, bool | frozenset) else str(value) for name, value in defaults.items()
    }


def test_the_errors_are_documented() -> None:
    """The table names every error of the vault."""
    assert set(table("| error | means |")) == {each.code for each in VaultError.__subclasses__()}
