"""Benchmarks: `pytest bench/ --benchmark-only`, `rsattn bench`, `python -m bench.report`; see bench/README.md."""
