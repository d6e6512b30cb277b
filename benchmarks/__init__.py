"""Benchmarks: each measures what it compares in one run. `make bench` writes docs/benchmarks.md."""
