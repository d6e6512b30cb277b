"""Patterns above the engine, each a handler or a function of its own."""
