"""Prometheus metrics of the gateway: scores by probe, latencies, rings, and what the engine's own `/metrics` has."""
