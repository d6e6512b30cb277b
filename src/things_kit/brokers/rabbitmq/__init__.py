"""`amqp://` and `amqps://`: see `driver`."""
