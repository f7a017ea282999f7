"""Users' provider keys on a database: who may do what, what is stored, and what is shown."""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
import respx

from tests.integration.vaults import ADDRESS, Keyring, canary, new_key
from tests.unit.test_provider_form import PATTERNS
from uc_litellm_plugin.database import Database
from uc_litellm_plugin.errors import (
    BadRequest,
    DamagedKey,
    Forbidden,
    NotFound,
    Refusal,
    Taken,
    UnknownSealingKey,
)
from uc_litellm_plugin.provider_key import KeyChanges, NewKey
from uc_litellm_plugin.provider_keys import ProviderKeys
from uc_litellm_plugin.vault import Secret

LATER = datetime(2999, 1, 1, tzinfo=timezone.utc)
MODELS = f"https://{ADDRESS}/v1/models"


@pytest.fixture
async def keyring(db: Database) -> Keyring:
    """Ann and Bob, of the tier starter."""
    keyring = Keyring.on(db)
    await keyring.account("ann")
    await keyring.account("bob")
    return keyring


@pytest.fixture
def keys(keyring: Keyring) -> ProviderKeys:
    return keyring.keys()


async def refused(work: Awaitable[Any], kind: type[Refusal], code: str) -> Refusal:
    with pytest.raises(kind) as refusal:
        await work
    assert refusal.value.code == code
    return refusal.value


async def test_a_key_from_adding_to_deleting(keys: ProviderKeys, keyring: Keyring) -> None:
    """A key is stored sealed, shown by its hint, read for a call, changed, and deleted."""
    added = await keys.add("ann", new_key(key_name="mine", fallback="credits", monthly_cap_usd=Decimal(20)))
    assert (added["key_hint"], added["key_name"], added["fallback"]) == ("cdef", "mine", "credits")
    assert (added["monthly_cap_usd"], added["spent_this_month_usd"], added["is_default"]) == (20, 0, False)
    assert await keys.all("ann") == [added] == [await keys.get("ann", str(added["id"]))]
    assert canary(1) not in json.dumps(added, default=str)
    (usable,) = await keys.usable("ann")
    assert keys.open(usable).reveal() == canary(1)
    assert usable.is_usable(datetime.now(timezone.utc))
    changed = await keys.change("ann", added["id"], KeyChanges(key_name="ours", is_active=False, monthly_cap_usd=None))
    assert (changed["key_name"], changed["is_active"], changed["monthly_cap_usd"]) == ("ours", False, None)
    assert (changed["fallback"], await keys.usable("ann")) == ("credits", ())
    assert (await keys.delete("ann", added["id"]))["key_name"] == "ours"
    assert await keys.all("ann") == []


async def test_what_stands_in_the_row(keys: ProviderKeys, db: Database) -> None:
    """Neither the key nor more than four characters of it stand anywhere in the database."""
    await keys.add("ann", new_key())
    (row,) = await db.fetch("SELECT * FROM user_provider_keys")
    assert row["key_id"] == keys.vault.newest  # type: ignore[attr-defined]
    assert row["encrypted_api_key"].startswith("gAAAAA")
    text = " ".join(str(value) for value in row.values())
    assert canary(1) not in text
    assert canary(1)[:12] not in text


async def test_a_key_as_it_is_pasted(keys: ProviderKeys) -> None:
    """Blanks and line ends around a key are not part of it."""
    await keys.add("ann", NewKey("openai", Secret(f"  {canary(1)}\n")))
    (usable,) = await keys.usable("ann")
    assert keys.open(usable).reveal() == canary(1)


async def test_the_tier(keyring: Keyring) -> None:
    """Own keys come with the tier starter, or with the one that is set; who lost the tier may still look and delete."""
    keys = keyring.keys()
    await keyring.account("free", "free")
    refusal = await refused(keys.add("free", new_key()), Forbidden, "tier")
    assert refusal.metadata == {"tier": "free", "min_tier": "starter"}
    added = await keys.add("ann", new_key())
    await keyring.database.execute("UPDATE user_credits SET tier = 'free' WHERE user_id = 'ann'")
    await refused(keys.change("ann", added["id"], KeyChanges(is_default=True)), Forbidden, "tier")
    await refused(keys.test("ann", added["id"]), Forbidden, "tier")
    assert len(await keys.all("ann")) == 1
    await keys.delete("ann", added["id"])
    await refused(keyring.keys(min_tier="professional").add("bob", new_key()), Forbidden, "tier")
    await keyring.keys(min_tier="free").add("free", new_key())
    await refused(keyring.keys(enabled=False).add("bob", new_key()), Forbidden, "byok_disabled")


async def test_nobody(keys: ProviderKeys) -> None:
    """For an account that does not exist nothing is stored."""
    await refused(keys.add("nan", new_key()), NotFound, "unknown_account")


TOUCHES: dict[str, Callable[[ProviderKeys, Any], Awaitable[Any]]] = {
    "get": lambda keys, key_id: keys.get("bob", key_id),
    "change": lambda keys, key_id: keys.change("bob", key_id, KeyChanges(is_active=False)),
    "delete": lambda keys, key_id: keys.delete("bob", key_id),
    "test": lambda keys, key_id: keys.test("bob", key_id),
}


@pytest.mark.parametrize("touch", TOUCHES)
async def test_another_users_key_is_not_there(keys: ProviderKeys, touch: str) -> None:
    """Another user's key, an unknown one and a malformed id get the same 404, and nothing changes."""
    added = await keys.add("ann", new_key())
    told = [
        str(await refused(TOUCHES[touch](keys, key_id), NotFound, "unknown_provider_key"))
        for key_id in (added["id"], str(added["id"]), uuid4(), "x", "", f"{added['id']}'--")
    ]
    assert len(set(told)) == 1
    assert await keys.all("ann") == [added]
    assert await keys.all("bob") == [] == list(await keys.usable("bob"))


async def test_names(keys: ProviderKeys) -> None:
    """A name stands once per user and provider, whether a key is added or renamed; if it is taken nothing changes."""
    first = await keys.add("ann", new_key())
    refusal = await refused(keys.add("ann", new_key(2)), Taken, "key_name_taken")
    assert (refusal.status, refusal.param) == (409, "key_name")
    second = await keys.add("ann", new_key(2, key_name="second"))
    await refused(keys.change("ann", second["id"], KeyChanges(key_name="default")), Taken, "key_name_taken")
    await keys.add("bob", new_key(3))
    assert {key["id"] for key in await keys.all("ann")} == {first["id"], second["id"]}


async def test_one_default(keys: ProviderKeys) -> None:
    """A new default takes the old one's place, at that provider only, and comes first for calls."""
    groq = await keys.add("ann", NewKey("groq", Secret("gsk_abcdefghijklmnopqrstuv"), is_default=True))
    first = await keys.add("ann", new_key(1, is_default=True))
    second = await keys.add("ann", new_key(2, key_name="second", is_default=True))
    third = await keys.add("ann", new_key(3, key_name="third"))
    assert {key["id"] for key in await keys.all("ann") if key["is_default"]} == {groq["id"], second["id"]}
    await keys.change("ann", third["id"], KeyChanges(is_default=True))
    usable = [key.id for key in await keys.usable("ann") if key.provider == "openai"]
    assert usable == [third["id"], first["id"], second["id"]]
    await keys.change("ann", third["id"], KeyChanges(is_default=False))
    assert [key["is_default"] for key in await keys.all("ann")] == [True, False, False, False]


async def test_defaults_that_race(keys: ProviderKeys) -> None:
    """Whoever makes which key the default at the same time: there is one at the end, and nobody gets an error."""
    added = [await keys.add("ann", new_key(number, key_name=f"key {number}")) for number in range(6)]
    await asyncio.gather(*(keys.change("ann", key["id"], KeyChanges(is_default=True)) for key in added * 3))
    assert sum(key["is_default"] for key in await keys.all("ann")) == 1


async def test_as_many_as_may_be(keyring: Keyring) -> None:
    """The limit holds per user and provider, also for those who come at the same time."""
    keys = keyring.keys(most_keys=3)
    many = [keys.add("ann", new_key(number, key_name=f"key {number}")) for number in range(8)]
    ended = await asyncio.gather(*many, return_exceptions=True)
    assert sum(isinstance(each, Taken) and each.code == "too_many_keys" for each in ended) == 5
    assert len(await keys.all("ann")) == 3
    await keys.add("bob", new_key())
    await keys.add("ann", NewKey("groq", Secret("gsk_abcdefghijklmnopqrstuv")))


@pytest.mark.parametrize(
    ("new", "code"),
    [
        (NewKey("nobody", Secret(canary(1))), "unknown_provider"),
        (NewKey("openai", Secret("nonsense")), "invalid_api_key"),
        (NewKey("openai", Secret("sk-ant-api03-abcdefghijklmnopqrstuv")), "invalid_api_key"),
        (new_key(key_name=""), "invalid_key_name"),
        (new_key(key_name="a\nb"), "invalid_key_name"),
        (new_key(fallback="always"), "invalid_fallback"),
        (new_key(monthly_cap_usd=Decimal(-1)), "invalid_monthly_cap_usd"),
        (new_key(expires_at=datetime(2020, 1, 1, tzinfo=timezone.utc)), "invalid_expires_at"),
        (new_key(api_base="https://proxy.example.com/v1"), "invalid_api_base"),
        (new_key(provider="custom"), "invalid_api_base"),
        (new_key(provider="custom", api_base="https://127.0.0.1/v1"), "invalid_api_base"),
        (new_key(provider="custom", api_base="http://llm.example.com/v1"), "invalid_api_base"),
    ],
)
async def test_what_cannot_be_stored(keys: ProviderKeys, new: NewKey, code: str) -> None:
    """What cannot be is refused by its name, without being repeated, and nothing is stored."""
    refusal = await refused(keys.add("ann", new), BadRequest, code)
    assert new.api_key.reveal() not in str(refusal)
    assert await keys.all("ann") == []


async def test_nothing_to_change(keys: ProviderKeys) -> None:
    """A change of nothing is refused, and so is one that cannot be; the key stays as it was."""
    added = await keys.add("ann", new_key())
    await refused(keys.change("ann", added["id"], KeyChanges()), BadRequest, "nothing_to_set")
    await refused(
        keys.change("ann", added["id"], KeyChanges(expires_at=added["created_at"])), BadRequest, "invalid_expires_at"
    )
    assert await keys.get("ann", added["id"]) == added


async def test_times(keys: ProviderKeys, db: Database) -> None:
    """Expiry and reminder are kept, cleared, and told when they are due; an expired key serves no call."""
    added = await keys.add("ann", new_key(expires_at=LATER, rotation_reminder=LATER))
    assert (added["expires_at"], added["is_expired"], added["is_rotation_due"]) == (LATER, False, False)
    await db.execute("UPDATE user_provider_keys SET expires_at = now(), rotation_reminder = now()")
    due = await keys.get("ann", added["id"])
    assert (due["is_expired"], due["is_rotation_due"]) == (True, True)
    (usable,) = await keys.usable("ann")
    assert not usable.is_usable(datetime.now(timezone.utc))
    cleared = await keys.change("ann", added["id"], KeyChanges(expires_at=None, rotation_reminder=None))
    assert (cleared["expires_at"], cleared["is_expired"], cleared["is_rotation_due"]) == (None, False, False)


@pytest.mark.usefixtures("one_day")
async def test_the_monthly_cap(keys: ProviderKeys, db: Database) -> None:
    """A key whose calls cost its cap this month serves none until the next month."""
    now = datetime.now(timezone.utc)
    await keys.add("ann", new_key(monthly_cap_usd=Decimal(5)))
    await db.execute("UPDATE user_provider_keys SET spent_this_month_usd = 5")
    (usable,) = await keys.usable("ann")
    assert (usable.is_usable(now), usable.is_usable(now + timedelta(days=32))) == (False, True)
    await db.execute("UPDATE user_provider_keys SET spent_this_month_usd = 4.999999999999")
    assert (await keys.usable("ann"))[0].is_usable(now)
    await db.execute(
        "UPDATE user_provider_keys SET last_reset = last_reset - interval '1 month', spent_this_month_usd = 7"
    )
    assert (await keys.usable("ann"))[0].is_usable(now)
    assert (await keys.all("ann"))[0]["spent_this_month_usd"] == 0


@respx.mock(using="httpcore")
async def test_a_custom_endpoint(respx_mock: respx.MockRouter, keys: ProviderKeys) -> None:
    """A custom key names its endpoint, is kept with it in one form, and is tried there."""
    route = respx_mock.get(MODELS).respond(200)
    new = NewKey("custom", Secret("any-key-at-all"), api_base="https://LLM.Example.com:443/v1/")
    added = await keys.add("ann", new, tested=True)
    assert (added["api_base"], added["key_hint"]) == ("https://llm.example.com/v1", "")
    assert (await keys.usable("ann"))[0].api_base == "https://llm.example.com/v1"
    assert route.calls[0].request.headers["host"] == "llm.example.com"


@pytest.mark.parametrize(
    ("status", "code"),
    [(200, None), (401, "key_refused"), (500, "provider_unreachable"), (302, "provider_unreachable")],
)
@respx.mock(using="httpcore")
async def test_adding_with_a_test(
    respx_mock: respx.MockRouter, keys: ProviderKeys, status: int, code: str | None
) -> None:
    """A key that is to be tried first is stored only if its provider takes it."""
    respx_mock.get(MODELS).respond(status, json={"error": canary(1)})
    if code is None:
        await keys.add("ann", new_key(), tested=True)
    else:
        refusal = await refused(keys.add("ann", new_key(), tested=True), BadRequest, code)
        assert canary(1) not in str(refusal)
    assert len(await keys.all("ann")) == (code is None)


@respx.mock(using="httpcore")
async def test_testing_a_key(respx_mock: respx.MockRouter, keys: ProviderKeys) -> None:
    """A test sends the key itself to its provider's own address; a refusal is noted in its row, a success clears it."""
    added = await keys.add("ann", new_key())
    route = respx_mock.get(MODELS).respond(401)
    assert (await keys.test("ann", added["id"])).result == "refused"
    assert route.calls[0].request.headers["authorization"] == f"Bearer {canary(1)}"
    assert route.calls[0].request.headers["host"] == "api.openai.com"
    noted = await keys.get("ann", added["id"])
    assert (noted["last_error"], noted["total_errors"], noted["errors_in_a_row"]) == ("refused when tested (401)", 1, 1)
    route.respond(503)
    assert (await keys.test("ann", added["id"])).result == "unreachable"
    assert (await keys.get("ann", added["id"]))["total_errors"] == 1
    route.respond(200)
    assert (await keys.test("ann", added["id"])).result == "ok"
    well = await keys.get("ann", added["id"])
    assert (well["last_error"], well["total_errors"], well["errors_in_a_row"]) == (None, 1, 0)


@pytest.mark.parametrize(
    ("provider", "key", "host", "path"),
    [
        ("openrouter", "sk-or-v1-abcdefghijklmnopqrstuv", "openrouter.ai", "/api/v1/key"),
        ("huggingface", "hf_abcdefghijklmnopqrstuv", "huggingface.co", "/api/whoami-v2"),
        ("deepinfra", "abcdefghijklmnopqrstuv", "api.deepinfra.com", "/v1/me"),
        ("google", f"AIza{'a' * 35}", "generativelanguage.googleapis.com", "/v1beta/models"),
    ],
)
@respx.mock(using="httpcore")
async def test_where_keys_are_tried(
    respx_mock: respx.MockRouter, keys: ProviderKeys, provider: str, key: str, host: str, path: str
) -> None:
    """Where a provider's list of models is public, a key is tried at an address that asks for one."""
    route = respx_mock.get(f"https://{ADDRESS}{path}").respond(200)
    await keys.add("ann", NewKey(provider, Secret(key)), tested=True)
    assert route.calls[0].request.headers["host"] == host


async def test_a_provider_without_a_test(keys: ProviderKeys) -> None:
    """Where there is no free call, a test says so."""
    added = await keys.add("ann", NewKey("perplexity", Secret("pplx-abcdefghijklmnopqrstuv")))
    await refused(keys.test("ann", added["id"]), BadRequest, "no_key_test")


async def test_a_name_that_turned_private(keyring: Keyring) -> None:
    """A custom endpoint that was public when it was stored is not called when its name is private now."""

    async def private(host: str, port: int) -> list[str]:
        return ["169.254.169.254"]

    new = NewKey("custom", Secret("any-key-at-all"), api_base="https://llm.example.com/v1")
    added = await keyring.keys().add("ann", new)
    await refused(keyring.keys(resolver=private).test("ann", added["id"]), BadRequest, "invalid_api_base")


async def test_an_address_that_was_put_in(keys: ProviderKeys, db: Database) -> None:
    """Who can write to the database cannot send a key elsewhere: with an api_base put in, it does not open."""
    added = await keys.add("ann", new_key())
    custom = await keys.add("ann", NewKey("custom", Secret("any-key-at-all"), api_base="https://llm.example.com/v1"))
    assert {keys.open(key).reveal() for key in await keys.usable("ann")} == {canary(1), "any-key-at-all"}
    await db.execute("UPDATE user_provider_keys SET api_base = 'https://evil.example.com/v1'")
    for key in await keys.usable("ann"):
        with pytest.raises(DamagedKey):
            keys.open(key)
    for each in (added, custom):
        with pytest.raises(DamagedKey):
            await keys.test("ann", each["id"])


async def test_rows_that_do_not_open(keyring: Keyring, db: Database) -> None:
    """A row moved to another user, and one whose sealing key is missing, are clear errors and lose nothing."""
    keys = keyring.keys()
    ann, bob = await keys.add("ann", new_key(1)), await keys.add("bob", new_key(2))
    with pytest.raises(UnknownSealingKey):
        await keyring.keys(keyring.new).test("ann", ann["id"])
    swap = """UPDATE user_provider_keys AS k SET encrypted_api_key = o.encrypted_api_key
        FROM user_provider_keys AS o WHERE o.id <> k.id"""
    await db.execute(swap)
    for user, key in (("ann", ann), ("bob", bob)):
        with pytest.raises(DamagedKey) as damaged:
            await keys.test(user, key["id"])
        assert "canary" not in "".join(traceback.TracebackException.from_exception(damaged.value).format())
    await db.execute(swap)
    assert set((await keyring.opened(keyring.old)).values()) == {canary(1), canary(2)}


@respx.mock(using="httpcore")
async def test_no_trace_of_a_key(
    respx_mock: respx.MockRouter, keys: ProviderKeys, db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong while a key is stored or tried: no log at DEBUG, no error and no frame of one has it."""
    caplog.set_level(logging.DEBUG)
    respx_mock.get(MODELS).respond(401, text=canary(1))
    failing = [
        new_key(provider="nobody"),
        new_key(provider="anthropic"),
        new_key(provider="custom"),
        new_key(key_name="\n"),
        new_key(api_base="https://x.example.com"),
    ]
    attempts = [(new, False) for new in failing] + [(new_key(), True), (new_key(), False), (new_key(), False)]
    await keys.add("bob", new_key(9))
    reports = []
    for new, tested in attempts:
        try:
            await keys.add("ann", new, tested=tested)
        except Refusal as refusal:
            report = traceback.TracebackException.from_exception(refusal, capture_locals=True)
            reports += ["".join(report.format()), json.dumps(refusal.error())]
    await db.execute("ALTER TABLE user_provider_keys ADD CONSTRAINT broken CHECK (key_name <> 'broken')")
    with pytest.raises(Exception, match="broken") as broken:
        await keys.add("ann", new_key(key_name="broken"))
    reports.append("".join(traceback.TracebackException.from_exception(broken.value, capture_locals=True).format()))
    assert len(reports) == 2 * (len(attempts) - 1) + 1
    for text in (*reports, caplog.text):
        assert canary(1) not in text


async def test_the_forms_that_are_tested_are_the_seeded_ones(db: Database) -> None:
    """The patterns of the unit tests are those of the database."""
    rows = await db.fetch("SELECT name, key_pattern FROM providers")
    seeded = {row["name"]: row["key_pattern"] for row in rows}
    assert all(seeded[name] == pattern for name, pattern in PATTERNS.items() if name != "free")
