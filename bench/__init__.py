"""Measurements, each one command that prints a table: `python -m bench.failover`, `python -m bench.ranking`."""
