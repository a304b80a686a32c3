"""Shared parts of the benchmarks: workloads, servers, engines, and the peers for comparison."""
