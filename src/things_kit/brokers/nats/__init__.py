"""`nats://`: see `driver`."""
