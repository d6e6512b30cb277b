"""`servicebus://`: see `driver`."""
