"""Benchmarks of `actscope bench NAME`. Each module has `run(seconds, progress)`, which returns results."""
