from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from uc_litellm_plugin import settings
from uc_litellm_plugin.errors import SettingsError
from uc_litellm_plugin.settings import IssuerSettings, Settings

URL = "postgresql://me:hunter2@host/db"


def load(tmp_path: Path, text: str = "", **environ: str) -> Settings:
    file = tmp_path / "uc.yaml"
    file.write_text(text)
    return settings.load({"UC_CONFIG": str(file), "UC_STATE_DIR": str(tmp_path), **environ})


def refusal(tmp_path: Path, text: str, **environ: str) -> str:
    """The message that a bad file gets; it names the file."""
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text, **environ)
    message = str(caught.value)
    assert str(tmp_path) in message or "_FILE" in message
    return message


def test_the_shipped_file_is_the_defaults(tmp_path: Path) -> None:
    """The values in the shipped file are those of an empty one, except for the tier's limits that it shows."""
    shipped, empty = settings.load({"UC_STATE_DIR": str(tmp_path)}), load(tmp_path)
    differ = {name for name in type(empty).model_fields if getattr(shipped, name) != getattr(empty, name)}
    assert differ == {"config_file", "tiers"}
    assert shipped.config_file == settings.shipped("config") / "uc.yaml"


def test_the_shipped_file_names_every_key(tmp_path: Path) -> None:
    """Each key that can be set stands in the shipped file."""
    written = yaml.safe_load((settings.shipped("config") / "uc.yaml").read_text())
    for section, values in load(tmp_path).model_dump(by_alias=True).items():
        if isinstance(values, dict) and section not in ("tiers", "power_levels"):
            assert set(written[section]) == set(values), section


def test_values_are_exact(tmp_path: Path) -> None:
    """Money is read as decimals, as written."""
    found = load(tmp_path, "credits: {credits_per_usd: 0.1}\ntiers: {free: {markup: '1.15', rpm_limit: 5}}")
    assert found.credits.credits_per_usd == Decimal("0.1")
    assert (found.tier("free").markup, found.tier("free").rpm_limit) == (Decimal("1.15"), 5)
    assert found.tier("starter").markup == 1


BAD = [
    ("nonsense: {}", "nonsense", "unknown key"),
    ("database: {url: x}", "database.url", "unknown key"),
    ("database: {schema: public}", "database", "use 'uc'"),
    ("database: {schema: 'a-b'}", "database.schema", "pattern"),
    ("database: {pool_size: 0}", "database.pool_size", "greater than or equal to 1"),
    ("database: {pool_size: true}", "pool_size", "true"),
    ("database: {timeout_s: .nan}", "database.timeout_s", ""),
    ("database: {timeout_s: -1}", "database.timeout_s", "greater than 0"),
    ("credits: {credits_per_usd: 0}", "credits.credits_per_usd", "greater than 0"),
    ("credits: {credits_per_usd: ten}", "credits.credits_per_usd", "decimal"),
    ("holds: {extend_every_s: 100}", "holds", "a third of lease_s"),
    ("holds: {unbounded_input: maybe}", "holds.unbounded_input", "refuse"),
    ("tiers: {gold: {}}", "tiers.gold", "free"),
    ("tiers: {free: {markup: .inf}}", "tiers.free.markup", ""),
    ("tiers: {free: {models: gpt-4o}}", "tiers.free.models", "write a list"),
    ("power_levels:", "power_levels", "{} for none"),
    ("power_levels: {eco: }", "power_levels.eco", "below it"),
    ("power_levels: {Eco: {}}", "power_levels.Eco", "pattern"),
    ("power_levels: {eco: {price: 1}}", "power_levels.eco.price", "unknown key"),
    ("power_levels: {eco: {cost_multiplier: 0}}", "power_levels.eco.cost_multiplier", "greater than 0"),
    ("power_levels: {eco: {cost_multiplier: 0.00001}}", "power_levels.eco.cost_multiplier", "4 decimal places"),
    ("power_levels: {eco: {cost_multiplier: .inf}}", "power_levels.eco.cost_multiplier", "finite"),
    ("power_levels: {eco: {cost_multiplier: yes}}", "cost_multiplier", "true"),
    ("power_levels: {eco: {is_active: maybe}}", "power_levels.eco.is_active", "boolean"),
    ("power_levels: {eco: {min_quality_score: 100.01}}", "power_levels.eco.min_quality_score", "100"),
    ("power_levels: {eco: {max_latency_ms: 0}}", "power_levels.eco.max_latency_ms", "1"),
    ("power_levels: {eco: {preferred_providers: groq}}", "power_levels.eco.preferred_providers", "write a list"),
    ("power_levels: {eco: {preferred_providers: [Open AI]}}", "power_levels.eco.preferred_providers.0", "pattern"),
    ("power_levels: {eco: {fallback_strategy: any}}", "power_levels.eco.fallback_strategy", "next_available"),
    ("health: {down_after: 0}", "health.down_after", "1"),
    ("routing: {latency_timeout: 5}", "routing.latency_timeout", "boolean"),
    ("requests: {extra_fields: abc}", "requests.extra_fields", ""),
    ("- a", "top level", "mapping"),
    ("a: [", "YAML", ""),
    ("\tx", "line 1, column 1", "YAML"),
    ('a: "\x01"', "YAML", "characters"),
    ("[" * 5_000, "YAML", "nested"),
    ("1: x", "1", ""),
    ("on: x", "True", "quotes"),
    ("database_url: x", "database_url", "environment"),
    ("sealing_keys: [x]", "sealing_keys", "environment"),
    ("database: 5", "database", ""),
    ("byok: {min_tier: gold}", "byok.min_tier", "starter"),
    ("byok: {fee_percent: 101}", "byok.fee_percent", "less than or equal to 100"),
    ("byok: {most_keys: true}", "byok", "true or false"),
    ("byok: {enabled: 2}", "byok.enabled", "boolean"),
    ("byok: {allowed_hosts: ['https://llm.corp']}", "byok.allowed_hosts", "pattern"),
    ("byok: {allowed_hosts: ['LLM']}", "byok.allowed_hosts", "pattern"),
    ("oidc: https://sso", "oidc", "write a list"),
    ("oidc: {}", "oidc.0.issuer", "required"),
    ("oidc: {issuer: 'https://sso'}", "oidc.0.audience", "required"),
    ("oidc: {issuer: 'https://sso', audience: []}", "oidc.0.audience", "at least 1"),
    ("oidc: {issuer: 'https://sso', audience: uc, secret: x}", "oidc.0.secret", "unknown key"),
    ("oidc: {issuer: sso, audience: uc}", "oidc.0.issuer", "https://host/path"),
    ("oidc: {issuer: 'https://[', audience: uc}", "oidc.0.issuer", "https://host/path"),
    ("oidc: {issuer: 'https://me:hunter2@sso', audience: uc}", "oidc.0.issuer", "https://host/path"),
    ("oidc: {issuer: 'https://sso/?x', audience: uc}", "oidc.0.issuer", "https://host/path"),
    ("oidc: {issuer: 'http://localhost:8080/realms/a', audience: uc}", "oidc.0", "https://"),
    ("oidc: {issuer: 'http://sso', audience: uc, allow_http: true}", "oidc.0", "this machine only"),
    ("oidc: {issuer: 'ftp://localhost', audience: uc, allow_http: true}", "oidc.0", "https://"),
    ("oidc: {issuer: 'https://sso', audience: uc, algorithms: [HS256]}", "oidc.0.algorithms.0", "RS256"),
    ("oidc: {issuer: 'https://sso', audience: uc, algorithms: []}", "oidc.0.algorithms", "at least 1"),
    ("oidc: {issuer: 'https://sso', audience: uc, tier_claim: a, tiers: {x: gold}}", "oidc.0.tiers.x", "professional"),
    ("oidc: {issuer: 'https://sso', audience: uc, tiers: {x: free}}", "oidc.0", "tier_claim"),
    ("oidc: {issuer: 'https://sso', audience: uc, roles: {x: admin}}", "oidc.0", "role_claim"),
    ("oidc: {issuer: 'https://sso', audience: uc, role_claim: roles}", "oidc.0", "roles"),
    ("oidc: {issuer: 'https://sso', audience: uc, role_claim: r, roles: {x: root}}", "oidc.0.roles.x", "service"),
    ("oidc: {issuer: 'https://sso', audience: uc, welcome_credits: {gold: 1}}", "oidc.0.welcome_credits.gold", "free"),
    ("oidc: {issuer: 'https://sso', audience: uc, welcome_credits: {free: -1}}", "oidc.0.welcome_credits.free", "0"),
    ("oidc: {issuer: 'https://sso', audience: uc, welcome_credits: {free: .nan}}", "oidc.0.welcome_credits.free", ""),
    ("oidc: {issuer: 'https://sso', audience: uc, user_claim: ''}", "oidc.0.user_claim", "at least 1"),
    ("oidc: {issuer: 'https://sso', audience: uc, user_prefix: \"a\\n\"}", "oidc.0.user_prefix", "pattern"),
    ("oidc: {issuer: 'https://sso', audience: uc, leeway_s: 1000}", "oidc.0.leeway_s", "300"),
    ("oidc: {issuer: 'https://sso', audience: uc, keys_interval_s: 0}", "oidc.0.keys_interval_s", "greater than 0"),
    ("oidc: [{issuer: 'https://a', audience: u}, {issuer: 'https://a', audience: v}]", "oidc", "twice"),
    ("oidc: [{issuer: 'https://a', audience: u}, {issuer: 'https://b', audience: u}]", "oidc", "user_prefix"),
    ("oidc: [{issuer: 'https://a', audience: u, user_prefix: x}, {issuer: 'https://b', audience: u, user_prefix: xy}]",
     "oidc", "user_prefix"),
    ("limits: {failed_keys_per_minute: 0}", "limits.failed_keys_per_minute", "greater than or equal to 1"),
    ("limits: {api_requests_per_minute: off}", "limits", "true or false"),
    ("limits: {address_header: X-Forwarded-For, trusted_proxies: [10.0.0.1]}", "limits.address_header", "pattern"),
    ("limits: {address_header: x-forwarded-for}", "limits", "trusted_proxies"),
    ("limits: {trusted_proxies: [10.0.0.1/8]}", "limits", "10.0.0.0/8"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "key", "fix"), BAD, ids=[text for text, _, _ in BAD])
def test_a_bad_value_names_key_and_fix(tmp_path: Path, text: str, key: str, fix: str) -> None:
    """A wrong setting stops the start with the file, the key and what to write instead."""
    message = refusal(tmp_path, text)
    assert key in message
    assert fix in message


def test_a_power_level_is_what_it_names(tmp_path: Path) -> None:
    """What a level leaves out is not set, and numbers are as written."""
    eco = load(tmp_path, "power_levels: {eco: {cost_multiplier: 0.7, is_active: off, max_latency_ms: }}").power_levels[
        "eco"
    ]
    assert eco.model_dump(exclude_unset=True) == {
        "cost_multiplier": Decimal("0.7"), "is_active": False, "max_latency_ms": None,
    }  # fmt: skip
    assert load(tmp_path).power_levels == {}


def test_one_issuer_or_several(tmp_path: Path) -> None:
    """One issuer needs no list, one name none either, and a claim within a claim is written with a dot."""
    (one,) = load(tmp_path, "oidc: {issuer: 'https://a/b', audience: uc, user_claim: a.b, tier_claim: [c.d]}").oidc
    assert (one.audience, one.user_claim, one.tier_claim, one.app_claim) == (("uc",), ("a", "b"), ("c.d",), ("azp",))
    issuer = "{issuer: 'http://localhost:%d/', audience: [a, b], user_prefix: '%d:', allow_http: true}"
    several = load(tmp_path, f"oidc: [{issuer % (1, 1)}, {issuer % (2, 2)}]").oidc
    assert [each.issuer for each in several] == ["http://localhost:1/", "http://localhost:2/"]


def test_the_shipped_file_explains_every_key_of_an_issuer() -> None:
    """What the file shows of `oidc` in remarks is all there is, with the defaults."""
    text = (settings.shipped("config") / "uc.yaml").read_text()
    remarks = text[text.index("\n#   - # As it stands") : text.index("\noidc:")]
    shown = yaml.safe_load("\n".join(line[2:] for line in remarks.strip().splitlines()))
    (issuer,) = shown
    assert set(issuer) == set(IssuerSettings.model_fields)
    needed = {"issuer": issuer["issuer"], "audience": issuer["audience"]}
    assert IssuerSettings.model_validate(issuer) == IssuerSettings.model_validate(needed)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are told by their place."""
    (tmp_path / "uc.yaml").write_bytes(b"a: \xff")
    with pytest.raises(SettingsError, match="byte 3; save it as UTF-8"):
        settings.load({"UC_CONFIG": str(tmp_path / "uc.yaml")})


@pytest.mark.parametrize(
    "text",
    ["power_levels: {eco: {description: 2026-02-30}}", "x: 2026-13-01", 'outbox: {most_mb: !!int "0x"}',
     "a: !!timestamp x", f"x: {'9' * 5000}", "a: !!bool x", 'a: !!int ""'],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_values_that_yaml_cannot_make(tmp_path: Path, text: str) -> None:
    """A value that looks like a date or a number and is none is a wrong setting, told by its place."""
    message = refusal(tmp_path, f"\n{text}")
    assert "a value that cannot be in line 2, column " in message


TWICE = [
    ("limits: {failed_keys_per_minute: 5}\ntiers: {}\nlimits: {}\n", "'limits' stands there twice in line 3, column 1"),
    ("tiers:\n  free: {markup: 1}\n  'free': {}\n", "'free' stands there twice in line 3, column 3"),
    ("credits: {credits_per_usd: 1, credits_per_usd: 1}", "'credits_per_usd' stands there twice in line 1, column 31"),
]


@pytest.mark.parametrize(("text", "told"), TWICE)
def test_a_key_that_stands_twice(tmp_path: Path, text: str, told: str) -> None:
    """Of two sections of a name neither is silently the only one."""
    assert told in refusal(tmp_path, text)


def test_what_a_merge_brings_may_be_overridden(tmp_path: Path) -> None:
    """A mapping that takes another's values over with `<<` has its own in their place, in whatever order they stand."""
    text = (
        "tiers: {free: {<<: &a {<<: &b {markup: 3, rpm_limit: 5}, markup: 2}, markup: 1}, starter: *a, enterprise: *b}"
    )
    tiers = load(tmp_path, text).tiers
    assert {name: (int(each.markup), each.rpm_limit) for name, each in tiers.items()} == {
        "free": (1, 5), "starter": (2, 5), "enterprise": (3, 5),
    }  # fmt: skip


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    """Two wrong settings are two lines of one message."""
    assert "2 wrong setting(s)" in refusal(tmp_path, "a: 1\nholds: {lease_s: 0}")


SECRETS = [f"database: {URL}", f"database: {{schema: '{URL}'}}", f"database: {{url: '{URL}'}}", f"credits: ['{URL}']",
           f"database: {{pool_size: '{URL}'}}", f"database_url: {URL}",
           f"holds: {{unbounded_input: '{URL}'}}",
           f"database_url: '{URL}", f"power_levels: {{eco: {{name: ['{URL}']}}}}"]  # fmt: skip


@pytest.mark.parametrize("text", SECRETS)
def test_a_secret_in_the_wrong_place_is_not_printed(tmp_path: Path, text: str) -> None:
    """A database URL that lands where it does not belong is never repeated with its password."""
    assert "hunter2" not in refusal(tmp_path, text)


def test_secrets_come_from_the_environment_or_a_file(tmp_path: Path) -> None:
    """The value wins over the file; both are stripped; neither is shown."""
    secret = tmp_path / "secret"
    secret.write_text(f"{URL}\n")
    found = load(tmp_path, UC_DATABASE_URL_FILE=str(secret), UC_SEALING_KEYS="new, old,")
    assert found.database_url is not None
    assert found.database_url.get_secret_value() == URL
    assert [key.get_secret_value() for key in found.sealing_keys] == ["new", "old"]
    assert "hunter2" not in repr(found) + str(found) + found.model_dump_json()
    other = load(tmp_path, UC_DATABASE_URL_FILE=str(secret), UC_DATABASE_URL="postgresql://other")
    assert other.database_url is not None
    assert other.database_url.get_secret_value() == "postgresql://other"


@pytest.mark.parametrize("value", ["", " ", "\n"])
def test_an_empty_secret_is_none(tmp_path: Path, value: str) -> None:
    """An empty variable means the embedded server, as an unset one does."""
    assert load(tmp_path, UC_DATABASE_URL=value).database_url is None
    assert load(tmp_path, UC_SEALING_KEYS=value).sealing_keys == ()


def test_a_missing_secret_file_is_named(tmp_path: Path) -> None:
    """A file that cannot be read stops the start, by name."""
    assert "UC_DATABASE_URL_FILE" in refusal(tmp_path, "", UC_DATABASE_URL_FILE=str(tmp_path / "none"))


@pytest.mark.parametrize("name", ["none.yaml", "."])
def test_a_missing_settings_file_is_named(tmp_path: Path, name: str) -> None:
    """So does a settings file that is not there, or is a directory."""
    with pytest.raises(SettingsError, match="UC_CONFIG"):
        settings.load({"UC_CONFIG": str(tmp_path / name)})


def test_settings_do_not_change(tmp_path: Path) -> None:
    """Settings are frozen."""
    found = load(tmp_path)
    with pytest.raises(ValidationError):
        found.holds.lease_s = 5


def test_where_state_lives(tmp_path: Path) -> None:
    """UC_STATE_DIR, else XDG_STATE_HOME, else the home directory."""
    assert load(tmp_path).state_dir == tmp_path
    assert load(tmp_path, UC_STATE_DIR="", XDG_STATE_HOME="/x").state_dir == Path("/x/uc-litellm")
    assert load(tmp_path, UC_STATE_DIR="").state_dir == Path.home() / ".local" / "state" / "uc-litellm"
