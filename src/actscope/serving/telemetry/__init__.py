"""Prometheus metrics that the servers share: histograms, processes, GPUs, and their text formats."""
