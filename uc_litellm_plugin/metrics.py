"""What an operator watches, in prometheus-client's default registry.

LiteLLM serves that registry at `/metrics` when its own `prometheus` callback is on; any exporter of it does.
Each worker counts for itself.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge

HOLDS = Counter("uc_holds", "Holds asked for, by what became of them (held, or the refusal).", ["outcome"])
SETTLEMENTS = Counter("uc_settlements", "Settlements that PostgreSQL took, by outcome.", ["outcome"])
BEYOND_HOLD = Counter("uc_calls_beyond_hold", "Calls that cost more than was held for them.")
EXPIRED = Counter("uc_holds_expired", "Holds whose lease lapsed: their worker died, or lost PostgreSQL for too long.")
QUARANTINED = Counter("uc_settlements_quarantined", "Settlements that need an operator.")
OUTBOXED = Counter("uc_settlements_outboxed", "Settlements that went to the outbox.")
OUTBOX_BYTES = Gauge("uc_outbox_bytes", "Bytes of settlements that wait in the outbox, of all processes on this host.")
OUTBOX_AGE = Gauge("uc_outbox_oldest_seconds", "Age of the oldest settlement that waits in the outbox.")
STRANDED = Gauge("uc_settlements_stranded", "Settlements kept in memory, since the outbox cannot be written.")
REINSTALLED = Counter("uc_strategy_reinstalled", "Times the routing strategy had to be put back on LiteLLM's router.")
ATTEMPTS = Counter("uc_attempts", "Attempts at providers that ended, by outcome: success, abandoned or the fault.",
                   ["provider", "outcome"])  # fmt: skip
PROVIDER_STATUS = Gauge("uc_provider_status", "How a deployment stands: 0 healthy, 1 degraded, 2 down.",
                        ["provider", "deployment"])  # fmt: skip
