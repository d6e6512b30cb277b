"""`redis://`: see `driver`."""
