"""`/providers/health`: how the providers fare, as all workers together see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter

from .callers import Asking, At
from .envelope import EnvelopeRoute
from .models import ERRORS, Everything
from .models_levels import Deployment, DeploymentHealth, ProviderHealth

routing = APIRouter(prefix="/providers", tags=["uc: providers"], route_class=EnvelopeRoute, responses=ERRORS)

_HEALTH = """
SELECT provider, deployment, status, status_since, avg_latency_ms, p95_latency_ms, success_rate, last_check,
    last_success, last_failure, last_error, requests_last_hour, error_count_24h, consecutive_failures
FROM provider_health ORDER BY provider, deployment"""
# How much the platform is used is not for its users.
_FOR_ADMINS = ("requests_last_hour", "error_count_24h", "consecutive_failures")


@routing.get("/health")
async def health(asking: Asking, at: At) -> Everything[ProviderHealth]:
    """The providers that calls went to, with their deployments. No probes: this is what live calls met."""
    rows = [dict(row) for row in await at.worker.database.fetch(_HEALTH, idempotent=True)]
    if asking.role != "admin":
        rows = [{**row, **dict.fromkeys(_FOR_ADMINS)} for row in rows]
    # The provider's own row has an empty deployment.
    return Everything(data=[_provider(row, rows) for row in rows if not row["deployment"]])


def _provider(own: Mapping[str, Any], rows: list[dict[str, Any]]) -> ProviderHealth:
    deployments = [row for row in rows if row["provider"] == own["provider"] and row["deployment"]]
    return ProviderHealth(
        provider=own["provider"],
        **DeploymentHealth.model_validate(own).model_dump(),
        deployments=[Deployment.model_validate(row) for row in deployments],
    )
