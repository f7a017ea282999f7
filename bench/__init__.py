"""Measurements, each one command that prints a table: `python -m bench.ab` (the plugin beside the stock proxy),
`ledger`, `scale`, `tokens`, `pauses` and `hotspots` (docs/performance.md); `failover`, `ranking` and `api_reports`."""
