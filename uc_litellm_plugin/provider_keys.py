"""Users' own provider keys: stored sealed, shown by their last four characters, tried at their provider on request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any
from uuid import UUID

from . import key_probe
from .database import Database, Row
from .endpoints import Resolve, check_base, resolve
from .errors import BadRequest, DatabaseError, Forbidden, NotFound, Taken
from .key_probe import Outcome
from .provider_form import Provider, check_key, check_values, hint
from .provider_key import UNSET, KeyChanges, NewKey, ProviderKey
from .settings import TIERS, ByokSettings
from .vault import KeyService, Sealed, Secret, purpose_of

_SHOWN = """
id, user_id, provider, key_name, key_hint, api_base, is_active, is_default, fallback, monthly_cap_usd,
CASE WHEN last_reset < date_trunc('month', clock_timestamp(), 'UTC') THEN 0 ELSE spent_this_month_usd END
    AS spent_this_month_usd,
total_requests, total_tokens, total_errors, errors_in_a_row, last_used, last_error, last_error_at, expires_at,
coalesce(expires_at <= clock_timestamp(), false) AS is_expired, rotation_reminder,
coalesce(rotation_reminder <= clock_timestamp(), false) AS is_rotation_due, created_at"""
_ALL = f"SELECT {_SHOWN} FROM user_provider_keys WHERE user_id = $1 ORDER BY provider, created_at, id"  # noqa: S608
_ONE = f"SELECT {_SHOWN} FROM user_provider_keys WHERE user_id = $1 AND id = $2"  # noqa: S608
_ADD = f"SELECT {_SHOWN} FROM add_provider_key($1, $2, $3, $4)"  # noqa: S608
_CHANGE = f"SELECT {_SHOWN} FROM change_provider_key($1, $2, $3)"  # noqa: S608
_DELETE = "DELETE FROM user_provider_keys WHERE user_id = $1 AND id = $2"
_WELL = "UPDATE user_provider_keys SET errors_in_a_row = 0, last_error = NULL WHERE user_id = $1 AND id = $2"
_ILL = "SELECT note_provider_key_error($1, $2, $3)"
_KEY = """
SELECT id, user_id, provider, key_id, encrypted_api_key, key_name, api_base, is_default, fallback, expires_at,
    monthly_cap_usd, spent_this_month_usd, last_reset FROM user_provider_keys WHERE user_id = $1"""
_SEALED = f"{_KEY} AND id = $2"
_USABLE = f"{_KEY} AND is_active ORDER BY provider, is_default DESC, created_at, id"
_PROVIDERS = """
SELECT name, display_name, key_pattern, coalesce(key_test_url, models_url) AS test_url, allows_api_base
FROM providers ORDER BY name"""
_TIER = "SELECT tier FROM user_credits WHERE user_id = $1"

# Of a new key, what is no value to be stored as it came.
_APART = frozenset({"provider", "api_key"})

Facts = dict[str, Any]


@dataclass(frozen=True)
class ProviderKeys:
    """What users do with their provider keys. Each method looks at one user's keys only: another's is not found.

    Parameters
    ----------
    database
        An open one.
    vault
        Seals and opens.
    rules
        The settings `byok`.
    resolver
        For tests.
    """

    database: Database
    vault: KeyService
    rules: ByokSettings
    resolver: Resolve = resolve

    async def add(self, user_id: str, new: NewKey, *, tested: bool = False) -> Facts:
        """Store a provider key.

        Parameters
        ----------
        tested
            Try it at the provider first; it is stored only if that accepts it.

        Returns
        -------
        dict
            The key as `get` shows it.

        Raises
        ------
        BadRequest
            The key's form, its name or something beside it cannot be, or the provider refused it or did not answer.
        Forbidden
            Code `tier` or `byok_disabled`.
        NotFound
            There is no such account.
        Taken
            The user has a key of that name there, or as many keys as may be.
        """
        await self._require_entitlement(user_id)
        providers = await self._providers()
        provider = _named(new.provider, providers)
        key = Secret(new.api_key.reveal().strip())
        check_key(key, provider, providers.values())
        values = {field.name: getattr(new, field.name) for field in fields(new) if field.name not in _APART}
        check_values(values)
        values |= {"api_base": await self._checked_base(new.api_base, provider), "key_hint": hint(key)}
        if tested:
            _require_ok(await self._probe(provider, values["api_base"], key))
        sealed = self.vault.seal(user_id, provider.name, key, purpose_of(values["api_base"]))
        values |= {"key_id": sealed.key_id, "encrypted_api_key": sealed.token}
        row = await self._write(_ADD, user_id, provider.name, values, self.rules.most_keys)
        if row is None:
            most = self.rules.most_keys
            raise Taken(f"There are {most} keys for {provider.name} already: delete one.", code="too_many_keys")
        return dict(row)

    async def all(self, user_id: str) -> list[Facts]:
        """The user's provider keys, by provider, oldest first; of a key itself the hint only."""
        return [dict(row) for row in await self.database.fetch(_ALL, user_id, idempotent=True)]

    async def get(self, user_id: str, key_id: str | UUID) -> Facts:
        """One of them; NotFound where it is not the user's."""
        return dict(await self._own(user_id, key_id))

    async def change(self, user_id: str, key_id: str | UUID, changes: KeyChanges) -> Facts:
        """Change a provider key; raises as `add`, and NotFound where it is not the user's."""
        await self._require_entitlement(user_id)
        own = await self._own(user_id, key_id)
        asked = {field.name: getattr(changes, field.name) for field in fields(changes)}
        values = {name: value for name, value in asked.items() if value is not UNSET}
        if not values:
            raise BadRequest(f"Nothing was to be changed; name one of {', '.join(asked)}.", code="nothing_to_set")
        check_values(values)
        return dict(await self._write(_CHANGE, user_id, own["id"], values) or own)

    async def delete(self, user_id: str, key_id: str | UUID) -> Facts:
        """Delete a provider key, whatever the user's tier; its usage rows stay. What it was is returned."""
        own = await self._own(user_id, key_id)
        await self.database.execute(_DELETE, user_id, own["id"], idempotent=True)
        return dict(own)

    async def test(self, user_id: str, key_id: str | UUID) -> Outcome:
        """Try a provider key at its provider, and note in its row what came of it.

        Raises
        ------
        NotFound
            It is not the user's.
        BadRequest
            Its provider has no address for that, or its `api_base` may not be called.
        VaultError
            It does not open.
        """
        await self._require_entitlement(user_id)
        own = await self._own(user_id, key_id)
        provider = _named(own["provider"], await self._providers())
        if (row := await self.database.fetchrow(_SEALED, user_id, own["id"], idempotent=True)) is None:
            raise _unknown()
        key = self.open(_provider_key(dict(row)))
        outcome = await self._probe(provider, own["api_base"], key)
        if outcome.result == "ok":
            await self.database.execute(_WELL, user_id, own["id"], idempotent=True)
        elif outcome.result == "refused":
            await self.database.fetchval(_ILL, user_id, own["id"], f"refused when tested ({outcome.status})")
        return outcome

    async def note_error(self, key: ProviderKey, error: str) -> None:
        """Note in a key's row that an attempt with it failed; `error` is a class, never a text, which may echo it."""
        await self.database.fetchval(_ILL, key.user_id, key.id, error)

    async def usable(self, user_id: str) -> tuple[ProviderKey, ...]:
        """The user's active keys, as `usable_keys`."""
        return await usable_keys(self.database, user_id)

    def open(self, key: ProviderKey) -> Secret:
        """A provider key for one attempt at its provider, or at its own `api_base`; raises `VaultError`."""
        return self.vault.open(key.user_id, key.provider, key.sealed, purpose_of(key.api_base))

    async def _own(self, user_id: str, key_id: str | UUID) -> Row:
        """The one place where it is decided whose a key is."""
        try:
            parsed = key_id if isinstance(key_id, UUID) else UUID(key_id)
        except ValueError:
            raise _unknown() from None
        if (row := await self.database.fetchrow(_ONE, user_id, parsed, idempotent=True)) is None:
            raise _unknown()
        return row

    async def _require_entitlement(self, user_id: str) -> None:
        if not self.rules.enabled:
            raise Forbidden("Own provider keys are switched off here (byok.enabled).", code="byok_disabled")
        if (tier := await self.database.fetchval(_TIER, user_id, idempotent=True)) is None:
            raise NotFound(f"There is no account {user_id[:80]!r}.", code="unknown_account")
        if not is_entitled(tier, self.rules):
            message = f"Own provider keys come with the tier {self.rules.min_tier}; this account has {tier}."
            raise Forbidden(message, code="tier", metadata={"tier": tier, "min_tier": self.rules.min_tier})

    async def _providers(self) -> dict[str, Provider]:
        rows = await self.database.fetch(_PROVIDERS, idempotent=True)
        return {row["name"]: Provider(**dict(row)) for row in rows}

    async def _checked_base(self, api_base: str | None, provider: Provider) -> str | None:
        if api_base is None:
            if provider.name == "custom":
                raise _bad_base("A custom endpoint needs its api_base, such as https://host/v1.")
            return None
        if not provider.allows_api_base:
            raise _bad_base(f"Keys of {provider.display_name} take no api_base; use the provider custom.")
        return (await check_base(api_base, self.rules, self.resolver)).base.url

    async def _probe(self, provider: Provider, api_base: str | None, key: Secret) -> Outcome:
        url = f"{api_base}/models" if api_base else provider.test_url
        if url is None:
            raise BadRequest(f"{provider.display_name} has no free call to try a key with.", code="no_key_test")
        return await key_probe.probe(url, provider.name, key, self.rules, self.resolver)

    async def _write(self, statement: str, *args: Any) -> Row | None:
        try:
            return await self.database.fetchrow(statement, *args)
        except DatabaseError as error:
            if error.constraint != "unique_provider_key":
                raise
            message = "The user has a key of that name for this provider already: choose another key_name."
            raise Taken(message, code="key_name_taken", param="key_name") from None


async def usable_keys(database: Database, user_id: str) -> tuple[ProviderKey, ...]:
    """A user's active keys, sealed, by provider and the default first; for the cache of a worker."""
    rows = await database.fetch(_USABLE, user_id, idempotent=True)
    return tuple(_provider_key(dict(row)) for row in rows)


def is_entitled(tier: str, rules: ByokSettings) -> bool:
    """Whether a tier may use own provider keys."""
    return tier in TIERS and TIERS.index(tier) >= TIERS.index(rules.min_tier)


def _named(name: str, providers: Mapping[str, Provider]) -> Provider:
    if (provider := providers.get(name)) is None:
        known = ", ".join(providers)
        raise BadRequest(f"There is no such provider; use one of {known}.", code="unknown_provider", param="provider")
    return provider


def _require_ok(outcome: Outcome) -> None:
    said = f" (HTTP {outcome.status})" if outcome.status else ""
    if outcome.result == "refused":
        raise BadRequest(f"The provider refused the key{said}; it was not stored.", code="key_refused", param="api_key")
    if outcome.result == "unreachable":
        raise BadRequest(
            f"The provider gave no verdict on the key{said}; it was not stored. Add it without a test, or later.",
            code="provider_unreachable",
        )


def _provider_key(row: Facts) -> ProviderKey:
    sealed = Sealed(row.pop("key_id"), row.pop("encrypted_api_key"))
    return ProviderKey(sealed=sealed, **row)


def _bad_base(message: str) -> BadRequest:
    return BadRequest(message, code="invalid_api_base", param="api_base")


def _unknown() -> NotFound:
    return NotFound("There is no such provider key.", code="unknown_provider_key")
