"""Mutation of the engine: `python -m tests.mutants [--count N] [--seed N] [MODULE ...]` lists the mutants that no test finds."""
