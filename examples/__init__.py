"""Programs that show how things are done: each runs as `python examples/NAME.py`."""
