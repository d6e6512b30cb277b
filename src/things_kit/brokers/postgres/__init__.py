"""`postgres://`: see `driver`."""
