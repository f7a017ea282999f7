"""The OpenAPI document says what there is, and the proxy does what it says: table, examples, schemathesis.

schemathesis runs briefly with the other tests. The long form, some minutes:
`UC_API_CASES=200 python -m pytest tests/acceptance/test_api/test_contract.py -s`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance import table
from tests.acceptance.asking import ask
from tests.acceptance.bank import Account, Bank
from tests.acceptance.test_api.client import Client
from tests.proxy import Json, Proxy
from uc_litellm_plugin.api_routes import PREFIX, ROUTES

CASES = "schemathesis over our part of the OpenAPI document"
# Random cases per operation, beside those that the schema itself suggests (boundaries, missing and foreign fields).
PER_OPERATION = os.environ.get("UC_API_CASES", "2")
IS_LONG = "UC_API_CASES" in os.environ
# In the short form administrators try what is not for users; in the long one everybody tries everything.
ROLES = ("user", "admin", "service") if IS_LONG else ("user", "admin")
SECONDS = 3600
# A cursor, a provider's key or a time in the past is refused though the schema cannot say why; 501 is the answer of
# purchases until there are some.
ARGUMENTS = ("--phases", "examples,coverage,fuzzing", "--exclude-checks", "positive_data_acceptance",
             "--exclude-path", f"{PREFIX}/credits/purchase", "--workers", "2", "--no-color", "--warnings", "off",
             "--generation-database", "none")  # fmt: skip
_GENERATED = re.compile(r"(\d+) generated, (\d+) passed")


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    """Path, method and operation."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method.upper(), operation


def test_table_is_what_is_mounted(document: Json) -> None:
    """The table of our routes and the app's document name the same routes, in the same words."""
    mounted = {(method, path): operation for path, method, operation in operations(document)}
    known = {(route.method, route.path.replace(":path", "")): route for route in ROUTES}
    assert mounted.keys() == known.keys()
    assert len(known) == len(ROUTES)
    for each, route in known.items():
        assert mounted[each]["summary"] == route.summary
        assert mounted[each]["x-uc-audience"] == route.audience
        assert mounted[each]["description"]


def test_answers_are_described(document: Json) -> None:
    """Each operation has a schema for what it answers, and the envelope for its errors; none has FastAPI's 422."""
    assert "ErrorBody" in document["components"]["schemas"]
    for path, method, operation in operations(document):
        answers = operation["responses"]
        for status, answer in answers.items():
            schema = (answer.get("content") or {}).get("application/json", {}).get("schema", {})
            name = schema.get("$ref", "").removeprefix("#/components/schemas/")
            if status.startswith("2"):
                assert name, (method, path)
            elif status != "501":
                assert name == "ErrorBody", (method, path, status)
        assert "422" not in answers


def test_requests_have_examples(document: Json) -> None:
    """Each required field of each body has an example, and no body takes fields that it does not name."""
    schemas = document["components"]["schemas"]
    bodies = {
        operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
        for _, _, operation in operations(document)
        if "requestBody" in operation
    }
    assert len(bodies) >= 10
    for name in bodies:
        schema = schemas[name]
        assert name == "Rehearsal" or schema["additionalProperties"] is False
        for field in schema.get("required", ()):
            assert schema.get("examples") or schema["properties"][field].get("examples"), (name, field)


@pytest.mark.parametrize("role", ROLES)
def test_schemathesis(
    proxy: Proxy, bank: Bank, account: Account, document: Json, levels: None, tmp_path: Path, role: str
) -> None:
    """No case brings a 500 or an answer that its schema does not know, and the ledger's books balance after it."""
    key = account.api_key if role == "user" else bank.key(bank.open("0").user_id, role).api_key
    client = Client(proxy, key, account.user_id)
    spec = tmp_path / "openapi.json"
    tried = document if IS_LONG else _part(document, for_users=role == "user")
    spec.write_text(json.dumps(_with_ids(tried, _ids(proxy, bank, account))))
    logged = len(proxy.log())
    told = _run(spec, proxy, client)
    generated = _GENERATED.search(told)
    assert generated, told[-6000:]
    assert generated[1] == generated[2], told[-6000:]
    table.begin(CASES, "as", "cases", "passed")
    table.add(CASES, role, *generated.groups())
    print(f"schemathesis as {role}: {generated[1]} cases, {generated[2]} passed")
    assert "a request to our API failed" not in proxy.log()[logged:]
    assert bank.audit() == []


def _run(spec: Path, proxy: Proxy, client: Client) -> str:
    seed = os.environ.get("UC_API_SEED", str(uuid.uuid4().int % 2**32))
    print(f"seed: UC_API_SEED={seed}")
    command = [str(Path(sys.executable).with_name("st")), "run", str(spec), "--url", proxy.url, *ARGUMENTS]
    # It takes `Authorization` away where it tries without, and knows it by this spelling only.
    headers = ["-H", f"Authorization: Bearer {client.api_key}", "-H", f"X-UC-User-Id: {client.user_id}"]
    ran = subprocess.run([*command, "--max-examples", PER_OPERATION, "--seed", seed, *headers], cwd=spec.parent,
                         capture_output=True, text=True, timeout=SECONDS,
                         env={**os.environ, "NO_PROXY": "127.0.0.1"})  # fmt: skip
    return ran.stdout + ran.stderr


def _part(document: Json, *, for_users: bool) -> Json:
    """The document with the operations that are for users, or with the others."""
    paths = {
        path: {method: each for method, each in item.items() if (each["x-uc-audience"] == "user") is for_users}
        for path, item in document["paths"].items()
    }
    return {**document, "paths": {path: item for path, item in paths.items() if item}}


def _ids(proxy: Proxy, bank: Bank, account: Account) -> dict[str, str]:
    """What there is, so that not every case ends at a 404; the account that is changed is not the one that asks."""
    assert ask(proxy, account, "chat").status_code == 200
    (call,) = bank.settled(account)
    level = f"l{uuid.uuid4().hex[:8]}"
    bank.rows("INSERT INTO power_level_configs (power_level, name) VALUES ($1, 'Test')", level)
    made = Client(proxy, account.api_key).post("/provider-keys", {"provider": "groq", "api_key": f"gsk_{'x' * 40}"})
    return {
        "request_id": call["request_id"],
        "id": call["request_id"],
        "level": level,
        "user_id": bank.open().user_id,
        "key_id": made["id"],
    }


def _with_ids(document: Json, ids: dict[str, str]) -> Json:
    """The document with these among the values of the parameters, and with the one carrier of keys that is used."""
    copied: Json = json.loads(json.dumps(document))
    for _, _, operation in operations(copied):
        operation["security"] = [{"HTTPBearer": []}]
        for parameter in operation.get("parameters", ()):
            if parameter["name"] in ids and parameter["in"] in ("path", "query"):
                parameter["schema"] = {"anyOf": [{"enum": [ids[parameter["name"]]]}, parameter["schema"]]}
                parameter["example"] = ids[parameter["name"]]
    return copied
