"""Measurements that `actscope bench NAME` runs: each module has `run(seconds, progress)`, which returns results."""
