"""Proof that a soak finds what it is to find: `python -m tests.soak`."""
