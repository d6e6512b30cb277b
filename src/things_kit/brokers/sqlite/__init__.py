"""`sqlite://`: see `driver`."""
