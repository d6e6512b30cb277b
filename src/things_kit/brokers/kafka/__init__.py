"""`kafka://`: see `driver`."""
