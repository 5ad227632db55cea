"""Benchmarks: `pytest bench/ --benchmark-only`, or `python -m bench.cpu` for the interleaved comparison."""
