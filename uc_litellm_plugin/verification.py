"""Is the database as this code needs it, and does any package sell credits below cost?"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from . import migrations
from .database import Database
from .settings import TIERS, Settings


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TABLES = _names("""
    user_credits credit_transactions credit_holds settlement_quarantine user_provider_keys user_api_keys llm_usage_log
    llm_usage_summary provider_health providers credit_packages power_level_configs schema_version""")
_FUNCTIONS = _names("""
    debit_user_credits add_user_credits get_user_balance refresh_usage_summary hold_credits settle_credits release_hold
    extend_holds expire_holds ledger_audit create_account load_caller load_account touch_api_keys account_history""")
_CONSTRAINTS = _names("""
    valid_tier valid_power_level positive_credits valid_transaction_type valid_payment_method valid_provider
    positive_tokens valid_power_level_usage valid_status valid_success_rate valid_power_level_config""")
_SEED = {
    "credit_packages.name": frozenset({"Starter Pack", "Value Pack", "Pro Pack", "Enterprise Pack"}),
    "power_level_configs.power_level": _names("eco balanced precision"),
    "providers.name": _names("""
        openai anthropic openrouter google cohere together groq mistral perplexity fireworks huggingface anyscale
        deepinfra custom"""),
}

_RELATIONS = "SELECT relname FROM pg_class WHERE relnamespace = $1::regnamespace AND relkind IN ('r', 'p', 'm', 'v')"
_PROCEDURES = "SELECT proname FROM pg_proc WHERE pronamespace = $1::regnamespace"
_CHECKS = "SELECT conname FROM pg_constraint WHERE connamespace = $1::regnamespace"
_MARGINS = """
SELECT p.name AS package, p.credits, p.price_usd, p.min_tier, c.power_level, c.cost_multiplier
FROM credit_packages AS p CROSS JOIN power_level_configs AS c
WHERE p.is_active AND c.is_active ORDER BY p.sort_order, p.id, c.cost_multiplier"""

AUDIT_TIMEOUT_S = 600


@dataclass(frozen=True)
class Margin:
    """What one package earns at one power level.

    Attributes
    ----------
    margin
        Dollars of revenue per dollar of provider cost; below 1 every call is sold at a loss.
    """

    package: str
    power_level: str
    margin: Decimal


async def find_problems(database: Database, settings: Settings) -> list[str]:
    """What is wrong, a sentence each; nothing when all is well.

    Looks at migrations and their checksums, tables, functions, constraints, seed rows, and the ledger's invariants.
    """
    pending = [state for state in await migrations.status(settings) if state.state != "applied"]
    if pending:
        return [
            f"Migration {state.version:04d}_{state.name} is {state.state}: run `uc-litellm db migrate`."
            for state in pending
        ]
    return [
        *await _missing_objects(database, settings),
        *await _missing_seed(database),
        *[f"Ledger: {finding}" for finding in await audit(database)],
    ]


async def audit(database: Database) -> list[dict[str, object]]:
    """What `ledger_audit()` finds: a row for each invariant that does not hold."""
    return [dict(row) for row in await database.fetch("SELECT * FROM ledger_audit()", timeout=AUDIT_TIMEOUT_S)]


async def margins(database: Database, settings: Settings) -> list[Margin]:
    """The margin of each active package at each active power level."""
    return [
        Margin(
            row["package"],
            row["power_level"],
            margin(
                price_usd=row["price_usd"],
                credits_sold=row["credits"],
                credits_per_usd=settings.credits.credits_per_usd,
                cost_multiplier=row["cost_multiplier"],
                markup=_lowest_markup(settings, row["min_tier"]),
            ),
        )
        for row in await database.fetch(_MARGINS, idempotent=True)
    ]


def margin(
    *, price_usd: Decimal, credits_sold: Decimal, credits_per_usd: Decimal, cost_multiplier: Decimal, markup: Decimal
) -> Decimal:
    """Dollars earned per dollar of provider cost, rounded down to three places.

    A call that costs the operator C dollars is charged C x credits_per_usd x cost_multiplier x markup credits, and
    each of these credits was sold for price_usd / credits_sold dollars. So

        margin = credits_per_usd x cost_multiplier x markup x price_usd / credits_sold

    that is, credits charged per dollar of cost over credits sold per dollar of revenue (decision 1 of the design).
    Example: 500 credits for 45 dollars at 10 credits per dollar and multiplier 1 give 10 x 45 / 500 = 0.9.
    """
    exact = credits_per_usd * cost_multiplier * markup * price_usd / credits_sold
    return exact.quantize(Decimal("0.001"), rounding="ROUND_DOWN")


def _lowest_markup(settings: Settings, min_tier: str | None) -> Decimal:
    """The least favourable markup among the tiers that may buy a package."""
    buyers = TIERS[TIERS.index(min_tier) :] if min_tier in TIERS else TIERS
    return min(settings.tier(tier).markup for tier in buyers)


async def _missing_objects(database: Database, settings: Settings) -> list[str]:
    problems = []
    for kind, query, expected in (
        ("table", _RELATIONS, _TABLES),
        ("function", _PROCEDURES, _FUNCTIONS),
        ("constraint", _CHECKS, _CONSTRAINTS),
    ):
        rows = await database.fetch(query, settings.database.schema_name, idempotent=True)
        missing = expected - {row[0] for row in rows}
        problems += [f"The {kind} {name} is missing: restore it from sql/." for name in sorted(missing)]
    return problems


async def _missing_seed(database: Database) -> list[str]:
    problems = []
    for place, expected in _SEED.items():
        table, column = place.split(".")
        rows = await database.fetch(f"SELECT {column} FROM {table}", idempotent=True)  # noqa: S608 - names from above
        missing = expected - {row[0] for row in rows}
        problems += [f"The seed row {name!r} of {table} is missing." for name in sorted(missing)]
    return problems
